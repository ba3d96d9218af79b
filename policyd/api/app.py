"""The HTTP application: routes, problem documents, the gate around them.

Rules: one router a contract; the application owns nothing that it did not make; no page of it loads anything from
elsewhere; nothing is redirected.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from fastapi import FastAPI, Request
from pydantic import BaseModel

from policyd.api import problems
from policyd.api.authzen import authzen_router
from policyd.api.batch import batch_router
from policyd.api.break_even import BreakEvenRequest, break_even_router
from policyd.api.decisions import decision_router
from policyd.api.direct import DirectDecision
from policyd.api.ext_authz import ext_authz_router
from policyd.api.fleet import fleet_router
from policyd.api.gate import Gate
from policyd.api.health import Readiness, health_router
from policyd.api.metrics import metrics_router
from policyd.api.openapi import describe
from policyd.api.openapi_authzen import AUTHZEN_SHOWN
from policyd.api.openapi_batch import BATCH_SHOWN
from policyd.api.openapi_break_even import BREAK_EVEN_SHOWN
from policyd.api.openapi_ext_authz import EXT_AUTHZ_SHOWN
from policyd.api.openapi_reports import REPORTS_SHOWN
from policyd.api.openapi_simulations import SIMULATION_SHOWN
from policyd.api.parts import Parts
from policyd.api.reports import report_router
from policyd.api.simulations import SimulationRequest, simulation_router
from policyd.api.tracing import Admitted, Followed
from policyd.errors import PolicydError

_SHOWN: Final[tuple[type[BaseModel], ...]] = (
    *AUTHZEN_SHOWN,
    *BATCH_SHOWN,
    *BREAK_EVEN_SHOWN,
    *EXT_AUTHZ_SHOWN,
    *REPORTS_SHOWN,
    *SIMULATION_SHOWN,
    BreakEvenRequest,
    SimulationRequest,
)
"""Schemas that are described beside ``policyd.api.openapi``."""


def create_app(running: Parts) -> FastAPI:
    """The application over a running policyd, which the caller owns. ``app.state.readiness`` can be told to drain."""
    # The usual documentation pages load scripts from elsewhere; the description itself is at /openapi.json.
    app = FastAPI(title="policyd", docs_url=None, redoc_url=None, redirect_slashes=False)
    readiness = Readiness(running)
    app.state.readiness = readiness
    app.state.telemetry = running.telemetry
    routers = [
        authzen_router(running),
        batch_router(running),
        break_even_router(running),
        decision_router(running),
        ext_authz_router(running),
        fleet_router(running),
        health_router(readiness),
        metrics_router(running, readiness),
        problems.page_router(),
        report_router(running),
        simulation_router(running),
    ]
    for router in routers:
        app.include_router(router)

    async def refuse(request: Request, error: PolicydError) -> None:
        await running.callers.refused(request.scope, error)

    problems.install(app, routers, refuse)
    app.add_middleware(DirectDecision, parts=running)
    tracing = running.telemetry.tracing
    if tracing is not None:
        app.add_middleware(Admitted)
    # With several processes on the port, each admits its part of what the setting says.
    admitted = running.settings.part_of(running.settings.api.in_flight_max)
    limits = running.settings.api.model_copy(update={"in_flight_max": admitted})
    app.add_middleware(Gate, limits=limits, callers=running.callers, telemetry=running.telemetry)
    if tracing is not None:
        app.add_middleware(Followed, tracing=tracing)

    def openapi() -> dict[str, Any]:
        return describe(app, _version(), _SHOWN)

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to replace the document
    return app


def _version() -> str:
    try:
        return version("policyd")
    except PackageNotFoundError:
        return "0"
