"""The thread that owns the connection to the log: it takes a batch, and answers when the batch is durable.

    serving ──write error──► broken ──reopened and verified──► serving
       │                        │
       └──────── close ─────────┴──────────────► closed

Rules: a batch that met an error is answered with an error, even when it turns out to be stored; nothing is retried on a
handle that failed. A whole batch crosses to the thread at once, and back at once, because two threads that pass single
rows fight for the interpreter lock.
It refuses: to serve a log that it could not verify.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final, Protocol

from audit.errors import AuditFailure, LogLocked, LogRolledBack
from audit.personal import Vault
from audit.store import Durability
from audit.stores import OpenLog
from policyd.errors import AuditError, AuditLocked, PolicydError
from policyd.services.checkpoints import LogFiles, audit_error
from policyd.services.commit import Batch, Commit, Outcome
from policyd.services.data_directory import DataDirectory

STOP_MAX_S: Final = 5.0
"""How long a database that is silent holds the end of a writer."""
QUIET_S: Final = 1.0
"""How often a writer without work looks for holds that are due."""
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
    clock_jump_ms: int = 86_400_000


class Listener(Protocol):
    """Who is told, on the event loop, what became of a batch."""

    def answered(self, outcomes: Sequence[Outcome], fault: str | None) -> None: ...

    def recovered(self) -> None: ...


class Writer:
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
        self._log: OpenLog | None = None
        self._commit: Commit | None = None
        self._vault: Vault | None = None
        self._created = False
        self._answered_entries = 0
        self.entries_total = 0

    def start(self, listener: Listener, opened: asyncio.Future[None]) -> None:
        """Start the thread; ``opened`` is answered from the loop."""
        self._directory.store.give_up_after(None)
        self._thread = threading.Thread(target=self._run, args=(listener, opened), name="audit-writer", daemon=True)
        self._thread.start()

    def take(self, batch: Batch) -> None:
        """Hand over a batch; its outcomes come to the listener."""
        self._batches.put(batch)

    def stop(self) -> None:
        """End the thread after the batch that it has."""
        self._stopping.set()
        self._directory.store.give_up_after(STOP_MAX_S)
        self._batches.put(None)

    def join(self) -> None:
        """Wait for the end of the thread."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, listener: Listener, opened: asyncio.Future[None]) -> None:
        try:
            self._open()
        except Exception as error:  # noqa: BLE001 - whatever it is, opening failed and the caller must hear it
            self._tell(_fail, opened, _as_audit_error("the log cannot be opened", error))
            return
        self._tell(_succeed, opened)
        while (batch := self._next()) is not None:
            try:
                outcomes = self._write(batch)
            except Exception as error:  # noqa: BLE001 - any failure may have left the handle unsound: fail closed
                fault = _as_audit_error("the log cannot be written", error)
                _log.error("audit log broken: %s", fault.detail)
                self._shut()
                self._tell(listener.answered, [AuditError(fault.detail) for _ in batch], fault.detail)
                self._recover(listener, batch, fault.detail)
            else:
                if batch:
                    self._tell(listener.answered, outcomes, None)
        self._end()

    def _next(self) -> Batch | None:
        """The next batch; one without entries for a checkpoint or when it is quiet; None at the end."""
        wait_s = self._commit.checkpoint_wait_s if self._commit is not None else None
        try:
            return self._batches.get(timeout=QUIET_S if wait_s is None else min(wait_s, QUIET_S))
        except Empty:
            return ()

    def _end(self) -> None:
        """Sign what is not signed yet, and close."""
        try:
            if self._commit is not None and self._commit.checkpoint_wait_s is not None:
                self._commit.write((), last=True)
        except Exception as error:  # noqa: BLE001 - every entry is durable, and the next start signs them
            _log.error("%s", _as_audit_error("the log was closed without a checkpoint", error).detail)
        self._shut()

    def _open(self) -> None:
        """Open the log and check that nothing which was answered is missing; only the first time may it be created."""
        limits, files = self._limits, LogFiles.within(self._directory.path)
        try:
            if not self._created and not self._directory.store.exists() and files.checkpoint.exists():
                # Another log in its place would hide that this one is lost.
                raise LogRolledBack(f"it is gone, and {files.checkpoint} was signed over it")
            self._log = self._directory.store.open_writer(self._durability, None if self._created else self.origin)
            self._vault = self._directory.open_vault()
            self._commit = Commit(
                self._log,
                files,
                keys_max=limits.keys_max,
                answered_entries=self._answered_entries,
                vault=self._vault,
                clock_jump_us=limits.clock_jump_ms * 1_000,
            )
            self.origin = self._log.origin
            self.entries_total = self._commit.entries_total
            self._created = True
        except BaseException:
            self._shut()
            raise

    def _shut(self) -> None:
        log, self._log, self._commit = self._log, None, None
        vault, self._vault = self._vault, None
        if log is not None:
            log.close()
        if vault is not None:
            vault.close()

    def _write(self, batch: Batch) -> list[Outcome]:
        assert self._commit is not None
        outcomes = self._commit.write(batch)
        self.entries_total = self._answered_entries = self._commit.entries_total
        return outcomes

    def _recover(self, listener: Listener, batch: Batch, fault: str) -> None:
        """Reopen until the log verifies or the committer closes; waits longer each time."""
        pause_ms = self._limits.retry_first_ms
        while not self._stopping.wait(pause_ms / 1_000):
            self._refuse(listener, fault)
            try:
                self._open()
                assert self._commit is not None
                stored = self._commit.recorded(batch)
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

    def _refuse(self, listener: Listener, fault: str) -> None:
        """A batch that was handed over before the fault was heard of does not wait for the recovery."""
        with contextlib.suppress(Empty):
            batch = self._batches.get_nowait()
            if batch is None:
                self._batches.put(None)
            else:
                self._tell(listener.answered, [AuditError(fault) for _ in batch], fault)

    def _tell(self, callback: object, *arguments: object) -> None:
        assert callable(callback)
        # A loop that is gone has no waiters left; what was durable stays durable.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)


def _as_audit_error(what: str, error: Exception) -> PolicydError:
    if isinstance(error, LogLocked):
        return AuditLocked(f"{what}: {error}")
    if isinstance(error, AuditFailure):
        return audit_error(what, error)
    cause = getattr(error, "orig", None) or error
    return AuditError(f"{what}: {cause}")


def _succeed(opened: asyncio.Future[None]) -> None:
    if not opened.done():
        opened.set_result(None)


def _fail(opened: asyncio.Future[None], error: PolicydError) -> None:
    if not opened.done():
        opened.set_exception(error)
