"""The writer signs what it wrote, keeps it outside the database, and serves no log that is not what was signed."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from audit.checkpoint import Opened, open_checkpoint
from audit.errors import LogCorrupt
from audit.record import Entry, leaf_hash
from audit.signer import read_public
from audit.store import open_sqlite_reader
from audit.tree import Edge, consistency_proof, edge_at, inclusion_proof, root_at, verify_consistency, verify_inclusion
from audit.tree_store import StoredLog, TreeTail, stored_nodes
from audit.verify import verify_sqlite
from policyd.errors import AuditError
from policyd.services import checkpoints
from policyd.services.checkpoints import LogFiles
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.writer import CommitLimits

QUICK = CommitLimits(retry_first_ms=5, retry_max_ms=20)


def entry(nth: int) -> Entry:
    entry_id = f"01990000-0000-7000-8000-{nth:012x}"
    return Entry("decision", entry_id, nth, b'{"id":"%b","kind":"decision"}' % entry_id.encode())


@asynccontextmanager
async def committing(path: Path) -> AsyncIterator[Committer]:
    with DataDirectory(path) as directory:
        committer = await Committer.open(directory, durability="process_safe", limits=QUICK, origin="log.example/one")
        try:
            yield committer
        finally:
            await committer.close()


async def write(path: Path, first: int, end: int) -> None:
    async with committing(path) as committer:
        await asyncio.gather(*(committer.submit(entry(nth)) for nth in range(first, end)))


def kept(path: Path) -> Opened:
    """The checkpoint in the file."""
    files = LogFiles.within(path)
    return open_checkpoint(files.checkpoint.read_bytes(), read_public(files.public), origin="log.example/one")


def raw(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path / "audit.sqlite")) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def test_the_end_is_signed_and_kept_outside(tmp_path: Path) -> None:
    asyncio.run(write(tmp_path, 0, 300))
    assert kept(tmp_path).checkpoint.size == 300
    asyncio.run(write(tmp_path, 300, 301))
    found = kept(tmp_path).checkpoint
    edge = Edge()
    edge.extend([leaf_hash(entry(nth).body) for nth in range(301)])
    assert (found.size, found.root) == (301, edge.root())
    assert (tmp_path / "log.key").stat().st_mode & 0o777 == 0o600
    verdict = verify_sqlite(tmp_path / "audit.sqlite", keys=read_public(tmp_path / "log.pub"), key_given=True)
    assert (verdict.fault, verdict.entries, verdict.covered) == (None, 301, 301)


def test_a_checkpoint_comes_within_a_second_and_every_so_many_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "ENTRIES_MAX", 100)
    monkeypatch.setattr(checkpoints, "INTERVAL_S", 0.3)

    async def scenario() -> None:
        async with committing(tmp_path) as committer:
            await asyncio.gather(*(committer.submit(entry(nth)) for nth in range(150)))
            assert kept(tmp_path).checkpoint.size >= 100
            await committer.submit(entry(150))
            for _ in range(100):
                if kept(tmp_path).checkpoint.size == 151:
                    return
                await asyncio.sleep(0.05)
            raise AssertionError(kept(tmp_path))

    asyncio.run(scenario())


def test_proofs_come_from_what_is_stored(tmp_path: Path) -> None:
    count = 1_300
    asyncio.run(write(tmp_path, 0, count))
    leaves = [leaf_hash(entry(nth).body) for nth in range(count)]
    engine = open_sqlite_reader(tmp_path / "audit.sqlite")
    with engine.connect() as connection:
        node = stored_nodes(connection)
        for size in (1, 255, 256, 257, 1_024, 1_299, count):
            edge = Edge()
            edge.extend(leaves[:size])
            assert root_at(size, node) == edge.root()
            assert edge_at(size, node).hashes == edge.hashes
            for index in {0, size // 2, size - 1}:
                verify_inclusion(leaves[index], index, size, inclusion_proof(index, size, node), edge.root())
            proof = consistency_proof(size, count, node)
            verify_consistency(size, count, proof, edge.root(), root_at(count, node))
        with pytest.raises(LogCorrupt, match="cannot be made"):
            node(8, 5)
        rows = list(StoredLog(connection, "log.example/one").rows(3, 1_200))
        assert [row.index for row in rows] == list(range(3, 1_200))
    engine.dispose()


def test_a_log_without_a_tree_gets_one(tmp_path: Path) -> None:
    asyncio.run(write(tmp_path, 0, 700))
    before = kept(tmp_path)
    raw(tmp_path, "DELETE FROM tree_node", "DELETE FROM log_checkpoint")
    asyncio.run(write(tmp_path, 700, 701))
    assert kept(tmp_path).checkpoint.size == 701
    assert before.checkpoint.size == 700
    verdict = verify_sqlite(tmp_path / "audit.sqlite", keys=read_public(tmp_path / "log.pub"), key_given=True)
    assert verdict.fault is None
    with closing(sqlite3.connect(tmp_path / "audit.sqlite")) as connection:
        assert connection.execute("SELECT count(*) FROM tree_node").fetchone() == (2,)


def refused(path: Path) -> str:
    async def opening() -> None:
        async with committing(path):
            pass

    with pytest.raises(AuditError) as caught:
        asyncio.run(opening())
    return caught.value.detail


def test_an_older_state_is_not_served(tmp_path: Path) -> None:
    asyncio.run(write(tmp_path, 0, 10))
    shutil.copy(tmp_path / "audit.sqlite", tmp_path / "backup")
    asyncio.run(write(tmp_path, 10, 20))
    shutil.copy(tmp_path / "backup", tmp_path / "audit.sqlite")
    assert "is over 20 entries: the log was rolled back" in refused(tmp_path)
    # Without the file nobody here can tell; who kept a checkpoint can.
    (tmp_path / "log.checkpoint").unlink()
    asyncio.run(write(tmp_path, 20, 21))


def test_entries_that_were_cut_off_are_noticed_by_the_database_alone(tmp_path: Path) -> None:
    asyncio.run(write(tmp_path, 0, 10))
    (tmp_path / "log.checkpoint").unlink()
    raw(tmp_path, 'DELETE FROM body WHERE "index" > 5', 'DELETE FROM entry WHERE "index" > 5')
    assert "the checkpoint in the database is over 10 entries" in refused(tmp_path)


def test_another_history_is_not_served(tmp_path: Path) -> None:
    asyncio.run(write(tmp_path, 0, 10))
    body = entry(99).body
    change = f"UPDATE body SET body = x'{body.hex()}' WHERE \"index\" = 4"
    raw(tmp_path, change, f"UPDATE entry SET leaf_hash = x'{leaf_hash(body).hex()}' WHERE \"index\" = 4")
    assert "the first 10 entries are not those that the checkpoint" in refused(tmp_path)


def test_a_missing_or_foreign_key_is_not_replaced(tmp_path: Path) -> None:
    asyncio.run(write(tmp_path, 0, 10))
    asyncio.run(write(tmp_path / "other", 0, 10))
    (tmp_path / "log.key").rename(tmp_path / "away")
    assert "log.key is missing, and the log was signed with it" in refused(tmp_path)
    shutil.copy(tmp_path / "other" / "log.key", tmp_path / "log.key")
    shutil.copy(tmp_path / "other" / "log.pub", tmp_path / "log.pub")
    assert "no signature of a known key" in refused(tmp_path)
    (tmp_path / "log.key").chmod(0o644)
    assert "its mode must be 0600" in refused(tmp_path)


def test_a_checkpoint_that_cannot_be_written_breaks_the_log_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "INTERVAL_S", 0.1)

    async def scenario() -> None:
        async with committing(tmp_path) as committer:
            await committer.submit(entry(0))
            draft = tmp_path / "log.checkpoint.new"
            draft.mkdir()
            errors: list[str] = []
            for nth in range(1, 400):
                try:
                    await committer.submit(entry(nth))
                except AuditError as error:
                    errors.append(error.detail)
                    break
                await asyncio.sleep(0.01)
            assert "log.checkpoint cannot be written" in "".join(errors)
            draft.rmdir()
            for _ in range(200):
                if committer.healthy:
                    break
                await asyncio.sleep(0.02)
            await committer.submit(entry(500))

    asyncio.run(scenario())
    assert kept(tmp_path).checkpoint.size >= 2
    verdict = verify_sqlite(tmp_path / "audit.sqlite", keys=read_public(tmp_path / "log.pub"), key_given=True)
    assert verdict.fault is None


def test_the_tail_is_read_again_after_a_rollback(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with committing(tmp_path) as committer:
            await asyncio.gather(*(committer.submit(entry(nth)) for nth in range(250)))
            mixed = [*range(250, 270), 3, *range(270, 300)]
            results = await asyncio.gather(*(committer.submit(entry(nth)) for nth in mixed), return_exceptions=True)
            assert sum(isinstance(result, AuditError) for result in results) == 1

    asyncio.run(scenario())
    verdict = verify_sqlite(tmp_path / "audit.sqlite", keys=read_public(tmp_path / "log.pub"), key_given=True)
    assert (verdict.fault, verdict.entries) == (None, 300)
    engine = open_sqlite_reader(tmp_path / "audit.sqlite")
    with engine.connect() as connection:
        assert TreeTail(connection).edge.root() == kept(tmp_path).checkpoint.root
    engine.dispose()
