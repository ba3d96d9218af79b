"""Where the keys of personal fields are: a place of their own beside the log, so that they can be destroyed.

    key_meta       the version of these tables, what tells one wrapping key from another, and how many keys are gone
    personal_key   number of the key, tenant, keyed hash of the person's name, the key wrapped

Rules: a key is durable before an entry that needs it; whoever destroys one leaves nothing of the row (a file zeroes
what it deletes and keeps no write-ahead log); the wrapping key is never here.
It refuses: tables of another version.
"""

from __future__ import annotations

import hmac
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    LargeBinary,
    MetaData,
    Row,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    delete,
    event,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import NullPool, QueuePool

from audit.errors import LogUnavailable

SCHEMA: Final = "policyd_keys"
"""Of the tables in PostgreSQL, so that a dump of the log can do without them."""
VERSION: Final = "1"
BUSY_TIMEOUT_MS: Final = 5_000
READERS_MAX: Final = 4
ROWS_PER_STATEMENT_MAX: Final = 500

_METADATA: Final = MetaData()
META: Final = Table(
    "key_meta",
    _METADATA,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
KEYS: Final = Table(
    "personal_key",
    _METADATA,
    Column("id", LargeBinary, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("person", LargeBinary, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    UniqueConstraint("tenant", "person", name="personal_key_person"),
)


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """One key: ``person`` is the keyed hash of whose it is."""

    id: bytes
    tenant: str
    person: bytes
    wrapped: bytes


Person = tuple[str, bytes]
"""Tenant, and keyed hash of the name."""


def open_keys_sqlite(path: Path, *, write: bool) -> Engine:
    """The engine of the keys in a file. Raises ``LogUnavailable`` when it cannot be opened."""

    def connect() -> sqlite3.Connection:
        mode = "rwc" if write else "ro"
        connection = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
        )
        writing = ("PRAGMA journal_mode=TRUNCATE", "PRAGMA synchronous=FULL", "PRAGMA secure_delete=ON")
        try:
            for pragma in (f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}", "PRAGMA trusted_schema=OFF"):
                connection.execute(pragma).fetchall()
            for pragma in writing if write else ():
                connection.execute(pragma).fetchall()
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    shape: dict[str, Any] = {"poolclass": NullPool}
    if write:
        path.touch(mode=0o600)
    else:
        shape = {"poolclass": QueuePool, "pool_size": READERS_MAX, "max_overflow": 0}
    engine = create_engine("sqlite://", creator=connect, **shape)
    begin = "BEGIN IMMEDIATE" if write else "BEGIN"
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def prepare(connection: Connection) -> str | None:
    """Make the tables when there are none, and tell which wrapping key they know, if any. Does not commit."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock(hashtext('{SCHEMA}'))")
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    _METADATA.create_all(connection)
    known = {row.key: row.value for row in connection.execute(select(META.c.key, META.c.value))}
    if not known:
        return None
    if known.get("version") != VERSION:
        raise LogUnavailable(f"the keys of personal fields are of version {known.get('version')}, and not {VERSION}")
    return str(known.get("check"))


def belong(connection: Connection, check: str) -> None:
    """The keys will be wrapped with the key that ``check`` tells from others. Does not commit."""
    rows = {"version": VERSION, "check": check, "destroyed": "0"}
    connection.execute(META.insert(), [{"key": key, "value": value} for key, value in rows.items()])


def keys_of(connection: Connection, people: Sequence[Person]) -> dict[Person, WrappedKey]:
    """The keys of these people, as far as there are any."""
    found: dict[Person, WrappedKey] = {}
    for start in range(0, len(people), ROWS_PER_STATEMENT_MAX):
        part = people[start : start + ROWS_PER_STATEMENT_MAX]
        rows = connection.execute(select(KEYS).where(tuple_(KEYS.c.tenant, KEYS.c.person).in_(part)))
        found.update(((row.tenant, row.person), _key(row)) for row in rows)
    return found


def keys_everywhere(connection: Connection, person: bytes) -> list[WrappedKey]:
    """The keys of one person in every tenant."""
    return [_key(row) for row in connection.execute(select(KEYS).where(KEYS.c.person == person))]


def keys_by_id(connection: Connection, ids: Iterable[bytes]) -> dict[bytes, WrappedKey]:
    """The keys with these numbers, as far as they are still there."""
    wanted = sorted(set(ids))
    found: dict[bytes, WrappedKey] = {}
    for start in range(0, len(wanted), ROWS_PER_STATEMENT_MAX):
        part = wanted[start : start + ROWS_PER_STATEMENT_MAX]
        found.update((row.id, _key(row)) for row in connection.execute(select(KEYS).where(KEYS.c.id.in_(part))))
    return found


def add_keys(connection: Connection, keys: Sequence[WrappedKey]) -> dict[Person, WrappedKey]:
    """Add these, or take those that another writer has added for the same people just now. Does not commit."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    for start in range(0, len(keys), ROWS_PER_STATEMENT_MAX // 4):
        part = sorted(keys[start : start + ROWS_PER_STATEMENT_MAX // 4], key=lambda key: (key.tenant, key.person))
        rows = [{"id": key.id, "tenant": key.tenant, "person": key.person, "wrapped": key.wrapped} for key in part]
        connection.execute(insert(KEYS).values(rows).on_conflict_do_nothing())
    return keys_of(connection, [(key.tenant, key.person) for key in keys])


def destroy(connection: Connection, ids: Sequence[bytes]) -> None:
    """Take keys away for good; does not commit. They may be gone already."""
    gone = 0
    for start in range(0, len(ids), ROWS_PER_STATEMENT_MAX):
        gone += connection.execute(
            delete(KEYS).where(KEYS.c.id.in_(ids[start : start + ROWS_PER_STATEMENT_MAX]))
        ).rowcount
    if not gone:
        return
    counted = int(connection.execute(select(META.c.value).where(META.c.key == "destroyed")).scalar_one()) + gone
    connection.execute(update(META).where(META.c.key == "destroyed").values(value=str(counted)))


def destroyed_total(connection: Connection) -> str:
    """How many keys were destroyed: whoever remembers keys forgets them when it is another number than before."""
    return str(connection.execute(select(META.c.value).where(META.c.key == "destroyed")).scalar_one())


def fingerprint(wrapping_key: bytes) -> str:
    """What tells one wrapping key from another, and nothing about it."""
    return hmac.new(wrapping_key, b"policyd personal fields: check", sha256).hexdigest()


def _key(row: Row[Any] | Mapping[str, Any]) -> WrappedKey:
    values: Any = row
    return WrappedKey(bytes(values.id), values.tenant, bytes(values.person), bytes(values.wrapped))
