"""``/v1/revisions/{digest}/approval``: what has been approved of a revision, and approving it.

Rules: the caller must be permitted to bring an approval, and the signature in it says whose it is; a revision is named
by its digest, which the path and the body both say, so that none is approved by a slip.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from pydantic import Field, StringConstraints

from policyd.api.bodies import read_json
from policyd.api.callers import principal_of
from policyd.api.openapi_approvals import APPROVALS, APPROVED
from policyd.api.parts import Parts
from policyd.api.problems import request_id_of
from policyd.api.queries import parameters
from policyd.core.workload import Given
from policyd.revisions.approvals import Approval
from policyd.revisions.sshsig import ARMOUR_MAX_BYTES

_DIGEST = r"^sha256:[0-9a-f]{64}$"
Digest = Annotated[str, Field(pattern=_DIGEST)]
InPath = Annotated[str, Path(pattern=_DIGEST)]


class RevisionApprovalRequest(Given):
    """Body of ``POST /v1/revisions/{digest}/approval``: what is approved until when, and the signature over that.

    What is signed is this document without ``signature``, as RFC 8785 writes it, in the namespace
    ``policyd-approval@v1`` of ``ssh-keygen -Y sign``.
    """

    kind: Literal["policy", "fleet"]
    digest: Digest
    replaces: Digest
    expires: Annotated[str, StringConstraints(max_length=32)]
    signature: Annotated[str, StringConstraints(min_length=1, max_length=ARMOUR_MAX_BYTES)]


def approval_router(parts: Parts) -> APIRouter:
    """The routes of approvals."""
    router = APIRouter(prefix="/v1/revisions", tags=["revisions"])
    body_max_bytes = parts.settings.api.body_max_bytes

    @router.get("/{digest}/approval", summary="The approvals of a revision", **APPROVALS)
    async def approvals(digest: InPath, request: Request) -> Response:
        """Each with whether it counts now, and why not; and what serves, which is what an approval would replace."""
        parameters(request, ())
        return _json(await parts.approvals.listed(digest, principal_of(request)))

    @router.post("/{digest}/approval", summary="Approve a revision", **APPROVED)
    async def approve(digest: InPath, request: Request) -> Response:
        """Take a signed approval into the log; the gate of approvals judges it when it is the revision's turn."""
        parameters(request, ())
        body = await read_json(request, RevisionApprovalRequest, body_max_bytes)
        approval = Approval.from_json(body.model_dump())
        return _json(await parts.approvals.take(digest, approval, principal_of(request), request_id_of(request)))

    return router


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), headers={"Cache-Control": "no-store"}, media_type="application/json")
