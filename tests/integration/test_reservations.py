"""Budget that decisions hold, by a real server: exact under a crowd, told in the answer, replayed from the record."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from audit.tables import BODY
from policyd.ledger.rows import account_of
from policyd.ledger.tables import ACCOUNT
from policyd.services.admission import postings_of

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
PATHS = ["*", "eu-bank", "eu-bank/support-chat", "eu-bank/support-chat/prod"]
PROD_BUDGET = '          prod: [{limit: "22000", window: month}]\n'


def usd(micro_usd: int) -> str:
    return f"{micro_usd // 1_000_000}.{micro_usd % 1_000_000:06d}"


@pytest.fixture
def fleet_with(tmp_path: Path) -> Callable[[str], Path]:
    """The example fleet with another budget for support-chat in production."""

    def make(budgets: str) -> Path:
        fleet = tmp_path / "fleet"
        shutil.copytree(EXAMPLES / "fleet", fleet, dirs_exist_ok=True)
        text = (fleet / "tenants.yaml").read_text()
        assert PROD_BUDGET in text
        (fleet / "tenants.yaml").write_text(text.replace(PROD_BUDGET, f"          prod: [{budgets}]\n"))
        return fleet

    return make


def serve(serving_with: Callable[..., Any], fleet: Path, **flags: Any) -> Any:
    return serving_with(fleet=fleet, facts={"path": EXAMPLES / "facts.yaml"}, **flags)


@pytest.fixture
def cost(api: Any, bank_chat: dict[str, Any]) -> int:
    """What the decision of ``bank_chat`` holds, in micro-USD."""
    answered = api.client.post("/v1/decisions", json=bank_chat).json()
    held = answered["reservation"]["micro_usd"]
    assert held == max(entry["cost"]["micro_usd"] for entry in answered["ranked"])
    return int(held)


def accounts(server: Any) -> dict[tuple[str, str], Any]:
    with server.parts.reader._engine.connect() as connection:
        found = [account_of(row) for row in connection.execute(select(ACCOUNT))]
    return {(each.key.path, each.key.unit): each for each in found}


def test_an_allow_says_what_it_holds(api: Any, bank_chat: dict[str, Any]) -> None:
    answered = api.client.post("/v1/decisions", json=bank_chat).json()
    held = answered["reservation"]
    assert held["id"] == answered["id"]
    assert held["accounts"] == PATHS
    assert answered["valid_until"] <= held["expires_at"]
    again = api.client.get(f"/v1/decisions/{answered['id']}").json()
    assert again["reservation"] == held
    assert again["ranked"] == answered["ranked"]
    listed = api.client.get("/v1/decisions", params={"request_id": again["request_id"]}).json()["items"][0]
    assert [posting["path"] for posting in listed["admission"]["postings"]] == PATHS


def test_nothing_is_held_for_who_does_not_ask(api: Any, bank_chat: dict[str, Any]) -> None:
    assert api.client.post("/v1/decisions", json=bank_chat).status_code == 200  # opens the accounts
    before = accounts(api)
    bank_chat["options"]["reserve"] = False
    answered = api.client.post("/v1/decisions", json=bank_chat).json()
    assert (answered["outcome"], answered["reservation"]) == ("allow", None)
    again = api.client.get(f"/v1/decisions/{answered['id']}").json()
    assert (again["reservation"], again["valid_until"]) == (None, answered["valid_until"])
    listed = api.client.get("/v1/decisions", params={"request_id": again["request_id"]}).json()["items"][0]
    assert listed["admission"] == {"held": False}
    assert api.client.post(f"/v1/decisions/{answered['id']}/settlement", json={"micro_usd": 1}).status_code == 404
    denied = deepcopy(bank_chat)
    denied["options"]["reserve"] = True
    denied["workload"]["resources"] = {"gpu_count": 60_000}
    answered = api.client.post("/v1/decisions", json=denied).json()
    assert (answered["outcome"], answered["reservation"]) == ("deny", None)
    assert accounts(api) == before


class Forgetful:
    """A log that records, and does not ask the ledger."""

    def __init__(self, log: Any) -> None:
        self._log = log

    async def submit(self, entry: Any, blobs: Any = (), claim: Any = None, operation: Any = None) -> Any:
        return await self._log.submit(entry, blobs, claim)


def test_no_allow_leaves_when_nobody_says_what_is_held(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    with serving_with() as server:
        decisions = server.parts.decisions
        decisions.log = Forgetful(decisions.log)
        answered = server.client.post("/v1/decisions", json=bank_chat)
        assert (answered.status_code, answered.json()["code"]) == (503, "audit.unavailable")
        bank_chat["options"]["reserve"] = False
        assert server.client.post("/v1/decisions", json=bank_chat).status_code == 503


def test_who_does_not_reserve_meets_the_same_budget(
    serving_with: Any, fleet_with: Any, bank_chat: dict[str, Any], cost: int
) -> None:
    """Who could leave the check out would choose their own law. Nothing is held, so all of a crowd that fits fits."""
    advice = deepcopy(bank_chat)
    advice["options"]["reserve"] = False
    with serve(serving_with, fleet_with(f'{{limit: "{usd(cost)}", window: month}}')) as server:
        post = server.client.post
        outcomes = [post("/v1/decisions", json=advice).json()["outcome"] for _ in range(3)]
        assert outcomes == ["allow"] * 3
        assert post("/v1/decisions", json=bank_chat).json()["outcome"] == "allow"
        refused, told = (post("/v1/decisions", json=asked).json() for asked in (bank_chat, advice))
        assert (told["outcome"], told["denied_by"], told["reservation"]) == ("deny", "budget", None)
        assert told["rejected"] == refused["rejected"]
        again = server.client.get(f"/v1/decisions/{told['id']}").json()
        assert (again["outcome"], again["rejected"]) == ("deny", told["rejected"])
        batch = post("/v1/decisions/batch", json={"requests": [advice, bank_chat]}).json()
        assert {item["decision"]["denied_by"] for item in batch["items"]} == {"budget"}
        context = {name: value for name, value in bank_chat["workload"].items() if name != "tenant"}
        question = {
            "subject": {"type": "tenant", "id": bank_chat["workload"]["tenant"]},
            "action": {"name": "place"},
            "resource": {"type": "pool", "id": refused["rejected"][-1]["pool"]},
            "context": context,
        }
        assert post("/access/v1/evaluation", json=question).json()["decision"] is False
        del question["resource"]["id"]
        assert post("/access/v1/search/resource", json=question).json()["results"] == []
        assert_log_folds(server)


def no_budget(denied: dict[str, Any]) -> Any:
    found = (each for entry in denied["rejected"] for each in entry["violations"] if each["rule"] == "no_budget")
    return next(found)


def test_who_does_not_reserve_meets_the_same_debt_and_gauges(
    serving_with: Any, fleet_with: Any, bank_chat: dict[str, Any], cost: int
) -> None:
    advice = deepcopy(bank_chat)
    advice["options"]["reserve"] = False
    budgets = f'{{limit: "{usd(10 * cost)}", window: month}}, {{limit: 1, unit: in_flight}}'
    with serve(serving_with, fleet_with(budgets)) as server:
        post = server.client.post
        held = post("/v1/decisions", json=bank_chat).json()
        denied = post("/v1/decisions", json=advice).json()
        assert no_budget(denied)["observed"]["unit"] == "in_flight"
        settled = post(f"/v1/decisions/{held['id']}/settlement", json={"micro_usd": 11 * cost})
        assert settled.status_code == 200
        denied = post("/v1/decisions", json=advice).json()
        assert denied["denied_by"] == "budget"
        assert "in debt" in no_budget(denied)["message"]


def test_a_short_hold_ends_the_validity(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    with serving_with(budgets={"hold_ms": 1_000}) as server:
        answered = server.client.post("/v1/decisions", json=bank_chat).json()
        assert answered["valid_until"] == answered["reservation"]["expires_at"]
        assert server.client.get(f"/v1/decisions/{answered['id']}").json()["valid_until"] == answered["valid_until"]
        lasts = datetime.fromisoformat(answered["valid_until"]) - datetime.fromisoformat(answered["time"])
        assert lasts.total_seconds() < 2


def test_without_room_the_answer_is_a_deny_that_says_where(
    serving_with: Any, fleet_with: Any, bank_chat: dict[str, Any], cost: int
) -> None:
    with serve(serving_with, fleet_with(f'{{limit: "{usd(2 * cost + 1)}", window: month}}')) as server:
        answers = [server.client.post("/v1/decisions", json=bank_chat) for _ in range(3)]
        assert [found.status_code for found in answers] == [200, 200, 200]
        allowed, _, denied = (found.json() for found in answers)
        assert (denied["outcome"], denied["denied_by"], denied["ranked"]) == ("deny", "budget", [])
        assert denied["reservation"] is None
        ranked = {entry["pool"] for entry in allowed["ranked"]}
        refused = {entry["pool"]: entry["violations"] for entry in denied["rejected"]}
        assert ranked < refused.keys()
        assert len(refused) == len(allowed["rejected"]) + allowed["ranked_total"]
        (violation,) = refused[allowed["ranked"][0]["pool"]]
        assert violation["rule"] == "no_budget"
        assert violation["required"] == cost
        assert violation["observed"]["account"] == "eu-bank/support-chat/prod"
        assert violation["observed"]["remaining"] == 1
        assert violation["observed"]["resets_at"] > denied["time"]
        record = server.client.get(f"/v1/decisions/{denied['id']}").json()
        assert {key: record[key] for key in denied} == denied
        explained = server.client.get(f"/v1/decisions/{denied['id']}/explanation", params={"format": "text"}).text
        assert "denied by budget" in explained
        assert "eu-bank/support-chat/prod" in explained
        found = server.client.get("/v1/decisions", params={"denied_by": "budget", "rule": "no_budget"}).json()["items"]
        assert [item["id"] for item in found] == [denied["id"]]
        top = accounts(server)["eu-bank", "micro_usd"]
        assert top.reserved == 2 * cost


def test_what_is_in_flight_is_limited_for_a_group_of_pools(
    serving_with: Any, fleet_with: Any, bank_chat: dict[str, Any], api: Any
) -> None:
    first = api.client.post("/v1/decisions", json=bank_chat).json()["ranked"][0]["pool"]
    group_of = {pool.id: pool.group for pool in api.parts.snapshot.fleet.pools.values()}
    group = group_of[first]
    bank_chat["options"]["limit"] = 1
    with serve(serving_with, fleet_with(f"{{limit: 2, unit: in_flight, pools: {group}}}")) as server:
        answers = [server.client.post("/v1/decisions", json=bank_chat).json() for _ in range(3)]
        chosen = [group_of[entry["pool"]] for answer in answers for entry in answer["ranked"]]
        assert chosen.count(group) == 2
        assert accounts(server)["eu-bank/support-chat/prod", "in_flight"].reserved == 2


def test_64_clients_at_once_get_what_there_is_and_no_more(
    serving_with: Any, fleet_with: Any, bank_chat: dict[str, Any], cost: int
) -> None:
    room = 100
    limits = f'{{limit: "{usd(room * cost)}", window: month}}, {{limit: 1000, unit: requests, window: day}}'
    with serve(serving_with, fleet_with(limits)) as server:

        async def client(http: httpx.AsyncClient) -> list[dict[str, Any]]:
            return [(await http.post("/v1/decisions", json=bank_chat)).json() for _ in range(4)]

        async def crowd() -> list[dict[str, Any]]:
            async with httpx.AsyncClient(base_url=server.address, timeout=60, limits=httpx.Limits()) as http:
                answers = await asyncio.gather(*(client(http) for _ in range(64)))
            return [answer for some in answers for answer in some]

        answers = asyncio.run(crowd())
        allowed = [answer for answer in answers if answer["outcome"] == "allow"]
        assert len(answers) == 256
        assert len(allowed) == room
        assert {answer["denied_by"] for answer in answers if answer["outcome"] == "deny"} == {"budget"}
        found = accounts(server)
        assert found["eu-bank/support-chat/prod", "micro_usd"].reserved == room * cost
        assert found["eu-bank/support-chat/prod", "requests"].reserved == room
        assert_log_folds(server)


def assert_log_folds(server: Any) -> None:
    """The postings in the log, in its order, are dense for each account and end at the stored balances."""
    last: dict[tuple[Any, ...], list[Any]] = {}
    with server.parts.reader._engine.connect() as connection:
        for (body,) in connection.execute(select(BODY.c.body).order_by(BODY.c.index)):
            document = json.loads(body)
            for posting, _ in postings_of(document):
                key, balance = tuple(posting.key), list(posting[1:])
                assert balance[0] == (last[key][0] if key in last else 0) + 1
                last[key] = balance
        stored = [account_of(row) for row in connection.execute(select(ACCOUNT))]
    kept = {
        tuple(each.key): [each.sequence, each.limit, each.reserved, each.spent, each.leased, each.debt]
        for each in stored
        if each.sequence
    }
    assert last == kept
