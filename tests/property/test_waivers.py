"""What waivers may open: only what soft rules alone refuse, only in force, only for the rule as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.cost import Pricing
from policyd.core.decide import Decision, decide, ranked_json, rejected_json
from policyd.core.facts import Facts, PoolFacts
from policyd.core.sheet import Refused, Row, Sheet, seal, sheet_from_content
from policyd.core.waivers import LIFTS, Waiver, lift
from tests.plain_workload import PLAIN

NOW_US = 1_795_341_600_000_000
WEIGHTS = {"control": 300, "availability": 200, "price": 300, "latency": 100, "preference": 100}
PRICING = Pricing("tokens", "token price", "list", "a list", "2026-07-01", 500_000_000, 1_500_000_000)
POOLS = "abcdefgh"
FACTS = Facts({pool: PoolFacts(64, 0, True) for pool in POOLS}, {}, "sha256:facts")
RULES = {"sla.slow": "sha256:slow", "budget.near": "sha256:near", "models.first": "sha256:first"}
SOFT = [("sla", "slow", "soft"), ("budget", "near", "soft"), ("models", "first", "approval")]
HARD = [("residency", "location", "hard"), ("core", "not_entitled", "hard"), ("sla", "fact_missing", "hard")]


def row(pool: str, control: int = 500) -> Row:
    model = {"name": "m", "version": "1", "digest": "sha256:1", "verified_by": "server_name"}
    return Row(pool, "api", "x", "DE", model, PRICING, 8_192, control, {}, 500, 500, {}, 400, {})


def violation(policy: str, rule: str, enforcement: str) -> dict[str, Any]:
    said = {"policy": policy, "rule": rule, "enforcement": enforcement, "location": "x.rego:1", "message": "no"}
    return {**said, "observed": 1, "required": 2, "remedy": ""}


def refused(pool: str, found: list[tuple[str, str, str]], hidden: bool) -> Refused:
    """As ``assemble`` makes it: with a row only when persons may lift everything."""
    liftable = not hidden and all(enforcement != "hard" for _, _, enforcement in found)
    violations = tuple(violation(*each) for each in sorted(found))
    return Refused(pool, "api", violations, hidden, PRICING, {}, row(pool, 900) if liftable else None)


@st.composite
def sheets(draw: st.DrawFn) -> Sheet:
    rows, others = [], []
    for pool in draw(st.lists(st.sampled_from(POOLS), unique=True)):
        found = draw(st.lists(st.sampled_from(SOFT + HARD), unique=True, max_size=3))
        hidden = bool(found) and draw(st.integers(0, 9)) == 0
        if hidden:
            found.append(("core", "not_visible", "hard"))
        if found:
            others.append(refused(pool, found, hidden))
        else:
            rows.append(row(pool, draw(st.integers(0, 1_000))))
    header = {"class": {}, "policy": "sha256:p", "fleet": "sha256:f", "engine": "e", "casbin": "sha256:c"}
    return seal(
        rows=tuple(rows),
        refused=tuple(others),
        weights=WEIGHTS,
        sla={},
        header=header,
        reads_clock=False,
        failed=False,
        rules=RULES,
    )


@st.composite
def waivers(draw: st.DrawFn, **fixed: Any) -> Waiver:
    policy, rule, _ = draw(st.sampled_from(SOFT + HARD))
    kind = draw(st.sampled_from(sorted(LIFTS)))
    every = kind == "break_glass" and draw(st.booleans())
    digest = RULES.get(f"{policy}.{rule}", "sha256:hard")
    values: dict[str, Any] = {
        "id": draw(st.sampled_from(["w1", "w2", "w3", "w4"])),
        "kind": kind,
        "tenant": "t",
        "project": draw(st.sampled_from([None, "p"])),
        "policy": None if every else policy,
        "rule": None if every else rule,
        "rule_digest": None if every else digest,
        "pool": draw(st.none() | st.sampled_from(POOLS)),
        "model": draw(st.sampled_from([None, "m"])),
        "from_us": NOW_US - draw(st.integers(0, 5)),
        "expires_us": NOW_US + draw(st.integers(1, 5)),
    }
    return Waiver(**{**values, **fixed})


def several(**fixed: Any) -> st.SearchStrategy[list[Waiver]]:
    return st.lists(waivers(**fixed), max_size=6, unique_by=lambda waiver: waiver.id)


def written(sheet: Sheet, decision: Decision) -> bytes:
    """What an answer says of the pools."""
    ranked = orjson.Fragment(ranked_json(decision.ranked, PLAIN))
    return orjson.dumps([decision.outcome, decision.denied_by, ranked]) + rejected_json(decision, sheet)


@given(sheets(), several())
def test_no_waiver_opens_what_a_hard_rule_refuses(sheet: Sheet, drawn: list[Waiver]) -> None:
    lifted = lift(sheet, PLAIN, drawn, NOW_US)
    decision = decide(PLAIN, lifted.sheet, FACTS)
    allowed = {scored.row.pool for scored in decision.ranked}
    for entry in sheet.refused:
        if entry.pool not in allowed:
            continue
        assert not entry.hidden
        for each in entry.violations:
            assert each["enforcement"] in ("soft", "approval")
            assert any(waiver.lifts(entry.pool, each, sheet.rules) for waiver in lifted.waivers)
    assert {each.row.pool for each in decide(PLAIN, sheet, FACTS).ranked} <= allowed
    assert {row.pool for row in lifted.sheet.rows} | {entry.pool for entry in lifted.sheet.refused} == {
        row.pool for row in sheet.rows
    } | {entry.pool for entry in sheet.refused}


@given(
    sheets(),
    st.one_of(
        several(expires_us=NOW_US),
        several(from_us=NOW_US + 1),
        several(tenant="another"),
        several(project="another"),
        several(model="another"),
        several(pool="another"),
        several(kind="waiver", rule_digest="sha256:another", policy="sla", rule="slow"),
        several(kind="waiver", rule_digest=None, policy=None, rule=None),
        several(kind="waiver", rule_digest="", policy="sla", rule="slow"),
    ),
)
def test_what_is_not_in_force_here_changes_no_byte(sheet: Sheet, drawn: list[Waiver]) -> None:
    lifted = lift(sheet, PLAIN, drawn, NOW_US)
    assert lifted.sheet is sheet
    assert lifted.waivers == ()
    plain = decide(PLAIN, sheet, FACTS)
    assert written(lifted.sheet, decide(PLAIN, lifted.sheet, FACTS)) == written(sheet, plain)


@given(sheets(), several(), st.randoms())
def test_a_replay_comes_to_the_same_bytes(sheet: Sheet, drawn: list[Waiver], random: Any) -> None:
    """From the content of the sheet and the waivers that it stood on, in whatever order they come."""
    lifted = lift(sheet, PLAIN, drawn, NOW_US)
    recorded = list(lifted.waivers)
    random.shuffle(recorded)
    again = lift(sheet_from_content(sheet.content), PLAIN, recorded, NOW_US)
    assert again.waivers == lifted.waivers
    first, second = decide(PLAIN, lifted.sheet, FACTS), decide(PLAIN, again.sheet, FACTS)
    assert written(lifted.sheet, first) == written(again.sheet, second)
    assert lifted.sheet.content == sheet.content == again.sheet.content


@given(sheets(), several())
def test_a_waived_pool_ranks_as_if_the_rule_had_never_refused_it(sheet: Sheet, drawn: list[Waiver]) -> None:
    lifted = lift(sheet, PLAIN, drawn, NOW_US).sheet
    fresh = seal(
        rows=lifted.rows,
        refused=lifted.refused,
        weights=WEIGHTS,
        sla={},
        header=sheet.header,
        reads_clock=False,
        failed=False,
        rules=RULES,
    )
    assert written(lifted, decide(PLAIN, lifted, FACTS)) == written(fresh, decide(PLAIN, fresh, FACTS))


def one(kind: str, rule: str, **changes: Any) -> Waiver:
    policy = {"slow": "sla", "near": "budget", "first": "models"}[rule]
    base = Waiver("w1", "waiver", "t", None, policy, rule, RULES[f"{policy}.{rule}"], None, None, NOW_US, NOW_US + 9)
    return replace(base, kind=kind, **changes)


def made_of(*entries: Refused) -> Sheet:
    header = {"class": {}, "policy": "sha256:p", "fleet": "sha256:f", "engine": "e", "casbin": "sha256:c"}
    common: dict[str, Any] = {"weights": WEIGHTS, "sla": {}, "header": header, "reads_clock": False, "failed": False}
    return seal(rows=(), refused=entries, rules=RULES, **common)


def test_a_waiver_opens_a_pool_and_the_answer_names_it() -> None:
    sheet = made_of(refused("a", [SOFT[0]], False))
    assert decide(PLAIN, sheet, FACTS).denied_by == "eligibility"
    lifted = lift(sheet, PLAIN, [one("waiver", "slow")], NOW_US)
    (scored,) = decide(PLAIN, lifted.sheet, FACTS).ranked
    warned = orjson.loads(ranked_json([scored], PLAIN))[0]["warnings"]
    assert [(each["rule"], each["lifted_by"]) for each in warned] == [("slow", "w1")]
    assert [entry.pool for entry in lifted.sheet.lifted] == ["a"]


def test_what_is_left_after_a_waiver_is_what_still_refuses() -> None:
    sheet = made_of(refused("a", [SOFT[0], SOFT[2]], False))
    assert decide(PLAIN, sheet, FACTS).denied_by == "eligibility"
    lifted = lift(sheet, PLAIN, [one("waiver", "slow")], NOW_US)
    decision = decide(PLAIN, lifted.sheet, FACTS)
    assert decision.denied_by == "approval_required"
    (shown,) = orjson.loads(rejected_json(decision, lifted.sheet))
    assert [each["rule"] for each in shown["violations"]] == ["first"]
    both = [one("waiver", "slow"), one("approval", "first", id="w2")]
    assert decide(PLAIN, lift(sheet, PLAIN, both, NOW_US).sheet, FACTS).outcome == "allow"


def test_a_waiver_lifts_no_approval_and_an_approval_no_soft_rule() -> None:
    asking, slow = made_of(refused("a", [SOFT[2]], False)), made_of(refused("a", [SOFT[0]], False))
    for kind in ("waiver", "break_glass"):
        assert lift(asking, PLAIN, [one(kind, "first")], NOW_US).sheet is asking
    assert lift(slow, PLAIN, [one("approval", "slow")], NOW_US).sheet is slow


def test_of_two_the_one_that_ends_last_counts() -> None:
    sheet = made_of(refused("a", [SOFT[0]], False))
    long, short = one("waiver", "slow", id="w9", expires_us=NOW_US + 50), one("waiver", "slow")
    assert lift(sheet, PLAIN, [short, long], NOW_US).waivers == (long,)
    assert lift(sheet, PLAIN, [short, long], NOW_US + 9).waivers == (long,)
    assert lift(sheet, PLAIN, [short, long], NOW_US + 50).waivers == ()
