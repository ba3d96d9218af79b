"""Envoy's HTTP ``ext_authz`` service: a proxy asks before it forwards a request, and obeys the status.

    200 + X-Policyd-Pool: forward to that pool        403: refused        anything else: refused too

Rules: what wants to run is told by headers that the proxy's own configuration sets, never by the path, query or body
of its client; the decision is recorded as any other before a 200 leaves; an unknown ``X-Policyd-*`` header, or one
that stands twice, is refused, since a misspelt or smuggled one would otherwise change what is asked.
It refuses to answer 200 without a pool, and tells the proxy's client nothing about pools: the log has the reasons.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from policyd.api.bodies import parse_json
from policyd.api.callers import principal_of
from policyd.api.openapi_ext_authz import EXT_AUTHZ
from policyd.api.parts import Parts
from policyd.api.problems import request_id_of
from policyd.core.workload import DecisionRequest
from policyd.documents import nearest
from policyd.errors import Finding, RequestError
from policyd.services.answers import Made

PREFIX: Final = "x-policyd-"
POOLS: Final = f"{PREFIX}pools"
POOLS_MAX: Final = 256
FIELDS: Final = {
    f"{PREFIX}tenant": ("tenant",),
    f"{PREFIX}project": ("project",),
    f"{PREFIX}environment": ("environment",),
    f"{PREFIX}model": ("model",),
    f"{PREFIX}model-version": ("model_version",),
    f"{PREFIX}sla-class": ("sla_class",),
    f"{PREFIX}classification": ("data", "classification"),
}
"""The header of each field of the workload that a proxy may tell."""
_RANKED_MAX: Final = 1_000
_NO_STORE: Final = {"Cache-Control": "no-store"}


def ext_authz_router(parts: Parts) -> APIRouter:
    """The route that a proxy asks, under whichever path it was asked itself."""
    router = APIRouter(prefix="/ext-authz", tags=["enforcement"])

    async def check(request: Request) -> Response:
        """Decide on the workload of the ``X-Policyd-*`` headers; path, query and body are not looked at."""
        told = told_by(request)
        pools = pools_of(told.pop(POOLS, None))
        asked = parse_json(orjson.dumps(request_json(told)), DecisionRequest)
        made = (await parts.decisions.decide(asked, principal_of(request), request_id_of(request))).made
        pool = chosen(made, pools)
        headers = {"X-Policyd-Decision-Id": made.id, **_NO_STORE}
        if pool is None:
            return Response(orjson.dumps(denial_json(made)), 403, headers, "application/json")
        return Response(b"", 200, {**headers, "X-Policyd-Pool": pool})

    # Every method of a request to a model has its own operation, so that each is described under its own name.
    for method in ("GET", "POST"):
        summary = f"May the proxy forward this {method} request, and to which pool"
        router.add_api_route(
            "/{path:path}",
            check,
            methods=[method],
            name=f"check_{method}",
            summary=summary,
            response_class=Response,
            **EXT_AUTHZ,
        )
    return router


def told_by(request: Request) -> dict[str, str]:
    """The ``X-Policyd-*`` headers. Raises ``RequestError`` for one that is unknown, doubled or empty."""
    known = (*FIELDS, POOLS)
    found: dict[str, str] = {}
    for name, value in request.headers.items():
        if not name.startswith(PREFIX):
            continue
        if name not in known:
            raise _fault(name, f"is no header of a workload{nearest(name[:100], known)}")
        if name in found:
            raise _fault(name, "stands twice")
        if not value:
            raise _fault(name, "has no value")
        found[name] = value
    return found


def request_json(told: dict[str, str]) -> dict[str, Any]:
    """The request that the headers stand for. Nothing is reserved: a proxy does not settle what it forwarded."""
    workload: dict[str, Any] = {}
    for name, value in told.items():
        *sections, field = FIELDS[name]
        within = workload
        for section in sections:
            within = within.setdefault(section, {})
        within[field] = value
    return {"workload": workload, "options": {"reserve": False, "limit": _RANKED_MAX}}


def pools_of(written: str | None) -> frozenset[str] | None:
    """The pools that the proxy can reach; None is every pool. Raises ``RequestError`` for a list that is unreadable."""
    if written is None:
        return None
    names = [name.strip() for name in written.split(",")]
    if not all(names) or len(names) > POOLS_MAX:
        raise _fault(POOLS, f"is a list of 1 to {POOLS_MAX} pools, with a comma between them")
    return frozenset(names)


def chosen(made: Made, pools: frozenset[str] | None) -> str | None:
    """The first ranked pool that the proxy can reach."""
    ranked = (scored.row.pool for scored in made.decision.ranked)
    return next((pool for pool in ranked if pools is None or pool in pools), None)


def denial_json(made: Made) -> dict[str, Any]:
    """What the proxy's client may know of a refusal. ``denied_by`` is null when pools are left and none is in reach."""
    return {
        "outcome": "deny",
        "denied_by": made.decision.denied_by,
        "detail": "no pool that may take this workload is in reach",
        "decision_id": made.id,
        "request_id": made.request_id,
    }


def _fault(name: str, message: str) -> RequestError:
    shown = name[:100]
    return RequestError(f"the header `{shown}` {message}", findings=[Finding(shown, f"`{shown}` {message}")])
