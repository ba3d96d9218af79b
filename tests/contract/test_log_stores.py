"""What a store of logs promises, tried on each: a file of SQLite and a database of a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from audit import query, store
from audit.errors import EntriesRefused, LogCorrupt, LogUnavailable, QueryInvalid, SearchTooSlow
from audit.record import Blob, Entry, Search, leaf_hash
from audit.store import Position, Tail
from audit.stores import LogStore, SqliteStore
from policyd.services.clock import uuid7

SHEET = Blob.of("sheet", b'{"pools":[]}' * 50, (("rejected_pool", "spot-us"), ("rule", "location_not_permitted")))
NOW_US = 1_790_000_000_000_000
ODD_WORDS = ("a\x00b", "a\\0b", "a\\\x00", "\\", "\x00", "é\x00'\"%_;--", "\U0001f512", "NULL", "{}", "a,b", '"')


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> LogStore:
    """A place without a log."""
    if kind == "sqlite":
        return SqliteStore(tmp_path / "audit.sqlite")
    from audit.postgresql_store import PostgresqlStore

    return PostgresqlStore(request.getfixturevalue("database"), tmp_path / "origin")


@contextmanager
def writing(place: LogStore, origin: str | None = "test/log") -> Iterator[tuple[Connection, Tail]]:
    log = place.open_writer("process_safe", origin)
    try:
        with log.connection.begin():
            yield log.connection, Tail.read(log.connection, log.number)
    finally:
        log.close()


@contextmanager
def reading(place: LogStore) -> Iterator[Connection]:
    engine = place.open_reader()
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def entry(nth: int, search: Search | None = None, **more: Any) -> Entry:
    time_us = NOW_US + 1_000 * nth
    entry_id = f"{(time_us // 1_000):012x}7000{nth:016x}"
    entry_id = f"{entry_id[:8]}-{entry_id[8:12]}-7000-8000-{nth:012x}"
    return Entry("decision", entry_id, time_us, b'{"nth":%d}' % nth, search or Search(), **more)


def test_indexes_are_dense_over_batches_and_openings(place: LogStore) -> None:
    for start in (0, 3):
        with writing(place) as (connection, tail):
            positions = store.append(connection, [entry(nth) for nth in range(start, start + 3)], tail=tail)
            assert positions == [Position(nth, leaf_hash(entry(nth).body)) for nth in range(start, start + 3)]
    with reading(place) as connection:
        page = query.search(connection, {})
        assert [(one.origin, one.index, one.id, one.body) for one in page.items] == [
            ("test/log", nth, entry(nth).id, entry(nth).body) for nth in range(5, -1, -1)
        ]


def test_a_large_batch_is_taken_whole_and_verifies(place: LogStore) -> None:
    terms = tuple(("data_source", f"source-{n}") for n in range(3))
    with writing(place) as (connection, tail):
        entries = [entry(nth, Search(project=f"p{nth % 7}"), terms=terms) for nth in range(1_500)]
        assert len(store.append(connection, entries, tail=tail)) == 1_500
        assert len(query.search(connection, {"data_source": "source-2"}, limit=1_000).items) == 1_000
    with writing(place) as (connection, tail):
        store.verify_tail(connection, depth=2_000, log=tail.log)
        assert tail.next_index == 1_500


def test_a_batch_of_what_is_known_takes_few_statements(place: LogStore, kind: str) -> None:
    with writing(place) as (connection, tail):
        terms = (("data_source", "crm"),)
        store.append(connection, [entry(0, Search(sheet=SHEET.digest), terms=terms)], [SHEET], tail=tail)
        said: list[str] = []
        if kind == "sqlite":
            driver: Any = connection.connection.dbapi_connection
            driver.set_trace_callback(said.append)
        else:
            event.listen(connection, "before_cursor_execute", lambda *told: said.append(told[2]))
        batch = [entry(nth, Search(sheet=SHEET.digest), terms=terms) for nth in range(1, 257)]
        store.append(connection, batch, [SHEET], tail=tail)
        assert len(said) == {"sqlite": 3, "postgresql": 1}[kind], said


def test_an_empty_batch_and_a_batch_of_blobs_only(place: LogStore) -> None:
    with writing(place) as (connection, tail):
        assert store.append(connection, [], tail=tail) == []
        assert store.append(connection, [], [SHEET], tail=tail) == []
        assert query.blob(connection, SHEET.digest) == SHEET.content


def test_nothing_stays_after_a_rollback(place: LogStore) -> None:
    log = place.open_writer("process_safe", "test/log")
    tail = Tail.read(log.connection, log.number)
    store.append(log.connection, [entry(0, Search(tenant="gone", sheet=SHEET.digest))], [SHEET], tail=tail)
    log.connection.rollback()
    log.close()
    with writing(place) as (connection, tail):
        assert query.search(connection, {}).items == ()
        assert query.blob(connection, SHEET.digest) is None
        assert store.numbers_of(connection, ["gone"]) == {}
        assert store.append(connection, [entry(0)], tail=tail)[0].index == 0


def test_a_blob_is_kept_once_and_read_back(place: LogStore) -> None:
    incompressible = Blob.of("facts", b"x")
    with writing(place) as (connection, tail):
        store.append(connection, [], [SHEET, SHEET, incompressible], tail=tail)
    with writing(place) as (connection, tail):
        store.append(connection, [entry(0, Search(sheet=SHEET.digest))], [SHEET], tail=tail)
        assert query.blob(connection, SHEET.digest) == SHEET.content
        assert query.blob(connection, incompressible.digest) == b"x"
        assert query.blob(connection, "sha256:" + "0" * 64) is None
        assert len(query.search(connection, {"rejected_pool": "spot-us"}).items) == 1


def test_a_recorded_id_is_refused_and_named(place: LogStore) -> None:
    with writing(place) as (connection, tail):
        store.append(connection, [entry(1)], tail=tail)
    with pytest.raises(EntriesRefused) as caught, writing(place) as (connection, tail):
        store.append(connection, [entry(0), entry(1), entry(2)], tail=tail)
    assert list(caught.value.reasons) == [entry(1).id]
    with writing(place) as (connection, tail):
        assert store.recorded(connection, [entry(nth).id for nth in range(3)]) == {entry(1).id}


def test_an_entry_whose_sheet_is_not_kept_is_refused(place: LogStore) -> None:
    with pytest.raises(EntriesRefused) as caught, writing(place) as (connection, tail):
        store.append(connection, [entry(0), entry(1, Search(sheet=SHEET.digest))], tail=tail)
    assert list(caught.value.reasons) == [entry(1).id]


@pytest.mark.parametrize("field", ["tenant", "request_id", "data_source"])
def test_every_character_is_kept_and_found(place: LogStore, field: str) -> None:
    with writing(place) as (connection, tail):
        for nth, word in enumerate(ODD_WORDS):
            one = entry(nth, terms=((field, word),)) if field == "data_source" else entry(nth, Search(**{field: word}))
            store.append(connection, [one], tail=tail)
        if field == "tenant":
            numbers = store.numbers_of(connection, ODD_WORDS)
            assert set(numbers) == set(ODD_WORDS)
            owners = [query.owner_of(connection, entry(nth).id) for nth in range(len(ODD_WORDS))]
            assert [owner and owner.tenant for owner in owners] == list(ODD_WORDS)
    with reading(place) as connection:
        for nth, word in enumerate(ODD_WORDS):
            assert [one.id for one in query.search(connection, {field: word}).items] == [entry(nth).id]


def test_a_body_is_kept_byte_for_byte(place: LogStore) -> None:
    bodies = [bytes(range(256)), b"\x00", b"\\x00", b"\xff" * 65_535]
    ids = [entry(nth).id for nth in range(len(bodies))]
    with writing(place) as (connection, tail):
        pairs = zip(ids, bodies, strict=True)
        store.append(connection, [Entry("decision", one, NOW_US, body) for one, body in pairs], tail=tail)
    with reading(place) as connection:
        found = [query.by_id(connection, one) for one in ids]
    assert [one and one.body for one in found] == bodies


def test_pages_hold_each_entry_once_and_in_order(place: LogStore) -> None:
    with writing(place) as (connection, tail):
        entries = [Entry("decision", entry(nth).id, NOW_US + nth // 3, b"x", Search(tenant="t")) for nth in range(50)]
        store.append(connection, entries, tail=tail)
    with reading(place) as connection:
        found: list[str] = []
        cursor: str | None = None
        while True:
            page = query.search(connection, {"tenant": "t"}, cursor, 7)
            found += [one.id for one in page.items]
            cursor = page.next
            if cursor is None:
                break
            with pytest.raises(QueryInvalid, match="other filters"):
                query.search(connection, {}, cursor, 7)
        assert found == [one.id for one in reversed(entries)]


DAMAGE = [
    'DELETE FROM entry WHERE "index" = {place}',
    'DELETE FROM body WHERE "index" = {place}',
    "UPDATE body SET body = {other} WHERE \"index\" = {place}",
    'UPDATE entry SET kind = 77 WHERE "index" = {place}',
    'UPDATE entry SET leaf_hash = {other} WHERE "index" = {place}',
]  # fmt: skip


@pytest.mark.parametrize("statement", DAMAGE)
def test_damage_near_the_end_is_found_on_opening_and_named(place: LogStore, kind: str, statement: str) -> None:
    with writing(place) as (connection, tail):
        store.append(connection, [entry(nth) for nth in range(6)], tail=tail)
    other = "x'01'" if kind == "sqlite" else "'\\x01'::bytea"
    log = place.open_writer("process_safe", None)
    with log.connection.begin():
        if kind == "sqlite":
            log.connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        number = Tail.read(log.connection, log.number).log
        damage = statement.format(place=(number << 40) + 3, other=other)
        if kind == "sqlite" and damage.startswith("DELETE FROM entry"):
            log.connection.exec_driver_sql('DELETE FROM body WHERE "index" = 3')
        log.connection.exec_driver_sql(damage)
    log.close()
    with pytest.raises(LogCorrupt, match="entry 3") as caught, writing(place):
        pass
    assert caught.value.index == 3


def test_a_log_that_is_not_there_is_not_made_without_a_name(place: LogStore) -> None:
    with pytest.raises(LogUnavailable):
        place.open_writer("power_safe", None)
    with pytest.raises(LogUnavailable):
        place.open_reader()


def test_the_first_name_of_a_log_stays(place: LogStore) -> None:
    for name in ("test/log", "another/name", None):
        log = place.open_writer("power_safe", name)
        assert log.origin == "test/log"
        log.close()


def test_a_reader_sees_one_state_until_its_transaction_ends(place: LogStore) -> None:
    with writing(place) as (connection, tail):
        store.append(connection, [entry(0)], tail=tail)
    with reading(place) as connection:
        assert len(query.search(connection, {}).items) == 1
        with writing(place) as (writer, tail):
            store.append(writer, [entry(1)], tail=tail)
        assert len(query.search(connection, {}).items) == 1
        assert query.by_id(connection, entry(1).id) is None
        connection.rollback()
        assert len(query.search(connection, {}).items) == 2


def test_a_reader_cannot_write(place: LogStore) -> None:
    with writing(place):
        pass
    with reading(place) as connection, pytest.raises(Exception, match=r"readonly|read-only"):
        store.append(connection, [entry(0)])


def test_a_search_is_stopped_at_its_deadline(place: LogStore, kind: str) -> None:
    with writing(place) as (connection, tail):
        store.append(connection, [entry(nth) for nth in range(1_000)], tail=tail)
    slow = 'SELECT count(*) FROM entry a, entry b, entry c WHERE a."index" + b."index" = c."index" + 1'
    with (
        reading(place) as connection,
        pytest.raises(SearchTooSlow, match="longer than 20 ms"),
        place.deadline(connection, 20),
    ):
        connection.exec_driver_sql(slow)
    with reading(place) as connection, place.deadline(connection, 10_000):
        assert len(query.search(connection, {}).items) == 100


def test_ids_of_the_product_are_taken(place: LogStore) -> None:
    with writing(place) as (connection, tail):
        ids = [uuid7(NOW_US) for _ in range(20)]
        store.append(connection, [Entry("decision", one, NOW_US, b"x") for one in ids], tail=tail)
        assert store.recorded(connection, ids) == set(ids)
