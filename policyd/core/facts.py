"""What changes by the minute: headroom, queue, health and spot price of pools, and what accounts have spent.

Rules: facts never enter a sheet (budgets enter as thresholds crossed); a pool without facts is refused, not assumed
free; facts are content-addressed, so that a decision can name the ones it stood on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from policyd.core.fleet import Tenant
from policyd.core.quantities import MICRO_PER_UNIT, PPM

THRESHOLDS_PERCENT: Final = (100, 95, 80, 50)
"""Budget thresholds that policies see, highest first; below the last one they see 0."""


QUEUE_LIMIT_MS: Final = 5_000
"""A queue of this length or more earns no queue points."""


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """One pool at one moment: free GPUs, waiting time in front of it, whether it answers, price against the declared.

    ``usable_gpus`` and ``queue_points`` (0..200) follow from them: nothing is usable of a pool that is not known to be
    healthy, or whose headroom or queue nobody reports, which -1 says.
    """

    available_gpus: int | None = None
    queue_ms: int | None = None
    healthy: bool | None = None
    price_ppm: int = PPM
    usable_gpus: int = field(init=False, default=-1)
    queue_points: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.healthy is not True or self.available_gpus is None or self.queue_ms is None:
            return
        object.__setattr__(self, "usable_gpus", self.available_gpus)
        points = 200 - 200 * min(self.queue_ms, QUEUE_LIMIT_MS) // QUEUE_LIMIT_MS
        object.__setattr__(self, "queue_points", points)


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


def budget_limits(tenant: Tenant, project: str) -> tuple[tuple[str, int], ...]:
    """The accounts of a project that have a limit, with that limit in micro-USD; the tenant's own account first."""
    inner = tenant.project(project)
    levels = ((tenant.name, tenant.budget), (f"{tenant.name}/{project}", inner.budget if inner else None))
    return tuple((path, int(budget.limit * MICRO_PER_UNIT)) for path, budget in levels if budget is not None)


def crossed_percent(limits: tuple[tuple[str, int], ...], facts: Facts, ledger: int | None = None) -> int | None:
    """The highest budget threshold that any of the accounts has crossed; 0 without a budget or below the first.

    ``ledger`` is what the ledger says of them; facts may know of spending that did not come past here, and the higher
    counts. None when an account has a limit and nobody says what it has spent: the core then refuses what reads it.
    """
    highest = ledger or 0
    for path, limit_micro_usd in limits:
        spent = facts.spent_micro_usd.get(path)
        if spent is not None:
            highest = max(highest, threshold_percent(spent, limit_micro_usd))
        elif ledger is None:
            return None
    return highest


def threshold_percent(spent: int, limit: int) -> int:
    """The highest threshold that this much has reached."""
    for percent in THRESHOLDS_PERCENT:
        if spent * 100 >= limit * percent:
            return percent
    return 0
