"""What only the store on PostgreSQL has: several logs in one database, locks, months, and a server to be judged."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import MetaData

from audit import postgresql_store, query, store
from audit.block_tables import BLOCK_TABLES
from audit.errors import EntriesRefused, LogCorrupt, LogLocked, LogUnavailable, SchemaUnknown
from audit.postgresql import MONTHS_AHEAD, months_from
from audit.postgresql_store import PostgresqlStore
from audit.record import Blob, Entry, Search
from audit.store import Tail
from audit.stores import OpenLog
from audit.tables import TABLES
from audit.tree_tables import CHECKPOINT, TREE_NODE
from policyd.ledger.tables import BUDGET_TABLES
from policyd.services.clock import uuid7
from policyd.services.erasures import ERASURES
from policyd.services.holds import HOLDS
from policyd.services.idempotency import KEYS
from policyd.services.proposals import PROPOSALS
from policyd.services.revision_rows import REVISIONS
from policyd.services.waiver_rows import WAIVERS
from tests.postgresql_server import PASSWORD, QUOTED_PASSWORD, PostgresqlServer

NOW_US = int(datetime(2026, 6, 15, tzinfo=UTC).timestamp()) * 1_000_000
SHEET = Blob.of("sheet", b"a sheet", (("rule", "location_not_permitted"),))


def replica(database: str, folder: Path, name: str) -> PostgresqlStore:
    return PostgresqlStore(database, folder / f"{name}.origin")


@contextmanager
def open_log(place: PostgresqlStore, origin: str | None) -> Iterator[tuple[OpenLog, Tail]]:
    log = place.open_writer("process_safe", origin)
    try:
        yield log, Tail.read(log.connection, log.number)
        log.connection.commit()
    finally:
        log.close()


def entry(time_us: int = NOW_US, tenant: str = "acme", entry_id: str | None = None) -> Entry:
    return Entry("decision", entry_id or uuid7(time_us), time_us, b'{"a":1}', Search(tenant=tenant))


def test_two_writers_have_each_a_log_and_share_words_and_blobs(database: str, tmp_path: Path) -> None:
    one, other = replica(database, tmp_path, "one"), replica(database, tmp_path, "other")
    with open_log(one, "log/one") as (first, first_tail), open_log(other, "log/other") as (second, second_tail):
        for log, tail in ((first, first_tail), (second, second_tail), (first, first_tail)):
            more = Entry("decision", uuid7(NOW_US), NOW_US, b"x", Search(tenant="acme", sheet=SHEET.digest))
            store.append(log.connection, [entry(), more], [SHEET], tail=tail)
            log.connection.commit()
        assert (first_tail.next_index, second_tail.next_index) == (4, 2)
        connection = second.connection
        assert store.origins(connection) == ("log/one", "log/other")
        assert len(store.numbers_of(connection, ["acme"])) == 1
        page = query.search(connection, {"tenant": "acme"}, limit=4)
        assert [(found.origin, found.index) for found in page.items] == [
            ("log/other", 1), ("log/other", 0), ("log/one", 3), ("log/one", 2),
        ]  # fmt: skip
        rest = query.search(connection, {"tenant": "acme"}, page.next)
        assert [(found.origin, found.index) for found in rest.items] == [("log/one", 1), ("log/one", 0)]
        assert len(query.search(connection, {"rule": "location_not_permitted"}).items) == 3
        for log in (first, second):
            store.verify_tail(log.connection, log=log.number)


def test_an_id_is_unique_over_all_logs(database: str, tmp_path: Path) -> None:
    one, other = replica(database, tmp_path, "one"), replica(database, tmp_path, "other")
    taken = entry()
    with open_log(one, "log/one") as (log, tail):
        store.append(log.connection, [taken], tail=tail)
    with open_log(other, "log/other") as (log, tail):
        with pytest.raises(EntriesRefused) as caught:
            store.append(log.connection, [entry(), entry(entry_id=taken.id)], tail=tail)
        assert list(caught.value.reasons) == [taken.id]
        log.connection.rollback()
        assert store.recorded(log.connection, [taken.id]) == {taken.id}


def test_a_second_writer_of_a_log_is_refused_until_the_first_session_has_ended(database: str, tmp_path: Path) -> None:
    with open_log(replica(database, tmp_path, "one"), "log/one"):
        with pytest.raises(LogLocked, match="another session writes the log log/one"):
            replica(database, tmp_path, "one").open_writer("power_safe", None)
        fixed = PostgresqlStore(database, tmp_path / "elsewhere", "log/one")
        with pytest.raises(LogLocked):
            fixed.open_writer("power_safe", "ignored")
    fixed.open_writer("power_safe", "ignored").close()
    assert (tmp_path / "elsewhere").read_text() == "log/one"


def test_a_database_that_lost_the_log_is_not_begun_anew(
    postgresql: PostgresqlServer, database: str, tmp_path: Path
) -> None:
    with open_log(replica(database, tmp_path, "one"), "log/one"):
        pass
    other = replica(postgresql.make_database(), tmp_path, "one")
    for origin in ("log/one", None):
        with pytest.raises(LogUnavailable):
            other.open_writer("power_safe", origin)
    with pytest.raises(LogUnavailable, match="holds no log log/one, which this writer made"):
        other.open_writer("power_safe", "log/new")


def test_logs_are_made_by_several_writers_at_once(database: str, tmp_path: Path) -> None:
    numbers: list[int] = []

    def start(name: str) -> None:
        log = replica(database, tmp_path, name).open_writer("power_safe", f"log/{name}")
        numbers.append(log.number)
        log.close()

    threads = [threading.Thread(target=start, args=(f"r{nth}",)) for nth in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(numbers) == [1, 2, 3, 4]


def months(server: PostgresqlServer, database: str) -> dict[str, int]:
    """Entries by partition."""
    name = database.rpartition("/")[2]
    parts = server.execute("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'entry'::regclass", name)
    return {str(part): int(str(server.execute(f"SELECT count(*) FROM {part}", name)[0][0])) for (part,) in parts}


def test_months_are_made_ahead_and_when_an_entry_brings_another(
    postgresql: PostgresqlServer, database: str, tmp_path: Path
) -> None:
    with open_log(replica(database, tmp_path, "one"), "log/one") as (log, tail):
        ahead = months_from(f"{datetime.now(UTC):%Y-%m}", 1 + MONTHS_AHEAD)
        expected = {f"entry_{month.replace('-', '_')}": 0 for month in ahead}
        assert months(postgresql, database) == expected
        december = int(datetime(2023, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC).timestamp() * 1_000) * 1_000
        batch = [entry(december), entry(december + 1_000), entry(december + 31 * 86_400_000_000)]
        store.append(log.connection, batch, tail=tail)
        log.connection.commit()
        store.append(log.connection, [entry(december)], tail=tail)
        log.connection.commit()
        assert months(postgresql, database) == {**expected, "entry_2023_12": 2, "entry_2024_01": 2}
        assert len(query.search(log.connection, {"tenant": "acme"}).items) == 4
        store.verify_tail(log.connection, log=log.number)
    with open_log(replica(database, tmp_path, "one"), None) as (_, tail):
        assert tail.next_index == 4


def test_a_month_that_was_rolled_back_is_made_again(database: str, tmp_path: Path) -> None:
    with open_log(replica(database, tmp_path, "one"), "log/one") as (log, tail):
        store.append(log.connection, [entry(1_000_000_000_000_000)], tail=tail)
        log.connection.rollback()
        tail = Tail.read(log.connection, log.number)
        assert store.append(log.connection, [entry(1_000_000_000_000_000)], tail=tail)[0].index == 0


def test_an_id_of_no_month_is_refused_and_named(database: str, tmp_path: Path) -> None:
    late = "ffffffff-ffff-7000-8000-000000000000"
    with open_log(replica(database, tmp_path, "one"), "log/one") as (log, tail):
        with pytest.raises(EntriesRefused) as caught:
            store.append(log.connection, [entry(), entry(entry_id=late)], tail=tail)
        assert list(caught.value.reasons) == [late]


def test_a_gap_is_named_in_its_own_log(postgresql: PostgresqlServer, database: str, tmp_path: Path) -> None:
    for name in ("one", "other"):
        with open_log(replica(database, tmp_path, name), f"log/{name}") as (log, tail):
            store.append(log.connection, [entry() for _ in range(5)], tail=tail)
    name = database.rpartition("/")[2]
    postgresql.execute(f'DELETE FROM entry WHERE "index" = {(2 << 40) + 2}', name)
    with open_log(replica(database, tmp_path, "one"), None):
        pass
    with pytest.raises(LogCorrupt, match="entry 2") as caught:
        replica(database, tmp_path, "other").open_writer("power_safe", None)
    assert caught.value.index == 2


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_power_safe_is_refused_by_a_server_that_does_not_sync(
    postgresql: PostgresqlServer, database: str, tmp_path: Path, setting: str
) -> None:
    postgresql.execute(f"ALTER SYSTEM SET {setting} = off")
    postgresql.execute("SELECT pg_reload_conf(), pg_sleep(0.3)")
    try:
        with pytest.raises(LogUnavailable, match=f"{setting}=off"):
            replica(database, tmp_path, "one").open_writer("power_safe", "log/one")
        replica(database, tmp_path, "one").open_writer("process_safe", "log/one").close()
    finally:
        postgresql.execute(f"ALTER SYSTEM RESET {setting}")
        postgresql.execute("SELECT pg_reload_conf(), pg_sleep(0.3)")


def test_a_writer_that_hangs_does_not_hold_the_others(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_store, "IDLE_MAX_MS", 300)
    hanging = replica(database, tmp_path, "one").open_writer("process_safe", "log/one")
    tail = Tail.read(hanging.connection, hanging.number)
    store.append(hanging.connection, [entry(tenant="new to both")], tail=tail)
    with open_log(replica(database, tmp_path, "other"), "log/other") as (log, other_tail):
        store.append(log.connection, [entry(tenant="new to both")], tail=other_tail)
    with pytest.raises(Exception, match=r"idle-in-transaction|connection"):
        hanging.connection.commit()
    hanging.close()
    with open_log(replica(database, tmp_path, "one"), None) as (_, tail):
        assert tail.next_index == 0


@pytest.mark.parametrize(("durability", "level"), [("power_safe", "on"), ("process_safe", "off")])
def test_the_server_waits_for_the_disk_as_promised(database: str, tmp_path: Path, durability: str, level: str) -> None:
    log = replica(database, tmp_path, "one").open_writer(durability, "log/one")
    assert log.connection.exec_driver_sql("SHOW synchronous_commit").scalar() == level
    log.close()


def test_another_programs_database_and_a_newer_log_are_left_alone(
    postgresql: PostgresqlServer, database: str, tmp_path: Path
) -> None:
    name = database.rpartition("/")[2]
    with open_log(replica(database, tmp_path, "one"), "log/one"):
        pass
    postgresql.execute("UPDATE meta SET value = '9999' WHERE key = 'schema_version'", name)
    foreign = postgresql.make_database()
    with psycopg.connect(foreign) as connection:
        connection.execute("CREATE TABLE recipes (title TEXT)")
    for address, words in ((database, "version 9999"), (foreign, "not a log")):
        with pytest.raises(SchemaUnknown, match=words):
            replica(address, tmp_path, "one").open_writer("power_safe", "log/one")
        with pytest.raises(SchemaUnknown, match=words):
            replica(address, tmp_path, "one").open_reader()


def test_no_message_tells_the_password(postgresql: PostgresqlServer, tmp_path: Path) -> None:
    closed = postgresql.address("nowhere", port=1)
    for address in (postgresql.address("nowhere"), closed, f"postgresql://{PASSWORD}@[half", "host='half open"):
        with pytest.raises(LogUnavailable) as caught:
            replica(address, tmp_path, "one").open_writer("power_safe", "x")
        told = f"{caught.value} {caught.value.__cause__!r}"
        assert PASSWORD not in told
        assert QUOTED_PASSWORD not in told


def test_the_migrations_make_the_tables_that_the_code_uses(database: str, tmp_path: Path) -> None:
    declared = MetaData()
    for table in (
        *TABLES,
        *BLOCK_TABLES,
        KEYS,
        TREE_NODE,
        CHECKPOINT,
        *BUDGET_TABLES,
        PROPOSALS,
        HOLDS,
        ERASURES,
        REVISIONS,
        WAIVERS,
    ):
        table.to_metadata(declared)
    with open_log(replica(database, tmp_path, "one"), "log/one") as (log, _):
        context = MigrationContext.configure(log.connection, opts={"compare_type": True, "include_name": _no_partition})
        found = [_told(difference) for difference in compare_metadata(context, declared)]
    # Rows that stand in months have no keys to each other, and their id is in both halves.
    assert sorted(found) == ["add_fk body", "add_fk entry_term", "remove_column body.id"]


def _no_partition(name: str | None, kind: str, _: object) -> bool:
    return kind != "table" or re.search(r"_\d{4}_\d{2}$", name or "") is None


def _told(difference: tuple[object, ...]) -> str:
    what, *more = difference
    if what == "remove_column":
        return f"{what} {more[1]}.{more[2].name}"
    return f"{what} {more[0].parent.name if hasattr(more[0], 'parent') else more[0]}"
