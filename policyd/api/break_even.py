"""Break-even over HTTP: what a month costs on pools of each form of price, and where they cross.

Rules: nothing is decided or recorded; a caller compares only pools that one of its tenants may see; with a workload
only those that the policies permit to it, by a simulation of today; one comparison at a time, since it is arithmetic
that the decisions beside it would wait for.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from policyd.api.batch import DEADLINE_PERCENT
from policyd.api.bodies import read_json
from policyd.api.callers import principal_of, require_somewhere
from policyd.api.openapi_break_even import BREAK_EVEN
from policyd.api.parts import Parts
from policyd.core.principal import Principal
from policyd.core.snapshot import Snapshot
from policyd.core.workload import DecisionRequest, Given, Name, WorkloadRequest
from policyd.errors import Finding, RequestError
from policyd.services.break_even import Asked, Permitted, compare, document
from policyd.services.permission import visible_pools
from policyd.services.simulation import Overrides
from policyd.services.simulations import Asked as AskedSimulation
from policyd.services.turns import Turns

Rate = Annotated[int, Field(ge=0, le=1_000_000_000)]
Tokens = Annotated[int, Field(ge=0, le=16_777_216)]
Pattern = Annotated[str, Field(min_length=1, max_length=128)]


class BreakEvenRequest(Given):
    """Body of ``POST /v1/break-even``: a model or a workload, and how much is asked for unless the workload says it."""

    model: Name | None = None
    workload: WorkloadRequest | None = None
    requests_per_hour: Rate | None = None
    hourly: list[Rate] | None = Field(None, min_length=168, max_length=168)
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    pools: list[Pattern] = Field([], max_length=32)
    elastic: bool = False


def break_even_router(parts: Parts) -> APIRouter:
    """The route of break-even."""
    router = APIRouter(prefix="/v1", tags=["fleet"])
    bounds = parts.settings.simulation
    turns = Turns("comparisons", bounds.in_progress_max, bounds.per_caller_max)

    @router.post("/break-even", summary="From which rate of requests which pools are cheapest", **BREAK_EVEN)
    async def break_even(request: Request) -> Response:
        """Costs of a month by pool, where the best of each kind cross, and the cheapest by rate."""
        principal, snapshot = principal_of(request), parts.snapshot
        tenants = require_somewhere(principal, snapshot, "fleet", "read")
        body = await read_json(request, BreakEvenRequest, parts.settings.api.body_max_bytes)
        asked = asked_of(body)

        async def compared() -> bytes:
            with turns.place(principal):
                permitted = None if body.workload is None else await _permitted(parts, body.workload, principal)
                async with turns.turn:
                    return await asyncio.to_thread(_compared, snapshot, asked, permitted, tenants)

        # A thread cannot be stopped: when the caller goes away, its place is taken until it ends by itself.
        working = asyncio.create_task(compared())
        working.add_done_callback(_heard)
        content = await asyncio.shield(working)
        return Response(content, headers={"Cache-Control": "no-store"}, media_type="application/json")

    return router


def _heard(working: asyncio.Task[bytes]) -> None:
    """Take note of an error that nobody waits for any more."""
    if not working.cancelled():
        working.exception()


def asked_of(body: BreakEvenRequest) -> Asked:
    """What a body compares. Raises ``RequestError``."""
    if body.model is None and body.workload is None:
        raise _fault("model", "name a `model`, or give a `workload`")
    if body.requests_per_hour is not None and body.hourly is not None:
        raise _fault("hourly", "give `requests_per_hour` or `hourly`, not both")
    hourly = body.hourly if body.requests_per_hour is None else [body.requests_per_hour]
    if hourly is None and body.workload is not None:
        hourly = body.workload.demand.hourly
    return Asked(body.model, hourly, body.input_tokens, body.output_tokens, tuple(body.pools), elastic=body.elastic)


def _fault(where: str, message: str) -> RequestError:
    return RequestError(f"the request cannot be read: {message}", findings=[Finding(where, message)])


async def _permitted(parts: Parts, workload: WorkloadRequest, principal: Principal) -> Permitted:
    asked = AskedSimulation([DecisionRequest(workload=workload)], Overrides())
    deadline_ms = parts.settings.api.request_timeout_ms * DEADLINE_PERCENT // 100
    (compared,) = await parts.simulations.compare(asked, principal, deadline_ms)
    if compared.today.made is None:
        assert compared.today.error is not None
        raise compared.today.error
    return Permitted.by(compared.today.made.workload, compared.today.made.sheet)


def _compared(snapshot: Snapshot, asked: Asked, permitted: Permitted | None, tenants: list[str]) -> bytes:
    seen = visible_pools(snapshot.entitlements, snapshot.fleet, tenants)
    report = compare(snapshot.fleet, asked, permitted, lambda pool: pool.id in seen)
    return orjson.dumps(document(report, snapshot.fleet))
