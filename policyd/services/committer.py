"""Many waiters, one writer: who hands an entry over is answered when its batch is durable.

Rules: a waiter is answered only after the transaction that holds its entry is durable; while the log is broken every
submission fails at once. Batches form by themselves: what arrives while the writer is busy is the next batch, up to
``batch_max_entries``.
It refuses: to drop, and to delay without a bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from audit.record import Blob, Entry
from audit.store import Durability, Position
from policyd.errors import AuditError, Overloaded, PolicydError
from policyd.ledger.store import Operation
from policyd.services.commit import Outcome, Submission
from policyd.services.data_directory import DataDirectory
from policyd.services.forecast import Forecast
from policyd.services.idempotency import Claim
from policyd.services.proposals import Deed
from policyd.services.writer import CommitLimits, Writer
from policyd.telemetry import Telemetry


@dataclass(slots=True)
class _Waiter:
    submission: Submission
    answer: asyncio.Future[Position]


class Committer:
    """Appends entries durably, for one event loop. Made by ``open``; owns a thread until ``close``."""

    def __init__(self, writer: Writer, limits: CommitLimits, telemetry: Telemetry) -> None:
        self._writer = writer
        self._limits = limits
        self._telemetry = telemetry
        self._forecast = Forecast()
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Waiter] = []
        self._in_flight: list[_Waiter] = []
        self._ids: set[str] = set()
        self._scheduled = False
        self._fault: str | None = None
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @classmethod
    async def open(
        cls,
        directory: DataDirectory,
        *,
        durability: Durability = "power_safe",
        limits: CommitLimits | None = None,
        origin: str | None = None,
        telemetry: Telemetry | None = None,
    ) -> Committer:
        """Open or create the log of a locked directory and check it.

        ``origin`` names a log that is created now (a random name when None). Raises ``AuditError`` when the log cannot
        be opened or does not verify.
        """
        if not directory.locked:
            raise AuditError(f"this process does not hold the lock of {directory.path}")
        limits = limits or CommitLimits()
        writer = Writer(directory, durability, limits, origin or f"policyd/{uuid4()}")
        committer = cls(writer, limits, telemetry or Telemetry(metrics=False))
        opened = committer._loop.create_future()
        writer.start(committer, opened)
        try:
            await opened
        except PolicydError:
            await asyncio.to_thread(writer.join)
            raise
        return committer

    @property
    def healthy(self) -> bool:
        """Whether the next submission has a chance: the log is open, verified and writable."""
        return self._fault is None and not self._closed

    @property
    def fault(self) -> str | None:
        """What broke the log, for a person; None while it is healthy."""
        return self._fault

    @property
    def origin(self) -> str:
        """The name of the log, as decisions carry it."""
        return self._writer.origin

    @property
    def queued_entries(self) -> int:
        """Entries that wait for their answer."""
        return len(self._waiting) + len(self._in_flight)

    @property
    def wait_ms(self) -> float:
        """How long an entry that is submitted now is likely to wait."""
        return self._forecast.wait_ms(len(self._waiting) // self._limits.batch_max_entries + 1)

    @property
    def entries_total(self) -> int:
        """Entries in the log, earlier runs included, as the writer last saw it."""
        return self._writer.entries_total

    async def submit(
        self,
        entry: Entry,
        blobs: Iterable[Blob] = (),
        claim: Claim | None = None,
        operation: Operation | None = None,
        deed: Deed | None = None,
    ) -> Position:
        """Append an entry, and the blobs that the log does not hold yet; answers when both are durable.

        With a ``claim`` its row is written in the same transaction; when the key is taken, ``KeyInProgress`` is raised
        and nothing is recorded. An ``operation`` of the ledger or a ``deed`` of two persons is part of that transaction
        too, and the answer is an ``AdmittedPosition``.
        Raises ``Overloaded`` when the queue is full, and ``AuditError`` when the entry was not recorded, or when that
        cannot be said. A caller that is cancelled may leave its entry in the log.
        """
        return await self.enqueue(Submission(entry, tuple(blobs), claim, operation, deed))

    def enqueue(self, submission: Submission) -> asyncio.Future[Position]:
        """As ``submit``, for who cannot wait: what it would wait for."""
        if self._closed:
            raise AuditError("the log is closed")
        if self._fault is not None:
            raise AuditError(self._fault)
        if self.queued_entries >= self._limits.queue_max_entries:
            raise Overloaded(f"{self.queued_entries} entries wait to be written")
        if submission.entry.id in self._ids:
            raise AuditError(f"an entry with the id {submission.entry.id} is being written already")
        waiter = _Waiter(submission, self._loop.create_future())
        self._waiting.append(waiter)
        self._ids.add(submission.entry.id)
        self._idle.clear()
        self._schedule()
        return waiter.answer

    async def close(self) -> None:
        """Write what waits, then close the log. Submissions fail from now on."""
        if not self._closed:
            self._closed = True
            await self._idle.wait()
            self._writer.stop()
        await asyncio.to_thread(self._writer.join)

    def _schedule(self) -> None:
        if self._in_flight or self._scheduled or not self._waiting:
            return
        self._scheduled = True
        if self._limits.collect_us and len(self._waiting) < self._limits.batch_max_entries:
            self._loop.call_later(self._limits.collect_us / 1_000_000, self._hand_over)
        else:
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._scheduled = False
        if not self._waiting:
            return
        limit = self._limits.batch_max_entries
        self._in_flight, self._waiting = self._waiting[:limit], self._waiting[limit:]
        self._forecast.begun()
        self._writer.take([waiter.submission for waiter in self._in_flight])

    def answered(self, outcomes: Sequence[Outcome], fault: str | None) -> None:
        """The writer's word on the batch in flight; with a fault, whatever waits fails too. Runs on the loop.

        Without outcomes it is about a checkpoint, and the batch in flight will hear by itself.
        """
        done: list[_Waiter] = []
        if outcomes:
            done, self._in_flight = self._in_flight, []
            self._telemetry.committed(len(done), self._forecast.ended())
        for waiter, outcome in zip(done, outcomes, strict=True):
            self._answer(waiter, outcome)
        if fault is not None:
            self._fault = fault
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                self._answer(waiter, AuditError(fault))
        # The waiters released just now run before the next batch leaves, so that their next entries are in it.
        self._schedule()
        if not self.queued_entries:
            self._idle.set()

    def recovered(self) -> None:
        """The log was reopened and verified. Runs on the loop."""
        self._fault = None

    def _answer(self, waiter: _Waiter, outcome: Outcome) -> None:
        self._ids.discard(waiter.submission.entry.id)
        if waiter.answer.done():
            return
        if isinstance(outcome, Position):
            waiter.answer.set_result(outcome)
        else:
            waiter.answer.set_exception(outcome)
