"""Break-even against figures worked out by hand, and what the command refuses and draws."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from policyd.cli import break_even as command
from policyd.core.break_even import (
    Curves,
    Line,
    break_even,
    carries,
    gpus,
    lines_of,
    month_micro_usd,
    rate_max,
    replicas,
    significant_rates,
    standing,
    traffic_of,
    utilisation_ppm,
)
from policyd.core.cost import Pricing, at_hourly_rate
from policyd.core.fleet import Fleet, FleetDocument
from policyd.errors import RequestError
from policyd.services.chart import percent, picture, told

WEEK = 168


def provisioned(usd_hour: int, *, gpus: int = 1, kind: str = "on_demand", name: str = "", **line: Any) -> Line:
    """A replica that prefills 10,000 and decodes 2,000 tokens a second, at whole dollars a GPU-hour."""
    pricing = Pricing(
        form="gpu",
        basis="GPU-hours",
        status="list",
        source="made for this test",
        checked="2026-07-01",
        gpus=gpus,
        prefill_tokens_per_s=10_000,
        decode_tokens_per_s=2_000,
    )
    return Line(name or kind, kind, at_hourly_rate(pricing, usd_hour * 1_000_000_000), **line)


def token_priced(nano_per_request: int, name: str = "api") -> Line:
    pricing = Pricing(
        "tokens", "token price", "list", "made for this test", "2026-07-01", request_nano=nano_per_request
    )
    return Line(name, "api", pricing)


def serverless(**changes: Any) -> Line:
    """One GPU at a micro-USD a millisecond (3.60 USD an hour); a request takes 100 ms + 6,000 ms."""
    pricing = Pricing(
        form="billed",
        basis="serverless",
        status="assumed",
        source="made for this test",
        checked="2026-05-07",
        gpus=1,
        prefill_tokens_per_s=10_000,
        decode_tokens_per_s=50,
        ms_nano_x1000=1_000_000,
        min_billed_ms=1,
        rounding_ms=1,
    )
    return Line("serverless", "serverless", replace(pricing, **changes), gpus_max=8)


FLAT = traffic_of([14_400], 1_000, 300)
"""A request takes 0.25 s of a provisioned replica: 14,400 an hour fill exactly one."""


def test_a_provisioned_replica_costs_its_hours_whether_used_or_not() -> None:
    line = provisioned(2)
    # 730 hours at 2 USD.
    assert month_micro_usd(line, FLAT, WEEK * 1) == 1_460_000_000
    assert month_micro_usd(line, FLAT, WEEK * 14_400) == 1_460_000_000
    assert month_micro_usd(line, FLAT, WEEK * 14_401) == 2_920_000_000
    assert utilisation_ppm(line, FLAT, WEEK * 7_200) == 500_000
    assert utilisation_ppm(line, FLAT, WEEK * 14_400) == 1_000_000


def test_instances_are_bought_whole() -> None:
    line = provisioned(1, gpus=4, instance_gpus=8)
    assert gpus(line, FLAT, WEEK) == 8
    assert gpus(line, FLAT, WEEK * 28_800) == 8
    assert gpus(line, FLAT, WEEK * 28_801) == 16
    assert utilisation_ppm(line, FLAT, WEEK * 14_400) == 500_000


def test_capacity_is_sized_for_the_peak_hour_unless_it_is_elastic() -> None:
    # Eight hours of the week with 28,800 requests, the others with none: two replicas for the peak.
    traffic = traffic_of([28_800] * 8 + [0] * 160, 1_000, 300)
    fixed, elastic = provisioned(2), provisioned(2, elastic=True)
    assert replicas(fixed, traffic, traffic.week_requests) == 2
    assert month_micro_usd(fixed, traffic, traffic.week_requests) == 2 * 1_460_000_000
    # 16 replica-hours a week at 2 USD, times 730 / 168, up.
    assert month_micro_usd(elastic, traffic, traffic.week_requests) == 139_047_620
    assert utilisation_ppm(elastic, traffic, traffic.week_requests) == 1_000_000
    assert utilisation_ppm(fixed, traffic, traffic.week_requests) == 1_000_000 * 8 // WEEK


def test_token_priced_lines_pay_requests_only() -> None:
    # 330 micro-USD x 14,400 x 730.
    assert month_micro_usd(token_priced(330_000), FLAT, FLAT.week_requests) == 330 * 14_400 * 730
    assert utilisation_ppm(token_priced(330_000), FLAT, FLAT.week_requests) is None


def test_serverless_pays_hour_by_hour_as_billed() -> None:
    # 600 requests in one hour of the week: 6.1 s each, one replica carries eight at once, so it is paid that hour.
    traffic = traffic_of([600] + [0] * 167, 1_000, 300)
    line = serverless(concurrency=8)
    assert month_micro_usd(line, traffic, 600) == 15_642_858  # 3.60 USD x 730 / 168 = 15,642,857.14, up
    # Alone they pay their own time: 60 x 6,100 micro-USD.
    alone = traffic_of([60] + [0] * 167, 1_000, 300)
    assert month_micro_usd(line, alone, 60) == 1_590_358  # 366,000 x 730 / 168 = 1,590,357.14, up
    assert replicas(line, traffic_of([60_000], 1_000, 300), 60_000 * WEEK) == 13  # 366,000 s / (3,600 s x 8)


def test_serverless_pays_cold_starts_and_warm_time() -> None:
    # One request an hour: 6.1 s, 60 s warm, and 20 s to start for exp(-1/60) = 98.3471 % of them, in whole ppm
    # 10^12 / (10^6 + 16,666 + 138) = 983,474: 6,100 + 60,000 + 19,669.48 = 85,769.48 micro-USD, x 730 = 62,611,720.4.
    line = serverless(keep_warm_ms=60_000, idle_ms=60_000, cold_start_ms=20_000)
    assert month_micro_usd(line, traffic_of([1], 1_000, 300), WEEK) == 62_611_721


def test_the_crossing_of_a_replica_and_a_token_price() -> None:
    # 2 USD an hour against 400 micro-USD a request: as dear at 5,000, cheaper from 5,001 on; at 14,401 a second
    # replica costs 4 USD, and 4 / 0.0004 = 10,000 requests are past already.
    report = break_even("m", [provisioned(2), token_priced(400_000)], [], FLAT, top_rate=100_000)
    (crossing,) = report.crossings
    assert (crossing.cheaper.pool, crossing.dearer.pool) == ("on_demand", "api")
    assert (crossing.from_rate, crossing.for_good_rate, crossing.until_rate) == (5_001, 5_001, None)
    assert crossing.utilisation_ppm == 347_291  # 5,001 / 14,400
    assert told(crossing) == "on_demand beats api from 5,001 requests/hour (utilisation 34.7 %)"
    assert [(r.from_rate, r.to_rate, r.line and r.line.pool) for r in report.ranges] == [
        (1, 5_000, "api"),
        (5_001, 100_000, "on_demand"),
    ]


def test_a_second_replica_may_give_the_lead_back() -> None:
    # 200 micro-USD a request: one replica wins from 10,001 on, two from 20,001 (28,800 fit), three from 30,001,
    # after losing 14,401..20,000 and 28,801..30,000; the fourth wins at once (40,001 < 43,201).
    report = break_even("m", [provisioned(2), token_priced(200_000)], [], FLAT, top_rate=200_000)
    (crossing,) = report.crossings
    assert (crossing.from_rate, crossing.for_good_rate) == (10_001, 30_001)
    assert told(crossing).endswith("(utilisation 69.4 %), for good from 30,001")
    assert [(r.from_rate, r.to_rate) for r in report.ranges] == [
        (1, 10_000),
        (10_001, 14_400),
        (14_401, 20_000),
        (20_001, 28_800),
        (28_801, 30_000),
        (30_001, 200_000),
    ]


def test_a_replica_that_is_dearer_even_when_full_never_leads() -> None:
    # 135 micro-USD x 14,400 = 1.944 USD, less than the 2 that a full replica costs.
    report = break_even("m", [provisioned(2), token_priced(135_000)], [], FLAT, top_rate=100_000)
    assert report.crossings == ()


def test_nothing_is_compared_beyond_the_end_of_a_pool() -> None:
    report = break_even("m", [provisioned(2, gpus_max=2), token_priced(200_000)], [], FLAT, top_rate=100_000)
    assert report.crossings[0].for_good_rate == 20_001
    assert [(r.from_rate, r.line and r.line.pool) for r in report.ranges][-2:] == [
        (20_001, "on_demand"),
        (28_801, "api"),
    ]
    alone = break_even("m", [provisioned(2, gpus_max=2)], [], FLAT, top_rate=100_000)
    assert [(r.from_rate, r.line and r.line.pool) for r in alone.ranges] == [(1, "on_demand"), (28_801, None)]


def test_a_lead_of_three_requests_an_hour_is_found() -> None:
    # 0.255 s a request: 14,117 fill a replica. 2 / 0.000141698 = 14,114.5, so it leads from 14,115 to 14,117 only,
    # between the rates of three significant digits that are looked at anyway.
    traffic = traffic_of([1], 1_000, 310)
    crossing = Curves(traffic, 14_200).crossing(provisioned(2), token_priced(141_698))
    assert crossing is not None
    assert (crossing.from_rate, crossing.for_good_rate, crossing.until_rate) == (14_115, None, 14_117)


def test_a_larger_replica_leads_when_the_small_one_needs_a_second() -> None:
    # 4 USD for 57,600 an hour against 3 USD for 14,400: cheaper from 14,401 on, where two small ones cost 6.
    big = provisioned(4, name="big")
    big = replace(big, pricing=replace(big.pricing, prefill_tokens_per_s=40_000, decode_tokens_per_s=8_000))
    small = provisioned(3, name="small", kind="spot")
    crossing = Curves(FLAT, 1_000_000).crossing(small, big)
    assert crossing is not None
    assert (crossing.cheaper.pool, crossing.from_rate, crossing.for_good_rate) == ("big", 14_401, 14_401)
    assert crossing.utilisation_ppm == 250_017  # 14,401 / 57,600


def test_a_lead_that_does_not_last_says_until_when() -> None:
    # 150 micro-USD a request: 2 / 0.00015 = 13,333.3, so one replica leads from 13,334 to the 14,400 that fill it, and
    # four from 53,334 to 57,600; the fifth, at 10 USD, would lead from 66,667 on.
    crossing = Curves(FLAT, 60_000).crossing(provisioned(2), token_priced(150_000))
    assert crossing is not None
    assert (crossing.from_rate, crossing.for_good_rate, crossing.until_rate) == (13_334, None, 57_600)
    assert told(crossing).endswith(", no longer after 57,600")


def test_serverless_beats_a_token_price_once_its_replica_is_shared() -> None:
    # One replica that never rests costs 3.60 USD an hour: less than 1,200 micro-USD a request from 3,001 requests on.
    crossing = Curves(FLAT, 10_000).crossing(serverless(concurrency=8), token_priced(1_200_000))
    assert crossing is not None
    assert (crossing.cheaper.pool, crossing.from_rate, crossing.for_good_rate) == ("serverless", 3_001, 3_001)
    assert crossing.utilisation_ppm is None


def test_equal_lines_never_cross() -> None:
    assert Curves(FLAT, 10_000).crossing(token_priced(5, "one"), token_priced(5, "other")) is None


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("top", [1, 9, 10, 99, 100, 101, 999, 1_000, 1_005, 12_345, 1_000_000])
def test_significant_rates(top: int, digits: int) -> None:
    expected = [n for n in range(1, min(top, 20_000) + 1) if not str(n)[digits:].strip("0")]
    found = significant_rates(top, digits)
    assert [n for n in found if n <= 20_000 and n != top] == [n for n in expected if n != top]
    assert found[-1] == top
    assert all(low < high for low, high in itertools.pairwise(found))


def test_the_capacity_of_a_pool_ends_its_line() -> None:
    line = provisioned(2, gpus=4, gpus_max=11)  # two replicas of four
    assert rate_max(line, FLAT) == 28_800
    assert carries(line, FLAT, WEEK * 28_800)
    assert not carries(line, FLAT, WEEK * 28_801)
    assert rate_max(provisioned(2, gpus=4, gpus_max=3), FLAT) == 0
    assert rate_max(token_priced(1), FLAT) is None
    short = standing(provisioned(2, gpus_max=0), FLAT)
    assert (short.month_micro_usd, short.request_micro_usd, short.utilisation_ppm) == (None, None, None)


def test_standing_divides_the_month_by_what_it_served() -> None:
    entry = standing(provisioned(2), traffic_of([7_200], 1_000, 300))
    assert entry.request_micro_usd == 278  # 2 USD / 7,200 = 277.8
    assert entry.micro_usd_per_million_tokens == 213_676  # 277.8 / 1,300 x 10^6


@pytest.mark.parametrize(
    ("hourly", "sizes"),
    [
        ([], (1, 1)),
        ([1] * 167, (1, 1)),
        ([0], (1, 1)),
        ([-1], (1, 1)),
        ([10**9 + 1], (1, 1)),
        ([1], (0, 0)),
        ([1], (-1, 2)),
    ],
)
def test_unusable_traffic_is_refused(hourly: list[int], sizes: tuple[int, int]) -> None:
    with pytest.raises(RequestError):
        traffic_of(hourly, *sizes)


def test_a_month_beyond_what_json_carries_is_refused() -> None:
    with pytest.raises(RequestError, match="9007199254740991"):
        month_micro_usd(token_priced(10**9), traffic_of([10**9], 1, 0), WEEK * 10**10)


def fleet_of(**pool: Any) -> Fleet:
    price = {
        "unit": "gpu_hour",
        "amount": "2",
        "marginal": "0.5",
        "status": "list",
        "source": "s",
        "checked": "2026-07-01",
    }
    speed = {"prefill_tokens_per_s": 10, "decode_tokens_per_s": 10, "source": "s", "status": "assumed"}
    offering = {"model": "m", "gpus": 2, "performance": speed}
    described = {"id": "p", "kind": "committed", "group": "g", "provider": "x", "region": "r", "price": price}
    document = {"pools": [{**described, "offerings": [offering], **pool}]}
    return Fleet(FleetDocument.model_validate(document, strict=False), "sha256:test")


def test_paid_hardware_has_a_line_as_far_as_it_lies_unused() -> None:
    commitment = {
        "kind": "contract",
        "start": "2026-01-01",
        "end": "2027-01-01",
        "committed_gpus": 8,
        "unused_gpus": 3,
        "follows": "list price",
    }
    fleet = fleet_of(capacity={"kind": "fixed", "gpus": 8}, commitment=commitment)
    lines, unpriced = lines_of(fleet, "m", lambda pool: True, elastic=False)
    assert unpriced == []
    assert [(line.basis, line.gpus_max, line.pricing.hour_nano) for line in lines] == [
        ("fully_loaded", 8, 2_000_000_000),
        ("marginal", 3, 500_000_000),
    ]


@pytest.mark.parametrize(
    ("kind", "elastic"), [("on_prem", False), ("committed", False), ("on_demand", True), ("spot", False)]
)
def test_only_on_demand_capacity_follows_the_hours(kind: str, elastic: bool) -> None:
    fleet = fleet_of(kind=kind, capacity={"kind": "fixed", "gpus": 8}, interruption_overhead_ppm=0)
    for asked in (False, True):
        lines, _ = lines_of(fleet, "m", lambda pool: True, elastic=asked)
        assert [line.elastic for line in lines] == [asked and elastic] * len(lines)


def test_an_instance_is_as_large_as_its_price_says() -> None:
    price = {"unit": "instance_hour", "amount": "16", "gpus_per_instance": 8, "status": "list", "source": "s"}
    fleet = fleet_of(
        kind="on_demand", capacity={"kind": "elastic", "gpus": 64}, price={**price, "checked": "2026-07-01"}
    )
    lines, _ = lines_of(fleet, "m", lambda pool: True, elastic=False)
    assert [(line.instance_gpus, line.pricing.hour_nano) for line in lines] == [(8, 2_000_000_000)]
    # A replica of two GPUs costs the eight of its instance: 16 USD an hour.
    assert month_micro_usd(lines[0], traffic_of([1], 1, 1), WEEK) == 730 * 16_000_000


def test_paid_hardware_competes_beside_the_fully_loaded() -> None:
    lines = [provisioned(2), provisioned(3, name="dearer"), replace(provisioned(1), basis="marginal")]
    report = break_even("m", lines, [], FLAT, top_rate=100)
    assert [line.name for line in report.contenders] == ["on_demand (marginal)", "on_demand"]
    assert [found.line and found.line.name for found in report.ranges] == ["on_demand"]
    assert [found.line and found.line.name for found in report.ranges_paid] == ["on_demand (marginal)"]


def test_a_pool_without_price_or_capacity_is_named() -> None:
    for pool, missing in (({"price": None}, "price"), ({}, "capacity")):
        lines, unpriced = lines_of(fleet_of(**pool), "m", lambda pool: True, elastic=False)
        assert lines == []
        assert [(entry.pool, entry.missing) for entry in unpriced] == [("p", missing)]
        with pytest.raises(RequestError, match=f"p lacks {missing}"):
            break_even("m", lines, unpriced, FLAT, top_rate=10)


def hostile() -> Line:
    return provisioned(2, name='a<b>&"c"')


def test_the_picture_is_sound_xml_and_always_the_same() -> None:
    lines = [
        hostile(),
        token_priced(400_000),
        serverless(),
        provisioned(0, name="paid", kind="committed", basis="marginal"),
    ]
    report = break_even('m"<&', lines, [], FLAT, top_rate=100_000)
    drawn = picture(report, "abc123")
    assert drawn == picture(report, "abc123")
    root = ElementTree.fromstring(drawn)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert 'a<b>&"c"' in texts
    assert "costs nothing more: not on this scale" in texts
    assert any(text and text.startswith('a<b>&"c" beats api from 5,001') for text in texts)
    assert any(
        text and "Prices: 3 list, 1 assumed; checked 2026-05-07 to 2026-07-01. Fleet abc123" in text for text in texts
    )
    # One curve for each line but the free one, and each within the plot or cut by it.
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 3


def test_a_picture_of_one_line_alone() -> None:
    report = break_even("m", [token_priced(1)], [], traffic_of([1], 1, 0), top_rate=1_000)
    assert "No two of these cross" in picture(report, "abc123")


def test_the_picture_of_an_uneven_week_says_how_uneven() -> None:
    traffic = traffic_of([100] * 24 + [0] * 144, 1_000, 300)
    drawn = picture(break_even("m", [provisioned(2, elastic=True), token_priced(9)], [], traffic, top_rate=999), "abc")
    assert "1,000 tokens in and 300 out per request, the busiest hour 7.0 times the mean" in drawn


def test_percentages_round_down_and_name_the_small() -> None:
    assert [percent(ppm) for ppm in (0, 999, 1_000, 347_291, 1_000_000)] == [
        "0.0 %",
        "below 0.1 %",
        "0.1 %",
        "34.7 %",
        "100.0 %",
    ]


@pytest.fixture
def run(repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The command on the example fleet; its standard output."""
    monkeypatch.chdir(repository)
    app = typer.Typer()
    app.command()(command.break_even)

    def invoke(*arguments: str) -> str:
        app([*arguments], standalone_mode=False)
        return capsys.readouterr().out

    return invoke


def test_the_command_prints_every_pool_and_crossing(run: Callable[..., str], tmp_path: Path) -> None:
    flags = (
        "llama-3.1-8b-instruct",
        "--input-tokens",
        "1000",
        "--output-tokens",
        "300",
        "--pool",
        "onprem-*",
        "--pool",
        "*-api-*",
    )
    drawn = tmp_path / "x.svg"
    document = json.loads(run(*flags, "--requests-per-hour", "500", "-o", "json", "--picture", str(drawn)))
    kinds = {(pool["kind"], pool["basis"]) for pool in document["pools"]}
    assert kinds == {("on_prem", "fully_loaded"), ("on_prem", "marginal"), ("api", "fully_loaded")}
    assert document["unpriced"] == []
    assert document["crossings"]
    assert document["cheapest"][0]["kind"] == "api"
    assert document["cheapest"][0]["from_requests_per_hour"] == 1
    ElementTree.parse(drawn)
    table = run(*flags, "--requests-per-hour", "500")
    assert "onprem-fra-h100" in table
    assert "Cheapest, when the hardware is already paid" in table


def test_an_hourly_file_is_the_same_as_a_flat_rate_of_its_figures(run: Callable[..., str], tmp_path: Path) -> None:
    week = tmp_path / "week.txt"
    week.write_text("\n".join(", ".join(["500"] * 24) for _ in range(7)))
    flags = ("llama-3.1-8b-instruct", "--pool", "*-api-*", "-o", "json")
    assert json.loads(run(*flags, "--hourly", str(week))) == json.loads(run(*flags, "--requests-per-hour", "500"))


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        ("1 2 x", ":1: 'x' is no whole"),
        ("1\n-2", ":2: '-2' is no whole"),
        ("1 2 3", "3 figures"),
        ("", "0 figures"),
        ("é", ""),
    ],
)
def test_an_unusable_hourly_file_is_refused(
    run: Callable[..., str], tmp_path: Path, content: str, finding: str
) -> None:
    week = tmp_path / "week.txt"
    week.write_text(content)
    with pytest.raises(RequestError) as caught:
        run("llama-3.1-8b-instruct", "--hourly", str(week))
    assert finding in " ".join(str(found) for found in caught.value.findings)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("llama-3.1-8b-instruct",),
        ("llama-3.1-8b-instruct", "--requests-per-hour", "1", "--hourly", "x"),
        ("llama-3.1-8b-instruct", "--requests-per-hour", "1", "--picture", "x.png"),
        ("llama-3.1-8b-instruct", "--requests-per-hour", "-1"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(run: Callable[..., str], arguments: tuple[str, ...]) -> None:
    with pytest.raises(typer.TyperException):
        run(*arguments)


@pytest.mark.parametrize(
    "arguments", [("llama-3.1-8b-instruc",), ("llama-3.1-8b-instruct", "--pool", "onprem-fra-h10")]
)
def test_an_unknown_name_comes_with_the_nearest(run: Callable[..., str], arguments: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match="did you mean"):
        run(*arguments, "--requests-per-hour", "1")
