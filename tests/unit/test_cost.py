"""Costs against figures worked out by hand from published prices; each test shows its sum."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from policyd.core.cost import (
    Pricing,
    billed_ms,
    cold_ppm,
    cost_further,
    cost_micro_usd,
    gpus_for,
    pricing_of,
    replicas_for,
    request_cost_micro_usd,
    tokens_of,
)
from policyd.core.fleet import Fleet, FleetDocument
from policyd.core.pool import Offering, Performance, Pool, Price
from policyd.core.quantities import MAX_SAFE, PPM
from policyd.core.workload import Workload
from policyd.errors import RequestError
from tests.plain_workload import PLAIN

SPEED = {
    "prefill_tokens_per_s": 10_000,
    "decode_tokens_per_s": 2_000,
    "stream_tokens_per_s": 50,
    "source": "made for this test",
    "status": "assumed",
}
H100 = {"unit": "instance_hour", "amount": "88.49", "gpus_per_instance": 8}
"""Eight H100 of Google Cloud, a3-highgpu-8g on demand in us-central1: list price of mid-2026."""
SERVERLESS = {
    "unit": "gpu_second",
    "amount": "0.001097",
    "min_billed_ms": 1,
    "rounding_ms": 1,
    "request_fee": "0",
    "keep_warm_ms": 60_000,
}
"""Modal, H100: 0.001097 USD a GPU-second, listed in May 2026."""


def fleet(**currencies: str) -> Fleet:
    declared = {
        name: {"usd": Decimal(usd), "source": "made for this test", "checked": "2026-07-01"}
        for name, usd in currencies.items()
    }
    return Fleet(FleetDocument.model_validate({"currencies": declared}, strict=False), "sha256:test")


def priced(
    kind: str,
    price: dict[str, Any],
    *,
    gpus: int = 4,
    speed: dict[str, Any] | None = None,
    on: Fleet | None = None,
    **pool: Any,
) -> Pricing | str:
    provenance = {"status": "list", "source": "made for this test", "checked": "2026-07-01"}
    offering = Offering(model="m", gpus=gpus)
    described = {"id": "p", "kind": kind, "group": "g", "provider": "x", "region": "r", **pool}
    made = Pool.model_validate({**described, "price": {**price, **provenance}}, strict=False)
    performance = Performance.model_validate({**SPEED, **(speed or {})}, strict=False)
    return pricing_of(made, offering, performance, on or fleet())


def sound(pricing: Pricing | str) -> Pricing:
    assert isinstance(pricing, Pricing), pricing
    return pricing


def workload(**changes: Any) -> Workload:
    return PLAIN._replace(**{"classification": "public", "max_output_tokens": 300, **changes})


def deployment(**changes: Any) -> Workload:
    return workload(scope="deployment", **changes)


def test_a_token_price() -> None:
    # GPT-4o mini, list: 0.15 in, 0.60 out. 1,000 x 0.15 + 300 x 0.60 = 330 micro-USD.
    pricing = sound(priced("api", {"unit": "million_tokens", "input": "0.15", "output": "0.60"}))
    assert cost_micro_usd(pricing, workload()) == 330
    assert tokens_of(workload()) == 1_300
    assert tokens_of(deployment(requests_per_hour=60, duration_hours=2)) == 156_000
    assert gpus_for(pricing, workload(gpu_count=2)) == 0


def test_a_fraction_of_a_micro_dollar_rounds_up_once() -> None:
    # 10 tokens at 0.01 USD per million are 0.1 micro-USD: one for a request, and 100 for a thousand, not 1,000.
    pricing = sound(priced("api", {"unit": "million_tokens", "input": "0.01", "output": "0"}))
    assert cost_micro_usd(pricing, workload(input_tokens=10, max_output_tokens=0)) == 1
    many = deployment(input_tokens=10, max_output_tokens=0, requests_per_hour=1_000)
    assert cost_micro_usd(pricing, many) == 100


def test_gpu_hours_at_the_measured_throughput() -> None:
    # 88.49 / 8 = 11.06125 USD a GPU-hour, four of them 44.245. A request takes 1,000/10,000 + 300/2,000 = 0.25 s:
    # 44.245 / 3,600 x 0.25 = 3,072.57 micro-USD.
    pricing = sound(priced("on_demand", H100))
    assert pricing.hour_nano == 11_061_250_000
    assert cost_micro_usd(pricing, workload()) == 3_073


def test_a_deployment_pays_whole_replicas() -> None:
    # 14,400 requests of 0.25 s fill exactly one replica; one more needs a second. 44.245 USD an hour each.
    pricing = sound(priced("on_demand", H100))
    assert replicas_for(pricing, deployment(requests_per_hour=0)) == 1
    assert replicas_for(pricing, deployment(requests_per_hour=14_400)) == 1
    assert replicas_for(pricing, deployment(requests_per_hour=14_401)) == 2
    assert cost_micro_usd(pricing, deployment(requests_per_hour=14_401, duration_hours=24)) == 2 * 24 * 44_245_000
    assert cost_micro_usd(pricing, deployment(requests_per_hour=1, gpu_count=16)) == 16 * 11_061_250


def test_short_requests_are_not_a_millisecond_each() -> None:
    # An embedding of 10 tokens takes 1 ms at 10,000 tokens/s; at 100,000 it takes 0.1 ms, and ten times as many fit.
    fast = {"prefill_tokens_per_s": 100_000}
    pricing = sound(priced("on_demand", H100, speed=fast))
    assert replicas_for(pricing, deployment(input_tokens=10, max_output_tokens=0, requests_per_hour=36_000_000)) == 1
    assert replicas_for(pricing, deployment(input_tokens=10, max_output_tokens=0, requests_per_hour=36_000_001)) == 2


def test_the_currency_and_the_region_multiply_and_round_up() -> None:
    # 2.05 EUR x 1.1 x 1.25 = 2.81875 USD; a third of a nano-USD rounds up.
    price = {"unit": "gpu_hour", "amount": "2.05", "currency": "EUR", "region_multiplier_ppm": 1_250_000}
    assert sound(priced("on_demand", price, on=fleet(EUR="1.1"))).hour_nano == 2_818_750_000
    thirds = {"unit": "instance_hour", "amount": "0.000000001", "gpus_per_instance": 3}
    assert sound(priced("on_demand", thirds)).hour_nano == 1


def test_no_digit_is_lost_on_the_way() -> None:
    # 12 decimals of amount and of rate: 1.000000000001 x 1.000000000001 x 10^9 = 1,000,000,000.002… nano-USD, up.
    price = {"unit": "gpu_hour", "amount": "1.000000000001", "currency": "EUR"}
    assert sound(priced("on_demand", price, on=fleet(EUR="1.000000000001"))).hour_nano == 1_000_000_001
    # 9,000,000,000,000,010.000000000000001 nano-USD: 31 digits, of which a Decimal keeps 28; the last one rounds up.
    long = {"unit": "gpu_hour", "amount": "1000.000000000001", "currency": "EUR"}
    assert sound(priced("on_demand", long, on=fleet(EUR="9000.000000000001"))).hour_nano == 9_000_000_000_000_011


@pytest.mark.parametrize("currencies", [{}, {"EUR": "0"}])
def test_a_currency_that_is_unknown_or_worth_nothing_gives_no_price(currencies: dict[str, str]) -> None:
    price = {"unit": "gpu_hour", "amount": "2.05", "currency": "EUR"}
    assert priced("on_demand", price, on=fleet(**currencies)) == "currencies.EUR"


def test_spot_pays_for_interruptions() -> None:
    # 44.1188 / 8 = 5.51485 USD a GPU-hour (Google Cloud spot, europe-west4), with 8 % overhead 5.956038.
    price = {"unit": "instance_hour", "amount": "44.1188", "gpus_per_instance": 8}
    assert sound(priced("spot", price, interruption_overhead_ppm=80_000)).hour_nano == 5_956_038_000
    assert priced("spot", price) == "interruption_overhead_ppm"


def test_paid_hardware_has_two_costs() -> None:
    # 2.00 and 0.50 USD: four GPUs for 0.25 s are 4 x 2.00 / 14,400 = 555.6 micro-USD, and a quarter of it: 138.9.
    price = {"unit": "gpu_hour", "amount": "2.00", "marginal": "0.50"}
    loaded = sound(priced("on_prem", price))
    assert cost_micro_usd(loaded, workload()) == 556
    assert cost_further(loaded, workload(), PPM)["other_basis"] == {"basis": "marginal", "micro_usd": 139}
    marginal = sound(priced("on_prem", {**price, "cost_basis": "marginal"}))
    assert cost_micro_usd(marginal, workload()) == 139
    assert cost_further(marginal, workload(), PPM)["other_basis"] == {"basis": "fully_loaded", "micro_usd": 556}
    assert cost_further(marginal, workload(), 2 * PPM)["other_basis"]["micro_usd"] == 1_112


def test_a_marginal_cost_of_nothing_still_shows_what_the_hardware_costs() -> None:
    price = {"unit": "gpu_hour", "amount": "2.00", "marginal": "0", "cost_basis": "marginal"}
    pricing = sound(priced("committed", price))
    assert cost_micro_usd(pricing, workload()) == 0
    assert cost_further(pricing, workload(), PPM)["other_basis"] == {"basis": "fully_loaded", "micro_usd": 556}
    hour = deployment(requests_per_hour=1)
    assert cost_further(pricing, hour, PPM)["other_basis"]["micro_usd"] == 8_000_000


def test_the_marginal_basis_needs_a_marginal_amount() -> None:
    price = {"unit": "gpu_hour", "amount": "2.00", "cost_basis": "marginal"}
    assert priced("committed", price) == "price.marginal"
    assert not sound(priced("committed", {"unit": "gpu_hour", "amount": "2.00"})).other_basis


def test_memory_and_fee_beside_the_gpus_are_charged_everywhere() -> None:
    # 0.0001 x 8 vCPU + 0.00001 x 64 GiB = 0.00144 USD/s = 5.184 an hour per replica, 1.296 for each of four GPUs.
    beside = {"vcpu_second": "0.0001", "vcpus": 8, "gib_second": "0.00001", "ram_gib": 64, "request_fee": "0.0000005"}
    pricing = sound(priced("on_demand", {"unit": "gpu_hour", "amount": "2.00", **beside}))
    assert pricing.hour_nano == 3_296_000_000
    # The fee of 500 nano-USD: a thousand requests an hour are 500 micro-USD on top of four GPUs at 3.296.
    assert cost_micro_usd(pricing, deployment(requests_per_hour=1_000)) == 13_184_000 + 500


def test_serverless_time_is_rounded_as_billed() -> None:
    speed = {"stream_tokens_per_s": 50, "prefill_tokens_per_s": 10_000}
    price = {**SERVERLESS, "rounding_ms": 1_000, "min_billed_ms": 10_000}
    pricing = sound(priced("serverless", price, cold_start_ms=0, speed=speed))
    assert billed_ms(pricing, 1_000, 300) == 10_000  # 100 ms + 6,000 ms: below the minimum
    assert billed_ms(pricing, 1_000, 500) == 11_000  # 100 ms + 10,000 ms: up to the next second


def test_a_lone_serverless_request_pays_its_warm_time_and_a_cold_start() -> None:
    # 0.001097 USD a second: 6.1 s of its own, 60 s warm and 18 s to start are 84.1 s, 92,257.7 micro-USD.
    pricing = sound(priced("serverless", SERVERLESS, gpus=1, cold_start_ms=18_000))
    assert request_cost_micro_usd(pricing, 1_000, 300, 0) == 92_258
    # Where the warm time is free (public models of Replicate): 24.1 s.
    free = sound(priced("serverless", {**SERVERLESS, "keep_warm_billed": False}, gpus=1, cold_start_ms=18_000))
    assert request_cost_micro_usd(free, 1_000, 300, 0) == 26_438


def test_serverless_charges_vcpus_and_memory_too() -> None:
    # Modal lists 0.0000131 USD a core-second and 0.00000222 a GiB-second: 8 and 64 of them are 0.00024688 beside the
    # GPU's 0.001097. A request of 6.1 s, where the warm time is free: 6.1 x 1,343.88 micro-USD.
    beside = {"vcpu_second": "0.0000131", "vcpus": 8, "gib_second": "0.00000222", "ram_gib": 64}
    price = {**SERVERLESS, **beside, "keep_warm_ms": 0}
    assert request_cost_micro_usd(sound(priced("serverless", price, gpus=1, cold_start_ms=0)), 1_000, 300, 0) == 8_198


def test_busy_serverless_costs_one_replica_then_full_ones() -> None:
    pricing = sound(priced("serverless", {**SERVERLESS, "concurrency": 8}, gpus=1, cold_start_ms=0))
    hour = 3_949_200  # 0.001097 x 3,600
    # 600 requests of 6.1 s are 3,660 s of work: one replica, eight at a time, carries it and is never idle.
    assert request_cost_micro_usd(pricing, 1_000, 300, 600) * 600 == pytest.approx(hour, abs=600)
    # 60,000 are 366,000 s, 45,750 s of full replicas: each request costs 6.1 / 8 s.
    assert request_cost_micro_usd(pricing, 1_000, 300, 60_000) == 837  # 0.7625 x 1,097 = 836.46
    assert replicas_for(pricing, deployment(requests_per_hour=60_000)) == 13
    assert gpus_for(pricing, deployment(requests_per_hour=60_000)) == 13


def test_a_serverless_request_longer_than_an_hour() -> None:
    # 400,000 tokens at 50 a second take 8,000 s. Alone it pays them all; one an hour overlap, eight at a time, on a
    # replica that never rests: 3,600 s each; with one at a time they take 8,000 s each again.
    shared = sound(priced("serverless", {**SERVERLESS, "concurrency": 8, "keep_warm_ms": 0}, gpus=1, cold_start_ms=0))
    assert request_cost_micro_usd(shared, 0, 400_000, 0) == 8_776_000
    assert request_cost_micro_usd(shared, 0, 400_000, 1) == 3_949_200
    single = sound(priced("serverless", {**SERVERLESS, "keep_warm_ms": 0}, gpus=1, cold_start_ms=0))
    assert request_cost_micro_usd(single, 0, 400_000, 1) == 8_776_000


def test_serverless_needs_every_figure_of_its_bill() -> None:
    for name in ("min_billed_ms", "rounding_ms", "request_fee", "keep_warm_ms"):
        price = {key: value for key, value in SERVERLESS.items() if key != name}
        assert priced("serverless", price, cold_start_ms=0) == f"price.{name}"
    assert priced("serverless", SERVERLESS) == "cold_start_ms"
    assert priced("serverless", SERVERLESS, gpus=0, cold_start_ms=0) == "offerings.gpus"
    slow = {"stream_tokens_per_s": None}
    assert priced("serverless", SERVERLESS, cold_start_ms=0, speed=slow) == "performance.stream_tokens_per_s"


@pytest.mark.parametrize(("speed", "missing"), [("prefill_tokens_per_s", "prefill"), ("decode_tokens_per_s", "decode")])
def test_gpus_need_their_speed(speed: str, missing: str) -> None:
    assert priced("on_demand", H100, speed={speed: None}) == f"performance.{missing}_tokens_per_s"


def test_an_api_has_a_price_for_tokens() -> None:
    assert priced("api", {"unit": "gpu_hour", "amount": "2"}) == "price.input"


def test_no_price_is_no_cost() -> None:
    pool = Pool(id="p", kind="on_demand", group="g", provider="x", region="r")
    assert pricing_of(pool, Offering(model="m", gpus=1), None, fleet()) == "price"
    price = Price.model_validate({**H100, "status": "list", "source": "s", "checked": "2026-07-01"}, strict=False)
    bare = pool.model_copy(update={"price": price})
    assert pricing_of(bare, Offering(model="m", gpus=1), None, fleet()) == "performance"


def test_cold_starts_follow_poisson_and_are_never_understated() -> None:
    # One request an hour and ten minutes warm: exp(-1/6) = 0.846482; the series gives no less.
    assert 846_482 <= cold_ppm(1, 600_000) <= 846_540
    assert cold_ppm(0, 600_000) == PPM
    assert cold_ppm(1_000_000, 600_000) == 0


def test_a_rate_beyond_what_json_carries_is_no_price() -> None:
    # 10,000,000 USD at a multiplier of 100 are 10^18 nano-USD, more than 2^53 - 1.
    price = {"unit": "gpu_hour", "amount": "10000000", "region_multiplier_ppm": 100_000_000}
    assert priced("on_demand", price) == "price.amount"


def test_a_demand_beyond_what_json_carries_is_refused_and_not_wrapped() -> None:
    pricing = sound(priced("on_demand", {"unit": "gpu_hour", "amount": "100000"}, gpus=1))
    fits = deployment(requests_per_hour=0, gpu_count=1, duration_hours=87_840)
    assert cost_micro_usd(pricing, fits) == 100_000 * 87_840 * 1_000_000
    huge = deployment(requests_per_hour=0, gpu_count=2, duration_hours=87_840)
    assert MAX_SAFE < 2 * 100_000 * 87_840 * 1_000_000
    with pytest.raises(RequestError, match="9007199254740991") as caught:
        cost_micro_usd(pricing, huge)
    assert caught.value.findings[0].where == "workload.demand"
