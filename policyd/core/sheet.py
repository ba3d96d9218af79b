"""The sheet: the verdict for every pool, for one workload class in one snapshot.

A sheet is made in three pure steps around one engine call:

1. ``questions_for`` groups the pools by what each package reads of them, and asks each package once per group;
2. the engine answers (elsewhere, in worker processes);
3. ``assemble`` turns answers into violations and eligible pools into **rows**, which carry every number that
   ``policyd.core.decide`` needs. A sheet and the facts are all that a replay needs.

Rules: a path that a package reads and that is absent, null or ill-typed refuses the pool (``fact_missing``) and the
package is not asked; an answer with an error refuses the pool; a pool needs a Casbin entitlement and no denial; no
clock, no randomness, no I/O. Its key is what the policies read and the names that its rows are made from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

import orjson

from policyd.core.control import control_component
from policyd.core.cost import Pricing, pricing_of
from policyd.core.fleet import Fleet
from policyd.core.inputs import CLASS_SHAPE, missing_facts, performance_of, pool_side
from policyd.core.pool import Performance, Pool
from policyd.core.projection import project
from policyd.core.terms import Terms
from policyd.core.verdict import Answer, Enforcement, Package, PolicySet, Question, RuleDoc, Violation
from policyd.core.workload import Workload

CORE: Final = "core"
"""Policy name of the violations that the core itself adds; their pages are ``docs/rules/core.md``."""

_CANONICAL = orjson.OPT_SORT_KEYS


@dataclass(frozen=True, slots=True)
class Row:
    """An eligible pool: what the exact checks, the score and the answer need, fixed for the class."""

    pool: str
    kind: str
    provider: str
    country: str
    model: Mapping[str, Any]
    pricing: Pricing
    max_context_tokens: int
    control: int
    control_inputs: Mapping[str, Any]
    preference: int
    latency: int
    latency_inputs: Mapping[str, Any]
    steadiness: int
    steadiness_inputs: Mapping[str, Any]
    warnings: tuple[Mapping[str, Any], ...] = ()
    obligations: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A pool that the class may not use, with the reasons; ``pricing`` lets ``explain`` say what it would have cost."""

    pool: str
    kind: str
    violations: tuple[Mapping[str, Any], ...]
    hidden: bool = False
    pricing: Pricing | None = None


@dataclass(frozen=True, slots=True)
class Sheet:
    """Immutable, content-addressed verdicts. ``content`` is what the log stores once and ``digest`` names."""

    digest: str
    content: bytes
    rows: tuple[Row, ...]
    refused: tuple[Refused, ...]
    weights: Mapping[str, int]
    sla: Mapping[str, Any]
    hidden_total: int
    reads_clock: bool
    failed: bool
    shown_refused: tuple[tuple[str, orjson.Fragment], ...] = field(default=(), compare=False)
    """The refused pools that the tenant may see, each encoded once, in order of pool id."""


@dataclass(frozen=True)
class Grouping:
    """The pools of a fleet for one model, grouped by what each package reads of them. Made once per snapshot and model.

    ``groups[package]`` maps the projected JSON to the ids that share it; ``missing[package][pool]`` names absent paths;
    ``pricing`` says for each pool that offers the model how it is priced, or which fact is missing for that.
    """

    offered: frozenset[str]
    pricing: Mapping[str, Pricing | str]
    groups: Mapping[str, Mapping[bytes, tuple[str, ...]]]
    missing: Mapping[str, Mapping[str, tuple[str, ...]]]


def group_pools(fleet: Fleet, policies: PolicySet, model: str) -> Grouping:
    """Group every pool of the fleet by the pool side of what each package reads."""
    sides = {pool.id: pool_side(pool, model, fleet) for pool in fleet.pools.values()}
    offered = frozenset(name for name, side in sides.items() if "serving" in side)
    groups: dict[str, dict[bytes, tuple[str, ...]]] = {}
    missing: dict[str, dict[str, tuple[str, ...]]] = {}
    for package in policies.packages.values():
        reads = _side(package, class_side=False)
        asks_serving = any(path[:1] in ((), ("serving",)) for path in reads)
        by_json: dict[bytes, list[str]] = {}
        absent: dict[str, tuple[str, ...]] = {}
        for name, side in sides.items():
            if asks_serving and name not in offered:
                continue
            faults = _missing(side, reads, package.optional)
            if faults:
                absent[name] = faults
            else:
                by_json.setdefault(orjson.dumps(project(side, reads), option=_CANONICAL), []).append(name)
        groups[package.name] = {key: tuple(names) for key, names in by_json.items()}
        missing[package.name] = absent
    return Grouping(offered, _pricings(fleet, model), groups, missing)


def _pricings(fleet: Fleet, model: str) -> dict[str, Pricing | str]:
    offerings = ((pool, pool.offering(model)) for pool in fleet.pools.values())
    return {
        pool.id: pricing_of(pool, offering, performance_of(pool, offering, fleet), fleet)
        for pool, offering in offerings
        if offering is not None
    }


def _side(package: Package, *, class_side: bool) -> tuple[tuple[str, ...], ...]:
    """The reads on one side of the input; a package that reads everything reads everything on both."""
    if any(path == () for path in package.reads):
        keys = CLASS_SHAPE if class_side else ("pool", "serving")
        return tuple((key,) for key in keys)
    return tuple(path for path in package.reads if (path[0] in CLASS_SHAPE) is class_side)


def _missing(
    document: Mapping[str, Any], reads: Sequence[tuple[str, ...]], optional: frozenset[tuple[str, ...]]
) -> tuple[str, ...]:
    found = {".".join(path) for read in reads for path in missing_facts(document, read, optional)}
    return tuple(sorted(found))


@dataclass(frozen=True)
class ClassView:
    """A workload class as the packages see it: projected JSON and missing paths per package, and the sheet's key."""

    key: bytes
    projections: Mapping[str, bytes]
    missing: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class ClassReads:
    """The class side of every package's read set, found once per policy set."""

    reads: Mapping[str, tuple[tuple[str, ...], ...]]
    optional: Mapping[str, frozenset[tuple[str, ...]]]
    union: tuple[tuple[str, ...], ...]
    clock: bool


def class_reads(policies: PolicySet) -> ClassReads:
    """What the policies read of the class side, per package and together."""
    reads = {package.name: _side(package, class_side=True) for package in policies.packages.values()}
    paths = sorted({path for package in reads.values() for path in package})
    union = tuple(path for path in paths if not any(path != p and path[: len(p)] == p for p in paths))
    return ClassReads(
        reads=reads,
        optional={package.name: package.optional for package in policies.packages.values()},
        union=union,
        clock=any(path[0] == "clock" for path in union),
    )


def class_key(workload: Workload, document: Mapping[str, Any], reads: ClassReads) -> bytes:
    """The key of the sheet: the names and the day its rows are made from, and the class side that the policies read."""
    names = (
        document["clock"]["date"],
        workload.tenant,
        workload.project,
        workload.model,
        workload.model_version,
        workload.sla_class,
    )
    return orjson.dumps((names, project(document, reads.union)), option=_CANONICAL)


def view_class(key: bytes, document: Mapping[str, Any], reads: ClassReads) -> ClassView:
    """Project the class side for every package."""
    return ClassView(
        key=key,
        projections={
            name: orjson.dumps(project(document, paths), option=_CANONICAL) for name, paths in reads.reads.items()
        },
        missing={name: _missing(document, paths, reads.optional[name]) for name, paths in reads.reads.items()},
    )


def questions_for(view: ClassView, grouping: Grouping) -> list[Question]:
    """One question per package and distinct projection; none where a fact is missing."""
    return [
        Question(name, _join(view.projections[name], pool_json))
        for name, groups in grouping.groups.items()
        if not view.missing[name]
        for pool_json in groups
    ]


def _join(left: bytes, right: bytes) -> bytes:
    """Two JSON objects with disjoint keys, as one."""
    if left == b"{}":
        return right
    return left if right == b"{}" else left[:-1] + b"," + right[1:]


@dataclass(frozen=True)
class Basis:
    """What ``assemble`` works on: one snapshot's parts and one class."""

    fleet: Fleet
    policies: PolicySet
    grouping: Grouping
    workload: Workload
    terms: Terms
    date: str
    may_place: Callable[[str], bool]
    may_view: Callable[[str], bool]


def assemble(basis: Basis, view: ClassView, answers: Mapping[Question, Answer], reads_clock: bool) -> Sheet:
    """The sheet of a class from the answers to its questions. A question without an answer refuses its pools."""
    rows: list[Row] = []
    refused: list[Refused] = []
    findings, failed = _answers_by_pool(basis, view, answers)
    sla = basis.fleet.sla_classes[basis.workload.sla_class]
    for pool in basis.fleet.pools.values():
        found = findings[pool.id]
        hidden = not _visible(basis, pool)
        violations = [*_core_violations(basis, pool, hidden), *found.violations]
        pricing = basis.grouping.pricing.get(pool.id, "offerings")
        if isinstance(pricing, str) and pool.id in basis.grouping.offered:
            violations.append(_core_violation("price_unknown", f"{pool.id} has no usable price", pricing, "a fact"))
        row = None if violations else _row(basis, pool, found, pricing)
        if isinstance(row, Row):
            rows.append(row)
        else:
            violations.extend([row] if isinstance(row, Violation) else [])
            ordered = sorted((v.to_json() for v in violations), key=_violation_order)
            refused.append(
                Refused(pool.id, pool.kind, tuple(ordered), hidden, None if isinstance(pricing, str) else pricing)
            )
    return seal(
        rows=tuple(rows),
        refused=tuple(refused),
        weights=sla.weights.model_dump(),
        sla=sla.model_dump(exclude={"weights"}),
        header={
            "class": orjson.Fragment(view.key),
            "policy": basis.policies.digest,
            "fleet": basis.fleet.digest,
            "engine": basis.policies.engine,
        },
        reads_clock=reads_clock,
        failed=failed,
    )


def seal(
    *,
    rows: tuple[Row, ...],
    refused: tuple[Refused, ...],
    weights: Mapping[str, int],
    sla: Mapping[str, Any],
    header: Mapping[str, Any],
    reads_clock: bool,
    failed: bool,
) -> Sheet:
    """Encode a sheet once and address it by its content."""
    document = {
        "header": header,
        "rows": rows,
        "refused": refused,
        "weights": weights,
        "sla": sla,
        "reads_clock": reads_clock,
        "failed": failed,
    }
    content = orjson.dumps(document, option=_CANONICAL)
    return Sheet(
        digest="sha256:" + hashlib.sha256(content).hexdigest(),
        content=content,
        rows=rows,
        refused=refused,
        weights=weights,
        sla=sla,
        hidden_total=sum(entry.hidden for entry in refused),
        reads_clock=reads_clock,
        failed=failed,
        shown_refused=tuple(
            (entry.pool, orjson.Fragment(orjson.dumps({"pool": entry.pool, "violations": entry.violations})))
            for entry in refused
            if not entry.hidden
        ),
    )


def sheet_from_content(content: bytes) -> Sheet:
    """The sheet that ``seal`` encoded, for replay and explanation; its digest is computed anew."""
    document = orjson.loads(content)
    return seal(
        rows=tuple(
            _revive(Row, {**row, "pricing": Pricing(**row["pricing"])}) for row in document["rows"]
        ),
        refused=tuple(
            _revive(Refused, {**entry, "pricing": Pricing(**entry["pricing"]) if entry["pricing"] else None})
            for entry in document["refused"]
        ),
        weights=document["weights"],
        sla=document["sla"],
        header=document["header"],
        reads_clock=document["reads_clock"],
        failed=document["failed"],
    )


def _revive(kind: Any, values: Mapping[str, Any]) -> Any:
    names = {f.name for f in fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names})


@dataclass(slots=True)
class _Found:
    violations: list[Violation]
    warnings: list[Mapping[str, Any]]
    obligations: list[Mapping[str, Any]]
    prefer: int = 0


def _answers_by_pool(
    basis: Basis, view: ClassView, answers: Mapping[Question, Answer]
) -> tuple[dict[str, _Found], bool]:
    found = {name: _Found([], [], []) for name in basis.fleet.pools}
    failed = False
    for name, package in basis.policies.packages.items():
        for pool, paths in basis.grouping.missing[name].items():
            found[pool].violations.append(_fact_missing(package, (*paths, *view.missing[name])))
        for pool_json, members in basis.grouping.groups[name].items():
            if view.missing[name]:
                for pool in members:
                    found[pool].violations.append(_fact_missing(package, view.missing[name]))
                continue
            answer = answers.get(Question(name, _join(view.projections[name], pool_json)))
            if answer is None or answer.error is not None:
                failed = True
            _spread(package, answer, [found[pool] for pool in members])
    return found, failed


def _spread(package: Package, answer: Answer | None, members: Sequence[_Found]) -> None:
    """Give what one answer says to every pool that shares the question."""
    if answer is None or answer.error is not None:
        reason = "no answer" if answer is None else answer.error
        failure = Violation(
            policy=package.name,
            rule="evaluation_failed",
            enforcement=Enforcement.HARD,
            location=package.location,
            message=f"{package.title}: the evaluation failed: {reason}",
            observed=reason,
            required="an answer",
            remedy="have the owner of the policy look at it; nothing is allowed meanwhile",
        )
        for member in members:
            member.violations.append(failure)
        return
    violations = [violation_of(package, denial) for denial in answer.deny]
    blocking = [v for v in violations if v.enforcement is not Enforcement.ADVISORY]
    warnings = [v.to_json() for v in violations if v.enforcement is Enforcement.ADVISORY]
    warnings += [violation_of(package, warning, advisory=True).to_json() for warning in answer.warn]
    for member in members:
        member.violations.extend(blocking)
        member.warnings.extend(warnings)
        member.obligations.extend(answer.obligation)
        member.prefer += answer.prefer


def violation_of(package: Package, fields_: Mapping[str, Any], *, advisory: bool = False) -> Violation:
    """A policy's ``deny`` or ``warn`` object with the words of its METADATA; unknown rules take the package's."""
    rule = str(fields_.get("rule", "unnamed"))
    doc = package.rules.get(rule) or RuleDoc(rule, package.location, package.title, package.enforcement, package.remedy)
    observed, required = fields_.get("observed"), fields_.get("required")
    return Violation(
        policy=package.name,
        rule=rule,
        enforcement=Enforcement.ADVISORY if advisory else doc.enforcement,
        location=doc.location,
        message=f"{doc.title}: found {_words(observed)}, required {_words(required)}",
        observed=observed,
        required=required,
        remedy=doc.remedy,
    )


def _words(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(value[key])}" for key in sorted(value))
    if isinstance(value, list | tuple):
        shown = [_words(item) for item in value[:12]]
        return ", ".join(shown) + (f" and {len(value) - 12} more" if len(value) > 12 else "") if value else "nothing"
    return orjson.dumps(value).decode()


def _violation_order(violation: Mapping[str, Any]) -> tuple[str, str, bytes]:
    return violation["policy"], violation["rule"], orjson.dumps(violation["observed"], option=_CANONICAL)


def _core_violation(rule: str, message: str, observed: Any, required: Any, remedy: str = "") -> Violation:
    return Violation(
        policy=CORE,
        rule=rule,
        enforcement=Enforcement.HARD,
        location=f"docs/rules/core.md#{rule}",
        message=message,
        observed=observed,
        required=required,
        remedy=remedy or "have the fleet owner declare the fact, with its source",
    )


def _fact_missing(package: Package, paths: Sequence[str]) -> Violation:
    return Violation(
        policy=package.name,
        rule="fact_missing",
        enforcement=Enforcement.HARD,
        location=package.location,
        message=f"{package.title}: nobody declared {', '.join(sorted(set(paths)))}",
        observed="missing",
        required=sorted(set(paths)),
        remedy="have the fleet owner declare the fact, with its source",
    )


def _core_violations(basis: Basis, pool: Pool, hidden: bool) -> list[Violation]:
    violations = []
    if hidden:
        violations.append(
            _core_violation(
                "not_visible",
                f"tenant {basis.workload.tenant} may not see pool {pool.id}",
                pool.group,
                "view",
                "ask the governance team; the tenant does not learn that this pool exists",
            )
        )
    if not basis.may_place(pool.group):
        violations.append(
            _core_violation(
                "not_entitled",
                f"tenant {basis.workload.tenant} has no entitlement to place on pool group {pool.group}",
                pool.group,
                "place",
                "ask the governance team for a Casbin row, or use another pool",
            )
        )
    if pool.id not in basis.grouping.offered:
        violations.append(
            _core_violation(
                "model_not_served",
                f"the pool does not serve {basis.workload.model}",
                sorted(offering.model for offering in pool.offerings),
                basis.workload.model,
                "choose a model that the pool serves, or have it offered there",
            )
        )
    if pool.kind == "committed":
        violations.extend(_commitment_violations(pool, basis.date))
    return violations


def _commitment_violations(pool: Pool, date: str) -> list[Violation]:
    commitment = pool.commitment
    if commitment is None:
        return [_core_violation("fact_missing", f"{pool.id} declares no commitment", "missing", ["pool.commitment"])]
    if commitment.start.isoformat() <= date <= commitment.end.isoformat():
        return []
    return [
        _core_violation(
            "commitment_not_in_force",
            f"the commitment runs from {commitment.start} to {commitment.end}; after it: {commitment.follows}",
            date,
            [commitment.start.isoformat(), commitment.end.isoformat()],
            "renew the commitment, or declare what follows it as a pool of its own",
        )
    ]


def _visible(basis: Basis, pool: Pool) -> bool:
    """A pool shows to a tenant that may view its group, unless it is dedicated to others."""
    mine = not pool.dedicated_to or basis.workload.tenant in pool.dedicated_to
    return mine and basis.may_view(pool.group)


def _row(basis: Basis, pool: Pool, found: _Found, pricing: Pricing | str) -> Row | Violation:
    offering = pool.offering(basis.workload.model)
    performance = None if offering is None else performance_of(pool, offering, basis.fleet)
    if offering is None or isinstance(pricing, str) or performance is None:
        return _core_violation("fact_missing", f"{pool.id} declares no performance", "missing", ["performance"])
    if offering.max_context_tokens is None:
        needed = ["serving.max_context_tokens"]
        return _core_violation("fact_missing", f"{pool.id} declares no context length", "missing", needed)
    control, control_inputs = control_component(pool, basis.terms, basis.date)
    latency, latency_inputs = _latency(basis, performance)
    steadiness, steadiness_inputs = _steadiness(pool, basis.date)
    processing = pool.locations.processing or ("",)
    return Row(
        pool=pool.id,
        kind=pool.kind,
        provider=pool.provider,
        country=processing[0],
        model={
            "name": offering.model,
            "version": offering.version,
            "digest": offering.digest,
            "verified_by": offering.verified_by,
        },
        pricing=pricing,
        max_context_tokens=offering.max_context_tokens,
        control=control,
        control_inputs=control_inputs,
        preference=max(0, min(1000, 500 + max(-1000, min(1000, found.prefer)) // 2)),
        latency=latency,
        latency_inputs=latency_inputs,
        steadiness=steadiness,
        steadiness_inputs=steadiness_inputs,
        warnings=tuple(sorted(found.warnings, key=_violation_order)),
        obligations=tuple(sorted(found.obligations, key=lambda o: orjson.dumps(o, option=_CANONICAL))),
    )


def _latency(basis: Basis, performance: Performance) -> tuple[int, dict[str, Any]]:
    """Half for the slack at P95, half for the slack at P99: 500 when instant, 0 at or beyond the class's limit."""
    sla = basis.fleet.sla_classes[basis.workload.sla_class]
    inputs: dict[str, Any] = {}
    score = 0
    for name in ("ttft_p95_ms", "ttft_p99_ms"):
        limit, observed = getattr(sla, name), getattr(performance, name)
        inputs[name] = {"pool": observed, "class": limit}
        if observed is not None and limit > 0:
            score += max(0, 500 * (limit - observed) // limit)
    return score, inputs


def _steadiness(pool: Pool, date: str) -> tuple[int, dict[str, Any]]:
    """The fixed half of availability, 0..500: interruption 200, cold start 200, what stands behind the capacity 100."""
    interruption = pool.interruption_per_hour_ppm if pool.interruption_per_hour_ppm is not None else 1_000_000
    cold = pool.cold_start_ms if pool.cold_start_ms is not None else 600_000
    uninterrupted = 200 - 200 * min(interruption, 100_000) // 100_000
    warm = 200 - (200 * min(cold, 60_000) // 60_000 if pool.scale_to_zero is not False else 0)
    backed = 100 if pool.kind == "on_prem" else 50
    ends = None if pool.commitment is None else pool.commitment.end.isoformat()
    if pool.kind == "committed":
        backed = 100 if ends is not None and ends > date else 0
    if pool.kind == "spot":
        backed = 0
    inputs = {
        "interruption_per_hour_ppm": pool.interruption_per_hour_ppm,
        "cold_start_ms": pool.cold_start_ms,
        "scale_to_zero": pool.scale_to_zero,
        "commitment_end": ends,
    }
    return uninterrupted + warm + backed, inputs
