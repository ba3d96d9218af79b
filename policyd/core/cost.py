"""One cost unit for all six kinds of pool: expected micro-USD for this workload's demand, with its basis.

| form       | kinds                                  | cost of one request                                              |
|------------|----------------------------------------|------------------------------------------------------------------|
| ``tokens`` | ``api``                                | input x input price + output x output price + fee                |
| ``gpu``    | on_prem, committed, on_demand, spot    | GPU time at the measured batch throughput x hourly rate          |
| ``billed`` | ``serverless``                         | time rounded as billed x rate + fee + expected share of cold starts |

A ``deployment`` of the ``gpu`` form pays whole replicas for its hours; the other forms pay requests.
``spot`` multiplies by its interruption overhead. ``on_prem`` and ``committed`` carry two rates: fully loaded (what the
hour costs with everything in it) and marginal (what one more hour costs, the hardware being paid); the pool's
``cost_basis`` says which counts, the other is shown beside it.

Rules: integers only (rates in nano-USD, results in micro-USD), every rounding up; a price or speed that is not known
gives no cost at all, and the pool is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final

from policyd.core.fleet import Fleet
from policyd.core.pool import Amount, Offering, Performance, Pool, Price
from policyd.core.quantities import MS_PER_HOUR, NANO_PER_MICRO, PPM, ceil_div
from policyd.core.workload import Workload

_NANO: Final = Decimal(1_000_000_000)
_MTOK: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Pricing:
    """Everything that turns a demand into money, as integers; part of a sheet row.

    ``input_nano`` and ``output_nano`` are nano-USD per million tokens; ``hour_nano`` nano-USD per GPU-hour;
    ``ms_nano_x1000`` thousandths of a nano-USD per billed millisecond of one replica.
    """

    form: str
    basis: str
    status: str
    source: str
    checked: str
    input_nano: int = 0
    output_nano: int = 0
    request_nano: int = 0
    hour_nano: int = 0
    other_basis: str = ""
    other_ppm: int = 0
    gpus: int = 0
    prefill_tokens_per_s: int = 0
    decode_tokens_per_s: int = 0
    ms_nano_x1000: int = 0
    min_billed_ms: int = 0
    rounding_ms: int = 1
    concurrency: int = 1
    keep_warm_ms: int = 0
    cold_start_ms: int = 0


def pricing_of(pool: Pool, offering: Offering, performance: Performance | None, fleet: Fleet) -> Pricing | str:
    """How the pool prices this offering, or the name of the first fact that is missing."""
    price = offering.price or pool.price
    if price is None:
        return "price"
    rate = _rate(price, fleet)
    if rate is None:
        return f"currencies.{price.currency}"
    if price.unit == "million_tokens":
        return _token_pricing(price, rate)
    if performance is None:
        return "performance"
    if pool.kind == "serverless":
        return _billed_pricing(pool, offering, price, performance, rate)
    return _gpu_pricing(pool, offering, price, performance, rate)


def _rate(price: Price, fleet: Fleet) -> Decimal | None:
    """Nano-USD for one unit of the price's currency, the region multiplier included."""
    usd = Decimal(1)
    if price.currency != "USD":
        currency = fleet.document.currencies.get(price.currency)
        if currency is None:
            return None
        usd = currency.usd
    return usd * _NANO * price.region_multiplier_ppm / PPM


def _up(value: Decimal) -> int:
    return int(value.to_integral_value(rounding=ROUND_CEILING))


def _token_pricing(price: Price, rate: Decimal) -> Pricing | str:
    if price.input is None or price.output is None:
        return "price.input"
    return Pricing(
        form="tokens",
        basis="token price",
        status=price.status,
        source=price.source,
        checked=price.checked.isoformat(),
        input_nano=_up(price.input * rate),
        output_nano=_up(price.output * rate),
        request_nano=_up((price.request_fee or Decimal(0)) * rate),
    )


def _gpu_hour(price: Price, amount: Amount, rate: Decimal) -> int:
    if price.unit == "gpu_second":
        return _up(amount * rate * 3600)
    if price.unit == "instance_hour":
        return _up(amount * rate / price.gpus_per_instance)
    return _up(amount * rate)


def _gpu_pricing(
    pool: Pool, offering: Offering, price: Price, performance: Performance, rate: Decimal
) -> Pricing | str:
    prefill, decode, gpus = performance.prefill_tokens_per_s, performance.decode_tokens_per_s, offering.gpus
    if prefill is None or decode is None:
        return "performance.decode_tokens_per_s"
    if gpus is None or gpus < 1:
        return "offerings.gpus"
    if price.amount is None:
        return "price.amount"
    loaded = _gpu_hour(price, price.amount, rate)
    marginal = None if price.marginal is None else _gpu_hour(price, price.marginal, rate)
    hour, basis, other = loaded, f"{pool.kind} GPU-hours at measured throughput", None
    if pool.kind in ("on_prem", "committed"):
        basis = f"{pool.kind} GPU-hours, fully loaded"
        if price.cost_basis == "marginal":
            if marginal is None:
                return "price.marginal"
            hour, basis, other = marginal, f"{pool.kind} GPU-hours, marginal: the hardware is already paid", loaded
        else:
            other = marginal
    if pool.kind == "spot":
        if pool.interruption_overhead_ppm is None:
            return "interruption_overhead_ppm"
        hour = ceil_div(hour * (PPM + pool.interruption_overhead_ppm), PPM)
        basis += ", with interruption overhead"
    return Pricing(
        form="gpu",
        basis=basis,
        status=price.status,
        source=price.source,
        checked=price.checked.isoformat(),
        input_nano=ceil_div(hour * gpus * _MTOK, prefill * 3600),
        output_nano=ceil_div(hour * gpus * _MTOK, decode * 3600),
        hour_nano=hour,
        other_basis="" if other is None else ("marginal" if price.cost_basis == "fully_loaded" else "fully_loaded"),
        other_ppm=0 if other is None or hour == 0 else ceil_div(other * PPM, hour),
        gpus=gpus,
        prefill_tokens_per_s=prefill,
        decode_tokens_per_s=decode,
    )


def _billed_pricing(
    pool: Pool, offering: Offering, price: Price, performance: Performance, rate: Decimal
) -> Pricing | str:
    needed: dict[str, int | Decimal | None] = {
        "price.min_billed_ms": price.min_billed_ms,
        "price.rounding_ms": price.rounding_ms,
        "price.request_fee": price.request_fee,
        "price.keep_warm_ms": price.keep_warm_ms,
        "cold_start_ms": pool.cold_start_ms,
        "performance.prefill_tokens_per_s": performance.prefill_tokens_per_s,
        "performance.stream_tokens_per_s": performance.stream_tokens_per_s,
        "offerings.gpus": offering.gpus or None,
        "price.amount": price.amount,
    }
    missing = next((name for name, value in needed.items() if value is None), None)
    if missing is not None or price.amount is None:
        return missing or "price.amount"
    gpu_hour = _gpu_hour(price, price.amount, rate) * (offering.gpus or 0)
    beside = (price.vcpu_second * price.vcpus + price.gib_second * price.ram_gib) * rate
    return Pricing(
        form="billed",
        basis="serverless time as billed, with fee and expected cold starts",
        status=price.status,
        source=price.source,
        checked=price.checked.isoformat(),
        request_nano=_up((price.request_fee or Decimal(0)) * rate),
        gpus=offering.gpus or 0,
        prefill_tokens_per_s=performance.prefill_tokens_per_s or 0,
        decode_tokens_per_s=performance.stream_tokens_per_s or 0,
        ms_nano_x1000=ceil_div(gpu_hour * 1000, MS_PER_HOUR) + _up(beside),
        min_billed_ms=price.min_billed_ms or 0,
        rounding_ms=price.rounding_ms or 1,
        concurrency=price.concurrency,
        keep_warm_ms=price.keep_warm_ms or 0,
        cold_start_ms=pool.cold_start_ms or 0,
    )


def request_cost_micro_usd(pricing: Pricing, input_tokens: int, output_tokens: int, requests_per_hour: int) -> int:
    """Expected cost of one request. Raises nothing: the pricing was checked when it was made."""
    if pricing.form == "billed":
        nano = _billed_nano(pricing, input_tokens, output_tokens, requests_per_hour)
    else:
        nano = (
            -(-(input_tokens * pricing.input_nano + output_tokens * pricing.output_nano) // _MTOK)
            + pricing.request_nano
        )
    return -(-nano // NANO_PER_MICRO)


def _billed_nano(pricing: Pricing, input_tokens: int, output_tokens: int, requests_per_hour: int) -> int:
    busy_ms = ceil_div(input_tokens * 1000, pricing.prefill_tokens_per_s) + ceil_div(
        output_tokens * 1000, pricing.decode_tokens_per_s
    )
    billed_ms = max(pricing.min_billed_ms, ceil_div(busy_ms, pricing.rounding_ms) * pricing.rounding_ms)
    warm = ceil_div(billed_ms * pricing.ms_nano_x1000, 1000 * pricing.concurrency)
    cold = ceil_div(pricing.cold_start_ms * pricing.ms_nano_x1000, 1000)
    return warm + pricing.request_nano + ceil_div(cold * cold_ppm(requests_per_hour, pricing.keep_warm_ms), PPM)


def cold_ppm(requests_per_hour: int, keep_warm_ms: int) -> int:
    """Share of requests that meet a cold replica, in ppm: arrivals are Poisson, P(gap > keep_warm) = exp(-x).

    In integers: 1 / (1 + x + x^2/2 + x^3/6), which is never below exp(-x), so cold starts are never understated.
    """
    x = requests_per_hour * keep_warm_ms * PPM // MS_PER_HOUR
    if x >= 100 * PPM:
        return 0
    series = PPM + x + x * x // (2 * PPM) + x * x * x // (6 * PPM * PPM)
    return ceil_div(PPM * PPM, series)


def replicas_for(pricing: Pricing, workload: Workload) -> int:
    """Replicas that carry the workload's request rate at the batch throughput; at least one."""
    busy_ms = ceil_div(workload.input_tokens * 1000, pricing.prefill_tokens_per_s) + ceil_div(
        workload.max_output_tokens * 1000, pricing.decode_tokens_per_s
    )
    return max(1, ceil_div(workload.requests_per_hour * busy_ms, MS_PER_HOUR))


def gpus_for(pricing: Pricing, workload: Workload) -> int:
    """GPUs that the workload takes: one replica for a request, all replicas for a deployment, or what it asks for."""
    if pricing.form != "gpu" or workload.scope == "request":
        return max(pricing.gpus, workload.gpu_count) if pricing.form != "tokens" else 0
    return max(pricing.gpus * replicas_for(pricing, workload), workload.gpu_count)


def cost_micro_usd(pricing: Pricing, workload: Workload) -> int:
    """Expected cost of the workload: of one request, or of the whole deployment for its duration."""
    if workload.scope == "request":
        return request_cost_micro_usd(
            pricing, workload.input_tokens, workload.max_output_tokens, workload.requests_per_hour
        )
    if pricing.form == "gpu":
        return ceil_div(pricing.hour_nano * gpus_for(pricing, workload) * workload.duration_hours, NANO_PER_MICRO)
    each = request_cost_micro_usd(
        pricing, workload.input_tokens, workload.max_output_tokens, workload.requests_per_hour
    )
    return each * workload.requests_per_hour * workload.duration_hours


def cost_json(pricing: Pricing, workload: Workload, micro_usd: int, price_ppm: int) -> dict[str, Any]:
    """The ``cost`` of a ranked pool in the contract's shape, with what the other basis would have said."""
    tokens = workload.input_tokens + workload.max_output_tokens
    if workload.scope == "deployment":
        tokens *= workload.requests_per_hour * workload.duration_hours
    cost: dict[str, Any] = {
        "micro_usd": micro_usd,
        "per": workload.scope,
        "micro_usd_per_million_tokens": ceil_div(micro_usd * _MTOK, tokens) if tokens else None,
        "basis": pricing.basis,
        "price_status": pricing.status,
        "price_source": pricing.source,
        "price_checked": pricing.checked,
    }
    if pricing.other_basis:
        cost["other_basis"] = {
            "basis": pricing.other_basis,
            "micro_usd": ceil_div(micro_usd * pricing.other_ppm, PPM),
        }
    if price_ppm != PPM:
        cost["price_ppm_of_declared"] = price_ppm
    return cost
