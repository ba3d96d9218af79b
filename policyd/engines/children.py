"""Worker processes of the embedded engine: start, talk, kill.

Rules: a child gets an empty environment, its memory is limited, its answers are read line by line, and it is killed
with SIGKILL, because nothing else stops an engine in the middle of an evaluation. A child that dies says so as
``WorkerDied``; nothing here judges what that means.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from policyd.errors import EngineCrashed, EngineTimeout

WORKER_SCRIPT: Final = Path(__file__).with_name("worker.py")
LINE_LIMIT_BYTES: Final = 64 * 1024 * 1024
READ_BYTES: Final = 1024 * 1024
START_TIMEOUT_S: Final = 20.0
_REAP_TIMEOUT_S: Final = 5.0


class WorkerDied(EngineCrashed):
    """The child ended, or its answer was no answer."""


class Worker:
    """One child process. Not for concurrent use: whoever holds it has it alone."""

    def __init__(self, process: asyncio.subprocess.Process, version: str) -> None:
        self._process = process
        self.version = version
        self.loaded: set[str] = set()
        self._owed_answers = 0
        self._lines: deque[bytes] = deque()
        self._partial = b""

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """False once the child's end has been seen."""
        return self._process.returncode is None

    @property
    def clean(self) -> bool:
        """Whether it may be asked something new: alive, and nothing that was asked before is still to come."""
        return self.alive and self._owed_answers == 0

    @classmethod
    async def start(cls, memory_bytes: int) -> Worker:
        """Start a child and wait until its engine is loaded. Raises ``EngineCrashed`` or ``EngineTimeout``."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(WORKER_SCRIPT),
                str(memory_bytes),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={},
                start_new_session=True,
            )
        except OSError as fault:
            raise EngineCrashed(f"no worker process can be started: {fault}") from fault
        worker = cls(process, "")
        worker._owed_answers = 1
        try:
            worker.version = str((await worker.answer(START_TIMEOUT_S))["ready"])
        except BaseException:
            await worker.kill()
            raise
        return worker

    def send(self, request: Mapping[str, Any], answers: int = 1) -> None:
        """Write one request, to which so many answers are owed, without waiting. Raises ``WorkerDied``."""
        pipe = self._process.stdin
        if pipe is None or pipe.is_closing():
            raise WorkerDied("the worker process is gone")
        self._owed_answers += answers
        pipe.write(json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")

    async def answer(self, timeout_s: float) -> dict[str, Any]:
        """The next answer. Raises ``EngineTimeout`` when it does not come in time, ``WorkerDied`` when it cannot."""
        if not self._lines:
            try:
                async with asyncio.timeout(timeout_s):
                    while not self._lines:
                        await self._read()
            except TimeoutError:
                raise EngineTimeout(f"no answer within {int(timeout_s * 1000)} ms") from None
        line = self._lines.popleft()
        self._owed_answers -= 1
        try:
            answer = orjson.loads(line)
        except ValueError as fault:
            raise WorkerDied(f"the worker's answer cannot be read: {fault}") from fault
        if not isinstance(answer, dict):
            raise WorkerDied("the worker answered with something that is no object")
        return answer

    async def _read(self) -> None:
        """Take what has come. Answers come in bundles: one wait for many of them. Raises ``WorkerDied`` at the end."""
        pipe = self._process.stdout
        if pipe is None:
            raise WorkerDied("the worker process has no output")
        try:
            received = await pipe.read(READ_BYTES)
        except ConnectionError as fault:
            raise WorkerDied(f"the worker's answer cannot be read: {fault}") from fault
        if not received:
            raise WorkerDied("the worker process died")
        *complete, self._partial = (self._partial + received).split(b"\n")
        self._lines.extend(complete)
        if len(self._partial) > LINE_LIMIT_BYTES:
            raise WorkerDied(f"the worker's answer is longer than {LINE_LIMIT_BYTES} bytes")

    async def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """One request, one answer."""
        self.send(request)
        return await self.answer(timeout_s)

    async def kill(self) -> None:
        """End the child now and wait for its end. Safe to call twice."""
        if self._process.returncode is None:
            # Not Process.kill(): it reaps a child that is dead already, and the event loop then misses its end.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(asyncio.shield(self._process.wait()), _REAP_TIMEOUT_S)
        except TimeoutError as fault:
            raise EngineCrashed(f"the worker process {self.pid} does not end") from fault
