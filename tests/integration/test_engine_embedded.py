"""The workers of the embedded engine: small, confined, replaced, and gone with their parent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath

import pytest

from policyd.core.verdict import Answer, Question
from policyd.engines import embedded
from policyd.engines.embedded import EmbeddedEngine
from policyd.errors import EngineCrashed, PolicyInvalid
from policyd.ports import EngineCounts, PolicyTree

HEAD = """# METADATA
# title: sample
# custom: {enforcement: hard, owner: tests, remedy: none}
package placement.sample

"""
RULE = 'deny contains {"rule": "a", "observed": input.pool.n} if input.pool.n > 0\n'
HUNGRY = (
    'deny contains {"rule": "a"} if count([[x, y] | some x in numbers.range(1, input.pool.n); y := [x, x, x]]) == 0\n'
)


def tree(body: str) -> PolicyTree:
    return PolicyTree("sha256:one", None, {PurePosixPath("sample.rego"): HEAD + body}, {}, {}, "", "")


def question(n: int) -> Question:
    return Question("sample", json.dumps({"pool": {"n": n}}).encode())


def test_a_worker_that_grows_beyond_its_memory_is_an_error_and_is_replaced() -> None:
    async def run() -> None:
        engine = EmbeddedEngine(1, worker_memory_bytes=150 * 1024**2)
        try:
            loaded = await engine.load(tree(HUNGRY))
            hungry, modest = await engine.evaluate(loaded.digest, [question(3_000_000), question(3)], 20_000)
            assert hungry.error == "sample: the engine died during the evaluation, twice"
            assert modest == Answer()
        finally:
            await engine.close()

    asyncio.run(run())


def test_a_worker_is_replaced_after_so_many_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "RECYCLE_AFTER_QUESTIONS", 10)

    async def run() -> None:
        engine = EmbeddedEngine(1)
        try:
            loaded = await engine.load(tree(RULE))
            seen = set()
            for _ in range(3):
                assert len(await engine.evaluate(loaded.digest, [question(1)] * 12, 5000)) == 12
                seen.update(engine.worker_pids)
            assert not seen
            assert engine.counts == EngineCounts(recycled=3)
        finally:
            await engine.close()

    asyncio.run(run())


def environment_names(pid: int) -> set[bytes]:
    return {entry.partition(b"=")[0] for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}


def test_a_worker_sees_no_environment_of_ours() -> None:
    async def run() -> None:
        engine = EmbeddedEngine(1)
        try:
            loaded = await engine.load(tree(RULE))
            await engine.evaluate(loaded.digest, [question(1)], 5000)
            (pid,) = engine.worker_pids
            assert not {b"PATH", b"HOME", b"PYTHONPATH"} & environment_names(pid)
        finally:
            await engine.close()

    asyncio.run(run())


PARENT = """
import asyncio, sys
from pathlib import PurePosixPath
from policyd.core.verdict import Question
from policyd.engines.embedded import EmbeddedEngine
from policyd.ports import PolicyTree

async def run():
    engine = EmbeddedEngine(1)
    body = sys.stdin.read()
    await engine.load(PolicyTree("sha256:one", None, {PurePosixPath("a.rego"): body}, {}, {}, "", ""))
    await engine.evaluate("sha256:one", [Question("sample", b'{"pool":{"n":1}}')], 5000)
    asked = asyncio.ensure_future(engine.evaluate("sha256:one", [Question("sample", b'{"pool":{"n":30000}}')], 60000))
    await asyncio.sleep(0.2)
    print(*engine.worker_pids, flush=True)
    await asked

asyncio.run(run())
"""
LOOP = """deny contains {"rule": "loops"} if {
	some a in numbers.range(1, input.pool.n)
	some b in numbers.range(1, input.pool.n)
	a * b == 0
}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent")
def test_a_busy_worker_dies_with_its_parent(repository: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=repository,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(HEAD + LOOP)
    parent.stdin.close()
    worker = int(parent.stdout.readline())
    assert Path(f"/proc/{worker}").exists()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 5
    while alive(worker) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(worker)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_module_that_kills_the_compiler_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler is known to die on `with input as` over rules that compare: here a policy holds such a rule."""
    body = (
        RULE + "\nhelper if {\n\td := deny with input as input.workload\n\tcount(d) > 0\n}\n\nprefer := 1 if helper\n"
    )

    async def run() -> None:
        engine = EmbeddedEngine(1)
        try:
            with pytest.raises(PolicyInvalid) as refused:
                await engine.load(tree(body))
            assert refused.value.findings
        finally:
            await engine.close()

    asyncio.run(run())


@pytest.mark.parametrize("broken", ["memory", "files"])
def test_workers_that_do_not_start_are_one_engine_error(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a group of errors and not the system's own: whoever records errors knows engine errors."""

    async def run() -> None:
        engine = EmbeddedEngine(2)
        try:
            loaded = await engine.load(tree(RULE))
            for worker in engine._all:
                await worker.kill()
            if broken == "memory":
                engine._memory_bytes = 1
            else:
                monkeypatch.setattr(sys, "executable", "/no/such/python")
            with pytest.raises(EngineCrashed):
                await engine.evaluate(loaded.digest, [question(n) for n in range(5)], 1_000)
            with pytest.raises(EngineCrashed):
                await engine.health()
        finally:
            await engine.close()

    asyncio.run(run())


def test_the_size_of_the_parent_does_not_count_against_a_worker() -> None:
    """A process starts with its parent's peak memory in ru_maxrss; a large server must still get workers."""
    ballast = bytearray(200 * 1024**2)
    ballast[:: resource.getpagesize()] = b"x" * len(ballast[:: resource.getpagesize()])

    async def run() -> None:
        engine = EmbeddedEngine(1, worker_memory_bytes=120 * 1024**2)
        try:
            loaded = await engine.load(tree(RULE))
            assert await engine.evaluate(loaded.digest, [question(0)], 20_000) == [Answer()]
            assert len(engine.worker_pids) == 1
        finally:
            await engine.close()

    asyncio.run(run())
    assert len(ballast) > 0


def test_an_answer_that_nobody_waits_for_is_never_given_to_another_question() -> None:
    """A health check that is cut off leaves an answer in the pipe; were it read, all later ones would be shifted."""

    async def run() -> None:
        engine = EmbeddedEngine(1)
        try:
            loaded = await engine.load(tree(RULE))
            [pid] = engine.worker_pids
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(engine.health(), 0.2)
            # The worker may be gone by now, which is the safest end of it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            for _ in range(2):
                refused, allowed = await engine.evaluate(loaded.digest, [question(1), question(0)], 5_000)
                assert [bool(refused.deny), refused.error] == [True, None]
                assert allowed == Answer()
        finally:
            await engine.close()

    asyncio.run(run())
