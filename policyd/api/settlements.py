"""Reservations over HTTP: settle, make void, hold longer. One router for what follows a decision.

Rules: who may decide in the scope of a decision may settle it; who may read it and not settle is refused and recorded;
for everybody else it does not exist, and their attempt is recorded too.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from policyd.api.bodies import read_json
from policyd.api.callers import principal_of, require_readable
from policyd.api.openapi_settlements import EXTEND, SETTLE, VOID
from policyd.api.parts import Parts
from policyd.api.problems import request_id_of
from policyd.api.queries import parameters
from policyd.core.principal import Principal
from policyd.core.quantities import MAX_SAFE
from policyd.core.workload import Given, Name
from policyd.errors import Forbidden
from policyd.services.settlements import Usage

Amount = Annotated[int, Field(ge=0, le=MAX_SAFE)]


class SettlementRequest(Given):
    """Body of ``POST /v1/decisions/{id}/settlement``: what was really used, as far as it was measured.

    Without ``micro_usd`` the cost is made from tokens (of a request) or GPU time (of a deployment), at the recorded
    price of ``pool``; without ``pool`` the first one that was ranked. ``output_sha256`` hashes the output's reference.
    """

    pool: Name | None = None
    input_tokens: Amount | None = None
    output_tokens: Amount | None = None
    requests: Amount | None = None
    gpu_ms: Amount | None = None
    micro_usd: Amount | None = None
    output_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class ExtensionRequest(Given):
    """Body of ``POST /v1/decisions/{id}/reservation``: for how long it is needed from now."""

    hold_ms: Annotated[int, Field(ge=1_000, le=2_592_000_000)]


def settlement_router(parts: Parts) -> APIRouter:
    """The routes of reservations."""
    router = APIRouter(prefix="/v1/decisions", tags=["budgets"])
    body_max_bytes = parts.settings.api.body_max_bytes

    async def permitted(request: Request, id: str) -> Principal:
        """Who asks, when it may settle that decision."""
        parameters(request, ())
        principal, snapshot = principal_of(request), parts.snapshot
        owner = await parts.reader.owner_of(id, principal.name)
        if owner.tenant is not None:
            scope = (owner.tenant, owner.project, owner.environment)
            if principal.permitted(snapshot.entitlements, "decisions", "decide", *scope):
                return principal
        require_readable(principal, snapshot, id, owner)
        raise Forbidden(f"{principal.name!r} may not settle decision {id}")

    @router.post("/{id}/settlement", summary="Post what a decision did use", **SETTLE)
    async def settle(id: str, request: Request) -> Response:
        """What was held beyond it is released; what goes beyond the limit is debt. The same again changes nothing."""
        principal = await permitted(request, id)
        body = await read_json(request, SettlementRequest, body_max_bytes)
        usage = Usage(**body.model_dump())
        return _json(await parts.settlements.settle(id, usage, principal, request_id_of(request)))

    @router.delete("/{id}/reservation", summary="Release what a decision did not use", **VOID)
    async def void(id: str, request: Request) -> Response:
        """All of it: nothing was used."""
        principal = await permitted(request, id)
        return _json(await parts.settlements.void(id, principal, request_id_of(request)))

    @router.post("/{id}/reservation", summary="Hold what a decision reserved for longer", **EXTEND)
    async def extend(id: str, request: Request) -> Response:
        """For long streams; a hold never becomes shorter by it."""
        principal = await permitted(request, id)
        body = await read_json(request, ExtensionRequest, body_max_bytes)
        return _json(await parts.settlements.extend(id, body.hold_ms, principal, request_id_of(request)))

    return router


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), headers=_NO_STORE, media_type="application/json")


_NO_STORE: Final = {"Cache-Control": "no-store"}
