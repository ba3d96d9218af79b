"""The description of budgets and their changes, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from policyd.api.openapi import PositionDocument, content_of, problems_of, route
from policyd.api.openapi_proposals import ProposalDocument


class BudgetDocument(BaseModel):
    """One limit of an account in its present window. A gauge, of what is in flight, has no window.

    ``limit`` counts: the lower of ``limit_fleet``, which the fleet declares, and ``limit_set``.
    """

    path: str
    unit: str
    pools: str | None
    limit: int
    spent: int
    reserved: int
    debt: int
    remaining: int
    spent_percent: int | None
    window: str | None
    zone: str
    starts_at: str | None
    resets_at: str | None
    projected_exhaustion: str | None
    limit_fleet: int | None
    limit_set: int | None
    thresholds: list[int]


class BudgetPage(BaseModel):
    """Budgets, in order of their paths."""

    items: list[BudgetDocument]
    next: str | None


class ChangeDocument(BaseModel):
    """The entry of a change, and where it stands in the log."""

    id: str
    audit: PositionDocument


class ChangedBudgets(BudgetPage):
    """The budgets of the account after a change, or beside the proposal of one."""

    change: ChangeDocument | None = None
    proposal: ProposalDocument | None = None


_BUDGETS: Final[dict[str, Any]] = {
    "items": [
        {
            "path": "eu-bank",
            "unit": "micro_usd",
            "pools": None,
            "limit": 60000000000,
            "spent": 3100,
            "reserved": 5120,
            "debt": 0,
            "remaining": 59999991780,
            "spent_percent": 0,
            "window": "month",
            "zone": "Europe/Berlin",
            "starts_at": "2026-10-31T23:00:00.000000Z",
            "resets_at": "2026-11-30T23:00:00.000000Z",
            "projected_exhaustion": None,
            "limit_fleet": 60000000000,
            "limit_set": None,
            "thresholds": [50, 80, 95],
        }
    ],
    "next": None,
}
_ID: Final = "01990000-0000-7000-8000-000000000000"
_SET: Final[dict[str, Any]] = {"id": _ID, "audit": {"log": "policyd/0", "index": 1, "leaf_hash": "0" * 64}}
_WISHED: Final[dict[str, Any]] = {
    "limits": [{"unit": "usd", "window": "month", "limit": "45000"}],
    "reason": "the pilot has ended",
}

BUDGETS: Final = route("the budgets", content_of("BudgetPage", _BUDGETS), problems_of(400, 503))
BUDGET: Final = route("the budgets of the account", content_of("BudgetPage", _BUDGETS), problems_of(400, 404, 503))
SET_BUDGET: Final = route(
    "the budgets of the account, with the limits that count now",
    content_of("ChangedBudgets", {**_BUDGETS, "change": _SET}),
    problems_of(400, 403, 404, 409, 413, 415, 422, 503),
    requestBody={"required": True, "content": content_of("BudgetRequest", _WISHED)},
)
BUDGET_SHOWN: Final[tuple[type[BaseModel], ...]] = (BudgetDocument, BudgetPage, ChangeDocument, ChangedBudgets)
