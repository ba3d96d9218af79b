"""Budgets over HTTP: limits, what is spent and held of them, when they reset; and setting them.

Rules: what the caller may not read is not there; nothing here may be cached, since every decision changes it; setting
stays possible whatever is exhausted, since it reserves nothing.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, StringConstraints, ValidationError

from policyd.api.bodies import read_json
from policyd.api.callers import principal_of
from policyd.api.openapi_budgets import BUDGET, BUDGETS, SET_BUDGET
from policyd.api.parts import Parts
from policyd.api.problems import request_id_of
from policyd.api.queries import parameters
from policyd.core.budgets import ORGANISATION, Budget, Zone
from policyd.core.quantities import MAX_SAFE
from policyd.core.workload import Given, Name
from policyd.documents import nearest
from policyd.errors import NotFound
from policyd.ledger.chart import Chart
from policyd.services.actions import BUDGET_SET
from policyd.services.budget_changes import LIMITS_MAX, REASON_MAX_CHARS, Wish
from policyd.services.budgets import budget_items, readable_chart
from policyd.services.ledger_time import LedgerNow

Written = Annotated[str, StringConstraints(pattern=r"^(fleet|[0-9]{1,16}(\.[0-9]{1,12})?)$")]
"""A decimal, or the word that gives a limit back."""


class LimitRequest(Given):
    """One limit of an account: at most the fleet's, which is its ceiling. ``fleet`` gives it back to the fleet.

    Money is USD. ``zone`` is where windows begin, for a limit that the fleet does not declare; ``thresholds`` come
    beside those of the fleet.
    """

    limit: Written | Annotated[int, Field(ge=0, le=MAX_SAFE)]
    unit: Literal["usd", "tokens", "gpu_hours", "requests", "gpus", "in_flight"] = "usd"
    window: Literal["hour", "day", "week", "month", "total"] | None = None
    pools: Name | None = None
    zone: Zone | None = None
    thresholds: Annotated[list[Annotated[int, Field(ge=1, le=100)]], Field(max_length=10)] | None = None

    def model_post_init(self, context: Any) -> None:
        """Raise ValueError for what no budget can be."""
        self.wish()

    def wish(self) -> Wish:
        """In words of the service. Raises ValueError."""
        told = None if self.thresholds is None else tuple(self.thresholds)
        given = {"thresholds": told} if told else {}
        gives_back = self.limit == "fleet"
        try:
            budget = Budget(
                limit=Decimal(0 if gives_back else self.limit),
                window=self.window,
                unit=self.unit,
                zone=self.zone,
                pools=self.pools,
                **given,
            )
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        return Wish(budget, gives_back, told)


class BudgetRequest(Given):
    """Body of ``PUT /v1/budgets/{path}``: limits to set, all or none, and why. What is not named stays as it is.

    With ``propose`` nothing is set: another person approves it, and then it is.
    """

    limits: Annotated[list[LimitRequest], Field(min_length=1, max_length=LIMITS_MAX)]
    reason: Annotated[str, StringConstraints(min_length=1, max_length=REASON_MAX_CHARS)]
    propose: bool = False


def budget_router(parts: Parts) -> APIRouter:
    """The routes of budgets."""
    router = APIRouter(prefix="/v1/budgets", tags=["budgets"])

    body_max_bytes, now = parts.settings.api.body_max_bytes, LedgerNow()

    def readable(request: Request) -> Chart:
        return readable_chart(principal_of(request), parts.snapshot, parts.budgets.known.limits())

    async def answered(chart: Chart, **more: Any) -> Response:
        time_us = now()
        accounts = await parts.reader.accounts(list(chart), time_us)
        items = budget_items(chart, accounts, time_us, parts.snapshot.fleet, parts.budgets.known.limits())
        document = {"items": items, "next": None, **more}
        return Response(orjson.dumps(document), headers=_NO_STORE, media_type="application/json")

    @router.get("", summary="Every budget that the caller may read", **BUDGETS)
    async def budgets(request: Request) -> Response:
        """One item for each limit of an account, in its present window."""
        parameters(request, ())
        return await answered(readable(request))

    @router.get("/{path:path}", summary="The budgets of one account", **BUDGET)
    async def budget(path: str, request: Request) -> Response:
        """The limits of that account alone."""
        parameters(request, ())
        chart = readable(request)
        if path not in chart:
            raise NotFound(f"there is no budget of {path[:400]!r}{nearest(path[:400], list(chart))}")
        return await answered({path: chart[path]})

    @router.put("/{path:path}", summary="Set limits of an account", **SET_BUDGET)
    async def change(path: str, request: Request) -> Response:
        """Lowering takes one person who may set budgets; raising, one who may raise them so far, or two."""
        parameters(request, ())
        principal = principal_of(request)
        body = await read_json(request, BudgetRequest, body_max_bytes)
        wishes = [limit.wish() for limit in body.limits]
        if body.propose:
            document = parts.budgets.document(path, wishes, body.reason, principal)
            tenant = None if path == ORGANISATION else path.split("/")[0]
            proposal = await parts.two_persons.propose(BUDGET_SET, tenant, document, principal, request_id_of(request))
            return await answered({path: readable(request).get(path, ())}, proposal=proposal)
        done = await parts.budgets.change(path, wishes, body.reason, principal, request_id_of(request))
        return await answered({path: readable(request).get(path, ())}, change=done)

    return router


_NO_STORE: Final = {"Cache-Control": "no-store"}
