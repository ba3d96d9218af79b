"""Batches: every item is decided, recorded and refused for itself, and answered in its place."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.api.batch import each, split
from policyd.errors import Overloaded, PolicydError, RequestError, TimedOut

PATH = "/v1/decisions/batch"
JSON = {"Content-Type": "application/json"}


def post(api: Any, content: str | bytes, **headers: str) -> Any:
    return api.client.post(PATH, content=content, headers={**JSON, **headers})


def varied(request: dict[str, Any], **workload: Any) -> dict[str, Any]:
    found = copy.deepcopy(request)
    found["workload"].update(workload)
    return found


def test_each_item_is_answered_in_its_place(api: Any, bank_chat: dict[str, Any]) -> None:
    asked = [
        bank_chat,
        varied(bank_chat, clasification="public"),
        varied(bank_chat, resources={"gpu_count": 60_000}),
        varied(bank_chat, tenant="eu-banc"),
        varied(bank_chat, data={"classification": "public"}),
        bank_chat,
    ]
    found = api.client.post(PATH, json={"requests": asked}, headers={"X-Request-ID": "batch-1"})
    assert found.status_code == 200
    items = found.json()["items"]
    assert [item["status"] for item in items] == [200, 400, 200, 422, 403, 200]
    assert [items[place]["decision"]["outcome"] for place in (0, 2, 5)] == ["allow", "deny", "allow"]
    assert "unknown key `workload.clasification`" in items[1]["problem"]["detail"]
    for place in (1, 3, 4):
        single = api.client.post("/v1/decisions", json=asked[place], headers={"X-Request-ID": "batch-1-single"})
        assert items[place]["problem"] == {**single.json(), "request_id": "batch-1"}
    assert len({item["decision"]["id"] for item in items if "decision" in item}) == 3


def test_every_item_that_was_read_has_its_entry(api: Any, bank_chat: dict[str, Any]) -> None:
    asked = [bank_chat, varied(bank_chat, tenant="eu-banc"), bank_chat, {"workload": {}}]
    found = api.client.post(PATH, json={"requests": asked}, headers={"X-Request-ID": "batch-2"}).json()["items"]
    listed = api.client.get("/v1/decisions", params={"request_id": "batch-2"}).json()["items"]
    named = {item["decision"]["id"] if "decision" in item else item.get("decision_id") for item in found}
    assert named - {None} == {item["id"] for item in listed}
    assert sorted(item.get("kind", "decision") for item in listed) == ["decision", "decision", "refusal"]
    for item in found:
        if "decision" in item:
            record = api.client.get(f"/v1/decisions/{item['decision']['id']}").json()
            assert {key: record[key] for key in item["decision"]} == item["decision"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "is no object"),
        ("null", "is no object"),
        ("{}", "`requests` is required"),
        ('{"requests": []}', "names no request"),
        ('{"requests": {}}', "is no list"),
        ('{"requests": null}', "is no list"),
        ('{"reqests": []}', "did you mean `requests`"),
        ('{"requests": [{}], "options": {}}', "`options` is no key"),
        ('{"requests": [{}], "requests": [{}]}', "stands twice"),
        ('{"requests": [{}]} {}', "is not JSON"),
        ('{"requests": ' + "[" * 10_000 + "]" * 10_000 + "}", "is not JSON"),
        (b'{"requests": [{"workload": {"model": "\xff"}}]}', "is not JSON"),
        ("\ufeff{}", "is not JSON"),
    ],
)
def test_what_is_no_batch_is_refused_whole(api: Any, body: str | bytes, words: str) -> None:
    found = post(api, body)
    assert found.status_code == 400, found.text
    assert words in found.json()["detail"]


@pytest.mark.parametrize(
    "item",
    [
        "1",
        "null",
        "[]",
        '"text"',
        "{}",
        '{"workload": null}',
        '{"workload": {"model": "a", "model": "b"}}',
        '{"workload": {"model": "a", "tenant": null}}',
        '{"workload": {"model": "a", "demand": {"input_tokens": NaN}}}',
        '{"workload": {"model": "a", "demand": {"input_tokens": 1.5}}}',
        '{"workload": {"model": "a", "demand": {"input_tokens": ' + "9" * 4_000 + "}}}",
        '{"workload": {"model": "a]}"}, "\\"]": 1}',
    ],
)
def test_an_item_that_cannot_be_read_fails_alone(api: Any, bank_chat: dict[str, Any], item: str) -> None:
    good = json.dumps(bank_chat)
    found = post(api, f'{{"requests": [{good} , {item},{good}]}}')
    assert found.status_code == 200, found.text
    items = found.json()["items"]
    assert [entry["status"] for entry in items] == [200, 400, 200]
    assert items[1]["problem"]["code"] == "request.invalid"


def test_limits(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    with serving_with(api={"batch_max_items": 2, "batch_body_max_bytes": 4_096}) as server:
        assert server.client.post(PATH, json={"requests": [bank_chat] * 2}).status_code == 200
        found = server.client.post(PATH, json={"requests": [bank_chat] * 3})
        assert (found.status_code, found.json()["code"]) == (413, "request.too_large")
        assert "api.batch_max_items" in found.json()["remedy"]
        found = post(server, " " * 5_000)
        assert (found.status_code, "api.batch_body_max_bytes" in found.json()["remedy"]) == (413, True)
        assert server.client.post(PATH, content=b"{}").status_code == 415


def test_new_classes_of_one_batch_wait_for_each_other(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    """A batch of new classes meets the limit on cold work, which is there for others than itself."""
    asked = [varied(bank_chat, resources={"gpu_count": count}) for count in (1, 2, 4, 8)]
    asked += [varied(request, profile={"urgency": "batch", "task": "rag"}) for request in asked]
    with serving_with(engine={"cold_per_tenant_max": 4}) as server:
        items = server.client.post(PATH, json={"requests": asked}).json()["items"]
    assert [item["status"] for item in items] == [200] * 8


def test_a_full_batch_at_once(api: Any, bank_chat: dict[str, Any]) -> None:
    items = api.client.post(PATH, json={"requests": [bank_chat] * 100}).json()["items"]
    assert [item["decision"]["outcome"] for item in items] == ["allow"] * 100
    places = [item["decision"]["audit"]["index"] for item in items]
    assert len(set(places)) == 100


def test_a_broken_log_allows_nothing(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    with serving_with() as server:
        assert server.client.post("/v1/decisions", json=bank_chat).json()["outcome"] == "allow"
        path = server.parts.directory.log_path
        path.rename(path.with_suffix(".gone"))
        items = server.client.post(PATH, json={"requests": [bank_chat] * 5}).json()["items"]
        assert [(item["status"], item["problem"]["code"]) for item in items] == [(503, "audit.unavailable")] * 5


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(VALUES, min_size=1, max_size=6), st.sampled_from([None, 1]), st.booleans())
def test_the_items_are_the_bytes_that_were_sent(values: list[Any], indent: int | None, ascii_only: bool) -> None:
    content = json.dumps({"requests": values}, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    try:
        content.decode()
    except UnicodeDecodeError:
        return
    assert [json.loads(item) for item in split(content, 6)] == values


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:1 rnequsts\\', max_size=40).map(str.encode))
def test_any_bytes_are_split_or_refused(content: bytes) -> None:
    for whole in (content, b'{"requests":[' + content + b"]}"):
        try:
            split(whole, 10)
        except RequestError:
            continue
        assert "requests" in json.loads(whole)


def test_a_late_item_fails_alone() -> None:
    async def answer(item: bytes) -> bytes:
        if item == b"slow":
            await asyncio.sleep(60)
        if item == b"broken":
            raise ValueError(item)
        return item

    found = asyncio.run(each([b"1", b"slow", b"broken", b"2"], answer, 200))
    assert [type(answer) for answer in found] == [bytes, TimedOut, PolicydError, bytes]


def test_an_item_without_room_is_asked_again_a_bounded_number_of_times() -> None:
    asked: list[bytes] = []

    async def answer(item: bytes) -> bytes:
        asked.append(item)
        if item == b"never" or (item == b"later" and asked.count(item) < 3):
            raise Overloaded("no room")
        return item

    found = asyncio.run(each([b"1", b"later", b"never"], answer, 10_000))
    assert found[:1] == [b"1"]
    assert isinstance(found[2], Overloaded)
    assert len(asked) <= 7
