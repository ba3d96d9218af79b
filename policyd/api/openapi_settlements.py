"""The description of reservations, beside ``policyd.api.openapi``.

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
SETTLEMENT_SHOWN: Final[tuple[type[BaseModel], ...]] = (BalanceDocument, ReservationDocument)
