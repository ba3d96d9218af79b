"""The search index as rows: a block is sealed in the transaction of its last entry.

    open block ──its last entry──► sealed: a row of ``block``, a row of ``posting`` for each value

An open block needs no rows, because a search reads its entries themselves; so a common value costs the writer nothing,
and a rare one a few bytes once a block. ``Sealer`` is what the writer remembers of the open block; what it does not
remember is read back when the block is full.

Rules: whoever opens a log for writing seals what is full and not sealed yet, of every log in the database; a block that
another writer has sealed meanwhile stays as it is; reading takes one row for a block, because the sqlite3 module lets
go of the interpreter lock around every row.
It refuses: to seal a block with a gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from sqlalchemy import Connection, bindparam, func, literal, select

from audit import blocks
from audit.block_tables import BLOCK
from audit.blocks import COLUMNS, Terms
from audit.errors import LogCorrupt
from audit.record import TERM_FIELDS
from audit.tables import ENTRY, ENTRY_TERM, INDEX_BITS, LOG, SHEET_TERM, index_of, place

SHEETS_REMEMBERED_MAX: Final = 10_000
_COLUMNS: Final = tuple(column.name for column in ENTRY.c)
_READ: Final = ("index", "time_us", *COLUMNS, "sheet")

BlockRows = tuple[tuple[Any, ...], list[tuple[Any, ...]]]
"""A row of ``block`` and its rows of ``posting``, in the order of the columns."""


@dataclass(slots=True)
class Sealer:
    """What the writer remembers of the block that is not full yet; valid until a rollback.

    ``entries`` are rows in the order of the columns, and ``terms`` field, value and place, of all entries from
    ``known_from`` on.
    """

    log: int
    known_from: int
    entries: list[tuple[Any, ...]] = field(default_factory=list)
    terms: list[tuple[int, int, int]] = field(default_factory=list)
    sheets: dict[int, Terms] = field(default_factory=dict)

    def sealed(
        self, connection: Connection, entries: Sequence[tuple[Any, ...]], terms: Sequence[tuple[int, int, int]]
    ) -> list[BlockRows]:
        """The rows of the blocks that are full with these entries, which were appended just now."""
        if not entries:
            return []
        self.entries += entries
        self.terms += terms
        full = range(blocks.block_of(entries[0][0]), blocks.block_of(entries[-1][0] + 1))
        if not full:
            return []
        found = [self.rows(connection, number) for number in full]
        begun = blocks.first_place(full[-1] + 1)
        self.entries = [row for row in self.entries if row[0] >= begun]
        self.terms = [term for term in self.terms if term[2] >= begun]
        return found

    def rows(self, connection: Connection, number: int) -> BlockRows:
        """The rows of a full block, made from its entries. Raises ``LogCorrupt`` when it has a gap."""
        first = blocks.first_place(number)
        end = first + blocks.block_entries()
        if place(self.log, self.known_from) <= first:
            terms = self.terms
            rows = self.entries[first - self.entries[0][0] : end - self.entries[0][0]]
            columns: dict[str, Sequence[Any]] = dict(zip(_COLUMNS, zip(*rows, strict=True), strict=True))
        else:
            terms = terms_between(connection, first, end)
            columns = block_columns(connection, first, end, _READ)
        if list(columns["index"]) != list(range(first, end)):
            raise LogCorrupt("missing; the log has a gap", index=index_of(_first_missing(columns["index"], first)))
        if len(self.sheets) > SHEETS_REMEMBERED_MAX:
            self.sheets.clear()
        unknown = set(columns["sheet"]) - self.sheets.keys() - {None}
        self.sheets.update(sheet_terms(connection, sorted(unknown)))
        within = [(which, value, at - first) for which, value, at in terms if first <= at < end]
        postings = blocks.postings(columns, within, self.sheets)
        times = columns["time_us"]
        row = (number, min(times), max(times), blocks.packed_times(times))
        return row, [(*key, number, offsets) for key, offsets in sorted(postings.items())]


def full_blocks(connection: Connection) -> Iterator[BlockRows]:
    """The rows of every block of every log that is full and has none."""
    for log in connection.execute(select(LOG.c.number)).scalars().all():
        # It remembers nothing, so everything is read.
        sealer = Sealer(log, 1 << INDEX_BITS)
        for number in unsealed(connection, log)[:-1]:
            yield sealer.rows(connection, number)


def unsealed(connection: Connection, log: int) -> list[int]:
    """The blocks of a log that have no row; the last one is the open one, which may have no entries yet."""
    first, end = blocks.blocks_of(log)
    of_log = (ENTRY.c.index >= place(log, 0), ENTRY.c.index < place(log + 1, 0))
    last = connection.execute(select(func.max(ENTRY.c.index)).where(*of_log)).scalar()
    open_block = first if last is None else blocks.block_of(last + 1)
    count = connection.execute(select(func.count()).where(BLOCK.c.number >= first, BLOCK.c.number < end)).scalar_one()
    if count == open_block - first:
        return [open_block]
    numbers = select(BLOCK.c.number).where(BLOCK.c.number >= first, BLOCK.c.number < end)
    there = set(connection.execute(numbers).scalars())
    return [number for number in range(first, open_block + 1) if number not in there]


def block_columns(connection: Connection, first: int, end: int, names: Sequence[str]) -> dict[str, Sequence[Any]]:
    """Columns of the entries from one place to before another, each as a list in the order of the log."""
    within = (
        select(*(ENTRY.c[name].label(f"of_{name}") for name in names))
        .where(ENTRY.c.index >= bindparam("first"), ENTRY.c.index < bindparam("end"))
        .order_by(ENTRY.c.index)
        .subquery()
    )
    whole = func.array_agg if connection.dialect.name == "postgresql" else func.json_group_array
    row = connection.execute(select(*(whole(column) for column in within.c)), {"first": first, "end": end}).one()
    return {name: _list(found) for name, found in zip(names, row, strict=True)}


def sheet_terms(connection: Connection, sheets: Sequence[int]) -> dict[int, Terms]:
    """What these sheets say, by their numbers."""
    found: dict[int, list[tuple[int, int]]] = {sheet: [] for sheet in sheets}
    whole = func.array_agg if connection.dialect.name == "postgresql" else func.json_group_array
    columns = (SHEET_TERM.c.sheet, SHEET_TERM.c.field, SHEET_TERM.c.value)
    query = select(*(whole(column) for column in columns)).where(
        SHEET_TERM.c.sheet.in_(bindparam("sheets", expanding=True))
    )
    for start in range(0, len(sheets), blocks.block_entries()):
        row = connection.execute(query, {"sheets": sheets[start : start + blocks.block_entries()]}).one()
        for sheet, which, value in zip(*map(_list, row), strict=True):
            found[sheet].append((which, value))
    shared: dict[Terms, Terms] = {}
    return {sheet: shared.setdefault(terms, terms) for sheet, each in found.items() if (terms := tuple(sorted(each)))}


def terms_between(connection: Connection, first: int, end: int) -> list[tuple[int, int, int]]:
    """The terms of the entries from one place to before another: field, value, place.

    They are stored by field and value, so this asks for each value that there is.
    """
    found: list[tuple[int, int, int]] = []
    for which in range(len(TERM_FIELDS)):
        of_field = ENTRY_TERM.c.field == literal(which)
        values = select(func.min(ENTRY_TERM.c.value).label("value")).where(of_field).cte("term_value", recursive=True)
        following = select(func.min(ENTRY_TERM.c.value)).where(of_field, ENTRY_TERM.c.value > values.c.value)
        values = values.union_all(select(following.scalar_subquery()).where(values.c.value.is_not(None)))
        rows = connection.execute(
            select(ENTRY_TERM.c.value, ENTRY_TERM.c.index)
            .join_from(values, ENTRY_TERM, (ENTRY_TERM.c.value == values.c.value) & of_field)
            .where(ENTRY_TERM.c.index >= first, ENTRY_TERM.c.index < end)
        )
        found += [(which, value, at) for value, at in rows]
    return found


def _list(found: Any) -> list[Any]:
    return orjson.loads(found) if isinstance(found, str) else found or []


def _first_missing(places: Sequence[int], first: int) -> int:
    return next((at for at, found in enumerate(places, first) if at != found), first + len(places))
