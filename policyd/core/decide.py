"""Decide: from a workload, its sheet and the facts to a ranked and a refused list. No clock, no randomness, no I/O.

Filter first (exact context length, health, headroom), then score what is left on five components of 0..1000 each:

| component    | made of                                                              | where                   |
|--------------|----------------------------------------------------------------------|-------------------------|
| control      | tenancy, hardware, account, seats, certificates                      | ``core.control``, sheet |
| availability | steadiness (sheet, 0..500); headroom (0..300), queue (0..200): facts | sheet and here          |
| price        | cheapest surviving cost / this pool's cost                           | here                    |
| latency      | slack of time to first token against the SLA class                   | sheet                   |
| preference   | sum of the policies' ``prefer``                                      | sheet                   |

The weights come from the SLA class; equal scores order by pool id. Same inputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

import orjson

from policyd.core.cost import TOKENS_PER_PRICE, cost_further, cost_micro_usd, gpus_for, tokens_of
from policyd.core.facts import Facts, PoolFacts
from policyd.core.quantities import MAX_SAFE, PPM, ceil_div
from policyd.core.sheet import RATES_PER_MICRO, Lane, Refused, Row, Sheet
from policyd.core.violations import CORE
from policyd.core.workload import Workload
from policyd.errors import RequestError

HEADROOM_REPLICAS: Final = 4
"""Free room for this many times the workload earns all headroom points."""

APPROVAL_REQUIRED: Final = "approval_required"
_UNKNOWN: Final = PoolFacts()


class Scored(NamedTuple):
    """A pool that survived, with its score in thousandths and what it was made of.

    ``order`` sorts by score, best first, and then by pool id; no two pools of a sheet share it.
    """

    order: int
    row: Row
    score_x1000: int
    cost_micro_usd: int
    price: int
    headroom: int
    queue: int
    gpus: int
    state: PoolFacts
    entry: bytes


class Decision(NamedTuple):
    """Outcome, all surviving pools best first, this moment's refusals (the sheet has the others), and why a deny."""

    outcome: str
    denied_by: str | None
    ranked: tuple[Scored, ...]
    refused: tuple[tuple[Row, Mapping[str, Any]], ...]


_Fitting = tuple[int, Row, int, int, int, int, PoolFacts, bytes]
"""A pool that has room: its place by id, row, fixed part of the score, cost, headroom points, GPUs, state, entry."""


Spilled = Mapping[str, Mapping[str, Any]]
"""Pools whose group an account has no room for, with the violation of each."""


def decide(workload: Workload, sheet: Sheet, facts: Facts, spilled: Spilled | None = None) -> Decision:
    """Rank the sheet's eligible pools for this workload at this moment, as if the ``spilled`` ones were refused."""
    input_tokens, output_tokens = workload.input_tokens, workload.max_output_tokens
    tokens = input_tokens + output_tokens
    by_request, asked_gpus = workload.scope == "request", workload.gpu_count
    known = facts.pools
    fitting: list[_Fitting] = []
    refused: list[tuple[Row, Mapping[str, Any]]] = []
    lanes: Sequence[Lane] = sheet.lanes
    if spilled:
        refused = [(lane[0], spilled[lane[1]]) for lane in lanes if lane[1] in spilled]
        lanes = [lane for lane in lanes if lane[1] not in spilled]
    for lane in lanes:
        row, pool, context, affine, input_rate, output_rate, request_rate, gpus, fixed, place, entry = lane
        state = known.get(pool, _UNKNOWN)
        usable = state.usable_gpus
        if by_request:
            if 0 < gpus < asked_gpus:
                gpus = asked_gpus
        else:
            gpus = gpus_for(row.pricing, workload)
        # Unknown headroom counts as -1 free GPUs, which no pool can do with.
        if tokens > context or usable < gpus:
            refused.append((row, _refusal(row, state, tokens, gpus)))
            continue
        if by_request and affine:
            cost = (input_tokens * input_rate + output_tokens * output_rate + request_rate) // RATES_PER_MICRO
        else:
            cost = _cost_or_beyond(row, workload)
        if state.price_ppm != PPM:
            cost = -(-cost * state.price_ppm // PPM)
        if cost > MAX_SAFE:
            refused.append((row, _cost_refusal()))
            continue
        room = gpus * HEADROOM_REPLICAS
        headroom = 300 if usable >= room else 300 * usable // room
        fitting.append((place, row, fixed, cost, headroom, gpus, state, entry))
    ranked = _rank(fitting, sheet)
    if ranked:
        return Decision("allow", None, ranked, tuple(refused))
    return Decision("deny", "budget" if spilled else denied_by(sheet, refused), ranked, tuple(refused))


def _cost_or_beyond(row: Row, workload: Workload) -> int:
    """The cost, or a number beyond every limit when it cannot be expressed: that refuses this pool and no other."""
    try:
        return cost_micro_usd(row.pricing, workload)
    except RequestError:
        return MAX_SAFE + 1


def _cost_refusal() -> Mapping[str, Any]:
    return _violation(
        "cost_out_of_range",
        f"the workload would cost more than {MAX_SAFE} micro-USD on this pool",
        "beyond",
        MAX_SAFE,
        "ask for less at once, or have the price of the pool checked",
    )


def _rank(fitting: list[_Fitting], sheet: Sheet) -> tuple[Scored, ...]:
    by_availability, by_price, places = sheet.weights["availability"], sheet.weights["price"], len(sheet.lanes)
    cheapest_x1000 = 1000 * min(map(itemgetter(3), fitting), default=0)
    scored = []
    for place, row, fixed, cost, headroom, gpus, state, entry in fitting:
        queue = state.queue_points
        price = cheapest_x1000 // cost if cost else 1000
        score = fixed + by_availability * (headroom + queue) + by_price * price
        # Two and a half times as fast as calling the class, for every pool of every decision.
        each = (place - score * places, row, score, cost, price, headroom, queue, gpus, state, entry)
        scored.append(tuple.__new__(Scored, each))
    # Orders are unique, so the comparison never looks beyond them.
    scored.sort()
    return tuple(scored)


def _refusal(row: Row, state: PoolFacts, tokens: int, gpus: int) -> Mapping[str, Any]:
    """The first exact check that failed, as a violation."""
    if tokens > row.max_context_tokens:
        return _violation(
            "context_exceeded",
            f"input and output together take {tokens} tokens; the pool serves {row.max_context_tokens}",
            tokens,
            row.max_context_tokens,
            "shorten the input, lower max_output_tokens, or choose a pool with a longer context",
        )
    if state.healthy is None or state.available_gpus is None or state.queue_ms is None:
        missing = [name for name in ("available_gpus", "healthy", "queue_ms") if getattr(state, name) is None]
        return _violation(
            "facts_unknown",
            f"nobody reports {', '.join(missing)} of this pool",
            "missing",
            missing,
            "connect a source of facts for this pool, or declare its capacity",
        )
    if not state.healthy:
        return _violation("unhealthy", "the pool does not answer", False, True, "wait, or mend the pool")
    return _violation(
        "no_headroom",
        f"{state.available_gpus} GPUs are free, {gpus} are needed",
        state.available_gpus,
        gpus,
        "wait, ask for less, or add capacity",
    )


def _violation(rule: str, message: str, observed: Any, required: Any, remedy: str) -> Mapping[str, Any]:
    return {
        "policy": CORE,
        "rule": rule,
        "enforcement": "hard",
        "location": f"docs/rules/core.md#{rule}",
        "message": message,
        "observed": observed,
        "required": required,
        "remedy": remedy,
    }


def denied_by(sheet: Sheet, refused: list[tuple[Row, Mapping[str, Any]]]) -> str:
    """``capacity`` when a pool was eligible, ``approval_required`` when nothing but an approval is missing for one,
    ``budget`` when budget alone refused one, else ``eligibility``."""
    if refused:
        return "capacity"
    if awaiting_approval(sheet):
        return APPROVAL_REQUIRED
    for entry in sheet.refused:
        if entry.violations and all(violation["policy"] == "budget" for violation in entry.violations):
            return "budget"
    return "eligibility"


def awaiting_approval(sheet: Sheet) -> tuple[Refused, ...]:
    """The pools that an approval alone would open."""
    return tuple(
        entry
        for entry in sheet.refused
        if entry.row is not None and all(violation["enforcement"] == "approval" for violation in entry.violations)
    )


def ranked_json(ranked: Sequence[Scored], workload: Workload) -> bytes:
    """The answer's ``ranked``, of these pools: the template of each with this moment's values."""
    per, tokens = b'"%b"' % workload.scope.encode(), tokens_of(workload)
    written = []
    for rank, (_, row, score_x1000, cost, price, headroom, queue, gpus, state, entry) in enumerate(ranked, 1):
        further = b""
        if row.pricing.other_basis or state.price_ppm != PPM:
            further = b"," + orjson.dumps(cost_further(row.pricing, workload, state.price_ppm))[1:-1]
        values = (
            rank,
            score_x1000 // 1000,
            row.steadiness + headroom + queue,
            state.available_gpus,
            gpus,
            headroom,
            state.queue_ms,
            queue,
            price,
            cost,
            cost,
            per,
            b"%d" % ceil_div(cost * TOKENS_PER_PRICE, tokens) if tokens else b"null",
            further,
        )
        written.append(entry % values)
    return b"[" + b",".join(written) + b"]"


def obligations_json(ranked: tuple[Scored, ...], workload: Workload) -> list[Mapping[str, Any]]:
    """What an enforcer must do, whichever returned pool it takes: the token cap, and what the policies oblige to.

    An obligation that holds for some of the pools only names them in ``pools``.
    """
    obligations: list[Mapping[str, Any]] = []
    if ranked and workload.scope == "request":
        obligations.append({"name": "max_output_tokens", "value": workload.max_output_tokens})
    of_rows = [row.obligations for _, row, *_ in ranked]
    first = of_rows[0] if of_rows else ()
    if len(first) < 2 and of_rows.count(first) == len(of_rows):
        return [*obligations, *first]
    holders: dict[bytes, list[str]] = {}
    for scored in ranked:
        for obligation in scored.row.obligations:
            key = orjson.dumps(obligation, option=orjson.OPT_SORT_KEYS)
            holders.setdefault(key, []).append(scored.row.pool)
    for key, pools in sorted(holders.items()):
        obligation = orjson.loads(key)
        obligations.append(obligation if len(pools) == len(ranked) else {**obligation, "pools": pools})
    return obligations


def rejected_json(decision: Decision, sheet: Sheet) -> bytes:
    """The answer's ``rejected`` as bytes; those of the sheet itself when this moment refuses nothing more."""
    return orjson.dumps(rejected_fragments(decision, sheet)) if decision.refused else sheet.shown_refused_json


def rejected_fragments(decision: Decision, sheet: Sheet) -> list[orjson.Fragment | dict[str, Any]]:
    """The answer's ``rejected``: what the tenant may see of the sheet's refusals and of this moment's, by pool id."""
    if not decision.refused:
        return [fragment for _, fragment in sheet.shown_refused]
    entries: list[tuple[str, Any]] = list(sheet.shown_refused)
    entries += [(row.pool, {"pool": row.pool, "violations": [violation]}) for row, violation in decision.refused]
    return [entry for _, entry in sorted(entries, key=lambda item: item[0])]
