"""SIGKILL under a load of reservations, settlements and voids: no hold is unaccounted for, and the log folds into the
balances, on both stores. A few rounds normally, 200 with ``--long``; all of them on one log."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine

from audit import store
from audit.postgresql_store import PostgresqlStore
from tests.fault_table import Counted
from tests.kept_holds import check_kept_holds
from tests.killed_server import WORKLOAD, killed_under_load

CALLERS = 32
USAGE = {"input_tokens": 500, "output_tokens": 20}


class Spenders:
    """Callers that decide, and then settle, release or keep what they hold. ``answered`` has the last word on each."""

    def __init__(self, address: str) -> None:
        self.answered: dict[str, str] = {}
        self._address = address
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    async def _run(self) -> None:
        async with httpx.AsyncClient(base_url=self._address, timeout=30) as client:
            await asyncio.gather(*(self._call(client, nth) for nth in range(CALLERS)))

    async def _call(self, client: httpx.AsyncClient, nth: int) -> None:
        for turn in range(nth, 1_000_000):
            try:
                found = (await client.post("/v1/decisions", json=WORKLOAD)).json()
                held = found["reservation"]["id"]
                self.answered[held] = "held"
                if turn % 3 == 0:
                    after = (await client.post(f"/v1/decisions/{held}/settlement", json=USAGE)).json()
                elif turn % 3 == 1:
                    after = (await client.delete(f"/v1/decisions/{held}/reservation")).json()
                else:
                    continue
                self.answered[held] = after["state"]
            except (httpx.TransportError, ValueError):
                return

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive(), "a caller hangs"


def kill_rounds(
    data: Path, repository: Path, rounds: int, open_reader: Callable[[], Engine], counted: Counted, **settings: str
) -> None:
    answered: dict[str, str] = {}
    for nth in range(rounds):
        load = killed_under_load(data, repository, Spenders, 60 + 7 * (nth % 5), settings=settings)
        answered |= load.answered
        check_kept_holds(open_reader(), answered)
    assert len(answered) >= 60 * rounds
    counted("rounds", rounds)
    counted("acknowledged", len(answered))
    counted("lost", 0)
    counted("unaccounted", 0)


ROUNDS = pytest.mark.parametrize("rounds", [2, pytest.param(200, marks=pytest.mark.long)])


@pytest.mark.fault("SIGKILL under reservations, settlements and voids (SQLite)")
@ROUNDS
def test_no_hold_is_lost_and_none_is_unaccounted_for(
    rounds: int, tmp_path: Path, repository: Path, counted: Counted
) -> None:
    data = tmp_path / "data"
    kill_rounds(data, repository, rounds, lambda: store.open_sqlite_reader(data / "audit.sqlite"), counted)


@pytest.mark.fault("SIGKILL under reservations, settlements and voids (PostgreSQL)")
@ROUNDS
def test_on_postgresql_no_hold_is_lost_and_none_is_unaccounted_for(
    rounds: int, database: str, tmp_path: Path, repository: Path, counted: Counted
) -> None:
    address_file = tmp_path / "database-url"
    address_file.write_text(database)
    reader = PostgresqlStore(database, tmp_path / "none")
    settings = {"POLICYD_AUDIT__DATABASE_URL_FILE": str(address_file)}
    kill_rounds(tmp_path / "data", repository, rounds, reader.open_reader, counted, **settings)
