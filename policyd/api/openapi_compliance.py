"""The description of standing compliance, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from policyd.api.openapi import content_of, problems_of, route

_EXAMPLE: Final[dict[str, Any]] = {
    "id": "01991f6e-7c3a-7cc0-8000-4f1f3ad2b1aa",
    "time": "2026-11-24T06:00:00.000000Z",
    "event": "lapsed",
    "within_days": 30,
    "policy": ["5f0c", "sha256:8c1f"],
    "fleet": ["5f0c", "sha256:77aa"],
    "placements": 41,
    "decisions": 18_400,
    "unread": 0,
    "urgency": {"now": 1, "soon": 0, "review": 0},
    "items_total": 1,
    "items": [
        {
            "urgency": "now",
            "pool": "onprem-fra-h100",
            "scope": "deployment",
            "tenant": "eu-bank",
            "project": "support-chat",
            "environment": "prod",
            "model": "llama-3.1-70b-instruct",
            "model_version": "1.2.0",
            "classification": "restricted",
            "placements": 1,
            "running": 1,
            "last": "2026-11-20T08:00:00.000000Z",
            "until": "2026-12-20T08:00:00.000000Z",
            "example": "01991f6e-7c3a-7cc0-8000-4f1f3ad2b1aa",
            "rules": ["isolation.certification_missing"],
        }
    ],
    "audit": {"log": "policyd/7f3a", "index": 300, "leaf_hash": "0f"},
}


class LapseDocument(BaseModel):
    """Decisions of one workload class on one pool that would be refused today."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    urgency: str = Field(description="`now`: it runs, and a hard rule refuses it; `soon`; `review`")
    pool: str
    tenant: str
    placements: int = Field(description="how many decisions", ge=1)
    running: int = Field(description="how many of them hold something at this moment", ge=0)
    example: str = Field(description="the newest of them, to open with `policyd explain`")
    rules: list[str] = Field(description="what refuses it")


class ComplianceDocument(BaseModel):
    """What was judged when, under which revisions, and what would be refused."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    time: str
    within_days: int
    placements: int = Field(description="workload classes on a pool that are in force", ge=0)
    decisions: int = Field(description="the decisions that these stand for", ge=0)
    items_total: int = Field(description="how many would be refused; `items` has the first hundred", ge=0)
    items: list[LapseDocument]


COMPLIANCE_SHOWN: Final[tuple[type[BaseModel], ...]] = (ComplianceDocument, LapseDocument)
COMPLIANCE: Final[dict[str, Any]] = route(
    "the newest judgement", content_of("ComplianceDocument", _EXAMPLE), problems_of(400, 404, 503)
)
