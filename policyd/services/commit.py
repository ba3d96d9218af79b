"""The one writer of the log: many waiters, one transaction, one fsync.

    serving ──write error──► broken ──reopened and verified──► serving
       │                        │
       └──────── close ─────────┴──────────────► closed

Rules: a waiter is answered only after the transaction that holds its entry is durable; a batch that met an error is
answered with an error, even when it turns out to be stored; nothing is retried on a handle that failed; while the log
is broken every submission fails at once; a refused entry does not refuse the rest of its batch.
Batches form by themselves: what arrives while the writer is busy is the next batch, up to ``batch_max_entries``. A
whole batch crosses to the writer thread at once, and back at once, because two threads that pass single rows fight
for the interpreter lock.
It refuses: to drop, to delay without a bound, to serve a log that it could not verify.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Protocol
from uuid import uuid4

from sqlalchemy import Connection, Engine

from audit import store
from audit.errors import AuditFailure, EntriesRefused, LogCorrupt, LogUnavailable
from audit.record import Blob, Entry
from audit.store import Durability, Position, Tail
from policyd.errors import AuditError, Overloaded, PolicydError
from policyd.services.data_directory import DataDirectory
from policyd.services.idempotency import Claim, KeyRows
from policyd.telemetry import Telemetry

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CommitLimits:
    """Bounds of the writer. Times in the unit that the name ends with.

    ``collect_us`` is how long an idle writer waits for company before it starts; 0 takes what one turn of the event
    loop brings, which is best when the disk is slower than the callers.
    """

    batch_max_entries: int = 512
    collect_us: int = 0
    queue_max_entries: int = 4_096
    retry_first_ms: int = 100
    retry_max_ms: int = 5_000
    keys_max: int = 1_000_000


@dataclass(slots=True)
class _Waiter:
    entry: Entry
    blobs: tuple[Blob, ...]
    claim: Claim | None
    answer: asyncio.Future[Position]


Outcome = Position | PolicydError


class Committer:
    """Appends entries durably, for one event loop. Made by ``open``; owns a thread until ``close``."""

    def __init__(self, writer: _Writer, limits: CommitLimits, telemetry: Telemetry) -> None:
        self._writer = writer
        self._limits = limits
        self._telemetry = telemetry
        self._handed_over_at = 0.0
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
        writer = _Writer(directory, durability, limits, origin or f"policyd/{uuid4()}")
        committer = cls(writer, limits, telemetry or Telemetry(metrics=False))
        opened = committer._loop.create_future()
        writer.start(committer, opened)
        try:
            await opened
        except AuditError:
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
    def entries_total(self) -> int:
        """Entries in the log, earlier runs included, as the writer last saw it."""
        return self._writer.entries_total

    async def submit(self, entry: Entry, blobs: Iterable[Blob] = (), claim: Claim | None = None) -> Position:
        """Append an entry, and the blobs that the log does not hold yet; answers when both are durable.

        With a ``claim`` its row is written in the same transaction; when the key is taken, ``KeyInProgress`` is raised
        and nothing is recorded.
        Raises ``Overloaded`` when the queue is full, and ``AuditError`` when the entry was not recorded, or when that
        cannot be said. A caller that is cancelled may leave its entry in the log.
        """
        return await self.enqueue(entry, blobs, claim)

    def enqueue(self, entry: Entry, blobs: Iterable[Blob] = (), claim: Claim | None = None) -> asyncio.Future[Position]:
        """As ``submit``, for who cannot wait: what it would wait for."""
        if self._closed:
            raise AuditError("the log is closed")
        if self._fault is not None:
            raise AuditError(self._fault)
        if self.queued_entries >= self._limits.queue_max_entries:
            raise Overloaded(f"{self.queued_entries} entries wait to be written")
        if entry.id in self._ids:
            raise AuditError(f"an entry with the id {entry.id} is being written already")
        waiter = _Waiter(entry, tuple(blobs), claim, self._loop.create_future())
        self._waiting.append(waiter)
        self._ids.add(entry.id)
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
        self._handed_over_at = time.monotonic()
        self._writer.take([(waiter.entry, waiter.blobs, waiter.claim) for waiter in self._in_flight])

    def answered(self, outcomes: Sequence[Outcome], fault: str | None) -> None:
        """The writer's word on the batch in flight; with a fault, whatever waits fails too. Runs on the loop."""
        done, self._in_flight = self._in_flight, []
        self._telemetry.committed(len(done), time.monotonic() - self._handed_over_at)
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
        self._ids.discard(waiter.entry.id)
        if waiter.answer.done():
            return
        if isinstance(outcome, Position):
            waiter.answer.set_result(outcome)
        else:
            waiter.answer.set_exception(outcome)


class _Listener(Protocol):
    def answered(self, outcomes: Sequence[Outcome], fault: str | None) -> None: ...

    def recovered(self) -> None: ...


Batch = list[tuple[Entry, tuple[Blob, ...], Claim | None]]


class _Writer:
    """The thread that owns the database connection. One batch is in its hands at a time."""

    def __init__(self, directory: DataDirectory, durability: Durability, limits: CommitLimits, origin: str) -> None:
        self.origin = origin
        self._directory = directory
        self._durability = durability
        self._limits = limits
        self._batches: SimpleQueue[Batch | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None
        self._engine: Engine | None = None
        self._connection: Connection | None = None
        self._tail: Tail | None = None
        self._keys: KeyRows | None = None
        self._file: tuple[int, int] | None = None
        self._answered_entries = 0
        self.entries_total = 0

    def start(self, listener: _Listener, opened: asyncio.Future[None]) -> None:
        """Start the thread; ``opened`` is answered from the loop."""
        self._thread = threading.Thread(target=self._run, args=(listener, opened), name="audit-writer", daemon=True)
        self._thread.start()

    def take(self, batch: Batch) -> None:
        """Hand over a batch; its outcomes come to the listener."""
        self._batches.put(batch)

    def stop(self) -> None:
        """End the thread after the batch that it has."""
        self._stopping.set()
        self._batches.put(None)

    def join(self) -> None:
        """Wait for the end of the thread."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, listener: _Listener, opened: asyncio.Future[None]) -> None:
        try:
            self._open()
        except Exception as error:  # noqa: BLE001 - whatever it is, opening failed and the caller must hear it
            self._tell(_fail, opened, _as_audit_error("the log cannot be opened", error))
            return
        self._tell(_succeed, opened)
        while (batch := self._batches.get()) is not None:
            try:
                outcomes = self._write(batch)
            except Exception as error:  # noqa: BLE001 - any failure may have left the handle unsound: fail closed
                fault = _as_audit_error("the log cannot be written", error)
                _log.error("audit log broken: %s", fault.detail)
                self._shut()
                self._tell(listener.answered, [AuditError(fault.detail) for _ in batch], fault.detail)
                self._recover(listener, batch)
            else:
                self._tell(listener.answered, outcomes, None)
        self._shut()

    def _open(self) -> None:
        """Open the log and check that nothing which was answered is missing; only the first time may it be created."""
        path = self._directory.log_path
        try:
            self._engine = store.open_sqlite(path, self._durability, origin=None if self._file else self.origin)
            self._connection = self._engine.connect()
            with self._connection.begin():
                self.origin = store.origin(self._connection)
                self._tail = Tail.read(self._connection)
                self._keys = KeyRows(self._connection, self._limits.keys_max)
            self.entries_total = self._tail.next_index
            if self._tail.next_index < self._answered_entries:
                raise LogCorrupt("answered as recorded, and now missing", index=self._tail.next_index)
            self._file = _identity(path)
        except BaseException:
            self._shut()
            raise

    def _shut(self) -> None:
        connection, engine = self._connection, self._engine
        self._connection = self._engine = self._tail = self._keys = None
        # Closing a handle that failed may fail again; it is not used any more, so that changes nothing.
        with contextlib.suppress(Exception):
            if connection is not None:
                connection.close()
        with contextlib.suppress(Exception):
            if engine is not None:
                engine.dispose()

    def _write(self, batch: Batch) -> list[Outcome]:
        """Append the batch in one transaction; refused entries are left out and the others go in."""
        assert self._connection is not None
        refused: dict[str, PolicydError] = {}
        while True:
            try:
                with self._connection.begin():
                    positions = self._append(self._connection, batch, refused)
            except EntriesRefused as error:
                self._forget(self._connection)
                refused.update((name, AuditError(f"entry {name}: {why}")) for name, why in error.reasons.items())
                continue
            # A log that was removed or replaced under us still takes writes, into a file that nobody will ever find.
            if _identity(self._directory.log_path) != self._file:
                raise LogUnavailable("the log was moved or replaced while it was being written")
            self._answered_entries = self._tail.next_index if self._tail else 0
            self.entries_total = self._answered_entries
            return [positions.get(entry.id) or refused[entry.id] for entry, _, _ in batch]

    def _append(self, connection: Connection, batch: Batch, refused: dict[str, PolicydError]) -> dict[str, Position]:
        """Idempotency, then the entries: the position of each that went in; ``refused`` gets those without a claim."""
        if self._tail is None:
            self._tail = Tail.read(connection)
        assert self._keys is not None
        claims = {entry.id: claim for entry, _, claim in batch if claim is not None and entry.id not in refused}
        if claims:
            refused.update(self._keys.refused(connection, claims))
        taken = [(entry, blobs) for entry, blobs, _ in batch if entry.id not in refused]
        blobs = {blob.digest: blob for _, several in taken for blob in several}
        positions = store.append(connection, [entry for entry, _ in taken], blobs.values(), tail=self._tail)
        kept = {name: claim for name, claim in claims.items() if name not in refused}
        if kept:
            self._keys.keep(connection, kept)
        return dict(zip((entry.id for entry, _ in taken), positions, strict=True))

    def _forget(self, connection: Connection) -> None:
        """After a rollback, what was remembered of it did not happen."""
        self._tail = None
        assert self._keys is not None
        with connection.begin():
            self._keys.recount(connection)

    def _recover(self, listener: _Listener, batch: Batch) -> None:
        """Reopen until the log verifies or the committer closes; waits longer each time."""
        pause_ms = self._limits.retry_first_ms
        while not self._stopping.wait(pause_ms / 1_000):
            try:
                self._open()
                assert self._connection is not None
                with self._connection.begin():
                    stored = store.recorded(self._connection, [entry.id for entry, _, _ in batch])
            except Exception as error:  # noqa: BLE001 - any failure means not yet
                self._shut()
                pause_ms = min(pause_ms * 2, self._limits.retry_max_ms)
                _log.warning("audit log still broken: %s", _as_audit_error("reopening failed", error).detail)
                continue
            _log.warning(
                "audit log recovered; of %d entries answered with an error, %d are stored", len(batch), len(stored)
            )
            self._tell(listener.recovered)
            return

    def _tell(self, callback: object, *arguments: object) -> None:
        assert callable(callback)
        # A loop that is gone has no waiters left; what was durable stays durable.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)


def _as_audit_error(what: str, error: Exception) -> AuditError:
    if isinstance(error, AuditFailure):
        return AuditError(f"{what}: {error}")
    cause = getattr(error, "orig", None) or error
    return AuditError(f"{what}: {cause}")


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _succeed(opened: asyncio.Future[None]) -> None:
    if not opened.done():
        opened.set_result(None)


def _fail(opened: asyncio.Future[None], error: AuditError) -> None:
    if not opened.done():
        opened.set_exception(error)
