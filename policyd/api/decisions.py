"""Decisions over HTTP: decide, search the log of decisions, read one, have it explained.

Rules: the answer leaves only after its entry is durable; allow and deny are both 200; nothing here may be cached; a
record is read back by deciding again on its sheet and facts, so that what is shown is what was decided.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from audit.query import FILTERS, Record, Within
from policyd.api.bodies import parse_json, read_bytes
from policyd.api.callers import owner_in, principal_of, readable, require_readable
from policyd.api.direct import NO_STORE
from policyd.api.keys import key_of
from policyd.api.openapi import DECIDE, EXPLANATION, RECORD, SEARCH
from policyd.api.packing import Packing, Pieces
from policyd.api.parts import Parts
from policyd.api.problems import request_id_of
from policyd.api.queries import limit_of, parameters
from policyd.core.snapshot import Snapshot
from policyd.core.workload import DecisionRequest
from policyd.errors import RequestError
from policyd.services.admission import listed
from policyd.services.explanation import explanation_json, explanation_text
from policyd.services.permission import visible_pools
from policyd.services.repeats import Key
from policyd.services.replay import Replayed, replay

SEARCH_LIMIT_DEFAULT: Final = 100
_NO_STORE: Final = {"Cache-Control": "no-store"}


def decision_router(parts: Parts, packing: Packing) -> APIRouter:
    """The routes of decisions."""
    router = APIRouter(prefix="/v1/decisions", tags=["decisions"])
    router.post("", summary="Decide on which pools a workload may run", **DECIDE)(decide_endpoint(parts, packing))

    async def replay_for(request: Request, id: str) -> Replayed:
        """The decision of that id, when the caller may read it; else it does not exist."""
        principal = principal_of(request)
        # First by the columns alone: damage to what the caller may not read must not tell that it is there.
        require_readable(principal, parts.snapshot, id, await parts.reader.owner_of(id, principal.name))
        replayed = await replay(parts.reader, id)
        require_readable(principal, parts.snapshot, id, owner_in(replayed.body))
        return replayed

    @router.get("", summary="Search the log of decisions", **SEARCH)
    async def search(request: Request) -> Response:
        """Decisions, refused requests and errors that match every filter, newest first."""
        filters = parameters(request, (*FILTERS, "cursor", "limit"))
        limit = limit_of(filters, SEARCH_LIMIT_DEFAULT)
        within = readable(principal_of(request), parts.snapshot)
        if within is not None and _hides(parts.snapshot, within, filters.get("rejected_pool")):
            within = ()
        page = await parts.reader.search(filters, filters.pop("cursor", None), limit, within=within)
        items = [record_json(record, whole=within is None) for record in page.items]
        return _json({"items": items, "next": page.next})

    @router.get("/{id}", summary="The record of a decision", **RECORD)
    async def record(id: str, request: Request) -> Response:
        """The answer as it was given, with who asked; of a request that brought no decision, what was recorded."""
        parameters(request, ())
        replayed = await replay_for(request, id)
        return _json(replayed_json(replayed), decision_id=id)

    @router.get("/{id}/explanation", summary="A decision explained to a person", **EXPLANATION)
    async def explanation(id: str, request: Request) -> Response:
        """The ranked table, every refused pool with rule, place and remedy, and what the refusals cost."""
        as_text = wants_text(request)
        explained = explanation_json(await replay_for(request, id))
        if not as_text:
            return _json(explained, decision_id=id)
        headers = {"X-Policyd-Decision-Id": id, **_NO_STORE, "Vary": "Accept"}
        return PlainTextResponse(explanation_text(explained), headers=headers)

    return router


def _hides(snapshot: Snapshot, within: Sequence[Within], pool: str | None) -> bool:
    """Whether that is a pool which none of the tenants sees. A search by it must find nothing, as for one that does
    not exist: the log knows by which hidden pools a tenant was refused, and its answers never say so."""
    tenants = list(dict.fromkeys(part.tenant for part in within))
    return pool in snapshot.fleet.pools and pool not in visible_pools(snapshot.entitlements, snapshot.fleet, tenants)


Endpoint = Callable[[Request], Awaitable[Response]]


def decide_endpoint(parts: Parts, packing: Packing) -> Endpoint:
    """What answers ``POST /v1/decisions``."""
    body_max_bytes = parts.settings.api.body_max_bytes

    async def decide(request: Request) -> Response:
        """Ranked pools and the reason for every refused one. A deny is an answer, not an error."""
        content = await read_bytes(request, body_max_bytes)
        asked = parse_json(content, DecisionRequest)
        principal, request_id, key = principal_of(request), request_id_of(request), key_of(request)
        if key is None:
            answered = await parts.decisions.decide(asked, principal, request_id)
        else:
            answered = await parts.repeats.decide(asked, principal, request_id, Key(key, "/v1/decisions", content))
        headers, pieces = packing.answer(request.scope["headers"], answered.pieces, (answered.made.sheet,))
        return Pieces([*headers, (b"x-policyd-decision-id", answered.id.encode()), NO_STORE], pieces)

    return decide


def _json(document: Any, *, decision_id: str | None = None) -> Response:
    headers = {**_NO_STORE, "Vary": "Accept"} if decision_id else dict(_NO_STORE)
    if decision_id:
        headers["X-Policyd-Decision-Id"] = decision_id
    return Response(orjson.dumps(document), headers=headers, media_type="application/json")


def record_json(record: Record, *, whole: bool = True) -> dict[str, Any]:
    """An entry of the log as a search lists it: its body without the salt, and its place.

    Who may not read the ``whole`` log is not told what all tenants together have spent.
    """
    body = listed(record.document(), whole=whole)
    return {**body, "audit": {"log": record.origin, "index": record.index, "leaf_hash": record.leaf_hash.hex()}}


def replayed_json(replayed: Replayed) -> dict[str, Any]:
    """A record as it was answered, with who asked."""
    told = {"principal": replayed.body["principal"], "request_id": replayed.body.get("request_id")}
    return {"kind": replayed.record.kind, **replayed.to_json(), **told}


def wants_text(request: Request) -> bool:
    """Whether ``?format=`` or else the ``Accept`` header asks for text; JSON when neither says so."""
    written = parameters(request, ("format",)).get("format")
    if written is not None:
        if written not in ("text", "json"):
            raise RequestError("`format` is text or json")
        return written == "text"
    accepted = request.headers.get("accept", "*/*").lower()
    for part in accepted.split(","):
        media_type = part.partition(";")[0].strip()
        if media_type in ("text/plain", "text/*"):
            return True
        if media_type in ("application/json", "application/*", "*/*"):
            return False
    return False
