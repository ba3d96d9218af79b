"""``GET /v1/compliance``: what the server found last of the placements that are in force.

Rules: it tells of every tenant, so it is for whoever may read the whole log.
"""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from policyd.api.callers import principal_of, readable
from policyd.api.openapi_compliance import COMPLIANCE
from policyd.api.parts import Parts
from policyd.api.queries import parameters
from policyd.errors import Forbidden, NotFound


def compliance_router(parts: Parts) -> APIRouter:
    """The route of standing compliance."""
    router = APIRouter(tags=["audit"])

    @router.get("/v1/compliance", summary="What today's revisions would refuse of what is in force", **COMPLIANCE)
    async def compliance(request: Request) -> Response:
        """The newest judgement in the log, most urgent first."""
        parameters(request, ())
        principal = principal_of(request)
        if readable(principal, parts.snapshot) is not None:
            raise Forbidden(f"{principal.name!r} may not read the log of every tenant, and this tells of all")
        page = await parts.reader.search({}, limit=1, kinds=("compliance",))
        if not page.items:
            raise NotFound(
                "placements in force were not judged yet",
                remedy="set compliance.interval_ms, or run `policyd compliance` on the data directory",
            )
        (record,) = page.items
        document = {name: value for name, value in record.document().items() if name not in ("salt", "v", "kind")}
        place = {"log": record.origin, "index": record.index, "leaf_hash": record.leaf_hash.hex()}
        return Response(
            orjson.dumps({**document, "audit": place}),
            headers={"Cache-Control": "no-store"},
            media_type="application/json",
        )

    return router
