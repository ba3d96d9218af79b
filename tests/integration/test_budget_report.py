"""``policyd budget report`` and its route: the same numbers both ways, a burn-down, and idle paid hardware."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from policyd.services.budget_report import HOUR_US, with_idle
from policyd.services.burn_down_chart import burn_down_picture

PROJECT = "eu-bank/support-chat"
ROOT = Path(__file__).resolve().parents[2]


def policyd(*arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "policyd.cli.main", "budget", "report", *arguments]
    ended = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=120, check=False)
    assert ended.returncode == status, ended.stderr.decode()
    return ended.stdout.decode() if status == 0 else ended.stderr.decode()


def test_the_report_says_what_was_spent_and_what_stood_idle(
    serving_with: Any, bank_chat: dict[str, Any], tmp_path: Path
) -> None:
    picture = tmp_path / "burn.svg"
    with serving_with() as server:
        spent = 0
        for _ in range(3):
            held = server.client.post("/v1/decisions", json=bank_chat).json()
            usage = {"micro_usd": 1_000_000}
            assert server.client.post(f"/v1/decisions/{held['id']}/settlement", json=usage).status_code == 200
            spent += 1_000_000
        place = ("--server", server.address)
        told = json.loads(policyd(PROJECT, "-o", "json", "--picture", str(picture), *place))
        (item,) = told["budgets"]
        (burned,) = told["burn_down"]
        assert item["spent"] == spent == burned["points"][-1][1]
        times = [at for at, _ in burned["points"]]
        assert times == sorted(times)
        assert burned["starts_at"] == item["starts_at"]
        paid = {pool["pool"]: pool for pool in told["committed"]}
        assert {pool["kind"] for pool in paid.values()} <= {"on_prem", "committed"}
        used = [pool for pool in paid.values() if pool["used_micro_usd"]]
        assert used
        for pool in used:
            assert pool["idle_micro_usd"] == max(0, pool["paid_micro_usd"] - pool["used_micro_usd"])
        unknown = server.client.get("/v1/reports/budgets", params={"path": "eu-bank/nothing"})
        assert unknown.status_code == 404
        rows = list(csv.DictReader(io.StringIO(policyd("-o", "csv", *place))))
        assert {row["row"] for row in rows} == {"budget", "paid pool"}
        assert "Paid hardware" in policyd(*place)
    here = json.loads(policyd(PROJECT, "-o", "json", "--data-dir", str(tmp_path / "data")))
    assert here["budgets"][0]["spent"] == spent
    assert here["burn_down"][0]["points"][-1][1] == spent
    ElementTree.fromstring(picture.read_text())
    assert "$3.00 of $25,000.00 spent" in picture.read_text()


def test_without_a_log_nothing_is_spent_and_no_picture_drawn(tmp_path: Path) -> None:
    place = ("--data-dir", str(tmp_path / "none"))
    told = json.loads(policyd("-o", "json", *place))
    assert {item["spent"] for item in told["budgets"]} == {0}
    assert {pool["used_micro_usd"] for pool in told["committed"]} == {0}
    assert "window" in policyd(PROJECT, "--picture", str(tmp_path / "x.svg"), *place, status=2)
    assert ".svg" in policyd("--picture", str(tmp_path / "x.svg"), *place, status=2)


@pytest.mark.parametrize(("used", "idle", "percent"), [(0, 6_000, 100), (1_500, 4_500, 75), (9_000, 0, 0)])
def test_idle_is_what_was_paid_and_not_used(used: int, idle: int, percent: int) -> None:
    pool = {"pool": "own", "kind": "on_prem", "gpus": 8, "micro_usd_per_hour": 2_000}
    (told,) = with_idle([pool], {"own": used}, 3 * HOUR_US)
    assert (told["paid_micro_usd"], told["idle_micro_usd"], told["idle_percent"]) == (6_000, idle, percent)
    (unknown,) = with_idle([{**pool, "micro_usd_per_hour": None}], {"own": used}, 3 * HOUR_US)
    assert (unknown["paid_micro_usd"], unknown["idle_micro_usd"]) == (None, None)


def test_a_picture_escapes_and_survives_the_first_moment_of_a_window() -> None:
    at = "2026-11-01T00:00:00.000000Z"
    burned = {"unit": "requests", "window": "day", "limit": 0, "starts_at": at, "ends_at": None, "points": [[at, 0]]}
    drawn = burn_down_picture({"path": "a<b&c", "time": at}, burned)
    ElementTree.fromstring(drawn)
    assert "a&lt;b&amp;c" in drawn
