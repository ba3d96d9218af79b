"""What changes by the minute: headroom, queue, health and spot price of pools, and what accounts have spent.

Rules: facts never enter a sheet (budgets enter as thresholds crossed); a pool without facts is refused, not assumed
free; facts are content-addressed, so that a decision can name the ones it stood on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from policyd.core.fleet import Fleet
from policyd.core.quantities import MICRO_PER_UNIT, PPM

THRESHOLDS_PERCENT: Final = (100, 95, 80, 50)
"""Budget thresholds that policies see, highest first; below the last one they see 0."""


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """One pool at one moment: free GPUs, waiting time in front of it, whether it answers, price against the declared."""

    available_gpus: int | None = None
    queue_ms: int | None = None
    healthy: bool | None = None
    price_ppm: int = PPM


@dataclass(frozen=True, slots=True)
class Facts:
    """All facts of one moment. ``digest`` is their content address, ``observed_at`` ISO 8601 or None when declared."""

    pools: Mapping[str, PoolFacts]
    spent_micro_usd: Mapping[str, int]
    digest: str
    observed_at: str | None = None


def facts_from_json(document: Mapping[str, Any], digest: str) -> Facts:
    """Facts from their JSON form (``observed_at``, ``pools``, ``accounts``), which a source has already checked."""
    return Facts(
        pools={name: PoolFacts(**values) for name, values in document.get("pools", {}).items()},
        spent_micro_usd={
            path: values["spent_micro_usd"]
            for path, values in document.get("accounts", {}).items()
            if values.get("spent_micro_usd") is not None
        },
        digest=digest,
        observed_at=document.get("observed_at"),
    )


def crossed_percent(fleet: Fleet, tenant: str, project: str, facts: Facts) -> int | None:
    """The highest budget threshold that the project or its tenant has crossed; 0 without a budget or below the first.

    None when a budget is declared and nobody says what was spent: the core then refuses what reads it.
    """
    owner = fleet.tenants[tenant]
    inner = owner.project(project)
    levels = [(tenant, owner.budget), (f"{tenant}/{project}", inner.budget if inner else None)]
    highest = 0
    for path, budget in levels:
        if budget is None:
            continue
        spent = facts.spent_micro_usd.get(path)
        if spent is None:
            return None
        highest = max(highest, _threshold(spent, int(budget.limit * Decimal(MICRO_PER_UNIT))))
    return highest


def _threshold(spent: int, limit: int) -> int:
    for percent in THRESHOLDS_PERCENT:
        if spent * 100 >= limit * percent:
            return percent
    return 0
