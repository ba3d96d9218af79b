"""The words of an explanation: places, seats, amounts and tables."""

from __future__ import annotations

from typing import Any

import pytest

from policyd.services.explanation import explanation_text, seat, table, usd, where


@pytest.mark.parametrize(
    ("locations", "text"),
    [
        ({}, "nobody declared where"),
        ({"processing": ["DE"], "storage": ["DE"]}, "DE"),
        ({"processing": ["FI"], "storage": ["FI"], "support_access": ["FI", "NL"]}, "FI; support_access FI NL"),
        ({"processing": ["US"], "ingress": []}, "US; ingress nowhere"),
    ],
)
def test_every_location_is_told(locations: dict[str, list[str]], text: str) -> None:
    assert where(locations) == text


@pytest.mark.parametrize(
    ("own", "parent", "text"),
    [("DE", "DE", "DE"), ("IE", "US", "IE, parent US"), ("DE", None, "DE"), (None, None, "unknown")],
)
def test_a_parent_elsewhere_is_told(own: str | None, parent: str | None, text: str) -> None:
    assert seat({"name": "x", "seat": own, "parent_seat": parent}) == text


@pytest.mark.parametrize(
    ("micro_usd", "text"),
    [
        (0, "$0.000000"),
        (446, "$0.000446"),
        (999_999, "$0.999999"),
        (1_000_000, "$1.00"),
        (1_000_001, "$1.01"),
        (12_345_678_900, "$12,345.68"),
    ],
)
def test_amounts_lose_nothing_that_matters(micro_usd: int, text: str) -> None:
    assert usd(micro_usd) == text


def test_columns_stand_below_each_other_and_long_cells_stay_whole() -> None:
    lines = table(["a", "b"], [["1", "2"], ["x" * 100, "3"]])
    assert lines[0].index("b") == lines[1].index("2")
    assert "x" * 100 + "  3" in lines[2]


def explained(**changed: Any) -> dict[str, Any]:
    """A denied decision with one refused pool."""
    digest = "sha256:" + "0" * 64
    violation = {
        "policy": "residency",
        "rule": "location_not_permitted",
        "enforcement": "hard",
        "location": "r.rego:1",
        "message": "outside",
        "observed": {"processing": "US"},
        "required": ["DE"],
        "remedy": "choose another",
    }
    declared = {
        "kind": "spot",
        "locations": {"processing": ["US"]},
        "operator": {"name": "o", "seat": "US", "parent_seat": "US"},
        "tenancy": None,
        "evidence_checked": None,
    }
    return {
        "kind": "decision",
        "id": "i",
        "outcome": "deny",
        "denied_by": "eligibility",
        "time": "t",
        "valid_until": "v",
        "principal": "local",
        "request_id": "r",
        "ranked": [],
        "ranked_total": 0,
        "hidden_total": 2,
        "workload": {
            "tenant": "t",
            "project": "p",
            "environment": "prod",
            "model": "m",
            "model_version": "1",
            "scope": "request",
            "sla_class": "c",
            "data": {"classification": "restricted", "categories": [], "sources": [], "residency": ["DE"]},
        },
        "rejected": [{"pool": "us-a", "violations": [violation], "micro_usd": 5, **declared}],
        "forgone": [
            {"pool": "us-a", "kind": "spot", "micro_usd": 5, "dearer_percent": None, "refused_by": ["residency"]}
        ],
        "price_of_policy": {},
        "sheet": digest,
        "facts": {"digest": digest, "observed_at": None},
        "policy": {"commit": None, "digest": digest, "engine": "e"},
        "fleet": {"commit": None, "digest": digest},
        "audit": {"log": "l", "index": 1, "leaf_hash": "0"},
        **changed,
    }


def test_a_deny_says_that_no_pool_may_and_why() -> None:
    text = explanation_text(explained())
    assert "deny (denied by eligibility)" in text
    assert "No pool may run it." in text
    assert "1 pool, and on 2 that are not shown" in text
    assert "residency.location_not_permitted (hard), r.rego:1" in text
    assert "us-a (spot): $0.000005, refused by residency\n" in text


def test_what_a_policy_costs_is_told_with_both_amounts() -> None:
    first = {
        "rank": 1,
        "pool": "de-a",
        "kind": "on_prem",
        "locations": {"processing": ["DE"]},
        "score": 900,
        "operator": {"name": "o", "seat": "DE", "parent_seat": None},
        "tenancy": None,
        "evidence_checked": None,
        "cost": {"micro_usd": 10, "per": "request"},
        "warnings": [{"message": "validation is overdue"}],
    }
    forgone = [{"pool": "us-a", "kind": "spot", "micro_usd": 5, "dearer_percent": 100, "refused_by": ["residency"]}]
    text = explanation_text(
        explained(ranked=[first], ranked_total=4, forgone=forgone, price_of_policy={"residency": 100}, outcome="allow")
    )
    assert "It may run on 4 pools; the first 1:" in text
    assert "de-a warns: validation is overdue" in text
    assert "the first choice is 100 % dearer at $0.000010" in text
    assert "residency alone costs you 100 %" in text
