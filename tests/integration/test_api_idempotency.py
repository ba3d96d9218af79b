"""One key, one decision: repetitions, conflicts, races, expiry, and what a crash leaves behind."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

PATH, BATCH = "/v1/decisions", "/v1/decisions/batch"


def post(api: Any, body: Any, key: str, path: str = PATH, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", "Idempotency-Key": key, **headers}
    return api.client.post(path, content=content, headers=sent)


def entries(api: Any, request_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.client.get(PATH, params={"request_id": request_id}).json()["items"]
    return found


def key() -> str:
    return str(uuid4())


def test_a_repetition_gets_the_first_answer(api: Any, bank_chat: dict[str, Any]) -> None:
    name = key()
    first, second = (post(api, bank_chat, name, **{"X-Request-ID": name}) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.content == second.content
    assert first.headers["x-policyd-decision-id"] == second.headers["x-policyd-decision-id"]
    assert [entry["id"] for entry in entries(api, name)] == [first.json()["id"]]
    assert post(api, bank_chat, key()).json()["id"] != first.json()["id"]
    assert api.client.post(PATH, json=bank_chat).json()["id"] != first.json()["id"]


def test_a_deny_is_kept_too(api: Any, bank_chat: dict[str, Any]) -> None:
    bank_chat["workload"]["resources"] = {"gpu_count": 60_000}
    name = key()
    first, second = post(api, bank_chat, name), post(api, bank_chat, name)
    assert first.json()["outcome"] == "deny"
    assert first.content == second.content


def test_another_body_under_the_same_key_is_refused(api: Any, bank_chat: dict[str, Any]) -> None:
    name = key()
    first = post(api, bank_chat, name)
    for body in ({**bank_chat, "options": {"limit": 2}}, json.dumps(bank_chat, indent=1).encode()):
        refused = post(api, body, name, **{"X-Request-ID": f"{name}-other"})
        assert (refused.status_code, refused.json()["code"]) == (422, "request.key_reused")
    assert entries(api, f"{name}-other") == []
    assert post(api, bank_chat, name).content == first.content


def test_a_key_belongs_to_a_tenant_and_a_route(api: Any, bank_chat: dict[str, Any]) -> None:
    name = key()
    model = bank_chat["workload"]["model"]
    tenants = sorted(api.parts.snapshot.fleet.tenants)[:3]
    found = [post(api, {"workload": {"tenant": tenant, "model": model}}, name) for tenant in tenants]
    decided = [answer.json()["id"] for answer in found if answer.status_code == 200]
    assert len(decided) == len(set(decided)) >= 2
    assert not [answer for answer in found if answer.status_code == 422 and "key" in answer.json()["code"]]
    assert post(api, {"requests": [bank_chat]}, name, BATCH).status_code == 200


def test_an_error_uses_no_key(api: Any, bank_chat: dict[str, Any]) -> None:
    name = key()
    loosening = {"workload": {**bank_chat["workload"], "data": {"classification": "public"}}}
    assert post(api, loosening, name).status_code == 403
    assert post(api, loosening, name).status_code == 403
    assert post(api, bank_chat, name).json()["outcome"] == "allow"


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "caf\xe9"])
def test_what_is_no_key(api: Any, bank_chat: dict[str, Any], name: str) -> None:
    sent = {"Content-Type": "application/json", "Idempotency-Key": name.encode("latin-1")}
    for path, body in ((PATH, bank_chat), (BATCH, {"requests": [bank_chat]})):
        found = api.client.post(path, content=json.dumps(body), headers=sent)
        assert (found.status_code, found.json()["code"]) == (400, "request.invalid")


def test_two_keys_are_none(api: Any, bank_chat: dict[str, Any]) -> None:
    headers = [("Content-Type", "application/json"), ("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    assert api.client.post(PATH, content=json.dumps(bank_chat), headers=headers).status_code == 400


@pytest.mark.parametrize("path", [PATH, BATCH])
def test_a_race_makes_one_decision(api: Any, bank_chat: dict[str, Any], path: str) -> None:
    name = key()
    body = bank_chat if path == PATH else {"requests": [bank_chat] * 3}
    with ThreadPoolExecutor(16) as callers:
        asked = [callers.submit(post, api, body, name, path, **{"X-Request-ID": name}) for _ in range(48)]
        answers = [call.result() for call in asked]
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert len({answer.content for answer in answers if answer.status_code == 200}) == 1
    assert all(answer.json()["code"] == "request.key_in_progress" for answer in answers if answer.status_code == 409)
    assert len(entries(api, name)) == (1 if path == PATH else 3)


def test_a_batch_repeats_whole(api: Any, bank_chat: dict[str, Any]) -> None:
    name = key()
    unread = {"workload": {"model": "x", "tenat": "y"}}
    body = {"requests": [bank_chat, unread, bank_chat]}
    first, second = (post(api, body, name, BATCH, **{"X-Request-ID": name}) for _ in range(2))
    assert first.content == second.content
    assert [item["status"] for item in first.json()["items"]] == [200, 400, 200]
    assert len({item["decision"]["id"] for item in first.json()["items"] if "decision" in item}) == 2
    other = post(api, {"requests": [bank_chat, unread, bank_chat, bank_chat]}, name, BATCH)
    assert (other.status_code, other.json()["code"]) == (422, "request.key_reused")
    assert len(entries(api, name)) == 2


def test_a_restart_forgets_no_key(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    with serving_with() as server:
        first = post(server, bank_chat, "restart")
        assert first.status_code == 200
    with serving_with() as server:
        assert post(server, bank_chat, "restart").content == first.content
        assert post(server, {**bank_chat, "options": {}}, "restart").status_code == 422


def test_a_key_expires(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    with serving_with(api={"idempotency_ttl_ms": 3_000}) as server:
        assert server.client.post(PATH, json=bank_chat).status_code == 200
        first = post(server, bank_chat, "short").json()["id"]
        assert post(server, bank_chat, "short").json()["id"] == first
        time.sleep(3.1)
        assert post(server, {**bank_chat, "options": {"limit": 1}}, "short").json()["id"] != first


def test_no_more_keys_than_the_limit(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    with serving_with(api={"idempotency_keys_max": 2, "idempotency_ttl_ms": 4_000}) as server:
        assert server.client.post(PATH, json=bank_chat).status_code == 200
        kept = [post(server, bank_chat, name).content for name in ("1", "2")]
        refused = post(server, bank_chat, "3", **{"X-Request-ID": "too-many"})
        assert (refused.status_code, refused.json()["code"]) == (503, "overload")
        assert entries(server, "too-many") == []
        assert [post(server, bank_chat, name).content for name in ("1", "2")] == kept
        assert server.client.post(PATH, json=bank_chat).status_code == 200
        time.sleep(4.1)
        assert post(server, bank_chat, "3").status_code == 200


def test_a_broken_log_answers_nothing_under_a_key(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    with serving_with() as server:
        assert post(server, bank_chat, "kept").status_code == 200
        path = server.parts.directory.log_path
        path.rename(path.with_suffix(".gone"))
        assert post(server, bank_chat, "new").status_code == 503
