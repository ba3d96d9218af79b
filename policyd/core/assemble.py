"""Fill a sheet: answers become violations, pools without any become rows.

Rules: a question without an answer, and an answer with an error, refuse their pools; a pool needs a Casbin entitlement
and no denial; what the tenant may not see is refused and hidden; a price or speed that nobody declared refuses. No
clock, no randomness, no I/O: the day is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import orjson

from policyd.core.classes import ClassView, Grouping, join
from policyd.core.control import control_component
from policyd.core.cost import Pricing
from policyd.core.fleet import Fleet
from policyd.core.inputs import performance_of
from policyd.core.pool import Performance, Pool
from policyd.core.sheet import Refused, Row, Sheet, seal
from policyd.core.terms import Terms
from policyd.core.verdict import Answer, Enforcement, Package, PolicySet, Question, Violation
from policyd.core.violations import POLICIES, core_violation, fact_missing, violation_order, violations_of
from policyd.core.workload import Workload

_Reason = tuple[tuple[str, str, bytes], Mapping[str, Any]]
"""A violation as a sheet has it, behind its place in the order: made once for all pools that share it."""
_BY_ORDER: Final = itemgetter(0)
LIFTABLE: Final = frozenset({Enforcement.SOFT.value, Enforcement.APPROVAL.value})
"""What persons may lift: by a waiver, and by an approval."""


@dataclass(frozen=True)
class Basis:
    """What ``assemble`` works on: one snapshot's parts and one class."""

    fleet: Fleet
    policies: PolicySet
    grouping: Grouping
    workload: Workload
    terms: Terms
    date: str
    casbin_digest: str
    may_place: Callable[[str], bool]
    may_view: Callable[[str], bool]


def assemble(basis: Basis, view: ClassView, answers: Mapping[Question, Answer], reads_clock: bool) -> Sheet:
    """The sheet of a class from the answers to its questions. A question without an answer refuses its pools."""
    rows: list[Row] = []
    refused: list[Refused] = []
    rules: dict[str, str] = {}
    findings, failed = _answers_by_pool(basis, view, answers)
    sla = basis.fleet.sla_classes[basis.workload.sla_class]
    for pool in basis.fleet.pools.values():
        found = findings[pool.id]
        hidden = not _visible(basis, pool)
        reasons = [*map(_reason, _core_violations(basis, pool, hidden)), *found.reasons]
        pricing = basis.grouping.pricing.get(pool.id, "offerings")
        if isinstance(pricing, str) and pool.id in basis.grouping.offered:
            unknown = core_violation("price_unknown", f"{pool.id} has no usable price", pricing, "a fact")
            reasons.append(_reason(unknown))
        liftable = all(violation["enforcement"] in LIFTABLE for _, violation in reasons)
        row = _row(basis, pool, found, pricing) if liftable else None
        if isinstance(row, Row) and not reasons:
            rows.append(row)
            continue
        if isinstance(row, Violation):
            reasons.append(_reason(row))
        opened = row if isinstance(row, Row) else None
        ordered = tuple(violation for _, violation in sorted(reasons, key=_BY_ORDER))
        if opened is not None:
            rules |= _digests(basis.policies, ordered)
        priced = None if isinstance(pricing, str) else pricing
        declared = basis.grouping.declared[pool.id]
        refused.append(Refused(pool.id, pool.kind, ordered, hidden, priced, declared, opened))
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
            "casbin": basis.casbin_digest,
        },
        reads_clock=reads_clock,
        failed=failed,
        rules=rules,
    )


def _digests(policies: PolicySet, violations: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What waivers of these are bound to, by ``policy.rule``."""
    named = [(violation["policy"], violation["rule"]) for violation in violations]
    return {f"{policy}.{rule}": policies.packages[policy].rules[rule].digest for policy, rule in named}


@dataclass(slots=True)
class _Found:
    reasons: list[_Reason]
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
            found[pool].reasons.append(_reason(fact_missing(package, (*paths, *view.missing[name]))))
        for pool_json, members in basis.grouping.groups[name].items():
            if view.missing[name]:
                reason = _reason(fact_missing(package, view.missing[name]))
                for pool in members:
                    found[pool].reasons.append(reason)
                continue
            answer = answers.get(Question(name, join(view.projections[name], pool_json)))
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
            location=POLICIES + package.location,
            message=f"{package.title}: the evaluation failed: {reason}",
            observed=reason,
            required="an answer",
            remedy="have the owner of the policy look at it; nothing is allowed meanwhile",
        )
        for member in members:
            member.reasons.append(_reason(failure))
        return
    violations = [*violations_of(package, answer.deny), *violations_of(package, answer.approval)]
    blocking = [_reason(v) for v in violations if v.enforcement is not Enforcement.ADVISORY]
    warnings = [v.to_json() for v in violations if v.enforcement is Enforcement.ADVISORY]
    warnings += [violation.to_json() for violation in violations_of(package, answer.warn, advisory=True)]
    for member in members:
        member.reasons.extend(blocking)
        member.warnings.extend(warnings)
        member.obligations.extend(answer.obligation)
        member.prefer += answer.prefer


def _reason(violation: Violation) -> _Reason:
    document = violation.to_json()
    return violation_order(document), document


def _core_violations(basis: Basis, pool: Pool, hidden: bool) -> list[Violation]:
    violations = []
    if hidden:
        violations.append(
            core_violation(
                "not_visible",
                f"tenant {basis.workload.tenant} may not see pool {pool.id}",
                pool.group,
                "view",
                "ask the governance team; the tenant does not learn that this pool exists",
            )
        )
    if not basis.may_place(pool.group):
        violations.append(
            core_violation(
                "not_entitled",
                f"tenant {basis.workload.tenant} has no entitlement to place on pool group {pool.group}",
                pool.group,
                "place",
                "ask the governance team for a Casbin row, or use another pool",
            )
        )
    if pool.id not in basis.grouping.offered:
        violations.append(
            core_violation(
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
        return [core_violation("fact_missing", f"{pool.id} declares no commitment", "missing", ["pool.commitment"])]
    if commitment.start.isoformat() <= date <= commitment.end.isoformat():
        return []
    return [
        core_violation(
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
        return core_violation("fact_missing", f"{pool.id} declares no performance", "missing", ["performance"])
    if offering.max_context_tokens is None:
        needed = ["serving.max_context_tokens"]
        return core_violation("fact_missing", f"{pool.id} declares no context length", "missing", needed)
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
        warnings=tuple(sorted(found.warnings, key=violation_order)),
        obligations=tuple(sorted(found.obligations, key=lambda o: orjson.dumps(o, option=orjson.OPT_SORT_KEYS))),
        declared=basis.grouping.declared[pool.id],
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
