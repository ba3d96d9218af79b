"""The description of break-even, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from policyd.api.openapi import content_of, problems_of, route


class BreakEvenDocument(BaseModel):
    """Rates are mean requests per hour; a cost that is null: the pool has too few GPUs."""

    model: str
    traffic: dict[str, Any]
    hours_per_month: int
    compared_up_to_requests_per_hour: int
    pools: list[dict[str, Any]]
    crossings: list[dict[str, Any]]
    cheapest: list[dict[str, Any]]
    cheapest_with_paid_hardware: list[dict[str, Any]]
    unpriced: list[dict[str, Any]]
    fleet: dict[str, Any]


_EXAMPLE: Final[dict[str, Any]] = {
    "model": "llama-3.1-70b-instruct",
    "traffic": {
        "requests_per_week": 504000,
        "peak_requests_per_hour": 3000,
        "input_tokens": 1000,
        "output_tokens": 300,
    },
    "hours_per_month": 730,
    "compared_up_to_requests_per_hour": 1000000,
    "pools": [],
    "crossings": [],
    "cheapest": [],
    "cheapest_with_paid_hardware": [],
    "unpriced": [{"pool": "a-pool", "kind": "on_demand", "missing": "price"}],
    "fleet": {"commit": None, "digest": "sha256:" + "0" * 64},
}

BREAK_EVEN: Final = route(
    "the comparison",
    content_of("BreakEvenDocument", _EXAMPLE),
    problems_of(400, 403, 413, 415, 422, 503),
    requestBody={
        "required": True,
        "content": content_of(
            "BreakEvenRequest",
            {"model": "llama-3.1-70b-instruct", "requests_per_hour": 3000, "input_tokens": 1000, "output_tokens": 300},
        ),
    },
)
BREAK_EVEN_SHOWN: Final[tuple[type[BaseModel], ...]] = (BreakEvenDocument,)
