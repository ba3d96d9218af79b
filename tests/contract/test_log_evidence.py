"""Evidence from a log, wherever it lives: signed, exported, proved, and refused when it is not what was signed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from audit.record import Entry, Kind, encode
from audit.signer import read_public
from audit.stores import LogStore, SqliteStore
from policyd.errors import AuditError, AuditRolledBack, AuditTampered
from policyd.ledger.rules import Charge, Limit, Reservation
from policyd.ledger.store import Settlement, Void
from policyd.services.checkpoints import LogFiles
from policyd.services.clock import rfc3339, uuid7
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.evidence import exported, verify_directory, verify_file
from policyd.services.log_reader import LogReader
from policyd.services.proofs import consistency, newest_checkpoint, receipt
from policyd.services.rotation import rotate

NOW_US = 1_790_000_000_000_000
COUNT = 300


@pytest.fixture(params=["sqlite", "postgresql"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DataDirectory]:
    """A data directory without a log, in each place that a log may live."""
    path = tmp_path / "data"
    store: LogStore = SqliteStore(path / "audit.sqlite")
    if request.param == "postgresql":
        from audit.postgresql_store import PostgresqlStore

        store = PostgresqlStore(request.getfixturevalue("database"), path / "origin")
    with DataDirectory(path, store) as made:
        yield made


def entry(nth: int) -> Entry:
    time_us = NOW_US + 1_000 * nth
    head = f"{time_us // 1_000:012x}"
    entry_id = f"{head[:8]}-{head[8:]}-7000-8000-{nth:012x}"
    body = b'{"id":"%b","outcome":"deny","time":"%b"}' % (entry_id.encode(), rfc3339(time_us).encode())
    return Entry("decision", entry_id, time_us, body)


def write(directory: DataDirectory, first: int, end: int) -> None:
    async def scenario() -> None:
        committer = await Committer.open(directory, durability="process_safe")
        try:
            await asyncio.gather(*(committer.submit(entry(nth)) for nth in range(first, end)))
        finally:
            await committer.close()

    asyncio.run(scenario())


def changed(directory: DataDirectory, *statements: str) -> None:
    """As somebody with the right to write the database would."""
    log = directory.store.open_writer("process_safe", None)
    connection: Connection = log.connection
    with connection.begin():
        for statement in statements:
            connection.execute(text(statement))
    log.close()


def test_a_log_verifies_where_it_is_and_as_an_export(directory: DataDirectory, tmp_path: Path) -> None:
    write(directory, 0, COUNT)
    asyncio.run(rotate(directory))
    write(directory, COUNT, COUNT + 5)
    key = read_public(LogFiles.within(directory.path).public)[0]
    verdict = verify_directory(directory, [key], [], [])
    assert (verdict.fault, verdict.entries, verdict.covered) == (None, COUNT + 6, COUNT + 6)
    assert len(verdict.keys) == 2
    file = tmp_path / "export.jsonl"
    with file.open("wb") as opened:
        opened.writelines(exported(directory, 0))
    assert verify_file(file, [key], [], []).entries == COUNT + 6


def test_one_entry_and_growth_are_proved(directory: DataDirectory) -> None:
    write(directory, 0, COUNT)

    async def scenario() -> None:
        reader = await LogReader.open(directory)
        try:
            origin = (await reader.origins())[0]
            size, _ = await newest_checkpoint(reader, origin)
            assert size == COUNT
            keys = read_public(LogFiles.within(directory.path).public)
            for nth in (0, 255, 256, COUNT - 1):
                found = await receipt(reader, entry(nth).id)
                assert found.verify(keys, origin=origin).checkpoint.size == COUNT
                assert (found.index, found.extra) == ((await reader.by_id(entry(nth).id)).index, entry(nth).body)
            assert len((await consistency(reader, origin, 257, COUNT))["proof"]) > 1
        finally:
            await reader.close()

    asyncio.run(scenario())


def test_a_changed_body_is_named(directory: DataDirectory) -> None:
    write(directory, 0, COUNT)
    place = '"index" % 1099511627776'
    changed(directory, f"UPDATE body SET body = CAST('no' AS {blob_type(directory)}) WHERE {place} = 12")
    found = verify_directory(directory, [], [], [])
    assert found.bad_index == 12


def test_a_shorter_or_other_log_is_not_opened(directory: DataDirectory) -> None:
    write(directory, 0, COUNT)
    last = '"index" % 1099511627776 >= 200'
    changed(directory, f"DELETE FROM body WHERE {last}", f"DELETE FROM entry WHERE {last}")
    with pytest.raises(AuditRolledBack, match="rolled back"):
        write(directory, COUNT, COUNT + 1)


def test_a_log_with_another_past_is_not_opened(directory: DataDirectory) -> None:
    write(directory, 0, COUNT)
    changed(directory, "UPDATE tree_node SET hash = (SELECT leaf_hash FROM entry LIMIT 1)")
    with pytest.raises(AuditTampered, match="are not those that the checkpoint"):
        write(directory, COUNT, COUNT + 1)
    LogFiles.within(directory.path).key.unlink()
    with pytest.raises(AuditError, match="is missing, and the log was signed with it"):
        write(directory, COUNT, COUNT + 1)


LIMITS = (Limit("*", "micro_usd", "total", 10_000), Limit("acme", "tokens", "day", 1_000_000))


WORKLOAD = b',"workload":{"tenant":"acme","project":"chat","environment":"prod"}}'


def reserve(directory: DataDirectory, count: int) -> None:
    """Decisions that hold budgets; one of them settled, one void."""

    async def scenario() -> None:
        committer = await Committer.open(directory, durability="process_safe")
        try:
            made = [entry(nth)._replace(body=entry(nth).body[:-1] + WORKLOAD) for nth in range(count)]
            asked = [Reservation(each.id, tuple(Charge(limit, 7) for limit in LIMITS), 3_600_000_000) for each in made]
            await asyncio.gather(
                *(committer.submit(each, operation=wish) for each, wish in zip(made, asked, strict=True))
            )
            for nth, operation in enumerate((Settlement(made[0].id, (("tokens", 5),)), Void(made[1].id))):
                await committer.submit(ended(count + nth, operation), operation=operation)
        finally:
            await committer.close()

    asyncio.run(scenario())


def ended(nth: int, operation: Settlement | Void) -> Entry:
    time_us = NOW_US + nth
    kind: Kind = "settlement" if isinstance(operation, Settlement) else "void"
    entry_id = uuid7(time_us)
    body = {"id": entry_id, "kind": kind, "decision": operation.id, "scope": ["acme"], "time": rfc3339(time_us)}
    return Entry(kind, entry_id, time_us, encode(body, bytes(16)))


def test_the_ledger_folds_and_its_tables_say_what_the_log_says(directory: DataDirectory, tmp_path: Path) -> None:
    reserve(directory, 20)
    verdict = verify_directory(directory, [], [], [])
    assert (verdict.fault, verdict.accounts) == (None, 2)
    file = tmp_path / "export.jsonl"
    with file.open("wb") as opened:
        opened.writelines(exported(directory, 0))
    exported_verdict = verify_file(file, [], [], [])
    assert (exported_verdict.fault, exported_verdict.accounts, exported_verdict.elsewhere) == (None, 2, 0)
    changed(directory, "UPDATE budget_account SET spent = spent + 1 WHERE unit = 'tokens'")
    found = verify_directory(directory, [], [], [])
    assert found.fault is not None
    assert "the account acme (tokens a day) has 126 reserved, 6 spent" in found.fault
    changed(directory, "DELETE FROM budget_account WHERE unit = 'tokens'")
    found = verify_directory(directory, [], [], [])
    assert found.fault == "the account acme has changes in the log, and is in no table"


def blob_type(directory: DataDirectory) -> str:
    return "BLOB" if isinstance(directory.store, SqliteStore) else "BYTEA"
