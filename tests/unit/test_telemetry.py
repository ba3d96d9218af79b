"""Tallies count what they say, and a telemetry that is switched off counts nothing and follows nothing."""

from __future__ import annotations

import pytest

from policyd.telemetry import BY_NAME, METRICS, NO_STAGES, Buckets, Telemetry


def test_a_bound_belongs_to_its_bucket() -> None:
    buckets = Buckets((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 3.0, 3.0):
        buckets.record(value)
    assert buckets.counts == [2, 2, 2]
    assert buckets.total == 10.5


def test_decisions_are_counted_by_outcome() -> None:
    telemetry = Telemetry()
    telemetry.decided("allow", "", "enforce", "acme", 0.003)
    telemetry.decided("deny", "eligibility", "enforce", "acme", 0.1)
    telemetry.decided("allow", "", "enforce", "other", 0.004)
    found = dict(telemetry.read(BY_NAME["policyd.decisions"]))
    assert found == {("allow", "", "enforce"): 2, ("deny", "eligibility", "enforce"): 1}
    series = telemetry.histograms["policyd.decision.duration"].series
    assert {labels: sum(buckets.counts) for labels, buckets in series.items()} == {("allow",): 2, ("deny",): 1}


def test_the_tenant_counts_only_when_asked_for() -> None:
    telemetry = Telemetry(tenant_label=True)
    telemetry.decided("allow", "", "enforce", "acme", 0.003)
    assert telemetry.labels_of(BY_NAME["policyd.decisions"])[-1] == "tenant"
    assert dict(telemetry.read(BY_NAME["policyd.decisions"])) == {("allow", "", "enforce", "acme"): 1}
    assert all(telemetry.labels_of(m) == m.labels for m in METRICS if m.name != "policyd.decisions")


def test_nothing_is_counted_when_switched_off() -> None:
    telemetry = Telemetry(metrics=False)
    telemetry.decided("allow", "", "enforce", "acme", 0.003)
    telemetry.answered(503, "overload")
    telemetry.turned_away("overload")
    telemetry.sheet_made(0.1)
    telemetry.committed(3, 0.1)
    tallies = (telemetry.decisions, telemetry.requests, telemetry.refused, telemetry.problems)
    assert not any(tally.total() for tally in tallies)
    counted = [buckets.counts for h in telemetry.histograms.values() for buckets in h.series.values()]
    assert all(not any(counts) for counts in counted)


def test_without_tracing_every_decision_has_the_same_stages() -> None:
    assert Telemetry().stages("1") is Telemetry().stages("2") is NO_STAGES


def test_only_the_table_can_be_observed() -> None:
    with pytest.raises(KeyError):
        Telemetry().observe("policyd.surprise", list)
    with pytest.raises(ValueError, match="is a histogram"):
        Telemetry().observe("policyd.commit.batch", list)
