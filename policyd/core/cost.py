"""One cost unit for all six kinds of pool: expected micro-USD for this workload's demand, with its basis.

| form       | kinds                               | cost of one request                                              |
|------------|-------------------------------------|------------------------------------------------------------------|
| ``tokens`` | ``api``                             | input x input price + output x output price + fee                |
| ``gpu``    | on_prem, committed, on_demand, spot | GPU time at the measured batch throughput x hourly rate + fee    |
| ``billed`` | ``serverless``                      | billed replica time x rate + fee + expected share of cold starts |

A ``deployment`` of the ``gpu`` form pays whole replicas for its hours; the other forms pay requests.
``spot`` multiplies by its interruption overhead. ``on_prem`` and ``committed`` carry two rates: fully loaded (what the
hour costs with everything in it) and marginal (what one more hour costs, the hardware being paid); the pool's
``cost_basis`` says which counts, the other is shown beside it.

Billed replica time of one hour with ``n`` requests of ``s`` milliseconds (rounded and at least the minimum, as billed),
a warm time of ``w`` after each and ``c`` requests at once on a replica::

    max( min(n x (s + w), one hour), n x s / c )

Alone, a request pays its own time and the warm time after it; closer together they share one replica, which costs at
most the whole hour; beyond what one replica carries, replicas run full.

Rules: integers only (rates in nano-USD, results in micro-USD), exact fractions on the way, every rounding up; a price
or speed that is not known gives no cost at all, and the pool is refused; so is a price whose rate does not fit
2**53 - 1, and a demand whose cost does not is a ``RequestError``: nothing wraps, nothing is cut off.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

from policyd.core.fleet import Fleet
from policyd.core.pool import Amount, Offering, Performance, Pool, Price
from policyd.core.quantities import MAX_SAFE, MS_PER_HOUR, NANO_PER_MICRO, PPM, ceil_div
from policyd.core.workload import Workload
from policyd.errors import Finding, RequestError

_NANO: Final = 1_000_000_000
TOKENS_PER_PRICE: Final = 1_000_000
"""A price of tokens is for so many."""
_S_PER_HOUR: Final = 3_600


@dataclass(frozen=True, slots=True)
class Pricing:
    """Everything that turns a demand into money, as integers; part of a sheet row.

    ``input_nano`` and ``output_nano`` are nano-USD per million tokens; ``hour_nano`` nano-USD per GPU-hour, and
    ``other_hour_nano`` the same on ``other_basis``; ``ms_nano_x1000`` thousandths of a nano-USD per billed millisecond
    of one replica; ``idle_ms`` how long a replica is billed after its last request; ``gpus`` those of one replica.
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
    other_hour_nano: int = 0
    gpus: int = 0
    prefill_tokens_per_s: int = 0
    decode_tokens_per_s: int = 0
    ms_nano_x1000: int = 0
    min_billed_ms: int = 0
    rounding_ms: int = 1
    concurrency: int = 1
    keep_warm_ms: int = 0
    idle_ms: int = 0
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
        pricing = _token_pricing(price, rate)
    elif pool.kind == "api":
        return "price.input"
    elif performance is None:
        return "performance"
    elif pool.kind == "serverless":
        pricing = _billed_pricing(pool, offering, price, performance, rate)
    else:
        pricing = _gpu_pricing(pool, offering, price, performance, rate)
    if isinstance(pricing, Pricing) and any(isinstance(part, int) and part > MAX_SAFE for part in astuple(pricing)):
        return "price.amount"  # known, but beyond what the log and its readers can carry
    return pricing


def paid_hour_nano(pool: Pool, fleet: Fleet) -> int | None:
    """What an hour of all GPUs of a pool costs, fully loaded, in nano-USD; None when nobody says."""
    price = pool.price
    rate = None if price is None else _rate(price, fleet)
    if price is None or rate is None or price.amount is None or pool.gpu_count is None:
        return None
    return _up(_gpu_hour(price, price.amount, rate) * pool.gpu_count)


def _rate(price: Price, fleet: Fleet) -> Fraction | None:
    """Nano-USD for one unit of the price's currency, the region multiplier included. Worth nothing means unknown."""
    usd = Decimal(1)
    if price.currency != "USD":
        currency = fleet.document.currencies.get(price.currency)
        if currency is None or currency.usd == 0:
            return None
        usd = currency.usd
    return Fraction(usd) * _NANO * price.region_multiplier_ppm / PPM


def _up(value: Fraction) -> int:
    return ceil_div(value.numerator, value.denominator)


def _fee_nano(price: Price, rate: Fraction) -> int:
    """A fee per request that nobody declared is not charged, except where a bill always names one (serverless)."""
    return _up(Fraction(price.request_fee or 0) * rate)


def _token_pricing(price: Price, rate: Fraction) -> Pricing | str:
    if price.input is None or price.output is None:
        return "price.input"
    return Pricing(
        form="tokens",
        basis="token price",
        status=price.status,
        source=price.source,
        checked=price.checked.isoformat(),
        input_nano=_up(Fraction(price.input) * rate),
        output_nano=_up(Fraction(price.output) * rate),
        request_nano=_fee_nano(price, rate),
    )


def _gpu_hour(price: Price, amount: Amount, rate: Fraction) -> Fraction:
    """Nano-USD per GPU-hour."""
    if price.unit == "gpu_second":
        return Fraction(amount) * rate * _S_PER_HOUR
    if price.unit == "instance_hour":
        return Fraction(amount) * rate / (price.gpus_per_instance or 1)
    return Fraction(amount) * rate


def _beside(price: Price, rate: Fraction) -> Fraction:
    """Nano-USD per replica-second for vCPUs and memory beside the GPUs."""
    return Fraction(price.vcpu_second * price.vcpus + price.gib_second * price.ram_gib) * rate


def _gpu_pricing(
    pool: Pool, offering: Offering, price: Price, performance: Performance, rate: Fraction
) -> Pricing | str:
    prefill, decode, gpus = performance.prefill_tokens_per_s, performance.decode_tokens_per_s, offering.gpus
    if prefill is None or decode is None:
        return "performance.prefill_tokens_per_s" if prefill is None else "performance.decode_tokens_per_s"
    if gpus is None or gpus < 1:
        return "offerings.gpus"
    if price.amount is None:
        return "price.amount"
    beside = _beside(price, rate) * _S_PER_HOUR / gpus
    loaded = _up(_gpu_hour(price, price.amount, rate) + beside)
    marginal = None if price.marginal is None else _up(_gpu_hour(price, price.marginal, rate) + beside)
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
    pricing = Pricing(
        form="gpu",
        basis=basis,
        status=price.status,
        source=price.source,
        checked=price.checked.isoformat(),
        request_nano=_fee_nano(price, rate),
        other_basis="" if other is None else ("marginal" if price.cost_basis == "fully_loaded" else "fully_loaded"),
        other_hour_nano=other or 0,
        gpus=gpus,
        prefill_tokens_per_s=prefill,
        decode_tokens_per_s=decode,
    )
    return at_hourly_rate(pricing, hour)


@lru_cache(maxsize=4_096)
@lru_cache(maxsize=8_192)
def at_hourly_rate(pricing: Pricing, hour_nano: int) -> Pricing:
    """The same pricing of the ``gpu`` form at another rate per GPU-hour; token rates follow from it."""
    replica_second = hour_nano * pricing.gpus * TOKENS_PER_PRICE
    return replace(
        pricing,
        hour_nano=hour_nano,
        input_nano=ceil_div(replica_second, pricing.prefill_tokens_per_s * _S_PER_HOUR),
        output_nano=ceil_div(replica_second, pricing.decode_tokens_per_s * _S_PER_HOUR),
    )


def _billed_pricing(
    pool: Pool, offering: Offering, price: Price, performance: Performance, rate: Fraction
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
    replica_second = _gpu_hour(price, price.amount, rate) * (offering.gpus or 0) / _S_PER_HOUR + _beside(price, rate)
    return Pricing(
        form="billed",
        basis="serverless time as billed, with fee, warm time and expected cold starts",
        status=price.status,
        source=price.source,
        checked=price.checked.isoformat(),
        request_nano=_fee_nano(price, rate),
        gpus=offering.gpus or 0,
        prefill_tokens_per_s=performance.prefill_tokens_per_s or 0,
        decode_tokens_per_s=performance.stream_tokens_per_s or 0,
        ms_nano_x1000=_up(replica_second),
        min_billed_ms=price.min_billed_ms or 0,
        rounding_ms=price.rounding_ms or 1,
        concurrency=price.concurrency,
        keep_warm_ms=price.keep_warm_ms or 0,
        idle_ms=(price.keep_warm_ms or 0) if price.keep_warm_billed else 0,
        cold_start_ms=pool.cold_start_ms or 0,
    )


def request_nano_usd(pricing: Pricing, input_tokens: int, output_tokens: int, requests_per_hour: int) -> int:
    """Expected nano-USD of one request among so many an hour; the rate only matters to the ``billed`` form."""
    if pricing.form == "billed":
        return _billed_nano(pricing, input_tokens, output_tokens, requests_per_hour)
    tokens = input_tokens * pricing.input_nano + output_tokens * pricing.output_nano
    return -(-tokens // TOKENS_PER_PRICE) + pricing.request_nano


def request_cost_micro_usd(pricing: Pricing, input_tokens: int, output_tokens: int, requests_per_hour: int) -> int:
    """Expected cost of one request. Raises nothing: the pricing was checked when it was made."""
    return -(-request_nano_usd(pricing, input_tokens, output_tokens, requests_per_hour) // NANO_PER_MICRO)


def billed_ms(pricing: Pricing, input_tokens: int, output_tokens: int) -> int:
    """What one request of the ``billed`` form is billed for its own time, in milliseconds."""
    busy_ms = ceil_div(input_tokens * 1000, pricing.prefill_tokens_per_s) + ceil_div(
        output_tokens * 1000, pricing.decode_tokens_per_s
    )
    return max(pricing.min_billed_ms, ceil_div(busy_ms, pricing.rounding_ms) * pricing.rounding_ms)


def replica_ms(pricing: Pricing, own_ms: int, requests: int, hours: int) -> int:
    """Billed replica time of so many requests of ``own_ms``, spread over so many hours; see the module."""
    one_replica = min(requests * (own_ms + pricing.idle_ms), hours * MS_PER_HOUR)
    return max(one_replica, ceil_div(requests * own_ms, pricing.concurrency))


def cold_share_nano(pricing: Pricing, requests_per_hour: int) -> int:
    """What cold starts add to one request of the ``billed`` form, in nano-USD."""
    cold = ceil_div(pricing.cold_start_ms * pricing.ms_nano_x1000, 1000)
    return ceil_div(cold * cold_ppm(requests_per_hour, pricing.keep_warm_ms), PPM)


def _billed_nano(pricing: Pricing, input_tokens: int, output_tokens: int, requests_per_hour: int) -> int:
    own_ms, n = billed_ms(pricing, input_tokens, output_tokens), requests_per_hour
    time_ms = replica_ms(pricing, own_ms, n, 1) if n else own_ms + pricing.idle_ms
    share = ceil_div(time_ms * pricing.ms_nano_x1000, 1000 * max(1, n))
    return share + pricing.request_nano + cold_share_nano(pricing, n)


def cold_ppm(requests_per_hour: int, keep_warm_ms: int) -> int:
    """Share of requests that meet a cold replica, in ppm: arrivals are Poisson, P(gap > keep_warm) = exp(-x).

    In integers: 1 / (1 + x + x^2/2 + x^3/6), which is never below exp(-x), so cold starts are never understated. From
    x = 100 on it is zero: exp(-100) is less than one in 10^43.
    """
    x = requests_per_hour * keep_warm_ms * PPM // MS_PER_HOUR
    if x >= 100 * PPM:
        return 0
    series = PPM + x + x * x // (2 * PPM) + x * x * x // (6 * PPM * PPM)
    return ceil_div(PPM * PPM, series)


def replicas_for(pricing: Pricing, workload: Workload) -> int:
    """Replicas that carry the workload's request rate; at least one.

    The ``gpu`` form at its batch throughput, exactly: n x (in / prefill + out / decode) / 3600. The ``billed`` form by
    the time of a request, ``concurrency`` of them at once.
    """
    n = workload.requests_per_hour
    if pricing.form == "billed":
        own_ms = billed_ms(pricing, workload.input_tokens, workload.max_output_tokens)
        return max(1, ceil_div(n * own_ms, MS_PER_HOUR * pricing.concurrency))
    prefill, decode = pricing.prefill_tokens_per_s, pricing.decode_tokens_per_s
    work = workload.input_tokens * decode + workload.max_output_tokens * prefill
    return max(1, ceil_div(n * work, prefill * decode * _S_PER_HOUR))


def gpus_for(pricing: Pricing, workload: Workload) -> int:
    """GPUs that the workload takes: one replica for a request, all replicas for a deployment, or what it asks for."""
    if pricing.form == "tokens":
        return 0
    replicas = 1 if workload.scope == "request" else replicas_for(pricing, workload)
    return max(pricing.gpus * replicas, workload.gpu_count)


def cost_micro_usd(pricing: Pricing, workload: Workload) -> int:
    """Expected cost of the workload: of one request, or of the whole deployment for its duration.

    Raises ``RequestError`` when the demand costs more than 2**53 - 1 micro-USD (nine thousand million dollars).
    """
    input_tokens, output_tokens = workload.input_tokens, workload.max_output_tokens
    if workload.scope == "request":
        cost = request_cost_micro_usd(pricing, input_tokens, output_tokens, workload.requests_per_hour)
    else:
        requests = workload.requests_per_hour * workload.duration_hours
        if pricing.form == "gpu":
            nano = pricing.hour_nano * gpus_for(pricing, workload) * workload.duration_hours
            nano += pricing.request_nano * requests
        else:
            nano = requests * request_nano_usd(pricing, input_tokens, output_tokens, workload.requests_per_hour)
        cost = -(-nano // NANO_PER_MICRO)
    if cost > MAX_SAFE:
        message = f"the demand costs more than {MAX_SAFE} micro-USD on {pricing.basis}"
        raise RequestError(message, findings=[Finding("workload.demand", message)], remedy="ask for less at once")
    return cost


def tokens_of(workload: Workload) -> int:
    """Tokens of the request, or of all requests of a deployment: what a price for a million of them is over."""
    tokens = workload.input_tokens + workload.max_output_tokens
    return tokens * workload.requests_per_hour * workload.duration_hours if workload.scope == "deployment" else tokens


def cost_fixed(pricing: Pricing) -> dict[str, Any]:
    """What the ``cost`` of a ranked pool says whatever the workload."""
    return {
        "basis": pricing.basis,
        "price_status": pricing.status,
        "price_source": pricing.source,
        "price_checked": pricing.checked,
    }


def cost_further(pricing: Pricing, workload: Workload, price_ppm: int) -> dict[str, Any]:
    """What it says of some pools only: what the other basis would have said, and another price than the declared."""
    further: dict[str, Any] = {}
    if pricing.other_basis:
        other = cost_micro_usd(at_hourly_rate(pricing, pricing.other_hour_nano), workload)
        further["other_basis"] = {"basis": pricing.other_basis, "micro_usd": ceil_div(other * price_ppm, PPM)}
    if price_ppm != PPM:
        further["price_ppm_of_declared"] = price_ppm
    return further
