"""The command line on the shipped example: real engine, real log, real server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policyd.cli.main import run
from policyd.documents import read_yaml
from policyd.services.data_directory import DataDirectory

ROOT = Path(__file__).resolve().parent.parent.parent
BANK = str(ROOT / "examples" / "workloads" / "eu-bank-chat.yaml")
BASE = "workload: {tenant: eu-bank, project: support-chat, environment: prod, model: llama-3.1-70b-instruct"
DENIED = BASE + ", resources: {gpu_memory_gib: 9000}}\n"
LOOSENS = BASE + ", data: {classification: public}}\n"
POLICYD = [sys.executable, "-m", "policyd.cli.main"]
SECONDS_MAX = 60

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("POLICYD_")}
ENVIRONMENT["PYTHONPATH"] = str(ROOT)  # the checkout is what is tested, from any directory

Told = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the surroundings, and tables as wide as a usual terminal."""
    for name in list(os.environ):
        if name.startswith("POLICYD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A data directory with one allow, one deny and one refusal, and the answers by outcome."""
    folder = tmp_path_factory.mktemp("logged")
    answers: dict[str, Any] = {}
    for name, content, code in (("allow", None, 0), ("deny", DENIED, 3), ("error", LOOSENS, 1)):
        file = Path(BANK)
        if content is not None:
            file = folder / f"{name}.yaml"
            file.write_text(content)
        command = [*POLICYD, "decide", str(file), "--data-dir", str(folder / "data"), "--output", "json"]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=folder, env=ENVIRONMENT, timeout=SECONDS_MAX, check=False
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        answers[name] = json.loads(done.stdout) if done.stdout else done.stderr
    return folder / "data", answers


def test_the_outcomes_and_what_they_print(logged: tuple[Path, dict[str, Any]]) -> None:
    _, answers = logged
    assert answers["allow"]["outcome"] == "allow"
    assert answers["deny"]["outcome"] == "deny"
    assert answers["deny"]["ranked"] == []
    assert answers["error"].startswith("error: classification 'public' is below the floor")
    assert "see: docs/errors/workload.loosens.md" in answers["error"]


def test_the_log_gives_back_the_answer(logged: tuple[Path, dict[str, Any]], capsys: Told) -> None:
    data, answers = logged
    for outcome in ("allow", "deny"):
        answer = answers[outcome]
        assert run(["audit", "show", answer["id"], "--data-dir", str(data), "--output", "json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert {name: shown[name] for name in answer} == answer


def test_search_finds_by_outcome(logged: tuple[Path, dict[str, Any]], capsys: Told) -> None:
    data, answers = logged
    search = ["audit", "search", "--data-dir", str(data), "--output", "json"]
    for outcome in ("allow", "deny", "error"):
        assert run([*search, "--outcome", outcome]) == 0
        (item,) = json.loads(capsys.readouterr().out)["items"]
        assert item["outcome"] == outcome
        assert "salt" not in item
    assert run([*search, "--limit", "2"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert run([*search, "--limit", "2", "--cursor", page["next"]]) == 0
    rest = json.loads(capsys.readouterr().out)
    assert rest["next"] is None
    assert [len(page["items"]), len(rest["items"])] == [2, 1]
    assert run(["audit", "search", "--data-dir", str(data)]) == 0
    table = capsys.readouterr().out
    assert answers["allow"]["id"] in table
    assert "3 entries" in table


def test_explain_tells_every_reason(logged: tuple[Path, dict[str, Any]], capsys: Told) -> None:
    data, answers = logged
    answer = answers["allow"]
    assert run(["explain", answer["id"], "--data-dir", str(data)]) == 0
    told = capsys.readouterr().out
    for entry in answer["ranked"]:
        assert f"{entry['rank']}. {entry['pool']}  score {entry['score']}" in told
    for entry in answer["rejected"]:
        assert re.search(rf"^{re.escape(entry['pool'])}  ", told, re.MULTILINE)
        for violation in entry["violations"]:
            assert f"{violation['policy']}.{violation['rule']}" in told
            assert violation["location"] in told
    assert max(map(len, told.splitlines())) <= 120


def test_explain_narrows_to_pools_and_knows_no_others(logged: tuple[Path, dict[str, Any]], capsys: Told) -> None:
    data, answers = logged
    identifier, refused = answers["allow"]["id"], answers["allow"]["rejected"][0]["pool"]
    assert run(["explain", identifier, "--data-dir", str(data), "--pool", refused]) == 0
    assert f"Refused: 1 pool of {len(answers['allow']['rejected'])}" in capsys.readouterr().out
    assert run(["explain", identifier, "--data-dir", str(data), "--pool", refused[:-1]]) == 2
    assert f"did you mean '{refused}'?" in capsys.readouterr().err


def test_explain_of_a_refusal_says_that_nothing_was_allowed(logged: tuple[Path, dict[str, Any]], capsys: Told) -> None:
    data, _ = logged
    assert run(["audit", "search", "--data-dir", str(data), "--outcome", "error", "--output", "json"]) == 0
    identifier = json.loads(capsys.readouterr().out)["items"][0]["id"]
    assert run(["explain", identifier, "--data-dir", str(data)]) == 0
    assert "workload.loosens: nothing was allowed" in capsys.readouterr().out


def test_the_table_has_every_column_and_reason(
    logged: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: Told
) -> None:
    assert run(["decide", BANK, "--data-dir", str(tmp_path / "d"), "--limit", "2"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("ALLOW")
    head = next(line for line in told.splitlines() if line.startswith("#"))
    assert head.split() == [
        "#",
        "pool",
        "kind",
        "where",
        "operator",
        "tenancy",
        "evidence",
        "$/request",
        "$/M",
        "tok",
        "score",
    ]
    assert "more pools ranked below" in told
    _, answers = logged
    for entry in answers["allow"]["rejected"]:
        for violation in entry["violations"]:
            assert f"{violation['policy']}.{violation['rule']}" in told
    assert max(map(len, told.splitlines())) <= 120
    assert "\x1b" not in told


def test_yaml_is_the_same_document(logged: tuple[Path, dict[str, Any]], capsys: Told) -> None:
    data, answers = logged
    assert run(["explain", answers["deny"]["id"], "--data-dir", str(data), "--output", "yaml"]) == 0
    shown = read_yaml(capsys.readouterr().out.encode(), "stdout").value
    assert shown["rejected"][0]["violations"] == answers["deny"]["rejected"][0]["violations"]


def test_an_unknown_id_and_an_absent_log(logged: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: Told) -> None:
    data, _ = logged
    assert run(["explain", "0199", "--data-dir", str(data)]) == 1
    assert "see: docs/errors/not_found.md" in capsys.readouterr().err
    assert run(["audit", "search", "--data-dir", str(tmp_path / "empty")]) == 1
    assert "see: docs/errors/audit.unavailable.md" in capsys.readouterr().err
    assert run(["audit", "search", "--data-dir", str(data), "--from", "yesterday"]) == 2
    assert "not an ISO 8601 time" in capsys.readouterr().err


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, subprocess.Popen[str]]]:
    """A server on a free port: its data directory, its address as printed, and its process."""
    folder = tmp_path_factory.mktemp("served")
    command = [*POLICYD, "serve", "--port", "0", "--data-dir", "data"]
    with (folder / "err").open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder, env=ENVIRONMENT
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(r"policyd is ready at (http://127\.0\.0\.1:[0-9]+)\n", line)
    try:
        assert found, line + (folder / "err").read_text()
        yield folder / "data", found[1], process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_beside_a_server_it_asks_the_server(
    served: tuple[Path, str, subprocess.Popen[str]], tmp_path: Path, capsys: Told
) -> None:
    data, address, process = served
    (tmp_path / "deny.yaml").write_text(DENIED)
    (tmp_path / "loosens.yaml").write_text(LOOSENS)
    assert run(["decide", "deny.yaml", "--data-dir", str(data), "--output", "json"]) == 3
    told = capsys.readouterr()
    assert f"asking the server at {address}" in told.err
    answer = json.loads(told.out)
    assert run(["decide", "loosens.yaml", "--server", address]) == 1
    assert "see: docs/errors/workload.loosens.md" in capsys.readouterr().err
    assert run(["decide", "deny.yaml", "--data-dir", str(data), "--engine", "opa"]) == 2
    assert "--engine: the server at" in capsys.readouterr().err
    by_log = ["--data-dir", str(data)]
    for where in (["--server", address], by_log):
        assert run(["audit", "show", answer["id"], *where, "--output", "json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert {name: shown[name] for name in answer} == answer
    printed = []
    for where in (["--server", address], by_log):
        assert run(["explain", answer["id"], *where]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    pages = []
    for where in (["--server", address], by_log):
        assert run(["audit", "search", *where, "--output", "json"]) == 0
        pages.append(json.loads(capsys.readouterr().out))
    assert pages[0] == pages[1]
    assert run(["serve", "--port", "0", *by_log]) == 1
    told = capsys.readouterr()
    assert "see: docs/errors/audit.locked.md" in told.err
    assert told.out == ""
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=SECONDS_MAX) == 0
    assert run(["decide", "deny.yaml", "--server", address]) == 1
    assert "see: docs/errors/server.unreachable.md" in capsys.readouterr().err


def test_a_server_is_refused_an_open_door(capsys: Told) -> None:
    assert run(["serve", "--host", "0.0.0.0"]) == 2
    assert "is not loopback" in capsys.readouterr().err


def test_another_command_on_the_directory_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Told
) -> None:
    (tmp_path / "loosens.yaml").write_text(LOOSENS)
    held = DataDirectory(tmp_path / "data")
    held.acquire()
    monkeypatch.setattr("policyd.cli.decide.WAIT_FOR_WRITER_S", 0)
    assert run(["decide", "loosens.yaml", "--data-dir", "data"]) == 1
    assert "see: docs/errors/audit.locked.md" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    letting_go = threading.Timer(0.5, held.release)
    letting_go.start()
    assert run(["decide", "loosens.yaml", "--data-dir", "data"]) == 1
    letting_go.join()
    assert "see: docs/errors/workload.loosens.md" in capsys.readouterr().err
