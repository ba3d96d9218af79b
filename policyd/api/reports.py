"""Reports of the decision log over HTTP, page by page; ``policyd audit report`` adds the pages up.

Rules: a caller counts what it may search, and nothing else; a page reads a bounded number of entries, so that neither
the request nor the decisions beside it wait for long; one page at a time is made, since it is arithmetic.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from audit.query import Within
from policyd.api.callers import principal_of, readable
from policyd.api.openapi_reports import BUDGETS, FIRST_USES, FIRST_USES_FILTERS, REPORT, REPORT_FILTERS
from policyd.api.parts import Parts
from policyd.api.queries import parameters
from policyd.core.budgets import ORGANISATION
from policyd.documents import nearest
from policyd.errors import Finding, NotFound, RequestError
from policyd.services.budget_report import budget_report
from policyd.services.budgets import permitted, readable_chart
from policyd.services.ledger_time import LedgerNow
from policyd.services.reports import by_of, count_page, first_uses_page

AT_ONCE: Final = 1


def report_router(parts: Parts) -> APIRouter:
    """The routes of reports."""
    router = APIRouter(prefix="/v1/reports", tags=["reports"])
    turn, now = asyncio.Semaphore(AT_ONCE), LedgerNow()
    rows_max = parts.settings.audit.report_rows_max

    def within_of(request: Request) -> tuple[Within, ...] | None:
        return readable(principal_of(request), parts.snapshot)

    @router.get("/decisions", summary="Decisions of a period, counted", **REPORT)
    async def decisions(request: Request) -> Response:
        """Entries by outcome, rule, pool, provider, country and more, with their cost."""
        filters = parameters(request, ("by", *REPORT_FILTERS, "cursor"))
        within, cursor, written = within_of(request), filters.pop("cursor", None), filters.pop("by", None)
        if written is None:
            raise RequestError("`by` says what to count by", findings=[Finding("by", "is missing")])
        by = by_of([written])
        if by.transitions:
            raise RequestError("`by`: stage transitions are read from /v1/reports/first-uses")
        async with turn:
            page = await count_page(parts.reader, by, filters, cursor, rows_max=rows_max, within=within)
        return _json(page)

    @router.get("/first-uses", summary="When a version of a model was first used where", **FIRST_USES)
    async def first_uses(request: Request) -> Response:
        """The first allowed decision by tenant, model, version and environment, in the order of the log."""
        filters = parameters(request, (*FIRST_USES_FILTERS, "cursor"))
        within, cursor = within_of(request), filters.pop("cursor", None)
        async with turn:
            page = await first_uses_page(parts.reader, filters, cursor, within=within)
        return _json(page)

    @router.get("/budgets", summary="Budgets with how they were spent, and the hardware that is paid", **BUDGETS)
    async def budgets(request: Request) -> Response:
        """All that the caller may read; of one account, named by `path`, with its burn-down."""
        path = parameters(request, ("path",)).get("path")
        principal, snapshot, found = principal_of(request), parts.snapshot, parts.budgets.known.limits()
        chart = readable_chart(principal, snapshot, found)
        if path is not None:
            if path not in chart:
                raise NotFound(f"there is no budget of {path[:400]!r}{nearest(path[:400], list(chart))}")
            chart = {path: chart[path]}
        whole = permitted(principal, snapshot, ORGANISATION, "read")
        async with turn:
            return _json(
                await budget_report(parts.reader, chart, snapshot.fleet, found, path=path, whole=whole, now_us=now())
            )

    return router


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), headers={"Cache-Control": "no-store"}, media_type="application/json")
