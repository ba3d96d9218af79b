"""A search finds exactly what a plain Python model of the log finds, on both stores in the same pages."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.pool import StaticPool

from audit import block_search, blocks, query, store
from audit.block_tables import BLOCK_TABLES
from audit.errors import QueryInvalid
from audit.query import FILTERS, WORD_FILTERS
from audit.record import KINDS, SHEET_TERM_FIELDS, TERM_FIELDS, Blob, Entry, Search
from audit.store import Tail
from audit.stores import OpenLog
from audit.tables import LOG, META, TABLES
from tests.postgresql_server import PostgresqlServer

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
VALUES: Final = ("a", "b", "DE", "é\x00'\"%_;--", "1", "A", "a ", "\U0001f512")
INJECTIONS: Final = (
    "' OR '1'='1",
    "'; DROP TABLE entry; --",
    '" OR ""="',
    "1) OR (1=1",
    "%",
    "_",
    "\x00",
    "x' UNION SELECT * FROM body --",
    ":words_1",
    "?",
    "a' --",
    "NULL",
    "{}",
    "\\",
)

maybe = st.one_of(st.none(), st.sampled_from(VALUES))
sheets = st.builds(
    lambda content, terms: Blob.of("sheet", content, tuple(terms)),
    st.binary(min_size=1, max_size=2),
    st.lists(st.tuples(st.sampled_from(SHEET_TERM_FIELDS), st.sampled_from(VALUES)), max_size=4),
)


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[Entry], list[Blob]]:
    kept = list({sheet.digest: sheet for sheet in draw(st.lists(sheets, max_size=3))}.values())
    count = draw(st.integers(0, 12))
    digests = st.one_of(st.none(), *([st.sampled_from([sheet.digest for sheet in kept])] if kept else []))
    searches = st.builds(Search, **dict.fromkeys((*WORD_FILTERS, "request_id"), maybe), sheet=digests)
    terms = st.lists(st.tuples(st.sampled_from(TERM_FIELDS), st.sampled_from(VALUES)), max_size=4).map(tuple)
    return [
        Entry(
            draw(st.sampled_from(KINDS)),
            f"01990000-0000-7000-8000-{nth:012x}",
            draw(st.integers(0, 3)),
            draw(st.binary(min_size=1, max_size=30)),
            draw(searches),
            draw(terms),
        )
        for nth in range(count)
    ], kept


def moment(time_us: int) -> str:
    return (EPOCH + timedelta(microseconds=time_us)).isoformat().replace("+00:00", "Z")


def matches(entry: Entry, kept: dict[str, Blob], name: str, value: str) -> bool:
    if name == "from":
        return entry.time_us >= parsed(value)
    if name == "to":
        return entry.time_us < parsed(value)
    if getattr(entry.search, name, None) == value or (name, value) in entry.terms:
        return True
    return entry.search.sheet is not None and (name, value) in kept[entry.search.sheet].terms


def parsed(text: str) -> int:
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


def model(entries: list[Entry], kept: dict[str, Blob], filters: dict[str, str]) -> list[str]:
    found = [
        (entry.time_us, index, entry.id)
        for index, entry in enumerate(entries)
        if entry.kind in query.DECISION_KINDS and all(matches(entry, kept, *pair) for pair in filters.items())
    ]
    return [entry_id for _, _, entry_id in sorted(found, reverse=True)]


def empty_log() -> Engine:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    META.metadata.create_all(engine, tables=(*TABLES, *BLOCK_TABLES))
    with engine.begin() as connection:
        connection.execute(LOG.insert(), {"number": 0, "origin": "test/log"})
    return engine


def append(connection: Connection, entries: list[Entry], blobs: list[Blob], batch: int, tail: Tail) -> None:
    """In batches, now and then by a writer that remembers nothing."""
    store.append(connection, [], blobs, tail=tail)
    for start in range(0, len(entries), batch):
        known = tail if start % 3 else Tail.read(connection, tail.log)
        store.append(connection, entries[start : start + batch], tail=known)
        tail = known


def pages(connection: Connection, filters: dict[str, str], limit: int) -> Iterator[tuple[query.Record, ...]]:
    cursor: str | None = None
    while True:
        page = query.search(connection, filters, cursor, limit)
        assert len(page.items) <= limit
        yield page.items
        if page.next is None:
            return
        cursor = page.next


def all_pages(connection: Connection, filters: dict[str, str], limit: int) -> list[str]:
    return [record.id for items in pages(connection, filters, limit) for record in items]


BLOCK_BITS: Final = st.sampled_from([0, 1, 2, blocks.BLOCK_BITS])
"""Blocks of 1, 2 and 4 entries, so that short logs have several, and those of the product."""

filter_values = {name: st.sampled_from(VALUES) for name in FILTERS} | {
    name: st.integers(0, 4).map(moment) for name in ("from", "to")
}


@given(
    log=logs(),
    several=st.fixed_dictionaries({}, optional=filter_values),
    limit=st.integers(1, 4),
    few=st.sampled_from([0, 1, query.FEW_ENTRIES]),
    block_bits=BLOCK_BITS,
    batch=st.integers(1, 12),
)
def test_every_filter_and_every_mix_finds_what_the_model_finds(
    log: tuple[list[Entry], list[Blob]], several: dict[str, str], limit: int, few: int, block_bits: int, batch: int
) -> None:
    entries, blobs = log
    kept = {sheet.digest: sheet for sheet in blobs}
    engine = empty_log()
    with pytest.MonkeyPatch.context() as patch, engine.connect() as connection:
        # Whichever way a search begins, it finds the same.
        patch.setattr(query, "FEW_ENTRIES", few)
        patch.setattr(block_search, "FEW_OFFSETS", few)
        patch.setattr(blocks, "BLOCK_BITS", block_bits)
        append(connection, entries, blobs, batch, Tail.read(connection))
        assert all_pages(connection, {}, limit) == model(entries, kept, {})
        for name in FILTERS:
            values = (moment(1), moment(2)) if name in ("from", "to") else VALUES[:3]
            for value in values:
                assert all_pages(connection, {name: value}, 100) == model(entries, kept, {name: value})
        assert all_pages(connection, several, limit) == model(entries, kept, several)
        for index, entry in enumerate(entries):
            record = query.by_id(connection, entry.id)
            assert record is not None
            assert (record.index, record.kind, record.time_us, record.body) == (
                index, entry.kind, entry.time_us, entry.body
            )  # fmt: skip
    engine.dispose()


@pytest.fixture(scope="module")
def shared(postgresql: PostgresqlServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenLog]:
    """A log in a real PostgreSQL; every example rolls back what it wrote."""
    from audit.postgresql_store import PostgresqlStore

    place = PostgresqlStore(postgresql.make_database(), tmp_path_factory.mktemp("replica") / "origin")
    log = place.open_writer("process_safe", "test/log")
    yield log
    log.close()


@settings(max_examples=settings().max_examples // 4)  # a search takes ten times as long there, most of it planning
@given(
    log=logs(),
    several=st.fixed_dictionaries({}, optional=filter_values),
    limit=st.integers(1, 4),
    block_bits=BLOCK_BITS,
    batch=st.integers(1, 12),
)
def test_both_stores_give_the_same_pages(
    shared: OpenLog,
    log: tuple[list[Entry], list[Blob]],
    several: dict[str, str],
    limit: int,
    block_bits: int,
    batch: int,
) -> None:
    entries, blobs = log
    engine = empty_log()
    searches = [({}, limit), (several, limit)]
    for name in FILTERS:
        values = (moment(1), moment(2)) if name in ("from", "to") else VALUES[:3]
        searches += [({name: value}, 2) for value in values]
    with pytest.MonkeyPatch.context() as patch, engine.connect() as connection:
        patch.setattr(blocks, "BLOCK_BITS", block_bits)
        append(connection, entries, blobs, batch, Tail.read(connection))
        transaction = shared.connection.begin()
        try:
            append(shared.connection, entries, blobs, batch, Tail.read(shared.connection, shared.number))
            for filters, size in searches:
                found = [list(pages(each, filters, size)) for each in (connection, shared.connection)]
                assert found[0] == found[1]
        finally:
            transaction.rollback()
    engine.dispose()


@pytest.mark.parametrize("name", [name for name in FILTERS if name not in ("from", "to")])
def test_a_value_that_looks_like_sql_is_only_a_value(name: str) -> None:
    engine = empty_log()
    with engine.connect() as connection:
        column = {name: "plain"} if name in (*WORD_FILTERS, "request_id") else {}
        terms = () if column else ((name, "plain"),)
        innocent = Entry("decision", "01990000-0000-7000-8000-000000000000", 0, b"{}", Search(**column), terms)
        store.append(connection, [innocent])
        for nth, text in enumerate(INJECTIONS, 1):
            assert query.search(connection, {name: text}).items == ()
            column = {name: text} if column else {}
            terms = () if column else ((name, text),)
            itself = Entry("decision", f"01990000-0000-7000-8000-{nth:012x}", nth, b"{}", Search(**column), terms)
            store.append(connection, [itself])
            assert [record.id for record in query.search(connection, {name: text}).items] == [itself.id]
        assert len(query.search(connection, {}).items) == len(INJECTIONS) + 1
    engine.dispose()


@pytest.mark.parametrize("text", [*INJECTIONS, "2026-13-01", "2026-01-01T00:00:00", "2026-01-01T00:00:00+02:00", "now"])
@pytest.mark.parametrize("name", ["from", "to"])
def test_a_time_that_is_no_utc_time_is_refused(name: str, text: str) -> None:
    refused(QueryInvalid, name, {name: text})


def test_the_forms_of_a_utc_time() -> None:
    engine = empty_log()
    with engine.connect() as connection:
        store.append(connection, [Entry("error", "01990000-0000-7000-8000-000000000000", parsed(moment(0)), b"{}")])
        for text in ("1970-01-01", "1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000000+00:00"):
            assert len(query.search(connection, {"from": text}).items) == 1
            assert query.search(connection, {"to": text}).items == ()
    engine.dispose()


@pytest.mark.parametrize(
    ("name", "hint"), [("tennant", "tenant"), ("rules", "rule"), ("Pool", "pool"), ("zzz", None), ("sheet", None)]
)
def test_an_unknown_filter_is_refused_with_the_nearest_name(name: str, hint: str | None) -> None:
    error = refused(QueryInvalid, name, {name: "x"})
    assert (f"did you mean {hint}?" in str(error)) == (hint is not None)


@pytest.mark.parametrize("limit", [0, -1, 1_001, True, 2.0])
def test_a_page_is_bounded(limit: Any) -> None:
    refused(QueryInvalid, "limit", {}, limit=limit)


@pytest.mark.parametrize("value", ["", "\ud800"])
def test_a_filter_needs_a_value(value: str) -> None:
    refused(QueryInvalid, "tenant", {"tenant": value})


def test_a_cursor_continues_only_its_own_search() -> None:
    engine = empty_log()
    with engine.connect() as connection:
        entries = [
            Entry("decision", f"01990000-0000-7000-8000-{n:012x}", n, b"{}", Search(tenant="a")) for n in range(3)
        ]
        store.append(connection, entries)
        cursor = query.search(connection, {"tenant": "a"}, limit=1).next
        assert cursor is not None
        assert query.search(connection, {"tenant": "a"}, cursor, limit=1).items[0].index == 1
        for filters in ({}, {"tenant": "b"}, {"project": "a"}, {"tenant": "a", "pool": "x"}):
            with pytest.raises(QueryInvalid, match="other filters"):
                query.search(connection, filters, cursor)
        with pytest.raises(QueryInvalid, match="other filters"):
            query.search(connection, {"tenant": "a"}, cursor, kinds=("error",))
    engine.dispose()


@given(cursor=st.one_of(st.text(max_size=300), st.binary(max_size=60).map(lambda raw: raw.hex())))
def test_an_invented_cursor_is_refused(cursor: str) -> None:
    refused(QueryInvalid, "cursor", {}, cursor=cursor)


def refused(kind: type[QueryInvalid], field: str, filters: dict[str, str], **more: Any) -> QueryInvalid:
    engine = empty_log()
    try:
        with engine.connect() as connection, pytest.raises(kind) as caught:
            query.search(connection, filters, **more)
    finally:
        engine.dispose()
    assert caught.value.field == field
    return caught.value
