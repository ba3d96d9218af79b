"""A served policyd under a steady load for minutes, with reloads: no error, and memory that stays flat.

    python bench/soak.py [--seconds 600] [--rate 500] [--workers 1] [--growth-max-mib 16]

``policyd serve`` runs as a process of its own on loopback, with tokens of three tenants, every decision durable before
it is answered. Requests are sent at the rate, whatever the answers take, and a time counts from when the request was
due, so that a pause of the server is not hidden by a load generator that waits for it. Three times in the first half
the fleet is changed and the server told to reload (SIGHUP); each reload must go live. Prints one table with a row for
each of ten parts of the time: answers, errors, percentiles, and the resident memory of the server and of its engine
workers.

It ends with 1 on any error, when less than 99 % of the requests that were due are answered, when the counters of the
server do not say what was answered, when the server does not end in order, or when the memory of all processes together
grows by more than the bound in the last third.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import orjson
import uvloop
from rich.console import Console
from rich.table import Table

from policyd.identity.tokens import new_token

ROOT = Path(__file__).resolve().parent.parent
MODEL = "llama-3.1-70b-instruct"
TENANTS = {"eu-bank": "support-chat", "nordic-lab": None, "spark-startup": None}
TOKENS_PER_TENANT = 2
BODIES_PER_TOKEN = 24
CONNECTIONS = 64
TICK_S = 0.01
PARTS = 10
RELOADS = 3
RELOAD_WAIT_S = 60.0
ANSWERED_MIN_PERCENT = 99
WARM_REQUESTS = 400
DRAIN_S = 15.0


@dataclass
class Part:
    """A tenth of the time: what was answered in it, and what the processes held at its end."""

    times_us: list[int] = field(default_factory=list)
    errors: int = 0
    server_mib: float = 0.0
    engine_mib: float = 0.0

    def at(self, share: int) -> float:
        """A percentile of the times, in milliseconds."""
        times = sorted(self.times_us) or [0]
        return times[min(len(times) - 1, len(times) * share // 100)] / 1_000


@dataclass
class Soak:
    """What is due, who can send it, and what came back."""

    address: tuple[str, int]
    requests: list[bytes]
    part: Part = field(default_factory=Part)
    due: deque[tuple[float, bytes]] = field(default_factory=deque)
    idle: deque[Caller] = field(default_factory=deque)
    sent: int = 0
    answered: int = 0
    first_error: str = ""

    def error(self, what: str) -> None:
        """Count what must not happen."""
        self.part.errors += 1
        self.first_error = self.first_error or what[:1_000]

    def send_due(self) -> None:
        """Give what is due to the connections that wait longest: the server ends those that say nothing for long."""
        while self.due and self.idle:
            self.idle.popleft().ask(*self.due.popleft())


class Caller(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, soak: Soak) -> None:
        self._soak = soak
        self._received = b""
        self._whole: int | None = None
        self._due_s: float | None = None
        self._closing = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is one for TCP
        self._transport = transport
        self._soak.idle.append(self)

    def ask(self, due_s: float, request: bytes) -> None:
        """Send a request that was due at that time."""
        self._due_s, self._received, self._whole = due_s, b"", None
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._whole is None:
            head, found, _ = self._received.partition(b"\r\n\r\n")
            if not found:
                return
            length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            self._whole = len(head) + 4 + int(length or b"0")
        if len(self._received) >= self._whole:
            self._answered()

    def _answered(self) -> None:
        soak = self._soak
        assert self._due_s is not None
        soak.part.times_us.append(int((time.monotonic() - self._due_s) * 1e6))
        soak.answered += 1
        if not self._received.startswith(b"HTTP/1.1 200 "):
            soak.error(self._received.decode("latin-1"))
        self._due_s = None
        soak.idle.append(self)
        soak.send_due()

    def close(self) -> None:
        """End the connection from this side."""
        self._closing = True
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closing:
            self._soak.error(f"the server closed a connection: {exc}")
            if self in self._soak.idle:
                self._soak.idle.remove(self)


def written(host: str, token: str, body: bytes) -> bytes:
    """A request as it goes over the wire."""
    head = (
        f"POST /v1/decisions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def requests_of(host: str, tokens: dict[str, list[str]]) -> list[bytes]:
    """Requests of every token in turn, which differ in their token counts as those of applications do."""
    found = []
    for number in range(BODIES_PER_TOKEN):
        for tenant, project in TENANTS.items():
            for token in tokens[tenant]:
                demand = {"input_tokens": 150 + 37 * number, "max_output_tokens": 400}
                workload = {"tenant": tenant, "model": MODEL, "demand": demand}
                named = {**workload, **({"project": project} if project else {})}
                found.append(written(host, token, orjson.dumps({"workload": named})))
    return found


def configured(scratch: Path, workers: int) -> tuple[dict[str, list[str]], str]:
    """The settings, the fleet and the tokens of the server; also the token of who reads its metrics."""
    shutil.copytree(ROOT / "examples" / "fleet", scratch / "fleet")
    tokens: dict[str, list[str]] = {tenant: [] for tenant in TENANTS}
    listed = []
    for tenant in TENANTS:
        for number in range(TOKENS_PER_TENANT):
            token, digest = new_token()
            tokens[tenant].append(token)
            grants = [{"role": "developer", "tenant": tenant}]
            listed.append({"name": f"{tenant}-{number}", "sha256": digest, "grants": grants})
    operator, digest = new_token()
    listed.append({"name": "operator", "sha256": digest, "grants": [{"role": "platform"}]})
    (scratch / "tokens.yaml").write_bytes(orjson.dumps({"tokens": listed}))
    settings = {
        "data_dir": str(scratch / "data"),
        "fleet": str(scratch / "fleet"),
        "facts": {"path": str(ROOT / "examples" / "facts.yaml")},
        "port": 0,
        "workers": workers,
        "auth": {"tokens_file": str(scratch / "tokens.yaml")},
    }
    (scratch / "policyd.yaml").write_bytes(orjson.dumps(settings))
    return tokens, operator


@contextlib.contextmanager
def served(scratch: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server and its address."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POLICYD_")}
    command = [sys.executable, "-m", "policyd.cli.main", "serve", "--config", str(scratch / "policyd.yaml")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=scratch, env={**environment, "PYTHONPATH": str(ROOT)}
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().rpartition(" ")[2].strip()
        finally:
            process.terminate()


def processes(pid: int) -> Iterator[tuple[int, bool]]:
    """A process and all that it has started; whether each is a worker of the engine."""
    with contextlib.suppress(OSError):
        yield pid, b"engines/worker.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from processes(int(child))


def resident_mib(pid: int) -> tuple[float, float]:
    """Memory of the server's own processes, and of the engine's workers."""
    found = [0.0, 0.0]
    for each, of_engine in processes(pid):
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{each}/statm").read_text().split()[1])
            found[of_engine] += pages * os.sysconf("SC_PAGESIZE") / 1024**2
    return found[0], found[1]


async def sending(soak: Soak, rate: int, until: float) -> None:
    """Have requests due at the rate until a time, and send them as connections are free."""
    begun, position = time.monotonic(), 0
    while (now := time.monotonic()) < until:
        while position < (now - begun) * rate:
            soak.due.append((begun + position / rate, soak.requests[soak.sent % len(soak.requests)]))
            position += 1
            soak.sent += 1
        soak.send_due()
        await asyncio.sleep(TICK_S)


async def reload(process: subprocess.Popen[str], scratch: Path, address: str, operator: str) -> None:
    """Change the fleet, tell the server, and see that the change is live. Raises ``SystemExit`` otherwise."""
    async with httpx.AsyncClient(base_url=address, headers={"Authorization": f"Bearer {operator}"}) as client:
        before = (await client.get("/v1/fleet")).json()["digest"]
        with (scratch / "fleet" / "tenants.yaml").open("a") as file:
            file.write("# changed\n")
        process.send_signal(signal.SIGHUP)
        for _ in range(int(RELOAD_WAIT_S / 0.5)):
            await asyncio.sleep(0.5)
            if (await client.get("/v1/fleet")).json()["digest"] != before:
                return
    raise SystemExit("a reload did not go live")


async def soaked(options: argparse.Namespace, scratch: Path, process: subprocess.Popen[str], soak: Soak,
                 operator: str) -> list[Part]:  # fmt: skip
    """The parts of the time; the memory at the start is in the first one, which has no answers."""
    loop, address = asyncio.get_running_loop(), f"http://{soak.address[0]}:{soak.address[1]}"
    callers = [(await loop.create_connection(lambda: Caller(soak), *soak.address))[1] for _ in range(CONNECTIONS)]
    await sending(soak, options.rate, time.monotonic() + WARM_REQUESTS / options.rate)
    await drained(soak)
    part_s = options.seconds / PARTS
    soak.part.server_mib, soak.part.engine_mib = resident_mib(process.pid)
    parts = [Part([], soak.part.errors, soak.part.server_mib, soak.part.engine_mib)]
    reloading = []
    for number in range(PARTS):
        soak.part = Part()
        if number and len(reloading) < RELOADS and number >= (len(reloading) + 1) * PARTS / 6:
            reloading.append(asyncio.create_task(reload(process, scratch, address, operator)))
        await sending(soak, options.rate, time.monotonic() + part_s)
        if number == PARTS - 1:
            await drained(soak)
        soak.part.server_mib, soak.part.engine_mib = resident_mib(process.pid)
        parts.append(soak.part)
    await asyncio.gather(*reloading)
    assert len(reloading) == RELOADS
    for caller in callers:
        caller.close()
    return parts


async def drained(soak: Soak) -> None:
    """Wait for the answers to what was sent."""
    ends = time.monotonic() + DRAIN_S
    while soak.answered < soak.sent and time.monotonic() < ends:
        soak.send_due()
        await asyncio.sleep(TICK_S)


def counted(address: str, operator: str) -> int:
    """The decisions that the server says it has answered."""
    text = httpx.get(f"{address}/metrics", headers={"Authorization": f"Bearer {operator}"}, timeout=30).text
    lines = [line for line in text.splitlines() if line.startswith("policyd_decisions_total{")]
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if 'outcome="error"' not in line)


def faults(options: argparse.Namespace, soak: Soak, parts: list[Part], counters: int, code: int) -> list[str]:
    """What is not as it must be."""
    found = []
    errors = sum(part.errors for part in parts)
    if errors:
        found.append(f"{errors} errors, the first: {soak.first_error}")
    if soak.answered < soak.sent * ANSWERED_MIN_PERCENT / 100:
        found.append(f"{soak.answered} of {soak.sent} requests that were due are answered")
    if counters != soak.answered - errors:
        found.append(f"the server counts {counters} decisions, and {soak.answered - errors} were answered")
    third = parts[PARTS - PARTS // 3]
    grown = parts[-1].server_mib + parts[-1].engine_mib - third.server_mib - third.engine_mib
    if grown > options.growth_max_mib:
        found.append(f"memory grew by {grown:.1f} MiB in the last third")
    if code != 0:
        found.append(f"the server ended with {code}")
    return found


def table_of(parts: list[Part], part_s: float) -> Table:
    """A row for each part."""
    table = Table(title="policyd under a steady load, every decision durable")
    for name in ("until", "answers", "errors", "p50 / p95 / p99 / max ms", "server MiB", "engine MiB"):
        table.add_column(name, justify="right")
    for number, part in enumerate(parts):
        times = " / ".join(f"{part.at(share):.1f}" for share in (50, 95, 99, 100)) if part.times_us else "-"
        memory = (f"{part.server_mib:.1f}", f"{part.engine_mib:.1f}")
        table.add_row(f"{number * part_s:.0f} s", str(len(part.times_us)), str(part.errors), times, *memory)
    return table


def main() -> None:
    """Serve, ask, reload, and say how it was."""
    parser = argparse.ArgumentParser(description="A steady load with reloads.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--growth-max-mib", type=float, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="policyd-soak-") as folder:
        scratch = Path(folder)
        tokens, operator = configured(scratch, options.workers)
        with served(scratch) as (process, address):
            host, port = address.removeprefix("http://").rsplit(":", 1)
            soak = Soak((host, int(port)), requests_of(f"{host}:{port}", tokens))
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                parts = runner.run(soaked(options, scratch, process, soak, operator))
            counters = counted(address, operator)
            process.terminate()
            code = process.wait(60)
    Console().print(table_of(parts, options.seconds / PARTS))
    found = faults(options, soak, parts, counters, code)
    for fault in found:
        print(fault, file=sys.stderr)
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
