"""Rows into PostgreSQL: whole batches as arrays, words and blobs shared with other writers, months as partitions.

    entries, bodies, terms   one statement for the three, so one round trip a batch
    words, blobs             what another writer has just added is taken as it is; both in a fixed order, so that two
                             writers wait for each other and never in a circle
    months                   made ahead by the writer, and whenever an entry brings an id of another month

Rules: an id is unique over all months, because the month is part of the id; attaching a month stops neither readers
nor writers; arrays are in the binary form of PostgreSQL, packed here, since the driver takes four times as long.
It refuses: an id whose time no calendar has.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format
from sqlalchemy import Connection

from audit.block_store import BlockRows
from audit.errors import EntriesRefused
from audit.store import Tail, numbers_of
from audit.tables import ENTRY, without_nul

LOCKS: Final = 0x706F6C69
"""The first number of our advisory locks; the second is that of a log, or one of those below none."""
MONTHS_LOCK: Final = -1
MONTHS_AHEAD: Final = 2
_LAST_YEAR: Final = 9998

_INT4: Final = 23
_INT8: Final = 20
_BYTEA: Final = 17
_TEXT: Final = 25
_SHAPES: Final = {_INT4: "ii", _INT8: "iq"}
_SIZES: Final = {_INT4: 4, _INT8: 8}
_NONE: Final = (-1).to_bytes(4, "big", signed=True)


class _Packed(bytes):
    """An array in the binary form of PostgreSQL, and the type of it."""

    __slots__ = ()
    oid = 0


class _Int4s(_Packed):
    oid = 1007


class _Int8s(_Packed):
    oid = 1016


class _Byteas(_Packed):
    oid = 1001


class _Texts(_Packed):
    oid = 1009


def _dumper(of: type[_Packed]) -> type[Dumper]:
    class PackedDumper(Dumper):
        format = Format.BINARY
        oid = of.oid

        def dump(self, obj: _Packed) -> Buffer | None:
            return obj

    return PackedDumper


def learn(connection: psycopg.Connection[Any]) -> None:
    """Teach a connection to send packed arrays."""
    for kind in (_Int4s, _Int8s, _Byteas, _Texts):
        connection.adapters.register_dumper(kind, _dumper(kind))


def _head(length: int, element: int, *, nulls: bool = False) -> bytes:
    return struct.pack(">iiIii", 1, int(nulls), element, length, 1)


def _numbers(element: int, values: Sequence[int]) -> bytes:
    spaced = [_SIZES[element]] * (2 * len(values))
    spaced[1::2] = values
    return _head(len(values), element) + struct.pack(">" + _SHAPES[element] * len(values), *spaced)


def _strings(element: int, values: Iterable[bytes | None], length: int) -> bytes:
    parts = [_head(length, element, nulls=True)]
    for value in values:
        parts += (_NONE,) if value is None else (len(value).to_bytes(4, "big"), value)
    return b"".join(parts)


def _int4s(values: Sequence[int]) -> _Int4s:
    return _Int4s(_numbers(_INT4, values))


def _int8s(values: Sequence[int]) -> _Int8s:
    return _Int8s(_numbers(_INT8, values))


def _byteas(values: Sequence[bytes]) -> _Byteas:
    return _Byteas(_strings(_BYTEA, values, len(values)))


def _texts(values: Sequence[str | None]) -> _Texts:
    encoded = (None if value is None else without_nul(value).encode() for value in values)
    return _Texts(_strings(_TEXT, encoded, len(values)))


_COLUMNS: Final = tuple(column.name for column in ENTRY.c)
_WORD_COLUMNS: Final = _COLUMNS[_COLUMNS.index("time_us") + 1 : _COLUMNS.index("request_id")]
_ARRAYS: Final = {"index": "int8", "id": "bytea", "time_us": "int8", "request_id": "text", "leaf_hash": "bytea"}
# No word has the number 0, so it stands for none: an array without nulls is packed in one call.
_VALUES: Final = ", ".join(f'NULLIF("{name}", 0)' if name in _WORD_COLUMNS else f'"{name}"' for name in _COLUMNS)
_INSERT: Final = f"""
    WITH taken AS (
        INSERT INTO entry ({", ".join(f'"{name}"' for name in _COLUMNS)})
        SELECT {_VALUES} FROM unnest({", ".join(f"%s::{_ARRAYS.get(name, 'int4')}[]" for name in _COLUMNS)})
            AS sent ({", ".join(f'"{name}"' for name in _COLUMNS)})
        ON CONFLICT (id) DO NOTHING RETURNING 1
    ), bodies AS (
        INSERT INTO body ("index", id, body) SELECT * FROM unnest(%s::int8[], %s::bytea[], %s::bytea[])
    ), terms AS (
        INSERT INTO entry_term (field, value, "index") SELECT * FROM unnest(%s::int4[], %s::int4[], %s::int8[])
    )
    SELECT count(*) FROM taken
"""
_RECORDED: Final = 'SELECT id FROM entry WHERE id = ANY(%s) AND NOT ("index" = ANY(%s))'


class PostgresqlRows:
    """How rows go into PostgreSQL; see ``audit.store.Rows``."""

    def add_words(self, connection: Connection, tail: Tail, words: Sequence[str]) -> dict[str, int]:
        """The numbers come from the database; a word that another writer brought first has that one's number."""
        _run(
            connection, "INSERT INTO word (text) SELECT unnest(%s::text[]) ON CONFLICT (text) DO NOTHING", _texts(words)
        )
        return numbers_of(connection, words)

    def add_blobs(
        self, connection: Connection, blobs: Sequence[tuple[Any, ...]], sheet_terms: Sequence[tuple[int, int, int]]
    ) -> None:
        """In the order of their digests."""
        digests, kinds, encodings, contents = zip(*sorted(blobs), strict=True)
        _run(
            connection,
            "INSERT INTO blob (digest, kind, encoding, content) "
            "SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::bytea[]) ON CONFLICT (digest) DO NOTHING",
            *(_texts(digests), _texts(kinds), _texts(encodings), _byteas(contents)),
        )
        if sheet_terms:
            _run(
                connection,
                "INSERT INTO sheet_term (field, value, sheet) "
                "SELECT * FROM unnest(%s::int4[], %s::int4[], %s::int4[]) ON CONFLICT DO NOTHING",
                *map(_int4s, zip(*sorted(sheet_terms), strict=True)),
            )

    def add_entries(
        self,
        connection: Connection,
        tail: Tail,
        entries: Sequence[tuple[Any, ...]],
        bodies: Sequence[bytes],
        terms: Sequence[tuple[int, int, int]],
    ) -> Collection[bytes]:
        """One statement. A recorded id of another writer's log counts too."""
        if not entries:
            return ()
        columns = dict(zip(_COLUMNS, zip(*entries, strict=True), strict=True))
        places, ids = _int8s(columns["index"]), _byteas(columns["id"])
        _make_months(connection, tail, columns["id"])
        packed = {
            "index": places,
            "id": ids,
            "kind": _int4s(columns["kind"]),
            "time_us": _int8s(columns["time_us"]),
            "request_id": _texts(columns["request_id"]),
            "leaf_hash": _byteas(columns["leaf_hash"]),
            **{name: _int4s([number or 0 for number in columns[name]]) for name in _WORD_COLUMNS},
        }
        fields, values, term_places = zip(*terms, strict=True) if terms else ((), (), ())
        more = (places, ids, _byteas(bodies), _int4s(fields), _int4s(values), _int8s(term_places))
        [(taken,)] = _run(connection, _INSERT, *(packed[name] for name in _COLUMNS), *more)
        if taken == len(entries):
            return ()
        return [found for (found,) in _run(connection, _RECORDED, ids, places)]

    def add_block(self, connection: Connection, rows: BlockRows) -> None:
        """Two statements; a log is sealed by whoever opens the database, so another writer may be first."""
        number, first_us, last_us, times_us = rows[0]
        _run(
            connection,
            "INSERT INTO block (number, first_us, last_us, times_us) "
            "SELECT * FROM unnest(%s::int8[], %s::int8[], %s::int8[], %s::bytea[]) ON CONFLICT DO NOTHING",
            *(_int8s([number]), _int8s([first_us]), _int8s([last_us]), _byteas([times_us])),
        )
        fields, values, numbers, offsets = zip(*rows[1], strict=True)
        _run(
            connection,
            "INSERT INTO posting (field, value, block, offsets) "
            "SELECT * FROM unnest(%s::int4[], %s::int4[], %s::int8[], %s::bytea[]) ON CONFLICT DO NOTHING",
            *(_int4s(fields), _int4s(values), _int8s(numbers), _byteas(offsets)),
        )


ROWS: Final = PostgresqlRows()


def _run(connection: Connection, statement: str, *values: _Packed) -> list[Any]:
    done = connection.exec_driver_sql(statement, values)
    return list(done) if done.returns_rows else []


def month_of(entry_id: bytes) -> str:
    """The month of a UUIDv7, as ``2026-01``. Raises ``ValueError`` when it is after year 9998."""
    moment = datetime.fromtimestamp(int.from_bytes(entry_id[:6], "big") // 1_000, UTC)
    if moment.year > _LAST_YEAR:
        raise ValueError(f"its id is of the year {moment.year}")
    return f"{moment:%Y-%m}"


def months_from(month: str, count: int) -> list[str]:
    """This month and those that follow, ``count`` in all."""
    first = int(month[:4]) * 12 + int(month[5:]) - 1
    return [f"{nth // 12:04}-{nth % 12 + 1:02}" for nth in range(first, first + count)]


def _start(month: str) -> str:
    """The first id of a month, in hex."""
    start = datetime(int(month[:4]), int(month[5:]), 1, tzinfo=UTC)
    return (int(start.timestamp()) * 1_000).to_bytes(6, "big").hex() + "00" * 10


def make_months(connection: Connection, months: Iterable[str]) -> None:
    """Partitions for these months, unless they are there; in the transaction of the caller."""
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCKS}, {MONTHS_LOCK})")
    for month in months:
        after = months_from(month, 2)[1]
        for table in ("entry", "body"):
            part = f"{table}_{month.replace('-', '_')}"
            if connection.exec_driver_sql(f"SELECT to_regclass('{part}')").scalar() is not None:
                continue
            # To attach a table stops nobody; to create it as a partition would stop every reader and writer.
            connection.exec_driver_sql(f"CREATE TABLE {part} (LIKE {table} INCLUDING ALL)")
            connection.exec_driver_sql(
                f"ALTER TABLE {table} ATTACH PARTITION {part} "
                f"FOR VALUES FROM ('\\x{_start(month)}') TO ('\\x{_start(after)}')"
            )


def _make_months(connection: Connection, tail: Tail, ids: Sequence[bytes]) -> None:
    """See that every id has its partition. Ids are in the order of time, so most batches ask for two of them."""
    try:
        if {month_of(min(ids)), month_of(max(ids))} <= tail.months and month_of(min(ids)) == month_of(max(ids)):
            return
        months = {month_of(each) for each in ids}
    except (ValueError, OverflowError, OSError):
        raise EntriesRefused(dict(filter(None, map(_no_month, ids)))) from None
    missing = sorted(months - tail.months)
    if missing:
        make_months(connection, missing)
        tail.months.update(missing)


def _no_month(entry_id: bytes) -> tuple[str, str] | None:
    try:
        month_of(entry_id)
    except (ValueError, OverflowError, OSError) as error:
        return str(UUID(bytes=entry_id)), f"no month can be found for it: {error}"
    return None
