"""Keys over a SIGKILL: whatever was answered or not, every request sent again becomes exactly one decision."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.killed_server import served

CALLERS = 16
BODY = json.dumps(
    {
        "workload": {"tenant": "eu-bank", "project": "support-chat", "model": "llama-3.1-70b-instruct"},
        "options": {"limit": 1},
    }
)


def ask(client: httpx.Client, key: str) -> httpx.Response:
    headers = {"Content-Type": "application/json", "Idempotency-Key": key, "X-Request-ID": key}
    return client.post("/v1/decisions", content=BODY, headers=headers)


def load(address: str, process: subprocess.Popen[str], answered: dict[str, bytes], sent: list[str]) -> None:
    """Callers that each ask under new keys until the server is gone; it is killed while they are at it."""

    def call(caller: int) -> None:
        with httpx.Client(base_url=address, timeout=30) as client:
            for nth in range(10_000):
                key = f"{caller}-{nth}"
                sent.append(key)
                try:
                    found = ask(client, key)
                except httpx.TransportError:
                    return
                assert found.status_code == 200, found.text
                answered[key] = found.content

    callers = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
    for caller in callers:
        caller.start()
    ends = time.monotonic() + 60
    while len(answered) < 100:
        assert time.monotonic() < ends
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    for caller in callers:
        caller.join(60)


def entries(client: httpx.Client, key: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/v1/decisions", params={"request_id": key}).json()["items"]
    return found


def test_a_key_survives_a_kill(tmp_path: Path, repository: Path) -> None:
    data = tmp_path / "data"
    answered: dict[str, bytes] = {}
    sent: list[str] = []
    with served(data, repository) as (process, address):
        load(address, process, answered, sent)
    unanswered = [key for key in sent if key not in answered]
    assert unanswered
    again = [*unanswered, *sorted(answered)[:60]]
    with served(data, repository) as (_, address), httpx.Client(base_url=address, timeout=60) as client:
        before = {key: len(entries(client, key)) for key in unanswered}
        assert set(before.values()) <= {0, 1}
        with ThreadPoolExecutor(4) as callers:
            repeated = dict(zip(again, callers.map(lambda key: ask(client, key), again), strict=True))
        for key, found in repeated.items():
            assert found.status_code == 200, found.text
            if key in answered:
                assert found.content == answered[key]
            logged = entries(client, key)
            assert [entry["id"] for entry in logged] == [found.json()["id"]]
