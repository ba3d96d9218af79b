"""The tables of a log.

``word`` gives every searchable text a small number once, so that a decision's columns and index rows cost a few bytes
each; ``body`` is apart from ``entry``, so that whoever reads columns only reads 150 bytes a decision and not 1,500.

    meta        schema version, and the name that the log was made under
    entry       one row an entry: place in its log, id, kind, time, word numbers, leaf hash
    body        the exact bytes of an entry
    word        text ↔ number, for everything that is searched
    entry_term  what an entry has several of (data sources, waivers, …)
    sheet_term  rejected pools and rules of a sheet, for every decision that names it
    blob        sheets, revisions and facts by content address
    log         number ↔ name of each log in the database

A database may hold the logs of several writers, which share words and blobs. The column ``index`` then tells the log
too: it is ``place(log, index)``, which for number 0, the only log of a file, is the index itself. On PostgreSQL
``entry`` and ``body`` are cut into months by the time in the id, so that an id is unique over all of them.

The files of ``audit/migrations`` make them; ``tests/integration/test_schema.py`` holds both to each other.

Rules: rows are only ever added, but for what ``audit.removal`` takes away, which marks the entry with ``~kind``, a
number below zero, so that no search for a kind finds it; numbers of kinds and term fields are positions in
``audit.record``; indexes are few, because each costs every decision: time, tenant with time, id, request id. What else
is searched for is found by the blocks of ``audit.block_tables``.
"""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    TypeDecorator,
    and_,
    literal_column,
    text,
)
from sqlmodel import Field, SQLModel

# SQLite keys a table by its row number only when the type is exactly INTEGER; other databases need 64 bits named.
_NUMBER = BigInteger().with_variant(Integer, "sqlite")


INDEX_BITS: Final = 40
"""Entries of a log are fewer than a million million; 2^23 logs fit above them."""


def place(log: int, index: int) -> int:
    """What the column ``index`` holds for the entry with this index in the log with this number."""
    return (log << INDEX_BITS) + index


def index_of(place: int) -> int:
    """The index in its log."""
    return place & ((1 << INDEX_BITS) - 1)


_HAS_REQUEST: Final = "request_id IS NOT NULL"


class AnyText(TypeDecorator[str]):
    """Text with any character: PostgreSQL takes no NUL, so that is written as a backslash and a zero there."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """On its way in."""
        return without_nul(value) if value is not None and dialect.name == "postgresql" else value

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """On its way out."""
        if value is None or "\\" not in value or dialect.name != "postgresql":
            return value
        return re.sub(r"\\(.)", lambda found: "\0" if found[1] == "0" else "\\", value)


def without_nul(text: str) -> str:
    """Another text for each text, without the character 0."""
    if "\0" in text or "\\" in text:
        return text.replace("\\", "\\\\").replace("\0", "\\0")
    return text


class MetaRow(SQLModel, table=True):
    """One fact about the log itself."""

    __tablename__ = "meta"

    key: str = Field(primary_key=True)
    value: str


class WordRow(SQLModel, table=True):
    """One searchable text and its number."""

    __tablename__ = "word"

    number: int = Field(sa_type=_NUMBER, primary_key=True)
    text: str = Field(sa_type=AnyText, unique=True)


class EntryRow(SQLModel, table=True):
    """One entry. The columns that are numbers of words have the names of ``audit.record.Search``."""

    __tablename__ = "entry"
    __table_args__ = (
        Index("entry_by_time", "time_us"),
        Index("entry_by_tenant", "tenant", "time_us"),
        Index("entry_by_request", "request_id", sqlite_where=text(_HAS_REQUEST), postgresql_where=text(_HAS_REQUEST)),
    )

    index: int = Field(sa_type=_NUMBER, primary_key=True)
    id: bytes = Field(sa_type=LargeBinary, unique=True)
    kind: int
    time_us: int = Field(sa_type=_NUMBER)
    tenant: int | None
    project: int | None
    environment: int | None
    principal: int | None
    outcome: int | None
    denied_by: int | None
    pool: int | None
    provider: int | None
    country: int | None
    model: int | None
    model_version: int | None
    classification: int | None
    sla_class: int | None
    mode: int | None
    policy_commit: int | None
    fleet_commit: int | None
    sheet: int | None
    request_id: str | None = Field(sa_type=AnyText)
    leaf_hash: bytes = Field(sa_type=LargeBinary)


class BodyRow(SQLModel, table=True):
    """The exact bytes of an entry."""

    __tablename__ = "body"

    index: int = Field(sa_column=Column("index", _NUMBER, ForeignKey("entry.index"), primary_key=True))
    body: bytes = Field(sa_type=LargeBinary)


class EntryTermRow(SQLModel, table=True):
    """One value of a field that an entry has several of."""

    __tablename__ = "entry_term"
    __table_args__ = {"sqlite_with_rowid": False}

    field: int = Field(primary_key=True)
    value: int = Field(primary_key=True)
    index: int = Field(sa_column=Column("index", _NUMBER, ForeignKey("entry.index"), primary_key=True))


class SheetTermRow(SQLModel, table=True):
    """One rejected pool or rule of a sheet; ``sheet`` is the word number of its digest."""

    __tablename__ = "sheet_term"
    __table_args__ = (Index("sheet_term_by_sheet", "sheet"), {"sqlite_with_rowid": False})

    field: int = Field(primary_key=True)
    value: int = Field(primary_key=True)
    sheet: int = Field(primary_key=True)


class BlobRow(SQLModel, table=True):
    """Shared content; ``encoding`` is ``plain`` or ``zlib``."""

    __tablename__ = "blob"

    digest: str = Field(primary_key=True)
    kind: str
    encoding: str
    content: bytes = Field(sa_type=LargeBinary)


class LogRow(SQLModel, table=True):
    """One log and its name, as decisions carry it."""

    __tablename__ = "log"

    number: int = Field(sa_column=Column("number", Integer, primary_key=True, autoincrement=False))
    origin: str = Field(sa_type=Text, unique=True)


def _table(row: type[SQLModel]) -> Table:
    found: Any = row.__dict__["__table__"]
    assert isinstance(found, Table)
    return found


META: Final = _table(MetaRow)
WORD: Final = _table(WordRow)
ENTRY: Final = _table(EntryRow)
BODY: Final = _table(BodyRow)
ENTRY_TERM: Final = _table(EntryTermRow)
SHEET_TERM: Final = _table(SheetTermRow)
BLOB: Final = _table(BlobRow)
LOG: Final = _table(LogRow)
TABLES: Final = (META, WORD, ENTRY, BODY, ENTRY_TERM, SHEET_TERM, BLOB, LOG)


def has_body(connection: Connection) -> ColumnElement[bool]:
    """The condition that joins ``BODY`` to ``ENTRY``; the id in it names the month, so that only that is looked at."""
    same = BODY.c.index == ENTRY.c.index
    # Only PostgreSQL's table has the column: a file would pay 17 bytes an entry for it.
    return and_(same, literal_column("body.id") == ENTRY.c.id) if connection.dialect.name == "postgresql" else same
