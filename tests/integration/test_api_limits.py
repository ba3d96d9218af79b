"""The HTTP surface under pressure and with broken parts: it refuses, says why, and recovers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, MutableMapping
from contextlib import closing, suppress
from pathlib import Path
from threading import Thread
from typing import Any, cast

import httpx
import pytest

from policyd.api import connection
from policyd.api.callers import Callers
from policyd.api.gate import Gate
from policyd.identity.limits import Limiter
from policyd.services.refusals import Refusals
from policyd.settings import ApiSettings
from policyd.telemetry import Telemetry

HEAD = b"POST /v1/decisions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def half_sent(address: str) -> socket.socket:
    """A connection on which a request was begun and not finished."""
    host, port = address.removeprefix("http://").split(":")
    found = socket.create_connection((host, int(port)), timeout=10)
    found.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
    return found


def eventually(check: Callable[[], bool], within_s: float = 10) -> None:
    ends = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.05)


def reasons(server: Any) -> dict[str, str | None]:
    found = server.client.get("/readyz").json()
    return {check["name"]: check["reason"] for check in found["checks"]}


def test_over_the_limit_of_requests_in_progress(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    with serving_with(api={"in_flight_max": 1}) as server, half_sent(server.address) as held:
        eventually(lambda: server.client.get("/v1/fleet").status_code == 503)
        found = server.client.post("/v1/decisions", json=bank_chat)
        assert (found.status_code, found.json()["code"]) == (503, "overload")
        assert int(found.headers["retry-after"]) > 0
        assert server.client.get("/livez").status_code == 200
        assert server.client.get("/readyz").status_code == 200
        held.close()
        eventually(lambda: server.client.post("/v1/decisions", json=bank_chat).status_code == 200)


def test_a_request_that_takes_too_long(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    with serving_with(api={"request_timeout_ms": 300}) as server:
        with half_sent(server.address) as slow:
            answer = b""
            while part := slow.recv(65_536):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close" in head.lower()
        assert json.loads(body)["code"] == "timeout"


def test_verdicts_that_take_too_long_are_recorded(
    serving_with: Any, bank_chat: dict[str, Any], tmp_path: Path, repository: Path
) -> None:
    with serving_with(engine={"sheet_wait_ms": 100, "workers": 1}) as server:
        workers = children(os.getpid())
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        try:
            found = server.client.post("/v1/decisions", json=bank_chat)
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
        assert (found.status_code, found.json()["code"]) == (503, "timeout")
        listed = server.client.get("/v1/decisions", params={"request_id": found.json()["request_id"]}).json()["items"]
        assert [(item["kind"], item["code"]) for item in listed] == [("error", "timeout")]


def children(pid: int) -> list[int]:
    """The processes that this one has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def test_a_stalled_log_refuses_at_once_what_would_wait(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    """Somebody holds the lock of the database: who came before it was known waits, everybody else hears at once."""
    queue_max_ms = 200
    with serving_with(api={"queue_max_ms": queue_max_ms}) as server:
        assert server.client.post("/v1/decisions", json=bank_chat).status_code == 200
        waited: list[int] = []
        with closing(sqlite3.connect(server.parts.directory.log_path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            first = Thread(
                target=lambda: waited.append(
                    httpx.post(f"{server.address}/v1/decisions", json=bank_chat, timeout=30).status_code
                )
            )
            first.start()
            eventually(lambda: server.parts.committer.wait_ms > queue_max_ms)
            took_ms = []
            for _ in range(20):
                began = time.monotonic()
                found = server.client.post("/v1/decisions", json=bank_chat)
                took_ms.append((time.monotonic() - began) * 1_000)
                assert (found.status_code, found.json()["code"]) == (503, "overload")
                assert int(found.headers["retry-after"]) > 0
            batch = server.client.post("/v1/decisions/batch", json={"requests": [bank_chat]})
            assert batch.json()["items"][0]["problem"]["code"] == "overload"
            assert server.client.get("/v1/fleet").status_code == 200, "what records nothing goes on"
            assert waited == []
            other.execute("ROLLBACK")
        first.join(30)
        assert sorted(took_ms)[10] < queue_max_ms, took_ms
        assert waited == [200], "what was taken is recorded and answered"
        assert server.client.post("/v1/decisions", json=bank_chat).status_code == 200


def test_facts_that_grow_old(serving_with: Any, bank_chat: dict[str, Any], tmp_path: Path, repository: Path) -> None:
    facts = tmp_path / "facts.yaml"
    facts.write_bytes((repository / "examples" / "facts.yaml").read_bytes())
    with serving_with(facts={"path": facts, "refresh_ms": 50}) as server:
        server.parts.facts.stale_after_ms = 1_500
        assert server.client.post("/v1/decisions", json=bank_chat).status_code == 200
        facts.rename(tmp_path / "away.yaml")
        eventually(lambda: server.client.get("/readyz").status_code == 503)
        assert "cannot be read anew" in (reasons(server)["facts"] or "")
        found = server.client.post("/v1/decisions", json=bank_chat)
        assert (found.status_code, found.json()["code"]) == (503, "facts.unavailable")
        (tmp_path / "away.yaml").rename(facts)
        eventually(lambda: server.client.get("/readyz").status_code == 200)
        assert server.client.post("/v1/decisions", json=bank_chat).status_code == 200


def test_a_log_that_is_taken_away(serving_with: Any, bank_chat: dict[str, Any], tmp_path: Path) -> None:
    with serving_with() as server:
        log = server.parts.directory.log_path
        first = server.client.post("/v1/decisions", json=bank_chat).json()
        log.rename(tmp_path / "away")
        found = server.client.post("/v1/decisions", json=bank_chat)
        assert (found.status_code, found.json()["code"]) == (503, "audit.unavailable")
        assert server.client.get("/readyz").status_code == 503
        assert reasons(server)["log"]
        assert server.client.get("/livez").status_code == 200
        (tmp_path / "away").rename(log)
        eventually(lambda: server.client.get("/readyz").status_code == 200)
        again = server.client.post("/v1/decisions", json=bank_chat).json()
        assert again["audit"]["index"] > first["audit"]["index"]


def test_a_head_that_does_not_come(serving_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.5)
    with serving_with() as server:
        for begun, dripped in [(b"", b""), (b"GET /livez HTTP/1.1\r\nX-Slow: ", b"a"), (b"\r\n", b"\r\n")]:
            started = time.monotonic()
            drip(server.address, begun, dripped)
            assert time.monotonic() - started < 5, begun


def drip(address: str, begun: bytes, dripped: bytes, for_s: float = 8) -> None:
    """Send a byte now and then until the server closes the connection."""
    host, port = address.removeprefix("http://").split(":")
    ends = time.monotonic() + for_s
    with socket.create_connection((host, int(port)), timeout=0.1) as slow, suppress(ConnectionError):
        slow.sendall(begun)
        while time.monotonic() < ends:
            try:
                if slow.recv(100) == b"":
                    return
            except TimeoutError:
                slow.sendall(dripped)


def gated(app: Any, **limits: int) -> list[MutableMapping[str, Any]]:
    """What leaves the gate when this application stands behind it."""
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "path": "/x", "method": "GET", "headers": [(b"host", b"localhost")]}
    callers = Callers(None, Limiter(1, 1, 1), Refusals(cast("Any", None)))
    asyncio.run(Gate(app, ApiSettings(**limits), callers, Telemetry())(scope, receive, send))
    return sent


def test_an_unforeseen_fault_tells_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    async def faulty(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError("secret of the inside")

    with caplog.at_level(logging.ERROR):
        start, body = gated(faulty)
    document = json.loads(body["body"])
    assert (start["status"], document["code"]) == (500, "internal")
    assert "secret" not in body["body"].decode()
    assert document["request_id"] in caplog.text
    assert "secret of the inside" in caplog.text


def test_a_fault_after_the_answer_began_ends_the_connection() -> None:
    async def faulty(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        gated(faulty)
