"""The HTTP application: routes, problem documents, the gate around them.

Rules: one router a contract; the application owns nothing that it did not make; no page of it loads anything from
elsewhere; nothing is redirected.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from policyd.api import problems
from policyd.api.approvals import RevisionApprovalRequest, approval_router
from policyd.api.authzen import authzen_router
from policyd.api.batch import batch_router
from policyd.api.break_even import BreakEvenRequest, break_even_router
from policyd.api.budgets import BudgetRequest, LimitRequest, budget_router
from policyd.api.bundles import bundle_router
from policyd.api.compliance import compliance_router
from policyd.api.decisions import decision_router
from policyd.api.direct import DirectDecision
from policyd.api.ext_authz import ext_authz_router
from policyd.api.fleet import fleet_router
from policyd.api.gate import Gate
from policyd.api.health import Readiness, health_router
from policyd.api.log import log_router
from policyd.api.metrics import metrics_router
from policyd.api.openapi import describe
from policyd.api.openapi_approvals import APPROVALS_SHOWN
from policyd.api.openapi_authzen import AUTHZEN_SHOWN
from policyd.api.openapi_batch import BATCH_SHOWN
from policyd.api.openapi_break_even import BREAK_EVEN_SHOWN
from policyd.api.openapi_budgets import BUDGET_SHOWN
from policyd.api.openapi_compliance import COMPLIANCE_SHOWN
from policyd.api.openapi_ext_authz import EXT_AUTHZ_SHOWN
from policyd.api.openapi_log import LOG_SHOWN
from policyd.api.openapi_proposals import PROPOSALS_SHOWN
from policyd.api.openapi_pushes import PUSHES_SHOWN
from policyd.api.openapi_reports import REPORTS_SHOWN
from policyd.api.openapi_revisions import REVISIONS_SHOWN
from policyd.api.openapi_settlements import SETTLEMENT_SHOWN
from policyd.api.openapi_simulations import SIMULATION_SHOWN
from policyd.api.openapi_waivers import WAIVERS_SHOWN
from policyd.api.packing import Packing
from policyd.api.parts import Parts
from policyd.api.proposals import ApprovalRequest, ErasureRequest, HoldRequest, LiftRequest, proposal_router
from policyd.api.pushes import push_router
from policyd.api.reports import report_router
from policyd.api.revisions import ActivationRequest, RollbackRequest, revision_router
from policyd.api.settlements import ExtensionRequest, SettlementRequest, settlement_router
from policyd.api.simulations import SimulationRequest, simulation_router
from policyd.api.tracing import Admitted, Followed
from policyd.api.waivers import BreakGlassRequest, WaiverRequest, waiver_router
from policyd.errors import PolicydError

_SHOWN: Final[tuple[type[BaseModel], ...]] = (
    *APPROVALS_SHOWN,
    *AUTHZEN_SHOWN,
    *BATCH_SHOWN,
    *BREAK_EVEN_SHOWN,
    *BUDGET_SHOWN,
    *COMPLIANCE_SHOWN,
    *SETTLEMENT_SHOWN,
    BudgetRequest,
    LimitRequest,
    *EXT_AUTHZ_SHOWN,
    *PROPOSALS_SHOWN,
    *PUSHES_SHOWN,
    *REPORTS_SHOWN,
    *REVISIONS_SHOWN,
    *LOG_SHOWN,
    *SIMULATION_SHOWN,
    *WAIVERS_SHOWN,
    ActivationRequest,
    ApprovalRequest,
    BreakEvenRequest,
    BreakGlassRequest,
    ErasureRequest,
    ExtensionRequest,
    HoldRequest,
    LiftRequest,
    RevisionApprovalRequest,
    RollbackRequest,
    SettlementRequest,
    SimulationRequest,
    WaiverRequest,
)
"""Schemas that are described beside ``policyd.api.openapi``."""


class _Application(FastAPI):
    """FastAPI behind a door: what the door answers itself never comes to the framework."""

    def stand_behind(self, door: Callable[[ASGIApp], ASGIApp]) -> None:
        """Put the door before everything, with the framework behind it."""
        self._door = door(super().__call__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._door(scope, receive, send)


def _door(running: Parts, packing: Packing, framework: ASGIApp) -> ASGIApp:
    """Everything that stands before the framework, from the outside in: followed, let in, answered the short way."""
    telemetry = running.telemetry
    inside: ASGIApp = DirectDecision(framework, running, packing)
    if telemetry.tracing is not None:
        inside = Admitted(inside)
    # With several processes on the port, each admits its part of what the setting says.
    admitted = running.settings.part_of(running.settings.api.in_flight_max)
    limits = running.settings.api.model_copy(update={"in_flight_max": admitted})
    gate = Gate(inside, limits, running.callers, telemetry)
    return gate if telemetry.tracing is None else Followed(gate, telemetry.tracing)


def create_app(running: Parts) -> FastAPI:
    """The application over a running policyd, which the caller owns. ``app.state.readiness`` can be told to drain."""
    # The usual documentation pages load scripts from elsewhere; the description itself is at /openapi.json.
    app = _Application(title="policyd", docs_url=None, redoc_url=None, redirect_slashes=False)
    readiness, packing = Readiness(running), Packing()
    app.state.readiness = readiness
    app.state.telemetry = running.telemetry
    routers = [
        approval_router(running),
        authzen_router(running),
        batch_router(running, packing),
        break_even_router(running),
        budget_router(running),
        bundle_router(running),
        compliance_router(running),
        decision_router(running, packing),
        ext_authz_router(running),
        fleet_router(running),
        health_router(readiness),
        log_router(running),
        metrics_router(running, readiness),
        problems.page_router(),
        proposal_router(running),
        push_router(running),
        report_router(running),
        revision_router(running),
        settlement_router(running),
        simulation_router(running),
        waiver_router(running),
    ]
    for router in routers:
        app.include_router(router)

    async def refuse(request: Request, error: PolicydError) -> None:
        await running.callers.refused(request.scope, error)

    problems.install(app, routers, refuse)
    app.stand_behind(lambda framework: _door(running, packing, framework))

    def openapi() -> dict[str, Any]:
        return describe(app, _version(), _SHOWN)

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to replace the document
    return app


def _version() -> str:
    try:
        return version("policyd")
    except PackageNotFoundError:
        return "0"
