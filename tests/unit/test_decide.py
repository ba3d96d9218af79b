"""Deciding on a sheet: exact fits, the order and its components, and why a deny is a deny."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.cost import Pricing, cost_micro_usd
from policyd.core.decide import decide, obligations_json, ranked_json, rejected_fragments
from policyd.core.facts import Facts, PoolFacts
from policyd.core.sheet import Refused, Row, Sheet, seal, sheet_from_content
from policyd.core.workload import Workload
from tests.plain_workload import PLAIN

WEIGHTS = {"control": 300, "availability": 200, "price": 300, "latency": 100, "preference": 100}
GPU = Pricing(
    form="gpu",
    basis="GPU-hours",
    status="list",
    source="a price list",
    checked="2026-07-01",
    input_nano=200_000_000,
    output_nano=800_000_000,
    hour_nano=4_000_000_000,
    gpus=2,
    prefill_tokens_per_s=10_000,
    decode_tokens_per_s=2_500,
)
TOKENS = Pricing("tokens", "token price", "list", "a price list", "2026-07-01", 500_000_000, 1_500_000_000)
FREE = PoolFacts(available_gpus=64, queue_ms=0, healthy=True)


def row(pool: str, **changes: Any) -> Row:
    base = Row(
        pool=pool,
        kind="on_demand",
        provider="x",
        country="DE",
        model={"name": "m", "version": "1", "digest": "sha256:1", "verified_by": "server_name"},
        pricing=GPU,
        max_context_tokens=8_192,
        control=500,
        control_inputs={},
        preference=500,
        latency=500,
        latency_inputs={},
        steadiness=400,
        steadiness_inputs={},
    )
    return replace(base, **changes)


def sheet(*rows: Row, refused: tuple[Refused, ...] = ()) -> Sheet:
    header = {"class": {}, "policy": "sha256:p", "fleet": "sha256:f", "engine": "e", "casbin": "sha256:c"}
    return seal(rows=rows, refused=refused, weights=WEIGHTS, sla={}, header=header, reads_clock=False, failed=False)


def facts(**pools: PoolFacts) -> Facts:
    return Facts({name.replace("_", "-"): state for name, state in pools.items()}, {}, "sha256:facts")


def order(made: Sheet, state: Facts, workload: Workload = PLAIN) -> list[str]:
    return [scored.row.pool for scored in decide(workload, made, state).ranked]


def test_equal_scores_order_by_pool_id() -> None:
    assert order(sheet(row("b"), row("a"), row("c")), facts(a=FREE, b=FREE, c=FREE)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "better",
    [
        {"control": 900},
        {"latency": 900},
        {"preference": 900},
        {"steadiness": 500},
        {"pricing": replace(GPU, input_nano=1, output_nano=1)},
    ],
)
def test_each_component_counts(better: dict[str, Any]) -> None:
    assert order(sheet(row("a"), row("z", **better)), facts(a=FREE, z=FREE)) == ["z", "a"]


@pytest.mark.parametrize(
    "better", [PoolFacts(64, 0, True), PoolFacts(8, 100, True), PoolFacts(4, 1_000, True, price_ppm=500_000)]
)
def test_facts_count(better: PoolFacts) -> None:
    worse = PoolFacts(2, 4_000, True)
    assert order(sheet(row("a"), row("z")), facts(a=worse, z=better)) == ["z", "a"]


@pytest.mark.parametrize(
    ("state", "rule"),
    [
        (PoolFacts(), "facts_unknown"),
        (PoolFacts(None, 0, True), "facts_unknown"),
        (PoolFacts(8, None, True), "facts_unknown"),
        (PoolFacts(8, 0, None), "facts_unknown"),
        (PoolFacts(8, 0, False), "unhealthy"),
        (PoolFacts(1, 0, True), "no_headroom"),
        (PoolFacts(0, 0, True), "no_headroom"),
    ],
)
def test_what_is_not_known_to_be_free_is_refused(state: PoolFacts, rule: str) -> None:
    decision = decide(PLAIN, sheet(row("a")), facts(a=state))
    assert (decision.outcome, decision.denied_by) == ("deny", "capacity")
    assert [violation["rule"] for _, violation in decision.refused] == [rule]


def test_a_pool_without_any_facts_is_refused() -> None:
    assert decide(PLAIN, sheet(row("a")), facts()).refused[0][1]["rule"] == "facts_unknown"


def test_a_hidden_gpu_count_still_needs_known_facts() -> None:
    made = sheet(row("a", pricing=TOKENS))
    assert order(made, facts(a=PoolFacts(0, 0, True))) == ["a"]
    assert order(made, facts(a=PoolFacts(None, 0, True))) == []


def test_the_context_is_checked_exactly() -> None:
    made, state = sheet(row("a", max_context_tokens=1_500)), facts(a=FREE)
    assert order(made, state) == ["a"]
    one_more = PLAIN._replace(input_tokens=1_001)
    assert decide(one_more, made, state).refused[0][1]["rule"] == "context_exceeded"


def test_asked_gpus_need_room() -> None:
    made = sheet(row("a"))
    assert order(made, facts(a=PoolFacts(4, 0, True)), PLAIN._replace(gpu_count=8)) == []
    assert order(made, facts(a=PoolFacts(8, 0, True)), PLAIN._replace(gpu_count=8)) == ["a"]


def test_a_deployment_needs_room_for_all_its_replicas() -> None:
    busy = PLAIN._replace(scope="deployment", requests_per_hour=100_000)
    made = sheet(row("a"))
    assert order(made, facts(a=PoolFacts(2, 0, True)), busy) == []
    assert order(made, facts(a=PoolFacts(10_000, 0, True)), busy) == ["a"]


def refusal(pool: str, policy: str, *, hidden: bool = False) -> Refused:
    violation = {
        "policy": policy,
        "rule": "r",
        "enforcement": "hard",
        "location": "x.rego:1",
        "message": "no",
        "observed": 1,
        "required": 2,
        "remedy": "",
    }
    return Refused(pool, "on_demand", (violation,), hidden)


def test_denied_by() -> None:
    assert decide(PLAIN, sheet(refused=(refusal("a", "residency"),)), facts()).denied_by == "eligibility"
    both = (refusal("a", "residency"), refusal("b", "budget"))
    assert decide(PLAIN, sheet(refused=both), facts()).denied_by == "budget"
    assert decide(PLAIN, sheet(row("c"), refused=both), facts()).denied_by == "capacity"
    assert decide(PLAIN, sheet(), facts()).denied_by == "eligibility"


def test_hidden_pools_are_counted_and_not_named() -> None:
    made = sheet(row("b"), refused=(refusal("a", "x"), refusal("secret", "core", hidden=True)))
    decision = decide(PLAIN, made, facts(b=PoolFacts(0, 0, True)))
    shown = orjson.loads(orjson.dumps(rejected_fragments(decision, made)))
    assert [entry["pool"] for entry in shown] == ["a", "b"]
    assert made.hidden_total == 1
    assert b"secret" in made.content


def test_obligations_of_some_pools_name_them() -> None:
    redact = {"name": "redact", "value": True}
    made = sheet(row("a", obligations=(redact,)), row("b"))
    both = obligations_json(decide(PLAIN, made, facts(a=FREE, b=FREE)).ranked, PLAIN)
    assert both == [{"name": "max_output_tokens", "value": 500}, {**redact, "pools": ["a"]}]
    alone = obligations_json(decide(PLAIN, made, facts(a=FREE)).ranked, PLAIN)
    assert alone[1] == redact


def test_the_components_add_up_to_the_score() -> None:
    made, state = sheet(row("a"), row("b", pricing=TOKENS)), facts(a=FREE, b=FREE)
    for told in orjson.loads(ranked_json(decide(PLAIN, made, state).ranked, PLAIN)):
        assert told["score"] == sum(c["value"] * c["weight"] for c in told["components"]) // 1000
        assert all(0 <= component["value"] <= 1000 for component in told["components"])


def test_what_a_million_tokens_cost_is_rounded_up_and_nothing_without_tokens() -> None:
    made = sheet(row("a", pricing=TOKENS))

    def cost(workload: Workload, state: Facts) -> dict[str, Any]:
        (told,) = orjson.loads(ranked_json(decide(workload, made, state).ranked, workload))
        found: dict[str, Any] = told["cost"]
        return found

    # 1,000 x 0.5 + 500 x 1.5 = 1,250 micro-USD for 1,500 tokens: 833,333.3 for a million.
    assert cost(PLAIN, facts(a=FREE)) == {
        "micro_usd": 1_250,
        "per": "request",
        "micro_usd_per_million_tokens": 833_334,
        "basis": "token price",
        "price_status": "list",
        "price_source": "a price list",
        "price_checked": "2026-07-01",
    }
    assert cost(PLAIN._replace(scope="deployment", requests_per_hour=60), facts(a=FREE))["per"] == "deployment"
    doubled = cost(PLAIN, facts(a=replace(FREE, price_ppm=2_000_000)))
    assert (doubled["micro_usd"], doubled["price_ppm_of_declared"]) == (2_500, 2_000_000)
    nothing = PLAIN._replace(input_tokens=0, max_output_tokens=0)
    assert cost(nothing, facts(a=FREE))["micro_usd_per_million_tokens"] is None


def test_a_percent_sign_of_a_fleet_is_a_percent_sign() -> None:
    warned = ({"rule": "100%d", "policy": "%b", "observed": "%"},)
    made = sheet(
        row("a", warnings=warned, model={"name": "50%s", "version": "%%", "digest": None, "verified_by": None})
    )
    (told,) = orjson.loads(ranked_json(decide(PLAIN, made, facts(a=FREE)).ranked, PLAIN))
    assert told["warnings"] == list(warned)
    assert (told["model"]["name"], told["model"]["version"]) == ("50%s", "%%")


rows = st.lists(
    st.builds(
        row,
        pool=st.sampled_from("abcdefghij"),
        pricing=st.sampled_from([GPU, TOKENS, replace(GPU, input_nano=0, output_nano=0)]),
        control=st.integers(0, 1000),
        latency=st.integers(0, 1000),
        preference=st.integers(0, 1000),
        steadiness=st.integers(0, 500),
        max_context_tokens=st.sampled_from([1_000, 8_192]),
    ),
    max_size=8,
    unique_by=lambda made: made.pool,
)
states = st.dictionaries(
    st.sampled_from("abcdefghij"),
    st.builds(
        PoolFacts,
        st.none() | st.integers(0, 100),
        st.none() | st.integers(0, 10_000),
        st.none() | st.booleans(),
        st.integers(1, 3_000_000),
    ),
)


@given(rows, states, st.integers(0, 4_000), st.integers(0, 4_000))
def test_every_pool_is_ranked_or_refused_once(
    drawn: list[Row], pools: dict[str, PoolFacts], input_tokens: int, output_tokens: int
) -> None:
    workload = PLAIN._replace(input_tokens=input_tokens, max_output_tokens=output_tokens)
    made, state = sheet(*drawn), Facts(pools, {}, "sha256:f")
    decision = decide(workload, made, state)
    ranked, refused = [s.row.pool for s in decision.ranked], [r.pool for r, _ in decision.refused]
    assert sorted(ranked + refused) == sorted(r.pool for r in drawn)
    assert (decision.outcome == "allow") == bool(ranked)
    scores = [s.score_x1000 for s in decision.ranked]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1_000_000 for score in scores)
    for scored in decision.ranked:
        known = pools[scored.row.pool]
        plain = cost_micro_usd(scored.row.pricing, workload)
        assert scored.cost_micro_usd == -(-plain * known.price_ppm // 1_000_000)
    again = decide(workload, sheet_from_content(made.content), state)
    assert [(s.row.pool, s.score_x1000) for s in again.ranked] == [(s.row.pool, s.score_x1000) for s in decision.ranked]


@given(rows, states, st.data())
def test_a_lost_fact_lets_no_pool_in(drawn: list[Row], pools: dict[str, PoolFacts], data: st.DataObject) -> None:
    made = sheet(*drawn)
    before = set(order(made, Facts(pools, {}, "sha256:f")))
    if pools:
        name = data.draw(st.sampled_from(sorted(pools)))
        state = pools[name]
        lost = data.draw(st.sampled_from(["available_gpus", "queue_ms", "healthy"]))
        kept = {n: getattr(state, n) for n in ("available_gpus", "queue_ms", "healthy") if n != lost}
        pools = {**pools, name: PoolFacts(**kept, price_ppm=state.price_ppm)}
    assert set(order(made, Facts(pools, {}, "sha256:f"))) <= before


def test_a_cost_beyond_every_number_refuses_that_pool_alone() -> None:
    absurd = replace(GPU, input_nano=10**18, output_nano=10**18)
    made = sheet(row("absurd", pricing=absurd, max_context_tokens=10**8), row("sane", max_context_tokens=10**8))
    dear = PLAIN._replace(input_tokens=10**7)
    decision = decide(dear, made, facts(absurd=FREE, sane=FREE))
    assert [(r.pool, violation["rule"]) for r, violation in decision.refused] == [("absurd", "cost_out_of_range")]
    assert [scored.row.pool for scored in decision.ranked] == ["sane"]
    risen = facts(absurd=PoolFacts(64, 0, True, price_ppm=10**12), sane=FREE)
    assert order(made, risen) == ["sane"]
    deployment = PLAIN._replace(scope="deployment", duration_hours=87_840, requests_per_hour=10**9, input_tokens=10**7)
    endless = facts(absurd=PoolFacts(10**12, 0, True), sane=PoolFacts(10**12, 0, True))
    assert order(made, endless, deployment) == []


@given(
    rows=st.lists(st.tuples(st.integers(0, 900), st.integers(1, 10**9), st.integers(0, 3)), min_size=1, max_size=8),
    full=st.sets(st.integers(0, 3)),
)
def test_a_full_group_leaves_the_ranking_that_its_pools_refused_would(
    rows: list[tuple[int, int, int]], full: set[int]
) -> None:
    """Scores and order are those of a fleet in which these pools do not answer: the cheapest of the rest counts."""
    group_of = {f"p{nth}": group for nth, (_, _, group) in enumerate(rows)}
    made = sheet(
        *(
            row(f"p{nth}", control=control, pricing=replace(GPU, input_nano=nano))
            for nth, (control, nano, _) in enumerate(rows)
        )
    )
    spilled = {pool: {"policy": "budget", "rule": "quota_exhausted"} for pool, at in group_of.items() if at in full}
    found = decide(PLAIN, made, facts(**dict.fromkeys(group_of, FREE)), spilled)
    states = {pool: replace(FREE, healthy=pool not in spilled) for pool in group_of}
    refused = decide(PLAIN, made, facts(**states))
    assert (found.outcome, found.ranked) == (refused.outcome, refused.ranked)
    assert {each.pool for each, _ in found.refused} == {each.pool for each, _ in refused.refused} == spilled.keys()
    assert found.denied_by == (None if found.ranked else "budget")
    assert {entry["pool"] for entry in orjson.loads(orjson.dumps(rejected_fragments(found, made)))} == spilled.keys()
