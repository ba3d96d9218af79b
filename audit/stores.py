"""Where a log lives: one port, and an adapter for a file and for a PostgreSQL server.

    SqliteStore       one log in a file, written by whoever holds the lock of its directory
    PostgresqlStore   in ``audit.postgresql_store``: a log for each writer in one database, each behind its own lock

Rules: opening for writing creates, upgrades and verifies; an open log belongs to one thread; closing one never fails.
It refuses: two writers of one log.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from audit import store
from audit.errors import LogUnavailable, SearchTooSlow
from audit.keys_store import open_keys_sqlite
from audit.personal import STORE_FILE
from audit.store import Durability

_STEPS_BETWEEN_CLOCKS: Final = 10_000


@dataclass(frozen=True, slots=True)
class OpenLog:
    """A log that is open for writing: its connection, and its number and name in the database."""

    connection: Connection
    number: int
    origin: str
    check_place: Callable[[], None]
    """Raises ``LogUnavailable`` when what is written now is not what anybody will open later."""

    def close(self) -> None:
        """Give everything back. A handle that failed may fail again; it is not used any more."""
        with suppress(Exception):
            self.connection.close()
        with suppress(Exception):
            self.connection.engine.dispose()


class LogStore(Protocol):
    """A place for logs."""

    @property
    def name(self) -> str:
        """The place, for a person; without secrets."""

    def exists(self) -> bool:
        """Whether there is a log to be read, as far as can be told without opening it."""

    def open_writer(self, durability: Durability, origin: str | None) -> OpenLog:
        """The log of this writer, verified; made under the name ``origin`` when there is none and a name is given.

        Raises ``LogUnavailable``, ``LogLocked``, ``SchemaUnknown`` or ``LogCorrupt``.
        """

    def open_keys(self, *, write: bool) -> Engine | None:
        """An engine of the keys of personal fields; None when there are none to be read. Raises ``LogUnavailable``."""

    def open_reader(self) -> Engine:
        """An engine that can only read, from several threads. Raises ``LogUnavailable`` or ``SchemaUnknown``."""

    def deadline(self, connection: Connection, deadline_ms: int) -> AbstractContextManager[None]:
        """Within it, a statement that takes longer is stopped and is ``SearchTooSlow``."""

    def give_up_after(self, seconds: float | None) -> None:
        """From so long on, nothing waits for a database that does not answer; None: as long as its deadline."""


class SqliteStore:
    """One log in a file."""

    def __init__(self, path: Path, keys_path: Path | None = None) -> None:
        self.path = path
        self.keys_path = keys_path or path.with_name(STORE_FILE)

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def exists(self) -> bool:
        """Whether the file is there, with something in it."""
        try:
            return self.path.stat().st_size > 0
        except FileNotFoundError:
            return False

    def open_writer(self, durability: Durability, origin: str | None) -> OpenLog:
        """See ``LogStore``. The lock is that of the directory, which the caller holds."""
        engine = store.open_sqlite(self.path, durability, origin=origin)
        connection = engine.connect()
        with connection.begin():
            name = store.origin(connection)
        opened = self._identity()

        def check_place() -> None:
            # A file that was removed or replaced under us still takes writes, which nobody will ever find.
            if self._identity() != opened:
                raise LogUnavailable("the log was moved or replaced while it was being written")

        return OpenLog(connection, 0, name, check_place)

    def open_keys(self, *, write: bool) -> Engine | None:
        """See ``LogStore``."""
        if not write and not self.keys_path.exists():
            return None
        return open_keys_sqlite(self.keys_path, write=write)

    def open_reader(self) -> Engine:
        """See ``LogStore``."""
        return store.open_sqlite_reader(self.path)

    @contextmanager
    def deadline(self, connection: Connection, deadline_ms: int) -> Iterator[None]:
        """See ``LogStore``: nothing else ends a statement that is running."""
        handle = connection.connection.driver_connection
        assert isinstance(handle, sqlite3.Connection)
        ends = time.monotonic() + deadline_ms / 1_000
        handle.set_progress_handler(lambda: int(time.monotonic() > ends), _STEPS_BETWEEN_CLOCKS)
        try:
            yield
        except DBAPIError as error:
            if isinstance(error.orig, sqlite3.OperationalError) and str(error.orig) == "interrupted":
                raise SearchTooSlow(f"the search took longer than {deadline_ms} ms") from error
            raise
        finally:
            handle.set_progress_handler(None, 0)

    def give_up_after(self, seconds: float | None) -> None:
        """See ``LogStore``: a file answers, or fails."""

    def _identity(self) -> tuple[int, int]:
        found = self.path.stat()
        return found.st_dev, found.st_ino


def is_damage(error: DBAPIError) -> bool:
    """Whether SQLite says by it that the file is not what was written: damaged, or without one of its tables."""
    return type(error.orig) is sqlite3.DatabaseError or str(error.orig).startswith("no such ")
