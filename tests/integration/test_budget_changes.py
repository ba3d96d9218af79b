"""Changing budgets over HTTP and by the command line: who may, how far, what counts then, and what the log says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from audit.tables import BODY
from policyd.cli.main import run
from policyd.services.admission import postings_of
from tests.integration.conftest import ApiServer, serving
from tests.integration.test_api_identity import bearer, granted, tokens_file
from tests.integration.test_reservations import assert_log_folds
from tests.integration.test_settlements import check_problem

PROJECT = "eu-bank/support-chat"
Doors = tuple[ApiServer, dict[str, str]]


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Generator[Doors, None, None]:
    path = tmp_path_factory.mktemp("doors") / "tokens.json"
    tokens = tokens_file(
        path,
        {"name": "platform", "grants": [granted("platform")]},
        {"name": "governance", "grants": [granted("governance")]},
        {"name": "bank", "grants": [granted("governance", tenant="eu-bank")]},
        {"name": "app", "grants": [granted("developer", tenant="eu-bank")]},
    )
    settings = {"auth": {"tokens_file": path}, "budgets": {"raise_alone_max": {"usd": 15_000}}}
    with serving({"data_dir": path.parent / "data", **settings}) as server:
        yield server, tokens


def put(doors: Doors, who: str, path: str, *limits: dict[str, Any]) -> Any:
    body = {"limits": list(limits), "reason": "a test"}
    return doors[0].client.put(f"/v1/budgets/{path}", json=body, headers=bearer(doors[1][who]))


def month(limit: str | int, **more: Any) -> dict[str, Any]:
    return {"limit": limit, "window": "month", **more}


def test_lowering_takes_one_person_and_raising_another_permission(doors: Doors) -> None:
    lowered = put(doors, "platform", PROJECT, month("9000.50"))
    assert lowered.status_code == 200, lowered.text
    (item,) = lowered.json()["items"]
    assert (item["limit"], item["limit_fleet"], item["limit_set"]) == (9_000_500_000, 25_000_000_000, 9_000_500_000)
    assert check_problem(put(doors, "platform", PROJECT, month(9_001)), 403)["code"] == "budget.raised"
    raised = put(doors, "bank", PROJECT, month(15_000))
    assert raised.json()["items"][0]["limit"] == 15_000_000_000
    assert check_problem(put(doors, "bank", PROJECT, month(15_001)), 403)["code"] == "budget.raised"
    assert check_problem(put(doors, "bank", PROJECT, month("fleet")), 403)["code"] == "budget.raised"
    assert check_problem(put(doors, "governance", PROJECT, month(25_001)), 403)["code"] == "budget.fixed"
    zone = put(doors, "governance", PROJECT, month(10, zone="Asia/Tokyo"))
    assert check_problem(zone, 403)["code"] == "budget.fixed"
    place = raised.json()["change"]
    with doors[0].parts.reader._engine.connect() as connection:
        body = connection.execute(select(BODY.c.body).where(BODY.c.index == place["audit"]["index"])).scalar_one()
    entry = json.loads(body)
    assert (entry["kind"], entry["event"], entry["id"]) == ("budget", "set", place["id"])
    assert (entry["reason"], entry["path"]) == ("a test", PROJECT)
    assert "principal" not in entry, "who asked is encrypted"
    assert entry["_personal"]
    assert entry["limits"][0]["limit"] == 15_000_000_000
    assert postings_of(entry)[0][0].limit == 15_000_000_000
    assert_log_folds(doors[0])


def test_who_may_not_is_refused_or_sees_nothing(doors: Doors) -> None:
    assert check_problem(put(doors, "app", PROJECT, month(1)), 404)["code"] == "not_found"
    assert check_problem(put(doors, "bank", "nordic-lab", month(1)), 404)["code"] == "not_found"
    assert check_problem(put(doors, "bank", "*", month(1)), 404)["code"] == "not_found"
    assert put(doors, "platform", "*", month(999_999)).status_code == 200
    assert check_problem(put(doors, "platform", "eu-bank/support-chatt", month(1)), 404)["code"] == "not_found"


TYPO = "eu-bank/support-chatt"


@pytest.mark.parametrize("asked", ["GET /v1/budgets/{}", "PUT /v1/budgets/{}", "GET /v1/reports/budgets?path={}"])
def test_an_account_that_is_not_there_names_the_nearest_that_the_caller_may_see(doors: Doors, asked: str) -> None:
    server, tokens = doors

    def told(who: str, name: str) -> str:
        method, _, path = asked.format(name).partition(" ")
        body = {"limits": [month(1)], "reason": "a test"} if method == "PUT" else None
        found = server.client.request(method, path, json=body, headers=bearer(tokens[who]))
        problem = check_problem(found, 404)
        assert problem["code"] == "not_found"
        return str(problem["detail"])

    for who in ("platform", "bank"):
        assert told(who, TYPO).endswith(f"{TYPO!r}; did you mean `{PROJECT}`?")
    assert told("platform", "nordic-lap").endswith("'nordic-lap'; did you mean `nordic-lab`?")
    assert "nordic-lab" not in told("bank", "nordic-lap"), "what the caller may not read is not named"


@pytest.mark.parametrize(
    "command",
    [
        ("show", TYPO),
        ("report", TYPO),
        ("set", TYPO, "--window", "month", "--limit", "1", "--reason", "a test"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("through", ["server", "directory"])
def test_a_command_about_an_account_that_is_not_there_names_the_nearest(
    doors: Doors, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], through: str
) -> None:
    if through == "server":
        token = tmp_path / "token"
        token.write_text(doors[1]["platform"])
        place = ("--server", doors[0].address, "--token-file", str(token))
    else:
        place = ("--data-dir", str(tmp_path / "data"))
    assert run(["budget", *command, *place]) in (1, 2)
    out, said = capsys.readouterr()
    assert out == ""
    assert f"did you mean '{PROJECT}'?" in " ".join(said.replace("`", "'").split())


def test_a_limit_of_ones_own_is_kept_and_exhausted(doors: Doors, bank_chat: dict[str, Any]) -> None:
    done = put(doors, "platform", PROJECT, {"limit": 2, "unit": "requests", "window": "day", "thresholds": [50]})
    found = {item["unit"]: item for item in done.json()["items"]}
    assert (found["requests"]["limit_fleet"], found["requests"]["zone"]) == (None, "Europe/Berlin")

    def decide() -> dict[str, Any]:
        sent = doors[0].client.post("/v1/decisions", json=bank_chat, headers=bearer(doors[1]["platform"]))
        return dict(sent.json())

    answers = [decide() for _ in range(3)]
    assert [answer["outcome"] for answer in answers] == ["allow", "allow", "deny"]
    assert answers[2]["denied_by"] == "budget"
    # Exhausted, and the control plane still answers: show, settle, void, and set.
    id = answers[0]["id"]
    headers = bearer(doors[1]["platform"])
    assert doors[0].client.get(f"/v1/budgets/{PROJECT}", headers=headers).json()["items"]
    usage = {"input_tokens": 10, "output_tokens": 10, "requests": 1}
    assert doors[0].client.post(f"/v1/decisions/{id}/settlement", json=usage, headers=headers).status_code == 200
    assert doors[0].client.delete(f"/v1/decisions/{answers[1]['id']}/reservation", headers=headers).status_code == 200
    assert put(doors, "platform", PROJECT, {"limit": 1, "unit": "requests", "window": "day"}).status_code == 200
    assert decide()["outcome"] == "deny"
    assert_log_folds(doors[0])


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (month("1.00000000001"), "whole number"),
        (month(-1), "greater than"),
        (month(1, zone="Mars/Olympus"), "time zone"),
        ({"limit": 1}, "needs a window"),
        (month(1, unit="in_flight"), "has no window"),
        ({"limit": 1, "unit": "in_flight", "pools": "nowhere"}, "nowhere"),
        ({"limit": 1, "window": "year"}, "window"),
        (month(2**53), "less than"),
        (month(1, thresholds=[80, 50]), "rise"),
    ],
)
def test_bad_limits_say_what_is_wrong(doors: Doors, limit: dict[str, Any], words: str) -> None:
    problem = check_problem(put(doors, "platform", PROJECT, limit), 400)
    assert words in json.dumps(problem)
    twice = put(doors, "platform", PROJECT, month(1), month(2))
    assert check_problem(twice, 400)["code"] == "request.invalid"


def test_local_raises_nothing_whatever_the_rows_say(serving_with: Any, tmp_path: Path) -> None:
    policies = tmp_path / "policies"
    shutil.copytree(Path(__file__).parents[2] / "policies", policies)
    with (policies / "casbin" / "rows.csv").open("a") as rows:
        rows.write("p, local, *, budgets, set, allow\np, local, *, budgets, raise, allow\n")
    with serving_with(policies=policies, budgets={"raise_alone_max": {"usd": 10**9}}) as server:
        lowered = server.client.put(f"/v1/budgets/{PROJECT}", json={"limits": [month(1)], "reason": "less"})
        assert lowered.status_code == 200, lowered.text
        raised = server.client.put(f"/v1/budgets/{PROJECT}", json={"limits": [month(2)], "reason": "more"})
        assert check_problem(raised, 403)["code"] == "budget.raised"


def test_without_permission_the_command_line_is_refused_and_with_it_sets(doors: Doors, tmp_path: Path) -> None:
    for who, status in (("app", 1), ("platform", 0)):
        token = tmp_path / "token"
        token.write_text(doors[1][who])
        command = ["budget", "set", PROJECT, "--window", "month", "--limit", "8000", "--reason", "less", "-o", "json"]
        ended = subprocess.run(
            [sys.executable, "-m", "policyd.cli.main", *command, "--server", doors[0].address],
            capture_output=True,
            check=False,
            timeout=60,
            env={**os.environ, "POLICYD_TOKEN_FILE": str(token)},
        )
        assert ended.returncode == status, ended.stderr
    assert 8_000_000_000 in {item["limit_set"] for item in json.loads(ended.stdout)}


def test_two_persons_raise_what_one_may_not(doors: Doors, bank_chat: dict[str, Any]) -> None:
    path = PROJECT
    put(doors, "platform", path, month(100))
    body = {"limits": [month(20_000)], "reason": "the campaign", "propose": True}
    server, tokens = doors
    proposed = server.client.put(f"/v1/budgets/{path}", json=body, headers=bearer(tokens["platform"]))
    assert proposed.status_code == 200, proposed.text
    proposal = proposed.json()["proposal"]
    assert proposal["document"]["limits"][0]["limit"] == 20_000_000_000
    assert 100_000_000 in {item["limit"] for item in proposed.json()["items"]}
    approval = f"/v1/proposals/{proposal['id']}/approval"
    own = server.client.post(approval, json={}, headers=bearer(tokens["platform"]))
    assert own.status_code == 403
    done = server.client.post(approval, json={"digest": proposal["digest"]}, headers=bearer(tokens["governance"]))
    assert done.status_code == 200, done.text
    assert server.client.post(approval, json={}, headers=bearer(tokens["bank"])).status_code == 409
    with server.parts.reader._engine.connect() as connection:
        bodies = [json.loads(body) for (body,) in connection.execute(select(BODY.c.body).order_by(BODY.c.index))]
    (entry,) = [body for body in bodies if body.get("proposal") == proposal["id"] and body.get("event") == "set"]
    assert entry["id"] == done.json()["result"]["change"]
    assert entry["limits"][0]["limit"] == 20_000_000_000
    found = server.client.get(f"/v1/budgets/{path}", headers=bearer(tokens["governance"])).json()["items"]
    assert 20_000_000_000 in {item["limit"] for item in found} or wait_for_limit(doors, path, 20_000_000_000)
    assert_log_folds(server)
    above = {**body, "limits": [month(25_001)]}
    fixed = server.client.put(f"/v1/budgets/{path}", json=above, headers=bearer(tokens["platform"]))
    assert check_problem(fixed, 403)["code"] == "budget.fixed"


def wait_for_limit(doors: Doors, path: str, limit: int) -> bool:
    """Whether the process hears of it within a second or some."""
    for _ in range(100):
        time.sleep(0.05)
        found = doors[0].client.get(f"/v1/budgets/{path}", headers=bearer(doors[1]["governance"])).json()["items"]
        if limit in {item["limit"] for item in found}:
            return True
    return False
