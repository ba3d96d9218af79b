"""From the budgets of a fleet to the limits that a decision is charged to. Pure.

Rules: all levels of a path, from the organisation to the environment; the order is that of the accounts' keys, so that
equal fleets give equal charges; a fleet without budgets has no limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from policyd.core.budgets import ORGANISATION, Budget, account_path, budgets
from policyd.core.fleet import Fleet
from policyd.ledger.rules import Limit, Unit

UNITS: Final[Mapping[str, Unit]] = {
    "usd": "micro_usd",
    "tokens": "tokens",
    "gpu_hours": "gpu_ms",
    "requests": "requests",
    "gpus": "gpus",
    "in_flight": "in_flight",
}
ALL_POOLS: Final = "*"

Chart = Mapping[str, tuple[Limit, ...]]
"""The limits of every account, by its path."""


def chart_of(fleet: Fleet) -> Chart:
    """The limits that a fleet declares."""
    return {
        path: tuple(_limit(path, zone, budget) for budget in declared)
        for path, zone, declared, _ in budgets(fleet.document)
    }


def _limit(path: str, zone: str, budget: Budget) -> Limit:
    return Limit(
        path,
        UNITS[budget.unit],
        budget.window or "now",
        budget.amount,
        budget.zone or zone,
        budget.pools or ALL_POOLS,
        budget.thresholds,
    )


def levels(tenant: str, project: str, environment: str) -> tuple[str, ...]:
    """The paths of all accounts above a workload, and its own."""
    own = (account_path(tenant, project), account_path(tenant, project, environment))
    return (ORGANISATION, tenant, *own)


def limits_of(chart: Chart, tenant: str, project: str, environment: str) -> tuple[Limit, ...]:
    """Every limit that a workload is charged to."""
    found = (limit for path in levels(tenant, project, environment) for limit in chart.get(path, ()))
    return tuple(sorted(found, key=lambda limit: (limit.path, limit.pools, limit.unit, limit.window)))
