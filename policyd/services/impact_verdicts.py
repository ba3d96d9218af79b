"""One logged decision on a candidate: its class there, its sheet, the decision, and what of it is another one.

Rules: the same ``policyd.core.decide`` as for a real request, on the recorded facts and waivers; a pool group that had
no room on record has none here; a request that the candidate's fleet refuses is denied, and so is a class without a
verdict; a change is attributed to the rules that took the old first choice away, or that had
kept the new one away.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from policyd.core.classes import class_key
from policyd.core.decide import Decision, decide
from policyd.core.facts import Facts, budget_limits, crossed_percent
from policyd.core.fleet import Fleet
from policyd.core.inputs import class_side
from policyd.core.normalise import Normalised
from policyd.core.quantities import RATE_CLASSES, size_class
from policyd.core.sheet import Sheet
from policyd.core.snapshot import Snapshot
from policyd.core.waivers import lift
from policyd.errors import EngineUnavailable, PolicydError
from policyd.ports import Engine
from policyd.services.answers import waivers_from_record, workload_from_record
from policyd.services.clock import day, hour_of_week, rfc3339
from policyd.services.frames import with_numbers
from policyd.services.impact import FLIPS, Example, ImpactReport
from policyd.services.impact_records import Group, RecordedSheet, frame_of
from policyd.services.impact_workload import carried
from policyd.services.quotas import refusals_of_groups
from policyd.services.sheets import SheetBook, SheetLimits

FRAMES_KEPT_MAX: Final = 8_192
KEYS_KEPT_MAX: Final = 65_536
SHEETS_AT_ONCE: Final = 8
FAILED_KEPT_MAX: Final = 4_096
LIFTED_TOLD_MAX: Final = 3
GONE: Final = "fleet.pool_gone"
"""What takes a pool away that the candidate's fleet does not have."""
NEW: Final = "fleet.pool_new"


@dataclass(frozen=True, slots=True)
class _Frame:
    """Requests that differ in their numbers only, on the candidate: the template, or why it refuses them."""

    template: Normalised | PolicydError
    limits: tuple[tuple[str, int], ...] = ()
    zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Placed:
    """A group with its class on the candidate; ``moment`` is the threshold, hour and day in it. ``refused`` or
    ``missing`` says why it has none."""

    group: Group
    recorded: RecordedSheet | None
    facts: Facts | None
    normalised: Normalised | None = None
    key: bytes = b""
    moment: tuple[int | None, int, str] = (None, 0, "")
    refused: PolicydError | None = None
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a group: nothing (``change`` None), a change with what it is attributed to, or ``missing``."""

    change: str | None = None
    missing: str | None = None
    failed: bool = False
    lifted: tuple[str, ...] = ()
    costs_micro_usd: tuple[int, int] | None = None
    before: str = ""
    after: str = ""
    pools: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Now:
    """The decision on the candidate; without one, ``error`` says why."""

    outcome: str
    denied_by: str | None
    decision: Decision | None
    sheet: Sheet | None
    error: PolicydError | None = None

    @property
    def failed(self) -> bool:
        """Whether there was no verdict for all pools, or the request was refused."""
        return self.error is not None or (self.sheet is not None and self.sheet.failed)

    @property
    def first(self) -> str | None:
        """Its first choice."""
        return self.decision.ranked[0].row.pool if self.outcome == "allow" and self.decision else None


@dataclass
class Verdicts:
    """Decides groups on one candidate."""

    engine: Engine
    snapshot: Snapshot
    deadline_ms: int = 1_000
    _book: SheetBook = field(init=False)
    _frames: OrderedDict[tuple[bytes, str], _Frame] = field(default_factory=OrderedDict)
    _keys: OrderedDict[tuple[Any, ...], bytes] = field(default_factory=OrderedDict)
    _failed: OrderedDict[bytes, Sheet | PolicydError] = field(default_factory=OrderedDict)
    _groups: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        limits = SheetLimits(
            cold_in_progress_max=SHEETS_AT_ONCE,
            cold_per_tenant_max=SHEETS_AT_ONCE,
            cold_per_tenant_per_s=1_000_000,
            cold_per_tenant_burst=1_000_000,
            deadline_ms=self.deadline_ms,
        )
        self._book = SheetBook(self.engine, limits)
        self._groups = {pool.id: pool.group for pool in self.snapshot.fleet.pools.values()}

    @property
    def reads_labels(self) -> bool:
        """Whether the candidate's policies look at labels, which are personal fields of a record."""
        return self._reads("workload", "labels")

    @property
    def _reads_budgets(self) -> bool:
        return self._reads("budget", "crossed_percent")

    def _reads(self, *path: str) -> bool:
        return any(path[: len(read)] == read or read[: len(path)] == path for read in self.snapshot.reads.union)

    def place(self, group: Group, sheet: RecordedSheet | None, facts: Facts | None, was: Fleet | None) -> Placed:
        """The class of a group on the candidate."""
        if sheet is None or facts is None:
            return Placed(group, sheet, facts, missing="sheet" if sheet is None else "facts")
        try:
            frame_key, numbers = frame_of(group.body)
            frame = self._frame(frame_key, group, was)
        except (KeyError, TypeError, ValueError, AttributeError):
            return Placed(group, sheet, facts, missing="unreadable")
        if isinstance(frame.template, PolicydError):
            return Placed(group, sheet, facts, refused=frame.template)
        crossed: int | None = None
        if self._reads_budgets:
            if sheet.crossed is None and group.revisions[0] != self.snapshot.policies.digest:
                return Placed(group, sheet, facts, missing="budgets")
            crossed = self._crossed(sheet, frame, facts)
        workload = with_numbers(frame.template.workload, numbers)
        normalised = Normalised(workload, frame.template.terms)
        moment = (crossed, hour_of_week(frame.zone, group.time_us), day(group.time_us))
        key = self._key(frame_key, group.revisions[1], normalised, moment)
        return Placed(group, sheet, facts, normalised, key, moment)

    def _crossed(self, sheet: RecordedSheet, frame: _Frame, facts: Facts) -> int | None:
        """The threshold that the policies saw; where they looked at none, what the facts say."""
        return sheet.crossed[0] if sheet.crossed is not None else crossed_percent(frame.limits, facts)

    def _frame(self, key: bytes, group: Group, was: Fleet | None) -> _Frame:
        known = self._frames.get((key, group.revisions[1]))
        if known is not None:
            return known
        workload = workload_from_record(group.body["workload"])
        fleet = self.snapshot.fleet
        try:
            template = carried(workload, was, fleet)
            tenant = fleet.tenants[workload.tenant]
            frame = _Frame(template, budget_limits(tenant, workload.project), tenant.zone)
        except PolicydError as error:
            frame = _Frame(error)
        self._frames[key, group.revisions[1]] = frame
        _bound(self._frames, FRAMES_KEPT_MAX)
        return frame

    def _key(
        self, frame: bytes, fleet_digest: str, normalised: Normalised, moment: tuple[int | None, int, str]
    ) -> bytes:
        workload = normalised.workload
        sizes = (
            size_class(workload.input_tokens),
            size_class(workload.max_output_tokens),
            size_class(workload.requests_per_hour, RATE_CLASSES),
        )
        asked = (frame, fleet_digest, sizes, moment)
        key = self._keys.get(asked)
        if key is None:
            document = class_side(workload, normalised.terms, self.snapshot.fleet, *moment)
            key = self._keys[asked] = class_key(workload, document, self.snapshot.reads)
            _bound(self._keys, KEYS_KEPT_MAX)
        return key

    async def sheets(self, placed: Iterable[Placed]) -> dict[bytes, Sheet | PolicydError]:
        """The sheet of every class, or why there is none. The caller bounds how many, since each may take megabytes.

        Raises ``EngineUnavailable``.
        """
        wanted = {each.key: each for each in placed if each.normalised is not None}
        found: dict[bytes, Sheet | PolicydError] = {}
        waiting = iter(wanted.values())

        async def maker() -> None:
            for each in waiting:
                found[each.key] = await self._sheet(each)

        makers = [asyncio.create_task(maker()) for _ in range(min(SHEETS_AT_ONCE, len(wanted)))]
        try:
            await asyncio.gather(*makers)
        finally:
            for task in makers:
                task.cancel()
        return found

    async def _sheet(self, each: Placed) -> Sheet | PolicydError:
        known = self._failed.get(each.key) or self._book.find(self.snapshot, each.key)
        if known is not None:
            return known
        assert each.normalised is not None  # only those have a class
        workload, terms = each.normalised.workload, each.normalised.terms
        document = class_side(workload, terms, self.snapshot.fleet, *each.moment)
        made: Sheet | PolicydError
        try:
            made = await self._book.make(self.snapshot, each.key, each.normalised, document)
        except EngineUnavailable:
            raise
        except PolicydError as error:
            made = error
        # The book forgets a sheet without verdict soon, to try again; here that is the verdict.
        if isinstance(made, PolicydError) or made.failed:
            self._failed[each.key] = made
            _bound(self._failed, FAILED_KEPT_MAX)
        return made

    def verdict(self, placed: Placed, sheets: Mapping[bytes, Sheet | PolicydError]) -> Verdict:
        """What became of a group whose sheet is among these."""
        if placed.missing is not None or placed.recorded is None:
            return Verdict(missing=placed.missing or "sheet")
        now = self._now(placed, sheets)
        change = _change(placed.group, now)
        before = placed.group.ranked[0] if placed.group.ranked else None
        costs = None
        if before is not None and now.decision is not None and now.outcome == "allow":
            costs = (int(before[2]), now.decision.ranked[0].cost_micro_usd)
        if change is None:
            return Verdict(costs_micro_usd=costs)
        lost = None if before is None else str(before[0])
        lifted = self._lifted(placed.recorded, now)
        pools, countries = self._where(change, lost, now, placed.recorded)
        rules = [*self._rules(change, lost, now, placed), *(r for p in lifted[:1] for r in placed.recorded.refused[p])]
        return Verdict(
            change=change,
            failed=change == "allow_to_deny"
            and (now.error is not None or (now.sheet is not None and now.sheet.failed)),
            lifted=lifted[:LIFTED_TOLD_MAX],
            costs_micro_usd=costs,
            before=lost or f"deny ({placed.group.body.get('denied_by', 'unknown')})",
            after=now.first or f"deny ({now.denied_by})",
            pools=pools,
            countries=countries,
            rules=tuple(dict.fromkeys(rules)),
        )

    def _now(self, placed: Placed, sheets: Mapping[bytes, Sheet | PolicydError]) -> _Now:
        if placed.refused is not None:
            return _Now("deny", placed.refused.code, None, None, placed.refused)
        assert placed.normalised is not None  # what is not missing is there
        assert placed.facts is not None
        sheet = sheets[placed.key]
        if isinstance(sheet, PolicydError):
            return _Now("deny", sheet.code, None, None, sheet)
        group = placed.group
        if "waivers" in group.body:
            workload, waivers = placed.normalised.workload, waivers_from_record(group.body)
            sheet = lift(sheet, workload, waivers, group.time_us).sheet
        spilled = refusals_of_groups(sheet, group.body.get("spilled", ()), self._groups)
        decision = decide(placed.normalised.workload, sheet, placed.facts, spilled)
        if decision.outcome == "allow" and group.without_budget:
            return _Now("deny", "budget", decision, sheet)
        return _Now(decision.outcome, decision.denied_by, decision, sheet)

    def _lifted(self, recorded: RecordedSheet, now: _Now) -> tuple[str, ...]:
        """The pools that the candidate places on and that a hard rule refused, best first."""
        if not recorded.hard or now.outcome != "allow" or now.decision is None:
            return ()
        return tuple(scored.row.pool for scored in now.decision.ranked if scored.row.pool in recorded.hard)

    def _where(
        self, change: str, lost: str | None, now: _Now, recorded: RecordedSheet
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The pools of a flip and their countries: the first choice before, and the one now."""
        if change not in FLIPS:
            return (), ()
        first = now.decision.ranked[0].row if now.first is not None and now.decision is not None else None
        pools = [*([lost] if lost else []), *([first.pool] if first else [])]
        countries = [recorded.countries.get(lost, "") if lost else "", first.country if first else ""]
        return tuple(pools), tuple(dict.fromkeys(name for name in countries if name))

    def _rules(self, change: str, lost: str | None, now: _Now, placed: Placed) -> tuple[str, ...]:
        if change not in FLIPS:
            return ()
        if now.error is not None:
            return (f"request.{now.error.code}" if placed.refused else f"engine.{now.error.code}",)
        taken = self._taken(lost, now) if lost is not None else ()
        if taken or now.first is None or placed.recorded is None:
            return taken
        return self._kept_away(now.first, placed)

    def _taken(self, lost: str, now: _Now) -> tuple[str, ...]:
        """The rules by which the candidate refuses the pool that came first."""
        assert now.sheet is not None  # an error has been told already
        assert now.decision is not None
        if lost not in self._groups:
            return (GONE,)
        refused = {row.pool: violation for row, violation in now.decision.refused}
        if lost in refused:
            return (f"{refused[lost]['policy']}.{refused[lost]['rule']}",)
        entry = next((entry for entry in now.sheet.refused if entry.pool == lost), None)
        return () if entry is None else tuple(dict.fromkeys(f"{v['policy']}.{v['rule']}" for v in entry.violations))

    def _kept_away(self, first: str, placed: Placed) -> tuple[str, ...]:
        """The rules that refused on record what comes first now; none where it came behind."""
        assert placed.recorded is not None  # only such groups are judged
        if first in placed.recorded.refused:
            return placed.recorded.refused[first]
        if first not in placed.recorded.countries:
            return (NEW,)
        now_refused = dict(placed.group.body.get("refused_now", ()))
        return (f"core.{now_refused[first]}",) if first in now_refused else ()


def _change(group: Group, now: _Now) -> str | None:
    """How the two decisions differ; None when they do not."""
    body, recorded = group.body, group.ranked
    if body["outcome"] != now.outcome:
        return "allow_to_deny" if now.outcome == "deny" else "deny_to_allow"
    if now.outcome == "deny":
        return None if body.get("denied_by") == now.denied_by else "denied_by"
    assert now.decision is not None  # an allow has one
    ranked = now.decision.ranked
    listed = [[each.row.pool, each.score_x1000, each.cost_micro_usd] for each in ranked[: group.listed_max]]
    if recorded == listed and group.ranked_total == len(ranked):
        return None
    if recorded[0][0] != listed[0][0]:
        return "first_choice"
    same = [each[0] for each in recorded] == [each[0] for each in listed] and group.ranked_total == len(ranked)
    return "score" if same else "order"


def count(report: ImpactReport, group: Group, verdict: Verdict, *, other_revisions: bool) -> None:
    """Count a group in a report."""
    number = group.count
    if verdict.missing is not None:
        report.not_replayed[verdict.missing] = report.not_replayed.get(verdict.missing, 0) + number
        return
    report.replayed += number
    report.other_revisions += number * other_revisions
    workload = group.body["workload"]
    rows = [report.row("tenant", workload["tenant"]), report.row("model", workload["model"])]
    before, after = verdict.costs_micro_usd or (0, 0)
    report.cost_before_micro_usd += before * number
    report.cost_after_micro_usd += after * number
    change = verdict.change
    if change is not None:
        report.changes[change] += number
        report.failed += number * verdict.failed
        report.hard += number * bool(verdict.lifted)
        rows += [report.row("pool", pool) for pool in verdict.pools]
        rows += [report.row("country", country) for country in verdict.countries]
        rows += [report.row("rule", rule) for rule in verdict.rules]
        report.show(_example(group, verdict))
    for row in rows:
        row.decisions += number
        row.cost_before_micro_usd += before * number
        row.cost_after_micro_usd += after * number
        if change is not None:
            row.hard += number * bool(verdict.lifted)
            if change in FLIPS:
                setattr(row, change, getattr(row, change) + number)


def _example(group: Group, verdict: Verdict) -> Example:
    workload = group.body["workload"]
    return Example(
        verdict.change or "",
        group.id,
        rfc3339(group.time_us),
        workload["tenant"],
        workload["model"],
        verdict.before,
        verdict.after,
        verdict.rules,
        verdict.lifted,
    )


def _bound(kept: OrderedDict[Any, Any], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)
