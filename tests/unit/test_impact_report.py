"""Reports of impact add up, and their gate lets pass what it may."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.errors import RequestError
from policyd.services.impact import (
    CHANGES,
    EXAMPLES_PER_KIND_MAX,
    ROWS_MAX,
    Candidate,
    Example,
    ImpactLimits,
    ImpactReport,
    Row,
    impact_gate,
    merged,
    share,
)

CANDIDATE = Candidate("sha256:" + "a" * 64, "sha256:" + "b" * 64, label="main")


def report(part: int = 1, parts: int = 1, **fields: int) -> ImpactReport:
    made = ImpactReport(CANDIDATE, 10, 20, ((part, parts),))
    for name, value in fields.items():
        if name in CHANGES:
            made.changes[name] = value
        else:
            setattr(made, name, value)
    return made


def example(change: str = "allow_to_deny", **fields: str) -> Example:
    known = {"id": "1", "time": "t", "tenant": "acme", "model": "m", "before": "a", "after": "b"}
    return Example(change, **{**known, **fields})


@given(st.lists(st.tuples(st.integers(0, 1_000), st.integers(0, 50), st.integers(0, 9)), min_size=1, max_size=8))
def test_parts_add_up_to_the_whole_in_any_order(counts: list[tuple[int, int, int]]) -> None:
    def parts() -> list[ImpactReport]:
        found = []
        for number, (replayed, flips, lost) in enumerate(counts, 1):
            one = report(number, len(counts), replayed=replayed + flips, allow_to_deny=flips)
            one.not_replayed = {"erased": lost}
            one.row("tenant", f"tenant-{flips % 3}").add(Row(allow_to_deny=flips))
            found.append(one)
        return found

    there, back = merged(parts()), merged(reversed(parts()))
    assert there.to_json() == back.to_json()
    assert there.replayed == sum(replayed + flips for replayed, flips, _ in counts)
    assert there.flips == sum(row.allow_to_deny for row in there.rows["tenant"].values())
    assert there.lost == sum(lost for _, _, lost in counts)


def test_a_report_reads_what_it_wrote() -> None:
    one = report(replayed=9, first_choice=2, hard=1)
    one.row("rule", "residency.location_not_permitted").add(Row(first_choice=2, hard=1))
    one.show(example("first_choice", after="c"))
    read = ImpactReport.from_json(orjson.loads(orjson.dumps(one.to_json())))
    assert read == one


@pytest.mark.parametrize("text", ["[]", "{}", '{"v":1}', '{"v":2}', '"x"', "null", '{"v":1,"candidate":{"a":1}}'])
def test_another_document_is_no_report(text: str) -> None:
    with pytest.raises(RequestError):
        ImpactReport.from_json(orjson.loads(text))


def test_parts_that_do_not_belong_together_are_refused() -> None:
    other = ImpactReport(Candidate("sha256:" + "c" * 64, CANDIDATE.fleet_digest), 10, 20, ((2, 2),))
    moved = ImpactReport(CANDIDATE, 10, 21, ((2, 2),))
    unfinished = report(2, 2)
    unfinished.complete = False
    for wrong, word in (
        (other, "policies"),
        (moved, "window"),
        (report(2, 3), "number of parts"),
        (report(1, 2), "twice"),
        (unfinished, "interrupted"),
    ):
        with pytest.raises(RequestError, match=word):
            merged([report(1, 2), wrong])
    with pytest.raises(RequestError, match="3/3 is missing"):
        merged([report(1, 3), report(2, 3)])


def test_the_gate_counts_flips_in_parts_per_million() -> None:
    limits = ImpactLimits(max_flips_ppm=10_000)
    assert impact_gate(report(replayed=100, allow_to_deny=1), limits).passed
    over = impact_gate(report(replayed=100, allow_to_deny=1, first_choice=1), limits)
    assert not over.passed
    assert "2 % of 100 decisions would change; 1 % may" in over.said
    # One in a million and one is more than none.
    assert not impact_gate(report(replayed=1_000_001, deny_to_allow=1), ImpactLimits(max_flips_ppm=0)).passed


def test_the_gate_asks_for_a_person_whatever_the_share() -> None:
    said = impact_gate(report(replayed=1_000_000, deny_to_allow=1, hard=1), ImpactLimits(1_000_000))
    assert said.passed
    assert said.details["needs_approval"] is True
    assert "needs an approval" in said.said


def test_the_gate_passes_no_report_that_has_not_seen_enough() -> None:
    blind = report(replayed=1)
    blind.not_replayed = {"removed": 9}
    assert not impact_gate(blind, ImpactLimits()).passed
    unfinished = report(replayed=1)
    unfinished.complete = False
    assert not impact_gate(unfinished, ImpactLimits()).passed
    nothing = impact_gate(report(), ImpactLimits())
    assert nothing.passed
    assert "no decision was logged" in nothing.said


def test_tables_and_examples_are_bounded_and_say_so() -> None:
    one = report()
    for number in range(ROWS_MAX + 5):
        one.row("pool", f"pool-{number}").add(Row(first_choice=1))
    for number in range(10):
        one.show(example(id=str(number)))
    one.show(example(after="elsewhere"))
    assert len(one.rows["pool"]) == ROWS_MAX
    assert one.rows_left_out == 5
    assert [each.after for each in one.examples] == ["b"] * EXAMPLES_PER_KIND_MAX + ["elsewhere"]


def test_a_share_is_never_rounded_down_to_nothing() -> None:
    assert [share(ppm) for ppm in (0, 1, 99, 100, 40_000, 1_000_000)] == [
        "0 %",
        "less than 0.01 %",
        "less than 0.01 %",
        "0.01 %",
        "4 %",
        "100 %",
    ]
