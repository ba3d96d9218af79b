"""Budgets of a fleet: what may be declared, what is refused and where, and the limits that a workload meets."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from policyd.core.fleet import Fleet
from policyd.errors import FleetInvalid
from policyd.ledger.chart import chart_of, limits_of
from policyd.ledger.rules import Limit
from policyd.revisions.fleet_files import parse_fleet

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples" / "fleet"
TENANT = """
tenants:
  - name: {name}
    title: Spark Labs
    seat: US
    sector: startup
    zone: America/New_York
    floors:
      residency: [US]
      foreign_control: "off"
      permitted_seats: [US]
      tenancy: shared
      network: public
      account: provider
      certifications: []
      max_retention_days: 30
      training_allowed: false
    sla_classes: [standard]
    budgets: [{budget}]
    projects: [{{name: chat, environments: [dev], environment_budgets: {{dev: [{{limit: "5", window: day}}]}}}}]
budgets: [{{limit: "100.5", window: month}}]
"""
SLA = next(EXAMPLES.glob("sla.yaml")).read_bytes()


def fleet(budget: str = '{limit: "50", window: hour}', name: str = "spark") -> Fleet:
    files = {PurePosixPath("t.yaml"): TENANT.format(budget=budget, name=name).encode(), PurePosixPath("sla.yaml"): SLA}
    return parse_fleet(files)


def test_a_workload_meets_the_limits_of_every_level() -> None:
    limits = limits_of(chart_of(fleet()), "spark", "chat", "dev")
    assert limits == (
        Limit("*", "micro_usd", "month", 100_500_000, "UTC"),
        Limit("spark", "micro_usd", "hour", 50_000_000, "America/New_York"),
        Limit("spark/chat/dev", "micro_usd", "day", 5_000_000, "America/New_York"),
    )
    assert [limit.path for limit in limits_of(chart_of(fleet()), "spark", "chat", "prod")] == ["*", "spark"]


@pytest.mark.parametrize(
    ("budget", "amount", "unit"),
    [
        ('{limit: "2.5", unit: gpu_hours, window: day}', 9_000_000, "gpu_ms"),
        ("{limit: 3000000000, unit: tokens, window: week}", 3_000_000_000, "tokens"),
        ("{limit: 4, unit: in_flight}", 4, "in_flight"),
    ],
)
def test_units_are_those_of_the_ledger(budget: str, amount: int, unit: str) -> None:
    found = chart_of(fleet(budget))["spark"][0]
    assert (found.amount, found.unit) == (amount, unit)


@pytest.mark.parametrize(
    ("budget", "why"),
    [
        ('{limit: "5", window: fortnight}', "window"),
        ('{limit: "-5", window: day}', "limit"),
        ('{limit: "5"}', "needs a window"),
        ('{limit: "5", unit: gpus, window: day}', "has no window"),
        ('{limit: "5", window: day, pools: spot}', "only gpus and in_flight"),
        ('{limit: "5", unit: gpus, pools: nowhere}', "no pool is in the group 'nowhere'"),
        ('{limit: "0.0000001", window: day}', "no whole number"),
        ('{limit: "9007199254740991", window: day}', "beyond"),
        ('{limit: "5", window: day, zone: Europe/Atlantis}', "unknown time zone"),
        ('{limit: "5", window: day, thresholds: [80, 50]}', "thresholds rise"),
        ('{limit: "5", window: day, thresholds: [101]}', "thresholds"),
        ('{limit: "5", window: day}, {limit: "6", window: day}', "two limits"),
    ],
)
def test_what_the_ledger_could_not_keep_is_a_finding(budget: str, why: str) -> None:
    with pytest.raises(FleetInvalid) as refused:
        fleet(budget)
    assert any(why in str(finding) and finding.where.startswith("t.yaml") for finding in refused.value.findings)


def test_a_name_that_would_make_a_path_ambiguous_is_a_finding() -> None:
    with pytest.raises(FleetInvalid) as refused:
        fleet(name="spark/chat")
    assert "have no '/'" in str(refused.value.findings[0])


def test_the_example_fleet_has_limits_at_every_level() -> None:
    files = {PurePosixPath(path.name): path.read_bytes() for path in EXAMPLES.glob("*.yaml")}
    limits = limits_of(chart_of(parse_fleet(files)), "eu-bank", "support-chat", "prod")
    assert [limit.path for limit in limits] == ["*", "eu-bank", "eu-bank/support-chat", "eu-bank/support-chat/prod"]
