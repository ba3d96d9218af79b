"""Simulations over HTTP: only what is named differs, nothing is written, and the live server does not notice."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.core.principal import LOCAL, Grant, Principal
from policyd.core.workload import DecisionRequest
from policyd.errors import Forbidden, LimitReached, PolicydError, TimedOut, UnknownName
from policyd.services.simulation import Overrides
from policyd.services.simulations import Asked, Compared

PATH = "/v1/simulations"

REFUSE_ALL = """# METADATA
# title: Nothing runs anywhere
# custom:
#   enforcement: hard
#   owner: nobody
#   remedy: none
package placement.nothing

deny contains violation if {
	input.pool.id
	violation := {"rule": "nothing", "observed": input.pool.id, "required": "none"}
}
"""


def simulate(api: Any, workloads: list[Any], **overrides: Any) -> Any:
    return api.client.post(PATH, json={"workloads": workloads, "overrides": overrides})


@pytest.fixture
def workload(bank_chat: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = bank_chat["workload"]
    return found


def pools(decision: dict[str, Any]) -> list[str]:
    return [entry["pool"] for entry in decision["ranked"]]


def test_today_is_what_a_decision_says(api: Any, bank_chat: dict[str, Any]) -> None:
    real = api.client.post("/v1/decisions", json=bank_chat).json()
    found = api.client.post(PATH, json={"requests": [bank_chat]}).json()
    assert found["no_pool_left"] == []
    for side in found["items"][0].values():
        assert (side["mode"], side["audit"], side["reservation"]) == ("simulation", None, None)
        for name in ("outcome", "workload", "ranked", "ranked_total", "rejected", "hidden_total", "sheet", "policy"):
            assert side[name] == real[name]


def test_without_a_provider(api: Any, workload: dict[str, Any]) -> None:
    fleet = api.parts.snapshot.fleet
    first = pools(simulate(api, [workload]).json()["items"][0]["today"])[0]
    provider = fleet.pools[first].provider
    item = simulate(api, [workload], without_providers=[provider]).json()["items"][0]
    assert first in pools(item["today"])
    named = {*pools(item["simulated"]), *(entry["pool"] for entry in item["simulated"]["rejected"])}
    assert named
    assert all(fleet.pools[pool].provider != provider for pool in named)
    assert item["simulated"]["fleet"]["digest"] != item["today"]["fleet"]["digest"]


def test_workloads_without_a_pool_are_named(api: Any, bank_chat: dict[str, Any], workload: dict[str, Any]) -> None:
    ranked = pools(api.client.post("/v1/decisions", json={**bank_chat, "options": {"limit": 1_000}}).json())
    impossible = {**workload, "resources": {"gpu_count": 60_000}}
    found = simulate(api, [impossible, workload], without_pools=ranked).json()
    assert found["no_pool_left"] == [1]
    assert [item["today"]["outcome"] for item in found["items"]] == ["deny", "allow"]
    assert [item["simulated"]["outcome"] for item in found["items"]] == ["deny", "deny"]


def test_prices_weights_and_time(api: Any, workload: dict[str, Any]) -> None:
    first = pools(simulate(api, [workload]).json()["items"][0]["today"])[0]
    item = simulate(api, [workload], price_percent={first: 200}, time="2026-12-24T20:00:00Z").json()["items"][0]
    costs = [
        next(entry["cost"]["micro_usd"] for entry in item[side]["ranked"] if entry["pool"] == first)
        for side in ("today", "simulated")
    ]
    assert abs(costs[1] - 2 * costs[0]) <= 2
    assert item["simulated"]["time"] == "2026-12-24T20:00:00.000000Z"
    weighed = simulate(api, [workload], weights={"price": 1_000}).json()["items"][0]["simulated"]
    cheapest = [entry["cost"]["micro_usd"] for entry in weighed["ranked"]]
    assert cheapest == sorted(cheapest)


def test_nothing_is_written_and_no_live_sheet_is_touched(api: Any, workload: dict[str, Any]) -> None:
    decide = {"workload": workload}
    before = api.client.post("/v1/decisions", json=decide).json()["audit"]["index"]
    sheets, computed = set(api.parts.book._sheets), api.parts.book.counts.computed
    other = {**workload, "profile": {"urgency": "batch", "task": "vision"}}
    found = api.client.post(PATH, json={"workloads": [workload, other]}, headers={"X-Request-ID": "simulated"})
    assert [item["today"]["outcome"] for item in found.json()["items"]]
    assert (set(api.parts.book._sheets), api.parts.book.counts.computed) == (sheets, computed)
    assert api.client.get("/v1/decisions", params={"request_id": "simulated"}).json()["items"] == []
    assert api.client.post("/v1/decisions", json=decide).json()["audit"]["index"] == before + 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"workloads": []}, 400),
        ({"workloads": [{"model": "m"}], "requests": [{"workload": {"model": "m"}}]}, 400),
        ({"workloads": [{"model": "m"}], "overrides": {"without_provider": ["aws"]}}, 400),
        ({"workloads": [{"model": "m"}], "overrides": None}, 400),
        ({"workloads": [{"model": "m"}] * 101}, 413),
        ({"overrides": {"without_providers": ["nobody"]}}, 422),
        ({"overrides": {"without_pools": ["aws"]}}, 422),
        ({"overrides": {"price_percent": {"nobody": 50}}}, 422),
        ({"overrides": {"price_percent": {"onprem-fra-h100": 0}}}, 400),
        ({"overrides": {"weights": {"price": 1_001}}}, 400),
        ({"overrides": {"weights": {"price": 900, "control": 200}}}, 400),
        ({"overrides": {"weights": {"prize": 900}}}, 422),
        ({"overrides": {"time": "tomorrow"}}, 400),
        ({"overrides": {"time": "2026-12-24T20:00:00"}}, 400),
        ({"overrides": {"time": "9999-12-31T23:59:59Z"}}, 400),
        ({"overrides": {"time": "0001-01-01T00:00:00Z"}}, 400),
        ({"overrides": {"policies": "../../etc"}}, 400),
        ({"overrides": {"policies": "/etc"}}, 400),
        ({"overrides": {"policies": "etc/passwd"}}, 422),
        ({"overrides": {"fleet": "policies"}}, 422),
    ],
)
def test_what_cannot_be_simulated(api: Any, workload: dict[str, Any], body: dict[str, Any], status: int) -> None:
    asked = body if "workloads" in body or not body else {"workloads": [workload], **body}
    found = api.client.post(PATH, json=asked)
    assert found.status_code == status, found.text
    assert found.headers["content-type"] == "application/problem+json"


def test_a_workload_that_fails_does_so_alone(api: Any, workload: dict[str, Any]) -> None:
    items = simulate(api, [{**workload, "tenant": "eu-banc"}, workload]).json()["items"]
    assert items[0]["today"]["outcome"] == items[0]["simulated"]["outcome"] == "error"
    assert items[0]["simulated"]["problem"]["code"] == "request.unknown_name"
    assert items[1]["simulated"]["outcome"] == "allow"


@pytest.fixture
def trees(tmp_path: Path, repository: Path) -> dict[str, str]:
    """Policies that refuse everything, policies that do not compile, and a fleet with one pool file less."""
    for name in ("strict", "broken", "open"):
        shutil.copytree(repository / "policies", tmp_path / name)
    for name, text in (("strict", REFUSE_ALL), ("broken", REFUSE_ALL.replace("contains violation", "contains"))):
        (tmp_path / name / "nothing").mkdir()
        (tmp_path / name / "nothing" / "nothing.rego").write_text(text)
    rows = next((tmp_path / "open" / "casbin").glob("*.csv"))
    rows.write_text(rows.read_text() + "\np, guest, *, decisions, simulate, allow\n")
    shutil.copytree(repository / "examples" / "fleet", tmp_path / "smaller")
    (tmp_path / "smaller" / "pools-spot.yaml").unlink()
    return {name: str(tmp_path / name) for name in ("strict", "broken", "open", "smaller")}


def test_trees_that_the_settings_name(serving_with: Any, workload: dict[str, Any], trees: dict[str, str]) -> None:
    with serving_with(simulation={"trees": trees}) as server:
        found = simulate(server, [workload], policies="strict").json()
        assert found["no_pool_left"] == [0]
        item = found["items"][0]
        assert item["today"]["policy"]["digest"] != item["simulated"]["policy"]["digest"]
        refused = simulate(server, [workload], policies="broken")
        assert (refused.status_code, refused.json()["code"]) == (422, "policy.invalid")
        smaller = simulate(server, [workload], fleet="smaller").json()["items"][0]["simulated"]
        assert smaller["outcome"] == "allow"
        assert not any(pool.endswith("spot") for pool in pools(smaller))
        # The live policies are still there, for a class that nobody has asked about.
        other = {**workload, "profile": {"urgency": "batch", "task": "speech"}}
        assert server.client.post("/v1/decisions", json={"workload": other}).status_code == 200
        assert list(server.parts.engine._sets) == [server.parts.snapshot.policies.digest]


def compare(
    server: Any,
    principal: Principal,
    workloads: list[Any],
    overrides: Overrides,
    *,
    deadline_ms: int = 8_000,
    policies: str | None = None,
) -> list[Compared]:
    """What the service says to a principal that the door of this server would not let in."""
    requests = [DecisionRequest.model_validate_json(json.dumps({"workload": workload})) for workload in workloads]
    asked = Asked(requests, overrides, policies)
    found: list[Compared] = server.run(server.parts.simulations.compare(asked, principal, deadline_ms))
    return found


def test_tried_policies_give_nobody_rights(serving_with: Any, workload: dict[str, Any], trees: dict[str, str]) -> None:
    guest = Principal("token:guest", (Grant("guest"),))
    with serving_with(simulation={"trees": trees}) as server:
        (found,) = compare(server, guest, [workload], Overrides(), policies="open")
    assert isinstance(found.today.error, Forbidden)
    assert isinstance(found.simulated.error, Forbidden)


def test_a_pool_that_the_caller_cannot_see_does_not_exist(api: Any, workload: dict[str, Any]) -> None:
    bank = Principal("token:bank", (Grant("local", tenant="eu-bank"),))
    decided = api.client.post("/v1/decisions", json={"workload": workload, "options": {"limit": 1_000}}).json()
    named = {entry["pool"] for entry in (*decided["ranked"], *decided["rejected"])}
    hidden = next(pool for pool in api.parts.snapshot.fleet.pools if pool not in named)
    for overrides in (Overrides(without_pools=(hidden,)), Overrides(price_percent={hidden: 50})):
        with pytest.raises(UnknownName) as refused:
            compare(api, bank, [workload], overrides)
        assert hidden not in refused.value.detail.replace(f"unknown pool {hidden!r}", "")
    assert compare(api, bank, [workload], Overrides(without_pools=(pools(decided)[0],)))


MANY = [
    {"resources": {"gpu_count": count}, "profile": {"task": task}}
    for count in (1, 2, 4, 8)
    for task in ("chat", "rag", "vision", "other")
]


@pytest.mark.parametrize(
    ("bounds", "refused", "code"),
    [({}, 429, "identity.limit"), ({"per_caller_max": 8, "in_progress_max": 2}, 503, "overload")],
)
def test_no_more_at_once_than_the_limits(
    serving_with: Any, workload: dict[str, Any], bounds: dict[str, int], refused: int, code: str
) -> None:
    many = [{**workload, **more} for more in MANY]
    with serving_with(simulation=bounds) as server:
        answers: list[Any] = []
        callers = [threading.Thread(target=lambda: answers.append(simulate(server, many))) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(60)
        assert {answer.status_code for answer in answers} == {200, refused}
        told = next(answer for answer in answers if answer.status_code == refused)
        assert (told.json()["code"], told.headers["retry-after"]) == (code, "1")
        assert simulate(server, [workload]).status_code == 200


def test_a_short_simulation_does_not_wait_for_a_long_one_of_another_tenant(
    serving_with: Any, workload: dict[str, Any]
) -> None:
    """Two callers of one tenant hold its places with long simulations; another tenant's comes in between."""
    bank = [Principal(f"token:bank-{number}", (Grant("local", "eu-bank"),)) for number in range(3)]
    lab = Principal("token:lab", (Grant("local", "nordic-lab"),))
    with serving_with() as server:

        async def asked(principal: Principal, workloads: list[Any]) -> list[Compared]:
            requests = [DecisionRequest.model_validate({"workload": each}) for each in workloads]
            return await server.parts.simulations.compare(Asked(requests, Overrides()), principal, 60_000)

        async def both() -> tuple[bool, list[Compared], list[Compared]]:
            many = [{**workload, **more} for more in MANY]
            long = [asyncio.create_task(asked(who, many)) for who in bank[:2]]
            await asyncio.sleep(0)
            with pytest.raises(LimitReached):
                await asked(bank[2], many)
            short = await asked(lab, [{"tenant": "nordic-lab", "model": "llama-3.1-70b-instruct"}])
            waiting = not any(task.done() for task in long)
            return waiting, short, (await asyncio.gather(*long))[0]

        waiting, short, long = server.run(both())
    assert waiting, "it was answered only after the long ones"
    assert short[0].today.made is not None
    assert len(long) == len(MANY)


def test_who_simulates_for_one_tenant_learns_nothing_of_the_trees(
    serving_with: Any, workload: dict[str, Any], trees: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    bank = Principal("token:bank", (Grant("local", tenant="eu-bank"),))
    with serving_with(simulation={"trees": trees}) as server:

        def refused(principal: Principal, name: str) -> PolicydError:
            with pytest.raises(PolicydError) as raised:
                compare(server, principal, [workload], Overrides(), policies=name)
            return raised.value

        assert refused(LOCAL, "stric").findings[0].message.endswith("did you mean 'strict'?")
        assert "strict" not in str(refused(bank, "stric").findings[0].message)
        for name, inside in (("broken", "nothing.rego"), ("smaller", "casbin")):
            told, hidden = refused(LOCAL, name), refused(bank, name)
            assert inside in f"{told.detail} {told.findings}"
            assert trees[name] not in f"{told.detail} {told.findings} {told.remedy_text}"
            assert type(hidden) is type(told)
            assert (hidden.detail, hidden.findings) == (f"the tree {name!r} does not hold together", ())
            assert inside in caplog.text
        assert compare(server, bank, [workload], Overrides(), policies="strict")[0].lost


def test_what_comes_too_late_says_so(serving_with: Any, workload: dict[str, Any]) -> None:
    many = [{**workload, **more} for more in MANY]
    with serving_with() as server:
        found = compare(server, LOCAL, many, Overrides(), deadline_ms=100)
        assert len(found) == len(many)
        assert isinstance(found[-1].today.error, TimedOut)
        assert isinstance(found[-1].simulated.error, TimedOut)
        assert not found[-1].lost
        assert simulate(server, [workload]).json()["items"][0]["simulated"]["outcome"] == "allow"


@settings(max_examples=8)
@given(data=st.data())
def test_every_visible_pool_is_ranked_or_refused_once_or_gone(api: Any, data: st.DataObject) -> None:
    fleet = api.parts.snapshot.fleet
    gone = data.draw(st.lists(st.sampled_from(sorted(fleet.pools)), unique=True, max_size=60))
    request = {
        "workload": {"tenant": "eu-bank", "project": "support-chat", "model": "llama-3.1-70b-instruct"},
        "options": {"limit": 1_000},
    }
    item = api.client.post(PATH, json={"requests": [request], "overrides": {"without_pools": gone}}).json()["items"][0]
    was, then = (
        [entry["pool"] for entry in (*item[side]["ranked"], *item[side]["rejected"])] for side in ("today", "simulated")
    )
    assert len(then) == len(set(then))
    assert set(then) == set(was) - set(gone)
    for refused in item["simulated"]["rejected"]:
        assert refused in item["today"]["rejected"]
