"""What takes two persons, over HTTP: proposing, listing what waits, approving; and the legal holds in force.

Rules: proposing changes nothing but the log; who may neither propose, approve nor read such a thing does not see it;
what an approval does is in the same transaction as its entry; what came with an ``Idempotency-Key`` is done once.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, StringConstraints

from policyd.api.callers import principal_of
from policyd.api.keyed import Keyed, answer
from policyd.api.openapi_proposals import APPROVE, ERASE, HOLDS, LIFT, PLACE, PROPOSALS
from policyd.api.parts import Parts
from policyd.api.problems import request_id_of
from policyd.api.queries import parameters
from policyd.core.workload import Given, Name
from policyd.services.two_persons import proposal_json

Subject = Annotated[str, StringConstraints(min_length=1, max_length=256)]
"""The name of a principal, such as ``oidc:4711``."""
Reason = Annotated[str, StringConstraints(min_length=1, max_length=500)]


class HoldRequest(Given):
    """Body of ``POST /v1/log/holds``: what must be kept, and why. Without ``subject``, all that belongs to the tenant.

    The reason is in the log for as long as the log is kept, so name a case and not a person.
    """

    tenant: Name
    subject: Subject | None = None
    reason: Reason


class ErasureRequest(Given):
    """Body of ``POST /v1/log/erasures``: whose personal fields are to be unreadable from then on, and why.

    Without ``tenant`` it is the person in every tenant, and in the entries of none (requests that were refused). The
    reason stays in the log, so name a case and not a person.
    """

    tenant: Name | None = None
    subject: Subject
    reason: Reason


class LiftRequest(Given):
    """Body of ``POST /v1/log/holds/{id}/lifting``: why the hold is no longer needed."""

    reason: Reason


class ApprovalRequest(Given):
    """Body of ``POST /v1/proposals/{id}/approval``: the digest of the proposal as it was read, to approve no other."""

    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None


def proposal_router(parts: Parts) -> APIRouter:
    """The routes of two persons."""
    router = APIRouter(prefix="/v1", tags=["two persons"])
    keyed, two = Keyed(parts), parts.two_persons

    @router.get("/proposals", summary="What waits for a second person", **PROPOSALS)
    async def proposals(request: Request) -> Response:
        """The open proposals that the caller may see, oldest first."""
        parameters(request, ())
        found = await two.waiting(principal_of(request))
        return answer({"items": [proposal_json(proposal) for proposal in found], "next": None})

    @router.post("/proposals/{id}/approval", summary="Approve a proposal, and have it done", **APPROVE)
    async def approve(id: str, request: Request) -> Response:
        """By another person than the one who proposed it, once."""
        body, principal, key = await keyed.read(request, ApprovalRequest)
        asked = (id, principal, request_id_of(request), body.digest)
        again = partial(two.approved, id, principal)
        return await keyed.once(principal, None, key, partial(two.approve, *asked), again)

    @router.get("/log/holds", summary="The legal holds in force", **HOLDS)
    async def holds(request: Request) -> Response:
        """Those of the tenants whose log the caller may read."""
        parameters(request, ())
        found = await two.holds_in_force(principal_of(request))
        return answer({"items": found, "next": None})

    @router.post("/log/holds", summary="Propose a legal hold", **PLACE)
    async def place(request: Request) -> Response:
        """Once it is approved, nothing that it covers is erased or removed."""
        body, principal, key = await keyed.read(request, HoldRequest)
        document = body.model_dump(exclude={"tenant"}, exclude_none=True)
        asked = ("hold.place", body.tenant, document, principal, request_id_of(request))
        return await keyed.proposed(principal, body.tenant, key, partial(two.propose, *asked))

    @router.post("/log/erasures", summary="Propose to erase a person", **ERASE)
    async def erase(request: Request) -> Response:
        """Once it is approved, the key of that person's personal fields is destroyed; every proof still holds."""
        body, principal, key = await keyed.read(request, ErasureRequest)
        asked = (body.tenant, body.subject, body.reason, principal, request_id_of(request))
        return await keyed.proposed(principal, body.tenant, key, partial(two.propose_erasure, *asked))

    @router.post("/log/holds/{id}/lifting", summary="Propose to lift a legal hold", **LIFT)
    async def lift(id: str, request: Request) -> Response:
        """Once it is approved, the hold is over."""
        body, principal, key = await keyed.read(request, LiftRequest)
        asked = (id, body.reason, principal, request_id_of(request))
        return await keyed.proposed(principal, None, key, partial(two.propose_lifting, *asked))

    return router
