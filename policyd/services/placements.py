"""Which placements are in force, as the log tells it: what runs now, and what ran lately on which pool.

    holds ──held──────────┐
    settlements ──pool────┼──► decisions ──allowed──► placements: of a class on a pool, counted
    decisions of the window┘

A placement is an allowed decision on one pool: the one that its settlement named, or else its first choice, which is
what the ledger takes too. Decisions of one class on one pool are one placement, with a count and the newest as example.

Rules: a voided decision placed nothing; one that still holds budget, or a deployment whose hours are not over, is in
force however old it is as far as it holds budget, and as far as the window reaches when it does not; the log is read
from its end, in steps, so that nothing is held open for long; a decision whose body retention has removed is counted as
unread and never passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, select

from audit.entries import STEP_ENTRIES, Picked, of_kinds
from audit.errors import BodyRemoved
from audit.query import Record, by_id
from audit.record import Kind
from policyd.core.workload import Workload
from policyd.ledger.rules import STATES
from policyd.ledger.tables import HOLD
from policyd.services.answers import workload_from_record
from policyd.services.log_reader import LogReader

HOUR_US: Final = 3_600_000_000
HELD: Final = STATES.index("held")
IDS_PER_READ: Final = 500
_KINDS: Final[tuple[tuple[Kind, ...], ...]] = (("settlement", "void"), ("decision",))

Progress = Callable[[int], None]
"""Told how many entries were read since it was told last."""


@dataclass(slots=True)
class Placement:
    """Decisions of one class on one pool. ``running`` counts those that hold something at this moment.

    ``until_us`` is when the last of the running ones ends, when that is known.
    """

    workload: Workload
    pool: str
    count: int = 0
    running: int = 0
    last_us: int = 0
    until_us: int | None = None
    example: str = ""


@dataclass
class Placements:
    """What was found. ``unread`` counts decisions that are in force and cannot be read."""

    found: dict[tuple[Any, ...], Placement] = field(default_factory=dict)
    unread: int = 0

    def take(self, body: Mapping[str, Any], time_us: int, pool: str, now_us: int, *, held: bool, settled: bool) -> None:
        """Count one allowed decision."""
        workload = workload_from_record(body["workload"])
        scope = (workload.tenant, workload.project, workload.environment, workload.scope)
        key = (*scope, body["sheet"], pool)
        placement = self.found.get(key)
        if placement is None:
            placement = self.found[key] = Placement(workload, pool)
        placement.count += 1
        if time_us >= placement.last_us:
            placement.last_us, placement.example, placement.workload = time_us, body["id"], workload
        end_us = _end_us(workload, time_us)
        if held or (not settled and end_us is not None and end_us > now_us):
            placement.running += 1
            if end_us is not None:
                placement.until_us = max(placement.until_us or 0, end_us)


async def placements_in_force(
    reader: LogReader, since_us: int, now_us: int, progress: Progress = lambda entries: None
) -> Placements:
    """Every placement that runs at this moment or was decided or settled since. Raises ``AuditError``."""
    held = await reader.read(_held)
    gathered = _Gathered(set(held), now_us)
    # What became of decisions comes first: it may stand in the log of another replica than they do.
    for kinds in _KINDS:
        for number in await reader.logs():
            await _read_back(reader, number, kinds, since_us, gathered.take, progress)
    await _older(reader, gathered)
    return gathered.placements


async def _read_back(
    reader: LogReader,
    log: int,
    kinds: tuple[Kind, ...],
    since_us: int,
    take: Callable[[Picked], None],
    progress: Progress,
) -> None:
    """Hand over the entries of these kinds since then, newest first."""
    end = await reader.size(log)
    while end > 0:
        start = max(0, end - STEP_ENTRIES)
        picked = await reader.read(partial(of_kinds, kinds=kinds, from_index=start, to_index=end, log=log))
        progress(end - start)
        for entry in reversed(picked):
            if entry.time_us >= since_us:
                take(entry)
        if picked and picked[0].time_us < since_us:
            return
        end = start


class _Gathered:
    """What was read so far: of a decision, its newest settlement and its void come before it."""

    def __init__(self, held: set[str], now_us: int) -> None:
        self.placements = Placements()
        self.held = held
        self.settled: dict[str, str] = {}
        self._voided: set[str] = set()
        self._now_us = now_us

    def take(self, entry: Picked) -> None:
        body = entry.document()
        if entry.kind == "settlement":
            self.settled.setdefault(body["decision"], body["pool"])
        elif entry.kind == "void":
            self._voided.add(body["decision"])
        elif entry.id not in self._voided:
            self.decided(body, entry.time_us)

    def decided(self, body: Mapping[str, Any], time_us: int) -> None:
        """Count a decision, once."""
        decision, pool = body["id"], self.settled.pop(body["id"], None)
        held = decision in self.held
        self.held.discard(decision)
        if body["outcome"] == "allow":
            settled = pool is not None
            first = body["ranked"][0][0]
            self.placements.take(body, time_us, pool or first, self._now_us, held=held, settled=settled)


async def _older(reader: LogReader, gathered: _Gathered) -> None:
    """The decisions before the window that still hold something, or were settled in it."""
    left = sorted({*gathered.held, *gathered.settled})
    for start in range(0, len(left), IDS_PER_READ):
        part = left[start : start + IDS_PER_READ]
        for record in await reader.read(partial(_records, decisions=part)):
            if record is None or record.kind != "decision":
                gathered.placements.unread += 1
            else:
                gathered.decided(record.document(), record.time_us)


def _records(connection: Connection, decisions: Sequence[str]) -> list[Record | None]:
    return [_record(connection, decision) for decision in decisions]


def _record(connection: Connection, decision: str) -> Record | None:
    try:
        return by_id(connection, decision)
    except BodyRemoved:
        return None


def _held(connection: Connection) -> list[str]:
    rows = connection.execute(select(HOLD.c.id).where(HOLD.c.state == HELD))
    return [str(UUID(bytes=row.id)) for row in rows]


def _end_us(workload: Workload, time_us: int) -> int | None:
    """When a deployment ends; None for a request."""
    return time_us + workload.duration_hours * HOUR_US if workload.scope == "deployment" else None
