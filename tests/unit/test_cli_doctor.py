"""Each check of the doctor: well, and not well, on real parts."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from policyd.core.facts import Facts, PoolFacts
from policyd.core.fleet import Fleet
from policyd.engines.embedded import EmbeddedEngine
from policyd.revisions.fleet_files import load_fleet
from policyd.services import doctor
from policyd.services.clock import from_rfc3339
from policyd.services.data_directory import DataDirectory
from policyd.services.doctor import Health
from tests.postgresql_server import PostgresqlServer

NOON = from_rfc3339("2027-01-01T12:00:00Z")


@pytest.fixture(scope="module")
def fleet(repository: Path) -> Fleet:
    return load_fleet(repository / "examples" / "fleet")


def test_python() -> None:
    assert doctor.check_python().health is Health.OK
    assert doctor.check_python((3, 10, 14)).health is Health.FAIL


def test_a_clock_before_known_facts_or_entries_fails(fleet: Fleet) -> None:
    assert doctor.check_clock(fleet, NOON - 1, lambda: NOON).health is Health.OK
    assert doctor.check_clock(None, None, lambda: NOON).health is Health.OK
    late_entry = doctor.check_clock(fleet, NOON + 1, lambda: NOON)
    assert (late_entry.health, "newest entry" in late_entry.detail) == (Health.FAIL, True)
    stopped = doctor.check_clock(fleet, None, lambda: from_rfc3339("1970-01-02T00:00:00Z"))
    assert (stopped.health, "when a fact was checked" in stopped.detail) == (Health.FAIL, True)
    assert stopped.remedy


def test_data_directories(tmp_path: Path) -> None:
    assert "will be made" in doctor.check_data(tmp_path / "new" / "deep").detail
    assert not (tmp_path / "new").exists()
    with DataDirectory(tmp_path / "used") as directory:
        directory.announce("http://127.0.0.1:1")
        assert "http://127.0.0.1:1 writes it" in doctor.check_data(tmp_path / "used").detail
    assert "nobody writes it" in doctor.check_data(tmp_path / "used").detail
    (tmp_path / "file").write_text("")
    assert doctor.check_data(tmp_path / "file").health is Health.FAIL


def test_a_database_is_judged_by_what_it_holds(postgresql: PostgresqlServer, database: str, tmp_path: Path) -> None:
    from audit.postgresql_store import PostgresqlStore

    def checked(address: str) -> doctor.Check:
        directory = DataDirectory(tmp_path, PostgresqlStore(address, tmp_path / "origin"))
        return asyncio.run(doctor.check_database(directory))

    assert checked(postgresql.address("nowhere")).health is Health.FAIL
    empty = checked(database)
    assert (empty.health, "not a log" in empty.detail) == (Health.WARN, True)
    PostgresqlStore(database, tmp_path / "origin").open_writer("power_safe", "log/one").close()
    assert checked(database).health is Health.OK


def test_a_directory_without_rights_fails(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user may write everywhere")
    assert doctor.check_data(closed).health is Health.FAIL


def test_an_engine_that_answers_and_one_that_is_closed() -> None:
    async def both() -> list[Health]:
        engine = EmbeddedEngine(1)
        try:
            well = await doctor.check_engine(engine)
        finally:
            await engine.close()
        return [well.health, (await doctor.check_engine(engine)).health]

    assert asyncio.run(both()) == [Health.OK, Health.FAIL]


def test_opa_is_only_missed_when_it_is_configured() -> None:
    assert doctor.check_opa("no-such-opa", configured=False).health is Health.OK
    assert doctor.check_opa("no-such-opa", configured=True).health is Health.FAIL
    assert doctor.check_opa("sh", configured=True).health is Health.OK


def test_facts(fleet: Fleet) -> None:
    known = {name: PoolFacts(1, 0, True) for name in fleet.pools}

    def health(pools: dict[str, PoolFacts], observed_at: str | None) -> Health:
        return doctor.check_facts(Facts(pools, {}, "sha256:x", observed_at), fleet, lambda: NOON).health

    assert health(known, "2027-01-01T11:59:00Z") is Health.OK
    assert health(known, "2026-12-31T12:00:00Z") is Health.WARN
    assert health(known, None) is Health.WARN
    assert health({}, "2027-01-01T11:59:00Z") is Health.WARN


def test_the_newest_entry_of_no_log(tmp_path: Path) -> None:
    assert asyncio.run(doctor.newest_entry_us(DataDirectory(tmp_path))) is None
    (tmp_path / "audit.sqlite").write_bytes(b"no database")
    assert asyncio.run(doctor.newest_entry_us(DataDirectory(tmp_path))) is None
