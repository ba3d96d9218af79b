"""The decision log copied elsewhere, in the order of its indexes: OCSF lines, Parquet files, a collector.

    Source.entries ──a step──► Sink.take ──► next_index: everything before it has arrived

Rules: memory is that of one step, whatever the length of the log; a copy ends where the log ended when it began; a
copy that stops says from which index it goes on, and nothing before that index is missing in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Final, Protocol

import orjson

from audit import entries, ocsf
from audit.entries import Stored, facts_of
from audit.entry_lines import page_lines
from audit.parquet import ParquetFiles
from policyd.errors import ConfigError, ExportFailed, Finding, NotFound, PolicydError, RequestError
from policyd.ports import CollectedEntry, Collector
from policyd.services.log_reader import LogReader

PARQUET_REMEDY: Final = "pip install 'policyd[parquet]'"
PAGE_ENTRIES: Final = 1_000
COLLECTED_ENTRIES: Final = 500
"""Entries in one request to a collector: below 1 MiB in most cases, and never above 64 MiB."""


class Source(Protocol):
    """Where entries come from: one log."""

    @property
    def origin(self) -> str:
        """The name of the log."""
        ...

    async def size(self) -> int:
        """How many entries it has."""
        ...

    async def entries(self, from_index: int, to_index: int) -> Sequence[Stored]:
        """All of them from an index on and before another, but those whose body retention has removed."""
        ...


@dataclass(frozen=True, slots=True)
class LoggedEntries:
    """One log of a database."""

    reader: LogReader
    number: int
    origin: str

    async def size(self) -> int:
        """How many entries it has."""
        return await self.reader.size(self.number)

    async def entries(self, from_index: int, to_index: int) -> Sequence[Stored]:
        """At most one step of them."""
        return await self.reader.entries(self.number, from_index, to_index)


class Sink(Protocol):
    """Where entries go. ``next_index`` is the first that has not arrived for good."""

    @property
    def next_index(self) -> int: ...

    def take(self, entries: Sequence[Stored], end: int) -> None:
        """Take the entries that follow, before ``end``; those whose body retention has removed are not among them."""

    def close(self) -> None:
        """Everything that was taken arrives."""

    def abandon(self) -> None:
        """What has not arrived is given up."""


async def chosen_log(reader: LogReader, origin: str | None) -> LoggedEntries:
    """The log of this name. Raises ``RequestError`` when there are several and none of them is named."""
    logs = await reader.logs()
    found = [(number, name) for number, name in logs.items() if origin in (None, name)]
    if len(found) != 1:
        said = "the database holds several logs" if origin is None else f"there is no log {origin!r}"
        raise RequestError(said, remedy=f"name one of them with --log: {', '.join(logs.values())}")
    return LoggedEntries(reader, *found[0])


async def entries_page(reader: LogReader, origin: str, start: int) -> bytes:
    """A part of the log of this name with its columns, from ``start`` on; see ``audit.entry_lines``.

    Raises ``NotFound`` for a log that is not in the database, ``RequestError`` for a part that it has not.
    """
    found_log = next(((number, name) for number, name in (await reader.logs()).items() if name == origin), None)
    if found_log is None:
        raise NotFound(f"there is no log {origin[:400]!r}", remedy="name no log for the one of this server")
    log = LoggedEntries(reader, *found_log)
    size = await log.size()
    if start > size:
        message = f"is at most {size}, the entries of the log"
        raise RequestError(f"`from` {message}", findings=[Finding("from", message)])
    end = min(start + PAGE_ENTRIES, size)
    found = await log.entries(start, end)
    return await asyncio.to_thread(page_lines, log.origin, size, start, end, found)


async def copy(source: Source, sink: Sink, part: tuple[int, int | None], told: Callable[[int, int], None]) -> int:
    """Copy the entries of a log from an index to another (None: the last), and give the first that was not copied.

    ``told`` hears how many of how many. Raises ``RequestError`` for a part that the log has not, and ``ExportFailed``
    with where to go on.
    """
    size, (from_index, to_index) = await source.size(), part
    end = size if to_index is None else to_index + 1
    if not 0 <= from_index <= size or end > size or end < from_index:
        raise RequestError(
            f"the log holds {size} entries, so there is no part of it from {from_index} to {end - 1}",
            remedy=f"name indexes from 0 to {size - 1}",
        )
    at = from_index
    try:
        while at < end:
            following = min(at + entries.STEP_ENTRIES, end)
            found = await source.entries(at, following)
            at = following
            await asyncio.to_thread(sink.take, found, at)
            told(at - from_index, end - from_index)
        await asyncio.to_thread(sink.close)
    except BrokenPipeError:
        raise  # the reader of our output has gone, and no entry with it
    except (OSError, PolicydError) as error:
        sink.abandon()
        why = error.detail if isinstance(error, PolicydError) else _told(error)
        raise ExportFailed(
            f"the export stopped before the entry {sink.next_index}: {why}",
            remedy=f"remove the cause and continue with --from {sink.next_index}",
        ) from error
    return sink.next_index


def _told(error: OSError) -> str:
    place = error.filename2 or error.filename
    return f"{error.strerror}: {place}" if place else str(error.strerror)


class OcsfLines:
    """Events of OCSF, one a line."""

    def __init__(self, file: IO[bytes], origin: str, from_index: int) -> None:
        self._file, self._origin, self._version = file, origin, product_version()
        self.next_index = from_index

    def take(self, entries: Sequence[Stored], end: int) -> None:
        """Write a line for each."""
        for entry in entries:
            event = ocsf.event(entry, self._origin, self._version)
            self._file.write(orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE))
        self._file.flush()
        self.next_index = end

    def close(self) -> None:
        """Every line is out already."""

    def abandon(self) -> None:
        """Lines that are out stay out; the last of them may be broken off."""


def parquet_files(folder: Path, from_index: int) -> ParquetFiles:
    """Files below a folder. Raises ``ConfigError`` when ``pyarrow`` is not installed."""
    try:
        return ParquetFiles(folder, from_index)
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow, which is not installed", remedy=PARQUET_REMEDY) from error
    except OSError as error:
        raise RequestError(f"{folder} cannot be made: {error.strerror}", remedy="name another folder") from error


class Collected:
    """Entries as log records of a collector."""

    def __init__(self, collector: Collector, origin: str, from_index: int) -> None:
        self._collector, self._origin = collector, origin
        self.next_index = from_index

    def take(self, entries: Sequence[Stored], end: int) -> None:
        """Deliver them, a batch after the other."""
        for start in range(0, len(entries), COLLECTED_ENTRIES):
            batch = entries[start : start + COLLECTED_ENTRIES]
            self._collector.send([collected(entry, self._origin) for entry in batch])
            self.next_index = batch[-1].index + 1
        self.next_index = end

    def close(self) -> None:
        """Nothing is held back."""
        self._collector.close()

    def abandon(self) -> None:
        """The same."""
        self._collector.close()


def collected(entry: Stored, origin: str) -> CollectedEntry:
    """What a collector is told of an entry."""
    document = entry.document()
    facts = facts_of(document)
    attributes: dict[str, str | int] = {f"policyd.{name}": value for name, value in entry.search.items()}
    if facts.cost_micro_usd is not None:
        attributes["policyd.cost_micro_usd"] = facts.cost_micro_usd
    attributes |= {
        "policyd.id": entry.id,
        "policyd.log.origin": origin,
        "policyd.log.index": entry.index,
        "policyd.log.leaf_hash": entry.leaf_hash.hex(),
    }
    body = {name: value for name, value in document.items() if name != "salt"}
    return CollectedEntry(entry.kind, entry.time_us, attributes, body)


def product_version() -> str:
    """The version of policyd, as events name it."""
    try:
        return version("policyd")
    except PackageNotFoundError:
        return "0"
