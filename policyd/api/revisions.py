"""Revisions over HTTP: where they stand and why, what is live, and the steps that a person takes.

Rules: to read takes the permission ``read`` on ``revisions`` in all tenants, since a revision concerns them all; each
step takes its own, and is taken from where the revision stands in the writer's transaction; ``local`` takes none.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import StringConstraints

from policyd.api.bodies import read_json
from policyd.api.callers import principal_of
from policyd.api.openapi_revisions import ACTIVATE, ACTIVE, REVISIONS, ROLLBACK
from policyd.api.parts import Parts
from policyd.api.problems import request_id_of
from policyd.api.queries import parameters
from policyd.core.workload import Given
from policyd.errors import Finding, RequestError
from policyd.revisions.states import KINDS
from policyd.services.revision_desk import require_may
from policyd.services.revision_shown import active_json, revision_json

Named = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class ActivationRequest(Given):
    """Body of ``POST /v1/revisions/{digest}/activation``: the next step, or a pause on the way and its end."""

    step: Literal["next", "pause", "resume"] = "next"


class RollbackRequest(Given):
    """Body of ``POST /v1/revisions/rollback``: the kind, and the revision to go back to by digest or commit.

    Without ``digest``, what is on its way is taken back; with nothing on its way, what was live before is live again.
    """

    kind: Literal["policy", "fleet"] = "policy"
    digest: Named | None = None


def revision_router(parts: Parts) -> APIRouter:
    """The routes of revisions."""
    router = APIRouter(prefix="/v1/revisions", tags=["revisions"])
    body_max_bytes = parts.settings.api.body_max_bytes

    @router.get("", summary="Where revisions stand, and what their gates said", **REVISIONS)
    async def revisions(request: Request) -> Response:
        """Every revision that is remembered, the one that moved last first."""
        kind = parameters(request, ("kind",)).get("kind")
        if kind not in (None, *KINDS):
            raise RequestError(
                f"kind: {kind!r} is none of {', '.join(KINDS)}", findings=[Finding("kind", "is no kind")]
            )
        require_may(principal_of(request), parts.decisions.snapshots, "read")
        found = [each for each in await parts.desk.revisions() if kind in (None, each.kind)]
        return _json({"items": [revision_json(each) for each in found], "next": None})

    @router.get("/active", summary="What is live, and why a candidate does not serve", **ACTIVE)
    async def active(request: Request) -> Response:
        """What this process decides on, what is to be live, and what stands between."""
        parameters(request, ())
        require_may(principal_of(request), parts.decisions.snapshots, "read")
        standing = await parts.desk.revisions()
        return _json(active_json(parts.snapshot, standing, parts.decisions.freshness, parts.reload.fault))

    @router.post("/{digest}/activation", summary="Have a revision take its next step", **ACTIVATE)
    async def activate(digest: str, request: Request) -> Response:
        """What waits goes on its way, what is on its way goes live, and what was live before is live again."""
        parameters(request, ())
        body = await read_json(request, ActivationRequest, body_max_bytes)
        principal = principal_of(request)
        require_may(principal, parts.decisions.snapshots, "activate")
        if body.step == "next":
            found = await parts.desk.activate(digest, principal, request_id_of(request))
        else:
            resume = body.step == "resume"
            found = await parts.desk.pause(digest, principal, request_id_of(request), resume=resume)
        return _json(revision_json(found))

    @router.post("/rollback", summary="Go back to what was live before", **ROLLBACK)
    async def rollback(request: Request) -> Response:
        """Or take back what is on its way. What was left does not come back by itself."""
        parameters(request, ())
        body = await read_json(request, RollbackRequest, body_max_bytes)
        principal = principal_of(request)
        require_may(principal, parts.decisions.snapshots, "rollback")
        found = await parts.desk.rollback(body.kind, body.digest, principal, request_id_of(request))
        return _json(revision_json(found))

    return router


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), headers={"Cache-Control": "no-store"}, media_type="application/json")
