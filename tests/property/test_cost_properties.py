"""What holds for every price and demand: nothing understated, nothing wrapped, more is never cheaper."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import exp

from hypothesis import given
from hypothesis import strategies as st

from policyd.core.cost import Pricing, at_hourly_rate, billed_ms, cold_ppm, request_nano_usd
from policyd.core.quantities import MS_PER_HOUR, PPM

tokens = st.integers(0, 200_000)
rates = st.integers(0, 1_000_000)
speeds = st.integers(1, 100_000)
NAMES = {"basis": "b", "status": "list", "source": "s", "checked": "2026-07-01"}


@st.composite
def gpu_pricings(draw: st.DrawFn) -> Pricing:
    bare = Pricing(
        form="gpu",
        **NAMES,
        gpus=draw(st.integers(1, 16)),
        prefill_tokens_per_s=draw(speeds),
        decode_tokens_per_s=draw(speeds),
        request_nano=draw(st.integers(0, 10_000)),
    )
    return at_hourly_rate(bare, draw(st.integers(0, 100_000_000_000)))


@st.composite
def billed_pricings(draw: st.DrawFn) -> Pricing:
    keep_warm = draw(st.integers(0, 900_000))
    return Pricing(
        form="billed",
        **NAMES,
        gpus=1,
        prefill_tokens_per_s=draw(speeds),
        decode_tokens_per_s=draw(speeds),
        request_nano=draw(st.integers(0, 10_000)),
        ms_nano_x1000=draw(st.integers(0, 10_000_000)),
        min_billed_ms=draw(st.integers(0, 60_000)),
        rounding_ms=draw(st.integers(1, 60_000)),
        concurrency=draw(st.integers(1, 64)),
        keep_warm_ms=keep_warm,
        idle_ms=draw(st.sampled_from([0, keep_warm])),
        cold_start_ms=draw(st.integers(0, 120_000)),
    )


@given(gpu_pricings(), tokens, tokens)
def test_gpu_time_is_never_understated_and_rounds_by_little(
    pricing: Pricing, input_tokens: int, output_tokens: int
) -> None:
    seconds = Fraction(input_tokens, pricing.prefill_tokens_per_s) + Fraction(
        output_tokens, pricing.decode_tokens_per_s
    )
    exact = pricing.hour_nano * pricing.gpus * seconds / 3_600 + pricing.request_nano
    found = request_nano_usd(pricing, input_tokens, output_tokens, 0)
    assert exact <= found <= exact + 2


@given(billed_pricings(), tokens, tokens, rates)
def test_serverless_is_never_below_its_full_replicas(
    pricing: Pricing, input_tokens: int, output_tokens: int, rate: int
) -> None:
    own_ms = billed_ms(pricing, input_tokens, output_tokens)
    assert own_ms >= pricing.min_billed_ms
    found = request_nano_usd(pricing, input_tokens, output_tokens, rate)
    assert found >= Fraction(own_ms * pricing.ms_nano_x1000, 1_000 * pricing.concurrency) + pricing.request_nano
    # A replica of its own for each request, warm to the end, and a cold start, is the most that it can cost.
    most = (own_ms + pricing.idle_ms + pricing.cold_start_ms) * Fraction(pricing.ms_nano_x1000, 1_000)
    assert found <= most + pricing.request_nano + 3


@given(billed_pricings(), tokens, tokens, rates, st.integers(1, 1_000_000))
def test_more_requests_make_serverless_no_dearer_each_and_no_cheaper_together(
    pricing: Pricing, input_tokens: int, output_tokens: int, rate: int, more: int
) -> None:
    before = request_nano_usd(pricing, input_tokens, output_tokens, rate)
    after = request_nano_usd(pricing, input_tokens, output_tokens, rate + more)
    assert after <= before + 1
    warm = replace(pricing, cold_start_ms=0)
    fewer = rate * request_nano_usd(warm, input_tokens, output_tokens, rate)
    greater = (rate + more) * request_nano_usd(warm, input_tokens, output_tokens, rate + more)
    assert fewer <= greater + rate + more


@given(billed_pricings(), rates)
def test_billing_the_warm_time_is_never_cheaper(pricing: Pricing, rate: int) -> None:
    free, paid = replace(pricing, idle_ms=0), replace(pricing, idle_ms=pricing.keep_warm_ms)
    assert request_nano_usd(free, 1_000, 300, rate) <= request_nano_usd(paid, 1_000, 300, rate)


@given(rates, st.integers(0, 3_600_000))
def test_cold_starts_are_never_understated(rate: int, keep_warm_ms: int) -> None:
    found = cold_ppm(rate, keep_warm_ms)
    x = rate * keep_warm_ms / MS_PER_HOUR
    assert 0 <= found <= PPM
    assert found + 1e-6 >= PPM * exp(-x)
    assert cold_ppm(rate + 1, keep_warm_ms) <= found


@given(gpu_pricings() | billed_pricings(), tokens, tokens, rates, tokens)
def test_more_tokens_are_never_cheaper(
    pricing: Pricing, input_tokens: int, output_tokens: int, rate: int, more: int
) -> None:
    base = request_nano_usd(pricing, input_tokens, output_tokens, rate)
    assert request_nano_usd(pricing, input_tokens + more, output_tokens, rate) >= base
    assert request_nano_usd(pricing, input_tokens, output_tokens + more, rate) >= base
