"""Figures of several processes become those of one server, and a counter never goes back."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from policyd.errors import AuditError
from policyd.services.figures import ServerFigures, Shown, figures_from_json, figures_json, figures_of, joined
from policyd.telemetry import BY_NAME, METRICS, Telemetry


def counted(decisions: int, *, facts_age_s: float, healthy: int) -> Telemetry:
    telemetry = Telemetry()
    for _ in range(decisions):
        telemetry.decided("allow", "", "enforce", "acme", 0.003)
    telemetry.observe("policyd.facts.age", lambda: [((), facts_age_s)])
    telemetry.observe("policyd.log.healthy", lambda: [((), healthy)])
    telemetry.observe("policyd.requests.in_flight", lambda: [((), decisions)])
    telemetry.observe("policyd.log.entries", lambda: [((), 100 + decisions)])
    return telemetry


def value(figures: Any, name: str, *labels: str) -> float:
    (found,) = figures[name][labels]
    return float(found)


def test_figures_come_over_the_link_as_they_left() -> None:
    figures = figures_of(counted(3, facts_age_s=0.5, healthy=1))
    assert figures_from_json(orjson.loads(orjson.dumps(figures_json(figures)))) == figures


def test_each_metric_is_joined_by_its_rule() -> None:
    told = [figures_of(counted(3, facts_age_s=0.5, healthy=1)), figures_of(counted(4, facts_age_s=9, healthy=0))]
    whole = joined(told)
    assert value(whole, "policyd.decisions", "allow", "", "enforce") == 7
    assert value(whole, "policyd.requests.in_flight") == 7
    assert value(whole, "policyd.facts.age") == 9
    assert value(whole, "policyd.log.healthy") == 0
    assert value(whole, "policyd.log.entries") == 104, "all of them write one log"
    *counts, total = whole["policyd.decision.duration"]["allow",]
    assert (sum(counts), round(total, 6)) == (7, 0.021)
    assert all(metric.across in ("sum", "max", "min") for metric in METRICS)


def test_what_a_process_counted_stays_when_it_ends() -> None:
    server = ServerFigures(counted(0, facts_age_s=0, healthy=1))
    server.told(0, figures_of(counted(3, facts_age_s=0, healthy=1)))
    server.told(1, figures_of(counted(4, facts_age_s=0, healthy=0)))
    server.ended(1)
    server.ended(1)
    whole = server.whole()
    assert value(whole, "policyd.decisions", "allow", "", "enforce") == 7
    assert value(whole, "policyd.requests.in_flight") == 3, "what it held is gone with it"
    assert value(whole, "policyd.log.healthy") == 1
    server.told(1, figures_of(counted(1, facts_age_s=0, healthy=1)))
    assert value(server.whole(), "policyd.decisions", "allow", "", "enforce") == 8


def test_they_are_shown_as_if_they_were_of_one_process() -> None:
    shown = Shown(Telemetry(tenant_label=True))
    shown.show(figures_of(counted(3, facts_age_s=0.5, healthy=1)))
    assert dict(shown.telemetry.read(BY_NAME["policyd.decisions"])) == {("allow", "", "enforce"): 3}
    assert figures_of(shown.telemetry)["policyd.decision.duration"]["allow",][-1] == pytest.approx(0.009)
    shown.show({})
    assert list(shown.telemetry.read(BY_NAME["policyd.decisions"])) == []


@pytest.mark.parametrize(
    "told",
    [
        [],
        None,
        {"policyd.surprise": []},
        {"policyd.decisions": [[["allow", "", "enforce"], [1, 2]]]},
        {"policyd.decisions": [[["allow", 1, "enforce"], [1]]]},
        {"policyd.decisions": [[["allow", "", "enforce"], ["many"]]]},
        {"policyd.decisions": [1]},
        {"policyd.commit.batch": [[[], [1]]]},
    ],
)
def test_what_nobody_of_ours_says_ends_the_link(told: Any) -> None:
    with pytest.raises(AuditError):
        figures_from_json(told)
