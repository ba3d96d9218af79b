"""A real PostgreSQL for the tests: made by `initdb`, run by nobody in particular, killed and started again at will.

Rules: it listens on loopback and on a socket in its own directory; it syncs for real; connections give a password; each
test has a database of its own, owned by a role that is no superuser; what was started is ended by its process number.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import psycopg

ROLE = "policyd"
PASSWORD = "a secret: %40/ß"
QUOTED_PASSWORD = "a%20secret%3A%20%2540%2F%C3%9F"
START_TIMEOUT_S = 60
UNPRIVILEGED = ("postgres", "nobody")


def binaries() -> Path | None:
    """The directory with `initdb` and `postgres`: of Debian's package, newest first, else on the path."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    on_path = shutil.which("postgres")
    for folder in (*debian, *((Path(on_path).parent,) if on_path else ())):
        if os.access(folder / "initdb", os.X_OK) and os.access(folder / "postgres", os.X_OK):
            return folder
    return None


def unprivileged() -> dict[str, object]:
    """How a process is started as somebody whom PostgreSQL accepts: not root."""
    if os.geteuid() != 0:
        return {}
    for name in UNPRIVILEGED:
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise RuntimeError(f"PostgreSQL does not run as root, and there is none of the users {', '.join(UNPRIVILEGED)}")


class PostgresqlServer:
    """One server. ``start`` after ``kill`` recovers from the write-ahead log, as after a crash."""

    def __init__(self, binaries: Path, within: Path | None = None) -> None:
        self._binaries = binaries
        self._as = unprivileged()
        self.folder = Path(tempfile.mkdtemp(prefix="policyd-postgresql-", dir=within))
        self._data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._names = count()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        password_file = self.folder / "password"
        password_file.write_text(PASSWORD)
        if "user" in self._as:
            for path in (self.folder, password_file):
                os.chown(path, int(str(self._as["user"])), int(str(self._as["group"])))
        self._run(
            "initdb", f"--pgdata={self._data}", "--encoding=UTF8", "--locale=C", "--no-sync",
            "--username=root_of_tests", "--auth=scram-sha-256", f"--pwfile={password_file}",
        )  # fmt: skip

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False, **self._as)
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {done.stderr}")

    def start(self, settings: Sequence[str] = ()) -> None:
        """Start, and wait until it answers."""
        options = (
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self.folder}",
            "max_connections=50",
            *settings,
        )
        command = [str(self._binaries / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        command += [word for option in options for word in ("-c", option)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **self._as)
        self._watch(self._process.pid)
        ends = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                psycopg.connect(self._root()).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > ends:
                    raise RuntimeError((self.folder / "log").read_text(errors="replace")[-4_000:]) from None
                time.sleep(0.05)

    def _watch(self, pid: int) -> None:
        """Have the server ended when this process is: nobody but it has the other end of the watchdog's input."""
        self._unwatch()
        self._watchdog = subprocess.Popen(
            ["sh", "-c", 'read -r line; kill -QUIT "$0"', str(pid)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def _unwatch(self) -> None:
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.communicate()
            self._watchdog = None

    def kill(self) -> None:
        """SIGKILL for the server and each of its processes: nothing is written, closed or told any more."""
        assert self._process is not None
        self._unwatch()
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(10)

    def close(self) -> None:
        """End the server and remove its directory."""
        self._unwatch()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
        shutil.rmtree(self.folder)

    def _root(self, database: str = "postgres") -> str:
        return psycopg.conninfo.make_conninfo(
            host="127.0.0.1",
            port=self.port,
            user="root_of_tests",
            password=PASSWORD,
            dbname=database,
            connect_timeout=5,
        )

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """As the superuser, outside a transaction."""
        with psycopg.connect(self._root(database), autocommit=True) as connection:
            done = connection.execute(statement.encode())
            return done.fetchall() if done.description else []

    def make_database(self) -> str:
        """The address of a new, empty database."""
        if not self.execute(f"SELECT 1 FROM pg_roles WHERE rolname = '{ROLE}'"):
            self.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name} OWNER {ROLE}")
        return self.address(name)

    def address(self, database: str, port: int | None = None) -> str:
        """The address of a database, over another port when something stands between."""
        return f"postgresql://{ROLE}:{QUOTED_PASSWORD}@127.0.0.1:{port or self.port}/{database}"
