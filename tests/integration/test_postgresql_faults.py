"""Real faults of a database under load: killed, cut off in a commit, written by two. No answered entry is missing."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from audit import query, store
from audit.postgresql_store import PostgresqlStore
from audit.record import Blob, Entry, Search
from audit.store import Position
from policyd.errors import AuditError, AuditLocked, KeyInProgress
from policyd.services.clock import now_us, uuid7
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.idempotency import Claim, scope_of
from policyd.services.writer import CommitLimits
from tests.fault_table import Counted
from tests.postgresql_server import PostgresqlServer

IN_FLIGHT = 64
QUICK = CommitLimits(retry_first_ms=20, retry_max_ms=100)
RECOVERY_MAX_S = 60
SHEETS = [Blob.of("sheet", b"sheet %d" % nth * 100, (("rule", f"rule_{nth}"),)) for nth in range(20)]


def entry(tenant: str = "acme", sheet: Blob | None = None) -> Entry:
    time_us = now_us()
    search = Search(tenant=tenant, sheet=sheet and sheet.digest)
    return Entry("decision", uuid7(time_us), time_us, b'{"about":"%s"}' % tenant.encode() * 50, search)


def directory(database: str, path: Path, key: Path | None = None) -> DataDirectory:
    return DataDirectory(path, PostgresqlStore(database, path / "origin"), key)


def recorded_ids(database: str) -> set[str]:
    """Every id of every log, each log verified from its first entry to its last."""
    engine = PostgresqlStore(database, Path("/nonexistent")).open_reader()
    found: set[str] = set()
    try:
        with engine.connect() as connection:
            for number in range(1, len(store.origins(connection)) + 1):
                store.verify_tail(connection, depth=1_000_000, log=number)
            cursor: str | None = None
            while True:
                page = query.search(connection, {}, cursor, 1_000)
                found.update(record.id for record in page.items)
                cursor = page.next
                if cursor is None:
                    return found
    finally:
        engine.dispose()


async def recovered(committer: Committer) -> None:
    ends = time.monotonic() + RECOVERY_MAX_S
    while not committer.healthy:
        assert time.monotonic() < ends, committer.fault
        await asyncio.sleep(0.05)


async def load(committer: Committer, answered: set[str], failed: set[str], until: asyncio.Event) -> None:
    """As many callers as in flight, each going on after an error."""

    async def caller(nth: int) -> None:
        while not until.is_set():
            one = entry(f"tenant-{nth % 8}")
            try:
                await committer.submit(one)
            except AuditError:
                failed.add(one.id)
                await asyncio.sleep(0.02)
            else:
                answered.add(one.id)

    await asyncio.gather(*map(caller, range(IN_FLIGHT)))


def kill_database(server: PostgresqlServer, database: str, path: Path, rounds: int, counted: Counted) -> None:
    answered: set[str] = set()
    failed: set[str] = set()

    async def scenario() -> None:
        with directory(database, path) as place:
            committer = await Committer.open(place, limits=QUICK)
            for turn in range(rounds):
                until = asyncio.Event()
                before = len(answered)
                loading = asyncio.create_task(load(committer, answered, failed, until))
                await asyncio.sleep(0.3 + 0.05 * (turn % 5))
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(0.1)
                assert not committer.healthy
                await asyncio.to_thread(server.start)
                await recovered(committer)
                await asyncio.sleep(0.1)
                until.set()
                await loading
                assert len(answered) >= before + IN_FLIGHT
            await committer.close()

    asyncio.run(scenario())
    found = recorded_ids(database)
    lost = answered - found
    assert lost == set()
    assert failed
    assert found <= answered | failed
    counted("rounds", rounds)
    counted("acknowledged", len(answered))
    counted("lost", len(lost))


@pytest.mark.fault("PostgreSQL killed and restarted")
def test_every_answered_entry_survives_a_killed_database(
    postgresql: PostgresqlServer, database: str, tmp_path: Path, counted: Counted
) -> None:
    kill_database(postgresql, database, tmp_path, rounds=1, counted=counted)


@pytest.mark.fault("PostgreSQL killed and restarted")
@pytest.mark.long
def test_every_answered_entry_survives_many_killed_databases(
    postgresql: PostgresqlServer, database: str, tmp_path: Path, counted: Counted
) -> None:
    kill_database(postgresql, database, tmp_path, rounds=20, counted=counted)


class Proxy:
    """Between a client and the server: cuts both off around a commit, once, when it is told to."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.cut: str | None = None
        """``before`` the server hears of the commit, or ``after`` it has answered."""
        self.cuts = 0
        self._silent = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._silent = False
                server = socket.create_connection(("127.0.0.1", self._server_port))
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(source, target, source is client), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, from_client: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if from_client and b"COMMIT" in data and self.cut is not None:
                    cut, self.cut, self._silent = self.cut, None, True
                    if cut == "after":
                        target.sendall(data)
                        time.sleep(0.3)  # the server has committed by then, and nobody has heard of it
                    self.cuts += 1
                    break
                if not from_client and self._silent:
                    continue
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()


@pytest.fixture
def proxy(postgresql: PostgresqlServer) -> Iterator[Proxy]:
    made = Proxy(postgresql.port)
    yield made
    made.close()


@pytest.mark.fault("PostgreSQL cut off in a commit")
@pytest.mark.parametrize(("cut", "stored"), [("before", 0), ("after", 8)])
def test_a_commit_of_unknown_outcome_is_resolved_by_the_ids(
    postgresql: PostgresqlServer, proxy: Proxy, database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    cut: str, stored: int,
) -> None:  # fmt: skip
    name = database.rpartition("/")[2]
    batch = [entry() for _ in range(8)]
    last = entry()

    async def scenario() -> None:
        with directory(postgresql.address(name, proxy.port), tmp_path) as place:
            committer = await Committer.open(place, limits=QUICK)
            await committer.submit(entry())
            proxy.cut = cut
            results = await asyncio.gather(*map(committer.submit, batch), return_exceptions=True)
            assert {type(result) for result in results} == {AuditError}, "an unknown outcome is never an allow"
            assert proxy.cuts == 1
            await recovered(committer)
            again = await asyncio.gather(*map(committer.submit, batch), return_exceptions=True)
            if stored:
                assert all("recorded already" in str(result) for result in again)
            else:
                assert [result.index for result in again if isinstance(result, Position)] == [*range(1, 9)]
            assert (await committer.submit(last)).index == 9
            await committer.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert f"of 8 entries answered with an error, {stored} are stored" in caplog.text
    assert {one.id for one in (*batch, last)} <= recorded_ids(database)


def test_a_session_that_was_ended_by_the_server_is_opened_again(
    postgresql: PostgresqlServer, database: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        with directory(database, tmp_path) as place:
            committer = await Committer.open(place, limits=QUICK)
            await committer.submit(entry())
            ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'policyd'"
            assert postgresql.execute(ended) == [(2,)], "one for the log, one for the keys of personal fields"
            with pytest.raises(AuditError):
                await committer.submit(entry())
            await recovered(committer)
            assert (await committer.submit(entry())).index == 1
            await committer.close()

    asyncio.run(scenario())


def test_two_replicas_at_once_lose_nothing_and_use_a_key_once(database: str, tmp_path: Path) -> None:
    rounds, keys = 12, 6
    entries: set[str] = set()
    used: dict[int, list[str]] = {}

    async def caller(committer: Committer, nth: int) -> None:
        for turn in range(rounds):
            one = entry(f"tenant-{turn}-{nth % 3}", SHEETS[(turn * 7 + nth) % len(SHEETS)])
            claim, key = None, turn * keys + nth
            if nth < keys:
                scope = scope_of("p", "t", "r", str(key))
                claim = Claim(scope, b"body", one.time_us, one.time_us + 60_000_000)
            try:
                await committer.submit(one, [SHEETS[(turn * 7 + nth) % len(SHEETS)]], claim)
            except KeyInProgress:
                assert claim is not None
                continue
            entries.add(one.id)
            if claim is not None:
                used.setdefault(key, []).append(one.id)

    async def scenario() -> None:
        key = tmp_path / "personal.key"
        with directory(database, tmp_path / "one", key) as one, directory(database, tmp_path / "other", key) as other:
            committers = [await Committer.open(place, limits=QUICK) for place in (one, other)]
            assert committers[0].origin != committers[1].origin
            callers = [caller(committer, nth) for committer in committers for nth in range(32)]
            await asyncio.gather(*callers)
            assert all(committer.healthy for committer in committers)
            totals = [committer.entries_total for committer in committers]
            assert sum(totals) == len(entries)
            assert min(totals) >= rounds * (32 - keys)
            for committer in committers:
                await committer.close()

    asyncio.run(scenario())
    assert sorted(used) == list(range(rounds * keys))
    assert all(len(ids) == 1 for ids in used.values())
    assert recorded_ids(database) == entries


def test_a_second_writer_of_one_log_is_told_so(database: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        with directory(database, tmp_path / "one") as one:
            committer = await Committer.open(one, limits=QUICK)
            fixed = PostgresqlStore(database, tmp_path / "other" / "origin", committer.origin)
            with DataDirectory(tmp_path / "other", fixed) as other, pytest.raises(AuditLocked, match="another session"):
                await Committer.open(other, limits=QUICK)
            assert (await committer.submit(entry())).index == 0
            await committer.close()

    asyncio.run(scenario())


WRITER = """
import asyncio, os, sys
from pathlib import Path
from audit.postgresql_store import PostgresqlStore
from audit.record import Entry, Search
from policyd.services.clock import now_us, uuid7
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory

async def caller(committer):
    while True:
        time_us = now_us()
        one = Entry("decision", uuid7(time_us), time_us, b"x" * 900, Search(tenant="t"))
        await committer.submit(one)
        os.write(1, one.id.encode() + b"\\n")

async def main():
    path = Path(sys.argv[1])
    with DataDirectory(path, PostgresqlStore(sys.stdin.readline().strip(), path / "origin")) as directory:
        committer = await Committer.open(directory)
        await asyncio.gather(*(caller(committer) for _ in range(64)))

asyncio.run(main())
"""


def kill_writers(database: str, path: Path, repository: Path, rounds: int, counted: Counted) -> None:
    answered: set[str] = set()
    for turn in range(rounds):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
            assert writer.stdin is not None
            assert writer.stdout is not None
            writer.stdin.write(database.encode() + b"\n")
            writer.stdin.flush()
            first = writer.stdout.readline()
            time.sleep(0.05 + 0.037 * (turn % 7))
            writer.send_signal(signal.SIGKILL)
            heard = first + writer.stdout.read()
        now_answered = {line.decode() for line in heard.split(b"\n")[:-1]}
        assert len(now_answered) >= IN_FLIGHT
        answered |= now_answered
    lost = answered - recorded_ids(database)
    assert lost == set()
    counted("rounds", rounds)
    counted("acknowledged", len(answered))
    counted("lost", len(lost))


@pytest.mark.fault("SIGKILL of the writer (PostgreSQL)")
def test_every_answered_entry_survives_a_killed_writer(
    database: str, tmp_path: Path, repository: Path, counted: Counted
) -> None:
    kill_writers(database, tmp_path, repository, rounds=2, counted=counted)


@pytest.mark.fault("SIGKILL of the writer (PostgreSQL)")
@pytest.mark.long
def test_every_answered_entry_survives_many_killed_writers(
    database: str, tmp_path: Path, repository: Path, counted: Counted
) -> None:
    kill_writers(database, tmp_path, repository, rounds=200, counted=counted)
