"""A PostgreSQL that is silent and ends no connection: nobody waits longer than the deadline, and nothing is allowed."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from audit.postgresql_store import PostgresqlStore
from audit.store import Position
from policyd.errors import AuditError
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.log_reader import LogReader
from policyd.services.writer import STOP_MAX_S
from tests.integration.test_postgresql_faults import QUICK, entry, recorded_ids, recovered
from tests.postgresql_server import PostgresqlServer

DEADLINE_MS = 700
SLACK_S = 5.0


class Silence:
    """Between a client and the server: carries everything, until it is silent; connections stay open all the same."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._heard = threading.Event()
        self._heard.set()
        self.silent_at: bytes | None = None
        """What a client says before the silence: the server hears it, and its answer stays here."""
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def fall(self) -> None:
        self._heard.clear()

    def end(self) -> None:
        """Carry on, with what was said meanwhile."""
        self._heard.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._ends += (client, server)
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(source, target, source is client), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, from_client: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if from_client and self.silent_at is not None and self.silent_at in data:
                    self.silent_at = None
                    target.sendall(data)
                    self.fall()
                    continue
                self._heard.wait(60)
                target.sendall(data)
        self._heard.wait(60)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.end()
        self._listener.close()
        for end in self._ends:
            end.close()


@pytest.fixture
def silence(postgresql: PostgresqlServer) -> Iterator[Silence]:
    made = Silence(postgresql.port)
    yield made
    made.close()


@pytest.fixture
def place(postgresql: PostgresqlServer, silence: Silence, database: str, tmp_path: Path) -> Iterator[DataDirectory]:
    address = postgresql.address(database.rpartition("/")[2], silence.port) + "?connect_timeout=2"
    with DataDirectory(tmp_path, PostgresqlStore(address, tmp_path / "origin", deadline_ms=DEADLINE_MS)) as found:
        yield found


def test_a_commit_that_nobody_answers_is_no_allow_and_is_found_by_its_ids(
    place: DataDirectory, silence: Silence, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    batch = [entry() for _ in range(8)]

    async def scenario() -> None:
        committer = await Committer.open(place, limits=QUICK)
        await committer.submit(entry())
        silence.silent_at = b"COMMIT"
        began = time.monotonic()
        results = await asyncio.gather(*map(committer.submit, batch), return_exceptions=True)
        assert time.monotonic() - began < DEADLINE_MS / 1_000 + SLACK_S
        assert {type(result) for result in results} == {AuditError}
        assert "does not answer" in str(results[0])
        with pytest.raises(AuditError):
            await committer.submit(entry())
        silence.end()
        await recovered(committer)
        again = await asyncio.gather(*map(committer.submit, batch), return_exceptions=True)
        assert all("recorded already" in str(result) for result in again)
        assert isinstance(await committer.submit(entry()), Position)
        await committer.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert "of 8 entries answered with an error, 8 are stored" in caplog.text
    assert {one.id for one in batch} <= recorded_ids(database)


@pytest.mark.parametrize("waits", [False, True])
def test_the_end_does_not_wait_for_a_silent_server(place: DataDirectory, silence: Silence, waits: bool) -> None:
    async def scenario() -> float:
        committer = await Committer.open(place, limits=QUICK)
        await committer.submit(entry())
        silence.fall()
        asked = asyncio.create_task(committer.submit(entry()))
        await asyncio.sleep(2 * DEADLINE_MS / 1_000 if waits else 0.05)
        began = time.monotonic()
        await committer.close()
        with pytest.raises(AuditError):
            await asked
        return time.monotonic() - began

    assert asyncio.run(scenario()) < DEADLINE_MS / 1_000 + STOP_MAX_S + SLACK_S


def test_a_search_does_not_wait_for_a_silent_server(place: DataDirectory, silence: Silence) -> None:
    async def scenario() -> float:
        committer = await Committer.open(place, limits=QUICK)
        await committer.submit(entry())
        reader = await LogReader.open(place, deadline_ms=DEADLINE_MS)
        assert len((await reader.search({})).items) == 1
        silence.fall()
        began = time.monotonic()
        with pytest.raises(AuditError, match=r"cannot be read|connection|timeout"):
            await reader.search({})
        taken = time.monotonic() - began
        silence.end()
        assert len((await reader.search({})).items) == 1
        await reader.close()
        await committer.close()
        return taken

    assert asyncio.run(scenario()) < 2 * DEADLINE_MS / 1_000 + 2 * SLACK_S
