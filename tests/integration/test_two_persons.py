"""What takes two persons, by a real server: who may propose and approve, once, in time, and what is then in the log."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg
import pytest
from sqlalchemy import select

from audit.personal import opened
from audit.stores import SqliteStore
from audit.tables import BODY
from policyd.client import Client
from policyd.errors import Forbidden, ProposalClosed, SamePerson
from policyd.services.clock import now_us
from tests.integration.conftest import ApiServer, serving
from tests.integration.test_api_bad_input import check_problem
from tests.integration.test_api_identity import bearer, granted, tokens_file

NOBODY = "01990000-0000-7000-8000-000000000000"
CLEARED = "DELETE FROM proposal; DELETE FROM legal_hold"
HOLD = {"tenant": "eu-bank", "reason": "case 2026-17"}


class Office:
    """A server with persons: a client for each, by name."""

    def __init__(self, server: ApiServer, tokens: dict[str, str]) -> None:
        self.server = server
        self.tokens = tokens
        self.began = 0

    def client(self, name: str) -> Client:
        return Client(self.server.address, token=self.tokens[name])

    def post(self, name: str, path: str, body: Any = None) -> Any:
        return self.server.client.post(path, json=body or {}, headers=bearer(self.tokens[name]))

    def get(self, name: str, path: str) -> Any:
        return self.server.client.get(path, headers=bearer(self.tokens[name]))

    def proposed(self, name: str = "ana", **hold: Any) -> dict[str, Any]:
        found = self.post(name, "/v1/log/holds", {**HOLD, **hold})
        assert found.status_code == 200, found.text
        return dict(found.json())

    def approve(self, name: str, proposal: str, **body: Any) -> Any:
        return self.post(name, f"/v1/proposals/{proposal}/approval", body)

    def bodies(self, *kinds: str) -> list[dict[str, Any]]:
        reader = self.server.parts.reader
        with reader._engine.connect() as connection:
            raw = list(connection.execute(select(BODY.c.body).order_by(BODY.c.index)).scalars())
        every = [opened(body, fields) for body, fields in zip(raw, reader._keys.fields(raw), strict=True)]
        return [body for body in every[self.began :] if not kinds or body.get("kind") in kinds]


PERSONS = (
    {"name": "ana", "grants": [granted("governance")]},
    {"name": "ben", "grants": [granted("privacy", tenant="eu-bank")]},
    {"name": "lab", "grants": [granted("privacy", tenant="nordic-lab")]},
    {"name": "dev", "grants": [granted("developer", tenant="eu-bank")]},
    {"name": "eva", "grants": [granted("privacy")]},
    {"name": "eye", "grants": [granted("auditor")]},
)


@pytest.fixture(scope="module", params=["file", "postgresql"])
def building(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Generator[Office, None, None]:
    """One server a store for all tests of this module."""
    place = tmp_path_factory.mktemp("two_persons")
    tokens = tokens_file(place / "tokens.json", *PERSONS)
    flags: dict[str, Any] = {"auth": {"tokens_file": str(place / "tokens.json")}}
    if request.param == "postgresql":
        (place / "address").write_text(request.getfixturevalue("postgresql").make_database())
        flags["audit"] = {"database_url_file": str(place / "address")}
    with serving({"data_dir": place / "data", **flags}) as server:
        yield Office(server, tokens)


@pytest.fixture
def office(building: Office) -> Generator[Office, None, None]:
    """The server as if nothing had been proposed before."""
    building.began += len(building.bodies())
    yield building
    store = building.server.parts.directory.store
    if isinstance(store, SqliteStore):
        with closing(sqlite3.connect(store.path)) as raw, raw:
            raw.executescript(CLEARED)
    else:
        address = (building.server.parts.directory.path.parent / "address").read_text()
        with psycopg.connect(address) as raw_connection:
            raw_connection.execute(CLEARED)


def test_one_proposes_another_approves_and_all_of_it_is_in_the_log(office: Office) -> None:
    with office.client("ana") as ana, office.client("ben") as ben:
        proposed = ana.propose_hold("eu-bank", "case 2026-17", subject="oidc:4711")
        assert proposed["document"] == {"subject": "oidc:4711", "reason": "case 2026-17"}
        assert [item["id"] for item in ben.proposals()["items"]] == [proposed["id"]]
        assert ben.holds()["items"] == []
        done = ben.approve(proposed["id"], digest=proposed["digest"])
        assert done["result"] == {"hold": proposed["id"]}
        (held,) = ben.holds()["items"]
        assert (held["id"], held["subject"]) == (proposed["id"], "oidc:4711")
        assert ben.proposals()["items"] == []
        lifting = ben.propose_lifting(held["id"], "case 2026-17 is closed")
        with pytest.raises(SamePerson):
            ben.approve(lifting["id"])
        ana.approve(lifting["id"])
        assert ana.holds()["items"] == []
    first, second, third, fourth, fifth, sixth = office.bodies("proposal", "approval", "hold")
    assert [each["kind"] for each in (first, second, third)] == ["proposal", "approval", "hold"]
    assert (first["principal"], second["principal"]) == ("token:ana", "token:ben")
    assert first["digest"] == second["digest"] == proposed["digest"]
    assert (third["event"], third["proposal"], third["approval"]) == ("placed", first["id"], second["id"])
    assert [each["kind"] for each in (fourth, fifth, sixth)] == ["proposal", "approval", "hold"]
    assert (sixth["event"], sixth["hold"]) == ("lifted", third["hold"])


def test_what_comes_twice_under_a_key_is_done_once(office: Office) -> None:
    client = office.server.client

    def sent(name: str, path: str, key: str, body: dict[str, Any]) -> Any:
        headers = {**bearer(office.tokens[name]), "Idempotency-Key": key}
        return client.post(path, json=body, headers=headers)

    hold = {"tenant": "eu-bank", "subject": "oidc:4711", "reason": "case 2026-17"}
    first, again = (sent("ana", "/v1/log/holds", "hold-1", hold) for _ in range(2))
    assert first.status_code == 200, first.text
    assert again.json() == first.json()
    other = sent("ana", "/v1/log/holds", "hold-1", {**hold, "reason": "case 2026-18"})
    check_problem(office.server, other, 422, "request.key_reused")
    assert sent("ben", "/v1/log/holds", "hold-1", hold).json()["id"] != first.json()["id"], "a key is one person's"
    path = f"/v1/proposals/{first.json()['id']}/approval"
    done, once_more = (sent("ben", path, "yes-1", {"digest": first.json()["digest"]}) for _ in range(2))
    assert done.status_code == 200, done.text
    assert once_more.json() == done.json()
    assert done.json()["result"] == {"hold": first.json()["id"]}
    check_problem(office.server, sent("ben", path, "yes-2", {}), 409, "proposal.closed")
    assert sent("ana", "/v1/log/holds", "hold-1", hold).json() == first.json(), "also when it was approved since then"
    path = f"/v1/log/holds/{first.json()['id']}/lifting"
    lifting, again = (sent("ben", path, "lift-1", {"reason": "over"}).json() for _ in range(2))
    assert again == lifting
    waiting = office.get("ana", "/v1/proposals").json()["items"]
    assert [item["id"] for item in waiting if item["action"] == "hold.lift"] == [lifting["id"]]
    assert len(office.bodies("approval")) == 1


def test_a_proposal_is_used_once_however_many_approve_it_at_once(office: Office) -> None:
    proposed = office.proposed()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: office.approve("ben", proposed["id"]).status_code, range(8)))
    assert sorted(found) == [200] + [409] * 7
    check_problem(office.server, office.approve("ben", proposed["id"]), 409, "proposal.closed")
    assert len(office.bodies("approval")) == len(office.bodies("hold")) == 1


def test_whoever_may_not_is_refused_and_changes_nothing(office: Office) -> None:
    proposed = office.proposed()
    check_problem(office.server, office.approve("ana", proposed["id"]), 403, "proposal.same_person")
    check_problem(office.server, office.approve("eye", proposed["id"]), 403, "identity.forbidden")
    for stranger in ("lab",):
        check_problem(office.server, office.approve(stranger, proposed["id"]), 404, "not_found")
        assert office.get(stranger, "/v1/proposals").json()["items"] == []
    for name in ("dev", "eye", "lab"):
        check_problem(office.server, office.post(name, "/v1/log/holds", HOLD), 403, "identity.forbidden")
    check_problem(
        office.server, office.post("ben", "/v1/log/holds", {**HOLD, "tenant": "nobody"}), 403, "identity.forbidden"
    )
    assert office.get("eye", "/v1/proposals").json()["items"][0]["id"] == proposed["id"]
    assert office.bodies("approval", "hold") == []
    refused = {body["code"] for body in office.bodies("refusal")}
    assert {"identity.forbidden", "proposal.same_person"} <= refused


def test_what_was_read_is_what_is_approved(office: Office) -> None:
    proposed = office.proposed()
    other = office.proposed(subject="oidc:1")
    answer = office.approve("ben", proposed["id"], digest=other["digest"])
    assert "not what was read" in check_problem(office.server, answer, 409, "proposal.closed")["detail"]
    assert office.approve("ben", proposed["id"], digest=proposed["digest"]).status_code == 200


def test_a_proposal_expires(office: Office) -> None:
    proposed = office.proposed()
    persons = office.server.parts.two_persons
    began = persons.now()
    persons.now = lambda: began + persons.ttl_ms * 1_000 + 1
    try:
        answer = office.approve("ben", proposed["id"])
        assert "expired" in check_problem(office.server, answer, 409, "proposal.closed")["detail"]
        assert office.get("ben", "/v1/proposals").json()["items"] == []
    finally:
        persons.now = now_us
    assert office.bodies("approval", "hold") == []


def test_a_hold_is_lifted_once(office: Office) -> None:
    hold = office.proposed()["id"]
    office.approve("ben", hold)
    liftings = [office.post("ana", f"/v1/log/holds/{hold}/lifting", {"reason": "over"}).json() for _ in range(2)]
    assert office.approve("ben", liftings[0]["id"]).status_code == 200
    check_problem(office.server, office.approve("ben", liftings[1]["id"]), 409, "proposal.closed")
    waiting = office.get("ben", "/v1/proposals").json()["items"]
    assert [item["id"] for item in waiting] == [liftings[1]["id"]]
    check_problem(
        office.server, office.post("ana", f"/v1/log/holds/{hold}/lifting", {"reason": "over"}), 404, "not_found"
    )


def test_bad_input_is_a_problem(office: Office) -> None:
    for body in (
        {},
        {"tenant": "eu-bank"},
        {**HOLD, "reason": ""},
        {**HOLD, "reason": "x" * 501},
        {**HOLD, "until": 1},
    ):
        check_problem(office.server, office.post("ana", "/v1/log/holds", body), 400, "request.invalid")
    for path in (f"/v1/proposals/{NOBODY}/approval", "/v1/proposals/x/approval"):
        check_problem(office.server, office.post("ana", path), 404, "not_found")
    proposed = office.proposed()["id"]
    check_problem(office.server, office.approve("ben", proposed, digest="sha256:1"), 400, "request.invalid")
    check_problem(office.server, office.approve("ben", proposed, digset="x"), 400, "request.invalid")
    check_problem(office.server, office.get("ana", "/v1/proposals?tenant=x"), 400, "request.invalid")
    for hold in (NOBODY, "x"):
        answer = office.post("ana", f"/v1/log/holds/{hold}/lifting", {"reason": "over"})
        check_problem(office.server, answer, 404, "not_found")


def test_no_more_than_so_many_wait(office: Office) -> None:
    persons = office.server.parts.two_persons
    most, persons.open_max = persons.open_max, 2
    try:
        for _ in range(2):
            office.proposed()
        check_problem(office.server, office.post("ana", "/v1/log/holds", HOLD), 503, "overload")
    finally:
        persons.open_max = most


def test_without_authentication_nobody_is_one_of_two(api: ApiServer) -> None:
    with Client(api.address) as client:
        with pytest.raises(Forbidden, match="two authenticated persons"):
            client.propose_hold("eu-bank", "case")
        assert client.proposals()["items"] == []


def test_a_client_hears_what_is_closed(office: Office) -> None:
    proposed = office.proposed()["id"]
    with office.client("ben") as ben:
        ben.approve(proposed)
        with pytest.raises(ProposalClosed):
            ben.approve(proposed)
