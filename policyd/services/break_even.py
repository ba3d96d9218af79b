"""Break-even for a person or a program: which pools are compared, with which traffic, and the report as JSON.

Rules: nothing is decided and nothing is recorded; with a workload only the pools that the policies permit to it count,
and what is not asked for comes from it; a pattern that is like no pool is a mistake, not an empty answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from policyd.core.break_even import Crossing, Range, Report, Standing, break_even, lines_of, traffic_of
from policyd.core.fleet import Fleet
from policyd.core.normalise import FALLBACK, known, nearest
from policyd.core.pool import Pool
from policyd.core.sheet import Sheet
from policyd.core.workload import Workload
from policyd.errors import Finding, RequestError, UnknownName

TOP_RATE: Final = 1_000_000
"""Requests per hour up to which lines are compared, and further when the profile needs it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is compared. ``hourly`` has one rate or 168; None stands for what the workload says."""

    model: str | None
    hourly: Sequence[int] | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    patterns: tuple[str, ...] = ()
    elastic: bool = False


@dataclass(frozen=True, slots=True)
class Permitted:
    """A workload, and the pools that policies and entitlements permit to it."""

    workload: Workload
    pools: frozenset[str]

    @classmethod
    def by(cls, workload: Workload, sheet: Sheet) -> Permitted:
        """What a sheet permits. Raises ``RequestError`` when that is nothing."""
        if not sheet.rows:
            raise RequestError("the policies permit no pool to this workload", remedy="`policyd decide` says why")
        return cls(workload, frozenset(row.pool for row in sheet.rows))


def compare(
    fleet: Fleet, asked: Asked, permitted: Permitted | None, visible: Callable[[Pool], bool] = lambda _: True
) -> Report:
    """The comparison. ``visible`` pools are all that exist for whoever asks.

    Raises ``UnknownName`` and ``RequestError``.
    """
    model, hourly = asked.model, asked.hourly
    input_tokens, output_tokens = FALLBACK["input_tokens"], FALLBACK["max_output_tokens"]
    if permitted is not None:
        workload = permitted.workload
        if model not in (None, workload.model):
            raise RequestError(f"the workload asks for {workload.model}, not {model}")
        model = workload.model
        hourly = [workload.requests_per_hour] if hourly is None else hourly
        input_tokens, output_tokens = workload.input_tokens, workload.max_output_tokens
    if hourly is None:
        raise RequestError(
            "how much is asked for? name the requests per hour", findings=[Finding("requests_per_hour", "is required")]
        )
    name = known(fleet.models, model or "", "model", "model").name
    traffic = traffic_of(
        hourly,
        input_tokens if asked.input_tokens is None else asked.input_tokens,
        output_tokens if asked.output_tokens is None else asked.output_tokens,
    )
    like = _like([pool.id for pool in fleet.pools.values() if visible(pool)], asked.patterns)
    lines, unpriced = lines_of(
        fleet,
        name,
        lambda pool: visible(pool) and like(pool.id) and (permitted is None or pool.id in permitted.pools),
        elastic=asked.elastic,
    )
    return break_even(name, lines, unpriced, traffic, top_rate=max(TOP_RATE, 10 * traffic.week_requests // 168))


def _like(pools: Sequence[str], patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a pool is like one of the patterns; a pattern that is like no pool is a mistake."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in pools):
            raise UnknownName(f"no pool is like {pattern!r}{nearest(pattern, pools)}")
    return lambda name: not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def document(report: Report, fleet: Fleet) -> dict[str, Any]:
    """The report as JSON values. Rates are mean requests per hour; None of a cost: too few GPUs."""
    traffic = report.traffic
    return {
        "model": report.model,
        "traffic": {
            "requests_per_week": traffic.week_requests,
            "peak_requests_per_hour": traffic.peak,
            "input_tokens": traffic.input_tokens,
            "output_tokens": traffic.output_tokens,
        },
        "hours_per_month": 730,
        "compared_up_to_requests_per_hour": report.top_rate,
        "pools": [_standing_json(entry) for entry in report.standings],
        "crossings": [_crossing_json(crossing) for crossing in report.crossings],
        "cheapest": [_range_json(found) for found in report.ranges],
        "cheapest_with_paid_hardware": [_range_json(found) for found in report.ranges_paid],
        "unpriced": [{"pool": pool.pool, "kind": pool.kind, "missing": pool.missing} for pool in report.unpriced],
        "fleet": {"commit": fleet.commit, "digest": fleet.digest},
    }


def _standing_json(entry: Standing) -> dict[str, Any]:
    line = entry.line
    return {
        "pool": line.pool,
        "kind": line.kind,
        "basis": line.basis,
        "elastic": line.elastic,
        "micro_usd_per_month": entry.month_micro_usd,
        "micro_usd_per_request": entry.request_micro_usd,
        "micro_usd_per_million_tokens": entry.micro_usd_per_million_tokens,
        "utilisation_ppm": entry.utilisation_ppm,
        "replicas": entry.replicas,
        "gpus": entry.gpus,
        "requests_per_hour_max": entry.rate_max,
        "price_status": line.pricing.status,
        "price_source": line.pricing.source,
        "price_checked": line.pricing.checked,
    }


def _crossing_json(crossing: Crossing) -> dict[str, Any]:
    return {
        "cheaper": {"pool": crossing.cheaper.pool, "basis": crossing.cheaper.basis},
        "dearer": {"pool": crossing.dearer.pool, "basis": crossing.dearer.basis},
        "from_requests_per_hour": crossing.from_rate,
        "for_good_from_requests_per_hour": crossing.for_good_rate,
        "until_requests_per_hour": crossing.until_rate,
        "utilisation_of": crossing.utilised.pool if crossing.utilised else None,
        "utilisation_ppm": crossing.utilisation_ppm,
    }


def _range_json(found: Range) -> dict[str, Any]:
    return {
        "from_requests_per_hour": found.from_rate,
        "to_requests_per_hour": found.to_rate,
        "pool": found.line.pool if found.line else None,
        "kind": found.line.kind if found.line else None,
        "basis": found.line.basis if found.line else None,
    }
