"""A real ``policyd serve`` process that is killed, stopped, doubled and reloaded: what was answered is in the log."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from policyd.services.data_directory import DataDirectory
from policyd.services.log_reader import LogReader
from tests.killed_server import COMMAND, WORKLOAD, killed_under_load, served, wait_for

IN_FLIGHT = 64


class Load:
    """So many callers that each decide again as soon as they are answered."""

    def __init__(self, address: str) -> None:
        self.answered: list[dict[str, Any]] = []
        self.refused: list[int] = []
        self._address = address
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
        async with httpx.AsyncClient(base_url=self._address, timeout=30, limits=limits) as client:
            await asyncio.gather(*(self._call(client) for _ in range(IN_FLIGHT)))

    async def _call(self, client: httpx.AsyncClient) -> None:
        while True:
            try:
                found = await client.post("/v1/decisions", json=WORKLOAD)
                answer = found.json()
            except (httpx.TransportError, ValueError):
                return
            if found.status_code != 200:
                self.refused.append(found.status_code)
                return
            self.answered.append({"id": answer["id"], "outcome": answer["outcome"], **answer["audit"]})

    def join(self) -> None:
        """Wait until every caller has lost the server."""
        self._thread.join(60)
        assert not self._thread.is_alive(), "a caller hangs"


def check_logged(data: Path, answered: list[dict[str, Any]]) -> None:
    async def read() -> None:
        reader = await LogReader.open(DataDirectory(data))
        for answer in answered:
            record = await reader.by_id(answer["id"])
            assert record.index == answer["index"]
            assert record.leaf_hash.hex() == answer["leaf_hash"]
        await reader.close()

    asyncio.run(read())


def test_every_answered_decision_survives_a_kill(tmp_path: Path, repository: Path) -> None:
    data = tmp_path / "data"
    load = killed_under_load(data, repository, Load, 200)
    assert load.refused == []
    check_logged(data, load.answered)
    with served(data, repository) as (_, address):
        found = httpx.get(f"{address}/v1/decisions/{load.answered[-1]['id']}", timeout=30)
        assert found.json()["outcome"] == load.answered[-1]["outcome"]


def test_an_orderly_end_answers_what_is_in_progress(tmp_path: Path, repository: Path) -> None:
    data = tmp_path / "data"
    with served(data, repository) as (process, address):
        assert DataDirectory(data).announced() == address
        load = Load(address)
        wait_for(load, 100)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        load.join()
    assert load.refused == []
    check_logged(data, load.answered)
    assert DataDirectory(data).announced() is None


def test_a_second_writer_is_refused(tmp_path: Path, repository: Path) -> None:
    data = tmp_path / "data"
    with served(data, repository) as (process, _):
        second = subprocess.run(
            [*COMMAND, str(data)], capture_output=True, text=True, timeout=60, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(repository)}, check=False,
        )  # fmt: skip
    assert second.returncode == 1
    assert second.stdout == ""
    assert f"process {process.pid} writes" in second.stderr
    assert "Traceback" not in second.stderr


def decisions_logged(data: Path) -> int:
    async def count() -> int:
        reader = await LogReader.open(DataDirectory(data))
        found, cursor = 0, None
        for _ in range(10_000):
            page = await reader.search({}, cursor, 1_000)
            found, cursor = found + sum(item.kind == "decision" for item in page.items), page.next
            if cursor is None:
                break
        await reader.close()
        return found

    return asyncio.run(count())


def fleet_of(address: str) -> str:
    digest: str = httpx.get(f"{address}/v1/fleet", timeout=30).json()["digest"]
    return digest


def test_reloads_and_an_orderly_end_under_load_drop_nothing(tmp_path: Path, repository: Path) -> None:
    fleet, data = tmp_path / "fleet", tmp_path / "data"
    shutil.copytree(repository / "examples" / "fleet", fleet)
    with served(data, repository, "--fleet", str(fleet)) as (process, address):
        load = Load(address)
        wait_for(load, 50)
        seen = {fleet_of(address)}
        for turn in range(2, 4):
            with (fleet / "tenants.yaml").open("a") as file:
                file.write("# changed\n")
            process.send_signal(signal.SIGHUP)
            ends = time.monotonic() + 60
            while len(seen) < turn:
                assert time.monotonic() < ends, "the new fleet does not go live"
                seen.add(fleet_of(address))
                time.sleep(0.05)
        wait_for(load, len(load.answered) + 50)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        load.join()
    assert load.refused == []
    assert decisions_logged(data) == len(load.answered)


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def test_with_two_api_processes_every_answered_decision_survives_a_kill(tmp_path: Path, repository: Path) -> None:
    data = tmp_path / "data"
    with served(data, repository, "--workers", "2") as (process, address):
        load = Load(address)
        wait_for(load, 100)
        workers = children(process)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        load.join()
        ends = time.monotonic() + 30
        while any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers):
            assert time.monotonic() < ends, "an API process outlives the writer of the log"
            time.sleep(0.1)
    assert set(load.refused) <= {503}  # what could not be recorded any more is an error, never an allow
    check_logged(data, load.answered)


def test_an_api_process_that_is_killed_is_replaced_and_loses_nothing(tmp_path: Path, repository: Path) -> None:
    fleet, data = tmp_path / "fleet", tmp_path / "data"
    shutil.copytree(repository / "examples" / "fleet", fleet)
    with served(data, repository, "--workers", "2", "--fleet", str(fleet)) as (process, address):
        load = Load(address)
        wait_for(load, 100)
        before = children(process)
        # What is on disk now was handed to nobody: the new process serves what the others serve.
        live = fleet_of(address)
        with (fleet / "tenants.yaml").open("a") as file:
            file.write("# changed\n")
        os.kill(before[0], signal.SIGKILL)
        ends = time.monotonic() + 60
        while children(process) == before or len(children(process)) < 2 or not ready(address):
            assert time.monotonic() < ends, "no other process takes its place"
            time.sleep(0.1)
        assert {fleet_of(address) for _ in range(12)} == {live}
        process.send_signal(signal.SIGHUP)
        while fleet_of(address) == live or not ready(address):
            assert time.monotonic() < ends, "the new fleet does not go live"
            time.sleep(0.1)
        assert len({fleet_of(address) for _ in range(12)} - {live}) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        load.join()
    assert load.refused == []
    check_logged(data, load.answered)


def ready(address: str) -> bool:
    """Whether a process answers, and says that all are ready."""
    try:
        return httpx.get(f"{address}/readyz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
