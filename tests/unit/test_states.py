"""The states of revisions: whatever is asked in whatever order, one is live at most, and none without its gates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.errors import RevisionConflict
from policyd.revisions.states import ON_ITS_WAY, VERBS, Move, Plan, Revision, check_together, moved

STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(VERBS), st.integers(0, 1)), max_size=60)
GATE = {"gate": "check", "passed": True, "said": "nothing found"}


def stood(*verbs: str, time_us: int = 1) -> Revision:
    found: Revision | None = None
    for nth, verb in enumerate(verbs):
        move = Move("policy", "a", verb, nth, commit="c" if nth == 0 else None, blob="b" if nth == 0 else "")  # type: ignore[arg-type]  # a word of the test
        found = moved(found, move, time_us + nth)
    assert found is not None
    return found


@given(STEPS)
def test_no_order_of_steps_has_two_live_or_one_live_that_nobody_judged(steps: list[tuple[str, str, int]]) -> None:
    """A random walk over three revisions, steps that come too late included."""
    standing: dict[str, Revision] = {}
    for time_us, (digest, verb, late) in enumerate(steps, 1):
        found = standing.get(digest)
        version = (0 if found is None else found.version) - late
        try:
            after = moved(found, Move("policy", digest, verb, version), time_us)  # type: ignore[arg-type]  # as above
            check_together({**standing, digest: after}.values())
        except RevisionConflict:
            continue
        assert not late
        standing[digest] = after
        assert sum(each.state == "live" for each in standing.values()) <= 1
        assert sum(each.state in ON_ITS_WAY for each in standing.values()) <= 1
        if found is None:
            assert after.state == "candidate", "nothing begins anywhere else"
        if after.state == "live" and found is not None and found.state in ("refused", "retired"):
            assert found.served_us > 0, "only what was live comes back without its gates"


def test_what_was_refused_by_a_gate_is_no_way_back() -> None:
    refused = stood("seen", "refuse")
    with pytest.raises(RevisionConflict, match="never live"):
        moved(refused, Move("policy", "a", "rollback", refused.version), 9)
    with pytest.raises(RevisionConflict, match="is refused: activate starts from"):
        moved(refused, Move("policy", "a", "activate", refused.version), 9)


def test_what_a_gate_has_not_passed_goes_nowhere() -> None:
    found = stood("seen")
    failed = {"gate": "tests", "passed": False, "said": "3 tests failed"}
    found = moved(found, Move("policy", "a", "judged", found.version, gates=(GATE, failed)), 5)
    for verb in ("activate", "shadow", "canary"):
        with pytest.raises(RevisionConflict, match="has not passed its gates"):
            moved(found, Move("policy", "a", verb, found.version), 6)  # type: ignore[arg-type]  # a word of the test


def test_a_step_that_was_read_before_another_comes_too_late() -> None:
    with pytest.raises(RevisionConflict, match="is candidate by now"):
        moved(stood("seen"), Move("policy", "a", "seen", 0), 9)


def test_a_gate_that_speaks_again_replaces_what_it_said() -> None:
    found = stood("seen")
    for said in ("one", "two"):
        found = moved(found, Move("policy", "a", "judged", found.version, gates=({**GATE, "said": said},)), 5)
    assert [gate["said"] for gate in found.gates] == ["two"]
    assert found.since_us == 1
    assert (found.commit, found.blob) == ("c", "b")


def test_the_plan_goes_step_by_step_and_waits_in_each() -> None:
    plan = Plan(True, ("shadow", "canary"), {"shadow": 10, "canary": 20})
    assert plan.begins(asked=False) == "shadow"
    shadow = stood("seen", "shadow")
    assert plan.goes_on(shadow, shadow.since_us + 9) is None
    assert plan.goes_on(shadow, shadow.since_us + 10) == "canary"
    canary = stood("seen", "shadow", "canary")
    assert plan.goes_on(canary, canary.since_us + 20) == "activate"
    assert plan.goes_on(stood("seen", "shadow", "pause"), 10**9) is None
    assert plan.goes_on(stood("seen", "shadow", "pause", "resume"), 10**9) == "canary"
    assert Plan(False).begins(asked=False) == "wait"
    assert Plan(False).begins(asked=True) == "activate"
    assert plan.goes_on(stood("seen", "activate"), 10**9) is None
