"""Quotas of groups of pools, by a real server: a full group refuses its own pools, and others are decided on."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from policyd.ledger.rows import account_of
from policyd.ledger.tables import ACCOUNT
from tests.integration.conftest import serving
from tests.integration.test_reservations import EXAMPLES, assert_log_folds, fleet_with, serve

PROD = "eu-bank/support-chat/prod"
fleet_with = fleet_with


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, str]]:
    """How the example fleet ranks ``bank_chat`` with all the room in the world, and the group of each pool."""
    with serving({"data_dir": tmp_path_factory.mktemp("free"), "facts": {"path": EXAMPLES / "facts.yaml"}}) as server:
        groups = {pool.id: pool.group for pool in server.parts.snapshot.fleet.pools.values()}
        return server.client.post("/v1/decisions", json=asked_for(1_000)).json(), groups


def asked_for(limit: int, **options: Any) -> dict[str, Any]:
    workload = {
        "tenant": "eu-bank",
        "project": "support-chat",
        "environment": "prod",
        "model": "llama-3.1-70b-instruct",
        "profile": {"urgency": "interactive", "traffic": "steady", "task": "chat"},
        "data": {"classification": "confidential", "residency": ["EU"], "sources": ["bank-crm"]},
        "sla_class": "realtime",
        "demand": {"input_tokens": 1200, "max_output_tokens": 400, "requests_per_hour": 3600},
    }
    return {"workload": workload, "options": {"limit": limit, **options}}


def ranked_groups(free: tuple[Any, dict[str, str]]) -> list[str]:
    answered, groups = free
    found = list(dict.fromkeys(groups[entry["pool"]] for entry in answered["ranked"]))
    assert len(found) >= 2
    return found


def quota(group: str, room: int) -> str:
    return f"{{limit: {room}, unit: in_flight, pools: {group}}}"


def violations(answered: Any, rule: str) -> dict[str, Any]:
    """The pools that the rule refuses, each of them by it alone."""
    found = {entry["pool"]: entry["violations"] for entry in answered["rejected"]}
    return {pool: each[0] for pool, each in found.items() if [one["rule"] for one in each] == [rule]}


def held(server: Any) -> dict[str, int]:
    """What is in flight in each group."""
    with server.parts.reader._engine.connect() as connection:
        found = [account_of(row) for row in connection.execute(select(ACCOUNT))]
    return {each.key.pools: each.reserved for each in found if (each.key.path, each.key.unit) == (PROD, "in_flight")}


def test_a_full_group_refuses_its_pools_and_no_others(serving_with: Any, fleet_with: Any, free: Any) -> None:
    plain, groups = free
    first = ranked_groups(free)[0]
    its_own = {entry["pool"] for entry in plain["ranked"] if groups[entry["pool"]] == first}
    others = [entry["pool"] for entry in plain["ranked"] if entry["pool"] not in its_own]
    with serve(serving_with, fleet_with(quota(first, 1))) as server:
        post = server.client.post
        one = post("/v1/decisions", json=asked_for(1_000)).json()
        assert [entry["pool"] for entry in one["ranked"]] == [entry["pool"] for entry in plain["ranked"]]
        spilled = post("/v1/decisions", json=asked_for(1_000)).json()
        assert (spilled["outcome"], spilled["ranked_total"]) == ("allow", len(others))
        assert {entry["pool"] for entry in spilled["ranked"]} == set(others)
        assert spilled["reservation"]["id"] == spilled["id"]
        refused = violations(spilled, "quota_exhausted")
        assert refused.keys() == its_own
        violation = refused[min(its_own)]
        assert (violation["policy"], violation["enforcement"], violation["required"]) == ("budget", "hard", 1)
        assert violation["observed"] == {
            "account": PROD,
            "pools": first,
            "unit": "in_flight",
            "limit": 1,
            "remaining": 0,
        }
        assert all(violation[name] for name in ("message", "remedy", "location"))
        assert len(spilled["rejected"]) == len(one["rejected"]) + len(its_own)
        assert held(server) == {first: 1}

        check_record(server, spilled, min(its_own))
        check_other_routes(server, spilled, min(its_own), others[0])
        assert server.client.delete(f"/v1/decisions/{one['id']}/reservation").status_code == 200
        again = post("/v1/decisions", json=asked_for(1_000)).json()
        assert again["ranked"] == one["ranked"]
        assert_log_folds(server)


def check_record(server: Any, spilled: Any, pool: str) -> None:
    """The record says what the answer said, in every form, and is found by it."""
    record = server.client.get(f"/v1/decisions/{spilled['id']}").json()
    assert {name: record[name] for name in spilled} == spilled
    told = server.client.get(f"/v1/decisions/{spilled['id']}/explanation", params={"format": "text"}).text
    assert "budget.quota_exhausted" in told
    for asked in ({"rule": "quota_exhausted"}, {"rule": "quota_exhausted", "rejected_pool": pool}):
        items = server.client.get("/v1/decisions", params={**asked, "outcome": "allow"}).json()["items"]
        assert [item["id"] for item in items] == [spilled["id"]]
        assert items[0]["spilled"][0]["path"] == PROD


def check_other_routes(server: Any, spilled: Any, full: str, free: str) -> None:
    """Who holds nothing, who asks for several, and AuthZEN hear the same."""
    post = server.client.post
    advice = asked_for(1_000, reserve=False)
    told = post("/v1/decisions", json=advice).json()
    assert (told["ranked"], told["rejected"]) == (spilled["ranked"], spilled["rejected"])
    assert told["reservation"] is None
    record = server.client.get(f"/v1/decisions/{told['id']}").json()
    assert {name: record[name] for name in told} == told
    batch = post("/v1/decisions/batch", json={"requests": [advice, asked_for(1_000)]}).json()
    assert [item["decision"]["rejected"] for item in batch["items"]] == [spilled["rejected"]] * 2
    key = {"Idempotency-Key": "one"}
    keyed = [post("/v1/decisions", json=asked_for(1_000), headers=key) for _ in range(2)]
    assert keyed[0].json()["rejected"] == spilled["rejected"]
    assert keyed[0].content == keyed[1].content
    context = {name: value for name, value in advice["workload"].items() if name != "tenant"}
    question: dict[str, Any] = {
        "subject": {"type": "tenant", "id": "eu-bank"},
        "action": {"name": "place"},
        "context": context,
    }
    answers = {}
    for pool in (full, free):
        question["resource"] = {"type": "pool", "id": pool}
        answers[pool] = post("/access/v1/evaluation", json=question).json()
    assert [answers[pool]["decision"] for pool in (full, free)] == [False, True]
    assert answers[full]["context"]["reason"] == "refused by budget.quota_exhausted"
    question["resource"] = {"type": "pool"}
    found = post("/access/v1/search/resource", json=question).json()["results"]
    assert [entry["id"] for entry in found] == [entry["pool"] for entry in spilled["ranked"]]
    simulated = post("/v1/simulations", json={"requests": [asked_for(1_000)]})
    assert simulated.status_code == 200
    assert "quota_exhausted" not in simulated.text, "what is held at this moment says nothing of another fleet"


def test_when_every_group_is_full_the_answer_is_a_deny_by_budget(serving_with: Any, fleet_with: Any, free: Any) -> None:
    plain, _ = free
    quotas = ", ".join(quota(group, 1) for group in ranked_groups(free))
    with serve(serving_with, fleet_with(quotas)) as server:
        assert server.client.post("/v1/decisions", json=asked_for(1_000)).json()["outcome"] == "allow"
        for options in ({}, {"reserve": False}):
            denied = server.client.post("/v1/decisions", json=asked_for(1, **options)).json()
            assert (denied["outcome"], denied["denied_by"], denied["ranked"]) == ("deny", "budget", [])
            assert denied["reservation"] is None
            ranked = {entry["pool"] for entry in plain["ranked"]}
            assert violations(denied, "quota_exhausted").keys() == ranked
            record = server.client.get(f"/v1/decisions/{denied['id']}").json()
            assert {name: record[name] for name in denied} == denied
        params = {"denied_by": "budget", "rule": "quota_exhausted"}
        assert len(server.client.get("/v1/decisions", params=params).json()["items"]) == 2
        assert set(held(server).values()) == {1}
        assert_log_folds(server)


def test_what_is_left_still_needs_its_own_budget(serving_with: Any, fleet_with: Any, free: Any) -> None:
    plain, groups = free
    first = ranked_groups(free)[0]
    with serve(serving_with, fleet_with(f"{quota(first, 1)}, {{limit: 2, unit: requests, window: day}}")) as server:
        answers = [server.client.post("/v1/decisions", json=asked_for(1_000)).json() for _ in range(3)]
        assert [each["outcome"] for each in answers] == ["allow", "allow", "deny"]
        denied = answers[2]
        assert denied["denied_by"] == "budget"
        its_own = {entry["pool"] for entry in plain["ranked"] if groups[entry["pool"]] == first}
        assert violations(denied, "quota_exhausted").keys() == its_own
        assert violations(denied, "no_budget").keys() == {entry["pool"] for entry in plain["ranked"]} - its_own
        record = server.client.get(f"/v1/decisions/{denied['id']}").json()
        assert {name: record[name] for name in denied} == denied


def test_64_clients_fill_one_group_after_the_other_and_none_beyond(
    serving_with: Any, fleet_with: Any, free: Any
) -> None:
    _, groups = free
    room = dict(zip(ranked_groups(free), (5, 7, *[1] * 100), strict=False))
    quotas = ", ".join(quota(group, count) for group, count in room.items())
    with serve(serving_with, fleet_with(quotas)) as server:

        async def crowd() -> list[Any]:
            async with httpx.AsyncClient(base_url=server.address, timeout=60, limits=httpx.Limits()) as http:
                found = await asyncio.gather(*(http.post("/v1/decisions", json=asked_for(1)) for _ in range(64)))
            return [answer.json() for answer in found]

        answers = asyncio.run(crowd())
        allowed = [answer["ranked"][0]["pool"] for answer in answers if answer["outcome"] == "allow"]
        assert Counter(groups[pool] for pool in allowed) == room
        assert held(server) == room
        assert {answer["denied_by"] for answer in answers if answer["outcome"] == "deny"} == {"budget"}
        assert len(answers) == 64 > len(allowed)
        assert_log_folds(server)
