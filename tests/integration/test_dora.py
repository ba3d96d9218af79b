"""What log and fleet know of a DORA register of information: by a server and beside none, and nothing made up."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

from policyd.services.dora import COLUMNS, COSTS, register

ROOT = Path(__file__).resolve().parents[2]


def report(*arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "policyd.cli.main", "audit", "report", "--form", "dora", *arguments]
    ended = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=120, check=False)
    assert ended.returncode == status, ended.stderr.decode()
    return ended.stdout.decode() if status == 0 else ended.stderr.decode()


def test_a_row_for_each_pool_and_project_both_ways(
    serving_with: Any, bank_chat: dict[str, Any], tmp_path: Path
) -> None:
    with serving_with() as server:
        first = [server.client.post("/v1/decisions", json=bank_chat).json()["ranked"][0]["pool"] for _ in range(2)]
        served = report("-o", "csv", "--server", server.address)
        pool = server.parts.snapshot.fleet.pools[first[0]]
    rows = list(csv.DictReader(io.StringIO(served, newline="")))
    assert tuple(rows[0]) == COLUMNS
    (row,) = [row for row in rows if row["pool"] == first[0]]
    assert row["B_06.01.0030 function name"] == "eu-bank/support-chat"
    assert row["B_05.01.0080 country of its headquarters"] == pool.operator.seat
    assert row["B_02.02.0130 country of provision"].split() == list(pool.locations.processing or ())
    assert (row["decisions"], row["classification of the data"]) == ("2", "confidential")
    assert report("-o", "csv", "--data-dir", str(tmp_path / "data")) == served
    assert "decisions" in report("--data-dir", str(tmp_path / "data"))
    assert "--form dora" in report("--by", "pool", "--data-dir", str(tmp_path / "data"), status=2)


def test_what_nobody_declared_is_empty() -> None:
    counted = {"tenant": "a", "project": "p", "allow": 1, "cost_micro_usd": 5}
    counted |= {"settled_micro_usd": 2, "presumed_micro_usd": 0, "expected_micro_usd": 3}
    rows = [
        {**counted, "pool": "gone", "classification": "public"},
        {**counted, "pool": "gone", "classification": "restricted"},
        {**counted, "pool": None, "classification": None},
    ]
    (row,) = register(rows, {})
    assert [row[name] for name in COLUMNS[:3]] == [None, None, None]
    assert row["classification of the data"] == ["public", "restricted"]
    assert (row["decisions"], *(row[cost] for cost in COSTS)) == (2, 10, 4, 0, 6)
    companies = [{"name": "Sub", "seat": "IE", "countries": ["IE", "DE"]}, {"name": "Other"}]
    (row,) = register(rows[:1], {"gone": {"sub_processors": companies}})
    told = row["B_05.02.0030 subcontractors"]
    assert told == ["Sub (IE; IE, DE)", "Other (seat not declared; countries not declared)"]
