"""Entries of the log as events: whose they are, what a person is told, and what is not told."""

from __future__ import annotations

from typing import Any

import orjson

from audit.entries import Picked
from audit.record import Kind
from policyd.services.events import Event, event_of
from policyd.services.webhook_forms import body_of

ID = "01990000-0000-7000-8000-000000000000"


def event(kind: Kind, **body: Any) -> Event | None:
    return event_of(Picked(7, ID, kind, 1_795_341_600_000_000, orjson.dumps({"id": ID, "salt": "00", **body})))


def test_a_proposal_is_told_without_what_is_proposed() -> None:
    told = {"action": "hold.place", "expires": "2026-11-30T00:00:00.000000Z", "document": {"subject": "oidc:4711"}}
    found = event("proposal", **told, scope=["eu-bank", None, None])
    assert found is not None
    assert (found.name, found.tenant, found.told.severity) == ("proposal.opened", "eu-bank", "warning")
    for form in ("json", "alertmanager"):
        assert b"4711" not in body_of(found, form, "policyd/0")
    everywhere = event("proposal", **told)
    assert everywhere is not None
    assert everywhere.tenant is None
    assert "all tenants" in everywhere.told.summary


def test_an_approval_is_told_and_other_entries_are_not() -> None:
    found = event("approval", action="budget.set", scope=["eu-bank", None, None])
    assert found is not None
    assert (found.name, found.tenant) == ("proposal.approved", "eu-bank")
    assert event("budget", event="expired") is None
    assert event("decision") is None


def test_a_threshold_of_the_organisation_belongs_to_no_tenant() -> None:
    account = ["*", "*", "tokens", "day", 0]
    found = event("budget", event="threshold", account=account, percent=95, spent=95, limit=100)
    assert found is not None
    assert (found.tenant, found.told.severity) == (None, "critical")
    assert "95 tokens of 100 tokens" in found.told.summary
