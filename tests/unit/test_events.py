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


WAIVER = {
    "kind": "waiver",
    "rule": "sla.stream_too_slow",
    "pool": "onprem-fra-a100",
    "reason": "change 4711",
    "expires_at": "2026-12-01T12:00:00.000000Z",
}
ASKED = {"action": "waiver", "expires": "2026-11-30T00:00:00.000000Z", "scope": ["eu-bank", None, None]}


def test_a_waiver_is_told_with_its_reason_and_the_way_to_approve_it() -> None:
    found = event("proposal", **ASKED, document=WAIVER)
    assert found is not None
    assert (found.name, found.tenant, found.told.severity) == ("waiver.requested", "eu-bank", "warning")
    assert "waiver of sla.stream_too_slow for eu-bank, pool onprem-fra-a100" in found.told.summary
    assert found.document["document"] == WAIVER
    issue = orjson.loads(body_of(found, "jira", "policyd/0"))["fields"]
    record = orjson.loads(body_of(found, "servicenow", "policyd/0"))
    for text in (issue["description"], record["description"]):
        assert f"approve: /v1/waivers/{ID}/approval" in text
        assert "change 4711" in text
    assert (record["correlation_id"], record["urgency"]) == (ID, "2")
    assert issue["labels"] == ["policyd", "waiver-requested", "eu-bank"]
    assert len(issue["summary"]) <= 160


def test_broken_glass_is_critical_and_a_granted_waiver_is_told() -> None:
    broken = {name: value for name, value in WAIVER.items() if name != "rule"} | {"kind": "break_glass"}
    scope = ["eu-bank", None, None]
    found = event("waiver", event="break_glass", waiver=ID, scope=scope, document=broken)
    assert found is not None
    assert (found.name, found.told.severity) == ("waiver.break_glass", "critical")
    assert "every soft rule" in found.told.summary
    assert orjson.loads(body_of(found, "servicenow", "policyd/0"))["urgency"] == "1"
    granted = event("waiver", event="granted", waiver=ID, scope=scope, document=WAIVER)
    assert granted is not None
    assert (granted.name, granted.told.severity) == ("waiver.granted", "info")


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
