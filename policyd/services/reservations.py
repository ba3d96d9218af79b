"""What a decision reserves, and what the ledger's word makes of it. Pure.

    made ──reservation_of──► charges for every limit ──the writer──► admission ──admitted──► the decision as answered

Rules: a charge is the most that any returned pool would cost, in the unit of its limit; a limit on a group of pools is
charged with the most of that group, and not at all when none of it is returned; what cannot be counted is unknown, and
the ledger denies it. Without budget no pool is left: each one that was ranked is refused with the account, what remains
and when it resets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from policyd.core.cost import Pricing, billed_ms, gpus_for
from policyd.core.decide import Decision, Scored
from policyd.core.quantities import MAX_SAFE, MS_PER_HOUR, ceil_div
from policyd.core.violations import CORE
from policyd.core.workload import Workload
from policyd.ledger.rules import ALL_POOLS, Charge, Limit, Reservation
from policyd.services.admission import NO_BUDGET
from policyd.services.answers import Made
from policyd.services.clock import rfc3339

HOUR_US: Final = 3_600_000_000


def reservation_of(made: Made, limits: Sequence[Limit], groups: Mapping[str, str], hold_ms: int) -> Reservation | None:
    """What the decision asks of the ledger; None when there is nothing to ask.

    Who does not reserve is judged all the same. ``groups`` has the group of each pool. A deployment is held for as long
    as it lasts, and ``hold_ms`` longer.
    """
    if not limits or made.decision.outcome != "allow":
        return None
    workload = made.workload
    returned = made.decision.ranked[: made.options.limit]
    if any(limit.pools != ALL_POOLS for limit in limits):
        named = {ALL_POOLS, *(groups.get(scored.row.pool) for scored in returned)}
        limits = [limit for limit in limits if limit.pools in named]
        if not limits:
            return None
    most: dict[tuple[str, str], int | None] = {}  # levels limit the same units, so each is counted once
    for limit in limits:
        if (limit.unit, limit.pools) not in most:
            most[limit.unit, limit.pools] = _most(limit, returned, workload, groups)
    charges = tuple(Charge(limit, most[limit.unit, limit.pools]) for limit in limits)
    lasts_us = workload.duration_hours * HOUR_US if workload.scope == "deployment" else 0
    return Reservation(made.id, charges, hold_ms * 1_000 + lasts_us, made.options.reserve)


def _most(limit: Limit, returned: Sequence[Scored], workload: Workload, groups: Mapping[str, str]) -> int | None:
    """The most that any of the pools takes of a limit; None when that is beyond what can be counted."""
    if limit.unit == "micro_usd":
        return max(scored.cost_micro_usd for scored in returned)
    requests = 1 if workload.scope == "request" else workload.requests_per_hour * workload.duration_hours
    if limit.unit == "requests":
        most = requests
    elif limit.unit == "tokens":
        most = requests * (workload.input_tokens + workload.max_output_tokens)
    elif limit.unit == "gpu_ms":
        most = max(gpu_ms(scored.row.pricing, workload, requests) for scored in returned)
    else:
        counted = [s for s in returned if limit.pools in (ALL_POOLS, groups.get(s.row.pool))]
        each = [1 if limit.unit == "in_flight" else gpus_for(s.row.pricing, workload) for s in counted]
        most = max(each, default=0)
    return most if most <= MAX_SAFE else None


def gpu_ms(pricing: Pricing, workload: Workload, requests: int) -> int:
    """GPU time that the workload takes: of its requests, or of whole replicas for as long as a deployment lasts."""
    if pricing.form == "tokens":
        return 0
    if pricing.form == "gpu" and workload.scope == "deployment":
        return gpus_for(pricing, workload) * workload.duration_hours * MS_PER_HOUR
    return requests * request_gpu_ms(pricing, workload.input_tokens, workload.max_output_tokens)


def request_gpu_ms(pricing: Pricing, input_tokens: int, output_tokens: int) -> int:
    """GPU time of one request: at the measured batch throughput, or as billed. None of a pool that sells tokens."""
    if pricing.form == "tokens":
        return 0
    if pricing.form == "billed":
        return pricing.gpus * billed_ms(pricing, input_tokens, output_tokens)
    prefill, decode = pricing.prefill_tokens_per_s, pricing.decode_tokens_per_s
    work = 1_000 * pricing.gpus * (input_tokens * decode + output_tokens * prefill)
    return ceil_div(work, prefill * decode)


def admitted(made: Made, admission: Mapping[str, Any] | None) -> Made:
    """The decision with what the ledger said of it: held until then, or a deny for want of budget."""
    if admission is None:
        return made
    if "denied" in admission:
        decision = without_budget(made.decision, admission["denied"])
        return made._replace(admission=admission, decision=decision)
    valid_until_us = min(made.valid_until_us, admission.get("expires_us", made.valid_until_us))
    return made._replace(admission=admission, valid_until_us=valid_until_us)


def without_budget(decision: Decision, denied: Mapping[str, Any]) -> Decision:
    """No pool is left, and each one that was ranked says why."""
    violation = no_budget(denied)
    refused = tuple((scored.row, violation) for scored in decision.ranked)
    return Decision("deny", "budget", (), decision.refused + refused)


def no_budget(denied: Mapping[str, Any]) -> dict[str, Any]:
    """The violation of a decision that an account has no room for."""
    account = f"{denied['path']} ({denied['unit']}, {denied['window']})"
    resets = denied["resets_us"]
    when = "it does not reset by itself" if resets is None else f"it resets at {rfc3339(resets)}"
    if denied["why"] == "unknown":
        message = f"nobody can say what this would take of account {account}"
        remedy = "ask for less at once, or have the price of the pools declared"
    elif denied["why"] == "debt":
        message = f"account {account} is in debt; {when}"
        remedy = "wait for the next window, or have the budget raised"
    else:
        message = f"account {account} has {denied['remaining']} left and {denied['asked']} are needed; {when}"
        remedy = "wait for the next window or for running work to settle, ask for less, or have the budget raised"
    return {
        "policy": CORE,
        "rule": NO_BUDGET,
        "enforcement": "hard",
        "location": f"docs/rules/core.md#{NO_BUDGET}",
        "message": message,
        "observed": {
            "account": denied["path"],
            "unit": denied["unit"],
            "window": denied["window"],
            "remaining": denied["remaining"],
            "resets_at": None if resets is None else rfc3339(resets),
        },
        "required": denied["asked"],
        "remedy": remedy,
    }
