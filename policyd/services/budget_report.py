"""What a review of budgets needs beside their present state: how they were spent, and what paid hardware did nothing.

    limits and accounts ──► budgets      the log, at some moments of the window ──► burn-down
    pools that are paid by the hour, used or not ──► committed, beside what was decided on them ──► idle

Rules: a burn-down is what the log says, read at ``POINTS`` moments of the window, so that it costs the same whatever
the log holds; between two of them nothing is claimed. Idle is what was paid for the hours of the period less what the
decisions on the pool cost, as a report counts it, and never below zero. A pool whose price is not known is
named, and not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo

import orjson

from audit.query import Page
from audit.record import Kind
from policyd.core.budgets import ORGANISATION
from policyd.core.cost import paid_hour_nano
from policyd.core.fleet import Fleet
from policyd.core.quantities import NANO_PER_MICRO
from policyd.ledger.rules import GAUGES, Account, Limit
from policyd.ledger.windows import window_of
from policyd.services.admission import postings_of
from policyd.services.budgets import Found, budget_items
from policyd.services.clock import rfc3339

POINTS: Final = 32
HOUR_US: Final = 3_600_000_000
TOTAL_SHOWN_US: Final = 30 * 24 * HOUR_US
"""How much of a window without an end is shown."""
LOOKED_AT: Final = 5
"""Entries before a moment that are read for a balance; those of a deny have none."""
PAID_KINDS: Final = ("on_prem", "committed")
_KINDS: Final[tuple[Kind, ...]] = ("decision", "settlement")
_SCOPE: Final = ("tenant", "project", "environment")


class Reader(Protocol):
    """The reading side of log and ledger."""

    async def accounts(self, paths: Sequence[str], time_us: int) -> list[Account]: ...

    async def search(
        self, filters: Mapping[str, str], cursor: str | None = None, limit: int = 1, *, kinds: Sequence[Kind] = ...
    ) -> Page: ...


async def budget_report(
    reader: Reader | None,
    chart: Mapping[str, tuple[Limit, ...]],
    fleet: Fleet,
    found: Found,
    *,
    path: str | None,
    whole: bool,
    now_us: int,
) -> dict[str, Any]:
    """The report, of one account with its burn-down or of all. ``whole`` tells of the hardware of the organisation."""
    accounts = [] if reader is None else await reader.accounts(list(chart), now_us)
    limits = [limit for limit in chart.get(path or "", ()) if limit.unit not in GAUGES]
    burned = [] if reader is None else await _burn_down(reader, limits, accounts, now_us)
    return {
        "time": rfc3339(now_us),
        "path": path,
        "budgets": budget_items(chart, accounts, now_us, fleet, found),
        "burn_down": burned,
        "committed": list(_committed(fleet)) if whole else [],
    }


async def _burn_down(
    reader: Reader, limits: Sequence[Limit], accounts: Iterable[Account], now_us: int
) -> list[dict[str, Any]]:
    """For each limit the balances at the moments of its window, the present one last."""
    known = {account.key: account for account in accounts}
    told = []
    for limit in limits:
        span = window_of(limit.window, ZoneInfo(limit.zone), now_us)
        start_us = span.start_us if span.end_us is not None else max(0, now_us - TOTAL_SHOWN_US)
        points = [[rfc3339(start_us), 0]] if span.end_us is not None else []
        for nth in range(1, POINTS):
            at_us = start_us + (now_us - start_us) * nth // POINTS
            spent = await _spent_at(reader, limit, span.start_us, start_us, at_us)
            if spent is not None:
                points.append([rfc3339(at_us), spent])
        account = next((found for key, found in known.items() if _is(limit, key, span.start_us)), None)
        points.append([rfc3339(now_us), account.spent if account else 0])
        ends = None if span.end_us is None else rfc3339(span.end_us)
        place = {"unit": limit.unit, "window": limit.window, "limit": limit.amount}
        told.append({**place, "starts_at": rfc3339(start_us), "ends_at": ends, "points": points})
    return told


async def _spent_at(reader: Reader, limit: Limit, window_us: int, start_us: int, at_us: int) -> int | None:
    """What the last entry before a moment says was spent; None when none in the window says it."""
    scope = () if limit.path == ORGANISATION else limit.path.split("/")
    filters = {**dict(zip(_SCOPE, scope, strict=False)), "from": rfc3339(start_us), "to": rfc3339(at_us)}
    page = await reader.search(filters, None, LOOKED_AT, kinds=_KINDS)
    for record in page.items:
        for posting, _ in postings_of(orjson.loads(record.body)):
            if _is(limit, posting.key, window_us):
                return posting.spent
    return None


def _is(limit: Limit, key: Any, start_us: int) -> bool:
    return tuple(key) == (limit.path, limit.pools, limit.unit, limit.window, start_us)


def _committed(fleet: Fleet) -> Iterable[dict[str, Any]]:
    """The pools that are paid by the hour, used or not."""
    for pool in sorted(fleet.pools.values(), key=lambda pool: pool.id):
        if pool.kind in PAID_KINDS:
            nano = paid_hour_nano(pool, fleet)
            micro_usd = None if nano is None else nano // NANO_PER_MICRO
            yield {"pool": pool.id, "kind": pool.kind, "gpus": pool.gpu_count, "micro_usd_per_hour": micro_usd}


def with_idle(committed: Iterable[Mapping[str, Any]], used: Mapping[str, int], period_us: int) -> list[dict[str, Any]]:
    """The paid pools with what they cost in the period, what was decided on them, and what is left: idle."""
    told = []
    for pool in committed:
        hourly = pool["micro_usd_per_hour"]
        paid = None if hourly is None else hourly * period_us // HOUR_US
        worked = used.get(pool["pool"], 0)
        idle = None if paid is None else max(0, paid - worked)
        percent = None if not paid or idle is None else idle * 100 // paid
        amounts = {"paid_micro_usd": paid, "used_micro_usd": worked, "idle_micro_usd": idle, "idle_percent": percent}
        told.append({**pool, **amounts})
    return told
