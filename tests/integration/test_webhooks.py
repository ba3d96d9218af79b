"""Webhooks to a real receiver on loopback: signed, in both forms, at least once, whatever the receiver does."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from connectors.webhook_http import WebhookHttp
from policyd.bootstrap import running
from policyd.services.events import EVENT_NAMES
from policyd.services.webhook_forms import secret_of
from policyd.services.webhooks import Receiver, Webhooks, read_states
from policyd.settings import EventName, load_settings
from tests.integration.test_reservations import EXAMPLES, fleet_with, usd

fleet_with = fleet_with
SECRET = "0123456789abcdef-secret"
WAIT_S = 30


class Listening:
    """A receiver that does as ``mode`` says: well, hang, cut, or a status."""

    def __init__(self) -> None:
        self.mode: str | int = "well"
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.tries = 0
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.tries += 1
                body = self.rfile.read(int(self.headers["content-length"]))
                if outer.mode == "hang":
                    outer.released.wait(WAIT_S)
                    return
                if outer.mode == "cut":
                    self.connection.close()
                    return
                if outer.mode == "well":
                    outer.heard.append(({key.lower(): value for key, value in self.headers.items()}, body))
                self.send_response(200 if outer.mode == "well" else int(outer.mode))
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def documents(self) -> list[Any]:
        return [json.loads(body) for _, body in self.heard]


@pytest.fixture
def listening() -> Generator[Listening, None, None]:
    found = Listening()
    yield found
    found.close()


async def until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < ends, "it did not come to that"
        await asyncio.sleep(0.02)


def impatient(listening: Listening, name: str = "ops", **more: Any) -> Receiver:
    times = {"timeout_ms": 800, "retry_first_ms": 20, "retry_max_ms": 50}
    return Receiver(name, listening.url, frozenset(EVENT_NAMES), **{"key": secret_of(SECRET), **times, **more})


class Spending:
    """A policyd whose budget is crossed by a settlement, with webhooks beside it."""

    def __init__(self, parts: Any, bank_chat: dict[str, Any], fleet: Path) -> None:
        self.parts, self._bank_chat, self.http = parts, bank_chat, WebhookHttp()
        self.tasks: list[asyncio.Task[None]] = []

    async def deliver(self, *receivers: Receiver) -> Webhooks:
        parts = self.parts
        webhooks = Webhooks(receivers, parts.reader, parts.committer.origin, parts.directory.path, self.http.post)
        await webhooks.begin()
        self.tasks.append(asyncio.create_task(webhooks.run()))
        return webhooks

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []

    async def spend(self, micro_usd: int) -> None:
        from policyd.core.workload import DecisionRequest
        from policyd.services.settlements import Usage

        request = DecisionRequest.model_validate_json(json.dumps(self._bank_chat))
        made = await self.parts.decisions.decide(request, self.parts.principal, "test")
        assert made.made.decision.outcome == "allow"
        usage = Usage(micro_usd=micro_usd)
        await self.parts.settlements.settle(made.id, usage, self.parts.principal, "test")


def spending(tmp_path: Path, fleet: Path, bank_chat: dict[str, Any], work: Callable[[Spending], Any]) -> None:
    flags = {"data_dir": tmp_path / "data", "fleet": fleet, "facts": {"path": EXAMPLES / "facts.yaml"}}
    settings = load_settings(environment={}, flags=flags)

    async def main() -> None:
        async with running(settings) as parts:
            found = Spending(parts, bank_chat, fleet)
            try:
                await work(found)
            finally:
                await found.stop()
                await found.http.__aexit__(None, None, None)

    asyncio.run(main())


@pytest.fixture
def fleet(fleet_with: Any) -> Path:
    """One account with ten dollars a month."""
    return Path(fleet_with(f'{{limit: "{usd(10_000_000)}", window: month}}'))


def test_a_threshold_is_told_once_signed_and_in_both_forms(
    listening: Listening, tmp_path: Path, fleet: Path, bank_chat: dict[str, Any]
) -> None:
    async def work(found: Spending) -> None:
        webhooks = await found.deliver(
            impatient(listening), impatient(listening, "alerts", form="alertmanager", key=None)
        )
        await found.spend(8_100_000)
        await until(lambda: len(listening.heard) == 4)
        await found.spend(1)
        await asyncio.sleep(1.2)  # another look at the log
        assert len(listening.heard) == 4
        assert dict(webhooks.counted()) == {("ops", "delivered"): 2, ("alerts", "delivered"): 2}

    spending(tmp_path, fleet, bank_chat, work)
    plain = [document for document in listening.documents() if isinstance(document, dict)]
    assert [(document["type"], document["data"]["percent"]) for document in plain] == [
        ("budget.threshold", 50),
        ("budget.threshold", 80),
    ]
    assert (plain[1]["tenant"], plain[1]["severity"]) == ("eu-bank", "warning")
    assert "$8.10 of $10.00" in plain[1]["summary"]
    assert "salt" not in plain[1]["data"]
    alerts = [document[0] for document in listening.documents() if isinstance(document, list)]
    assert alerts[1]["labels"]["alertname"] == "PolicydBudgetThreshold"
    assert alerts[1]["labels"]["percent"] == "80"
    for headers, body in listening.heard:
        signature = headers.get("webhook-signature")
        if isinstance(json.loads(body), list):
            assert signature is None
            continue
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        assert b64decode(str(signature).removeprefix("v1,")) == hmac.digest(SECRET.encode(), signed, hashlib.sha256)
        assert abs(time.time() - int(headers["webhook-timestamp"])) < 60


def test_a_receiver_that_fails_hears_later_and_holds_up_nobody(
    listening: Listening, tmp_path: Path, fleet: Path, bank_chat: dict[str, Any]
) -> None:
    well = Listening()

    async def work(found: Spending) -> None:
        webhooks = await found.deliver(impatient(listening), impatient(well, "other"))
        listening.mode = "hang"
        began = time.monotonic()
        await found.spend(5_000_000)
        assert time.monotonic() - began < 5
        await until(lambda: len(well.heard) == 1)
        modes: tuple[str | int, ...] = ("hang", 500, "cut", 429)
        for mode in modes:
            tries, listening.mode = listening.tries, mode
            listening.released.set()
            await until(lambda tries=tries: listening.tries > tries + 1)
            assert listening.heard == []
        assert dict(webhooks.failing_s())["ops",] > 0
        state = read_states(found.parts.directory.path)["receivers"]["ops"]
        assert state["failing_since"] is not None
        assert state["error"]
        listening.mode = "well"
        await until(lambda: len(listening.heard) == 1)
        await until(lambda: dict(webhooks.failing_s())["ops",] == 0)
        # The file follows: it is written when the turn is over.
        await until(lambda: read_states(found.parts.directory.path)["receivers"]["ops"]["failing_since"] is None)

    spending(tmp_path, fleet, bank_chat, work)
    well.close()
    assert [document["data"]["percent"] for document in listening.documents()] == [50]


def test_what_was_not_heard_before_the_end_is_heard_after_the_start(
    listening: Listening, tmp_path: Path, fleet: Path, bank_chat: dict[str, Any]
) -> None:
    listening.mode = 503

    async def before(found: Spending) -> None:
        await found.deliver(impatient(listening))
        await found.spend(5_000_000)
        await until(lambda: listening.tries > 1)
        await found.stop()
        await found.spend(3_000_000)

    async def after(found: Spending) -> None:
        listening.mode = "well"
        await found.deliver(impatient(listening))
        await until(lambda: len(listening.heard) == 2)

    spending(tmp_path, fleet, bank_chat, before)
    assert listening.heard == []
    spending(tmp_path, fleet, bank_chat, after)
    assert [document["data"]["percent"] for document in listening.documents()] == [50, 80]


def test_what_is_refused_is_given_up_and_said(
    listening: Listening, tmp_path: Path, fleet: Path, bank_chat: dict[str, Any]
) -> None:
    async def work(found: Spending) -> None:
        webhooks = await found.deliver(impatient(listening))
        listening.mode = 400
        await found.spend(5_000_000)
        await until(lambda: webhooks.results["ops", "given_up"] == 1)
        assert listening.tries == 3
        listening.mode = "well"
        await found.spend(3_000_000)
        await until(lambda: len(listening.heard) == 1)
        assert read_states(found.parts.directory.path)["receivers"]["ops"]["given_up"] == 1

    spending(tmp_path, fleet, bank_chat, work)
    assert [document["data"]["percent"] for document in listening.documents()] == [80]


def test_a_killed_server_loses_none(
    listening: Listening, tmp_path: Path, fleet: Path, bank_chat: dict[str, Any]
) -> None:
    """By the real command: killed while the receiver hangs, and started again, with several API processes."""
    import httpx

    (tmp_path / "secret").write_text(SECRET)
    listening.mode = "hang"

    def started(workers: int) -> tuple[subprocess.Popen[bytes], str]:
        place = ["--data-dir", str(tmp_path / "data"), "--fleet", str(fleet), "--facts", str(EXAMPLES / "facts.yaml")]
        process = subprocess.Popen(
            [sys.executable, "-m", "policyd.cli.main", "serve", "--port", "0", *place, "--workers", str(workers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "POLICYD_WEBHOOKS__OPS__URL": listening.url,
                "POLICYD_WEBHOOKS__OPS__SECRET_FILE": str(tmp_path / "secret"),
                "POLICYD_WEBHOOKS__OPS__RETRY_FIRST_MS": "100",
            },
        )
        assert process.stdout is not None
        with process.stdout:
            line = process.stdout.readline().decode()
        return process, next(word for word in line.split() if word.startswith("http://")).rstrip(".,")

    process, address = started(1)
    held = httpx.post(f"{address}/v1/decisions", json=bank_chat, timeout=30).json()
    usage = {"micro_usd": 9_600_000}
    assert httpx.post(f"{address}/v1/decisions/{held['id']}/settlement", json=usage, timeout=30).status_code == 200
    asyncio.run(until(lambda: listening.tries > 0))
    process.send_signal(signal.SIGKILL)
    process.wait()
    listening.mode = "well"
    listening.released.set()
    process, address = started(2)
    try:
        asyncio.run(until(lambda: len(listening.heard) >= 3))
        metrics = httpx.get(f"{address}/metrics", timeout=30).text
        assert 'policyd_webhook_attempts_total{receiver="ops",result="delivered"} 3' in metrics
    finally:
        process.terminate()
        process.wait(60)
    assert [document["data"]["percent"] for document in listening.documents()] == [50, 80, 95]


def test_every_event_is_a_setting() -> None:
    from typing import get_args

    assert get_args(EventName) == EVENT_NAMES
