"""Logged decisions, decided again on a candidate: page by page of the log, each class evaluated once.

    page ─► groups ─► class on the candidate ─► sheet (made once) ─► decide on the recorded facts ─► compare, count

Rules: what the ledger said is taken from the record, and so are the facts; a class that the candidate gives no verdict
for is refused, as it would be live, and counted as ``failed``; nothing is passed over: what cannot be replayed is
counted with its reason. Between two pages a run can be stopped, and a report with the place of its next page goes on
elsewhere. It refuses to write, and to ask for facts.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import orjson

from audit import query, scan
from audit.scan import Range
from policyd.core.facts import Facts, facts_from_json
from policyd.core.fleet import Fleet
from policyd.core.sheet import Sheet
from policyd.errors import PolicydError
from policyd.services.impact import ImpactReport
from policyd.services.impact_records import Group, Grouped, RecordedSheet, grouped
from policyd.services.impact_verdicts import Placed, Verdict, Verdicts, count
from policyd.services.logged_trees import logged_fleet

T = TypeVar("T")
SHEETS_KEPT_MAX: Final = 4_096
FACTS_KEPT_MAX: Final = 1_024
GROUPS_KEPT_MAX: Final = 16_384
CLASSES_PER_STEP: Final = 64
BLOBS_PER_READ: Final = 64


class Log(Protocol):
    """The reading side of the log, as far as impact needs it."""

    async def read(self, read: Any) -> Any: ...

    async def personal(self, bodies: Sequence[bytes]) -> list[dict[str, Any] | None]: ...


@dataclass
class Progress:
    """Where a run is: ranges of places that are left, and how many places there were."""

    left: list[Range]
    total: int

    @classmethod
    def of(cls, ranges: Iterable[Range]) -> Progress:
        """At the beginning."""
        found = list(ranges)
        return cls(found, sum(end - begin for begin, end in found))

    @property
    def done(self) -> int:
        """Places that are behind."""
        return self.total - sum(end - begin for begin, end in self.left)


@dataclass
class ImpactRun:
    """One pass over a part of a window. ``live`` has the digests of the revisions that are live, if that is known."""

    log: Log
    verdicts: Verdicts
    report: ImpactReport
    progress: Progress
    live: tuple[str, str] | None = None
    _sheets: dict[str, RecordedSheet | None] = field(default_factory=dict)
    _facts: dict[str, Facts | None] = field(default_factory=dict)
    _fleets: dict[str, Fleet | None] = field(default_factory=dict)
    _known: OrderedDict[bytes, Verdict] = field(default_factory=OrderedDict)

    async def run(
        self, told: Callable[[ImpactRun], None] = lambda run: None, stop: Callable[[], bool] = lambda: False
    ) -> ImpactReport:
        """Go on until the end, or until ``stop`` says so between two pages; ``told`` hears after each."""
        while self.progress.left and not stop():
            await self._page()
            told(self)
        self.report.complete = not self.progress.left
        return self.report

    async def _page(self) -> None:
        within = self.progress.left[0]
        window = (self.report.from_us, self.report.to_us)
        page = await self.log.read(lambda connection: scan.page(connection, within, *window))
        personal = None
        if self.verdicts.reads_labels:
            personal = await self.log.personal([entry.body or b"" for entry in page.entries])
        found = await asyncio.to_thread(grouped, page.entries, personal, hours=self.verdicts.snapshot.reads.clock)
        await self._decide(found)
        # Only now: a page is counted whole or not at all.
        self.progress.left[:1] = [] if page.next is None else [(page.next, within[1])]

    async def _decide(self, found: Grouped) -> None:
        fresh = {key: group for key, group in found.groups.items() if key not in self._known}
        await self._read_named(fresh.values())
        placed = await asyncio.to_thread(self._placed, fresh)
        decided: dict[bytes, Verdict] = {}
        for step in _by_classes(placed):
            sheets = await self.verdicts.sheets(step.values())
            decided |= await asyncio.to_thread(self._decided, step, sheets)
        for key, group in found.groups.items():
            verdict = decided.get(key) or self._known[key]
            other = self.live is not None and group.revisions != self.live
            count(self.report, group, verdict, other_revisions=other)
        for reason, missed in found.not_replayed.items():
            self.report.not_replayed[reason] = self.report.not_replayed.get(reason, 0) + missed
        self.report.errors += found.errors
        self._known.update(decided)
        while len(self._known) > GROUPS_KEPT_MAX:
            self._known.popitem(last=False)

    async def _read_named(self, groups: Iterable[Group]) -> None:
        """Have what these records name by digest at hand: sheets, facts and fleets."""
        bodies = [group.body for group in groups]
        for kept, most in ((self._sheets, SHEETS_KEPT_MAX), (self._facts, FACTS_KEPT_MAX)):
            if len(kept) > most:
                kept.clear()
        sheets = {body["sheet"] for body in bodies} - self._sheets.keys()
        facts = {body["facts"] for body in bodies} - self._facts.keys()
        for digest in {body["fleet"][1] for body in bodies} - self._fleets.keys():
            mine = self.verdicts.snapshot.fleet
            self._fleets[digest] = mine if digest == mine.digest else await logged_fleet(self.log, digest)
        for step in _steps(sorted(sheets)):
            for digest, content in (await self._blobs(step)).items():
                self._sheets[digest] = _read(content, RecordedSheet.read)
        for step in _steps(sorted(facts)):
            for digest, content in (await self._blobs(step)).items():
                self._facts[digest] = _read(content, partial(_facts, digest))

    async def _blobs(self, digests: Sequence[str]) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = await self.log.read(
            lambda connection: {digest: query.blob(connection, digest) for digest in digests}
        )
        return found

    def _placed(self, fresh: Mapping[bytes, Group]) -> dict[bytes, Placed]:
        placed = {}
        for key, group in fresh.items():
            sheet, facts = self._sheets[group.body["sheet"]], self._facts[group.body["facts"]]
            fleet = self._fleets[group.body["fleet"][1]]
            placed[key] = self.verdicts.place(group, sheet, facts, fleet)
        return placed

    def _decided(
        self, placed: Mapping[bytes, Placed], sheets: Mapping[bytes, Sheet | PolicydError]
    ) -> dict[bytes, Verdict]:
        return {key: self.verdicts.verdict(each, sheets) for key, each in placed.items()}


def _by_classes(placed: Mapping[bytes, Placed]) -> Iterator[dict[bytes, Placed]]:
    """The groups of some classes at a time, since a sheet may take megabytes."""
    classes: dict[bytes, dict[bytes, Placed]] = {}
    for key, each in placed.items():
        classes.setdefault(each.key, {})[key] = each
    waiting = list(classes.values())
    for at in range(0, len(waiting), CLASSES_PER_STEP):
        yield {key: each for groups in waiting[at : at + CLASSES_PER_STEP] for key, each in groups.items()}


def _steps(digests: Sequence[str]) -> Iterable[Sequence[str]]:
    """Few at a time, since a read has a deadline."""
    return (digests[at : at + BLOBS_PER_READ] for at in range(0, len(digests), BLOBS_PER_READ))


def _read(content: bytes | None, read: Callable[[bytes], T]) -> T | None:
    """What was kept, or None when it is not there or is something else."""
    try:
        return None if content is None else read(content)
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


def _facts(digest: str, content: bytes) -> Facts:
    return facts_from_json(orjson.loads(content), digest)


async def impact(
    log: Log,
    verdicts: Verdicts,
    report: ImpactReport,
    *,
    live: tuple[str, str] | None = None,
    shard: tuple[int, int] = (1, 1),
    stop: Callable[[], bool] = lambda: False,
) -> ImpactReport:
    """The whole of a window, in this process: what a server asks before it activates a candidate.

    ``report`` is an empty one with candidate and window. Raises ``AuditError`` for a log that is damaged or too slow,
    and ``EngineUnavailable`` when nothing evaluates.
    """
    ranges = await log.read(lambda connection: scan.ranges(connection, report.from_us, report.to_us))
    run = ImpactRun(log, verdicts, report, Progress.of(scan.divided(ranges, *shard)), live)
    return await run.run(stop=stop)
