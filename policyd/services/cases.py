"""Golden cases: workloads with the outcome, order and reasons that they must get, as data, on any engine.

The keys are described in ``policies/cases/README.md``. A case runs through the same code as a decision: normalise,
sheet, decide; only the fleet and the facts are its own.

Rules: an unknown key fails the case; a case that raises fails with the error's words; nothing is logged anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import ValidationError

from audit.record import digest
from policyd.core.decide import Decision, decide
from policyd.core.facts import Facts, facts_from_json
from policyd.core.fleet import Fleet, FleetDocument
from policyd.core.principal import LOCAL
from policyd.core.sheet import Sheet
from policyd.core.snapshot import Permits, Snapshot
from policyd.core.verdict import PolicySet
from policyd.core.workload import WorkloadRequest
from policyd.documents import Document, read_yaml
from policyd.errors import Finding, PolicydError, PolicyInvalid
from policyd.services.clock import from_rfc3339
from policyd.services.frames import Frames
from policyd.services.sheets import SheetBook

_KEYS: Final = frozenset({"name", "why", "workload", "now", "pools", "fleet", "offerings", "facts", "expect"})
_EXPECTATIONS: Final = frozenset({"outcome", "ranked", "allowed", "rejected", "warned", "obligations"})


@dataclass(frozen=True, slots=True)
class Case:
    """One golden case as written, and the file it stands in."""

    file: str
    name: str
    content: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """Whether a case held; ``differences`` say what came instead of what was expected."""

    case: Case
    differences: tuple[str, ...]
    fired: frozenset[str] = frozenset()
    """Rules that spoke, as ``package.rule``."""

    @property
    def passed(self) -> bool:
        """Whether everything came as expected."""
        return not self.differences


def load_cases(directory: Path) -> list[Case]:
    """Every case of a directory, by file and position. Raises ``PolicyInvalid`` with what is no case, at its line."""
    files: dict[str, bytes] = {}
    for path in sorted(directory.glob("*.yaml")):
        try:
            files[str(path)] = path.read_bytes()
        except OSError as error:
            fault = Finding(str(path), f"cannot be read: {error.strerror}")
            raise PolicyInvalid(f"golden cases cannot be read: {fault}", findings=[fault]) from None
    return read_cases(files)


def read_cases(files: Mapping[str, bytes]) -> list[Case]:
    """Every case of files already read, given by name. Raises ``PolicyInvalid`` with what is no case, at its line."""
    cases: list[Case] = []
    findings: list[Finding] = []
    for name in sorted(files):
        document = read_yaml(files[name], name)
        findings += document.findings
        if not document.findings:
            cases += _cases_of(document, name, findings)
    if findings:
        raise PolicyInvalid(f"golden cases cannot be read: {findings[0]}", findings=findings)
    return cases


def _cases_of(document: Document, file: str, findings: list[Finding]) -> Iterator[Case]:
    if not isinstance(document.value, dict):
        findings.append(Finding(str(document.spot), "holds no mapping from a name to a list of cases"))
        return
    for group, listed in document.value.items():
        spot = document.spot.at((group,))
        if not isinstance(listed, list):
            findings.append(Finding(str(spot), f"`{group}` is no list of cases"))
            continue
        for i, case in enumerate(listed):
            if isinstance(case, dict) and isinstance(case.get("name"), str):
                yield Case(file, case["name"], case)
            else:
                findings.append(Finding(str(spot.at((i,))), "a case is a mapping with a `name`"))


@dataclass
class CaseRunner:
    """Runs cases against one policy set; answers are shared between cases, sheets are not."""

    book: SheetBook
    policies: PolicySet
    entitlements_of: Callable[[Fleet], Permits]
    fleet: Fleet

    async def run(self, case: Case) -> CaseResult:
        """Run one case."""
        unknown = sorted((set(case.content) - _KEYS) | (set(case.content.get("expect", {})) - _EXPECTATIONS))
        if unknown:
            return CaseResult(case, (f"unknown keys: {', '.join(unknown)}",))
        try:
            sheet, decision = await self._decide(case.content)
        except PolicydError as error:
            return CaseResult(case, (f"{error.code}: {error.detail}",))
        except (ValidationError, ValueError, KeyError, TypeError) as error:
            return CaseResult(case, (f"the case itself is not well formed: {' '.join(str(error).split())[:300]}",))
        return CaseResult(case, tuple(_differences(case.content["expect"], sheet, decision)), _fired(sheet, decision))

    async def _decide(self, content: Mapping[str, Any]) -> tuple[Sheet, Decision]:
        fleet = case_fleet(self.fleet, content)
        snapshot = Snapshot(self.policies, fleet, self.entitlements_of(fleet))
        request = WorkloadRequest.model_validate_json(orjson.dumps(content["workload"]))
        facts = _case_facts(fleet, content.get("facts", {}))
        framed = Frames().place(snapshot, request, LOCAL, facts, from_rfc3339(str(content["now"])))
        sheet = await self.book.make(snapshot, framed.key, framed.normalised, framed.document(snapshot))
        return sheet, decide(framed.normalised.workload, sheet, facts)


def case_fleet(fleet: Fleet, content: Mapping[str, Any]) -> Fleet:
    """The fleet of a case: the pools that take part, with the case's fields merged in."""
    document = fleet.document.model_dump(mode="json", exclude_none=True)
    taking_part = content.get("pools")
    pools = [pool for pool in document["pools"] if taking_part is None or pool["id"] in taking_part]
    for pool in pools:
        _merge(pool, content.get("fleet", {}).get("pools", {}).get(pool["id"], {}))
        changes = content.get("offerings", {}).get(pool["id"], {})
        for offering in pool.get("offerings", []):
            _merge(offering, changes.get(offering["model"], {}))
    named = {*(taking_part or ()), *content.get("fleet", {}).get("pools", {}), *content.get("offerings", {})}
    absent = named - {pool["id"] for pool in pools}
    if absent:
        raise ValueError(f"the case names pools that the fleet does not have: {', '.join(sorted(absent))}")
    document["pools"] = pools
    encoded = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    return Fleet(FleetDocument.model_validate_json(encoded), digest(encoded), groups=fleet.groups)


def _merge(under: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(under.get(key), dict):
            _merge(under[key], value)
        else:
            under[key] = value


def _case_facts(fleet: Fleet, changes: Mapping[str, Any]) -> Facts:
    """Declared capacity is free and every account has spent nothing, unless the case says otherwise."""
    accounts = [
        path
        for tenant in fleet.tenants.values()
        for path in (tenant.name, *(f"{tenant.name}/{project.name}" for project in tenant.projects))
    ]
    document: dict[str, Any] = {
        "pools": {
            pool.id: {
                "available_gpus": pool.capacity.gpus if pool.capacity else None,
                "queue_ms": 0,
                "healthy": True,
            }
            for pool in fleet.pools.values()
        },
        "accounts": {path: {"spent_micro_usd": 0} for path in accounts},
    }
    _merge(document, changes)
    document["pools"] = {name: value for name, value in document["pools"].items() if value is not None}
    document["accounts"] = {name: value for name, value in document["accounts"].items() if value is not None}
    encoded = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    return facts_from_json(orjson.loads(encoded), digest(encoded))


def _differences(expect: Mapping[str, Any], sheet: Sheet, decision: Decision) -> Iterator[str]:
    ranked = [scored.row.pool for scored in decision.ranked]
    if decision.outcome != expect["outcome"]:
        yield f"outcome: expected {expect['outcome']}, got {decision.outcome}"
    if "ranked" in expect and ranked != expect["ranked"]:
        yield f"ranked: expected {expect['ranked']}, got {ranked}"
    if "allowed" in expect and sorted(ranked) != sorted(expect["allowed"]):
        yield f"allowed: expected {sorted(expect['allowed'])}, got {sorted(ranked)}"
    reasons = {entry.pool: {v["rule"] for v in entry.violations} for entry in sheet.refused}
    for row, violation in decision.refused:
        reasons.setdefault(row.pool, set()).add(violation["rule"])
    yield from _differing_sets("rejected", expect.get("rejected", {}), reasons)
    warned = {s.row.pool: {w["rule"] for w in s.row.warnings} for s in decision.ranked if s.row.warnings}
    if "warned" in expect:
        yield from _differing_sets("warned", expect["warned"], warned)
        for pool in sorted(set(warned) - set(expect["warned"])):
            yield f"warned {pool}: expected nothing, got {sorted(warned[pool])}"
    if "obligations" in expect:
        names = sorted({o["name"] for scored in decision.ranked for o in scored.row.obligations})
        if names != sorted(expect["obligations"]):
            yield f"obligations: expected {sorted(expect['obligations'])}, got {names}"


def _fired(sheet: Sheet, decision: Decision) -> frozenset[str]:
    said = [violation for entry in sheet.refused for violation in entry.violations]
    said += [violation for _, violation in decision.refused]
    said += [warning for scored in decision.ranked for warning in scored.row.warnings]
    return frozenset(f"{one['policy']}.{one['rule']}" for one in said)


def _differing_sets(what: str, expected: Mapping[str, Sequence[str]], got: Mapping[str, set[str]]) -> Iterator[str]:
    for pool, rules in expected.items():
        if sorted(set(rules)) != sorted(got.get(pool, set())):
            yield f"{what} {pool}: expected {sorted(set(rules))}, got {sorted(got.get(pool, set()))}"
