"""The directory that holds the log: one process writes it, others find that process.

Files: ``audit.sqlite`` (the log) or ``origin`` (the name of the log in a database), ``personal.key`` and
``personal.sqlite`` (the keys of personal fields, when they are not elsewhere), ``lock`` (held by the writer, its
process number inside), ``server.json`` (where the writer answers, when it is a server).

Rules: the lock belongs to the kernel, so it ends with the process however that ends; forked children do not keep it;
an address whose writer is gone counts as none; only the owner of the directory can read it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final
from weakref import WeakSet

import orjson

from audit.errors import KeyInvalid
from audit.personal import KEY_FILE, Readable, Vault, open_wrapping_key
from audit.stores import LogStore, SqliteStore
from policyd.errors import AuditError, AuditLocked

LOG_FILE: Final = "audit.sqlite"
LOCK_TRIES: Final = 5
LOCK_PAUSE_S: Final = 0.02
SERVER_FILE_MAX_BYTES: Final = 4_096
_log: Final = logging.getLogger(__name__)


class DataDirectory:
    """A data directory. ``acquire`` or ``with`` makes this process its writer, and the directory when it is missing."""

    def __init__(self, path: Path, store: LogStore | None = None, wrapping_key: Path | None = None) -> None:
        self.path = path
        self.wrapping_key = wrapping_key or path / KEY_FILE
        self.store: LogStore = store or SqliteStore(self.log_path)
        self._lock: int | None = None
        _made.add(self)

    @property
    def log_path(self) -> Path:
        """The SQLite file of the log, when it is in a file."""
        return self.path / LOG_FILE

    def open_vault(self) -> Vault:
        """The keys of personal fields, for the writer. Raises ``KeyInvalid`` or ``LogUnavailable``."""
        engine = self.store.open_keys(write=True)
        assert engine is not None
        try:
            return Vault(engine, self.wrapping_key)
        except BaseException:
            engine.dispose()
            raise

    def open_readable(self) -> Readable:
        """The keys of personal fields, for whoever reads; none when they are not here, and the fields unreadable."""
        try:
            key = open_wrapping_key(self.wrapping_key, create=False)
        except KeyInvalid as error:
            _log.info("personal fields will not be readable: %s", error)
            return Readable(None, None)
        return Readable(self.store.open_keys(write=False), key)

    @property
    def locked(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock is not None

    def acquire(self) -> None:
        """Become the only writer. Raises ``AuditLocked`` naming the process that is."""
        if self._lock is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise AuditError(
                f"the data directory {self.path} cannot be made: {error.strerror}",
                remedy="name a directory that can be written with --data-dir; nothing was allowed",
            ) from error
        try:
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise AuditError(f"the data directory {self.path} cannot be written: {error.strerror}") from error
        if not _locked_within_patience(handle):
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise AuditLocked(f"process {holder} writes {self.path}")
        self._lock = handle
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            with suppress(FileNotFoundError):
                (self.path / "server.json").unlink()
        except OSError as error:
            self.release()
            raise AuditError(f"the data directory {self.path} cannot be written: {error.strerror}") from error

    def release(self) -> None:
        """Stop being the writer; the announced address goes first."""
        if self._lock is None:
            return
        with suppress(OSError):
            (self.path / "server.json").unlink()
        os.close(self._lock)
        self._lock = None

    def announce(self, address: str) -> None:
        """Write where this writer answers, for commands beside it. Needs the lock."""
        if self._lock is None:
            raise AuditError("only the writer of a data directory announces an address")
        draft = self.path / f"server.json.{os.getpid()}"
        try:
            draft.write_bytes(orjson.dumps({"address": address, "pid": os.getpid()}))
            draft.replace(self.path / "server.json")
        except OSError as error:
            raise AuditError(f"the address cannot be written to {self.path}: {error.strerror}") from error

    def announced(self) -> str | None:
        """Where the server on this directory answers; None when no process holds the lock or none has announced."""
        if not self._held():
            return None
        try:
            with (self.path / "server.json").open("rb") as file:
                found = orjson.loads(file.read(SERVER_FILE_MAX_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise AuditError(f"{self.path / 'server.json'} cannot be read: {error}") from error
        address = found.get("address") if isinstance(found, dict) else None
        return address if isinstance(address, str) else None

    def _held(self) -> bool:
        try:
            handle = os.open(self.path / "lock", os.O_RDONLY)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise AuditError(f"the data directory {self.path} cannot be read: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def forget(self) -> None:
        """In a forked child: the lock stays with the parent, and ends with it although the child lives on."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> DataDirectory:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


_made: Final[WeakSet[DataDirectory]] = WeakSet()


def _forget_in_child() -> None:
    for directory in list(_made):
        directory.forget()


os.register_at_fork(after_in_child=_forget_in_child)


def _locked_within_patience(handle: int) -> bool:
    """Take the lock; a command that only asks whether it is held has it for a moment, so one refusal is not the end."""
    for attempt in range(LOCK_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt < LOCK_TRIES - 1:
                time.sleep(LOCK_PAUSE_S)
        else:
            return True
    return False
