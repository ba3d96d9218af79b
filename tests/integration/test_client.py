"""The client against the real server: one suite, for the client that waits and for the one that is awaited."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from policyd.client import AsyncClient, Client
from policyd.errors import KeyReused, Loosens, NotFound, PolicydError, RequestError, UnknownName
from tests.integration.conftest import ApiServer

Ask = Callable[..., Any]
"""``ask(method, …)`` on the client under test; an iterator is read to its end."""


def waiting(address: str, **given: Any) -> Generator[Ask, None, None]:
    """The client of code that waits."""
    with Client(address, **given) as client:

        def ask(method: str, *arguments: Any, **named: Any) -> Any:
            found = getattr(client, method)(*arguments, **named)
            return list(found) if isinstance(found, Iterator) else found

        yield ask


def awaiting(address: str, **given: Any) -> Generator[Ask, None, None]:
    """The client of coroutines, on one loop of its own."""
    with asyncio.Runner() as runner:
        client = AsyncClient(address, **given)

        async def collected(found: AsyncIterator[Any]) -> list[Any]:
            return [item async for item in found]

        async def awaited(found: Any) -> Any:
            return await found

        def ask(method: str, *arguments: Any, **named: Any) -> Any:
            found = getattr(client, method)(*arguments, **named)
            return runner.run(collected(found) if isinstance(found, AsyncIterator) else awaited(found))

        yield ask
        runner.run(client.aclose())


@pytest.fixture(params=[waiting, awaiting], ids=["Client", "AsyncClient"])
def ask(request: pytest.FixtureRequest, api: ApiServer) -> Generator[Ask, None, None]:
    yield from request.param(api.address)


def test_an_allow_is_the_servers_answer_and_is_on_record(ask: Ask, bank_chat: dict[str, Any]) -> None:
    decision = ask("decide", bank_chat["workload"], {"limit": 2}, request_id="ask-1")
    assert (decision["outcome"], len(decision["ranked"])) == ("allow", 2)
    assert decision["ranked"][0]["cost"]["micro_usd"] > 0
    record = ask("record", decision["id"])
    assert (record["request_id"], record["ranked"]) == ("ask-1", decision["ranked"])
    explained = ask("explanation", decision["id"])
    assert [entry["pool"] for entry in explained["ranked"]] == [entry["pool"] for entry in decision["ranked"]]
    assert ask("explanation_text", decision["id"]).startswith(f"Decision {decision['id']}: allow")


def test_a_key_repeats_the_recorded_answer(ask: Ask, bank_chat: dict[str, Any]) -> None:
    key = str(uuid4())
    first = ask("decide", bank_chat["workload"], idempotency_key=key)
    assert ask("decide", bank_chat["workload"], idempotency_key=key) == first
    with pytest.raises(KeyReused):
        ask("decide", {**bank_chat["workload"], "environment": "staging"}, idempotency_key=key)


def test_a_key_repeats_a_batch(ask: Ask, bank_chat: dict[str, Any]) -> None:
    key = str(uuid4())
    first = ask("decide_batch", [bank_chat, bank_chat], idempotency_key=key)
    assert first[0]["id"] != first[1]["id"]
    assert ask("decide_batch", [bank_chat, bank_chat], idempotency_key=key) == first


def test_a_deny_is_an_answer(ask: Ask, bank_chat: dict[str, Any]) -> None:
    workload = {**bank_chat["workload"], "resources": {"gpu_count": 65_536}}
    decision = ask("decide", workload)
    assert (decision["outcome"], decision["ranked"], decision["denied_by"]) == ("deny", [], "eligibility")


def test_errors_are_those_of_the_server_with_their_ids(ask: Ask, bank_chat: dict[str, Any]) -> None:
    with pytest.raises(UnknownName, match="eu-banc") as unknown:
        ask("decide", {**bank_chat["workload"], "tenant": "eu-banc"}, request_id="misspelt")
    assert unknown.value.request_id == "misspelt"
    with pytest.raises(Loosens) as loosens:
        ask("decide", {**bank_chat["workload"], "data": {"classification": "public"}})
    assert loosens.value.decision_id
    assert ask("record", loosens.value.decision_id)["kind"] == "refusal"
    with pytest.raises(RequestError) as misspelt:
        ask("decide", {**bank_chat["workload"], "tenat": "x"})
    assert "did you mean `tenant`?" in str(misspelt.value.findings[0])
    assert misspelt.value.problem
    assert misspelt.value.problem["status"] == 400


def test_a_batch_holds_an_answer_or_an_error_for_each(ask: Ask, bank_chat: dict[str, Any]) -> None:
    refused = {"workload": {**bank_chat["workload"], "data": {"classification": "public"}}}
    answers = ask("decide_batch", [bank_chat, refused, {"workload": {"model": "x", "tenant": "nobody"}}])
    assert answers[0]["outcome"] == "allow"
    assert [type(answer) for answer in answers[1:]] == [Loosens, UnknownName]
    assert ask("record", answers[1].decision_id)["kind"] == "refusal"
    with pytest.raises(RequestError):
        ask("decide_batch", [])


def test_a_simulation_is_beside_todays_decision(ask: Ask, api: ApiServer, bank_chat: dict[str, Any]) -> None:
    first = ask("decide", bank_chat["workload"])["ranked"][0]["pool"]
    told = ask("simulate", [bank_chat, {"workload": {**bank_chat["workload"], "tenant": "nobody"}}],
               {"without_pools": [first], "time": "2026-12-24T20:00:00Z"})  # fmt: skip
    today, simulated = told["items"][0]["today"], told["items"][0]["simulated"]
    assert today["ranked"][0]["pool"] == first
    assert first not in [entry["pool"] for entry in simulated["ranked"] + simulated["rejected"]]
    assert told["items"][1]["today"]["outcome"] == "error"
    assert told["no_pool_left"] == []
    assert (today["mode"], today["audit"]) == ("simulation", None)
    with pytest.raises(UnknownName, match="did you mean"):
        ask("simulate", [bank_chat], {"without_providers": ["awss"]})


def test_an_evaluation_is_a_recorded_decision(ask: Ask, bank_chat: dict[str, Any]) -> None:
    workload = {name: value for name, value in bank_chat["workload"].items() if name != "tenant"}
    first = ask("decide", bank_chat["workload"])["ranked"][0]["pool"]
    permitted = ask("evaluate", "eu-bank", first, workload, request_id="evaluated")
    assert permitted["decision"] is True
    assert ask("record", permitted["context"]["id"])["request_id"] == "evaluated"
    refused = ask("evaluate", "eu-bank", "aws-us-east-1-h100", workload)
    assert (refused["decision"], bool(refused["context"]["violations"])) == (False, True)
    assert ask("evaluate", "eu-bank", "no-such-pool", workload)["decision"] is False


def test_several_evaluations_in_order(ask: Ask, bank_chat: dict[str, Any]) -> None:
    workload = {name: value for name, value in bank_chat["workload"].items() if name != "tenant"}
    first = ask("decide", bank_chat["workload"])["ranked"][0]["pool"]
    questions = [{"pool": pool, "workload": workload} for pool in ("no-such-pool", first, "aws-us-east-1-h100")]
    for semantic, expected in (
        ("execute_all", [False, True, False]),
        ("deny_on_first_deny", [False]),
        ("permit_on_first_permit", [False, True]),
    ):
        found = ask("evaluate_many", "eu-bank", questions, semantic=semantic, request_id="evaluated-many")
        assert [answer["decision"] for answer in found] == expected
    assert ask("record", found[1]["context"]["id"])["request_id"] == "evaluated-many"
    with pytest.raises(RequestError, match="nothing to evaluate"):
        ask("evaluate_many", "eu-bank", [])


def test_a_search_for_pools_finds_what_evaluations_permit(ask: Ask, bank_chat: dict[str, Any]) -> None:
    workload = {name: value for name, value in bank_chat["workload"].items() if name != "tenant"}
    ranked = [entry["pool"] for entry in ask("decide", bank_chat["workload"], {"limit": 1_000})["ranked"]]
    whole = ask("search_pools", "eu-bank", workload)
    assert [pool["id"] for pool in whole["results"]] == ranked
    assert whole["page"]["next_token"] == ""
    pages = [ask("search_pools", "eu-bank", workload, limit=2, request_id="searched")]
    while token := pages[-1]["page"]["next_token"]:
        pages.append(ask("search_pools", "eu-bank", workload, limit=2, token=token))
    assert [pool["id"] for page in pages for pool in page["results"]] == ranked
    assert ask("record", pages[0]["context"]["id"])["request_id"] == "searched"


def test_a_comparison_says_what_is_cheapest(ask: Ask, bank_chat: dict[str, Any]) -> None:
    found = ask("break_even", {"model": "llama-3.1-70b-instruct", "requests_per_hour": 3_000})
    assert found["cheapest"][0]["pool"] in [line["pool"] for line in found["pools"]]
    assert any(line["micro_usd_per_month"] > 0 for line in found["pools"])
    permitted = ask("break_even", {"workload": bank_chat["workload"]})
    assert len(permitted["pools"]) < len(found["pools"])
    with pytest.raises(RequestError):
        ask("break_even", {})


def test_a_search_reads_every_page(ask: Ask, bank_chat: dict[str, Any]) -> None:
    made = [ask("decide", bank_chat["workload"], request_id="paged")["id"] for _ in range(5)]
    found = ask("search", {"request_id": "paged", "outcome": "allow"}, page_limit=2)
    assert [entry["id"] for entry in found][:5] == made[::-1]
    page = ask("search_page", {"request_id": "paged"}, limit=1)
    assert [entry["id"] for entry in page["items"]] == [made[-1]]
    following = ask("search_page", {"request_id": "paged"}, cursor=page["next"], limit=1)
    assert following["items"][0]["id"] == made[-2]
    assert ask("search", {"request_id": "never-sent"}) == []
    with pytest.raises(RequestError, match="outcom"):
        ask("search", {"outcom": "allow"})


def test_the_fleet_is_read_whole(ask: Ask, api: ApiServer) -> None:
    fleet = ask("fleet")
    assert fleet["digest"] == api.parts.snapshot.fleet.digest
    pools = ask("pools", page_limit=7)
    assert [pool["id"] for pool in pools] == list(api.parts.snapshot.fleet.pools)
    assert {k: v for k, v in ask("pool", pools[-1]["id"]).items() if k != "fleet"} == pools[-1]
    assert sorted({model["name"] for model in ask("models", page_limit=3)}) == fleet["models"]


@pytest.mark.parametrize("name", ["no-such", "a/b", "../../livez", "x?y=1", "ä#"])
def test_a_name_leads_nowhere_else(ask: Ask, name: str) -> None:
    for method in ("pool", "record", "explanation", "explanation_text"):
        with pytest.raises((NotFound, RequestError)):
            ask(method, name)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_what_is_no_name_is_not_sent(ask: Ask, name: str) -> None:
    for method in ("pool", "record", "explanation"):
        with pytest.raises(RequestError, match="is no id"):
            ask(method, name)


def test_what_cannot_be_sent_is_refused_here(ask: Ask) -> None:
    with pytest.raises(RequestError, match="not JSON"):
        ask("decide", {"model": object()})
    with pytest.raises(RequestError, match="X-Request-ID is printable"):
        ask("decide", {"model": "x"}, request_id="a\r\nX-Evil: 1")


def test_health_is_told(ask: Ask) -> None:
    assert ask("live") is True
    assert ask("ready")["ready"] is True


@pytest.mark.parametrize("client", [waiting, awaiting], ids=["Client", "AsyncClient"])
def test_not_ready_is_an_answer(client: Any, serving_with: Callable[..., Any], tmp_path: Path) -> None:
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps({"observed_at": "2020-01-01T00:00:00Z", "pools": {}}))
    with serving_with(facts={"path": str(facts), "max_age_ms": 1_000}) as server:
        for ask in client(server.address):
            readiness = ask("ready")
            assert readiness["ready"] is False
            assert [check["name"] for check in readiness["checks"] if not check["ok"]] == ["facts"]
            with pytest.raises(PolicydError) as error:
                ask("decide", {"model": "llama-3.1-70b-instruct", "tenant": "eu-bank"})
            assert error.value.http_status == 503


def test_both_clients_have_the_same_calls() -> None:
    def calls(kind: type) -> dict[str, list[str]]:
        return {
            name: [str(parameter) for parameter in inspect.signature(found).parameters.values()]
            for name, found in vars(kind).items()
            if inspect.isfunction(found) and not name.startswith("_")
        }

    one, other = calls(Client), calls(AsyncClient)
    assert one.pop("close") == other.pop("aclose")
    assert one == other


def test_the_import_brings_no_part_of_the_server() -> None:
    code = "import sys, policyd.client; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    ours = [name for name in loaded if name.split(".")[0] in ("policyd", "audit", "connectors")]
    assert ours == [
        "policyd", "policyd.client", "policyd.client.authzen_calls", "policyd.client.calls", "policyd.client.clients",
        "policyd.client.connections",
        "policyd.client.documents", "policyd.client.history", "policyd.client.problems", "policyd.client.revisions",
        "policyd.client.two_persons", "policyd.client.waivers", "policyd.errors",
    ]  # fmt: skip
    assert not {
        "httpx",
        "rich",
        "fastapi",
        "pydantic",
        "sqlalchemy",
        "regopy",
        "casbin",
        "yaml",
        "opentelemetry",
    } & set(loaded)
