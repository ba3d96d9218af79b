"""Budgets as they stand: the limits of the live fleet and those set beside it, and the accounts of the ledger.

Rules: what a caller may read is asked for each account by its tenant, project and environment; the organisation's own
accounts belong to all tenants, so whoever reads budgets everywhere reads them. An account that nobody has used yet has
all of its limit left. The projection is a straight line through what is spent so far; None when the window ends first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final
from zoneinfo import ZoneInfo

from policyd.core.budgets import ORGANISATION
from policyd.core.fleet import Fleet
from policyd.core.principal import Principal
from policyd.core.snapshot import Snapshot
from policyd.ledger.changes import LimitKey, SetLimit, key_of
from policyd.ledger.chart import Chart, chart_of, counting_of
from policyd.ledger.rules import GAUGES, Account, AccountKey, Limit
from policyd.ledger.windows import window_of
from policyd.services.clock import rfc3339

OBJECT: Final = "budgets"


Found = Mapping[LimitKey, SetLimit]
"""What is set beside the fleet."""


def readable_chart(principal: Principal, snapshot: Snapshot, found: Found) -> Chart:
    """The limits that count and that the principal may read, by path."""
    chart = counting_of(snapshot.fleet, found)
    return {path: limits for path, limits in sorted(chart.items()) if permitted(principal, snapshot, path, "read")}


def permitted(principal: Principal, snapshot: Snapshot, path: str, action: str) -> bool:
    """Whether the principal may do this with the budgets of an account."""
    entitled = snapshot.entitlements
    if path == ORGANISATION:
        return principal.permitted_everywhere(entitled, OBJECT, action, sorted(snapshot.fleet.tenants))
    tenant, project, environment = (*path.split("/"), None, None)[:3]
    assert tenant is not None
    return principal.permitted(entitled, OBJECT, action, tenant, project, environment)


def budget_items(
    chart: Chart, accounts: Iterable[Account], now_us: int, fleet: Fleet, found: Found
) -> list[dict[str, Any]]:
    """One item for each limit, in order of path, in its present window, and where the limit comes from."""
    known = {account.key: account for account in accounts}
    declared = {key_of(limit): limit.amount for limits in chart_of(fleet).values() for limit in limits}
    items = []
    for limits in chart.values():
        for limit in limits:
            key = key_of(limit)
            own = found.get(key)
            origin = {"limit_fleet": declared.get(key), "limit_set": None if own is None else own.amount}
            items.append({**_item(limit, known, now_us), **origin, "thresholds": list(limit.thresholds)})
    return items


def _item(limit: Limit, known: Mapping[AccountKey, Account], now_us: int) -> dict[str, Any]:
    span = window_of(limit.window, ZoneInfo(limit.zone), now_us)
    key = AccountKey(limit.path, limit.pools, limit.unit, limit.window, span.start_us)
    account = known.get(key) or Account(key, span.end_us, limit.amount, limit.thresholds)
    used = account.reserved + account.spent + account.leased
    gauge = limit.unit in GAUGES
    return {
        "path": limit.path,
        "unit": limit.unit,
        "pools": None if limit.pools == "*" else limit.pools,
        "limit": limit.amount,
        "spent": account.spent,
        "reserved": account.reserved,
        "debt": max(0, used - limit.amount),
        "remaining": max(0, limit.amount - used),
        "spent_percent": None if gauge or not limit.amount else account.spent * 100 // limit.amount,
        "window": None if gauge else limit.window,
        "zone": limit.zone,
        "starts_at": None if span.end_us is None else rfc3339(span.start_us),
        "resets_at": None if span.end_us is None else rfc3339(span.end_us),
        "projected_exhaustion": None if gauge else _projected(account, limit, now_us),
    }


def _projected(account: Account, limit: Limit, now_us: int) -> str | None:
    """When the limit is spent, if spending goes on as it did since the window began."""
    start_us, end_us = account.key.start_us, account.end_us
    if account.spent >= limit.amount:
        return rfc3339(now_us)
    if end_us is None or account.spent == 0 or now_us <= start_us:
        return None
    runs_out_us = start_us + (now_us - start_us) * limit.amount // account.spent
    return rfc3339(runs_out_us) if runs_out_us < end_us else None
