"""Waivers over HTTP: requesting, approving, listing; and breaking the glass.

Rules: requesting changes nothing but the log; what is in force is told with what it lifts, until when, and who answers
for it; what the caller may not see is not there.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import StringConstraints

from policyd.api.bodies import read_json
from policyd.api.callers import principal_of
from policyd.api.openapi_waivers import APPROVE_WAIVER, BREAK_GLASS, REQUEST_WAIVER, WAIVERS
from policyd.api.parts import Parts
from policyd.api.problems import request_id_of
from policyd.api.proposals import ApprovalRequest, Reason
from policyd.api.queries import parameters
from policyd.core.workload import Given, Name
from policyd.services.waivers import Wish

Moment = Annotated[str, StringConstraints(min_length=10, max_length=40)]
RuleName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,64}\.[A-Za-z0-9_-]{1,100}$")]


class BreakGlassRequest(Given):
    """Body of ``POST /v1/waivers/break-glass``: which soft rules one person lifts alone, why, and until when.

    Without ``rule`` it is every soft rule; without ``project``, ``pool`` and ``model`` all of the tenant's.
    """

    tenant: Name
    project: Name | None = None
    rule: RuleName | None = None
    pool: Name | None = None
    model: Name | None = None
    reason: Reason
    expires_at: Moment

    def wish(self) -> Wish:
        """In words of the service."""
        scope = {"project": self.project, "pool": self.pool, "model": self.model}
        return Wish(self.tenant, self.rule, self.reason, self.expires_at, **scope)


class WaiverRequest(BreakGlassRequest):
    """Body of ``POST /v1/waivers``: the soft or approval rule to lift, where, why, and until when.

    Without ``project``, ``pool`` and ``model`` it is all of the tenant's. The reason stays in the log, so name a case
    and not a person.
    """

    rule: RuleName


def waiver_router(parts: Parts) -> APIRouter:
    """The routes of waivers."""
    router = APIRouter(prefix="/v1/waivers", tags=["waivers"])
    body_max_bytes = parts.settings.api.body_max_bytes

    @router.get("", summary="Waivers and approvals, and what became of them", **WAIVERS)
    async def waivers(request: Request) -> Response:
        """What waits for a second person first; then what is in force or was lately, newest first."""
        parameters(request, ())
        items = await parts.waivers.listed(principal_of(request))
        return _json({"items": items, "next": None})

    @router.post("", summary="Request a waiver or an approval", **REQUEST_WAIVER)
    async def ask(request: Request) -> Response:
        """Once another person approves it, the rule as it is now refuses nothing in that scope until the end."""
        parameters(request, ())
        body = await read_json(request, WaiverRequest, body_max_bytes)
        return _json(await parts.waivers.request(body.wish(), principal_of(request), request_id_of(request)))

    @router.post("/break-glass", summary="Lift soft rules alone, for minutes", **BREAK_GLASS)
    async def break_glass(request: Request) -> Response:
        """In an emergency, where a setting admits it, by who has that permission; never a hard rule."""
        parameters(request, ())
        body = await read_json(request, BreakGlassRequest, body_max_bytes)
        return _json(await parts.waivers.break_glass(body.wish(), principal_of(request), request_id_of(request)))

    @router.post("/{id}/approval", summary="Approve a waiver", **APPROVE_WAIVER)
    async def approve(id: str, request: Request) -> Response:
        """By another person than the one who requested it, while the rule is what it was then."""
        parameters(request, ())
        body = await read_json(request, ApprovalRequest, body_max_bytes)
        principal, request_id = principal_of(request), request_id_of(request)
        return _json(await parts.waivers.approve(id, principal, request_id, body.digest))

    return router


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), headers=_NO_STORE, media_type="application/json")


_NO_STORE: Final = {"Cache-Control": "no-store"}
