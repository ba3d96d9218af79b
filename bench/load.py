"""A load generator of our own: keep-alive connections that each ask again as soon as they are answered.

    python bench/load.py ADDRESS PATH BODIES --in-flight 64 --seconds 5 --count 100000

``BODIES`` is a file with one JSON body a line, sent in turn. Prints one JSON line: answers, seconds, percentiles of the
time to the last byte, and how many answers were not 200. Bodies are counted by their length and not read, so that it
takes little of the machine that it measures; of a chunked body only the end is looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import uvloop

BUFFER_BYTES = 262_144
CONNECT_TIMEOUT_S = 10
ANSWER_TIMEOUT_S = 60
LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass
class Load:
    """What is to be sent, and what came back."""

    requests: Iterator[bytes]
    ends_at: float
    left: int
    times_us: list[int] = field(default_factory=list)
    failed: int = 0
    first_failure: str = ""


class Caller(asyncio.BufferedProtocol):
    """One connection with one request in flight."""

    def __init__(self, load: Load, done: asyncio.Future[None]) -> None:
        self._load = load
        self._done = done
        self._buffer = bytearray(BUFFER_BYTES)
        self._head = b""
        self._missing: int | None = None
        self._chunked = False
        self._tail = b""
        self._sent_ns = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is one for TCP
        self._transport = transport
        self._ask()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._missing is None:
            self._head += self._buffer[:nbytes]
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _length(self._head[:end].lower())
            self._chunked = length is None
            self._missing = (length or 0) - (len(self._head) - end - 4)
        else:
            self._missing -= nbytes
        if self._chunked:
            self._tail = (self._tail + self._buffer[max(0, nbytes - len(LAST_CHUNK)) : nbytes])[-len(LAST_CHUNK) :]
            if self._tail == LAST_CHUNK:
                self._answered()
        elif self._missing <= 0:
            self._answered()

    def _answered(self) -> None:
        load = self._load
        load.times_us.append((time.perf_counter_ns() - self._sent_ns) // 1_000)
        if not self._head.startswith(b"HTTP/1.1 200 "):
            load.failed += 1
            load.first_failure = load.first_failure or self._head.decode("latin-1")[:1_000]
        if load.left <= 0 or time.monotonic() >= load.ends_at:
            self._transport.close()
            self._finish()
        else:
            self._ask()

    def _ask(self) -> None:
        self._load.left -= 1
        self._head, self._tail, self._missing = b"", b"", None
        self._sent_ns = time.perf_counter_ns()
        self._transport.write(next(self._load.requests))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._load.failed += 1
            self._finish()

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)


def _length(head: bytes) -> int | None:
    """The length that a head announces; None when the body is chunked."""
    _, found, rest = head.partition(b"\r\ncontent-length:")
    return int(rest.partition(b"\r\n")[0]) if found else None


def written(address: str, path: str, body: bytes, encoding: str) -> bytes:
    """A request as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        f"Accept: */*\r\nAccept-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def run(options: argparse.Namespace, requests: list[bytes]) -> dict[str, object]:
    """Send until the time or the count is over, and add up."""
    host, port = options.address.removeprefix("http://").rsplit(":", 1)
    load = Load(itertools.cycle(requests), time.monotonic() + options.seconds, options.count)
    loop = asyncio.get_running_loop()
    waiting = [loop.create_future() for _ in range(options.in_flight)]
    begin = time.monotonic()
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        for done in waiting:
            await loop.create_connection(lambda done=done: Caller(load, done), host, int(port))  # type: ignore[misc]
    async with asyncio.timeout(options.seconds + ANSWER_TIMEOUT_S):
        await asyncio.gather(*waiting)
    seconds = time.monotonic() - begin
    times = sorted(load.times_us) or [0]
    at = {name: times[min(len(times) - 1, len(times) * share // 100)] for name, share in (("p50", 50), ("p99", 99))}
    return {
        "answers": len(load.times_us),
        "failed": load.failed,
        "seconds": seconds,
        **at,
        "max": times[-1],
        "first_failure": load.first_failure,
    }


def main() -> None:
    """Read the command line and print the line."""
    parser = argparse.ArgumentParser(description="Ask one path again and again.")
    parser.add_argument("address")
    parser.add_argument("path")
    parser.add_argument("bodies")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--encoding", default="identity", help="what is accepted: identity or gzip")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--count", type=int, default=1_000_000)
    options = parser.parse_args()
    requests = [
        written(options.address.removeprefix("http://"), options.path, line, options.encoding)
        for line in Path(options.bodies).read_bytes().splitlines()
    ]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(orjson.dumps(runner.run(run(options, requests))).decode())


if __name__ == "__main__":
    main()
