"""Logs in a PostgreSQL database: many writers, each with its own log, its own name and its own lock.

    name of the log ──no row──► a number, a row, a file beside the writer ──► locked ──► verified ──► open
                    ──row────► locked by somebody else ──► refused

Rules: the lock belongs to the session that writes, so whoever gets it knows that the last session has ended, and with
it any commit whose outcome was unknown; the name of a log that was made here is kept in a file, and a database without
that log is another database; with ``power_safe`` the server must sync what it acknowledges; a silent network ends a
connection within seconds on both sides, and a silent server within the deadline of a statement.
It refuses: a second writer of a log, a server that does not sync, a database that is not in UTF-8.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import Connection, Engine, create_engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, QueuePool

from audit import schema, store
from audit.errors import LogLocked, LogUnavailable, SearchTooSlow
from audit.keys_store import SCHEMA
from audit.postgresql import LOCKS, MONTHS_AHEAD, learn, make_months, months_from
from audit.postgresql_patience import OPENING_MAX_S, Patience, PatientConnection
from audit.store import Durability
from audit.stores import OpenLog
from audit.tables import LOG

COMMITS: Final[dict[Durability, str]] = {"power_safe": "on", "process_safe": "off"}
OPENING_LOCK: Final = -2
CONNECT_TIMEOUT_S: Final = 5
LOCK_TIMEOUT_MS: Final = 5_000
PATIENCE_MS: Final = 1_000
IDLE_MAX_MS: Final = 5_000
"""Longest pause of a writer within a transaction: one that hangs would hold the others at rows that they share."""
OPENING_IDLE_MAX_MS: Final = 60_000
QUIET_MAX_S: Final = 10
DEADLINE_MS: Final = 10_000
GRACE_S: Final = 5.0
"""What a server that stops a statement at its deadline may take to say so."""
READERS_MAX: Final = 4
READING: Final = r"-c default_transaction_read_only=on -c default_transaction_isolation=repeatable\ read"
"""As with a file, all statements of one transaction see one state of the log."""
NAME_MAX_BYTES: Final = 1_024
_KEPT_ALIVE: Final[dict[str, str | int]] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives_idle": 4,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": QUIET_MAX_S * 1_000,
    "application_name": "policyd",
}
# The server, too, forgets a writer that is gone, and with it the lock of its log; over a local socket it ignores these.
_NOTICED: Final = (
    "-c tcp_keepalives_idle=4 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 "
    f"-c tcp_user_timeout={QUIET_MAX_S * 1_000}"
)


class PostgresqlStore:
    """The logs of one database. ``name_file`` keeps the name of the log that this writer made; ``origin`` fixes it.

    ``deadline_ms`` is the longest wait for an answer to one statement.
    """

    def __init__(
        self, address: str, name_file: Path, origin: str | None = None, *, deadline_ms: int = DEADLINE_MS
    ) -> None:
        self._deadline_ms = deadline_ms
        self._patience = Patience()
        try:
            given = conninfo_to_dict(address)
            self._address = make_conninfo(
                address, **{name: _KEPT_ALIVE[name] for name in _KEPT_ALIVE.keys() - given.keys()}
            )
        except psycopg.Error:
            # The driver's own words repeat the address, and a password with it.
            raise LogUnavailable(
                "the address of the database cannot be understood: postgresql://user:password@host/name"
            ) from None
        place = {name: given.get(name) or "default" for name in ("host", "port", "dbname")}
        self.name = "the PostgreSQL database {dbname} at {host}:{port}".format(**place)
        self._name_file = name_file
        self._origin = origin

    def exists(self) -> bool:
        """Only opening it can tell."""
        return True

    def open_writer(self, durability: Durability, origin: str | None) -> OpenLog:
        """See ``LogStore``."""
        engine = self._engine(
            f"-c synchronous_commit={COMMITS[durability]} -c lock_timeout={LOCK_TIMEOUT_MS} "
            f"-c idle_in_transaction_session_timeout={IDLE_MAX_MS} {_NOTICED}"
        )
        try:
            connection = engine.connect()
        except (DBAPIError, psycopg.Error) as error:
            raise self._unavailable(error) from error
        try:
            number, name = self._opened(connection, durability, origin)
        except (DBAPIError, psycopg.Error) as error:
            connection.invalidate()
            raise self._unavailable(error) from error
        except BaseException:
            connection.close()
            raise
        _patient(connection).limit_s = self._deadline_ms / 1_000
        return OpenLog(connection, number, name, lambda: None)

    def give_up_after(self, seconds: float | None) -> None:
        """See ``LogStore``."""
        self._patience.end_after(seconds)

    def _opened(self, connection: Connection, durability: Durability, origin: str | None) -> tuple[int, str]:
        with connection.begin():
            # Migrations are made while nobody can wait for rows that this writer holds.
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {OPENING_IDLE_MAX_MS}")
            _check_server(connection, durability)
            # Two writers that start on an empty database would make the same tables.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCKS}, {OPENING_LOCK})")
            schema.create_or_upgrade(connection, create=origin is not None)
            number, name = self._log(connection, origin)
        self._remember(name)
        _lock(connection, number, name)
        with connection.begin():
            make_months(connection, months_from(f"{datetime.now(UTC):%Y-%m}", 1 + MONTHS_AHEAD))
            store.verify_tail(connection, log=number)
            store.seal_full_blocks(connection)
        return number, name

    def open_keys(self, *, write: bool) -> Engine | None:
        """See ``LogStore``: in a schema of their own."""
        options = f"-c search_path={SCHEMA} -c lock_timeout={LOCK_TIMEOUT_MS}"
        return self._engine(f"{options} -c synchronous_commit=on" if write else f"{options} {READING}", READERS_MAX)

    def open_reader(self) -> Engine:
        """See ``LogStore``."""
        engine = self._engine(READING, readers=READERS_MAX)
        try:
            with engine.connect() as connection:
                schema.recognise(connection)
        except (DBAPIError, psycopg.Error) as error:
            engine.dispose()
            raise self._unavailable(error) from error
        except BaseException:
            engine.dispose()
            raise
        return engine

    @contextmanager
    def deadline(self, connection: Connection, deadline_ms: int) -> Iterator[None]:
        """See ``LogStore``: the server stops the statement."""
        patient = _patient(connection)
        patient.limit_s = deadline_ms / 1_000 + GRACE_S
        try:
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {max(1, deadline_ms)}")
            yield
        except DBAPIError as error:
            if isinstance(error.orig, psycopg.errors.QueryCanceled):
                raise SearchTooSlow(f"the search took longer than {deadline_ms} ms") from error
            raise
        finally:
            patient.limit_s = self._deadline_ms / 1_000

    def _engine(self, options: str, readers: int = 0) -> Engine:
        def connect() -> psycopg.Connection[Any]:
            given = conninfo_to_dict(self._address).get("options") or ""
            connection = PatientConnection.connect(self._address, options=f"{given} {options} -c timezone=UTC".strip())
            connection.patience = self._patience
            connection.limit_s = self._deadline_ms / 1_000 if readers else OPENING_MAX_S
            learn(connection)
            return connection

        shape: dict[str, Any] = {"poolclass": NullPool}
        if readers:
            shape = {"poolclass": QueuePool, "pool_size": readers, "max_overflow": 0, "pool_pre_ping": True}
        return create_engine("postgresql+psycopg://", creator=connect, use_native_hstore=False, **shape)

    def _log(self, connection: Connection, origin: str | None) -> tuple[int, str]:
        """Number and name of this writer's log; a new one when it has none yet and may make one."""
        kept = self._kept()
        name = self._origin or kept or origin
        if name is None:
            raise LogUnavailable(f"no log of this writer is known in {self.name}")
        found = connection.execute(select(LOG.c.number).where(LOG.c.origin == name)).scalar()
        if found is not None:
            return int(found), name
        if kept == name or origin is None:
            raise LogUnavailable(
                f"{self.name} holds no log {name}, which this writer made: it is another database, or an older state; "
                f"name the right one, or remove {self._name_file} to begin a new log"
            )
        last = connection.execute(select(func.max(LOG.c.number))).scalar()
        number = 1 if last is None else int(last) + 1
        connection.execute(LOG.insert(), {"number": number, "origin": name})
        return number, name

    def _kept(self) -> str | None:
        try:
            with self._name_file.open("rb") as file:
                return file.read(NAME_MAX_BYTES).decode().strip() or None
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise LogUnavailable(f"{self._name_file} cannot be read: {error}") from error

    def _remember(self, name: str) -> None:
        if self._kept() == name:
            return
        draft = self._name_file.with_name(f"{self._name_file.name}.{os.getpid()}")
        try:
            with draft.open("wb") as file:
                file.write(name.encode())
                os.fsync(file.fileno())
            draft.replace(self._name_file)
        except OSError as error:
            raise LogUnavailable(f"{self._name_file} cannot be written: {error}") from error

    def _unavailable(self, error: Exception) -> Exception:
        cause = error.orig if isinstance(error, DBAPIError) else error
        return LogUnavailable(f"{self.name} cannot be opened: {str(cause).strip()}")


def _patient(connection: Connection) -> PatientConnection:
    found = connection.connection.driver_connection
    assert isinstance(found, PatientConnection)
    return found


def _check_server(connection: Connection, durability: Durability) -> None:
    told: dict[str, str] = dict(
        connection.exec_driver_sql(
            "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'server_encoding')"
        ).all()
    )
    if told["server_encoding"] != "UTF8":
        raise LogUnavailable(f"the database is in {told['server_encoding']}; a log needs UTF8")
    for name in ("fsync", "full_page_writes"):
        if durability == "power_safe" and told[name] != "on":
            raise LogUnavailable(
                f"the server runs with {name}={told[name]}, which no power cut survives: power_safe is refused"
            )


def _lock(connection: Connection, number: int, name: str) -> None:
    """For as long as the session lives. One that was cut off keeps it until the server has noticed, so wait a while."""
    try:
        with connection.begin():
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {PATIENCE_MS}")
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({LOCKS}, {number})")
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise LogLocked(f"another session writes the log {name}") from error
        raise
