"""The search index on both stores: what it would pass over is named, and a lost row changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from audit import blocks, query
from audit.blocks import FIELDS
from audit.record import Entry, Search
from audit.stores import LogStore, SqliteStore
from policyd.services.clock import rfc3339
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.evidence import verify_directory

NOW_US = 1_790_000_000_000_000
COUNT = 40
EVEN = {"sqlite": "x'5555'", "postgresql": "'\\x5555'::bytea"}
"""Every second entry of a block of 16."""


@pytest.fixture(params=["sqlite", "postgresql"])
def directory(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DataDirectory]:
    """A data directory with a log of two full blocks of 16 entries, and half an open one."""
    monkeypatch.setattr(blocks, "BLOCK_BITS", 4)
    path = tmp_path / "data"
    store: LogStore = SqliteStore(path / "audit.sqlite")
    if request.param == "postgresql":
        from audit.postgresql_store import PostgresqlStore

        store = PostgresqlStore(request.getfixturevalue("database"), path / "origin")
    with DataDirectory(path, store) as made:
        asyncio.run(write(made))
        yield made


def entry(nth: int) -> Entry:
    time_us = NOW_US + 1_000 * nth
    head = f"{time_us // 1_000:012x}"
    entry_id = f"{head[:8]}-{head[8:]}-7000-8000-{nth:012x}"
    body = b'{"id":"%b","outcome":"deny","time":"%b"}' % (entry_id.encode(), rfc3339(time_us).encode())
    search = Search(tenant="eu-bank", outcome="deny", pool=f"pool-{nth % 3}")
    return Entry("decision", entry_id, time_us, body, search, (("data_source", f"source-{nth % 2}"),))


async def write(directory: DataDirectory) -> None:
    committer = await Committer.open(directory, durability="process_safe")
    try:
        for start in range(0, COUNT, 10):
            await asyncio.gather(*(committer.submit(entry(nth)) for nth in range(start, start + 10)))
    finally:
        await committer.close()


def changed(directory: DataDirectory, statement: str) -> None:
    """As somebody with the right to write the database would."""
    log = directory.store.open_writer("process_safe", None)
    connection: Connection = log.connection
    with connection.begin():
        connection.execute(text(statement))
    log.close()


def found(directory: DataDirectory, filters: dict[str, str]) -> list[int]:
    engine = directory.store.open_reader()
    try:
        with engine.connect() as connection:
            return [record.index for record in query.search(connection, filters).items]
    finally:
        engine.dispose()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            "DELETE FROM posting WHERE field = {tenant} AND {second}",
            "entry 16: the search index does not say its tenant",
        ),
        ("DELETE FROM posting WHERE field = {data_source}", "entry 0: the search index does not say its data_source"),
        (
            "UPDATE posting SET offsets = {even} WHERE field = {outcome} AND {second}",
            "entry 17: the search index does not say its outcome",
        ),
        (
            "UPDATE posting SET value = value + 99 WHERE field = {pool}",
            "entry 0: the search index does not say its pool",
        ),
        ("UPDATE block SET last_us = last_us + 1 WHERE {second_block}", "entry 16: the search index has other times"),
        (
            "INSERT INTO posting SELECT field, value + 99, block, offsets FROM posting WHERE field = {tenant}",
            "the search index has 2 rows that no entry brings",
        ),
    ],
)
def test_what_a_search_would_pass_over_is_named(directory: DataDirectory, change: str, fault: str) -> None:
    assert verify_directory(directory, [], [], []).fault is None
    second = "% 65536 = 1"
    even = EVEN["sqlite" if isinstance(directory.store, SqliteStore) else "postgresql"]
    names = {name: FIELDS.index(name) for name in FIELDS}
    changed(directory, change.format(**names, second=f"block {second}", second_block=f"number {second}", even=even))
    assert verify_directory(directory, [], [], []).fault == fault


def test_a_block_without_its_row_is_searched_all_the_same(directory: DataDirectory) -> None:
    expected = found(directory, {"pool": "pool-1", "data_source": "source-1"})
    assert expected == [nth for nth in reversed(range(COUNT)) if nth % 3 == 1 and nth % 2 == 1]
    changed(directory, "DELETE FROM block WHERE number % 65536 = 1")
    assert found(directory, {"pool": "pool-1", "data_source": "source-1"}) == expected
    directory.store.open_writer("process_safe", None).close()
    assert verify_directory(directory, [], [], []).fault is None
