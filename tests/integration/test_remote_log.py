"""Both ends of the link to the one writer, with a real log behind them."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from audit.record import Entry
from policyd.services.clock import now_us, uuid7
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.remote_log import RemoteLog, WriterLink


def entry() -> Entry:
    time_us = now_us()
    return Entry("decision", uuid7(time_us), time_us, b'{"n":1}')


@asynccontextmanager
async def linked(folder: Path) -> AsyncIterator[tuple[RemoteLog, Committer, Path]]:
    directory = DataDirectory(folder)
    directory.acquire()
    committer = await Committer.open(directory)
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    await WriterLink.connect(ours, committer, lambda _: None, lambda: None)
    log = await RemoteLog.connect(theirs, lambda _: None, lambda: None)
    try:
        yield log, committer, directory.log_path
    finally:
        await log.close()
        await committer.close()
        directory.release()


def test_a_log_that_hangs_is_known_in_the_process_that_does_not_write_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with linked(tmp_path) as (log, committer, path):
            assert log.wait_ms == committer.wait_ms == 0
            assert (await log.submit(entry())).index == 0
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                waiting = [asyncio.create_task(log.submit(entry())) for _ in range(3)]
                for _ in range(500):
                    await asyncio.sleep(0.02)
                    if min(log.wait_ms, committer.wait_ms) > 200:
                        break
                assert min(log.wait_ms, committer.wait_ms) > 200
                assert not any(task.done() for task in waiting)
                other.execute("ROLLBACK")
            assert [position.index for position in await asyncio.gather(*waiting)] == [1, 2, 3]
            # Nothing is under way: whatever it took before, somebody may try.
            assert log.wait_ms == committer.wait_ms == 0

    asyncio.run(run())
