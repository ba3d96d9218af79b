"""Clocks that are set while a ledger runs and between two runs of it, by a real libfaketime around real processes."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from policyd.services.data_directory import DataDirectory
from policyd.services.doctor import Health
from policyd.services.doctor_ledger import check_ledger_time
from tests.faked_clock import faked_clock

HOUR_US = 3_600_000_000
MONTH_S = 31 * 86_400

WRITER = """
import asyncio, json, sys
from pathlib import Path
from audit.record import Entry, Search, encode
from policyd.ledger.rules import Charge, Limit, Reservation
from policyd.services.clock import now_us, uuid7
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory

MONTH = Limit("acme", "requests", "month", 1_000)

async def reserve(committer):
    time_us = now_us()
    id = uuid7(time_us)
    body = {"id": id, "workload": {"tenant": "acme", "project": "p", "environment": "prod"}}
    one = Entry("decision", id, time_us, encode(body, b"x" * 16), Search(tenant="acme"))
    await committer.submit(one, (), None, Reservation(id, (Charge(MONTH, 1),), 60_000_000))

async def main():
    with DataDirectory(Path(sys.argv[1])) as directory:
        committer = await Committer.open(directory)
        await reserve(committer)
        print("held", flush=True)
        for line in sys.stdin:
            await reserve(committer)
            print("held", flush=True)
        await committer.close()

asyncio.run(main())
"""


@pytest.fixture
def clock(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A file that says how far the clock is off, and the environment of a process that believes it."""
    found = faked_clock(tmp_path)
    return found.offset, found.environment


def run(data: Path, repository: Path, environment: Mapping[str, str], offset: Path, *then: str) -> None:
    """Reserve at the present offset, and again after each of these."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(data)],
        cwd=repository, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as writer:  # fmt: skip
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == "held\n"
        for each in then:
            offset.write_text(each)
            writer.stdin.write("again\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == "held\n"
        writer.stdin.close()
        assert writer.wait(30) == 0


def bodies(data: Path) -> list[dict[str, Any]]:
    with sqlite3.connect(data / "audit.sqlite") as log:
        return [json.loads(body) for (body,) in log.execute('SELECT body FROM body ORDER BY "index"')]


def months(data: Path) -> list[int]:
    """The beginnings of the months that accounts were opened for."""
    with sqlite3.connect(data / "audit.sqlite") as log:
        return [start for (start,) in log.execute("SELECT start_us FROM budget_account ORDER BY start_us")]


def last_us(data: Path) -> int:
    with sqlite3.connect(data / "audit.sqlite") as log:
        return int(log.execute("SELECT max(last_us) FROM budget_time").fetchone()[0])


def jumps(data: Path) -> list[dict[str, Any]]:
    return [body for body in bodies(data) if body.get("event") == "clock_jump"]


@pytest.mark.fault("clock set forward a month and back an hour, while it runs")
def test_a_clock_that_is_set_while_it_runs_opens_no_month(
    clock: tuple[Path, dict[str, str]], tmp_path: Path, repository: Path
) -> None:
    data = tmp_path / "data"
    offset, environment = clock
    run(data, repository, environment, offset, f"+{MONTH_S}", "-3600", "+0")
    assert len(months(data)) == 1
    assert abs(last_us(data) - time.time_ns() // 1_000) < HOUR_US
    assert jumps(data) == []


@pytest.mark.fault("clock set forward a month and back an hour, between two runs")
def test_a_jump_between_two_runs_is_recorded_and_never_goes_back(
    clock: tuple[Path, dict[str, str]], tmp_path: Path, repository: Path
) -> None:
    data = tmp_path / "data"
    offset, environment = clock
    run(data, repository, environment, offset)
    offset.write_text("-3600")
    before_us = last_us(data)
    run(data, repository, environment, offset)
    assert last_us(data) >= before_us
    assert jumps(data) == []
    directory = DataDirectory(data)
    assert asyncio.run(check_ledger_time(directory)).health is Health.OK
    offset.write_text(f"+{MONTH_S}")
    run(data, repository, environment, offset)
    (jump,) = jumps(data)
    assert jump["from"] < jump["to"]
    ahead = asyncio.run(check_ledger_time(directory))
    assert ahead.health is Health.FAIL
    assert "ahead of the clock" in ahead.detail
    later = asyncio.run(check_ledger_time(directory, lambda: last_us(data) + HOUR_US))
    assert later.health is Health.WARN
    assert jump["to"] in later.detail
    month_us = last_us(data)
    offset.write_text("+0")
    run(data, repository, environment, offset)
    assert last_us(data) >= month_us
    assert len(jumps(data)) == 1, "a jump is recorded once"
    assert len(months(data)) == 2
