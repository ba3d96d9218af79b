"""A real ``policyd serve`` under load that is killed: how it is started, waited for and ended, for every test of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

COMMAND = [sys.executable, "-c", "from policyd.cli.main import main; main()", "serve", "--port", "0", "--data-dir"]
WORKLOAD = {"workload": {"tenant": "eu-bank", "project": "support-chat", "model": "llama-3.1-70b-instruct"}}


class Loading(Protocol):
    """Callers of a server that go on until they lose it."""

    @property
    def answered(self) -> Sized: ...

    def join(self) -> None: ...


AnyLoad = TypeVar("AnyLoad", bound=Loading)


@contextmanager
def served(
    data: Path, repository: Path, *flags: str, settings: Mapping[str, str] | None = None
) -> Generator[tuple[subprocess.Popen[str], str], None, None]:
    """The process and its address, once it says that it is ready. ``settings`` are added to its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POLICYD_")}
    environment |= {"PYTHONPATH": str(repository), **(settings or {})}
    process = subprocess.Popen(
        [*COMMAND, str(data), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=data.parent,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"https?://\S+", line)
        assert found, process.communicate(timeout=10)
        yield process, found[0]
    finally:
        process.kill()
        process.communicate(timeout=30)


def wait_for(load: Loading, count: int) -> None:
    """Until so many are answered."""
    ends = time.monotonic() + 60
    while len(load.answered) < count:
        assert time.monotonic() < ends
        time.sleep(0.01)


def killed_under_load(
    data: Path,
    repository: Path,
    begin: Callable[[str], AnyLoad],
    count: int,
    *flags: str,
    settings: Mapping[str, str] | None = None,
) -> AnyLoad:
    """One round: a server, callers, SIGKILL once so many are answered. The callers have all lost the server."""
    with served(data, repository, *flags, settings=settings) as (process, address):
        load = begin(address)
        wait_for(load, count)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        load.join()
    return load
