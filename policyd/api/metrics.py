"""``GET /metrics``: every number of ``policyd.telemetry`` for Prometheus.

Rules: it answers when everything else is refused for too much work; it is written in a thread, once at a time, so that
no decision waits for it and a flood of scrapes costs one; the engine is asked for its health as ``/readyz`` asks;
metrics that name tenants are for those who may read them for every tenant.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from policyd.api.callers import principal_of, require_somewhere
from policyd.api.health import Readiness
from policyd.api.openapi_metrics import METRICS
from policyd.api.parts import Parts
from policyd.errors import Forbidden, NotFound

_NO_STORE: Final = {"Cache-Control": "no-store"}


def metrics_router(parts: Parts, readiness: Readiness) -> APIRouter:
    """The route of metrics."""
    router = APIRouter(tags=["health"])
    # Made for the first scrape: its imports take a tenth of a second, which a start does without.
    exposition = cache(parts.exposition)
    parts.telemetry.observe("policyd.ready", readiness.parts_ready)
    one_at_a_time = asyncio.Lock()

    @router.get("/metrics", summary="Metrics for Prometheus", **METRICS)
    async def metrics(request: Request) -> Response:
        """All metrics in the text format of Prometheus, or in OpenMetrics when the scraper asks for that."""
        principal, snapshot = principal_of(request), parts.snapshot
        tenants = require_somewhere(principal, snapshot, "telemetry", "read")
        if parts.telemetry.tenant_label and len(tenants) < len(snapshot.fleet.tenants):
            raise Forbidden(f"{principal.name!r} may not read telemetry for every tenant, and the metrics name each")
        if not parts.telemetry.metrics:
            raise NotFound(
                "metrics are switched off", remedy="set telemetry.metrics to true, and leave OTEL_SDK_DISABLED unset"
            )
        await readiness.reasons()
        async with one_at_a_time:
            await parts.gather()
            accept = request.headers.get("accept", "")
            text, content_type = await asyncio.to_thread(lambda: exposition().render(accept))
        return Response(text, headers={**_NO_STORE, "Content-Type": content_type})

    return router
