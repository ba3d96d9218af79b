"""What telemetry costs: the same decisions with nothing counted, with metrics, and with metrics and some or all traces.

    python bench/bench_telemetry.py [--turns 31] [--requests 300] [--in-flight 64]

Several servers in one process, without sockets, take turns, so that a slow moment of the machine falls on all; the
interpreter is set as ``policyd serve`` sets it.
Every decision is durable. In each turn all but the first are scraped once, which is more often than Prometheus does.
Traces go to a receiver in a process of its own, which throws them away. Trust the ratios, those of the processor
time most.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from policyd.api.app import create_app
from policyd.api.server import at_work, loop_factory
from policyd.bootstrap import running
from policyd.settings import load_settings

BODY = orjson.dumps(
    {
        "workload": {
            "tenant": "eu-bank",
            "project": "support-chat",
            "environment": "prod",
            "model": "llama-3.1-70b-instruct",
            "demand": {"input_tokens": 1200, "max_output_tokens": 400, "requests_per_hour": 3600},
        },
        "options": {"limit": 3},
    }
)
HEADERS = [
    (b"host", b"127.0.0.1"),
    (b"content-type", b"application/json"),
    (b"content-length", str(len(BODY)).encode()),
]
CONTESTANTS: list[tuple[str, bool, str | None]] = [
    ("off", False, None),
    ("metrics", True, None),
    ("metrics, traced by default", True, ""),
    ("metrics, all traced", True, "1.0"),
]
"""A name, whether metrics are on, and the share of requests that is traced; empty is the default of policyd."""
RECEIVER = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Taken(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_): pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Taken)
print(server.server_port, flush=True)
server.serve_forever()
"""


async def ask(app: Any, method: str, path: str, body: bytes) -> int:
    """One request through the whole application; its status."""
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "root_path": "", "query_string": b"", "scheme": "http", "headers": HEADERS,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    await app(scope, receive, send)
    return status


async def turn(app: Any, requests: int, in_flight: int, *, scraped: bool) -> tuple[float, float]:
    """Requests a second and processor microseconds a request, in a closed loop; a task for each, as a server has it."""
    left = requests

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            status = await asyncio.create_task(ask(app, "POST", "/v1/decisions", BODY))
            assert status == 200, status

    begun, used = time.perf_counter(), time.process_time()
    callers = [asyncio.create_task(caller()) for _ in range(in_flight)]
    if scraped:
        assert await ask(app, "GET", "/metrics", b"") == 200
    await asyncio.gather(*callers)
    elapsed, used = time.perf_counter() - begun, time.process_time() - used
    return requests / elapsed, used / requests * 1e6


async def run(folder: Path, endpoint: str, turns: int, requests: int, in_flight: int) -> None:
    """Print the table."""
    async with AsyncExitStack() as stack:
        apps: dict[str, Any] = {}
        for name, metrics, sampled in CONTESTANTS:
            for variable in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"):
                os.environ.pop(variable, None)
            if sampled is not None:
                os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = endpoint
                os.environ["OTEL_TRACES_SAMPLER_ARG"] = sampled
            flags = {"data_dir": folder / name.replace(" ", "-"), "telemetry": {"metrics": metrics}}
            apps[name] = create_app(await stack.enter_async_context(running(load_settings(None, {}, flags))))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in apps}
        for number in range(turns + 1):
            for name, app in apps.items():
                measured = await turn(app, requests, in_flight, scraped=name != "off")
                if number:
                    found[name].append(measured)
        report(found, f"{in_flight} in flight, {turns} turns of {requests}")


def report(found: dict[str, list[tuple[float, float]]], how: str) -> None:
    """Medians, and the share of the rate that is lost: by the processor, which a busy machine disturbs least."""
    print(f"{'telemetry':<26} {'requests/s':>10} {'of off':>8} {'CPU us':>8} {'of off':>8}   {how}")
    for name, turns in found.items():
        pairs = list(zip(turns, found["off"], strict=True))
        rate, used = (median(turn[place] for turn in turns) for place in (0, 1))
        by_rate, by_used = (median(turn[place] / off[place] for turn, off in pairs) for place in (0, 1))
        print(f"{name:<26} {rate:>10,.0f} {by_rate:>7.1%} {used:>8,.0f} {by_used:>7.1%}")
    for name in ("metrics", "metrics, traced by default", "metrics, all traced"):
        lost = 1 - 1 / median(turn[1] / off[1] for turn, off in zip(found[name], found["off"], strict=True))
        print(f"{name}: {lost:.1%} of the request rate, by processor time (at most 15 % is asked for)")


def main() -> None:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=31)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--in-flight", type=int, default=64)
    flags = parser.parse_args()
    receiver = subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, text=True)
    try:
        assert receiver.stdout is not None
        endpoint = f"http://127.0.0.1:{int(receiver.stdout.readline())}/v1/traces"
        with (
            tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-telemetry-") as scratch,
            asyncio.Runner(loop_factory=loop_factory()) as runner,
            at_work(),
        ):
            runner.run(run(Path(scratch), endpoint, flags.turns, flags.requests, flags.in_flight))
    finally:
        receiver.terminate()
        receiver.wait(10)


if __name__ == "__main__":
    main()
