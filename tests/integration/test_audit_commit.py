"""The one writer: answers, limits, locks, and the reading side beside it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from audit.record import Blob, Entry, Search
from policyd.errors import AuditError, AuditLocked, NotFound, Overloaded, RequestError
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.log_reader import LogReader
from policyd.services.writer import CommitLimits

SHEET = Blob.of("sheet", b"a sheet", (("rule", "location_not_permitted"),))
QUICK = CommitLimits(retry_first_ms=5, retry_max_ms=20)


def entry(nth: int, search: Search | None = None) -> Entry:
    return Entry("decision", f"01990000-0000-7000-8000-{nth:012x}", nth, b'{"nth":%d}' % nth, search or Search())


@asynccontextmanager
async def committing(path: Path, limits: CommitLimits = QUICK) -> AsyncIterator[tuple[DataDirectory, Committer]]:
    with DataDirectory(path) as directory:
        committer = await Committer.open(directory, durability="process_safe", limits=limits)
        try:
            yield directory, committer
        finally:
            await committer.close()


def move_log(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for file in list(source.glob("audit.sqlite*")):
        file.rename(target / file.name)


def test_each_waiter_hears_its_own_position(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with committing(tmp_path) as (directory, committer):
            entries = [entry(nth, Search(sheet=SHEET.digest)) for nth in range(1_200)]
            positions = await asyncio.gather(*(committer.submit(one, (SHEET,)) for one in entries))
            assert sorted(position.index for position in positions) == list(range(1_200))
            reader = await LogReader.open(directory)
            for one, position in list(zip(entries, positions, strict=True))[::100]:
                record = await reader.by_id(one.id)
                assert (record.index, record.leaf_hash, record.body) == (position.index, position.leaf_hash, one.body)
            assert await reader.blob(SHEET.digest) == SHEET.content
            await reader.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("collect_us", [0, 1_000])
def test_close_writes_what_waits(tmp_path: Path, collect_us: int) -> None:
    async def scenario() -> None:
        async with committing(tmp_path, CommitLimits(collect_us=collect_us)) as (_, committer):
            waiting = [asyncio.create_task(committer.submit(entry(nth))) for nth in range(40)]
            await asyncio.sleep(0)
            await committer.close()
            assert sorted(position.index for position in await asyncio.gather(*waiting)) == list(range(40))
            with pytest.raises(AuditError, match="closed"):
                await committer.submit(entry(99))
            assert not committer.healthy
        async with committing(tmp_path) as (_, committer):
            assert (await committer.submit(entry(40))).index == 40

    asyncio.run(scenario())


def test_a_full_queue_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with committing(tmp_path, CommitLimits(queue_max_entries=10)) as (_, committer):
            results = await asyncio.gather(*(committer.submit(entry(nth)) for nth in range(25)), return_exceptions=True)
            assert [type(result) for result in results[10:]] == [Overloaded] * 15
            assert [result.index for result in results[:10] if not isinstance(result, BaseException)] == [*range(10)]
            assert (await committer.submit(entry(30))).index == 10

    asyncio.run(scenario())


def test_a_refused_entry_does_not_refuse_its_batch(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with committing(tmp_path) as (directory, committer):
            await committer.submit(entry(0))
            unkept = entry(2, Search(sheet=SHEET.digest))
            mixed = [entry(1, Search(tenant="fresh")), entry(0), unkept, entry(3), entry(3)]
            results = await asyncio.gather(*map(committer.submit, mixed), return_exceptions=True)
            assert [getattr(result, "index", None) for result in results] == [1, None, None, 2, None]
            assert "recorded already" in str(results[1])
            assert "does not hold the sheet" in str(results[2])
            assert "being written already" in str(results[4])
            assert all(isinstance(results[nth], AuditError) for nth in (1, 2, 4))
            assert committer.healthy
            assert (await committer.submit(unkept, (SHEET,))).index == 3
            assert (await committer.submit(entry(4, Search(tenant="fresh")))).index == 4
            reader = await LogReader.open(directory)
            assert [record.index for record in (await reader.search({"tenant": "fresh"})).items] == [4, 1]
            await reader.close()

    asyncio.run(scenario())


def test_a_caller_that_gives_up_does_not_disturb_the_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with committing(tmp_path) as (_, committer):
            tasks = [asyncio.create_task(committer.submit(entry(nth))) for nth in range(10)]
            await asyncio.sleep(0)
            tasks[4].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(results[4], asyncio.CancelledError)
            assert [type(result).__name__ for result in results].count("Position") == 9
            assert (await committer.submit(entry(50))).index == 10

    asyncio.run(scenario())


def test_a_log_that_is_taken_away_is_never_started_again_by_itself(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with committing(tmp_path) as (directory, committer):
            await committer.submit(entry(0))
            move_log(tmp_path, tmp_path / "elsewhere")
            with pytest.raises(AuditError):
                await committer.submit(entry(1))
            await asyncio.sleep(0.1)
            assert not committer.healthy
            assert not directory.log_path.exists()
            with pytest.raises(AuditError):
                await committer.submit(entry(2))

    asyncio.run(scenario())


def test_a_log_that_lost_answered_entries_is_not_served_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with committing(tmp_path / "old") as (_, committer):
            await committer.submit(entry(0))
        async with committing(tmp_path / "new") as (directory, committer):
            await asyncio.gather(*(committer.submit(entry(nth)) for nth in range(5)))
            move_log(directory.path, tmp_path / "elsewhere")
            move_log(tmp_path / "old", directory.path)
            with pytest.raises(AuditError):
                await committer.submit(entry(9))
            await asyncio.sleep(0.1)
            assert not committer.healthy

    asyncio.run(scenario())


def test_a_damaged_log_is_not_opened(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with committing(tmp_path) as (directory, committer):
            await asyncio.gather(*(committer.submit(entry(nth)) for nth in range(5)))
        content = directory.log_path.read_bytes()
        assert content.count(b'{"nth":3}') == 1
        directory.log_path.write_bytes(content.replace(b'{"nth":3}', b'{"nth":8}'))
        with pytest.raises(AuditError, match="entry 3"):
            async with committing(tmp_path):
                pass

    asyncio.run(scenario())


def test_writing_needs_the_lock(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="lock"):
        asyncio.run(Committer.open(DataDirectory(tmp_path)))


def test_a_log_keeps_the_name_that_it_was_made_with(tmp_path: Path) -> None:
    async def opened(origin: str | None) -> str:
        with DataDirectory(tmp_path) as directory:
            committer = await Committer.open(directory, origin=origin)
            await committer.close()
            return committer.origin

    assert asyncio.run(opened("policyd/test")) == "policyd/test"
    assert asyncio.run(opened("policyd/other")) == "policyd/test"
    assert asyncio.run(opened(None)) == "policyd/test"


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    with (
        DataDirectory(tmp_path) as first,
        pytest.raises(AuditLocked, match=f"process {os.getpid()} writes"),
        DataDirectory(tmp_path),
    ):
        pass
    assert not first.locked
    with DataDirectory(tmp_path) as again:
        assert again.locked


HOLDER = """
import sys, time
from pathlib import Path
from policyd.services.data_directory import DataDirectory
directory = DataDirectory(Path(sys.argv[1]))
directory.acquire()
directory.announce("http://127.0.0.1:8471")
print("ready", flush=True)
time.sleep(60)
"""


def test_an_address_lives_as_long_as_its_writer(tmp_path: Path, repository: Path) -> None:
    directory = DataDirectory(tmp_path)
    assert directory.announced() is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=repository, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        assert directory.announced() == "http://127.0.0.1:8471"
        with pytest.raises(AuditLocked, match=f"process {holder.pid} writes"):
            directory.acquire()
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    assert (tmp_path / "server.json").exists()
    assert directory.announced() is None
    with directory:
        assert directory.announced() is None, "the next writer is not where the last one was"
        directory.announce("http://127.0.0.1:1")
        assert DataDirectory(tmp_path).announced() == "http://127.0.0.1:1"
    assert directory.announced() is None


FORKER = """
import os, sys, time
from pathlib import Path
from policyd.services.data_directory import DataDirectory
directory = DataDirectory(Path(sys.argv[1]))
directory.acquire()
child = os.fork()
if child == 0:
    time.sleep(60)
else:
    print(child, flush=True)
    time.sleep(60)
"""


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path, repository: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORKER, str(tmp_path)], cwd=repository, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            with pytest.raises(AuditLocked):
                DataDirectory(tmp_path).acquire()
            parent.send_signal(signal.SIGKILL)
            parent.wait(10)
            os.kill(child, 0)
            with DataDirectory(tmp_path) as taken:
                assert taken.locked
        finally:
            os.kill(child, signal.SIGKILL)


def test_only_the_writer_announces(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="only the writer"):
        DataDirectory(tmp_path).announce("http://127.0.0.1:1")


def test_the_directory_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    directory = DataDirectory(path)
    assert not path.exists(), "who only reads makes nothing"
    with directory:
        assert path.stat().st_mode & 0o777 == 0o700


def test_reading_goes_on_while_entries_are_written(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with committing(tmp_path) as (directory, committer):
            await committer.submit(entry(0, Search(tenant="acme")))
            reader = await LogReader.open(directory)
            assert (await reader.by_id(entry(0).id)).origin == committer.origin

            async def write() -> None:
                for start in range(1, 401, 20):
                    more = (entry(nth, Search(tenant="acme")) for nth in range(start, start + 20))
                    await asyncio.gather(*map(committer.submit, more))

            writing = asyncio.create_task(write())
            sizes = [0]
            while not writing.done():
                sizes.append(len((await reader.search({"tenant": "acme"}, limit=1_000)).items))
            await writing
            sizes.append(len((await reader.search({"tenant": "acme"}, limit=1_000)).items))
            assert sizes == sorted(sizes)
            assert sizes[-1] == 401
            await reader.close()

    asyncio.run(scenario())


def test_what_a_reader_cannot_answer_is_an_error_of_the_product(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(AuditError, match="there is no log"):
            await LogReader.open(DataDirectory(tmp_path))
        async with committing(tmp_path) as (directory, _):
            reader = await LogReader.open(directory)
            with pytest.raises(RequestError, match="did you mean tenant") as caught:
                await reader.search({"tennant": "x"})
            assert caught.value.findings[0].where == "tennant"
            with pytest.raises(RequestError, match="cursor"):
                await reader.search({}, "rubbish")
            with pytest.raises(NotFound):
                await reader.by_id(entry(7).id)
            with pytest.raises(NotFound):
                await reader.blob(SHEET.digest)
            await reader.close()

    asyncio.run(scenario())


def test_a_search_has_a_deadline(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with committing(tmp_path) as (directory, committer):
            rare = entry(0, Search(project="rare"))
            common = [entry(nth, Search(project="common")) for nth in range(1, 3_000)]
            await asyncio.gather(*map(committer.submit, (rare, *common)))
            hurried = await LogReader.open(directory, deadline_ms=0)
            with pytest.raises(AuditError, match="longer than 0 ms"):
                await hurried.search({"project": "rare"})
            await hurried.close()
            patient = await LogReader.open(directory)
            assert [record.id for record in (await patient.search({"project": "rare"})).items] == [rare.id]
            await patient.close()

    asyncio.run(scenario())
