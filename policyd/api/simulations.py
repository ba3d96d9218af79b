"""What if, over HTTP: today's decision beside the one with something changed.

Rules: nothing is recorded as a decision and nothing is reserved, and who simulates where it may not is recorded as
refused; a caller without the entitlement to simulate for any
tenant is refused before any work; a workload that fails has its problem in its place.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from policyd.api.batch import DEADLINE_PERCENT
from policyd.api.bodies import read_json
from policyd.api.callers import principal_of, require_somewhere
from policyd.api.openapi_simulations import SIMULATE
from policyd.api.parts import Parts
from policyd.api.problems import problem_json, request_id_of
from policyd.core.workload import DecisionRequest, Given, Name, WorkloadRequest
from policyd.errors import Finding, Forbidden, RequestError, TooLarge
from policyd.services.answers import answer
from policyd.services.clock import from_rfc3339
from policyd.services.simulation import PERCENT_MAX, WEIGHTS_TOTAL, Overrides, Simulated
from policyd.services.simulations import Asked, Compared

NAMED_MAX: Final = 1_000
TIME_BOUNDS_US: Final = (946_684_800_000_000, 4_102_444_800_000_000)
"""2000 to 2100: enough to ask about, and far from where calendars end."""


class OverridesRequest(Given):
    """What is different. ``policies`` and ``fleet`` are names of ``simulation.trees``."""

    without_providers: list[Name] = Field([], max_length=NAMED_MAX)
    without_pools: list[Name] = Field([], max_length=NAMED_MAX)
    price_percent: dict[Name, Annotated[int, Field(ge=1, le=PERCENT_MAX)]] = Field({}, max_length=NAMED_MAX)
    weights: dict[Name, Annotated[int, Field(ge=0, le=WEIGHTS_TOTAL)]] = Field({}, max_length=16)
    time: Annotated[str, Field(max_length=40)] | None = None
    policies: Name | None = None
    fleet: Name | None = None


class SimulationRequest(Given):
    """Body of ``POST /v1/simulations``: either ``workloads``, or ``requests`` with options of their own."""

    workloads: list[WorkloadRequest] = Field([], max_length=NAMED_MAX)
    requests: list[DecisionRequest] = Field([], max_length=NAMED_MAX)
    overrides: OverridesRequest = OverridesRequest()


def simulation_router(parts: Parts) -> APIRouter:
    """The route of simulations."""
    router = APIRouter(prefix="/v1", tags=["decisions"])
    limits, workloads_max = parts.settings.api, parts.settings.simulation.workloads_max

    @router.post("/simulations", summary="Decide with something changed, beside today's decision", **SIMULATE)
    async def simulate(request: Request) -> Response:
        """Each workload today and in the simulation, and which of them would have no pool left."""
        principal = principal_of(request)
        require_somewhere(principal, parts.snapshot, "decisions", "simulate")
        body = await read_json(request, SimulationRequest, limits.batch_body_max_bytes, "api.batch_body_max_bytes")
        asked = asked_of(body, workloads_max)
        deadline_ms = limits.request_timeout_ms * DEADLINE_PERCENT // 100
        compared = await parts.simulations.compare(asked, principal, deadline_ms)
        refused = {
            str(side.error): side.error for entry in compared if isinstance((side := entry.today).error, Forbidden)
        }
        for error in refused.values():
            await parts.callers.refused(request.scope, error)
        document = simulation_json(compared, request_id_of(request))
        return Response(orjson.dumps(document), headers={"Cache-Control": "no-store"}, media_type="application/json")

    return router


def asked_of(body: SimulationRequest, workloads_max: int) -> Asked:
    """The simulation that a body means. Raises ``RequestError``, and ``TooLarge`` for too many workloads."""
    if bool(body.workloads) is bool(body.requests):
        raise _fault("workloads", "name `workloads`, or `requests`, and not both")
    requests = body.requests or [DecisionRequest(workload=workload) for workload in body.workloads]
    if len(requests) > workloads_max:
        raise TooLarge(
            f"the simulation has more than {workloads_max} workloads",
            remedy="send less at once; the limit is simulation.workloads_max",
        )
    written = body.overrides
    overrides = Overrides(
        tuple(written.without_providers), tuple(written.without_pools), written.price_percent, written.weights
    )
    return Asked(requests, overrides, written.policies, written.fleet, _time_us(written.time))


def _time_us(written: str | None) -> int | None:
    if written is None:
        return None
    try:
        time_us = from_rfc3339(written)
    except (ValueError, OverflowError):
        raise _fault("overrides.time", "is no time with a zone, such as 2026-12-24T20:00:00Z") from None
    if not TIME_BOUNDS_US[0] <= time_us < TIME_BOUNDS_US[1]:
        raise _fault("overrides.time", "lies outside the years 2000 to 2099")
    return time_us


def _fault(where: str, message: str) -> RequestError:
    return RequestError(f"the request cannot be read: `{where}`: {message}", findings=[Finding(where, message)])


def simulation_json(compared: list[Compared], request_id: str) -> dict[str, Any]:
    """The answer: both decisions of each workload, and the places of those that would have no pool left."""
    return {
        "items": [
            {"today": _side_json(entry.today, request_id), "simulated": _side_json(entry.simulated, request_id)}
            for entry in compared
        ],
        "no_pool_left": [place for place, entry in enumerate(compared) if entry.lost],
    }


def _side_json(side: Simulated, request_id: str) -> Any:
    if side.made is not None:
        return orjson.Fragment(answer(side.made, None))
    assert side.error is not None
    return {"outcome": "error", "problem": problem_json(side.error, request_id)}
