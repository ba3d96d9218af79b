"""The embedded engine: regopy in worker processes. The default, because it needs nothing else.

Rules: no evaluation runs in this process. Each question has the deadline; when it passes, the worker is killed, that
question is an error, and the others go on in another worker. A worker that dies costs a second try for the question it
ran; a second death makes it an error. A package that failed this way twice in a batch is not tried again in that
batch. Every digest keeps its own bundle on disk (a private directory), so a new worker is ready at once.
It refuses to guess: no answer is an error, and never an empty answer.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

from policyd.core.verdict import Answer, PolicySet, Question
from policyd.engines.answers import answer_from, question_fault
from policyd.engines.children import START_TIMEOUT_S, Worker, WorkerDied
from policyd.engines.compilation import compile_tree
from policyd.engines.compiler import entrypoint
from policyd.engines.embedded_tests import run_tests
from policyd.errors import EngineError, EngineTimeout, EngineUnavailable
from policyd.ports import EngineCounts, PolicyTree, TestResult

_log: Final = logging.getLogger(__name__)

DEFAULT_WORKERS: Final = 2
DEFAULT_WORKER_MEMORY_BYTES: Final = 512 * 1024**2
CHUNK_QUESTIONS: Final = 256
"""Most questions handed to a worker at once. A usual batch is one chunk for each worker: a round trip between two costs
more than a worker that ends early, and dealing the questions out in turn gives each the same mix."""

MAX_STRIKES: Final = 2
"""Deadlines or crashes after which a package is not tried again within one batch."""

RECYCLE_AFTER_QUESTIONS: Final = 50_000
"""A worker is replaced after this many questions, so that a leak in the engine cannot grow without end."""

_NOTHING: Final = {"do": "unload", "digest": ""}
"""A request that changes nothing: it asks whether the worker is there."""


@dataclass(slots=True)
class _Batch:
    """The state of one ``evaluate``: what is asked, what is answered, and which packages have failed how often."""

    digest: str
    questions: Sequence[Question]
    deadline_s: float
    answers: list[Answer | None]
    waiting: deque[int]
    chunk_size: int = CHUNK_QUESTIONS
    strikes: Counter[str] = field(default_factory=Counter)
    crashed_once: set[int] = field(default_factory=set)


class EmbeddedEngine:
    """``policyd.ports.Engine`` on regopy. Belongs to one event loop."""

    def __init__(
        self, workers: int = DEFAULT_WORKERS, *, worker_memory_bytes: int = DEFAULT_WORKER_MEMORY_BYTES
    ) -> None:
        self._limit = max(1, workers)
        self._memory_bytes = worker_memory_bytes
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._asked: Counter[int] = Counter()
        self._free = asyncio.Semaphore(self._limit)
        self._sets: dict[str, PolicySet] = {}
        self._directory = tempfile.TemporaryDirectory(prefix="policyd-engine-")
        self._closed = False
        self.counts = EngineCounts()
        self._name = f"regopy {version('regopy')}"

    @property
    def name(self) -> str:
        """``regopy`` and its version."""
        return self._name

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The process ids of the workers that run now."""
        return tuple(sorted(worker.pid for worker in self._all if worker.alive))

    async def load(self, tree: PolicyTree) -> PolicySet:
        """Compile a tree and keep it. Raises ``PolicyInvalid`` or ``EngineError``; nothing else is disturbed."""
        self._check_open()
        known = self._sets.get(tree.digest)
        if known is not None:
            return known
        compiled = await compile_tree(tree, self.name)
        self._bundle(tree.digest).write_bytes(compiled.bundle)
        self._sets[tree.digest] = compiled.policies
        await self._warm(tree.digest)
        return compiled.policies

    async def _warm(self, digest: str) -> None:
        """Start the workers that do not run yet, so that the first question finds them ready.

        A worker that does not start is no fault here: the first question starts another, or reports why it cannot.
        """

        async def start() -> None:
            worker = await Worker.start(self._memory_bytes)
            self._all.add(worker)
            try:
                await self._ready(worker, digest)
            finally:
                await self._give_back(worker)

        missing = self._limit - len(self._all)
        outcomes = await asyncio.gather(*(start() for _ in range(missing)), return_exceptions=True)
        for fault in outcomes:
            if isinstance(fault, EngineError):
                _log.warning("a worker did not start: %s", fault)
            elif fault is not None:
                raise fault

    async def evaluate(self, digest: str, questions: Sequence[Question], deadline_ms: int) -> list[Answer]:
        """Answer every question, in order. ``deadline_ms`` is for each question. Raises ``EngineUnavailable`` for a
        digest that is not loaded, ``EngineCrashed`` when no worker starts."""
        self._check_open()
        policies = self._sets.get(digest)
        if policies is None:
            raise EngineUnavailable(f"the policies {digest} are not loaded")
        batch = _Batch(digest, questions, deadline_ms / 1000, [None] * len(questions), deque())
        for index, question in enumerate(questions):
            package = policies.packages.get(question.package)
            fault = "there is no such package" if package is None else question_fault(question.input_json)
            if fault:
                batch.answers[index] = Answer(error=f"{question.package}: {fault}")
            else:
                batch.waiting.append(index)
        waiting = list(batch.waiting)
        batch.waiting = deque(index for turn in range(self._limit) for index in waiting[turn :: self._limit])
        batch.chunk_size = max(1, min(CHUNK_QUESTIONS, -(-len(waiting) // self._limit)))
        runners = min(self._limit, -(-len(batch.waiting) // batch.chunk_size))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(runners):
                    group.create_task(self._run(batch, policies))
        except ExceptionGroup as faults:
            raise faults.exceptions[0] from None
        return [answer or Answer(error="the engine gave no answer") for answer in batch.answers]

    async def _run(self, batch: _Batch, policies: PolicySet) -> None:
        """Take chunks of the batch until none is left."""
        while batch.waiting:
            async with self._free:
                worker = await self._take(batch.digest)
                try:
                    while batch.waiting and worker.alive:
                        await self._chunk(worker, batch, policies)
                finally:
                    await self._give_back(worker)

    async def _chunk(self, worker: Worker, batch: _Batch, policies: PolicySet) -> None:
        chunk = _next_chunk(batch)
        if not chunk:
            return
        self._asked[worker.pid] += len(chunk)
        position = 0
        finished = False
        try:
            worker.send(
                {
                    "do": "ask",
                    "digest": batch.digest,
                    "questions": [_request(batch.questions[index], policies) for index in chunk],
                },
                answers=len(chunk),
            )
            for position, index in enumerate(chunk):  # noqa: B007 - the position is needed when a question fails
                raw = await worker.answer(batch.deadline_s)
                batch.answers[index] = _judge(batch.questions[index].package, raw, policies)
            finished = True
        except EngineTimeout as fault:
            self.counts.timeouts += 1
            self.counts.killed += 1
            _strike(batch, chunk[position], str(fault))
        except WorkerDied:
            self.counts.crashed += 1
            _crash(batch, [index for index in chunk[position:] if batch.answers[index] is None])
        finally:
            if not finished:
                batch.waiting.extendleft(index for index in reversed(chunk) if batch.answers[index] is None)
                await worker.kill()

    async def _take(self, digest: str) -> Worker:
        """A living worker that has the digest loaded. The caller holds a place of the semaphore."""
        while self._idle:
            worker = self._idle.pop()
            if not worker.alive:
                self.counts.crashed += 1
                self._all.discard(worker)
                continue
            try:
                # A word first: a worker that died while idle must not cost a question its one second try.
                await worker.ask(_NOTHING, START_TIMEOUT_S)
                return await self._ready(worker, digest)
            except EngineError:
                await worker.kill()
                await self._give_back(worker)
            except BaseException:
                await self._give_back(worker)
                raise
        worker = await Worker.start(self._memory_bytes)
        self._all.add(worker)
        try:
            return await self._ready(worker, digest)
        except BaseException:
            await worker.kill()
            await self._give_back(worker)
            raise

    async def _ready(self, worker: Worker, digest: str) -> Worker:
        try:
            for gone in worker.loaded - set(self._sets):
                await worker.ask({"do": "unload", "digest": gone}, START_TIMEOUT_S)
                worker.loaded.discard(gone)
            if digest not in worker.loaded:
                path = str(self._bundle(digest))
                await worker.ask({"do": "load", "digest": digest, "bundle": path}, START_TIMEOUT_S)
                worker.loaded.add(digest)
        except EngineError:
            await worker.kill()
            raise
        return worker

    async def _give_back(self, worker: Worker) -> None:
        # An answer that was waited for no longer would be taken for the answer to the next question.
        if worker.clean and not self._closed and self._asked[worker.pid] < RECYCLE_AFTER_QUESTIONS:
            self._idle.append(worker)
            return
        self.counts.recycled += worker.clean and not self._closed
        await worker.kill()
        self._all.discard(worker)
        self._asked.pop(worker.pid, None)

    async def unload(self, digest: str) -> None:
        """Forget a digest. Workers drop it before their next batch."""
        if self._sets.pop(digest, None) is not None:
            self._bundle(digest).unlink(missing_ok=True)

    async def test(self, tree: PolicyTree) -> list[TestResult]:
        """Run the ``test_*`` rules of the tree's test files."""
        return await run_tests(tree)

    async def health(self) -> None:
        """Return when a worker answers or can be started. Raises ``EngineError`` otherwise."""
        self._check_open()
        async with self._free:
            worker = self._idle.pop() if self._idle else await Worker.start(self._memory_bytes)
            self._all.add(worker)
            try:
                await worker.ask(_NOTHING, START_TIMEOUT_S)
            except EngineError:
                await worker.kill()
                raise
            finally:
                await self._give_back(worker)

    async def close(self) -> None:
        """Kill every worker and remove the bundles. Safe to call twice."""
        self._closed = True
        for worker in list(self._all):
            await worker.kill()
        self._all.clear()
        self._idle.clear()
        self._sets.clear()
        self._directory.cleanup()

    def _bundle(self, digest: str) -> Path:
        return Path(self._directory.name) / f"{digest.replace(':', '-')}.bundle"

    def _check_open(self) -> None:
        if self._closed:
            raise EngineUnavailable("the engine is closed")


def _next_chunk(batch: _Batch) -> list[int]:
    """Take questions off the batch; those of a package that failed too often are answered here."""
    chunk: list[int] = []
    # A question that crashed once is tried alone, so that its second crash cannot be blamed on another.
    while batch.waiting and len(chunk) < batch.chunk_size:
        index = batch.waiting[0]
        if chunk and index in batch.crashed_once:
            break
        batch.waiting.popleft()
        package = batch.questions[index].package
        if batch.strikes[package] >= MAX_STRIKES:
            batch.answers[index] = Answer(error=f"{package}: not tried, it failed {MAX_STRIKES} times in this batch")
            continue
        chunk.append(index)
        if index in batch.crashed_once:
            break
    return chunk


def _strike(batch: _Batch, index: int, reason: str) -> None:
    package = batch.questions[index].package
    batch.strikes[package] += 1
    batch.answers[index] = Answer(error=f"{package}: {reason}")


def _crash(batch: _Batch, suspects: Sequence[int]) -> None:
    """Answers leave a worker in bundles, so any open question of its chunk may have killed it: each is tried alone."""
    if len(suspects) == 1 and suspects[0] in batch.crashed_once:
        _strike(batch, suspects[0], "the engine died during the evaluation, twice")
    else:
        batch.crashed_once.update(suspects)


def _request(question: Question, policies: PolicySet) -> tuple[dict[str, str], str]:
    exports = sorted(policies.packages[question.package].exports)
    return {export: entrypoint(question.package, export) for export in exports}, question.input_json.decode()


def _judge(package: str, raw: dict[str, object], policies: PolicySet) -> Answer:
    exports = raw.get("exports")
    if not isinstance(exports, dict):
        return Answer(error=f"{package}: {raw.get('error', 'the worker gave no exports')}")
    answer = answer_from(exports, policies.packages[package])
    return Answer(error=f"{package}: {answer.error}") if answer.error else answer
