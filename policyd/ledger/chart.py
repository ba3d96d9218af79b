"""From the budgets of a fleet, and those that somebody set, to the limits that a decision is charged to. Pure.

Rules: all levels of a path, from the organisation to the environment; the order is that of the accounts' keys, so that
equal fleets give equal charges; a fleet without budgets has no limits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from policyd.core.budgets import ORGANISATION, Budget, account_path, budgets
from policyd.core.fleet import Fleet
from policyd.ledger.changes import LimitKey, SetLimit, effective, key_of
from policyd.ledger.rules import ALL_POOLS, Limit, Unit

UNITS: Final[Mapping[str, Unit]] = {
    "usd": "micro_usd",
    "tokens": "tokens",
    "gpu_hours": "gpu_ms",
    "requests": "requests",
    "gpus": "gpus",
    "in_flight": "in_flight",
}

Chart = Mapping[str, tuple[Limit, ...]]
"""The limits of every account, by its path."""


def chart_of(fleet: Fleet) -> Chart:
    """The limits that a fleet declares."""
    return {
        path: tuple(_limit(path, zone, budget) for budget in declared)
        for path, zone, declared, _ in budgets(fleet.document)
    }


def ceilings_of(fleet: Fleet, found: Mapping[LimitKey, SetLimit]) -> Chart:
    """What a decision is charged to: the fleet's limits, and without a ceiling those that only somebody set.

    How much is left of them is for the writer of the ledger to say, which knows what is set at that moment.
    """
    return _with_set(chart_of(fleet), found, lambda ceiling, _: ceiling)


def counting_of(fleet: Fleet, found: Mapping[LimitKey, SetLimit]) -> Chart:
    """The limits that count."""
    return _with_set(chart_of(fleet), found, effective)


def _with_set(
    declared: Chart, found: Mapping[LimitKey, SetLimit], told: Callable[[Limit, SetLimit | None], Limit]
) -> Chart:
    if not found:
        return declared
    ceilings = {key_of(limit): limit for limits in declared.values() for limit in limits}
    added = {key: limit.ceiling for key, limit in found.items() if key not in ceilings}
    chart: dict[str, tuple[Limit, ...]] = {}
    for key, ceiling in (ceilings | added).items():
        chart[key.path] = (*chart.get(key.path, ()), told(ceiling, found.get(key)))
    return chart


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
