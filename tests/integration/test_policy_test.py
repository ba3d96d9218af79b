"""``policyd policy init`` and ``policyd policy test``: a starter that holds, and tests that fail when they should."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import orjson
import pytest

from policyd.cli import failures
from policyd.cli.main import run

Told = pytest.CaptureFixture[str]
CASE = "the bank's chat leaves the EU for nobody"


@pytest.fixture
def starter(tmp_path: Path, capsys: Told) -> Path:
    path = tmp_path / "mine"
    assert run(["policy", "init", str(path)]) == failures.DONE
    capsys.readouterr()
    return path


def test_the_starter_is_checked_and_tested_on_every_engine(starter: Path, opa_binary: Path, capsys: Told) -> None:
    del opa_binary  # without one, this test says so and is skipped
    assert run(["policy", "check", str(starter)]) == failures.DONE
    capsys.readouterr()
    told = run(["policy", "test", str(starter), "--engine", "all", "--coverage", "100", "-o", "json"])
    found = orjson.loads(capsys.readouterr().out)
    assert (told, found["passed"], found["failed"]) == (failures.DONE, 6, 0)
    assert found["coverage"] == {
        "rules": 1,
        "tried": 1,
        "percent": 100,
        "required_percent": 100,
        "enough": True,
        "untried": [],
    }


def test_nothing_is_overwritten(starter: Path, capsys: Told) -> None:
    (starter / "settings.yaml").write_text("settings: {mine: 1}\n")
    assert run(["policy", "init", str(starter)]) == failures.USAGE
    assert "is not empty" in capsys.readouterr().err
    assert "mine" in (starter / "settings.yaml").read_text()


def test_a_rule_that_no_test_tries_is_named_and_counts(starter: Path, capsys: Told) -> None:
    module = starter / "countries" / "countries.rego"
    module.write_text(
        module.read_text()
        + """
# METADATA
# title: Nobody tries this
deny contains violation if {
	count(input.pool.locations) == 0
	violation := {"rule": "untried", "observed": 0, "required": 1}
}
"""
    )
    assert run(["policy", "test", str(starter)]) == failures.DONE
    assert "no test tries countries.untried" in capsys.readouterr().out
    assert run(["policy", "test", str(starter), "--coverage", "50"]) == failures.DONE
    capsys.readouterr()
    assert run(["policy", "test", str(starter), "--coverage", "51", "-o", "junit"]) == failures.FOUND
    suites = {suite.get("name"): suite for suite in ElementTree.fromstring(capsys.readouterr().out)}
    assert suites["coverage"].get("failures") == "1"
    assert sum(int(str(suite.get("tests"))) for suite in suites.values()) == 4


def test_a_filter_chooses_and_choosing_nothing_is_no_success(starter: Path, capsys: Told) -> None:
    for text, names in [
        ("bank's chat", {CASE}),
        ("*another*", {"placement.countries_test.test_another_country_is_refused"}),
    ]:
        assert run(["policy", "test", str(starter), "--filter", text, "-o", "json"]) == failures.DONE
        assert {one["name"] for one in orjson.loads(capsys.readouterr().out)["results"]} == names
    assert run(["policy", "test", str(starter), "--filter", "no such test"]) == failures.FOUND
    assert run(["policy", "test", str(starter), "-o", "sarif"]) == failures.USAGE


def test_a_case_that_fails_tries_no_rule(starter: Path, capsys: Told) -> None:
    case = starter / "cases" / "countries.yaml"
    case.write_text(case.read_text().replace("outcome: deny", "outcome: allow"))
    (starter / "countries" / "countries_test.rego").unlink()
    assert run(["policy", "test", str(starter), "-o", "json"]) == failures.FOUND
    found = orjson.loads(capsys.readouterr().out)
    assert (found["passed"], found["failed"], found["coverage"]["untried"]) == (
        0,
        1,
        ["countries.country_not_permitted"],
    )


def test_watching_runs_again_after_a_change(starter: Path, repository: Path) -> None:
    command = [sys.executable, "-m", "policyd.cli.main", "policy", "test", str(starter), "--watch", "--filter", "chat"]
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=starter.parent)
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any("1 passed, 0 failed" in line for line in lines)
        case = starter / "cases" / "countries.yaml"
        case.write_text(case.read_text().replace("outcome: deny", "outcome: allow"))
        assert any("0 passed, 1 failed" in line for line in lines)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == failures.INTERRUPTED
    finally:
        process.kill()
        process.communicate(timeout=30)
