"""The two ways to ``POST /v1/decisions``, the direct one and that of the framework, say the same."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from policyd.api import direct

MOMENT = ("id", "time", "valid_until", "audit", "reservation")


def by_the_framework(server: Any, monkeypatch: pytest.MonkeyPatch, **request: Any) -> httpx.Response:
    with monkeypatch.context() as patch:
        patch.setattr(direct, "PATH", "/nowhere")
        found: httpx.Response = server.client.post("/v1/decisions", **request)
    return found


def test_an_answer_is_the_same_by_both_ways(
    api: Any, bank_chat: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_fits = {**bank_chat["workload"], "resources": {"gpu_memory_gib": 1_000_000}}
    too_long = {**bank_chat["workload"], "demand": {"input_tokens": 16_000_000}}
    for workload in (bank_chat["workload"], nothing_fits, too_long):
        short = api.client.post("/v1/decisions", json={"workload": workload})
        long = by_the_framework(api, monkeypatch, json={"workload": workload})
        assert short.status_code == long.status_code == 200
        left, right = short.json(), long.json()
        assert list(left) == list(right)
        assert {k: v for k, v in left.items() if k not in MOMENT} == {k: v for k, v in right.items() if k not in MOMENT}
        assert left["audit"]["index"] < right["audit"]["index"]
        assert short.headers["x-policyd-decision-id"] == left["id"]
        assert short.headers["content-length"] == str(short.num_bytes_downloaded)
        assert set(short.headers) == set(long.headers)


def test_a_refusal_is_the_same_by_both_ways(
    api: Any, bank_chat: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[dict[str, Any]] = [
        {"content": b'{"workload": {"model": "a", "model": "b"}}', "headers": {"content-type": "application/json"}},
        {"content": b'{"workload": {"model": null}}', "headers": {"content-type": "application/json"}},
        {"content": b"{}", "headers": {"content-type": "text/plain"}},
        {"content": b"{}", "headers": {"content-type": "application/json", "content-encoding": "gzip"}},
        {"content": b"x" * 300_000, "headers": {"content-type": "application/json"}},
        {"json": {"workload": {**bank_chat["workload"], "tenant": "nobody"}}},
        {"json": {"workload": {**bank_chat["workload"], "data": {"classification": "public"}}}},
    ]
    for request in requests:
        short = api.client.post("/v1/decisions", **request)
        long = by_the_framework(api, monkeypatch, **request)
        assert 400 <= short.status_code < 500
        assert short.status_code == long.status_code
        told = {**short.json(), "request_id": None}
        assert told == {**long.json(), "request_id": None}
