"""The command as shells and pipes see it: other locales, readers that leave early, directories that stay untouched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BANK = str(ROOT / "examples" / "workloads" / "eu-bank-chat.yaml")
COMMAND = [sys.executable, "-m", "policyd.cli.main"]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("POLICYD_", "LC_", "PYTHON"))}
    return {**kept, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "120", **more}


def ran(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=environment(**more), capture_output=True, timeout=60, check=False
    )


def test_a_locale_without_utf8_loses_nothing(tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = ran(tmp_path, "decide", BANK, **ascii_only)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert "onprem-fra-h100" in done.stdout.decode("utf-8")
    document = ran(tmp_path, "pool", "list", "--output", "json", **ascii_only)
    assert len(json.loads(document.stdout)) > 60


@pytest.mark.parametrize("arguments", [("pool", "list"), ("pool", "list", "--output", "json")], ids=["table", "json"])
def test_a_reader_who_leaves_is_neither_a_failure_nor_an_allow(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    assert (process.wait(timeout=60), said) == (141, b"")
    process.stderr.close()


@pytest.mark.parametrize("arguments", [("explain", "0"), ("audit", "search"), ("audit", "show", "0")])
def test_a_command_that_reads_makes_no_log(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = ran(tmp_path, *arguments)
    assert done.returncode == 1
    assert b"there is no log in policyd-data" in done.stderr
    assert b"--data-dir" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_new_log_is_announced_once(tmp_path: Path) -> None:
    first, second = (ran(tmp_path, "decide", BANK, "--output", "json") for _ in range(2))
    assert b"the log of decisions begins in policyd-data" in first.stderr
    assert second.stderr == b""
    assert json.loads(first.stdout)["outcome"] == "allow"


@pytest.mark.parametrize(
    ("flag", "word", "instead"),
    [
        ("--outcome", "denied", "deny"),
        ("--environment", "live", "prod"),
        ("--classification", "secret", "public"),
    ],
)
def test_a_filter_that_no_entry_can_match_is_a_mistake(tmp_path: Path, flag: str, word: str, instead: str) -> None:
    assert ran(tmp_path, "decide", BANK).returncode == 0
    done = ran(tmp_path, "audit", "search", flag, word)
    assert done.returncode == 2
    assert instead in done.stderr.decode()
    assert done.stdout == b""


def test_a_fleet_without_facts_has_the_word_of_the_ledger_on_its_budgets(tmp_path: Path) -> None:
    allowed = ran(tmp_path, "decide", BANK, "--fleet", str(ROOT / "examples" / "fleet"))
    assert allowed.returncode == 0, allowed.stderr


def test_a_pool_below_the_limit_is_not_called_unknown(tmp_path: Path) -> None:
    made = json.loads(ran(tmp_path, "decide", BANK, "--limit", "2", "--output", "json").stdout)
    done = ran(tmp_path, "explain", made["id"], "--pool", "scaleway-par-h100")
    assert done.returncode == 2
    assert b"2 of 6 are shown; decide anew with a higher --limit" in done.stderr
