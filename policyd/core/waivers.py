"""Waivers in force, applied to a sheet: a pool that only lifted rules refuse becomes a row. No clock, no I/O.

    sheet ──lift(waivers, time)──► the same sheet with fewer refusals ──decide──► decision

| kind          | lifts                  | takes                                            |
|---------------|------------------------|--------------------------------------------------|
| `waiver`      | one `soft` rule        | two persons                                      |
| `approval`    | one `approval` rule    | two persons                                      |
| `break_glass` | `soft` rules, or one   | one person, for minutes, where a setting says so |

Rules: a violation is lifted by what is in force at that time, of the tenant (and project, pool and model, where the
waiver names them), and made for the rule as it is: another digest of the rule lifts nothing. Where several lift one
violation, the one that ends last counts. A pool with one hard violation, a missing fact or without entitlement has no
row in its sheet, so nothing here can open it. The sheet keeps its content and digest: waivers are never part of it.
Without a waiver that lifts something, the sheet that comes back is the one that went in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import orjson

from policyd.core.sheet import Lane, Refused, Row, Sheet, lane_of, shown_entry
from policyd.core.workload import Workload

Kind = Literal["waiver", "approval", "break_glass"]
LIFTS: Final[Mapping[str, str]] = {"waiver": "soft", "approval": "approval", "break_glass": "soft"}
"""The enforcement that each kind lifts; there is none that lifts ``hard``."""


@dataclass(frozen=True, slots=True)
class Waiver:
    """A permission of persons, from a moment to another (microseconds since 1970, the second one excluded).

    ``project``, ``pool`` and ``model`` None mean all of the tenant's. Only a ``break_glass`` may leave out ``policy``,
    ``rule`` and ``rule_digest``, which means every ``soft`` rule.
    """

    id: str
    kind: Kind
    tenant: str
    project: str | None
    policy: str | None
    rule: str | None
    rule_digest: str | None
    pool: str | None
    model: str | None
    from_us: int
    expires_us: int
    approver: str | None = None
    """Who answers for it, as far as that can be read."""

    def in_force(self, workload: Workload, time_us: int) -> bool:
        """Whether it says anything of this workload at this time."""
        return (
            self.from_us <= time_us < self.expires_us
            and self.tenant == workload.tenant
            and self.project in (None, workload.project)
            and self.model in (None, workload.model)
        )

    def lifts(self, pool: str, violation: Mapping[str, Any], rules: Mapping[str, str]) -> bool:
        """Whether it lifts this violation of this pool; ``rules`` has the digests of the rules as they are."""
        if violation["enforcement"] != LIFTS[self.kind] or self.pool not in (None, pool):
            return False
        if self.rule is None:
            return self.kind == "break_glass"
        if (self.policy, self.rule) != (violation["policy"], violation["rule"]):
            return False
        return bool(self.rule_digest) and rules.get(f"{self.policy}.{self.rule}") == self.rule_digest


@dataclass(frozen=True, slots=True)
class Lifted:
    """The sheet as waivers leave it, and those that lifted something, in order of their ids."""

    sheet: Sheet
    waivers: tuple[Waiver, ...] = ()


def lift(sheet: Sheet, workload: Workload, waivers: Sequence[Waiver], time_us: int) -> Lifted:
    """Apply what is in force. The sheet must be one that no waivers were applied to."""
    asked = sorted(
        (waiver for waiver in waivers if waiver.in_force(workload, time_us)),
        key=lambda waiver: (-waiver.expires_us, waiver.id),
    )
    if not asked:
        return Lifted(sheet)
    used: dict[str, Waiver] = {}
    opened: list[Row] = []
    refused: list[Refused] = []
    before: list[Refused] = []
    for entry in sheet.refused:
        if entry.row is None:
            refused.append(entry)
            continue
        found = [_found(entry.pool, violation, asked, sheet.rules) for violation in entry.violations]
        if not any(found):
            refused.append(entry)
            continue
        used |= {waiver.id: waiver for waiver in found if waiver is not None}
        before.append(entry)
        left = tuple(v for v, waiver in zip(entry.violations, found, strict=True) if waiver is None)
        if left:
            refused.append(replace(entry, violations=left))
        else:
            opened.append(_waived(entry.row, entry.violations, found))
    if not used:
        return Lifted(sheet)
    return Lifted(_changed(sheet, opened, tuple(refused), tuple(before)), tuple(used[name] for name in sorted(used)))


def _found(pool: str, violation: Mapping[str, Any], asked: Sequence[Waiver], rules: Mapping[str, str]) -> Waiver | None:
    return next((waiver for waiver in asked if waiver.lifts(pool, violation, rules)), None)


def _waived(row: Row, violations: Sequence[Mapping[str, Any]], found: Sequence[Waiver | None]) -> Row:
    """The row, which warns of every rule that was lifted for it, and names by what."""
    told = [{**v, "lifted_by": waiver.id} for v, waiver in zip(violations, found, strict=True) if waiver is not None]
    # A sheet that is read back has its keys in order, and must answer with the same bytes.
    ordered = orjson.loads(orjson.dumps(told, option=orjson.OPT_SORT_KEYS))
    return replace(row, warnings=(*row.warnings, *ordered))


def _changed(sheet: Sheet, opened: Sequence[Row], refused: tuple[Refused, ...], before: tuple[Refused, ...]) -> Sheet:
    rows = (*sheet.rows, *opened)
    places = {pool: place for place, pool in enumerate(sorted(row.pool for row in rows))}
    lanes: list[Lane] = [(*lane[:9], places[lane[1]], lane[10]) for lane in sheet.lanes]
    lanes += [lane_of(row, sheet.weights, places[row.pool]) for row in opened]
    known = dict(sheet.shown_refused)
    changed = {entry.pool for entry in before}
    shown = [(entry.pool, _shown(entry) if entry.pool in changed else known[entry.pool]) for entry in _seen(refused)]
    return replace(
        sheet,
        rows=rows,
        refused=refused,
        lanes=tuple(lanes),
        shown_refused=tuple(shown),
        shown_refused_json=orjson.dumps([fragment for _, fragment in shown]),
        lifted=before,
    )


def _seen(refused: Sequence[Refused]) -> list[Refused]:
    return [entry for entry in refused if not entry.hidden]


def _shown(entry: Refused) -> orjson.Fragment:
    violations = [orjson.dumps(violation, option=orjson.OPT_SORT_KEYS) for violation in entry.violations]
    return orjson.Fragment(shown_entry(entry.pool, violations))
