"""``GET /metrics``: every number of ``policyd.telemetry`` for Prometheus.

Rules: it answers when everything else is refused for too much work; it is written in a thread, once at a time, so that
no decision waits for it and a flood of scrapes costs one; the engine is asked for its health as ``/readyz`` asks.
"""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from policyd.api.callers import principal_of, require_somewhere
from policyd.api.health import Readiness
from policyd.api.openapi_metrics import METRICS
from policyd.api.parts import Parts
from policyd.errors import NotFound

_NO_STORE: Final = {"Cache-Control": "no-store"}


def metrics_router(parts: Parts, readiness: Readiness) -> APIRouter:
    """The route of metrics."""
    router = APIRouter(tags=["health"])
    exposition = parts.exposition() if parts.telemetry.metrics else None
    parts.telemetry.observe("policyd.ready", readiness.parts_ready)
    one_at_a_time = asyncio.Lock()

    @router.get("/metrics", summary="Metrics for Prometheus", **METRICS)
    async def metrics(request: Request) -> Response:
        """All metrics in the text format of Prometheus, or in OpenMetrics when the scraper asks for that."""
        require_somewhere(principal_of(request), parts.snapshot, "telemetry", "read")
        if exposition is None:
            raise NotFound(
                "metrics are switched off", remedy="set telemetry.metrics to true, and leave OTEL_SDK_DISABLED unset"
            )
        await readiness.reasons()
        async with one_at_a_time:
            text, content_type = await asyncio.to_thread(exposition.render, request.headers.get("accept", ""))
        return Response(text, headers={**_NO_STORE, "Content-Type": content_type})

    return router
