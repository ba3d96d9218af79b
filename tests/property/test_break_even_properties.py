"""Crossings against a search of every single rate, and laws that every line keeps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from policyd.core.break_even import (
    Crossing,
    Curves,
    Line,
    carries,
    month_micro_usd,
    rate_max,
    traffic_of,
    utilisation_ppm,
)
from policyd.core.cost import Pricing, at_hourly_rate

TOP = 1_500
NAMES = {"basis": "b", "status": "list", "source": "s", "checked": "2026-07-01"}
TRAFFIC = traffic_of([10], 1_000, 100)


@st.composite
def straight_lines(draw: st.DrawFn, name: str) -> Line:
    """Token-priced lines, and provisioned ones of which a replica serves some 8 to 3,000 of these requests an hour."""
    if draw(st.booleans()):
        return Line(name, "api", Pricing("tokens", **NAMES, request_nano=draw(st.integers(1, 100_000_000))))
    pricing = Pricing(
        form="gpu",
        **NAMES,
        gpus=draw(st.integers(1, 4)),
        prefill_tokens_per_s=draw(st.integers(100, 1_000)),
        decode_tokens_per_s=draw(st.integers(1, 1_000)),
    )
    priced = at_hourly_rate(pricing, draw(st.integers(0, 20_000_000_000)))
    return Line(
        name,
        "on_demand",
        priced,
        gpus_max=draw(st.none() | st.integers(0, 200)),
        instance_gpus=draw(st.sampled_from([1, 2, 8])),
    )


serverless_lines = st.builds(
    lambda ms, concurrency, warm, cold: Line(
        "serverless",
        "serverless",
        Pricing(
            form="billed",
            **NAMES,
            gpus=1,
            prefill_tokens_per_s=1_000,
            decode_tokens_per_s=50,
            ms_nano_x1000=ms,
            concurrency=concurrency,
            keep_warm_ms=warm,
            idle_ms=warm,
            cold_start_ms=cold,
        ),
        gpus_max=500,
    ),
    st.integers(1, 10_000_000),
    st.integers(1, 32),
    st.integers(0, 600_000),
    st.integers(0, 60_000),
)
profiles = st.lists(st.integers(0, 400), min_size=168, max_size=168).filter(any)


def searched(one: Line, other: Line) -> Crossing | None:
    """The crossing as its definition reads, rate by rate."""
    ends = [end for end in (rate_max(one, TRAFFIC), rate_max(other, TRAFFIC)) if end is not None]
    rates = range(1, min([*ends, TOP]) + 1)
    costs = [(month_micro_usd(one, TRAFFIC, 168 * r), month_micro_usd(other, TRAFFIC, 168 * r)) for r in rates]
    first = next((pair for pair in costs if pair[0] != pair[1]), None)
    if first is None:
        return None
    under, over = (one, other) if first[0] < first[1] else (other, one)
    leads = [(a > b) if over is other else (b > a) for a, b in costs]
    if not any(leads):
        return None
    start = leads.index(True) + 1
    ended = not leads[-1]
    last_change = len(leads) - leads[::-1].index(ended)
    utilised = next((line for line in (over, under) if line.pricing.form == "gpu"), None)
    return Crossing(
        cheaper=over,
        dearer=under,
        from_rate=start,
        for_good_rate=None if ended else (last_change + 1 if False in leads else 1),
        until_rate=last_change if ended else None,
        utilised=utilised,
        utilisation_ppm=utilisation_ppm(utilised, TRAFFIC, 168 * start) if utilised else None,
    )


@given(straight_lines("one"), straight_lines("other"))
def test_a_crossing_is_what_a_search_of_every_rate_finds(one: Line, other: Line) -> None:
    assert Curves(TRAFFIC, TOP).crossing(one, other) == searched(one, other)


@given(serverless_lines, straight_lines("other"))
def test_a_serverless_crossing_is_a_true_change_of_the_lead(line: Line, other: Line) -> None:
    curves = Curves(TRAFFIC, TOP)
    found = curves.crossing(line, other)
    if found is None:
        return
    assert curves.cheaper(found.cheaper, found.dearer, found.from_rate)
    assert not curves.cheaper(found.cheaper, found.dearer, found.from_rate - 1)
    if found.for_good_rate is not None:
        assert not curves.cheaper(found.cheaper, found.dearer, found.for_good_rate - 1)
        assert curves.cheaper(found.cheaper, found.dearer, found.for_good_rate)
    if found.until_rate is not None:
        assert curves.cheaper(found.cheaper, found.dearer, found.until_rate)
        assert not curves.cheaper(found.cheaper, found.dearer, found.until_rate + 1)


@given(st.lists(straight_lines("x") | serverless_lines, min_size=1, max_size=4))
def test_ranges_cover_every_rate_once_and_name_what_is_cheapest_there(lines: list[Line]) -> None:
    named = [replace(line, pool=f"p{i}") for i, line in enumerate(lines)]
    curves = Curves(TRAFFIC, TOP)
    ranges = curves.ranges(named)
    assert ranges[0].from_rate == 1
    assert ranges[-1].to_rate == TOP
    for before, after in pairwise(ranges):
        assert after.from_rate == before.to_rate + 1
        assert after.line != before.line
    winners = {found.line.name: found.line for found in ranges if found.line}
    for found in ranges:
        for rate in (found.from_rate, found.to_rate):
            costs = [cost for line in winners.values() if (cost := curves.cost(line, rate)) is not None]
            assert (curves.cost(found.line, rate) if found.line else None) == min(costs, default=None)


@given(straight_lines("x") | serverless_lines, profiles, st.integers(1, 100_000), st.integers(1, 100_000))
def test_a_month_with_more_requests_is_never_cheaper(line: Line, hourly: list[int], week: int, more: int) -> None:
    # A cold start less may save more than a request costs, so the law is that of warm replicas.
    warm = replace(line, pricing=replace(line.pricing, cold_start_ms=0))
    traffic = traffic_of(hourly, 1_000, 100)
    assert month_micro_usd(warm, traffic, week) <= month_micro_usd(warm, traffic, week + more)


@given(straight_lines("x"), profiles)
def test_elastic_capacity_is_never_dearer_and_never_more_than_fully_used(line: Line, hourly: list[int]) -> None:
    traffic = traffic_of(hourly, 1_000, 100)
    week = traffic.week_requests
    elastic = replace(line, elastic=True)
    assert month_micro_usd(elastic, traffic, week) <= month_micro_usd(line, traffic, week)
    for either in (line, elastic):
        used = utilisation_ppm(either, traffic, week)
        assert used is None or 0 <= used <= 1_000_000


@given(straight_lines("x") | serverless_lines, profiles)
def test_the_highest_rate_is_the_last_that_is_carried(line: Line, hourly: list[int]) -> None:
    traffic = traffic_of(hourly, 1_000, 100)
    top = rate_max(line, traffic)
    if top is None:
        assert line.gpus_max is None
        return
    assert top == 0 or carries(line, traffic, 168 * top)
    assert not carries(line, traffic, 168 * (top + 1))


@given(st.integers(1, 10_000), straight_lines("x") | serverless_lines)
def test_a_flat_week_is_the_same_as_168_equal_hours(rate: int, line: Line) -> None:
    flat, week = traffic_of([rate], 1_000, 100), traffic_of([rate] * 168, 1_000, 100)
    assert flat == week
    assert month_micro_usd(line, flat, flat.week_requests) == month_micro_usd(line, week, week.week_requests)
