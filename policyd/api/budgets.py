"""Budgets over HTTP: limits, what is spent and held of them, and when they reset.

Rules: what the caller may not read is not there; nothing here may be cached, since every decision changes it.
"""

from __future__ import annotations

from typing import Final

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from policyd.api.callers import principal_of
from policyd.api.openapi_settlements import BUDGET, BUDGETS
from policyd.api.parts import Parts
from policyd.api.queries import parameters
from policyd.documents import nearest
from policyd.errors import NotFound
from policyd.ledger.chart import Chart
from policyd.services.budgets import budget_items, readable_chart
from policyd.services.clock import now_us


def budget_router(parts: Parts) -> APIRouter:
    """The routes of budgets."""
    router = APIRouter(prefix="/v1/budgets", tags=["budgets"])

    async def answered(chart: Chart) -> Response:
        time_us = now_us()
        items = budget_items(chart, await parts.reader.accounts(list(chart), time_us), time_us)
        document = {"items": items, "next": None}
        return Response(orjson.dumps(document), headers=_NO_STORE, media_type="application/json")

    @router.get("", summary="Every budget that the caller may read", **BUDGETS)
    async def budgets(request: Request) -> Response:
        """One item for each limit of an account, in its present window."""
        parameters(request, ())
        return await answered(readable_chart(principal_of(request), parts.snapshot))

    @router.get("/{path:path}", summary="The budgets of one account", **BUDGET)
    async def budget(path: str, request: Request) -> Response:
        """The limits of that account alone."""
        parameters(request, ())
        chart = readable_chart(principal_of(request), parts.snapshot)
        if path not in chart:
            raise NotFound(f"there is no budget of {path[:400]!r}{nearest(path[:400], list(chart))}")
        return await answered({path: chart[path]})

    return router


_NO_STORE: Final = {"Cache-Control": "no-store"}
