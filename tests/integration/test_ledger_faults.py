"""Real faults of a disk while budgets are reserved, settled and released: no allow leaves, nothing acknowledged is
missing, and no hold is unaccounted for. A disk of 1.25 MB that is full (an empty log takes 0.65 MB), a disk that fails
to sync, and a checkpoint file that cannot be made durable; with the writer alone, and with a real server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from audit import store
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.evidence import verify_directory
from tests.fault_table import Counted
from tests.kept_holds import check_kept_holds
from tests.killed_server import WORKLOAD, served

SPENDER = """
import asyncio, json, subprocess, sys, time
from pathlib import Path
from audit.record import Entry, Search, encode
from policyd.errors import AuditError
from policyd.ledger.rules import Charge, Limit, Reservation
from policyd.ledger.store import Settlement, Void
from policyd.services.clock import now_us, uuid7
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.writer import CommitLimits

PLACES = [(path, window) for path in ("*", "acme", "acme/p") for window in ("day", "total")]
LIMITS = tuple(Limit(path, "micro_usd", window, 10**12) for path, window in PLACES)
SCOPE = {"tenant": "acme", "project": "p", "environment": "prod"}
data, fault, mend, width = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
answered, unknown, errors = {}, {}, 0

def entry(kind, id, told):
    time_us = now_us()
    id = id or uuid7(time_us)
    return Entry(kind, id, time_us, encode({"id": id, "kind": kind, **told}, b"x" * 16), Search(tenant="acme"))

async def reserve(committer):
    id = uuid7(now_us())
    asked = Reservation(id, tuple(Charge(limit, 100) for limit in LIMITS), 60_000_000)
    await committer.submit(entry("decision", id, {"workload": SCOPE, "text": "y" * 500}), operation=asked)
    answered[id] = "held"
    return id

async def end(committer, id, settles):
    operation, kind = (Settlement(id, (("micro_usd", 140),)), "settlement") if settles else (Void(id), "void")
    unknown[id] = settles
    told = {"decision": id, "scope": list(SCOPE.values())}
    position = await committer.submit(entry(kind, None, told), operation=operation)
    answered[id] = position.admission["state"]
    del unknown[id]

async def spend(committer, nth):
    global errors
    try:
        id = await reserve(committer)
        if nth % 3:
            await end(committer, id, nth % 3 == 1)
    except AuditError:
        errors += 1

async def main():
    with DataDirectory(data) as directory:
        committer = await Committer.open(directory, limits=CommitLimits(retry_first_ms=10, retry_max_ms=50))
        await asyncio.gather(*(spend(committer, nth) for nth in range(width)))
        assert not errors
        subprocess.run(fault, shell=True, check=True)
        ends = time.monotonic() + 30
        while not errors:
            assert time.monotonic() < ends, "the fault is none"
            await asyncio.gather(*(spend(committer, nth) for nth in range(width)))
        broken = 0
        for _ in range(5):
            before = len(answered)
            await asyncio.sleep(0.1)
            await asyncio.gather(*(spend(committer, nth) for nth in range(width)))
            broken += len(answered) == before
        subprocess.run(mend, shell=True, check=True)
        ends = time.monotonic() + 30
        while not committer.healthy:
            assert time.monotonic() < ends, committer.fault
            await asyncio.sleep(0.02)
        failed, asked_again = errors, len(unknown)
        # Whoever heard an error asks again: it is done now, or it was done, and never twice.
        for id, settles in list(unknown.items()):
            await end(committer, id, settles)
        await asyncio.gather(*(spend(committer, nth) for nth in range(width)))
        assert errors == failed
        await committer.close()
    print(json.dumps({"answered": answered, "errors": errors, "asked_again": asked_again, "broken": broken}))

asyncio.run(main())
"""


def check_after(data: Path, answered: dict[str, str]) -> None:
    """A restart verifies; all that was answered is there; balances, holds and log say the same."""

    async def restart() -> None:
        with DataDirectory(data) as directory:
            await (await Committer.open(directory)).close()

    asyncio.run(restart())
    assert verify_directory(DataDirectory(data), [], [], []).fault is None
    check_kept_holds(store.open_sqlite_reader(data / "audit.sqlite"), answered)


def spend(
    data: Path, repository: Path, fault: str, mend: str, counted: Counted, *, width: int = 16, **environment: str
) -> dict[str, Any]:
    """So many spenders of the writer before, during and after a fault. ``fault`` and ``mend`` are commands."""
    done = subprocess.run(
        [sys.executable, "-c", SPENDER, str(data), fault, mend, str(width)],
        cwd=repository, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["errors"] > 0
    check_after(data, report["answered"])
    counted("rounds", 1)
    counted("acknowledged", len(report["answered"]))
    counted("lost", 0)
    counted("unaccounted", 0)
    return report


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.25 MB with an empty log on it, which takes half."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    if mounted:
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("a file system of its own needs root")
    try:

        async def create() -> None:
            # To be made, a log needs its own size once more.
            with DataDirectory(place / "data") as directory:
                await (await Committer.open(directory)).close()

        asyncio.run(create())
        subprocess.run(["mount", "-o", "remount,size=1280k", str(place)], check=True)
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.fault("ENOSPC: a disk of 1.25 MB, with reservations and settlements")
def test_a_full_small_disk_loses_no_hold(small_disk: Path, repository: Path, counted: Counted) -> None:
    mend = f"mount -o remount,size=8m {small_disk}"
    report = spend(small_disk / "data", repository, ":", mend, counted, width=3)
    assert report["broken"] > 0, "while it was full, a whole round of spenders was refused"


@pytest.mark.fault("EIO from fsync, with reservations and settlements")
def test_a_disk_that_fails_to_sync_loses_no_hold(
    failing_sync: Path, tmp_path: Path, repository: Path, counted: Counted
) -> None:
    flag = tmp_path / "flag"
    environment = {"LD_PRELOAD": str(failing_sync), "BREAK_SYNC": str(flag)}
    report = spend(tmp_path / "data", repository, f"touch {flag}", f"rm {flag}", counted, **environment)
    assert report["broken"] == 5, "while it was broken, nothing was answered"


@pytest.mark.fault("EIO from fsync of the checkpoint file")
def test_a_checkpoint_that_cannot_be_kept_stops_every_allow(
    failing_sync: Path, tmp_path: Path, repository: Path, counted: Counted
) -> None:
    flag = tmp_path / "flag"
    environment = {"LD_PRELOAD": str(failing_sync), "BREAK_SYNC": str(flag), "BREAK_SYNC_OF": "log.checkpoint"}
    report = spend(tmp_path / "data", repository, f"touch {flag}", f"rm {flag}", counted, **environment)
    assert report["broken"] == 5, "while it was broken, nothing was answered"


class Spenders:
    """Callers of a real server that go on whatever they hear. ``outcomes`` has when each was asked and answered, and
    how."""

    def __init__(self, address: str) -> None:
        self.answered: dict[str, str] = {}
        self.outcomes: list[tuple[float, float, str]] = []
        self._address = address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    async def _run(self) -> None:
        async with httpx.AsyncClient(base_url=self._address, timeout=30) as client:
            await asyncio.gather(*(self._call(client, nth) for nth in range(8)))

    async def _call(self, client: httpx.AsyncClient, nth: int) -> None:
        while not self._stop.is_set():
            nth, asked_s = nth + 1, time.monotonic()
            answer = await client.post("/v1/decisions", json=WORKLOAD)
            found = answer.json()
            said = found["outcome"] if answer.status_code == 200 else found["code"]
            self.outcomes.append((asked_s, time.monotonic(), said))
            if answer.status_code != 200:
                await asyncio.sleep(0.02)
                continue
            self.answered[found["reservation"]["id"]] = "held"
            if nth % 2:
                used = {"input_tokens": 500, "output_tokens": 20}
                after = await client.post(f"/v1/decisions/{found['id']}/settlement", json=used)
                if after.status_code == 200:
                    self.answered[found["id"]] = after.json()["state"]

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a caller hangs"


def wait_until(load: Spenders, outcome: str, count: int, since_s: float = 0.0) -> None:
    """Until so many that were asked since then have that answer."""
    ends = time.monotonic() + 60
    while sum(asked_s >= since_s and said == outcome for asked_s, _, said in list(load.outcomes)) < count:
        assert time.monotonic() < ends, f"{outcome} did not come"
        time.sleep(0.01)


@pytest.mark.fault("EIO from fsync under a real server")
def test_no_allow_leaves_a_server_whose_disk_fails(
    failing_sync: Path, tmp_path: Path, repository: Path, counted: Counted
) -> None:
    data, flag = tmp_path / "data", tmp_path / "flag"
    with served(data, repository, settings={"LD_PRELOAD": str(failing_sync), "BREAK_SYNC": str(flag)}) as (_, address):
        load = Spenders(address)
        try:
            wait_until(load, "allow", 40)
            flag.touch()
            broken_s = time.monotonic()
            wait_until(load, "audit.unavailable", 40, broken_s)
            mended_s = time.monotonic()
            flag.unlink()
            wait_until(load, "allow", 40, mended_s)
        finally:
            load.stop()
    during = {said for asked_s, answered_s, said in load.outcomes if broken_s <= asked_s and answered_s < mended_s}
    assert during == {"audit.unavailable"}
    check_after(data, load.answered)
    counted("rounds", 1)
    counted("acknowledged", len(load.answered))
    counted("lost", 0)
    counted("unaccounted", 0)
