"""The description of reservations and budgets, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel

from policyd.api.openapi import PositionDocument, content_of, problems_of, route


class BalanceDocument(BaseModel):
    """An account after the change."""

    path: str
    pools: str
    unit: str
    window: str
    limit: int
    reserved: int
    spent: int
    debt: int


class ReservationDocument(BaseModel):
    """A reservation after the change. ``actual`` is what was posted of each unit."""

    id: str
    state: Literal["held", "settled", "voided", "expired"]
    expires_at: str
    replay: bool
    pool: str | None = None
    actual: dict[str, int] | None = None
    accounts: list[BalanceDocument]
    audit: PositionDocument


class BudgetDocument(BaseModel):
    """One limit of an account in its present window. A gauge, of what is in flight, has no window."""

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


class BudgetPage(BaseModel):
    """Budgets, in order of their paths."""

    items: list[BudgetDocument]
    next: str | None


_RESERVATION: Final[dict[str, Any]] = {
    "id": "01990000-0000-7000-8000-000000000000",
    "state": "settled",
    "expires_at": "2026-11-22T10:15:00.000000Z",
    "replay": False,
    "pool": "onprem-fra-h100",
    "actual": {"micro_usd": 3100, "tokens": 1450},
    "accounts": [
        {
            "path": "eu-bank",
            "pools": "*",
            "unit": "micro_usd",
            "window": "month",
            "limit": 60000000000,
            "reserved": 0,
            "spent": 3100,
            "debt": 0,
        }
    ],
    "audit": {"log": "policyd/0", "index": 1, "leaf_hash": "0" * 64},
}
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
        }
    ],
    "next": None,
}
_CHANGED: Final = content_of("ReservationDocument", _RESERVATION)

SETTLE: Final = route(
    "the reservation, settled",
    _CHANGED,
    problems_of(400, 403, 404, 409, 413, 415, 422, 503),
    requestBody={
        "required": True,
        "content": content_of("SettlementRequest", {"input_tokens": 1180, "output_tokens": 270}),
    },
)
VOID: Final = route("the reservation, void", _CHANGED, problems_of(400, 403, 404, 409, 503))
EXTEND: Final = route(
    "the reservation, held for longer",
    _CHANGED,
    problems_of(400, 403, 404, 409, 413, 415, 422, 503),
    requestBody={"required": True, "content": content_of("ExtensionRequest", {"hold_ms": 60000})},
)
BUDGETS: Final = route("the budgets", content_of("BudgetPage", _BUDGETS), problems_of(400, 503))
BUDGET: Final = route("the budgets of the account", content_of("BudgetPage", _BUDGETS), problems_of(400, 404, 503))
BUDGET_SHOWN: Final[tuple[type[BaseModel], ...]] = (BalanceDocument, ReservationDocument, BudgetDocument, BudgetPage)
