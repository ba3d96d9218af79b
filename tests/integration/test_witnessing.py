"""A server asks witnesses by itself, and says what it has seen of other logs; who lies or hangs costs nothing else."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from sqlalchemy import text

from audit.checkpoint import Checkpoint
from audit.postgresql_store import PostgresqlStore
from audit.signer import read_public
from audit.tree import EMPTY_ROOT
from connectors.witness import post_checkpoint
from policyd.errors import ConfigError, NotFound
from policyd.services.checkpoints import LogFiles
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.evidence import export_to, verify_directory, verify_file
from policyd.services.log_reader import LogReader
from policyd.services.neighbours import Neighbours
from policyd.services.proofs import newest_checkpoint, receipt
from policyd.services.witnessing import Witness as Asked
from policyd.services.witnessing import Witnesses, witnesses_of, word_of, words_kept
from policyd.settings import load_settings
from policyd.telemetry import Telemetry
from tests.integration.test_audit_checkpoints import committing, entry
from tests.integration.test_audit_witness import KEY, LOG, ORIGIN, Witness, witness
from tests.integration.test_postgresql_faults import QUICK
from tests.integration.test_postgresql_faults import entry as decided

assert witness  # the fixture


class Server:
    """A log that grows, and who is asked about it."""

    def __init__(self, path: Path, reader: LogReader, committer: Committer, addresses: list[str]) -> None:
        self.path, self.reader, self.committer = path, reader, committer
        self.telemetry = Telemetry()
        asked = [Asked(KEY, address) for address in addresses]

        def post(address: str, body: bytes) -> tuple[int, str, bytes]:
            return post_checkpoint(address, body, timeout_s=1)

        keys = LogFiles.within(path).public
        self.witnesses = Witnesses(reader, ORIGIN, path, asked, lambda: read_public(keys), post, self.telemetry)

    async def grow(self, first: int, end: int) -> None:
        await asyncio.gather(*(self.committer.submit(entry(nth)) for nth in range(first, end)))
        for _ in range(100):
            with suppress(NotFound):
                if (await newest_checkpoint(self.reader, ORIGIN))[0] == end:
                    return
            await asyncio.sleep(0.05)
        raise AssertionError("no checkpoint came")

    async def asked(self) -> None:
        await self.witnesses.turn()
        await asyncio.gather(*self.witnesses._asked.values(), return_exceptions=True)
        await asyncio.sleep(0)


async def opened(path: Path, committer: Committer, *addresses: str) -> Server:
    reader = await LogReader.open(DataDirectory(path))
    return Server(path, reader, committer, list(addresses))


def test_a_witness_is_asked_and_its_word_is_in_receipts_and_verdicts(
    witness: tuple[Witness, str], tmp_path: Path
) -> None:
    state, address = witness

    async def scenario() -> None:
        async with committing(tmp_path) as committer:
            server = await opened(tmp_path, committer, address)
            await server.grow(0, 5)
            state.key = read_public(LogFiles.within(tmp_path).public)[0]
            await server.asked()
            await server.grow(5, 12)
            await server.asked()
            assert state.asked == [0, 5], "the second time it is told what it saw, and gets the proof from there"
            await server.asked()
            assert state.asked == [0, 5], "nothing is new"
            await server.grow(12, 13)
            proof = await receipt(server.reader, entry(3).id, lambda: words_kept(tmp_path))
            seen = proof.verify([state.key, KEY])
            assert (seen.checkpoint.size, [each.name for each in seen.witnesses]) == (12, ["witness.example"])
            fresh = await receipt(server.reader, entry(12).id, lambda: words_kept(tmp_path))
            assert (fresh.verify([state.key, KEY]).checkpoint.size, server.telemetry.cosigned_entries) == (13, 12)
            await server.reader.close()

    asyncio.run(scenario())
    verdict = verify_directory(DataDirectory(tmp_path), [], [KEY], [])
    assert verdict.word.startswith("anchored to size 12 by witness.example")
    assert verify_directory(DataDirectory(tmp_path), [], [], []).word.startswith("NOT ANCHORED")


def test_a_witness_that_lies_or_has_seen_another_history_is_told_and_not_kept(
    witness: tuple[Witness, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, address = witness

    async def scenario() -> None:
        async with committing(tmp_path) as committer:
            server = await opened(tmp_path, committer, address)
            await server.grow(0, 5)
            await server.asked()  # it does not know this log's key
            assert server.telemetry.witness_failures["refused"] == 1
            state.key = read_public(LogFiles.within(tmp_path).public)[0]
            state.seen = Checkpoint(ORIGIN, 9, b"9" * 32)
            await server.asked()
            assert server.telemetry.witness_failures["contradicted"] == 1
            assert words_kept(tmp_path) == []
            state.seen = Checkpoint(ORIGIN, 0, EMPTY_ROOT)
            await server.asked()
            assert server.telemetry.cosigned_entries == 5
            await server.reader.close()

    asyncio.run(scenario())
    assert "has seen 9 entries: the log was rolled back" in caplog.text


@pytest.fixture
def silent() -> Iterator[str]:
    """Takes every connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"


def test_a_witness_that_hangs_costs_a_thread_and_nothing_else(silent: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with committing(tmp_path) as committer:
            server = await opened(tmp_path, committer, silent)
            await server.grow(0, 2)
            began = time.monotonic()
            for _ in range(3):
                await server.witnesses.turn()
            await server.committer.submit(entry(2))
            assert time.monotonic() - began < 0.9, "no turn and no decision waits for it"
            await server.asked()
            assert server.telemetry.witness_failures == {"unreachable": 1, "refused": 0, "contradicted": 0}
            assert not word_of(tmp_path, KEY).exists()
            await server.reader.close()

    asyncio.run(scenario())


def test_only_witnesses_are_asked_over_https() -> None:
    for given, why in (({"url": "http://w.example", "key": KEY.text}, "https"), ({"url": "https://w.example"}, "key")):
        with pytest.raises(ConfigError, match=why):
            load_settings(environment={}, flags={"audit": {"witnesses": [given]}})
    for key, why in ((LOG.key.text, "not of a witness"), ("no key", "this is no key")):
        settings = load_settings(
            environment={}, flags={"audit": {"witnesses": [{"url": "https://w.example", "key": key}]}}
        )
        with pytest.raises(ConfigError, match=why):
            witnesses_of(settings.audit)


def test_replicas_see_each_other_and_one_that_is_rolled_back_is_caught(database: str, tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("one", "other")]

    def directory(path: Path) -> DataDirectory:
        return DataDirectory(path, PostgresqlStore(database, path / "origin"), tmp_path / "personal.key")

    async def scenario() -> tuple[str, str]:
        with ExitStack() as stack:
            held = [stack.enter_context(directory(path)) for path in places]
            committers = [await Committer.open(place, limits=QUICK) for place in held]
            readers = [await LogReader.open(place) for place in held]
            both = [Neighbours(*each) for each in zip(readers, committers, strict=True)]
            for committer in committers:
                await asyncio.gather(*(committer.submit(decided()) for _ in range(20)))
            for _ in range(3):
                await asyncio.sleep(1.1)  # each log is signed each second
                for each in both:
                    await each.turn()
            sizes = [committer.entries_total for committer in committers]
            assert sizes == [21, 21], "each has told once what it saw, and nothing of what the other told"
            for reader in readers:
                await reader.close()
            for committer in committers:
                await committer.close()
            return committers[0].origin, committers[1].origin

    mine, theirs = asyncio.run(scenario())
    verdicts = [verify_directory(directory(path), [], [], []) for path in places]
    assert [verdict.fault for verdict in verdicts] == [None, None]
    assert [[each.origin for each in verdict.seen] for verdict in verdicts] == [[theirs], [mine]]
    assert f"of the log {theirs}" in verdicts[0].word
    export_to(directory(places[1]), tmp_path / "export.jsonl")
    assert verify_file(tmp_path / "export.jsonl", [], [], []).seen[0].origin == mine
    roll_back(directory(places[1]), 15)
    found = verify_directory(directory(places[1]), [], [], [])
    assert found.fault is not None
    assert f"of the log {mine} has seen 20: it was rolled back" in found.fault


def roll_back(place: DataDirectory, size: int) -> None:
    """As somebody would who has the database, the signing key and the files beside the log of one replica."""
    log = place.store.open_writer("process_safe", None)
    first = f'"index" >= {(log.number << 40) + size} AND "index" < {(log.number + 1) << 40}'
    with log.connection.begin():
        for table in ("entry_term", "body", "entry"):
            log.connection.execute(text(f"DELETE FROM {table} WHERE {first}"))
        log.connection.execute(text(f"DELETE FROM log_checkpoint WHERE log = {log.number}"))
    log.close()
    LogFiles.within(place.path).checkpoint.unlink()
