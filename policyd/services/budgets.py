"""Budgets as they stand: the limits of the live fleet beside the accounts of the ledger.

Rules: what a caller may read is asked for each account by its tenant, project and environment; the organisation's own
accounts belong to all tenants, so whoever reads budgets everywhere reads them. An account that nobody has used yet has
all of its limit left. The projection is a straight line through what is spent so far; None when the window ends first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final
from zoneinfo import ZoneInfo

from policyd.core.budgets import ORGANISATION
from policyd.core.principal import Principal
from policyd.core.snapshot import Snapshot
from policyd.ledger.chart import Chart, chart_of
from policyd.ledger.rules import GAUGES, Account, AccountKey, Limit
from policyd.ledger.windows import window_of
from policyd.services.clock import rfc3339

OBJECT: Final = "budgets"


def readable_chart(principal: Principal, snapshot: Snapshot) -> Chart:
    """The limits that the principal may read, by path."""
    chart = chart_of(snapshot.fleet)
    return {path: limits for path, limits in sorted(chart.items()) if _may_read(principal, snapshot, path)}


def _may_read(principal: Principal, snapshot: Snapshot, path: str) -> bool:
    entitled = snapshot.entitlements
    if path == ORGANISATION:
        return principal.permitted_everywhere(entitled, OBJECT, "read", sorted(snapshot.fleet.tenants))
    tenant, project, environment = (*path.split("/"), None, None)[:3]
    assert tenant is not None
    return principal.permitted(entitled, OBJECT, "read", tenant, project, environment)


def budget_items(chart: Chart, accounts: Iterable[Account], now_us: int) -> list[dict[str, Any]]:
    """One item for each limit, in order of path, in its present window."""
    known = {account.key: account for account in accounts}
    return [_item(limit, known, now_us) for limits in chart.values() for limit in limits]


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
