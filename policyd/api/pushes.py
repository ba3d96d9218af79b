"""``POST /v1/revisions/webhook``: a git server says that somebody has pushed, and the sources are looked at now.

Rules: the secret is the identity, so no other is asked for; the answer does not wait for the look, whose end is told by
``/v1/revisions``, ``/readyz`` and the log; looks that are asked for meanwhile are one.
"""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from policyd.api.bodies import json_value, read_bytes
from policyd.api.openapi_pushes import PUSH
from policyd.api.parts import Parts
from policyd.api.queries import parameters
from policyd.errors import NotFound, RequestError
from policyd.services.clock import now_us

ROUTE = "/v1/revisions/webhook"


def push_router(parts: Parts) -> APIRouter:
    """The route of pushes."""
    router = APIRouter(tags=["revisions"])

    @router.post(ROUTE, summary="A git server says that somebody has pushed", **PUSH)
    async def pushed(request: Request) -> Response:
        """Look at the sources, when the push is of what they follow."""
        parameters(request, ())
        pushes = parts.pushes
        if pushes is None:
            raise NotFound("no webhook is expected here", remedy="set sources.webhook, or ask nobody to call this")
        body = await read_bytes(request, parts.settings.api.batch_body_max_bytes, "api.batch_body_max_bytes")
        headers: dict[str, list[str]] = {}
        for name, value in request.headers.items():
            headers.setdefault(name, []).append(value)
        pushes.prove(headers, body, now_us() // 1_000_000)
        document: Any = json_value(body)
        if not isinstance(document, dict):
            raise RequestError("the body is no JSON object")
        concerns = pushes.concerns(document)
        if concerns:
            parts.look()
        return Response(orjson.dumps({"looking": concerns}), media_type="application/json")

    return router
