"""Waivers by a real server, on both stores: who may request and approve, what is then lifted, for how long, and what
the log says of it."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from audit.stores import SqliteStore
from policyd.core.snapshot import Snapshot
from policyd.core.verdict import Enforcement
from policyd.services.clock import from_rfc3339, now_us, rfc3339
from policyd.services.waivers_in_force import WaiversInForce
from tests.integration.conftest import ApiServer, serving
from tests.integration.test_api_bad_input import check_problem
from tests.integration.test_api_identity import bearer, granted, tokens_file

HOUR_US = 3_600_000_000
CLEARED = "DELETE FROM proposal; DELETE FROM waiver"
NOBODY = "01990000-0000-7000-8000-000000000000"
POOL = "onprem-fra-a100"
RULE = "sla.stream_too_slow"
WORKLOAD = {
    "tenant": "eu-bank",
    "project": "support-chat",
    "environment": "prod",
    "model": "llama-3.1-70b-instruct",
}
PERSONS = (
    {"name": "pam", "grants": [granted("platform"), granted("developer", tenant="eu-bank")]},
    {"name": "gus", "grants": [granted("governance")]},
    {"name": "both", "grants": [granted("governance"), granted("platform")]},
    {"name": "lab", "grants": [granted("governance", tenant="nordic-lab")]},
    {"name": "dev", "grants": [granted("developer", tenant="eu-bank")]},
    {"name": "olu", "grants": [granted("on_call", tenant="eu-bank")]},
    {"name": "eye", "grants": [granted("auditor")]},
)


class Desk:
    """A server with persons, and waivers of one pool and rule unless a test says otherwise."""

    def __init__(self, server: ApiServer, tokens: dict[str, str]) -> None:
        self.server = server
        self.tokens = tokens

    def post(self, name: str, path: str, body: Any = None) -> Any:
        return self.server.client.post(path, json=body or {}, headers=bearer(self.tokens[name]))

    def get(self, name: str, path: str) -> Any:
        return self.server.client.get(path, headers=bearer(self.tokens[name]))

    def ask(self, name: str = "pam", *, in_us: int = HOUR_US, **changes: Any) -> Any:
        asked = {"tenant": "eu-bank", "rule": RULE, "pool": POOL, "reason": "change 4711", **changes}
        asked.setdefault("expires_at", rfc3339(now_us() + in_us))
        return self.post(name, "/v1/waivers", {key: value for key, value in asked.items() if value is not None})

    def approve(self, name: str, waiver: str, **body: Any) -> Any:
        return self.post(name, f"/v1/waivers/{waiver}/approval", body)

    def granted(self, **changes: Any) -> str:
        asked = self.ask(**changes)
        assert asked.status_code == 200, asked.text
        done = self.approve("gus", asked.json()["id"])
        assert done.status_code == 200, done.text
        return str(asked.json()["id"])

    def decide(self, **changes: Any) -> dict[str, Any]:
        answer = self.post("dev", "/v1/decisions", {"workload": {**WORKLOAD, **changes}, "options": {"limit": 100}})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def listed(self, name: str = "eye") -> dict[str, dict[str, Any]]:
        return {item["id"]: item for item in self.get(name, "/v1/waivers").json()["items"]}

    @property
    def in_force(self) -> WaiversInForce:
        return self.server.parts.waivers.in_force


@pytest.fixture(scope="module", params=["file", "postgresql"])
def building(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Generator[Desk, None, None]:
    """One server a store for all tests of this module."""
    place = tmp_path_factory.mktemp("waivers")
    tokens = tokens_file(place / "tokens.json", *PERSONS)
    flags: dict[str, Any] = {
        "auth": {"tokens_file": str(place / "tokens.json")},
        "waivers": {"break_glass_max_ms": 900_000},
    }
    if request.param == "postgresql":
        (place / "address").write_text(request.getfixturevalue("postgresql").make_database())
        flags["audit"] = {"database_url_file": str(place / "address")}
    with serving({"data_dir": place / "data", **flags}) as server:
        yield Desk(server, tokens)


@pytest.fixture
def desk(building: Desk) -> Generator[Desk, None, None]:
    """The server as if nothing had been waived before."""
    yield building
    directory = building.server.parts.directory
    if isinstance(directory.store, SqliteStore):
        with closing(sqlite3.connect(directory.store.path)) as raw, raw:
            raw.executescript(CLEARED)
    else:
        with psycopg.connect((directory.path.parent / "address").read_text()) as raw_connection:
            raw_connection.execute(CLEARED)
    building.server.run(building.in_force.refresh())


def pools(answer: dict[str, Any]) -> list[str]:
    return [entry["pool"] for entry in answer["ranked"]]


def told(answer: dict[str, Any]) -> dict[str, Any]:
    """What a record and an answer say alike."""
    rejected = [{name: entry[name] for name in ("pool", "violations")} for entry in answer["rejected"]]
    ranked = [(entry["pool"], entry["score"], entry["warnings"]) for entry in answer["ranked"]]
    names = ("outcome", "valid_until", "waivers", "sheet", "obligations", "audit", "hidden_total")
    return {"rejected": rejected, "ranked": ranked, **{name: answer.get(name) for name in names}}


def test_a_waiver_of_two_persons_opens_a_pool_and_is_named_everywhere(desk: Desk) -> None:
    before = desk.decide()
    assert POOL not in pools(before)
    assert "waivers" not in before
    asked = desk.ask(project="support-chat").json()
    assert (asked["action"], asked["document"]["rule"], asked["document"]["kind"]) == ("waiver", RULE, "waiver")
    assert desk.listed()[asked["id"]]["state"] == "waiting"
    assert desk.decide()["ranked_total"] == before["ranked_total"]
    done = desk.approve("gus", asked["id"], digest=asked["digest"]).json()
    assert done["result"]["waiver"] == asked["id"]
    answer = desk.decide()
    assert set(pools(answer)) == {*pools(before), POOL}
    assert answer["sheet"] == before["sheet"]
    (stood_on,) = answer["waivers"]
    expected = {"id": asked["id"], "kind": "waiver", "rule": RULE, "project": "support-chat", "pool": POOL}
    assert {name: stood_on[name] for name in expected} == expected
    assert (stood_on["approved_by"], stood_on["model"]) == ("token:gus", None)
    (ranked,) = [entry for entry in answer["ranked"] if entry["pool"] == POOL]
    assert [(each["rule"], each["lifted_by"]) for each in ranked["warnings"] if "lifted_by" in each] == [
        ("stream_too_slow", asked["id"])
    ]
    record = desk.get("eye", f"/v1/decisions/{answer['id']}").json()
    assert told(record) == told(answer)
    headers = {**bearer(desk.tokens["eye"]), "Accept": "text/plain"}
    explained = desk.server.client.get(f"/v1/decisions/{answer['id']}/explanation", headers=headers).text
    assert f"waiver {asked['id']} lifts {RULE}" in explained
    assert "token:gus" in explained
    for query in (f"waiver={asked['id']}", "approver=token:gus"):
        found = desk.get("eye", f"/v1/decisions?{query}").json()["items"]
        assert answer["id"] in {item["id"] for item in found}
        assert before["id"] not in {item["id"] for item in found}
    item = desk.listed()[asked["id"]]
    assert (item["state"], item["requested_by"], item["approved_by"]) == ("in_force", "token:pam", "token:gus")
    assert (item["reason"], item["void_because"]) == ("change 4711", None)


def test_an_answer_ends_no_later_than_the_waiver_it_stands_on(desk: Desk) -> None:
    desk.granted(in_us=20_000_000)
    answer = desk.decide()
    assert answer["valid_until"] == answer["waivers"][0]["expires_at"]
    decisions = desk.server.parts.decisions
    expires_us = from_rfc3339(answer["waivers"][0]["expires_at"])
    try:
        decisions.now = lambda: expires_us - 1
        last = desk.decide()
        assert last["valid_until"] == rfc3339(expires_us)
        decisions.now = lambda: expires_us
        after = desk.decide()
    finally:
        decisions.now = now_us
    assert POOL in pools(last)
    assert POOL not in pools(after)
    assert "waivers" not in after


def test_a_waiver_lifts_nothing_beside_its_scope(desk: Desk) -> None:
    waiver = desk.granted(pool="onprem-ams-l40s")
    answer = desk.decide()
    assert POOL not in pools(answer)
    assert "onprem-ams-l40s" not in pools(answer), "a second soft rule still refuses it"
    (left,) = [entry for entry in answer["rejected"] if entry["pool"] == "onprem-ams-l40s"]
    assert [each["rule"] for each in left["violations"]] == ["first_token_p95_too_slow"]
    assert [each["id"] for each in answer["waivers"]] == [waiver]
    assert told(desk.get("eye", f"/v1/decisions/{answer['id']}").json()) == told(answer)


def test_who_may_not_is_refused(desk: Desk) -> None:
    asked = desk.ask("both").json()["id"]
    check_problem(desk.server, desk.approve("both", asked), 403, "proposal.same_person")
    check_problem(desk.server, desk.approve("pam", asked), 403, "identity.forbidden")
    check_problem(desk.server, desk.approve("lab", asked), 404, "not_found")
    for name in ("dev", "gus", "lab", "olu", "eye"):
        check_problem(desk.server, desk.ask(name), 403, "identity.forbidden")
    check_problem(desk.server, desk.ask(tenant="nobody"), 403, "identity.forbidden")
    assert asked not in desk.listed("lab")
    assert asked in desk.listed("dev"), "who reads the log of the tenant reads what was lifted there"
    assert desk.listed()[asked]["state"] == "waiting"


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"rule": "residency.location_not_permitted"}, 422, "waiver.refused"),
        ({"rule": "models.validation_overdue_warning"}, 422, "waiver.refused"),
        ({"rule": "sla.stream_too_slo"}, 422, "request.unknown_name"),
        ({"rule": "core.not_entitled"}, 422, "request.unknown_name"),
        ({"rule": "sla"}, 400, "request.invalid"),
        ({"pool": "onprem-fra-a10"}, 422, "request.unknown_name"),
        ({"pool": "st-anna-onprem-l40s"}, 422, "request.unknown_name"),
        ({"project": "nothing"}, 422, "request.unknown_name"),
        ({"model": "llama"}, 422, "request.unknown_name"),
        ({"in_us": -1}, 422, "waiver.refused"),
        ({"in_us": 31 * 24 * HOUR_US}, 422, "waiver.refused"),
        ({"expires_at": "2026-12-01T12:00:00"}, 400, "request.invalid"),
        ({"expires_at": "0001-01-01T00:00:00+14:00"}, 400, "request.invalid"),
        ({"expires_at": "tomorrow at noon"}, 400, "request.invalid"),
        ({"reason": ""}, 400, "request.invalid"),
        ({"for": "ever"}, 400, "request.invalid"),
    ],
)
def test_what_cannot_be_waived_is_refused(desk: Desk, changes: dict[str, Any], status: int, code: str) -> None:
    check_problem(desk.server, desk.ask(**changes), status, code)


def test_an_approval_that_comes_too_late_grants_nothing(desk: Desk) -> None:
    asked = desk.ask(in_us=60_000_000).json()["id"]
    persons = desk.server.parts.two_persons
    persons.now = lambda: now_us() + 61_000_000
    try:
        answer = desk.approve("gus", asked)
        assert "would have ended" in check_problem(desk.server, answer, 409, "proposal.closed")["detail"]
    finally:
        persons.now = now_us
    for path in (NOBODY, "x"):
        check_problem(desk.server, desk.approve("gus", path), 404, "not_found")
    hold = desk.post("gus", "/v1/log/holds", {"tenant": "eu-bank", "reason": "case 1"}).json()["id"]
    check_problem(desk.server, desk.approve("both", hold), 404, "not_found")


def with_rule(snapshot: Snapshot, **changes: Any) -> Snapshot:
    """The snapshot with another meaning of the rule, as if the policy had been changed."""
    package = snapshot.policies.packages["sla"]
    rules = {**package.rules, "stream_too_slow": replace(package.rules["stream_too_slow"], **changes)}
    packages = {**snapshot.policies.packages, "sla": replace(package, rules=rules)}
    policies = replace(snapshot.policies, packages=packages, digest="sha256:" + "ef" * 32)
    return Snapshot(policies, snapshot.fleet, snapshot.entitlements)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"digest": "sha256:" + "00" * 32}, "the rule has changed"),
        ({"enforcement": Enforcement.HARD}, "the rule is hard now"),
    ],
)
def test_a_waiver_of_a_rule_that_changed_is_void_and_says_so(desk: Desk, changes: dict[str, Any], why: str) -> None:
    waiver, waiting = desk.granted(), desk.ask().json()["id"]
    activation = desk.server.parts.activation
    live = activation.current()
    activation._live = with_rule(live, **changes)
    try:
        listed = desk.listed()
        for name in (waiver, waiting):
            assert listed[name]["state"] == "void"
            assert why in listed[name]["void_because"]
        answer = desk.approve("gus", waiting)
        assert why in check_problem(desk.server, answer, 409, "waiver.void")["detail"]
    finally:
        activation._live = live
    assert desk.listed()[waiver]["state"] == "in_force"


def test_the_glass_is_broken_by_one_alone_for_minutes_and_loudly(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    asked = {"tenant": "eu-bank", "reason": "incident 99", "expires_at": rfc3339(now_us() + 600_000_000)}
    path = "/v1/waivers/break-glass"
    for name in ("pam", "gus", "dev"):
        check_problem(desk.server, desk.post(name, path, asked), 403, "identity.forbidden")
    too_long = {**asked, "expires_at": rfc3339(now_us() + 2 * HOUR_US)}
    check_problem(desk.server, desk.post("olu", path, too_long), 422, "waiver.refused")
    hard = {**asked, "rule": "residency.location_not_permitted"}
    check_problem(desk.server, desk.post("olu", path, hard), 422, "waiver.refused")
    foreign = {**asked, "tenant": "nordic-lab"}
    check_problem(desk.server, desk.post("olu", path, foreign), 403, "identity.forbidden")
    with caplog.at_level(logging.WARNING, logger="policyd.services.waivers_in_force"):
        broken = desk.post("olu", path, asked).json()
    assert "token:olu lifts soft rules of eu-bank" in caplog.text
    assert (broken["kind"], broken["state"], broken["rule"]) == ("break_glass", "in_force", None)
    answer = desk.decide()
    assert {POOL, "onprem-ams-l40s", "onprem-par-l40s"} <= set(pools(answer))
    assert [(each["kind"], each["approved_by"]) for each in answer["waivers"]] == [("break_glass", "token:olu")]
    refused = {each["enforcement"] for entry in answer["rejected"] for each in entry["violations"]}
    assert "hard" in refused
    for entry in answer["rejected"]:
        assert any(each["enforcement"] == "hard" for each in entry["violations"]), entry
    assert told(desk.get("eye", f"/v1/decisions/{answer['id']}").json()) == told(answer)
    item = desk.listed()[broken["id"]]
    assert (item["approved_by"], item["reason"], item["requested_by"]) == ("token:olu", "incident 99", None)


def test_the_glass_is_whole_unless_a_setting_says_otherwise(tmp_path: Any) -> None:
    tokens = tokens_file(tmp_path / "tokens.json", *PERSONS)
    with serving({"data_dir": tmp_path / "data", "auth": {"tokens_file": str(tmp_path / "tokens.json")}}) as server:
        asked = {"tenant": "eu-bank", "reason": "incident 99", "expires_at": rfc3339(now_us() + 60_000_000)}
        answer = server.client.post("/v1/waivers/break-glass", json=asked, headers=bearer(tokens["olu"]))
        assert "nobody may break the glass" in check_problem(server, answer, 403, "identity.forbidden")["detail"]


def test_other_processes_hear_of_a_waiver_by_reading(desk: Desk) -> None:
    """Another reader of the same database, as another replica has, which approved nothing itself."""
    waiver = desk.granted()
    other = WaiversInForce(desk.server.parts.reader)
    assert other.of("eu-bank") == ()
    desk.server.run(other.refresh())
    assert waiver in {each.id for each in other.of("eu-bank")}
    assert other.of("nordic-lab") == ()
