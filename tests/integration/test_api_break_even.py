"""Break-even over HTTP: the command's own document, of the pools that the caller may see."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from typer.testing import CliRunner

from policyd.cli.main import app
from policyd.core.principal import LOCAL
from policyd.services.break_even import Asked, compare
from policyd.services.permission import visible_pools

PATH = "/v1/break-even"
MODEL = "llama-3.1-70b-instruct"
ASKED: dict[str, Any] = {"model": MODEL, "requests_per_hour": 3_000, "input_tokens": 1_000, "output_tokens": 300}


def test_the_answer_is_that_of_the_command(api: Any) -> None:
    found = api.client.post(PATH, json=ASKED)
    assert found.status_code == 200, found.text
    flags = ["--requests-per-hour", "3000", "--input-tokens", "1000", "--output-tokens", "300", "--output", "json"]
    told = CliRunner().invoke(app, ["break-even", MODEL, *flags])
    assert told.exit_code == 0, told.output
    assert found.json() == json.loads(told.stdout)
    assert found.json()["pools"]
    assert found.json()["cheapest"]


def test_a_workload_brings_its_figures_and_its_pools(api: Any, bank_chat: dict[str, Any]) -> None:
    bank_chat["options"]["limit"] = 1_000
    decided = api.client.post("/v1/decisions", json=bank_chat).json()
    found = api.client.post(PATH, json={"workload": bank_chat["workload"]}).json()
    assert found["model"] == MODEL
    assert found["traffic"]["peak_requests_per_hour"] == 3_600
    assert (found["traffic"]["input_tokens"], found["traffic"]["output_tokens"]) == (1_200, 400)
    compared = {entry["pool"] for entry in (*found["pools"], *found["unpriced"])}
    assert {entry["pool"] for entry in decided["ranked"]} <= compared
    fleet = set(api.parts.snapshot.fleet.pools)
    refused = {entry["pool"] for entry in decided["rejected"] if entry["violations"][0]["policy"] == "residency"}
    assert refused
    assert not compared & refused
    assert compared <= fleet
    hourly = api.client.post(PATH, json={"workload": bank_chat["workload"], "hourly": [10] * 167 + [500]}).json()
    assert hourly["traffic"]["peak_requests_per_hour"] == 500


def test_patterns_choose_pools(api: Any) -> None:
    found = api.client.post(PATH, json={**ASKED, "pools": ["onprem-*"]}).json()
    assert found["pools"]
    assert all(entry["pool"].startswith("onprem-") for entry in found["pools"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"model": MODEL}, 400),
        ({**ASKED, "hourly": [1] * 168}, 400),
        ({**ASKED, "requests_per_hour": -1}, 400),
        ({**ASKED, "requests_per_hour": 0}, 400),
        ({**ASKED, "requests_per_hour": 1.5}, 400),
        ({"model": MODEL, "hourly": [1] * 167}, 400),
        ({**ASKED, "input_tokens": 0, "output_tokens": 0}, 400),
        ({**ASKED, "pools": [""]}, 400),
        ({**ASKED, "pools": ["x" * 129]}, 400),
        ({**ASKED, "pool": ["x"]}, 400),
        ({**ASKED, "pools": ["no-such-*"]}, 422),
        ({**ASKED, "model": "no-such-model"}, 422),
        ({"workload": {"model": MODEL, "tenant": "eu-banc"}}, 422),
        ({"workload": {"model": MODEL, "tenant": "eu-bank", "data": {"classification": "public"}}}, 403),
        ({"workload": {"model": MODEL, "tenant": "eu-bank"}, "model": "llama-3.1-8b-instruct"}, 400),
    ],
)
def test_what_cannot_be_compared(api: Any, body: dict[str, Any], status: int) -> None:
    found = api.client.post(PATH, json=body)
    assert found.status_code == status, found.text
    assert found.headers["content-type"] == "application/problem+json"


def test_a_pool_that_nobody_of_the_caller_sees_is_not_compared(api: Any) -> None:
    snapshot = api.parts.snapshot
    of_bank = visible_pools(snapshot.entitlements, snapshot.fleet, ["eu-bank"])
    of_all = visible_pools(snapshot.entitlements, snapshot.fleet, list(snapshot.fleet.tenants))
    assert of_bank < of_all
    asked = Asked(MODEL, [3_000])
    whole = compare(snapshot.fleet, asked, None)
    seen = compare(snapshot.fleet, asked, None, lambda pool: pool.id in of_bank)
    hidden = snapshot.fleet.pools.keys() - of_bank
    assert {entry.line.pool for entry in whole.standings} & hidden
    assert not {entry.line.pool for entry in seen.standings} & hidden
    assert LOCAL.permitted_somewhere(snapshot.entitlements, "fleet", "read", "eu-bank")


def test_one_caller_has_its_part(api: Any) -> None:
    answers: list[int] = []
    callers = [
        threading.Thread(target=lambda: answers.append(api.client.post(PATH, json=ASKED).status_code)) for _ in range(6)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert set(answers) == {200, 429}
    assert api.client.post(PATH, json=ASKED).status_code == 200
