"""The schema comes from the migrations: from empty, from a log of the first release, and never from a newer one."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, create_engine

from audit import blocks, query, schema, store
from audit.block_tables import BLOCK, BLOCK_TABLES, POSTING
from audit.errors import SchemaUnknown
from audit.record import Entry, Search, leaf_hash
from audit.tables import TABLES
from audit.tree_tables import CHECKPOINT, TREE_NODE
from policyd.ledger.tables import BUDGET_TABLES
from policyd.services.erasures import ERASURES
from policyd.services.holds import HOLDS
from policyd.services.idempotency import KEYS, found
from policyd.services.proposals import PROPOSALS
from policyd.services.revision_rows import REVISIONS
from policyd.services.waiver_rows import WAIVERS

OURS = (PROPOSALS, HOLDS, ERASURES, REVISIONS, WAIVERS)

FIRST_RELEASE = """
CREATE TABLE meta ("key" VARCHAR NOT NULL, value VARCHAR NOT NULL, PRIMARY KEY ("key"));
CREATE TABLE word (number INTEGER NOT NULL, text TEXT NOT NULL, PRIMARY KEY (number), UNIQUE (text));
CREATE TABLE entry (
    "index" INTEGER NOT NULL, id BLOB NOT NULL, kind INTEGER NOT NULL, time_us INTEGER NOT NULL, tenant INTEGER,
    project INTEGER, environment INTEGER, principal INTEGER, outcome INTEGER, denied_by INTEGER, pool INTEGER,
    provider INTEGER, country INTEGER, model INTEGER, model_version INTEGER, classification INTEGER,
    sla_class INTEGER, mode INTEGER, policy_commit INTEGER, fleet_commit INTEGER, sheet INTEGER, request_id TEXT,
    leaf_hash BLOB NOT NULL, PRIMARY KEY ("index"), UNIQUE (id));
CREATE INDEX entry_by_request ON entry (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX entry_by_tenant ON entry (tenant, time_us);
CREATE INDEX entry_by_time ON entry (time_us);
CREATE TABLE sheet_term (field INTEGER NOT NULL, value INTEGER NOT NULL, sheet INTEGER NOT NULL,
    PRIMARY KEY (field, value, sheet)) WITHOUT ROWID;
CREATE TABLE blob (digest VARCHAR NOT NULL, kind VARCHAR NOT NULL, encoding VARCHAR NOT NULL, content BLOB NOT NULL,
    PRIMARY KEY (digest));
CREATE TABLE body ("index" INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY ("index"),
    FOREIGN KEY("index") REFERENCES entry ("index"));
CREATE TABLE entry_term (field INTEGER NOT NULL, value INTEGER NOT NULL, "index" INTEGER NOT NULL,
    PRIMARY KEY (field, value, "index"), FOREIGN KEY("index") REFERENCES entry ("index")) WITHOUT ROWID;
INSERT INTO meta VALUES ('schema_version', '1'), ('origin', 'policyd/first');
INSERT INTO word VALUES (1, 'acme'), (2, 'crm-eu');
"""
KEYS_OF_FIRST_RELEASE = """
CREATE TABLE idempotency (scope BLOB NOT NULL, request BLOB NOT NULL, decision TEXT NOT NULL,
    expires_us BIGINT NOT NULL, PRIMARY KEY (scope)) WITHOUT ROWID;
CREATE INDEX ix_idempotency_expires_us ON idempotency (expires_us);
"""


def entry(nth: int) -> Entry:
    body = b'{"nth":%d}' % nth
    return Entry("decision", f"01990000-0000-7000-8000-{nth:012x}", nth, body, Search(tenant="acme"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.sqlite"


def make_first_release(path: Path, *, keys: bool) -> None:
    """A log as the first release made it, with two entries; without keys when it never had a server."""
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.executescript(FIRST_RELEASE + (KEYS_OF_FIRST_RELEASE if keys else ""))
        for nth in range(2):
            one = entry(nth)
            row = (nth, bytes.fromhex(one.id.replace("-", "")), nth, leaf_hash(one.body))
            raw.execute(
                'INSERT INTO entry ("index", id, kind, time_us, tenant, leaf_hash) VALUES (?, ?, 0, ?, 1, ?)', row
            )
            raw.execute("INSERT INTO body VALUES (?, ?)", (nth, one.body))
            raw.execute("INSERT INTO entry_term VALUES (0, 2, ?)", (nth,))
        if keys:
            raw.execute("INSERT INTO idempotency VALUES (x'01', x'02', 'kept', 50)")


def shape(path: Path) -> dict[str, list[str]]:
    """Columns and indexes of every table, whatever words made them."""
    with closing(sqlite3.connect(path)) as raw:
        tables = [name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            table: [str(row[1:]) for row in raw.execute(f'PRAGMA table_info("{table}")')]
            + sorted(str(row[1:]) for row in raw.execute(f'PRAGMA index_list("{table}")'))
            + [str(row[2:]) for row in raw.execute(f'PRAGMA foreign_key_list("{table}")')]
            for table in sorted(tables)
        }


@pytest.fixture(params=[True, False], ids=["keys", "no-keys"])
def old(path: Path, request: pytest.FixtureRequest) -> Path:
    make_first_release(path, keys=request.param)
    return path


def test_a_log_of_the_first_release_is_brought_up_to_date_and_loses_nothing(old: Path) -> None:
    engine = store.open_sqlite(old, "process_safe", origin="another/name")
    with engine.connect() as connection, connection.begin():
        assert store.origin(connection) == "policyd/first"
        page = query.search(connection, {"tenant": "acme", "data_source": "crm-eu"})
        assert [(record.index, record.body) for record in page.items] == [(1, entry(1).body), (0, entry(0).body)]
        assert store.append(connection, [entry(2)])[0].index == 2
        kept = found(connection, b"\x01", 0)
        assert kept is None or (kept.request, kept.decision) == (b"\x02", "kept")
    engine.dispose()
    reader = store.open_sqlite_reader(old)
    with reader.connect() as connection:
        assert len(query.search(connection, {"tenant": "acme"}).items) == 3
    reader.dispose()


def test_the_entries_of_an_older_log_are_indexed(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BITS", 0)
    engine = store.open_sqlite(old, "process_safe", origin="another/name")
    with engine.connect() as connection, connection.begin():
        assert [row.number for row in connection.execute(BLOCK.select())] == [0, 1]
        rows = connection.execute(POSTING.select()).all()
        named = {(blocks.FIELDS[row.field], row.value, row.block) for row in rows}
        assert named >= {(name, value, nth) for name, value in (("tenant", 1), ("data_source", 2)) for nth in (0, 1)}
        assert [found.index for found in query.search(connection, {"data_source": "crm-eu"}).items] == [1, 0]
    engine.dispose()


def test_old_and_new_logs_have_the_same_shape(old: Path, tmp_path: Path) -> None:
    for path in (old, tmp_path / "new"):
        store.open_sqlite(path, "process_safe", origin="policyd/first").dispose()
    assert shape(old) == shape(tmp_path / "new")
    with closing(sqlite3.connect(old)) as raw, closing(sqlite3.connect(tmp_path / "new")) as new:
        for table in ("log", "alembic_version", "meta"):
            rows = [sorted(each.execute(f"SELECT * FROM {table}").fetchall()) for each in (raw, new)]
            assert rows[0] == rows[1]
        assert raw.execute("SELECT * FROM log").fetchall() == [(0, "policyd/first")]


def test_opening_again_changes_nothing(path: Path) -> None:
    store.open_sqlite(path, "process_safe", origin="x").dispose()
    before = path.read_bytes()
    store.open_sqlite(path, "process_safe", origin="x").dispose()
    assert path.read_bytes() == before


def test_a_reader_recognises_and_changes_nothing(old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(SchemaUnknown, match=r"version 1, this program knows \d+; it is brought up to date"):
        store.open_sqlite_reader(old)
    assert old.read_bytes() == before


@pytest.mark.parametrize("statement", [
    "UPDATE meta SET value = '9999' WHERE key = 'schema_version'",
    "UPDATE alembic_version SET version_num = '9999'",
    "UPDATE meta SET value = '9999' WHERE key = 'schema_version'; UPDATE alembic_version SET version_num = '9999'",
    "DELETE FROM alembic_version",
    "DELETE FROM meta WHERE key = 'schema_version'",
])  # fmt: skip
def test_a_newer_log_and_one_of_two_minds_are_left_alone(path: Path, statement: str) -> None:
    store.open_sqlite(path, "process_safe", origin="x").dispose()
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(statement)
    before = path.read_bytes()
    with pytest.raises(SchemaUnknown, match=f"this program knows {int(schema.head())}; use the version"):
        store.open_sqlite(path, "process_safe", origin="x")
    with pytest.raises(SchemaUnknown, match="use the version"):
        store.open_sqlite_reader(path)
    assert path.read_bytes() == before


def test_a_migration_that_fails_leaves_the_log_as_it_was(path: Path) -> None:
    make_first_release(path, keys=True)
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("CREATE TABLE log (mine TEXT)")
    before = shape(path)
    with pytest.raises(Exception, match="log already exists"):
        store.open_sqlite(path, "process_safe", origin="x")
    assert shape(path) == before


def test_the_migrations_make_the_tables_that_the_code_uses(path: Path) -> None:
    engine = store.open_sqlite(path, "process_safe", origin="x")
    declared = MetaData()
    for table in (*TABLES, *BLOCK_TABLES, TREE_NODE, CHECKPOINT, KEYS, *BUDGET_TABLES, *OURS):
        table.to_metadata(declared)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, declared) == []
    engine.dispose()


def test_the_revisions_are_one_chain_named_by_their_files() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())
    assert [script.revision for script in scripts] == [f"{nth:04}" for nth in range(len(scripts), 0, -1)]
    for script in scripts:
        assert re.match(rf"v{script.revision}_[a-z0-9_]+\.py", Path(script.path).name)
    assert scripts[0].revision == schema.head()


def test_a_new_log_is_made_of_what_the_migrations_make(repository: Path, path: Path, tmp_path: Path) -> None:
    script = repository / "scripts" / "schema"
    written = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=60).stdout
    kept = (repository / "audit" / "migrations" / "sqlite.sql").read_text()
    assert kept == written, "run scripts/schema > audit/migrations/sqlite.sql"
    store.open_sqlite(path, "process_safe", origin="x").dispose()
    migrated = create_engine(f"sqlite:///{tmp_path / 'migrated.sqlite'}")
    with migrated.begin() as connection:
        schema.migrate(connection)
    migrated.dispose()
    assert shape(path) == shape(tmp_path / "migrated.sqlite")
