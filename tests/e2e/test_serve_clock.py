"""A real ``policyd serve`` whose clock is set: budgets of a tenant's zone over a change of its clocks, an hour back and
a month forward, on both stores."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine

from audit import store
from audit.postgresql_store import PostgresqlStore
from policyd.services.data_directory import DataDirectory
from policyd.services.evidence import verify_directory
from tests.faked_clock import FakedClock, faked_clock
from tests.kept_holds import check_kept_holds
from tests.killed_server import WORKLOAD, served

PATH = "eu-bank/support-chat/prod"
MONTHLY = '          prod: [{limit: "22000", window: month}]\n'
DAILY = '          prod: [{limit: "22000", window: day}, {limit: "22000", window: hour}]\n'
CACHED_S = 1.5
MONTH_S = 31 * 86_400


@pytest.fixture
def clock(tmp_path: Path) -> FakedClock:
    return faked_clock(tmp_path)


@pytest.fixture
def fleet(tmp_path: Path, repository: Path) -> Path:
    """The example fleet; support-chat of eu-bank, in Europe/Berlin, has a budget for each day and hour."""
    fleet = shutil.copytree(repository / "examples" / "fleet", tmp_path / "fleet")
    text = (fleet / "tenants.yaml").read_text()
    assert MONTHLY in text
    (fleet / "tenants.yaml").write_text(text.replace(MONTHLY, DAILY))
    return fleet


@contextmanager
def asking(data: Path, repository: Path, *flags: str, **settings: str) -> Generator[httpx.Client, None, None]:
    with (
        served(data, repository, *flags, settings=settings) as (_, address),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client


def decide(client: httpx.Client, answered: dict[str, str]) -> int:
    """Decide, and give what it holds."""
    ends = time.monotonic() + 60
    while (answer := client.post("/v1/decisions", json=WORKLOAD)).status_code == 503 and time.monotonic() < ends:
        # To a clock that was set forward, facts are too old until they are read again.
        assert answer.json()["code"] == "facts.unavailable", answer.text
        time.sleep(0.2)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    answered[found["id"]] = "held"
    return int(found["reservation"]["micro_usd"])


def settle(client: httpx.Client, answered: dict[str, str]) -> int:
    """Decide and settle, and give what it cost."""
    decide(client, answered)
    last = list(answered)[-1]
    answer = client.post(f"/v1/decisions/{last}/settlement", json={"micro_usd": 1_000})
    assert answer.status_code == 200, answer.text
    answered[last] = answer.json()["state"]
    return 1_000


def budgets(client: httpx.Client) -> dict[str, dict[str, Any]]:
    """What is spent of the limits of ``PATH``, by window."""
    answer = client.get(f"/v1/budgets/{PATH}")
    assert answer.status_code == 200, answer.text
    return {limit["window"]: limit for limit in answer.json()["items"] if limit["path"] == PATH}


CHANGES = [
    # The first hour of the day, its last hour, and the day after it; when that day ends in UTC.
    pytest.param(
        ("2026-10-25T00:10:00+02:00", "2026-10-25T23:10:00+01:00", "2026-10-26T00:10:00+01:00"),
        "2026-10-25T23:00:00",
        id="a day of 25 hours",
        marks=pytest.mark.long,
    ),
    pytest.param(
        ("2027-03-28T00:10:00+01:00", "2027-03-28T23:10:00+02:00", "2027-03-29T00:10:00+02:00"),
        "2027-03-28T22:00:00",
        id="a day of 23 hours",
        marks=pytest.mark.long,
    ),
]


@pytest.mark.parametrize(("moments", "ends"), CHANGES)
def test_a_day_of_the_tenants_zone_ends_when_its_clocks_say(
    moments: tuple[str, str, str], ends: str, clock: FakedClock, fleet: Path, tmp_path: Path, repository: Path
) -> None:
    data, answered = tmp_path / "data", dict[str, str]()
    spent: list[dict[str, tuple[int, str]]] = []
    for moment in moments:
        with asking(data, repository, "--fleet", str(fleet), **clock.starting_at(moment)) as client:
            settle(client, answered)
            spent.append({name: (each["spent"], each["resets_at"]) for name, each in budgets(client).items()})
    first, last, following = spent
    assert (first["day"][0], last["day"][0]) == (1_000, 2_000)
    assert first["day"][1] == last["day"][1]
    assert last["day"][1].startswith(ends)
    assert following["day"][0] == 1_000
    assert following["day"][1] > last["day"][1]
    assert [each["hour"][0] for each in spent] == [1_000, 1_000, 1_000]
    assert verify_directory(DataDirectory(data), [], [], []).fault is None
    check_kept_holds(store.open_sqlite_reader(data / "audit.sqlite"), answered)


@pytest.mark.long
def test_the_hour_that_comes_twice_is_budgeted_twice(
    clock: FakedClock, fleet: Path, tmp_path: Path, repository: Path
) -> None:
    data, answered = tmp_path / "data", dict[str, str]()
    spent = []
    for moment in ("2026-10-25T02:20:00+02:00", "2026-10-25T02:20:00+01:00"):
        with asking(data, repository, "--fleet", str(fleet), **clock.starting_at(moment)) as client:
            settle(client, answered)
            found = budgets(client)
            spent.append((found["hour"]["spent"], found["hour"]["resets_at"][:19], found["day"]["spent"]))
    assert spent == [(1_000, "2026-10-25T01:00:00", 1_000), (1_000, "2026-10-25T02:00:00", 2_000)]


def clock_is_set(
    clock: FakedClock, data: Path, repository: Path, open_reader: Callable[[], Engine], **settings: str
) -> None:
    """An hour back and a month forward, under a server that goes on."""
    answered: dict[str, str] = {}
    # Each look at the clock would read the file, and a server looks often.
    kept = {name: value for name, value in clock.environment.items() if name != "FAKETIME_NO_CACHE"}
    with asking(data, repository, **kept, FAKETIME_CACHE_DURATION="1", **settings) as client:
        clock.set("+0")
        total = settle(client, answered)
        before = budgets(client)["month"]
        for offset in ("-3600", f"+{MONTH_S}", "+0"):
            clock.set(offset)
            time.sleep(CACHED_S)
            total += settle(client, answered)
            decide(client, answered)
            found = budgets(client)["month"]
            assert (found["spent"], found["resets_at"]) == (total, before["resets_at"]), "the same month goes on"
        assert client.get("/readyz").status_code == 200
    check_kept_holds(open_reader(), answered)


@pytest.mark.fault("clock of a server set back an hour and forward a month (SQLite)")
def test_a_server_whose_clock_is_set_opens_no_month(clock: FakedClock, tmp_path: Path, repository: Path) -> None:
    data = tmp_path / "data"
    clock_is_set(clock, data, repository, lambda: store.open_sqlite_reader(data / "audit.sqlite"))
    assert verify_directory(DataDirectory(data), [], [], []).fault is None


@pytest.mark.fault("clock of a server set back an hour and forward a month (PostgreSQL)")
@pytest.mark.long
def test_on_postgresql_the_time_is_that_of_the_database(
    clock: FakedClock, database: str, tmp_path: Path, repository: Path
) -> None:
    address_file = tmp_path / "database-url"
    address_file.write_text(database)
    reader = PostgresqlStore(database, tmp_path / "none")
    settings = {"POLICYD_AUDIT__DATABASE_URL_FILE": str(address_file)}
    clock_is_set(clock, tmp_path / "data", repository, reader.open_reader, **settings)
