"""Entries as Parquet files, one for each range of indexes, for DuckDB and its like. Needs ``pyarrow``.

    entries-000000000000-000000099999.parquet    a whole range
    entries-000000100000-000000123456.parquet    the last one, as far as the log went

Rules: a file appears under its name when it is whole and on the disk; row groups are bounded, so that neither writing
nor reading needs more memory for a longer log; what ends early goes on at ``next_index``; the exact bytes of the body
are a column, so that a row can be checked against its hash.
It refuses: to write over a file; to import ``pyarrow`` before it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from audit.entries import Stored, facts_of
from audit.record import SEARCH_FIELDS

FILE_ENTRIES: Final = 100_000
LISTS: Final = ("data_sources", "rules_now")
"""``rules_now`` are the rules of that minute; those of the sheet are found by its digest."""


def load_pyarrow() -> tuple[Any, Any]:
    """``pyarrow`` and ``pyarrow.parquet``. Raises ``ImportError`` when they are not installed."""
    import pyarrow
    import pyarrow.parquet

    return pyarrow, pyarrow.parquet


class ParquetFiles:
    """Takes entries in the order of their indexes and writes them below a folder. ``close`` ends the last file.

    Raises ``ImportError`` without ``pyarrow``, ``OSError`` for what cannot be written.
    """

    def __init__(self, folder: Path, from_index: int, *, file_entries: int = FILE_ENTRIES) -> None:
        self._arrow, self._parquet = load_pyarrow()
        self._folder = folder
        self._file_entries = file_entries
        self._schema = _schema(self._arrow)
        self._writer: Any = None
        self._first = self._taken = from_index
        self.next_index = from_index
        """The first index that is in no whole file."""
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, entries: Sequence[Stored], end: int) -> None:
        """Write entries that follow those before, up to ``end``; each call is a row group in each file that it touches.

        Files are of indexes, so that one from which bodies were removed has fewer rows.
        """
        while self._taken < end:
            until = min(end, self._taken - self._taken % self._file_entries + self._file_entries)
            part = [entry for entry in entries if entry.index < until]
            entries = entries[len(part) :]
            if self._writer is None:
                self._open()
            if part:
                rows = self._arrow.Table.from_pylist([_row(entry) for entry in part], schema=self._schema)
                self._writer.write_table(rows, row_group_size=len(part))
            self._taken = until
            if self._taken % self._file_entries == 0:
                self.close()

    def close(self) -> None:
        """Give the file that is being written its name."""
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        name = self._folder / f"entries-{self._first:012}-{self._taken - 1:012}.parquet"
        _sync(self._draft)
        os.link(self._draft, name)  # unlike a rename, this refuses to replace
        self._draft.unlink()
        _sync(self._folder)
        self._first = self.next_index = self._taken

    def abandon(self) -> None:
        """Remove what is being written."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._draft.unlink(missing_ok=True)

    @property
    def _draft(self) -> Path:
        return self._folder / f".entries-{self._first:012}.parquet.{os.getpid()}"

    def _open(self) -> None:
        self._writer = self._parquet.ParquetWriter(self._draft, self._schema, compression="zstd")


def _schema(arrow: Any) -> Any:
    text = arrow.string()
    return arrow.schema(
        [
            arrow.field("index", arrow.int64(), nullable=False),
            arrow.field("id", text, nullable=False),
            arrow.field("kind", text, nullable=False),
            arrow.field("time", arrow.timestamp("us", tz="UTC"), nullable=False),
            *(arrow.field(name, text) for name in SEARCH_FIELDS),
            arrow.field("cost_micro_usd", arrow.int64()),
            *(arrow.field(name, arrow.list_(text)) for name in LISTS),
            arrow.field("policy_digest", text),
            arrow.field("fleet_digest", text),
            arrow.field("leaf_hash", arrow.binary(32), nullable=False),
            arrow.field("body", arrow.binary(), nullable=False),
        ]
    )


def _row(entry: Stored) -> dict[str, Any]:
    """A name that is not there is null."""
    facts = facts_of(entry.document())
    return {
        "index": entry.index,
        "id": entry.id,
        "kind": entry.kind,
        "time": entry.time_us,
        **entry.search,
        "cost_micro_usd": facts.cost_micro_usd,
        "data_sources": facts.data_sources,
        "rules_now": facts.rules_now,
        "policy_digest": facts.policy_digest,
        "fleet_digest": facts.fleet_digest,
        "leaf_hash": entry.leaf_hash,
        "body": entry.body,
    }


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
