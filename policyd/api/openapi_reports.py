"""The description of reports, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, Field

from audit.query import FILTERS
from audit.report import DIMENSIONS
from policyd.api.openapi import content_of, filter_parameter, parameter, problems_of, route
from policyd.api.openapi_budgets import BudgetDocument

REPORT_FILTERS: Final = tuple(name for name in FILTERS if name != "rejected_pool")
"""Every filter of a search but the one that would need to know which pools are hidden from the caller."""
FIRST_USES_FILTERS: Final = tuple(name for name in REPORT_FILTERS if name not in ("outcome", "from"))


class ReportRow(BaseModel):
    """One row: a value for each dimension that the table is by, and the counts."""

    model_config = {"extra": "allow"}

    entries: int
    allow: int
    deny: int
    error: int
    cost_micro_usd: int = Field(description="the three that follow, together; what was released costs nothing")
    settled_micro_usd: int = Field(description="what was settled")
    presumed_micro_usd: int = Field(description="what was held and nobody settled in time: presumed to be spent")
    expected_micro_usd: int = Field(
        description="where it is not known yet, or nothing was reserved: what the first choices were expected to cost"
    )


class ReportTable(BaseModel):
    """Rows by one or more dimensions, most entries first."""

    by: list[str]
    rows: list[ReportRow]


class ReportPage(BaseModel):
    """Counts of the entries of one page, in the order of time. Rows of the same values in several pages add up."""

    entries: int = Field(description="entries that this page counted")
    entries_total: int | None = Field(description="entries to count in all; only on the first page")
    tables: list[ReportTable]
    next: str | None = Field(description="cursor of the next page; null at the end")


class FirstUseDocument(BaseModel):
    """The first allowed decision, and how many there were in the part of the log that this page read."""

    tenant: str | None
    model: str | None
    model_version: str | None
    environment: str | None
    time_us: int
    time: str
    id: str
    log: str
    index: int
    entries: int


class FirstUsePage(BaseModel):
    """First uses in one part of the log. A use that a page before has is no first one."""

    items: list[FirstUseDocument]
    next: str | None = Field(description="cursor of the next page; null at the end")


class BurnDown(BaseModel):
    """What was spent of one limit over its window: pairs of a time and an amount, the present one last."""

    unit: str
    window: str
    limit: int
    starts_at: str
    ends_at: str | None
    points: list[list[Any]]


class PaidPool(BaseModel):
    """A pool that is paid by the hour, used or not; null when its price is not known."""

    pool: str
    kind: str
    gpus: int | None
    micro_usd_per_hour: int | None


class BudgetReport(BaseModel):
    """Budgets, how those of one account were spent, and the paid hardware for who reads budgets everywhere."""

    time: str
    path: str | None
    budgets: list[BudgetDocument]
    burn_down: list[BurnDown]
    committed: list[PaidPool]


_COUNTS: Final[dict[str, Any]] = {
    "entries": 3,
    "allow": 2,
    "deny": 1,
    "error": 0,
    "cost_micro_usd": 10240,
    "settled_micro_usd": 5120,
    "presumed_micro_usd": 0,
    "expected_micro_usd": 5120,
}
_REPORT_EXAMPLE: Final[dict[str, Any]] = {
    "entries": 3,
    "entries_total": 3,
    "tables": [{"by": ["provider", "country"], "rows": [{"provider": "aws", "country": "DE", **_COUNTS}]}],
    "next": None,
}
_FIRST_USES_EXAMPLE: Final[dict[str, Any]] = {
    "items": [
        {
            "tenant": "eu-bank",
            "model": "llama-3.1-70b-instruct",
            "model_version": "2024-07",
            "environment": "prod",
            "time_us": 1795341600000000,
            "time": "2026-11-22T10:00:00.000000Z",
            "id": "01990000-0000-7000-8000-000000000000",
            "log": "policyd/01990000-0000-7000-8000-000000000009",
            "index": 17,
            "entries": 1,
        }
    ],
    "next": None,
}
_CURSOR: Final = parameter("cursor", "`next` of the page before; no other text is one")
_WORD: Final = f"({'|'.join(DIMENSIONS)})"

REPORT: Final = route(
    "counts",
    content_of("ReportPage", _REPORT_EXAMPLE),
    problems_of(400, 403, 503),
    parameters=[
        {
            **parameter(
                "by",
                "what to count by: a comma between tables, a slash between dimensions of one",
                {"type": "string", "pattern": f"^{_WORD}$", "example": "outcome"},
            ),
            "required": True,
        },
        *(filter_parameter(name) for name in REPORT_FILTERS),
        _CURSOR,
    ],
)
FIRST_USES: Final = route(
    "first uses",
    content_of("FirstUsePage", _FIRST_USES_EXAMPLE),
    problems_of(400, 403, 503),
    parameters=[*(filter_parameter(name) for name in FIRST_USES_FILTERS), _CURSOR],
)
BUDGETS: Final = route(
    "the report",
    content_of(
        "BudgetReport",
        {
            "time": "2026-11-22T10:00:00.000000Z",
            "path": None,
            "budgets": [],
            "burn_down": [],
            "committed": [{"pool": "own-fra-h100", "kind": "on_prem", "gpus": 64, "micro_usd_per_hour": 121600000}],
        },
    ),
    problems_of(400, 404, 503),
    parameters=[parameter("path", "only this account, with its burn-down")],
)
REPORTS_SHOWN: Final[tuple[type[BaseModel], ...]] = (ReportPage, FirstUsePage, BudgetReport)
