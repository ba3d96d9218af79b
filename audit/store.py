"""Opening a log, checking it, and appending to it.

Rules: ``append`` owns no transaction: the caller begins it, commits it, and after any failure rolls it back and throws
the ``Tail`` away; the index is dense from 0; a batch takes few statements, because each one is a trip between threads
(the sqlite3 module lets go of the interpreter lock around every row that it touches); content addresses are checked
when a blob comes in and when it is read.
It refuses: a log of another schema version, a log with gaps or altered bodies at its end, an entry whose id is recorded
already, an entry that names a sheet which the log does not hold.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar
from urllib.parse import quote
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Engine, Table, bindparam, create_engine, event, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, QueuePool

from audit import schema
from audit.block_store import BlockRows, Sealer, full_blocks
from audit.block_tables import BLOCK, POSTING
from audit.errors import EntriesRefused, LogCorrupt, LogUnavailable
from audit.record import KINDS, REQUEST_ID, SEARCH_FIELDS, TERM_FIELDS, Blob, Entry, is_entry_id, leaf_hash
from audit.statements import run
from audit.tables import BLOB, BODY, ENTRY, ENTRY_TERM, LOG, META, SHEET_TERM, WORD, has_body, index_of, place
from audit.tree_tables import STEP, TREE_NODE

Durability = Literal["power_safe", "process_safe"]
"""``power_safe``: a committed batch survives a power cut. ``process_safe``: it survives the end of the process only."""

SYNCHRONOUS: Final[dict[Durability, str]] = {"power_safe": "FULL", "process_safe": "NORMAL"}
BUSY_TIMEOUT_MS: Final = 5_000
PAGE_BYTES: Final = 16_384  # bodies of 1.2 KB leave a third of a 4 KiB page unused, and 8 % of this one
TAIL_CHECKED_ENTRIES: Final = 1_000
REMEMBERED_WORDS_MAX: Final = 50_000
REMEMBERED_DIGESTS_MAX: Final = 10_000
ROWS_PER_STATEMENT_MAX: Final = 512
READERS_MAX: Final = 4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Position:
    """Where an entry stands in the log."""

    index: int
    leaf_hash: bytes


@dataclass(slots=True)
class Tail:
    """What the one writer remembers of its log, so that a batch need not ask: valid until a rollback."""

    next_index: int
    next_word: int
    words: dict[str, int] = field(default_factory=dict)
    digests: set[str] = field(default_factory=set)
    log: int = 0
    months: set[str] = field(default_factory=set)
    """The months that have a partition, where there are any."""
    sealer: Sealer = field(init=False)

    def __post_init__(self) -> None:
        self.sealer = Sealer(self.log, self.next_index)

    @classmethod
    def read(cls, connection: Connection, log: int = 0) -> Tail:
        """The tail as stored, of the log with this number."""
        last = connection.execute(select(func.max(ENTRY.c.index)).where(*_of_log(log))).scalar()
        last_word = connection.execute(select(func.max(WORD.c.number))).scalar()
        next_index = 0 if last is None else index_of(last) + 1
        return cls(next_index, 1 if last_word is None else last_word + 1, log=log)

    def trim(self) -> None:
        """Keep memory bounded; what is forgotten is read again."""
        if len(self.words) > REMEMBERED_WORDS_MAX:
            self.words.clear()
        if len(self.digests) > REMEMBERED_DIGESTS_MAX:
            self.digests.clear()


def open_sqlite(path: Path, durability: Durability, *, origin: str | None) -> Engine:
    """The engine of the one writer: the log is checked, or created under the name ``origin`` when there is none.

    Without an ``origin`` nothing is created, and a missing log is ``LogUnavailable``.

    What the write-ahead log holds is moved into the database first: after a failed fsync the kernel may show pages that
    never reached the disk, and whatever is committed behind such a page would be lost with it in a power cut.
    Raises ``LogUnavailable``, ``SchemaUnknown`` or ``LogCorrupt``. The caller disposes of the engine.
    """

    def connect() -> sqlite3.Connection:
        mode = "rw" if origin is None else "rwc"
        return _connect(
            f"file:{quote(str(path.absolute()))}?mode={mode}",
            f"PRAGMA page_size={PAGE_BYTES}",
            "PRAGMA journal_mode=WAL",
            f"PRAGMA synchronous={SYNCHRONOUS[durability]}",
            "PRAGMA foreign_keys=ON",
        )

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        with engine.connect() as connection:
            busy = connection.connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if busy:
                raise LogUnavailable("a reader holds an old state of the log; it must end before writing can start")
            if schema.create_or_upgrade(connection, create=origin is not None):
                connection.execute(META.insert(), {"key": "origin", "value": origin})
                connection.execute(LOG.insert(), {"number": 0, "origin": origin})
            verify_tail(connection)
            seal_full_blocks(connection)
            connection.commit()
    except (DBAPIError, sqlite3.Error) as error:
        raise _unavailable(path, error) from error
    return engine


def open_sqlite_reader(path: Path) -> Engine:
    """An engine that can only read, beside a writer or without one; a small pool, usable from several threads.

    Raises ``LogUnavailable`` when there is no log, ``SchemaUnknown`` when it is not one of ours.
    """

    def connect() -> sqlite3.Connection:
        return _connect(f"file:{quote(str(path.absolute()))}?mode=ro", "PRAGMA query_only=ON")

    if not path.exists():
        raise LogUnavailable(f"there is no log at {path}")
    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=READERS_MAX, max_overflow=0)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    try:
        with engine.connect() as connection:
            schema.recognise(connection)
    except (DBAPIError, sqlite3.Error) as error:
        raise _unavailable(path, error) from error
    return engine


def origin(connection: Connection, log: int = 0) -> str:
    """The name that the log was created under; decisions carry it as ``audit.log``."""
    found = connection.execute(select(LOG.c.origin).where(LOG.c.number == log)).scalar()
    if found is None:
        raise LogCorrupt("the log has lost its name")
    return str(found)


def origins(connection: Connection) -> tuple[str, ...]:
    """The names of all logs in the database, in the order of their making."""
    return tuple(connection.execute(select(LOG.c.origin).order_by(LOG.c.number)).scalars())


def verify_tail(connection: Connection, depth: int = TAIL_CHECKED_ENTRIES, *, log: int = 0) -> None:
    """Check that no index of a log is missing, and the ids and bodies of its last ``depth`` entries.

    A server would read every row to count them: there, what the tree is over counts as there, until it is verified.
    Raises ``LogCorrupt`` naming the first bad index.
    """
    query = select(func.min(ENTRY.c.index), func.max(ENTRY.c.index)).where(*_of_log(log))
    first, last = connection.execute(query).one()
    if last is None:
        return
    start = _in_tree(connection, log) if connection.dialect.name == "postgresql" else 0
    start = start if start <= index_of(last) else 0
    since = (ENTRY.c.index >= place(log, start),) if start else ()
    counted = select(func.count()).select_from(ENTRY).where(*_of_log(log), *since)
    count = start + connection.execute(counted).scalar_one()
    if first != place(log, 0) or last != place(log, count - 1):
        raise LogCorrupt("missing; the log has a gap", index=_first_gap(connection, log))
    rows = connection.execute(
        select(ENTRY.c.index, ENTRY.c.id, ENTRY.c.kind, ENTRY.c.leaf_hash, BODY.c.body)
        .join_from(ENTRY, BODY, has_body(connection), isouter=True)
        .where(*_of_log(log), ENTRY.c.index >= place(log, max(0, count - depth)))
        .order_by(ENTRY.c.index)
    )
    for stored, entry_id, kind, leaf, body in rows:
        index = index_of(stored)
        if not isinstance(entry_id, bytes) or len(entry_id) != 16 or not is_entry_id(str(UUID(bytes=entry_id))):
            raise LogCorrupt("the id is not a UUIDv7", index=index)
        if kind not in range(-len(KINDS), len(KINDS)):
            raise LogCorrupt("of unknown kind", index=index)
        if body is None and kind < 0:
            continue  # removed by retention; whether under a warrant is said by a verification
        if not isinstance(body, bytes):
            raise LogCorrupt("the body is missing", index=index)
        if leaf_hash(body) != leaf:
            raise LogCorrupt("the body is not what was recorded", index=index)


def _in_tree(connection: Connection, log: int) -> int:
    """How many entries the stored nodes of the tree are over."""
    query = select(func.max(TREE_NODE.c.index)).where(TREE_NODE.c.log == log, TREE_NODE.c.level == STEP)
    last = connection.execute(query).scalar()
    return 0 if last is None else (int(last) + 1) << STEP


def _of_log(log: int) -> tuple[ColumnElement[bool], ...]:
    """The entries of one log. A file has one only, and a place below it is damage that must be seen."""
    return (
        (ENTRY.c.index < place(1, 0),)
        if log == 0
        else (ENTRY.c.index >= place(log, 0), ENTRY.c.index < place(log + 1, 0))
    )


def recorded(connection: Connection, entry_ids: Iterable[str]) -> set[str]:
    """Which of these ids the log holds."""
    known = {UUID(text).bytes: text for text in entry_ids}
    return {known[found] for found in _existing(connection, ENTRY, "id", list(known))}


def append(
    connection: Connection, entries: Sequence[Entry], blobs: Iterable[Blob] = (), *, tail: Tail | None = None
) -> list[Position]:
    """Add blobs that are not stored yet, then entries in order; does not commit.

    ``tail`` is what the caller remembered since it opened the log. Raises ``EntriesRefused`` for recorded ids and
    missing sheets: the caller rolls back and may append the others with a new tail. Database errors pass through.
    """
    tail = tail or Tail.read(connection)
    tail.trim()
    new_blobs = _unstored(connection, tail, blobs)
    _refuse_missing_sheets(connection, tail, entries, {blob.digest for blob in new_blobs})
    found_by = [searched(entry) for entry in entries]
    words = _words_of(found_by, entries, new_blobs)
    numbers = _numbers(connection, tail, words)
    if new_blobs:
        _append_blobs(connection, new_blobs, numbers)
        tail.digests.update(blob.digest for blob in new_blobs)
    positions = [Position(tail.next_index + nth, leaf_hash(entry.body)) for nth, entry in enumerate(entries)]
    places = [place(tail.log, position.index) for position in positions]
    terms = [
        (TERM_FIELDS.index(name), numbers[value], stored)
        for entry, stored in zip(entries, places, strict=True)
        for name, value in dict.fromkeys(entry.terms)
    ]
    # With the number of no word, and no other: a word that was not numbered is a fault and no null.
    numbered: dict[str | None, int | None] = {None: None, **{word: numbers[word] for word in words}}
    rows = [
        _entry_row(entry, position, stored, map(numbered.__getitem__, names))
        for entry, position, stored, names in zip(entries, positions, places, found_by, strict=True)
    ]
    duplicates = _rows(connection).add_entries(connection, tail, rows, [entry.body for entry in entries], terms)
    if duplicates:
        reason = "this id is recorded already"
        raise EntriesRefused({str(UUID(bytes=found)): reason for found in duplicates})
    tail.next_index += len(entries)
    for sealed in tail.sealer.sealed(connection, rows, terms):
        _rows(connection).add_block(connection, sealed)
    return positions


def seal_full_blocks(connection: Connection) -> None:
    """Index what is full and not indexed yet, of every log: the entries of a release before the index."""
    for sealed in full_blocks(connection):
        _rows(connection).add_block(connection, sealed)


def unpack(encoding: str, content: bytes, expected_digest: str) -> bytes:
    """The content of a stored blob, its address checked. Raises ``LogCorrupt``."""
    try:
        plain = zlib.decompress(content) if encoding == "zlib" else content
    except zlib.error as error:
        raise LogCorrupt(f"blob {expected_digest} cannot be unpacked") from error
    if "sha256:" + sha256(plain).hexdigest() != expected_digest:
        raise LogCorrupt(f"blob {expected_digest} is not what was recorded")
    return plain


def _connect(uri: str, *pragmas: str) -> sqlite3.Connection:
    # One thread at a time uses a connection (the writer's own, or one lent by the pool), not always the same one.
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    try:
        for pragma in (f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}", "PRAGMA trusted_schema=OFF", *pragmas):
            connection.execute(pragma).fetchall()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _unavailable(path: Path, error: Exception) -> Exception:
    cause = error.orig if isinstance(error, DBAPIError) else error
    if type(cause) is sqlite3.DatabaseError:
        return LogCorrupt(f"{path} is damaged, or no log at all: {cause}")
    return LogUnavailable(f"{path} cannot be opened: {cause}")


def _first_gap(connection: Connection, log: int) -> int:
    previous = ENTRY.alias()
    follows = select(previous.c.index).where(previous.c.index == ENTRY.c.index - 1).exists()
    first = place(log, 0)
    after = connection.execute(
        select(func.min(ENTRY.c.index)).where(*_of_log(log), ENTRY.c.index != first, ~follows)
    ).scalar()
    starts = connection.execute(select(func.min(ENTRY.c.index)).where(*_of_log(log))).scalar()
    if starts != first:
        return 0
    last_good = connection.execute(select(func.max(ENTRY.c.index)).where(*_of_log(log), ENTRY.c.index < after)).scalar()
    return index_of(last_good or first) + 1


def _unstored(connection: Connection, tail: Tail, blobs: Iterable[Blob]) -> list[Blob]:
    unseen = {blob.digest: blob for blob in blobs if blob.digest not in tail.digests}
    if not unseen:
        return []
    stored = _existing(connection, BLOB, "digest", list(unseen))
    tail.digests.update(stored)
    return [blob for name, blob in unseen.items() if name not in stored]


def _refuse_missing_sheets(connection: Connection, tail: Tail, entries: Sequence[Entry], arriving: set[str]) -> None:
    """An entry whose sheet is not kept could never be explained or replayed."""
    named = {entry.search.sheet for entry in entries if entry.search.sheet is not None}
    unseen = named - tail.digests - arriving
    if not unseen:
        return
    stored = _existing(connection, BLOB, "digest", list(unseen))
    tail.digests.update(stored)
    missing = unseen - stored
    if missing:
        reason = "the log does not hold the sheet that it names"
        raise EntriesRefused({entry.id: reason for entry in entries if entry.search.sheet in missing})


_PRINCIPAL: Final = SEARCH_FIELDS.index("principal")


def searched(entry: Entry) -> tuple[str | None, ...]:
    """The words that an entry is found by, in the order of the columns."""
    search = entry.search
    found = search.principal if entry.token is None else entry.token
    return (*search[:_PRINCIPAL], found, *search[_PRINCIPAL + 1 : REQUEST_ID], *search[REQUEST_ID + 1 :])


def _words_of(found_by: Iterable[Iterable[str | None]], entries: Sequence[Entry], blobs: Sequence[Blob]) -> set[str]:
    words: set[str | None] = set()
    words.update(*found_by)
    words.update(value for entry in entries for _, value in entry.terms)
    for blob in blobs:
        if blob.terms:
            words.add(blob.digest)
            words.update(value for _, value in blob.terms)
    return {word for word in words if word is not None}


def _numbers(connection: Connection, tail: Tail, words: set[str]) -> dict[str, int]:
    """The numbers of these words; new ones are added, in the order of the alphabet."""
    unseen = sorted(words - tail.words.keys())
    if unseen:
        tail.words.update(numbers_of(connection, unseen))
        new = [word for word in unseen if word not in tail.words]
        if new:
            tail.words.update(_rows(connection).add_words(connection, tail, new))
    return tail.words


def numbers_of(connection: Connection, words: Sequence[str]) -> dict[str, int]:
    """The numbers of those words that the log has ever seen."""
    query = select(WORD.c.text, WORD.c.number).where(WORD.c.text.in_(bindparam("words", expanding=True)))
    found: dict[str, int] = {}
    for part in _parts(words):
        found.update((text, number) for text, number in connection.execute(query, {"words": part}))
    return found


def _existing(connection: Connection, table: Table, column: str, values: Sequence[Any]) -> set[Any]:
    query = select(table.c[column]).where(table.c[column].in_(bindparam("values", expanding=True)))
    return {found for part in _parts(values) for (found,) in connection.execute(query, {"values": part})}


def _append_blobs(connection: Connection, blobs: Sequence[Blob], numbers: dict[str, int]) -> None:
    contents = []
    for blob in blobs:
        packed = zlib.compress(blob.content)
        smaller = len(packed) < len(blob.content)
        encoding, content = ("zlib", packed) if smaller else ("plain", blob.content)
        contents.append((blob.digest, blob.kind, encoding, content))
    terms = [
        (TERM_FIELDS.index(name), numbers[value], numbers[blob.digest])
        for blob in blobs
        for name, value in dict.fromkeys(blob.terms)
    ]
    _rows(connection).add_blobs(connection, contents, terms)


def _entry_row(entry: Entry, position: Position, stored: int, words: Iterable[int | None]) -> tuple[Any, ...]:
    moment = (stored, bytes.fromhex(entry.id.replace("-", "")), KINDS.index(entry.kind), entry.time_us)
    return (*moment, *words, entry.search.request_id, position.leaf_hash)


class Rows(Protocol):
    """How rows go in. One for each kind of database; values stand in the order of the table's columns."""

    def add_words(self, connection: Connection, tail: Tail, words: Sequence[str]) -> dict[str, int]:
        """Give each of these a number, or find the one that another writer gave it just now."""

    def add_blobs(
        self, connection: Connection, blobs: Sequence[tuple[Any, ...]], sheet_terms: Sequence[tuple[int, int, int]]
    ) -> None:
        """Add these; what another writer has added just now stays as it is."""

    def add_entries(
        self,
        connection: Connection,
        tail: Tail,
        entries: Sequence[tuple[Any, ...]],
        bodies: Sequence[bytes],
        terms: Sequence[tuple[int, int, int]],
    ) -> Collection[bytes]:
        """Add all of them, or tell the ids that are recorded already: the caller rolls back."""

    def add_block(self, connection: Connection, rows: BlockRows) -> None:
        """Add a block and its postings; what another writer has sealed just now stays as it is."""


def _rows(connection: Connection) -> Rows:
    if connection.dialect.name == "postgresql":
        # Imported here because its driver is an extra, which a log in a file does without.
        from audit.postgresql import ROWS

        return ROWS
    return _SQLITE_ROWS


class _SqliteRows:
    def add_words(self, connection: Connection, tail: Tail, words: Sequence[str]) -> dict[str, int]:
        rows = [(tail.next_word + nth, word) for nth, word in enumerate(words)]
        _insert(connection, WORD, rows)
        tail.next_word += len(rows)
        return {word: number for number, word in rows}

    def add_blobs(
        self, connection: Connection, blobs: Sequence[tuple[Any, ...]], sheet_terms: Sequence[tuple[int, int, int]]
    ) -> None:
        _insert(connection, BLOB, blobs)
        _insert(connection, SHEET_TERM, sheet_terms)

    def add_entries(
        self,
        connection: Connection,
        tail: Tail,
        entries: Sequence[tuple[Any, ...]],
        bodies: Sequence[bytes],
        terms: Sequence[tuple[int, int, int]],
    ) -> Collection[bytes]:
        try:
            _insert(connection, ENTRY, entries)
        except sqlite3.IntegrityError:
            ids = [row[1] for row in entries]
            return _existing(connection, ENTRY, "id", ids) or ids
        _insert(connection, BODY, [(row[0], body) for row, body in zip(entries, bodies, strict=True)])
        _insert(connection, ENTRY_TERM, terms)
        return ()

    def add_block(self, connection: Connection, rows: BlockRows) -> None:
        _insert(connection, BLOCK, [rows[0]])
        # Of a block that lost its own row the others may be there still.
        _insert(connection, POSTING, rows[1], verb="INSERT OR IGNORE")


_SQLITE_ROWS: Final = _SqliteRows()


def _insert(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]], verb: str = "INSERT") -> None:
    """Add rows whose values stand in the order of the table's columns, in as few statements as can be."""
    for part in _parts(rows):
        padded = 1 << (len(part) - 1).bit_length()
        values = [value for row in part for value in row]
        values.extend([None] * (len(table.c) * (padded - len(part))))
        run(connection, _insert_sql(table, padded, verb), values)


@lru_cache(maxsize=128)
def _insert_sql(table: Table, rows: int, verb: str) -> str:
    """One statement for up to ``rows`` rows; unused ones are null, so that few statements exist and stay prepared."""
    columns = ", ".join(f'"{column.name}"' for column in table.c)
    row = "(" + ", ".join("?" * len(table.c)) + ")"
    return (
        f'{verb} INTO "{table.name}" ({columns}) '
        f"SELECT * FROM (VALUES {', '.join([row] * rows)}) WHERE column1 IS NOT NULL"
    )


def _parts(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), ROWS_PER_STATEMENT_MAX):
        yield values[start : start + ROWS_PER_STATEMENT_MAX]
