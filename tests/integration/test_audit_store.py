"""A log in a real SQLite file: appending, refusing, and noticing damage."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine

from audit import query, store
from audit.errors import AuditFailure, EntriesRefused, LogCorrupt, LogUnavailable, SchemaUnknown
from audit.record import Blob, Entry, Search, leaf_hash
from audit.store import SYNCHRONOUS, Position, Tail

SHEET = Blob.of("sheet", b'{"pools":[]}' * 50, (("rejected_pool", "spot-us"), ("rule", "location_not_permitted")))


def entry(nth: int, search: Search | None = None, **more: object) -> Entry:
    body = f'{{"nth":{nth},"mark":"needle-{nth}"}}'.encode()
    return Entry("decision", f"01990000-0000-7000-8000-{nth:012x}", 1_000_000 * nth, body, search or Search(), **more)  # type: ignore[arg-type]


@contextmanager
def writing(path: Path) -> Iterator[Connection]:
    engine = store.open_sqlite(path, "process_safe", origin="test/log")
    try:
        with engine.connect() as connection, connection.begin():
            yield connection
    finally:
        engine.dispose()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit?with%20odd name.sqlite"


def change(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


def test_indexes_are_dense_over_batches_and_openings(path: Path) -> None:
    for start in (0, 3):
        with writing(path) as connection:
            positions = store.append(connection, [entry(nth) for nth in range(start, start + 3)])
            assert positions == [Position(nth, leaf_hash(entry(nth).body)) for nth in range(start, start + 3)]


def test_a_remembered_tail_gives_the_same_log_as_a_fresh_one(tmp_path: Path) -> None:
    entries = [entry(nth, Search(tenant=f"t{nth % 3}", project=f"p{nth}")) for nth in range(700)]
    for name, remembered in (("a", True), ("b", False)):
        with writing(tmp_path / name) as connection:
            tail = Tail.read(connection) if remembered else None
            for start in range(0, 700, 70):
                store.append(connection, entries[start : start + 70], tail=tail)
    with writing(tmp_path / "a") as one, writing(tmp_path / "b") as other:
        for tenant in ("t0", "t1", "t2"):
            page = query.search(one, {"tenant": tenant}, limit=1_000)
            assert page == query.search(other, {"tenant": tenant}, limit=1_000)
            assert len(page.items) >= 233


def test_a_batch_larger_than_one_statement_is_taken_whole(path: Path) -> None:
    with writing(path) as connection:
        terms = tuple(("data_source", f"source-{n}") for n in range(3))
        assert len(store.append(connection, [entry(nth, terms=terms) for nth in range(1_500)])) == 1_500
        assert len(query.search(connection, {"data_source": "source-2"}, limit=1_000).items) == 1_000
    with writing(path) as connection:
        store.verify_tail(connection, depth=2_000)


def test_nothing_stays_after_a_rollback(path: Path) -> None:
    engine = store.open_sqlite(path, "process_safe", origin="test/log")
    with engine.connect() as connection:
        store.append(connection, [entry(0, Search(sheet=SHEET.digest))], [SHEET])
        connection.rollback()
    engine.dispose()
    with writing(path) as connection:
        assert query.search(connection, {}).items == ()
        assert query.blob(connection, SHEET.digest) is None
        assert store.append(connection, [entry(0)])[0].index == 0


def test_a_blob_is_kept_once_compressed_and_read_back(path: Path) -> None:
    incompressible = Blob.of("facts", b"x")
    with writing(path) as connection:
        store.append(connection, [], [SHEET, SHEET, incompressible])
        store.append(connection, [], [SHEET])
        assert query.blob(connection, SHEET.digest) == SHEET.content
        assert query.blob(connection, incompressible.digest) == b"x"
        assert query.blob(connection, "sha256:" + "0" * 64) is None
        assert query.blob(connection, "sha256:nonsense") is None
    with closing(sqlite3.connect(path)) as raw:
        rows = raw.execute("SELECT encoding, length(content) FROM blob ORDER BY encoding").fetchall()
    assert [encoding for encoding, _ in rows] == ["plain", "zlib"]
    assert rows[1][1] < len(SHEET.content)


def test_a_recorded_id_is_refused_and_named(path: Path) -> None:
    with writing(path) as connection:
        store.append(connection, [entry(1)])
    with pytest.raises(EntriesRefused) as caught, writing(path) as connection:
        store.append(connection, [entry(0), entry(1)])
    assert list(caught.value.reasons) == [entry(1).id]


def test_an_entry_whose_sheet_is_not_kept_is_refused(path: Path) -> None:
    with pytest.raises(EntriesRefused) as caught, writing(path) as connection:
        store.append(connection, [entry(0), entry(1, Search(sheet=SHEET.digest))])
    assert list(caught.value.reasons) == [entry(1).id]


@pytest.mark.parametrize("statement", [
    "DELETE FROM entry WHERE \"index\" = 3",
    "DELETE FROM body WHERE \"index\" = 3",
    "UPDATE body SET body = CAST('{\"nth\":3}' AS BLOB) WHERE \"index\" = 3",
    "UPDATE body SET body = CAST(body AS TEXT) WHERE \"index\" = 3",
    "UPDATE entry SET id = x'00' WHERE \"index\" = 3",
    "UPDATE entry SET kind = 77 WHERE \"index\" = 3",
    "UPDATE entry SET leaf_hash = zeroblob(32) WHERE \"index\" = 3",
])  # fmt: skip
def test_damage_near_the_end_is_found_on_open_and_named(path: Path, statement: str) -> None:
    with writing(path) as connection:
        store.append(connection, [entry(nth) for nth in range(6)])
    change(path, statement)
    with pytest.raises(LogCorrupt, match="entry 3") as caught, writing(path):
        pass
    assert caught.value.index == 3


@pytest.mark.parametrize(
    "statement", ['DELETE FROM entry WHERE "index" = 0', 'UPDATE entry SET "index" = -1 WHERE "index" = 0']
)
def test_a_missing_first_entry_is_found(path: Path, statement: str) -> None:
    with writing(path) as connection:
        store.append(connection, [entry(nth) for nth in range(6)])
    change(path, statement)
    with pytest.raises(LogCorrupt, match="entry 0"), writing(path):
        pass


def test_one_byte_of_the_file_changed_in_a_body_is_found_on_open_and_on_read(path: Path) -> None:
    with writing(path) as connection:
        store.append(connection, [entry(nth) for nth in range(6)])
    content = bytearray(path.read_bytes())
    place = content.index(b"needle-4")
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(LogCorrupt) as caught, writing(path):
        pass
    assert caught.value.index == 4
    engine = store.open_sqlite_reader(path)
    with engine.connect() as connection:
        assert query.by_id(connection, entry(3).id) is not None
        with pytest.raises(LogCorrupt, match="entry 4"):
            query.by_id(connection, entry(4).id)
        with pytest.raises(LogCorrupt, match="entry 4"):
            query.search(connection, {})
    engine.dispose()


@pytest.mark.parametrize("damage", ["UPDATE blob SET content = x'00'", "UPDATE blob SET encoding = 'plain'"])
def test_a_damaged_blob_is_never_returned(path: Path, damage: str) -> None:
    with writing(path) as connection:
        store.append(connection, [], [SHEET])
    change(path, damage)
    with writing(path) as connection, pytest.raises(LogCorrupt, match=SHEET.digest):
        query.blob(connection, SHEET.digest)


def test_a_log_of_another_schema_is_left_alone(path: Path) -> None:
    with writing(path):
        pass
    change(path, "UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    openings: list[Callable[[], Engine]] = [
        partial(store.open_sqlite, path, "power_safe", origin="x"),
        partial(store.open_sqlite_reader, path),
    ]
    for opening in openings:
        with pytest.raises(SchemaUnknown, match="version 99, this program knows"):
            opening()


def test_another_programs_database_is_left_alone(path: Path) -> None:
    change(path, "CREATE TABLE recipes (title TEXT)")
    with pytest.raises(SchemaUnknown, match="not a log"):
        store.open_sqlite(path, "power_safe", origin="x")
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]


def test_a_file_that_is_no_database_is_named(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be looked at " * 100)
    with pytest.raises(LogCorrupt, match="damaged, or no log"):
        store.open_sqlite(path, "power_safe", origin="x")


def test_a_log_that_is_not_there_is_not_made_without_a_name(path: Path) -> None:
    openings: list[Callable[[], Engine]] = [
        partial(store.open_sqlite, path, "power_safe", origin=None),
        partial(store.open_sqlite_reader, path),
    ]
    for opening in openings:
        with pytest.raises(LogUnavailable):
            opening()
    assert not path.exists()


def test_a_reader_cannot_write(path: Path) -> None:
    with writing(path):
        pass
    engine = store.open_sqlite_reader(path)
    with engine.connect() as connection, pytest.raises(Exception, match="readonly"):
        store.append(connection, [entry(0)])
    engine.dispose()


def test_writing_does_not_start_over_what_never_reached_the_database(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_MS", 50)
    first = store.open_sqlite(path, "process_safe", origin="x")
    reader = store.open_sqlite_reader(path)
    with first.connect() as connection, reader.connect() as reading:
        assert query.search(reading, {}).items == ()
        store.append(connection, [entry(0)])
        connection.commit()
        with pytest.raises(LogUnavailable, match="reader holds"):
            store.open_sqlite(path, "process_safe", origin="x")
        reading.rollback()
        store.open_sqlite(path, "process_safe", origin="x").dispose()
    first.dispose()
    reader.dispose()


def test_power_safe_means_that_sqlite_waits_for_the_disk(path: Path) -> None:
    levels = {}
    for durability in SYNCHRONOUS:
        engine = store.open_sqlite(path, durability, origin="x")
        with engine.connect() as connection:
            levels[durability] = connection.exec_driver_sql("PRAGMA synchronous").scalar()
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        engine.dispose()
    assert levels == {"power_safe": 2, "process_safe": 1}


def test_the_first_name_of_a_log_stays(path: Path) -> None:
    with writing(path):
        pass
    engine = store.open_sqlite(path, "power_safe", origin="another/name")
    with engine.connect() as connection:
        assert store.origin(connection) == "test/log"
    engine.dispose()


def test_every_failure_is_one_of_ours() -> None:
    assert issubclass(SchemaUnknown, LogUnavailable)
    assert issubclass(LogCorrupt, AuditFailure)


def test_a_decision_over_sixty_pools_takes_less_than_two_kibibytes(path: Path) -> None:
    pools = tuple(("rejected_pool", f"provider-{n % 9}-region-{n}") for n in range(57))
    sheets = [Blob.of("sheet", b"%d" % nth + bytes(40_000), pools) for nth in range(20)]
    with writing(path) as connection:
        store.append(connection, [], sheets)
    empty_bytes = path.stat().st_size
    count = 2_000
    entries = [
        Entry(
            "decision",
            f"01990000-0000-7000-8000-{nth:012x}",
            1_700_000_000_000_000 + nth,
            (b"%08d" % nth) * 150,
            Search(
                tenant=f"tenant-{nth % 8}",
                project=f"project-{nth % 30}",
                environment="prod",
                principal=f"service-{nth % 40}",
                outcome="allow",
                pool=f"onprem-fra-{nth % 20}",
                provider="onprem",
                country="DE",
                model="llama-3.1-70b-instruct",
                model_version="2026-01-15",
                classification="restricted",
                sla_class="realtime",
                mode="enforce",
                policy_commit="9f2c" * 10,
                fleet_commit="ab12" * 10,
                request_id=f"{nth:032x}-req",
                sheet=sheets[nth % 20].digest,
            ),
            (("data_source", "crm-eu"), ("country", "DE")),
        )
        for nth in range(count)
    ]
    with writing(path) as connection:
        for start in range(0, count, 50):
            store.append(connection, entries[start : start + 50])
    assert (path.stat().st_size - empty_bytes) / count < 2_048
    with writing(path) as connection:
        found = query.search(connection, {"rejected_pool": "provider-0-region-0"}, limit=1_000)
        assert len(found.items) == 1_000
