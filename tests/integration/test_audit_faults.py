"""Real faults under load: a killed writer, a full disk, a disk that fails to sync. No answered entry may be missing."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit import query, store
from audit.record import Entry, Search
from policyd.errors import AuditError
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.writer import CommitLimits
from tests.fault_table import Counted

IN_FLIGHT = 64

WRITER = """
import asyncio, os, sys
from pathlib import Path
from audit.record import Entry, Search
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory

async def caller(committer, first):
    nth = first
    while True:
        one = Entry("decision", f"01990000-{sys.argv[2]}-7000-8000-{nth:012x}", nth, b"x" * 900, Search(tenant="t"))
        await committer.submit(one)
        os.write(1, one.id.encode() + b"\\n")
        nth += 64

async def main():
    with DataDirectory(Path(sys.argv[1])) as directory:
        committer = await Committer.open(directory)
        await asyncio.gather(*(caller(committer, first) for first in range(64)))

asyncio.run(main())
"""


def recorded_ids(path: Path) -> set[str]:
    """Every id of the log, after the checks that a writer makes on opening."""
    engine = store.open_sqlite(path, "power_safe", origin=None)
    try:
        with engine.connect() as connection:
            store.verify_tail(connection, depth=1_000_000)
            found: set[str] = set()
            cursor: str | None = None
            while True:
                page = query.search(connection, {}, cursor, 1_000)
                found.update(record.id for record in page.items)
                cursor = page.next
                if cursor is None:
                    return found
    finally:
        engine.dispose()


def kill_rounds(path: Path, repository: Path, rounds: int, counted: Counted) -> None:
    answered: set[str] = set()
    for turn in range(rounds):
        command = [sys.executable, "-c", WRITER, str(path), f"{turn:04x}"]
        with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            first = writer.stdout.readline()
            time.sleep(0.05 + 0.037 * (turn % 7))
            writer.send_signal(signal.SIGKILL)
            heard = first + writer.stdout.read()
        # The last line may be cut off; every whole one was answered.
        now_answered = {line.decode() for line in heard.split(b"\n")[:-1]}
        assert len(now_answered) >= IN_FLIGHT
        answered |= now_answered
        if turn % 20 == 0 or turn == rounds - 1:
            lost = answered - recorded_ids(path / "audit.sqlite")
            assert lost == set()
    counted("rounds", rounds)
    counted("acknowledged", len(answered))
    counted("lost", len(lost))


@pytest.mark.fault("SIGKILL of the writer (SQLite)")
def test_every_answered_entry_survives_kill(tmp_path: Path, repository: Path, counted: Counted) -> None:
    kill_rounds(tmp_path, repository, rounds=3, counted=counted)


@pytest.mark.fault("SIGKILL of the writer (SQLite)")
@pytest.mark.long
def test_every_answered_entry_survives_many_kills(tmp_path: Path, repository: Path, counted: Counted) -> None:
    kill_rounds(tmp_path, repository, rounds=200, counted=counted)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, as root; a third of it is taken by a file called ``ballast``."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    if mounted:
        command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("a file system of 3 MB needs root")
    try:
        (place / "ballast").write_bytes(bytes(1_000_000))
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def entry(nth: int) -> Entry:
    return Entry("decision", f"01990000-0000-7000-8000-{nth:012x}", nth, b"%04d" % nth * 1_000, Search(tenant="t"))


async def submit_until_error(committer: Committer, first: int) -> tuple[set[str], int]:
    """Answered ids until the first error; 64 are in flight."""
    answered: set[str] = set()
    for start in range(first, first + 100_000, IN_FLIGHT):
        batch = [entry(nth) for nth in range(start, start + IN_FLIGHT)]
        results = await asyncio.gather(*map(committer.submit, batch), return_exceptions=True)
        answered |= {one.id for one, result in zip(batch, results, strict=True) if isinstance(result, store.Position)}
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            assert {type(error) for error in errors} == {AuditError}
            return answered, start + IN_FLIGHT
    raise AssertionError("the disk never filled")


async def recovered(committer: Committer) -> None:
    for _ in range(200):
        if committer.healthy:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(committer.fault)


@pytest.mark.fault("ENOSPC: a full file system")
def test_a_full_disk_is_an_error_until_there_is_room_again(small_disk: Path) -> None:
    async def scenario() -> tuple[set[str], Path]:
        with DataDirectory(small_disk / "data") as directory:
            limits = CommitLimits(retry_first_ms=10, retry_max_ms=50)
            committer = await Committer.open(directory, limits=limits)
            answered, following = await submit_until_error(committer, 0)
            assert answered
            if committer.healthy:  # moving the write-ahead log away can make room for a last batch
                more, following = await submit_until_error(committer, following)
                answered |= more
            (small_disk / "ballast").unlink()
            await recovered(committer)
            last = entry(following)
            await committer.submit(last)
            await committer.close()
        return answered | {last.id}, directory.log_path

    answered, path = asyncio.run(scenario())
    assert answered <= recorded_ids(path)


LIMITED = """
import asyncio, json, resource, sys, time
from pathlib import Path
from audit.record import Entry, Search
from policyd.errors import AuditError
from policyd.services.committer import Committer
from policyd.services.writer import CommitLimits
from policyd.services.data_directory import DataDirectory

def entry(nth):
    return Entry("decision", f"01990000-0000-7000-8000-{nth:012x}", nth, b"x" * 4000, Search(tenant="t"))

async def main():
    fail, mend = (lambda: None), (lambda: None)
    flag = Path(sys.argv[2])
    if sys.argv[3] == "size":
        fail = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        mend = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        fail, mend = flag.touch, flag.unlink
    with DataDirectory(Path(sys.argv[1])) as directory:
        limits = CommitLimits(batch_max_entries=16, retry_first_ms=10, retry_max_ms=20)
        committer = await Committer.open(directory, limits=limits)
        answered, failed, slowest_s = [], [], 0
        async def submit(nth):
            nonlocal slowest_s
            started = time.monotonic()
            try:
                await committer.submit(entry(nth))
                answered.append(entry(nth).id)
            except AuditError:
                failed.append(entry(nth).id)
            slowest_s = max(slowest_s, time.monotonic() - started)
        await asyncio.gather(*map(submit, range(64)))
        fail()
        await asyncio.gather(*map(submit, range(64, 128)))
        broken_failures = len(failed)
        await asyncio.sleep(0.2)
        healthy_while_broken = committer.healthy
        await asyncio.gather(*map(submit, range(128, 192)))
        mend()
        for _ in range(200):
            if committer.healthy:
                break
            await asyncio.sleep(0.05)
        await asyncio.gather(*map(submit, range(192, 256)))
        await committer.close()
    print(json.dumps({"answered": answered, "failed": len(failed), "slowest_s": slowest_s,
        "broken_failures": broken_failures, "healthy_while_broken": healthy_while_broken}))

asyncio.run(main())
"""


def check_fault(path: Path, repository: Path, fault: str, environment: dict[str, str]) -> None:
    data, flag = path / "data", path / "flag"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(data), str(flag), fault],
        cwd=repository, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["broken_failures"] == 64, "every waiter of the failed batch heard of it"
    assert report["failed"] == 128, "while broken, every submission failed"
    assert report["healthy_while_broken"] is False
    assert len(report["answered"]) == 128, "before and after, everything was answered"
    assert report["slowest_s"] < 10
    assert set(report["answered"]) <= recorded_ids(data / "audit.sqlite")


@pytest.mark.fault("EFBIG: a file that may not grow")
def test_a_file_that_may_not_grow_is_an_error_until_it_may(tmp_path: Path, repository: Path) -> None:
    check_fault(tmp_path, repository, "size", {})


@pytest.mark.fault("EIO from fsync")
def test_a_disk_that_fails_to_sync_is_an_error_until_it_works(
    failing_sync: Path, tmp_path: Path, repository: Path
) -> None:
    environment = {"LD_PRELOAD": str(failing_sync), "BREAK_SYNC": str(tmp_path / "flag")}
    check_fault(tmp_path, repository, "sync", environment)
