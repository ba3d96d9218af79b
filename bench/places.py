"""Where a bench keeps its logs: in a file, or in a PostgreSQL that it starts on the disk that is asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from policyd.services.data_directory import DataDirectory

SERVER_SETTINGS = ("shared_buffers=256MB", "max_wal_size=2GB", "max_connections=100")


@dataclass(frozen=True)
class Place:
    """The directory of each replica, and how many bytes their logs take."""

    directories: list[DataDirectory]
    size_bytes: Callable[[], int]
    address: str | None = None
    """Of the database, where there is a server."""


@contextmanager
def places(path: Path, store: str, replicas: int = 1) -> Iterator[Place]:
    """A place without a log; only a database takes several replicas."""
    if store == "sqlite":
        directory = DataDirectory(path)
        yield Place([directory], lambda: directory.log_path.stat().st_size)
        return
    from audit.postgresql_store import PostgresqlStore
    from tests.postgresql_server import PostgresqlServer, binaries

    found = binaries()
    if found is None:
        raise SystemExit("no PostgreSQL: apt-get install postgresql")
    path.chmod(0o755)  # the server runs as somebody else
    server = PostgresqlServer(found, path)
    try:
        server.start(SERVER_SETTINGS)
        address = server.make_database()
        name = address.rpartition("/")[2]
        paths = [path / f"replica-{nth}" for nth in range(replicas)]
        yield Place(
            [DataDirectory(each, PostgresqlStore(address, each / "origin")) for each in paths],
            lambda: int(str(server.execute(f"SELECT pg_database_size('{name}')")[0][0])),
            address,
        )
    finally:
        server.close()
