"""Standing compliance: which placements in force would today's revisions refuse.

    placements in force ──on today's fleet──► sheet of today ──► refused pools, with their reasons
                                                                     └──► an entry in the log, an event for webhooks

What an expired certificate, a lapsed validation, an ended commitment or a tightened rule makes of what runs already is
asked of the same packages, entitlements and clock as a new decision.

Rules: what is full, slow or unhealthy now is no lapse, so facts and budgets are left out, and so is what a waiver lifts
at that time; a pool that is gone from the fleet, and a workload that the fleet no longer knows or permits, are lapses;
a package that could not be evaluated refuses, as in a decision. Lapses are listed by urgency: what runs now before what
ran, hard before soft. It refuses nobody anything: who is told decides what ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from audit.record import Entry, Search, encode
from policyd.core.classes import class_key
from policyd.core.inputs import class_side
from policyd.core.normalise import Normalised
from policyd.core.sheet import Sheet
from policyd.core.snapshot import Snapshot
from policyd.core.waivers import lift
from policyd.core.workload import CLASSIFICATION_ORDER
from policyd.errors import PolicydError
from policyd.services.clock import DAY_US, Now, day, hour_of_week, now_us, rfc3339, uuid7
from policyd.services.decisions import Log, SnapshotNow
from policyd.services.impact_workload import carried
from policyd.services.log_reader import LogReader
from policyd.services.placements import Placement, Progress, placements_in_force
from policyd.services.sheets import SheetBook
from policyd.services.waivers_in_force import WaiversInForce

RECORD_VERSION: Final = 1
RECORDED_MAX: Final = 100
"""Judged that an entry holds; all are counted."""
URGENCIES: Final = ("now", "soon", "review")
_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lapse:
    """A placement that would be refused today. ``violations`` are the sheet's, or one that says why there is none."""

    placement: Placement
    violations: tuple[Mapping[str, Any], ...]

    @property
    def hard(self) -> bool:
        """Whether a rule refuses that nobody may waive."""
        return any(violation["enforcement"] == "hard" for violation in self.violations)

    @property
    def urgency(self) -> str:
        """``now``: it runs, and a hard rule refuses it; ``soon``: it ran, or soft rules only; else ``review``."""
        return URGENCIES[(not self.hard) + (not self.placement.running)]

    def to_json(self) -> dict[str, Any]:
        """For a person and for a program."""
        placement, workload = self.placement, self.placement.workload
        scope = {name: getattr(workload, name) for name in _SHOWN}
        return {
            "urgency": self.urgency,
            "pool": placement.pool,
            **scope,
            "placements": placement.count,
            "running": placement.running,
            "last": rfc3339(placement.last_us),
            "until": None if placement.until_us is None else rfc3339(placement.until_us),
            "example": placement.example,
            "violations": [dict(violation) for violation in self.violations],
        }


_SHOWN: Final = ("scope", "tenant", "project", "environment", "model", "model_version", "classification")


@dataclass(frozen=True, slots=True)
class Judged:
    """What was judged at a time, in a snapshot. ``decisions`` is what the ``placements`` stand for."""

    time_us: int
    within_days: int
    snapshot: Snapshot
    placements: int
    decisions: int
    unread: int
    lapses: tuple[Lapse, ...]

    def to_json(self) -> dict[str, Any]:
        """The whole list, most urgent first."""
        policies, fleet = self.snapshot.policies, self.snapshot.fleet
        return {
            "time": rfc3339(self.time_us),
            "within_days": self.within_days,
            "policy": {"commit": policies.commit, "digest": policies.digest},
            "fleet": {"commit": fleet.commit, "digest": fleet.digest},
            "placements": self.placements,
            "decisions": self.decisions,
            "unread": self.unread,
            "urgency": {name: sum(each.urgency == name for each in self.lapses) for name in URGENCIES},
            "items": [lapse.to_json() for lapse in self.lapses],
        }


@dataclass
class Compliance:
    """Judges placements by the live snapshot; ``book`` is one of its own, so that no live sheet is evicted."""

    reader: LogReader
    snapshots: SnapshotNow
    book: SheetBook
    now: Now = now_us

    async def judge(
        self,
        within_days: int,
        at_us: int | None = None,
        progress: Progress = lambda entries: None,
        judged: Callable[[int, int], None] = lambda done, total: None,
    ) -> Judged:
        """Everything that would be refused, now or at another time.

        Raises ``AuditError``, ``EngineError`` and ``Overloaded``.
        """
        now, snapshot = self.now(), self.snapshots.current()
        time_us = now if at_us is None else at_us
        found = await placements_in_force(self.reader, now - within_days * DAY_US, now, progress)
        placements, waivers = list(found.found.values()), WaiversInForce(self.reader, self.now)
        await waivers.refresh()
        lapses = []
        for nth, placement in enumerate(placements, 1):
            violations = await self._violations(placement, snapshot, waivers, time_us)
            if violations:
                lapses.append(Lapse(placement, violations))
            judged(nth, len(placements))
        decisions = sum(placement.count for placement in placements)
        ordered = tuple(sorted(lapses, key=_order))
        return Judged(time_us, within_days, snapshot, len(placements), decisions, found.unread, ordered)

    async def _violations(
        self, placement: Placement, snapshot: Snapshot, waivers: WaiversInForce, time_us: int
    ) -> tuple[Mapping[str, Any], ...]:
        if placement.pool not in snapshot.fleet.pools:
            return (_fault("fleet", "pool_gone", f"the fleet has no pool {placement.pool} any more"),)
        try:
            normalised = carried(placement.workload, None, snapshot.fleet)
        except PolicydError as error:
            return (_fault("fleet", error.code, error.detail),)
        workload = normalised.workload
        sheet = await self._sheet(normalised, snapshot, time_us)
        sheet = lift(sheet, workload, waivers.of(workload.tenant), time_us).sheet
        refused = next((entry for entry in sheet.refused if entry.pool == placement.pool), None)
        if refused is not None:
            return refused.violations
        if any(row.pool == placement.pool for row in sheet.rows):
            return ()
        return (_fault("fleet", "model_gone", f"{placement.pool} does not serve {placement.workload.model} any more"),)

    async def _sheet(self, normalised: Normalised, snapshot: Snapshot, time_us: int) -> Sheet:
        workload = normalised.workload
        hour = hour_of_week(snapshot.fleet.tenants[workload.tenant].zone, time_us)
        document = class_side(workload, normalised.terms, snapshot.fleet, 0, hour, day(time_us))
        key = class_key(workload, document, snapshot.reads)
        found = self.book.find(snapshot, key)
        return found or await self.book.make(snapshot, key, normalised, document)


def _fault(policy: str, rule: str, message: str) -> Mapping[str, Any]:
    return {
        "policy": policy,
        "rule": rule,
        "enforcement": "hard",
        "location": "",
        "message": message,
        "observed": {},
        "required": [],
        "remedy": "end the placement, or bring back what it stands on",
    }


def _order(lapse: Lapse) -> tuple[Any, ...]:
    placement = lapse.placement
    strictness = CLASSIFICATION_ORDER[placement.workload.classification]
    scope = tuple(getattr(placement.workload, name) for name in _SHOWN)
    return URGENCIES.index(lapse.urgency), -strictness, -placement.count, scope, placement.pool


async def keep_judging(compliance: Compliance, log: Log, within_days: int, interval_ms: int) -> None:
    """Judge and record each interval, until cancelled."""
    while True:
        try:
            await record(await compliance.judge(within_days), log)
        except PolicydError as error:
            _log.error("standing compliance was not judged: %s", error.detail)
        except Exception:  # noqa: BLE001 - one bad look must not be the last
            _log.exception("standing compliance was not judged")
        await asyncio.sleep(interval_ms / 1_000)


async def record(found: Judged, log: Log) -> None:
    """Have it in the log. Raises ``AuditError``."""
    entry_id = uuid7(found.time_us)
    document = found.to_json()
    items: Sequence[dict[str, Any]] = document.pop("items")
    body = {
        "v": RECORD_VERSION,
        "kind": "compliance",
        "id": entry_id,
        "event": "lapsed" if items else "clear",
        **document,
        "policy": [found.snapshot.policies.commit, found.snapshot.policies.digest],
        "fleet": [found.snapshot.fleet.commit, found.snapshot.fleet.digest],
        "items": [_short(item) for item in items[:RECORDED_MAX]],
        "items_total": len(items),
    }
    search = Search(policy_commit=found.snapshot.policies.commit, fleet_commit=found.snapshot.fleet.commit)
    await log.submit(Entry("compliance", entry_id, found.time_us, encode(body, os.urandom(16)), search))


def _short(item: dict[str, Any]) -> dict[str, Any]:
    rules = sorted({f"{violation['policy']}.{violation['rule']}" for violation in item["violations"]})
    return {**{name: value for name, value in item.items() if name != "violations"}, "rules": rules[:16]}
