"""Every call of the HTTP surface, without input or output: what is sent, and what the answer must be.

Rules: a call says whether asking twice is the same as asking once; a decision is such only under an idempotency key,
since a decision that was recorded twice counts twice; an answer that is not the document it should be is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, cast
from urllib.parse import quote

import orjson

from policyd.client.documents import (
    Asked,
    BreakEven,
    Budget,
    ChangedBudgets,
    Decision,
    Entry,
    Filters,
    Fleet,
    Json,
    Model,
    Options,
    Overrides,
    Page,
    Pool,
    Readiness,
    Reservation,
    Simulation,
    Traffic,
    Usage,
    Workload,
)
from policyd.client.problems import error_from, error_of, json_of
from policyd.errors import PolicydError, RequestError, ServerUnreachable

Found = TypeVar("Found")
Item = TypeVar("Item")

JSON: Final = "application/json"
TEXT: Final = "text/plain"
PAGES_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: the status, the parts of the head that mean something, and the whole body."""

    status: int
    media_type: str
    body: bytes
    decision_id: str | None = None


@dataclass(frozen=True, slots=True)
class Call(Generic[Found]):
    """One request, and how its answer is read. ``read`` gives None for what is not the document that was asked for."""

    method: str
    path: str
    read: Callable[[bytes], Found | None]
    noun: str = "document"
    parameters: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    statuses: frozenset[int] = frozenset({200})
    media_type: str = JSON

    def finish(self, reply: Reply, address: str) -> Found:
        """The answer that a reply holds. Raises the error that it stands for."""
        answered = reply.status in self.statuses and reply.media_type == self.media_type
        if not answered and not 200 <= reply.status < 300:
            raise error_of(reply.status, reply.body, address, reply.media_type, reply.decision_id)
        found = self.read(reply.body) if answered else None
        if found is None:
            raise ServerUnreachable(f"{address} answered {reply.status} with something that is no {self.noun}")
        return found


class Listing(Generic[Item]):
    """The pages of a list, one call after the other: send ``call``, ``take`` its page, until ``call`` is None."""

    def __init__(self, page: Callable[[str | None], Call[Page[Item]]]) -> None:
        self._page = page
        self._seen = 0
        self.call: Call[Page[Item]] | None = page(None)

    def take(self, page: Page[Item]) -> list[Item]:
        """The items of a page; sets the next call."""
        self._seen += 1
        following = page["next"]
        if following is not None and (self._seen >= PAGES_MAX or not page["items"]):
            raise ServerUnreachable("the list of the server does not end")
        self.call = None if following is None else self._page(following)
        return page["items"]


def decide(
    workload: Workload, options: Options | None, idempotency_key: str | None, request_id: str | None
) -> Call[Decision]:
    """``POST /v1/decisions``."""
    content = encoded({"workload": workload, "options": options or {}})
    sent = headers(idempotency_key=idempotency_key, request_id=request_id)
    return Call(
        "POST", "/v1/decisions", _decision, "decision",
        content=content, headers=sent, repeatable=idempotency_key is not None,
    )  # fmt: skip


def decide_batch(
    requests: Sequence[Asked], idempotency_key: str | None, request_id: str | None
) -> Call[list[Decision | PolicydError]]:
    """``POST /v1/decisions/batch``: an answer or error for each, in order; each has the key at its place."""

    def read(body: bytes) -> list[Decision | PolicydError] | None:
        found = json_of(body)
        items = found.get("items") if isinstance(found, dict) else None
        if not isinstance(items, list) or len(items) != len(requests):
            return None
        answers = [_answered(item) for item in items]
        return [answer for answer in answers if answer is not None] if None not in answers else None

    return Call(
        "POST", "/v1/decisions/batch", read, f"batch of {len(requests)} decisions",
        content=encoded({"requests": list(requests)}),
        headers=headers(idempotency_key=idempotency_key, request_id=request_id),
        repeatable=idempotency_key is not None,
    )  # fmt: skip


def simulate(requests: Sequence[Asked], overrides: Overrides) -> Call[Simulation]:
    """``POST /v1/simulations``: nothing is recorded, so it may be repeated."""

    def read(body: bytes) -> Simulation | None:
        found = _simulation(json_of(body))
        return found if found is not None and len(found["items"]) == len(requests) else None

    content = encoded({"requests": list(requests), "overrides": overrides})
    return Call("POST", "/v1/simulations", read, f"simulation of {len(requests)} workloads", content=content)


def settle(decision_id: str, usage: Usage, request_id: str | None) -> Call[Reservation]:
    """``POST /v1/decisions/{id}/settlement``: the same again changes nothing, so it may be repeated."""
    path = f"/v1/decisions/{segment(decision_id)}/settlement"
    return Call(
        "POST", path, _reservation, "reservation", content=encoded(usage), headers=headers(request_id=request_id)
    )


def void(decision_id: str, request_id: str | None) -> Call[Reservation]:
    """``DELETE /v1/decisions/{id}/reservation``: the same again changes nothing, so it may be repeated."""
    path = f"/v1/decisions/{segment(decision_id)}/reservation"
    return Call("DELETE", path, _reservation, "reservation", headers=headers(request_id=request_id))


def extend(decision_id: str, hold_ms: int, request_id: str | None) -> Call[Reservation]:
    """``POST /v1/decisions/{id}/reservation``: a hold only becomes longer by it, so it may be repeated."""
    path, content = f"/v1/decisions/{segment(decision_id)}/reservation", encoded({"hold_ms": hold_ms})
    return Call("POST", path, _reservation, "reservation", content=content, headers=headers(request_id=request_id))


def budgets(account: str | None) -> Call[Page[Budget]]:
    """``GET /v1/budgets``, or those of one account."""
    inner = "" if account is None else "/" + "/".join(segment(part) for part in account.split("/"))
    return Call("GET", f"/v1/budgets{inner}", page_of, "page of budgets")


def set_budget(
    account: str, limits: Sequence[Mapping[str, Any]], reason: str, propose: bool, request_id: str | None
) -> Call[ChangedBudgets]:
    """``PUT /v1/budgets/{path}``: the same again sets the same."""
    path = "/v1/budgets/" + "/".join(segment(part) for part in account.split("/"))
    read = _with(ChangedBudgets, items=list)
    content = encoded({"limits": list(limits), "reason": reason, "propose": propose})
    return Call("PUT", path, read, "changed budgets", content=content, headers=headers(request_id=request_id))


def budget_report(account: str | None) -> Call[Json]:
    """``GET /v1/reports/budgets``, of all or of one account."""
    read = _with(dict, budgets=list, burn_down=list, committed=list)
    parameters = {} if account is None else {"path": account}
    return Call("GET", "/v1/reports/budgets", read, "budget report", parameters=parameters)


def compliance() -> Call[Json]:
    """``GET /v1/compliance``: what the server found last of the placements in force."""
    return Call("GET", "/v1/compliance", _with(dict, placements=int, items=list), "judgement")


def break_even(asked: Traffic) -> Call[BreakEven]:
    """``POST /v1/break-even``: nothing is recorded, so it may be repeated."""
    read = _with(BreakEven, model=str, pools=list, crossings=list, cheapest=list)
    return Call("POST", "/v1/break-even", read, "comparison", content=encoded(asked))


def search(filters: Filters | None, cursor: str | None, limit: int) -> Call[Page[Entry]]:
    """``GET /v1/decisions``: one page."""
    written = {name: str(value) for name, value in (filters or {}).items()}
    return Call("GET", "/v1/decisions", page_of, "page of decisions", parameters={**written, **_paged(cursor, limit)})


def report_page(by: str, filters: Mapping[str, str], cursor: str | None) -> Call[Json]:
    """``GET /v1/reports/decisions``: one page; ``policyd.services.reports`` adds them up for the command line."""
    parameters = {"by": by, **filters, **({} if cursor is None else {"cursor": cursor})}
    read = _with(dict, entries=int, tables=list)
    return Call("GET", "/v1/reports/decisions", read, "page of a report", parameters=parameters)


def first_uses_page(filters: Mapping[str, str], cursor: str | None) -> Call[Json]:
    """``GET /v1/reports/first-uses``: one page."""
    parameters = {**filters, **({} if cursor is None else {"cursor": cursor})}
    return Call("GET", "/v1/reports/first-uses", _with(dict, items=list), "page of first uses", parameters=parameters)


def record(decision_id: str) -> Call[Json]:
    """``GET /v1/decisions/{id}``."""
    return Call("GET", f"/v1/decisions/{segment(decision_id)}", _entry, "record")


def explanation(decision_id: str) -> Call[Json]:
    """``GET /v1/decisions/{id}/explanation`` as JSON."""
    path = f"/v1/decisions/{segment(decision_id)}/explanation"
    return Call("GET", path, _entry, "explanation", parameters={"format": "json"})


def explanation_text(decision_id: str) -> Call[str]:
    """``GET /v1/decisions/{id}/explanation`` as text."""
    path = f"/v1/decisions/{segment(decision_id)}/explanation"
    return Call("GET", path, _text, "text", parameters={"format": "text"}, media_type=TEXT)


def pools(cursor: str | None, limit: int) -> Call[Page[Pool]]:
    """``GET /v1/pools``: one page."""
    return Call("GET", "/v1/pools", page_of, "page of pools", parameters=_paged(cursor, limit))


def pool(pool_id: str) -> Call[Pool]:
    """``GET /v1/pools/{id}``."""
    return Call("GET", f"/v1/pools/{segment(pool_id)}", _with(Pool, id=str, kind=str), "pool")


def models(cursor: str | None, limit: int) -> Call[Page[Model]]:
    """``GET /v1/models``: one page."""
    return Call("GET", "/v1/models", page_of, "page of models", parameters=_paged(cursor, limit))


def fleet() -> Call[Fleet]:
    """``GET /v1/fleet``."""
    return Call("GET", "/v1/fleet", _with(Fleet, digest=str, models=list), "fleet")


def ready() -> Call[Readiness]:
    """``GET /readyz``: not ready is an answer, with the reasons."""
    read = _with(Readiness, ready=bool, checks=list)
    return Call("GET", "/readyz", read, "readiness", statuses=frozenset({200, 503}), repeatable=False)


def live() -> Call[bool]:
    """``GET /livez``."""
    return Call("GET", "/livez", lambda body: json_of(body) == {"alive": True} or None, "sign of life")


def encoded(document: Any) -> bytes:
    """The body of a request. Raises ``RequestError``."""
    try:
        return orjson.dumps(document)
    except (TypeError, orjson.JSONEncodeError) as error:
        raise RequestError(f"the request is not JSON: {error}") from None


def headers(**given: str | None) -> dict[str, str]:
    """The headers that a caller chose. Raises ``RequestError`` for what no header may hold."""
    names = {"idempotency_key": "Idempotency-Key", "request_id": "X-Request-ID"}
    found = {names[name]: value for name, value in given.items() if value is not None}
    for name, value in found.items():
        if not (value.isascii() and value.isprintable() and value.strip() == value != ""):
            raise RequestError(f"{name} is printable ASCII without blanks at its ends")
    return found


def _paged(cursor: str | None, limit: int) -> dict[str, str]:
    return {"limit": str(limit), **({} if cursor is None else {"cursor": cursor})}


def segment(name: str) -> str:
    """A name as one part of a path: nothing in it leads elsewhere."""
    if name in ("", ".", ".."):
        raise RequestError(f"{name!r} is no id")
    return quote(name, safe="")


def _with(document: type[Found], /, **kinds: type) -> Callable[[bytes], Found | None]:
    """Reads an object that has these fields of these kinds; the others are the server's to choose."""

    shaped = fields(document, **kinds)
    return lambda body: shaped(json_of(body))


def fields(document: type[Found], /, **kinds: type) -> Callable[[Any], Found | None]:
    """As ``_with``, of a value."""

    def read(found: Any) -> Found | None:
        if isinstance(found, dict) and all(type(found.get(name)) is kind for name, kind in kinds.items()):
            return cast("Found", found)
        return None

    return read


_shaped: Final = fields(Decision, id=str, outcome=str, valid_until=str, ranked=list, rejected=list)
_simulation: Final = fields(Simulation, items=list, no_pool_left=list)
_entry: Final[Callable[[bytes], Json | None]] = _with(dict, id=str, kind=str, outcome=str)


def _decision(body: bytes) -> Decision | None:
    return _decision_of(json_of(body))


def _decision_of(value: Any) -> Decision | None:
    """A decision: an allow names a pool, and nothing else is an allow."""
    found = _shaped(value)
    if found is None or found["outcome"] not in ("allow", "deny"):
        return None
    return found if bool(found["ranked"]) == (found["outcome"] == "allow") else None


def _answered(item: Any) -> Decision | PolicydError | None:
    """What one request of a batch got; None when it is neither a decision nor a problem."""
    if not isinstance(item, dict):
        return None
    problem = item.get("problem")
    if item.get("status") == 200 and problem is None:
        return _decision_of(item.get("decision"))
    if not isinstance(problem, dict) or not isinstance(problem.get("code"), str) or "decision" in item:
        return None
    decision_id = item.get("decision_id")
    return error_from(problem, decision_id if isinstance(decision_id, str) else None)


_reservation: Final = _with(Reservation, id=str, state=str, accounts=list, audit=dict)


def page_of(body: bytes) -> Any:
    """A page of a list."""
    found = json_of(body)
    if not isinstance(found, dict) or not isinstance(found.get("items"), list):
        return None
    following = found.get("next", "")
    whole = all(isinstance(item, dict) for item in found["items"])
    return found if whole and (following is None or (isinstance(following, str) and following)) else None


def _text(body: bytes) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None
