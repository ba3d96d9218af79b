"""A child OPA that serves one policy set, on a Unix socket that only this user can reach, behind a token.

Rules: the policies are files in a private directory, so a restarted child holds them at once; one child serves one
digest and nothing is ever loaded into it later; it gets an empty environment, phones nobody, and dies with policyd.
A child that dies is started again, with growing pauses. A child that goes on computing after its caller has given up
is killed: nothing else would stop it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from policyd.engines.opa_client import Address, OpaConnection
from policyd.errors import EngineError, EngineUnavailable, Finding

START_TIMEOUT_S: Final = 20.0
CHECK_TIMEOUT_S: Final = 60.0
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_LONGEST_S: Final = 10.0
SETTLED_AFTER_S: Final = 30.0
"""A child that lived this long starts again without a pause."""

BUSY_PROBE_S: Final = 0.15
BUSY_SHARE: Final = 0.5
"""A child that uses more than this share of one processor after its caller left is killed."""

_AUTHORIZATION: Final = """package system.authz

default allow := false

allow if crypto.sha256(input.identity) == "{digest}"
"""
_LAUNCHER: Final = (
    "import ctypes, os, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 9)\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)
"""Asks the system to kill the child when policyd ends, then becomes it."""

_INSTALL: Final = "install OPA (https://www.openpolicyagent.org/docs/#1-download-opa) or set engine.opa_binary"


def find_binary(binary: str) -> str:
    """The absolute path of an OPA. Raises ``EngineUnavailable`` when there is none."""
    found = shutil.which(binary)
    if found is None:
        raise EngineUnavailable(f"there is no OPA at {binary!r}", remedy=_INSTALL)
    return os.path.realpath(found)


async def run_opa(binary: str, *arguments: str) -> tuple[int, bytes, bytes]:
    """Run an OPA command to its end: status, output, complaints. Raises ``EngineUnavailable``."""
    process = await asyncio.create_subprocess_exec(
        find_binary(binary),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={},
    )
    try:
        output, complaints = await asyncio.wait_for(process.communicate(), CHECK_TIMEOUT_S)
    except TimeoutError:
        raise EngineUnavailable(f"opa {arguments[0]} did not end within {int(CHECK_TIMEOUT_S)} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()
    return process.returncode or 0, output, complaints


async def check_strict(binary: str, directory: Path) -> list[Finding]:
    """What ``opa check --strict`` says about the modules below a directory, with paths relative to it."""
    status, output, complaints = await run_opa(binary, "check", "--strict", "--format=json", str(directory))
    if status == 0:
        return []
    try:
        errors = json.loads(output or complaints)["errors"]
    except (ValueError, KeyError):
        return [Finding("", f"opa check: {complaints.decode(errors='replace').strip()[:500]}")]
    return [_finding(error, directory) for error in errors]


def _finding(error: Mapping[str, Any], directory: Path) -> Finding:
    location = error.get("location") or {}
    file = location.get("file")
    where = f"{os.path.relpath(file, directory)}:{location.get('row', 1)}" if file else ""
    return Finding(where, f"opa: {error.get('message', 'refused')}")


def write_modules(directory: Path, modules: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Write modules and settings the way OPA loads a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for path, text in modules.items():
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (directory / "settings.json").write_text(json.dumps({"settings": settings}), encoding="utf-8")


class OpaChild:
    """One supervised OPA process with its directory and connection."""

    def __init__(self, binary: str, modules: Mapping[str, str], settings: Mapping[str, Any], driver: str) -> None:
        self._binary = find_binary(binary)
        self._directory = tempfile.TemporaryDirectory(prefix="policyd-opa-")
        place = Path(self._directory.name)
        write_modules(place / "tree", modules, settings)
        (place / "driver.rego").write_text(driver, encoding="utf-8")
        self._token = secrets.token_urlsafe(32)
        hashed = hashlib.sha256(self._token.encode()).hexdigest()
        (place / "authz.rego").write_text(_AUTHORIZATION.format(digest=hashed), encoding="utf-8")
        self._socket = str(place / "opa.sock")
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._started_at = 0.0
        self._pause_s = 0.0
        self._closed = False
        self.connection = OpaConnection(Address(socket=self._socket), self._token)

    @property
    def pid(self) -> int | None:
        """Process id of the running child, or None."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def ensure(self) -> None:
        """Start the child unless it runs. Raises ``EngineUnavailable`` while it may not be started yet, or cannot."""
        async with self._starting:
            if self.pid is not None:
                return
            if self._closed:
                raise EngineUnavailable("the OPA child is closed")
            now = time.monotonic()
            if self._started_at and now - self._started_at > SETTLED_AFTER_S:
                self._pause_s = 0.0
            if self._started_at and now < self._started_at + self._pause_s:
                raise EngineUnavailable("the OPA child died and is not started again yet")
            self._pause_s = min(BACKOFF_LONGEST_S, max(BACKOFF_FIRST_S, self._pause_s * 2))
            self._started_at = now
            await self._start()

    async def _start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._socket)
        place = self._directory.name
        await self.connection.close()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-c", _LAUNCHER, self._binary, "run", "--server"),
            *("--addr", f"unix://{self._socket}", "--authentication=token", "--authorization=basic"),
            *("--disable-telemetry", "--log-level=error"),
            *(f"{place}/authz.rego", f"{place}/driver.rego", f"{place}/tree"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            start_new_session=True,
        )
        until = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until:
            if self._process.returncode is not None:
                raise EngineUnavailable(f"the OPA child ended at its start with status {self._process.returncode}")
            with contextlib.suppress(EngineError):
                await self.connection.policy_ids()
                return
            await asyncio.sleep(0.02)
        await self.kill()
        raise EngineUnavailable(f"the OPA child was not ready within {int(START_TIMEOUT_S)} s")

    async def recover(self) -> None:
        """After a failed question: see that the child runs. It holds its policies from the start."""
        await self.ensure()

    async def stop_if_busy(self) -> bool:
        """Kill the child if it still computes though nobody waits. True when it was killed."""
        pid = self.pid
        if pid is None:
            return False
        before = _cpu_seconds(pid)
        await asyncio.sleep(BUSY_PROBE_S)
        after = _cpu_seconds(pid)
        # Where the time cannot be read, the child counts as busy: an evaluation must never run on.
        if before is not None and after is not None and after - before < BUSY_PROBE_S * BUSY_SHARE:
            return False
        await self.kill()
        self._pause_s = 0.0
        return True

    async def kill(self) -> None:
        """End the child now. Safe to call twice."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        await process.wait()

    async def close(self) -> None:
        """End the child and remove its directory. Safe to call twice."""
        self._closed = True
        await self.connection.close()
        await self.kill()
        self._directory.cleanup()


def _cpu_seconds(pid: int) -> float | None:
    """Processor time that a process has used; None where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None
