"""``policyd budget`` beside no server: what was decided on the command line is what is held."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


def policyd(*arguments: str, status: int = 0) -> Any:
    ended = subprocess.run(
        [sys.executable, "-m", "policyd.cli.main", *arguments, "--output", "json"],
        capture_output=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert ended.returncode == status, ended.stderr.decode()
    return json.loads(ended.stdout) if status == 0 else ended.stderr.decode()


def test_a_decision_is_held_and_listed(tmp_path: Path) -> None:
    place = ("--data-dir", str(tmp_path / "data"))
    before = policyd("budget", "list", *place)
    assert {item["reserved"] for item in before} == {0}
    workload = next((ROOT / "examples" / "workloads").glob("*bank*.yaml"))
    decided = policyd("decide", str(workload), *place)
    held = decided["reservation"]
    for path in held["accounts"]:
        items = policyd("budget", "show", path, *place)
        assert [item["reserved"] for item in items if item["unit"] == "micro_usd"] == [held["micro_usd"]]
    told = policyd("budget", "show", "eu-bank/support-chatt", *place, status=2)
    assert "did you mean" in told
