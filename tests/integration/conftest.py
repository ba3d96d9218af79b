"""A real server for the tests of the HTTP surface: own thread, own event loop, real socket, shipped fleet."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from policyd.api.server import serve
from policyd.bootstrap import Running, running
from policyd.settings import load_settings
from tests.programs import missing

T = TypeVar("T")

START_TIMEOUT_S = 60


FAILING_SYNC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* EIO while the file BREAK_SYNC exists, for files whose path has BREAK_SYNC_OF in it. */
static int broken(int fd) {
    const char *flag = getenv("BREAK_SYNC"), *of = getenv("BREAK_SYNC_OF");
    char link[64], path[4096];
    ssize_t length;
    if (!flag || access(flag, F_OK) != 0) return 0;
    if (!of) return 1;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, of) != NULL;
}
int fsync(int fd) {
    if (broken(fd)) { errno = EIO; return -1; }
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd);
}
int fdatasync(int fd) {
    if (broken(fd)) { errno = EIO; return -1; }
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
"""


class ApiServer:
    """A running server: its address, its parts, and a client."""

    def __init__(self, address: str, parts: Running, loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        self._loop = loop
        self.parts = parts
        self.client = httpx.Client(base_url=address, timeout=30)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def raw(self, data: bytes, *, finish: bool = True, timeout_s: float = 15) -> bytes:
        """Send bytes and read until the server closes; ``finish`` says that nothing more will come."""
        host, port = self.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
            try:
                connection.sendall(data)
                if finish:
                    connection.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the server has heard enough; its answer may still be there
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other side closes; a reset is an end too, a silence is a failure."""
    parts = []
    while True:
        try:
            part = connection.recv(65_536)
        except ConnectionResetError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


@contextmanager
def serving(flags: dict[str, Any]) -> Generator[ApiServer, None, None]:
    """A server with these settings, until the block ends; then it has ended in order."""
    settings = load_settings(environment={}, flags={"port": 0, **flags})
    ready = threading.Event()
    found: dict[str, Any] = {}

    async def main() -> None:
        found["stop"], found["loop"] = asyncio.Event(), asyncio.get_running_loop()
        async with running(settings) as parts:
            found["parts"] = parts

            def told(address: str) -> None:
                found["address"] = address
                ready.set()

            await serve(parts, settings, told, found["stop"])

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            found["error"] = error
            ready.set()
            raise

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(START_TIMEOUT_S), "the server did not start"
    assert "error" not in found, found["error"]
    server = ApiServer(found["address"], found["parts"], found["loop"])
    try:
        yield server
    finally:
        server.client.close()
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(START_TIMEOUT_S)
    assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Generator[ApiServer, None, None]:
    """One server with default settings, shared by all tests that do it no harm."""
    with serving({"data_dir": tmp_path_factory.mktemp("api")}) as server:
        yield server


@pytest.fixture
def serving_with(tmp_path: Path) -> Callable[..., Any]:
    """A server of one's own: ``with serving_with(api={"in_flight_max": 1}) as server``."""
    return lambda **flags: serving({"data_dir": tmp_path / "data", **flags})


@pytest.fixture
def bank_chat() -> dict[str, Any]:
    """A request that the shipped fleet allows."""
    return {
        "workload": {
            "tenant": "eu-bank",
            "project": "support-chat",
            "environment": "prod",
            "model": "llama-3.1-70b-instruct",
            "profile": {"urgency": "interactive", "traffic": "steady", "task": "chat"},
            "data": {"classification": "confidential", "residency": ["EU"], "sources": ["bank-crm"]},
            "sla_class": "realtime",
            "demand": {"input_tokens": 1200, "max_output_tokens": 400, "requests_per_hour": 3600},
        },
        "options": {"limit": 3},
    }


@pytest.fixture(scope="session")
def failing_sync(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes fsync fail while the file ``BREAK_SYNC`` exists: for ``LD_PRELOAD``."""
    if (why := missing("cc")) is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("failing_sync")
    (folder / "shim.c").write_text(FAILING_SYNC)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c", "-ldl"], check=True)
    return folder / "shim.so"
