"""The newest entries of a log that match, by its blocks: which places, and when; their bodies are read by others.

    open blocks     the entries themselves answer, each block in one row
    sealed blocks   newest first: those that have every value, then the bits of the values in them, a chunk at a time

Rules: a block counts as sealed only when its row is there, so that no entry is passed over; the answer is in the order
of time, then of the log, however the times of blocks overlap; what is read is bounded by the page and by the blocks
that hold every value that was asked for, never by the entries between.
It refuses: nothing; the filters were checked before.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    TextClause,
    and_,
    bindparam,
    literal_column,
    or_,
    select,
    text,
    tuple_,
)

from audit import blocks
from audit.block_store import unsealed
from audit.blocks import COLUMNS, FIELDS
from audit.record import SHEET_TERM_FIELDS, TERM_FIELDS
from audit.tables import ENTRY, ENTRY_TERM, LOG, SHEET_TERM

CHUNK_FIRST_BLOCKS: Final = 16
CHUNK_MAX_BLOCKS: Final = 512
STEP_FIRST_BLOCKS: Final = 2
FEW_OFFSETS: Final = 64

# Written down once: to build them again for each search takes longer than to run them.
_TIMES: Final = text("SELECT number, times_us FROM block WHERE number IN :blocks").bindparams(
    bindparam("blocks", expanding=True)
)
_POSTINGS: Final = text(
    "SELECT block, offsets FROM posting WHERE field = :field AND value IN :values AND block IN :blocks"
).bindparams(bindparam("values", expanding=True), bindparam("blocks", expanding=True))

Place = tuple[int, int]
"""Time in microseconds, and what the column ``index`` holds."""


@dataclass(frozen=True, slots=True)
class Group:
    """A field, and the numbers of which an entry must have one."""

    name: str
    numbers: tuple[int, ...]

    @property
    def field(self) -> int:
        """The number of the field."""
        return FIELDS.index(self.name)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an entry must be: of every group, of one of the ways when there are any, and within the times.

    ``before`` is the last entry of the page before: what comes is older.
    """

    every: tuple[Group, ...]
    ways: tuple[tuple[Group, ...], ...] | None
    from_us: int
    until_us: int
    before: Place | None

    @property
    def groups(self) -> tuple[Group, ...]:
        """All that have to be looked up, each once."""
        return tuple(dict.fromkeys((*self.every, *(group for way in self.ways or () for group in way))))

    def bits(self, found: dict[Group, int]) -> int:
        """Which entries of a block match, by the bits of each group."""
        bits = -1
        for group in self.every:
            bits &= found[group]
        if self.ways is not None:
            of_ways = 0
            for way in self.ways:
                of_way = bits
                for group in way:
                    of_way &= found[group]
                of_ways |= of_way
            bits = of_ways
        return bits

    def holds(self, place: Place) -> bool:
        """Whether an entry lies within the times."""
        return self.from_us <= place[0] < self.until_us and (self.before is None or place < self.before)

    def places(self, number: int, times_us: bytes, bits: int, limit: int) -> list[Place]:
        """The newest of these entries of a block that lie within the times."""
        first = blocks.first_place(number)
        if bits.bit_count() <= FEW_OFFSETS:
            few = [(blocks.time_at(times_us, offset), first + offset) for offset in blocks.offsets_of(bits)]
            return [place for place in few if self.holds(place)]
        times = blocks.unpacked_times(times_us)
        if list(times) != sorted(times):
            mixed = [(times[offset], first + offset) for offset in blocks.offsets_of(bits)]
            return sorted(filter(self.holds, mixed), reverse=True)[:limit]
        # In the order of time, as nearly all blocks are: the last offsets are the newest.
        low, high = bisect_left(times, self.from_us), bisect_left(times, self.until_us)
        if self.before is not None:
            high = min(high, bisect_left(range(len(times)), self.before, key=lambda at: (times[at], first + at)))
        within = bits & ((1 << high) - 1) & -(1 << low)
        return [(times[offset], first + offset) for offset in blocks.last_offsets_of(within, limit)]


def newest(connection: Connection, wanted: Wanted, limit: int) -> list[Place]:
    """The newest ``limit`` entries that match, newest first."""
    found: list[Place] = []
    for log in connection.execute(select(LOG.c.number)).scalars().all():
        for number in unsealed(connection, log):
            found += _open_places(connection, wanted, number, limit)
    found = sorted(found, reverse=True)[:limit]
    for number, last_us, times_us, bits in _sealed(connection, wanted):
        if len(found) == limit and found[-1][0] > last_us:
            break
        if bits:
            found = sorted([*found, *wanted.places(number, times_us, bits, limit)], reverse=True)[:limit]
    return found


def _sealed(connection: Connection, wanted: Wanted) -> Iterator[tuple[int, int, bytes, int]]:
    """Sealed blocks that may match, the latest first: number, last time, all times, and the entries that do match.

    Times are read in small steps, since a search often ends before the chunk does; where nothing matches, none are.
    """
    after: tuple[int, int] | None = None
    size = CHUNK_FIRST_BLOCKS
    while True:
        chunk = _candidates(connection, wanted, after, size)
        matched = _chunk_bits(connection, wanted, [number for number, _ in chunk])
        start, step_size = 0, STEP_FIRST_BLOCKS
        while start < len(chunk):
            step = chunk[start : start + step_size]
            start, step_size = start + step_size, step_size * 4
            numbers = [number for number, _ in step if number in matched]
            rows = connection.execute(_TIMES, {"blocks": numbers}).all() if numbers else []
            times: dict[int, bytes] = dict(rows)
            for number, last_us in step:
                yield number, last_us, times.get(number, b""), matched.get(number, 0)
        if len(chunk) < size:
            return
        after = chunk[-1][1], chunk[-1][0]
        size = min(size * 16, CHUNK_MAX_BLOCKS)


def _candidates(
    connection: Connection, wanted: Wanted, after: tuple[int, int] | None, size: int
) -> Sequence[tuple[int, int]]:
    """The next blocks that reach into the times and have a value of every group: number and last time."""
    until_us = wanted.until_us if wanted.before is None else min(wanted.until_us, wanted.before[0] + 1)
    values: dict[str, Any] = {"from_us": wanted.from_us, "until_us": until_us, "size": size}
    for nth, group in enumerate(wanted.every):
        values |= {f"field_{nth}": group.field, f"values_{nth}": group.numbers}
    if after is not None:
        values |= {"after_us": after[0], "after": after[1]}
    rows = connection.execute(_candidates_query(len(wanted.every), after is not None), values)
    return [(number, last_us) for number, last_us in rows]


@lru_cache(maxsize=128)
def _candidates_query(groups: int, goes_on: bool) -> TextClause:
    has = " ".join(
        f"AND EXISTS (SELECT 1 FROM posting WHERE field = :field_{nth} AND value IN :values_{nth} AND block = number)"
        for nth in range(groups)
    )
    further = "AND (last_us, number) < (:after_us, :after)" if goes_on else ""
    return text(
        f"SELECT number, last_us FROM block WHERE last_us >= :from_us AND first_us < :until_us {has} {further} "
        "ORDER BY last_us DESC, number DESC LIMIT :size"
    ).bindparams(*(bindparam(f"values_{nth}", expanding=True) for nth in range(groups)))


def _chunk_bits(connection: Connection, wanted: Wanted, numbers: Sequence[int]) -> dict[int, int]:
    """Which entries match, for those of these blocks that have any."""
    if not numbers:
        return {}
    of_groups: dict[int, dict[Group, int]] = {number: dict.fromkeys(wanted.groups, 0) for number in numbers}
    for group in wanted.groups:
        asked = {"field": group.field, "values": group.numbers, "blocks": numbers}
        for number, offsets in connection.execute(_POSTINGS, asked):
            of_groups[number][group] |= blocks.unpacked(offsets)
    return {number: bits for number, found in of_groups.items() if (bits := wanted.bits(found))}


def _open_places(connection: Connection, wanted: Wanted, number: int, limit: int) -> list[Place]:
    """The newest entries that match of a block without a row: the database looks through all of them."""
    first = blocks.first_place(number)
    end = first + blocks.block_entries()
    time_us, place = _plain("time_us"), _plain("index")
    conditions: list[ColumnElement[bool]] = [ENTRY.c.index >= first, ENTRY.c.index < end]
    conditions += [time_us >= wanted.from_us, time_us < wanted.until_us]
    conditions += [_has(group, first, end) for group in wanted.every]
    if wanted.ways is not None:
        conditions.append(or_(*(and_(*(_has(group, first, end) for group in way)) for way in wanted.ways)))
    if wanted.before is not None:
        conditions.append(tuple_(time_us, place) < tuple_(*wanted.before))
    query = select(time_us, place).select_from(ENTRY).where(*conditions)
    return [(found, at) for found, at in connection.execute(query.order_by(time_us.desc(), place.desc()).limit(limit))]


def _plain(name: str) -> ColumnElement[Any]:
    """A column that no index is used for: the places alone lead to an open block."""
    return literal_column(f'+entry."{name}"', BigInteger())


def _has(group: Group, first: int, end: int) -> ColumnElement[bool]:
    """Whether an entry of an open block has one of the group's values."""
    ways: list[ColumnElement[bool]] = []
    if group.name in COLUMNS:
        ways.append(_plain(group.name).in_(group.numbers))
    if group.name in TERM_FIELDS:
        ways.append(
            ENTRY.c.index.in_(
                select(ENTRY_TERM.c.index).where(
                    ENTRY_TERM.c.field == TERM_FIELDS.index(group.name), ENTRY_TERM.c.value.in_(group.numbers),
                    ENTRY_TERM.c.index >= first, ENTRY_TERM.c.index < end,
                )
            )
        )  # fmt: skip
    if group.name in SHEET_TERM_FIELDS:
        says = select(SHEET_TERM.c.sheet).where(
            SHEET_TERM.c.field == TERM_FIELDS.index(group.name), SHEET_TERM.c.value.in_(group.numbers),
            SHEET_TERM.c.sheet == ENTRY.c.sheet,
        )  # fmt: skip
        ways.append(says.exists())
    return or_(*ways)
