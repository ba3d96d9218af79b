"""What follows a reservation, by a real server: settle, make void, hold longer; who may; and what budgets then say."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from audit.tables import BODY
from tests.integration.test_api_identity import bearer, granted, tokens_file
from tests.integration.test_reservations import accounts, assert_log_folds

PROD = "eu-bank/support-chat/prod"
NOBODY = str(UUID(int=0x0199_0000_0000_7000_8000_0000_0000_0000))


@pytest.fixture
def held(api: Any, bank_chat: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = api.client.post("/v1/decisions", json=bank_chat).json()
    assert found["outcome"] == "allow"
    return found


def check_problem(found: Any, status: int) -> dict[str, Any]:
    """The problem document, whole."""
    problem: dict[str, Any] = found.json()
    assert found.status_code == status, found.text
    assert found.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert all(problem[name] for name in ("type", "title", "detail", "code", "source", "remedy", "request_id"))
    return problem


def settle(server: Any, id: str, **usage: Any) -> Any:
    return server.client.post(f"/v1/decisions/{id}/settlement", json=usage)


def balance(server: Any) -> tuple[int, int]:
    found = accounts(server)[PROD, "micro_usd"]
    return found.reserved, found.spent


def test_a_settlement_posts_what_was_used_at_the_recorded_price(api: Any, held: dict[str, Any]) -> None:
    reserved, spent = balance(api)
    most = held["reservation"]["micro_usd"]
    found = settle(api, held["id"], input_tokens=600, output_tokens=100)
    assert found.status_code == 200, found.text
    told = found.json()
    cost = told["actual"]["micro_usd"]
    assert 0 < cost < most
    assert told["actual"]["tokens"] == 700
    assert (told["state"], told["replay"], told["pool"]) == ("settled", False, held["ranked"][0]["pool"])
    assert [account["path"] for account in told["accounts"]][-1] == PROD
    assert "*" not in {account["path"] for account in told["accounts"]}
    assert balance(api) == (reserved - most, spent + cost)
    whole = settle(api, held["id"], input_tokens=600, output_tokens=100).json()
    assert whole["replay"] is True
    assert balance(api) == (reserved - most, spent + cost)
    assert whole["audit"]["index"] > told["audit"]["index"]


def test_a_stream_that_was_cancelled_and_a_whole_answer_cost_alike(api: Any, bank_chat: dict[str, Any]) -> None:
    costs = set()
    for output_sha256 in ({}, {"output_sha256": "ab" * 32}):
        held = api.client.post("/v1/decisions", json=bank_chat).json()
        found = settle(api, held["id"], input_tokens=1200, output_tokens=17, **output_sha256).json()
        costs.add(found["actual"]["micro_usd"])
    assert len(costs) == 1


def test_the_price_is_that_of_the_pool_that_served(api: Any, bank_chat: dict[str, Any]) -> None:
    costs = {}
    for place in range(2):
        held = api.client.post("/v1/decisions", json=bank_chat).json()
        pool = held["ranked"][place]
        found = settle(api, held["id"], pool=pool["pool"], input_tokens=1200, output_tokens=400).json()
        assert found["actual"]["micro_usd"] == pool["cost"]["micro_usd"]
        costs[pool["pool"]] = found["actual"]["micro_usd"]
    assert len(costs) == 2


def test_a_pool_that_the_answer_did_not_name_has_not_served(api: Any, bank_chat: dict[str, Any]) -> None:
    second = api.client.post("/v1/decisions", json=bank_chat).json()["ranked"][1]["pool"]
    bank_chat["options"]["limit"] = 1
    held = api.client.post("/v1/decisions", json=bank_chat).json()
    refused = settle(api, held["id"], pool=second, input_tokens=1, output_tokens=1)
    assert (refused.status_code, refused.json()["code"]) == (422, "request.unknown_name")
    assert settle(api, held["id"], input_tokens=1, output_tokens=1).json()["state"] == "settled"


def bodies(server: Any, event: str) -> list[dict[str, Any]]:
    with server.parts.reader._engine.connect() as connection:
        every = (json.loads(body) for (body,) in connection.execute(select(BODY.c.body).order_by(BODY.c.index)))
        return [body for body in every if body.get("event") == event]


def recorded(server: Any, code: str) -> list[dict[str, Any]]:
    """The entries on what was refused with this code."""
    with server.parts.reader._engine.connect() as connection:
        every = (json.loads(body) for (body,) in connection.execute(select(BODY.c.body).order_by(BODY.c.index)))
        return [body for body in every if body.get("code") == code]


def test_what_goes_beyond_the_limit_is_debt(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    with serving_with() as server:
        held = server.client.post("/v1/decisions", json=bank_chat).json()
        told = settle(server, held["id"], micro_usd=22_000_000_001).json()
        assert [account["debt"] for account in told["accounts"]] == [0, 0, 1]
        denied = server.client.post("/v1/decisions", json=bank_chat).json()
        assert (denied["outcome"], denied["denied_by"]) == ("deny", "budget")
        assert any("is in debt" in entry["violations"][0]["message"] for entry in denied["rejected"])
        (item,) = server.client.get(f"/v1/budgets/{PROD}").json()["items"]
        assert (item["debt"], item["remaining"], item["spent"]) == (1, 0, 22_000_000_001)
        assert item["projected_exhaustion"] is not None
        crossed = [(entry["account"][0], entry["percent"]) for entry in bodies(server, "threshold")]
        assert [percent for path, percent in crossed if path == PROD] == [50, 80, 95]
        assert_log_folds(server)


def test_policies_see_the_threshold_that_spending_has_crossed(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    with serving_with() as server:
        held = server.client.post("/v1/decisions", json=bank_chat).json()
        bank_chat["options"]["limit"] = 100
        assert rules(server, bank_chat) == set()
        settle(server, held["id"], micro_usd=17_700_000_000)  # 80 percent of the budget of support-chat in production
        ends = time.monotonic() + 10
        while not (found := rules(server, bank_chat)) and time.monotonic() < ends:
            time.sleep(0.1)
        assert found == {"budget_nearly_used"}


def rules(server: Any, asked: dict[str, Any]) -> set[str]:
    """The rules about budgets that warn or refuse."""
    answered = server.client.post("/v1/decisions", json=asked).json()
    told = [violation for entry in answered["rejected"] for violation in entry["violations"]]
    told += [warning for entry in answered["ranked"] for warning in entry["warnings"]]
    return {violation["rule"] for violation in told if violation["policy"] == "budget"}


def test_what_expires_is_presumed_spent_by_the_writer_itself(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    with serving_with(budgets={"hold_ms": 1_000}) as server:
        first, second = (server.client.post("/v1/decisions", json=bank_chat).json() for _ in range(2))
        most = first["reservation"]["micro_usd"]
        longer = server.client.post(f"/v1/decisions/{second['id']}/reservation", json={"hold_ms": 60_000})
        assert longer.json()["state"] == "held"
        assert longer.json()["expires_at"] > second["reservation"]["expires_at"]
        ends = time.monotonic() + 10
        while balance(server) != (most, most) and time.monotonic() < ends:
            time.sleep(0.1)  # nobody asks for anything: the writer looks by itself
        assert balance(server) == (most, most)
        assert [entry["decision"] for entry in bodies(server, "expired")] == [first["id"]]
        late = server.client.delete(f"/v1/decisions/{first['id']}/reservation")
        assert check_problem(late, 409)["code"] == "budget.conflict"
        assert settle(server, first["id"], micro_usd=0).json()["state"] == "settled"
        assert balance(server) == (most, 0)
        assert_log_folds(server)


def test_a_void_releases_all_of_it_and_contradicts_a_settlement(api: Any, bank_chat: dict[str, Any]) -> None:
    held = api.client.post("/v1/decisions", json=bank_chat).json()
    reserved, spent = balance(api)
    found = api.client.delete(f"/v1/decisions/{held['id']}/reservation")
    assert (found.status_code, found.json()["state"]) == (200, "voided")
    assert balance(api) == (reserved - held["reservation"]["micro_usd"], spent)
    assert api.client.delete(f"/v1/decisions/{held['id']}/reservation").json()["replay"] is True
    assert check_problem(settle(api, held["id"], micro_usd=1), 409)["code"] == "budget.conflict"
    settled = api.client.post("/v1/decisions", json=bank_chat).json()
    settle(api, settled["id"], micro_usd=1)
    assert check_problem(settle(api, settled["id"], micro_usd=2), 409)["code"] == "budget.conflict"
    assert check_problem(api.client.delete(f"/v1/decisions/{settled['id']}/reservation"), 409)
    assert recorded(api, "budget.conflict")


@pytest.mark.parametrize(
    ("usage", "status"),
    [
        ({}, 400),
        ({"input_tokens": 5}, 400),
        ({"micro_usd": -1}, 400),
        ({"micro_usd": 2**53}, 400),
        ({"micro_usd": 2**63}, 400),
        ({"micro_usd": 10**30}, 400),
        ({"micro_usd": 1.5}, 400),
        ({"micro_usd": "1"}, 400),
        ({"input_tokens": 2**53 - 1, "output_tokens": 2**53 - 1}, 422),
        ({"micro_usd": 1, "pool": "nowhere"}, 422),
        ({"micro_usd": 1, "tokens": 3}, 400),
        ({"micro_usd": 1, "output_sha256": "xyz"}, 400),
    ],
)
def test_what_is_no_usage_is_refused_and_nothing_is_lost(
    api: Any, held: dict[str, Any], usage: dict[str, Any], status: int
) -> None:
    before = balance(api)
    content = json.dumps(usage)
    headers = {"Content-Type": "application/json"}
    found = api.client.post(f"/v1/decisions/{held['id']}/settlement", content=content, headers=headers)
    check_problem(found, status)
    assert balance(api) == before
    assert settle(api, held["id"], micro_usd=1).status_code == 200


def test_what_has_reserved_nothing_has_nothing_to_settle(api: Any, bank_chat: dict[str, Any]) -> None:
    bank_chat["options"]["reserve"] = False
    free = api.client.post("/v1/decisions", json=bank_chat).json()["id"]
    for id in (free, NOBODY, "x"):
        check_problem(settle(api, id, micro_usd=1), 404)
        check_problem(api.client.delete(f"/v1/decisions/{id}/reservation"), 404)


def test_who_may_settle_and_who_hears_what(serving_with: Any, tmp_path: Path, bank_chat: dict[str, Any]) -> None:
    tokens = tokens_file(
        tmp_path / "tokens.json",
        {"name": "bank", "grants": [granted("developer", tenant="eu-bank")]},
        {"name": "reader", "grants": [granted("auditor", tenant="eu-bank")]},
        {"name": "rival", "grants": [granted("developer", tenant="nordic-lab")]},
        {"name": "finance", "grants": [granted("auditor")]},
    )
    with serving_with(auth={"tokens_file": str(tmp_path / "tokens.json")}) as server:
        post = server.client.post
        held = post("/v1/decisions", json=bank_chat, headers=bearer(tokens["bank"])).json()
        route = f"/v1/decisions/{held['id']}/settlement"
        refused = post(route, json={"micro_usd": 1}, headers=bearer(tokens["rival"]))
        unknown = post(f"/v1/decisions/{NOBODY}/settlement", json={"micro_usd": 1}, headers=bearer(tokens["rival"]))
        same = ("type", "title", "status", "code", "remedy")
        assert {n: check_problem(refused, 404)[n] for n in same} == {n: check_problem(unknown, 404)[n] for n in same}
        check_problem(post(route, json={"micro_usd": 1}, headers=bearer(tokens["reader"])), 403)
        recorded = server.client.get(
            "/v1/decisions", params={"outcome": "error"}, headers=bearer(tokens["finance"])
        ).json()["items"]
        told = {(entry["principal"], entry["code"]) for entry in recorded}
        assert {("token:rival", "not_found"), ("token:reader", "identity.forbidden")} <= told
        assert post(route, json={"micro_usd": 1}, headers=bearer(tokens["bank"])).status_code == 200
        paths = {
            who: {
                item["path"] for item in server.client.get("/v1/budgets", headers=bearer(tokens[who])).json()["items"]
            }
            for who in tokens
        }
        assert paths["rival"] == paths["bank"] == set()  # developers read no budgets
        assert "*" not in paths["reader"]
        assert all(path.split("/")[0] == "eu-bank" for path in paths["reader"])
        assert {"*", "eu-bank", PROD} < paths["finance"]
        own = server.client.get("/v1/decisions", headers=bearer(tokens["reader"])).json()["items"]
        listed = next(entry for entry in own if entry["id"] == held["id"])
        assert "*" not in {posting["path"] for posting in listed["admission"]["postings"]}


def test_budgets_say_what_is_left(api: Any, held: dict[str, Any]) -> None:
    items = api.client.get("/v1/budgets").json()["items"]
    assert [item["path"] for item in items] == sorted(item["path"] for item in items)
    own = next(item for item in items if item["path"] == PROD)
    assert own["remaining"] == own["limit"] - own["spent"] - own["reserved"]
    assert own["starts_at"] < held["time"] < own["resets_at"]
    assert api.client.get(f"/v1/budgets/{PROD}").json()["items"][0]["path"] == PROD
    check_problem(api.client.get("/v1/budgets/eu-bank/nothing"), 404)
