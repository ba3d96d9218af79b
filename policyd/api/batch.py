"""Many decisions in one request: each is decided, recorded and answered for itself.

    body ──split──► items ──read, decide──► answers, in the order of the questions

Rules: an item is read by the reader of the single route, from its own bytes, so that nothing which is refused there
passes here; a faulty, refused or slow item fails alone, with its problem in its place; no allow leaves before its entry
is durable; a batch holds no more items in progress than ``IN_PROGRESS_ITEMS``, so that one caller does not take the
event loop from the others.
It refuses: an empty batch, one that is longer than ``api.batch_max_items``, a key that is none of the batch's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from json import JSONDecoder
from typing import Any, Final, TypeVar

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from policyd.api.bodies import json_text, parse_json, read_bytes
from policyd.api.callers import principal_of
from policyd.api.direct import NO_STORE
from policyd.api.keys import key_of
from policyd.api.openapi_batch import BATCH
from policyd.api.packing import Packing, Pieces
from policyd.api.parts import Parts
from policyd.api.problems import problem_json, request_id_of
from policyd.core.principal import Principal
from policyd.core.workload import DecisionRequest
from policyd.documents import nearest
from policyd.errors import Finding, Overloaded, PolicydError, RequestError, TimedOut, TooLarge
from policyd.services.decisions import Answered
from policyd.services.repeats import Key, Repeats

IN_PROGRESS_ITEMS: Final = 64
"""Enough that one write of the log serves many items."""
ATTEMPTS_MAX: Final = 3
"""An item that met a limit on new workload classes is asked again when others of its batch are done."""
DEADLINE_PERCENT: Final = 90
"""Of the time for a request: what is answered by then leaves, the rest says that it came too late."""
PATH: Final = "/v1/decisions/batch"
KEY: Final = "requests"
Asked = TypeVar("Asked")
Given = TypeVar("Given")
_BLANKS: Final = " \t\n\r"
_log: Final = logging.getLogger(__name__)


def batch_router(parts: Parts, packing: Packing) -> APIRouter:
    """The route of the batch."""
    router = APIRouter(prefix="/v1/decisions", tags=["decisions"])
    limits = parts.settings.api
    batches = Slots(limits.batch_in_progress_max, "as many batches are in progress as api.batch_in_progress_max admits")

    @router.post("/batch", summary="Decide many workloads, each for itself", **BATCH)
    async def batch(request: Request) -> Response:
        """Answers in the order of the requests: a decision, or the problem that this one met."""
        with batches:
            content = await read_bytes(request, limits.batch_body_max_bytes, "api.batch_body_max_bytes")
            items = split(content, limits.batch_max_items)
            principal, request_id = principal_of(request), request_id_of(request)

            key = key_of(request)
            deadline_ms = limits.request_timeout_ms * DEADLINE_PERCENT // 100

            async def decided(item: bytes) -> Answered:
                return await parts.decisions.decide(parse_json(item, DecisionRequest), principal, request_id)

            if key is None:
                answered = await each(items, decided, deadline_ms)
            else:
                repeated = _Repeated(parts.repeats, principal, request_id, Key(key, PATH, content))
                answered = await repeated.each(items, deadline_ms)
            sheets = [answer.made.sheet for answer in answered if isinstance(answer, Answered)]
            headers, pieces = packing.answer(request.scope["headers"], list(body_pieces(answered, request_id)), sheets)
            return Pieces([*headers, NO_STORE], pieces)

    return router


@dataclass(frozen=True)
class _Repeated:
    """A batch under a key: each item uses the key at its place, so that a repetition decides only what is missing."""

    repeats: Repeats
    principal: Principal
    request_id: str
    key: Key

    async def each(self, items: Sequence[bytes], deadline_ms: int) -> list[Answered | PolicydError]:
        """The answers. Raises ``KeyInProgress``, and ``KeyReused`` before any item is decided."""
        with self.repeats.whole(self.principal, self.key):
            for place, item in enumerate(items):
                await self._check(place, item)
            return await each(list(enumerate(items)), self._decided, deadline_ms)

    async def _check(self, place: int, item: bytes) -> None:
        try:
            asked = parse_json(item, DecisionRequest)
        except RequestError:
            return  # an item that cannot be read has used no key
        await self.repeats.check(asked, self.principal, replace(self.key, item=place))

    async def _decided(self, placed: tuple[int, bytes]) -> Answered:
        place, item = placed
        asked, key = parse_json(item, DecisionRequest), replace(self.key, item=place)
        return await self.repeats.decide(asked, self.principal, self.request_id, key)


@dataclass
class Slots:
    """How many of something may be in progress; ``full`` tells who is refused."""

    free: int
    full: str

    def __enter__(self) -> None:
        if not self.free:
            raise Overloaded(self.full)
        self.free -= 1

    def __exit__(self, *_: object) -> None:
        self.free += 1


def body_pieces(answered: Sequence[Answered | PolicydError], request_id: str) -> Iterator[bytes]:
    """The body of a batch; what its decisions share is in it by reference."""
    before = b'{"items":['
    for answer in answered:
        if isinstance(answer, Answered):
            yield before + b'{"status":200,"decision":'
            yield from answer.pieces
            yield b"}"
        else:
            yield before + orjson.dumps(problem_item(answer, request_id))
        before = b","
    yield b"]}"


def problem_item(answer: PolicydError, request_id: str) -> dict[str, Any]:
    """An item of a batch that brought no decision."""
    found: dict[str, Any] = {"status": answer.http_status, "problem": problem_json(answer, request_id)}
    if answer.decision_id is not None:
        found["decision_id"] = answer.decision_id
    return found


async def each(
    items: Sequence[Asked], answer: Callable[[Asked], Awaitable[Given]], deadline_ms: int
) -> list[Given | PolicydError]:
    """The answer to each item, in order; an item that raises or comes too late has its error instead."""
    room = asyncio.Semaphore(IN_PROGRESS_ITEMS)

    async def one(item: Asked) -> Given | PolicydError:
        async with room:
            return await _answered(item, answer)

    found: list[Given | PolicydError] = [_late(deadline_ms) for _ in items]
    open_places = list(range(len(items)))
    ends = asyncio.get_running_loop().time() + deadline_ms / 1_000
    for _ in range(ATTEMPTS_MAX):
        tasks = {place: asyncio.create_task(one(items[place])) for place in open_places}
        try:
            await asyncio.wait(tasks.values(), timeout=max(0, ends - asyncio.get_running_loop().time()))
        finally:
            for task in tasks.values():
                task.cancel()
        for place, task in tasks.items():
            found[place] = task.result() if task.done() and not task.cancelled() else _late(deadline_ms)
        again = [place for place in open_places if isinstance(found[place], Overloaded)]
        # When none of them got through there was no room at all, and asking again would only add to that.
        if not again or len(again) == len(open_places):
            break
        open_places = again
    return found


async def _answered(item: Asked, answer: Callable[[Asked], Awaitable[Given]]) -> Given | PolicydError:
    try:
        return await answer(item)
    except PolicydError as error:
        return error
    except Exception:  # noqa: BLE001 - whatever it is, it must not take the other items with it
        _log.exception("an item of a batch failed")
        return PolicydError("an unforeseen fault; the server's log has it")


def _late(deadline_ms: int) -> TimedOut:
    return TimedOut(
        f"no answer within {deadline_ms} ms, the time for a whole batch",
        remedy="send fewer requests at once; what the log has of this one can be searched by the request id",
    )


def split(content: bytes, items_max: int) -> list[bytes]:
    """The bytes of each request of a batch. Raises ``RequestError``, and ``TooLarge`` above the limit.

    The bytes themselves, since a value that was read and written again no longer shows which keys stood twice.
    """
    text = json_text(content)
    start = _list_start(text)
    found: list[bytes] = []
    while text[start] != "]":
        _, end = _decoder.raw_decode(text, start)
        if len(found) == items_max:
            raise TooLarge(
                f"the batch has more than {items_max} requests",
                remedy="send less at once; the limit is api.batch_max_items",
            )
        found.append(text[start:end].encode())
        start = _after(text, end, ",")
    if not found:
        raise _fault(KEY, "names no request")
    rest = _after(text, start + 1, ",")
    if text[rest] != "}":
        raise _fault(*_key_fault(_decoder.raw_decode(text, rest)[0]))
    return found


_decoder: Final = JSONDecoder(parse_int=str, parse_float=str)


def _list_start(text: str) -> int:
    """Where the first item of the list stands, or the end of the list."""
    start = _after(text, 0)
    if text[start] != "{":
        raise RequestError(f"the body is no object with `{KEY}`")
    start = _after(text, start + 1)
    if text[start] == "}":
        raise _fault(KEY, "is required")
    key, end = _decoder.raw_decode(text, start)
    if key != KEY:
        raise _fault(*_key_fault(key))
    start = _after(text, _after(text, end, ":"))
    if text[start] != "[":
        raise _fault(KEY, "is no list")
    return _after(text, start + 1)


def _after(text: str, place: int, separator: str = "") -> int:
    """The next place that is no blank, past one separator when it stands there."""
    while text[place] in _BLANKS:
        place += 1
    if separator and text[place] == separator:
        return _after(text, place + 1)
    return place


def _key_fault(key: str) -> tuple[str, str]:
    return key[:100], "stands twice" if key == KEY else f"is no key of a batch{nearest(key[:100], [KEY])}"


def _fault(where: str, message: str) -> RequestError:
    return RequestError(
        f"the request cannot be read: `{where}` {message}", findings=[Finding(where, f"`{where}` {message}")]
    )
