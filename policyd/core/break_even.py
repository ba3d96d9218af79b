"""From which rate of requests owned, provisioned, serverless and token-priced capacity beat each other.

Every way to serve a model is a **line**: what a month costs at a mean rate of ``r`` requests an hour, spread over the
week like the profile. With ``R = 168 r`` requests a week, of which hour ``h`` brings ``d(h) = R x w(h) / sum(w)``, and
a replica that serves ``k`` requests an hour at the measured batch throughput,
``k = 3600 / (input / prefill + output / decode)``, a week costs::

    gpu     rate x sum over h of GPUs(h)                GPUs(h) = those of ceil(max d / k) replicas, at least one,
                                                        in every hour, used or not; whole instances where instances
                                                        are what is sold; when elastic ceil(d(h) / k) replicas
    billed  sum over h of what d(h) requests cost       replica time, fee and cold starts, as ``policyd.core.cost``
                                                        bills them; cold starts at d(h) rounded down
    tokens  R x cost of one request

and a month is 730 hours: a week x 730 / 168. ``on_prem`` and ``committed`` pools have a second line, **marginal**: what
the hours cost when the hardware is already paid; it reaches as far as the part of a commitment that lies unused.

Rules: integers only, exact fractions on the way, a cost rounds up once at its end. A line ends where its pool's GPUs
end; nothing is compared beyond. Crossings are whole requests an hour, found by bisection between rates of three
significant digits and the rates at which a line gains a replica. That misses nothing between token-priced lines and
lines sized for the peak, which are straight between those rates; of serverless and elastic lines it misses a lead that
comes and goes within one part in a hundred. The cheapest by rate is sought among the lines that are it at some rate of
two significant digits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from policyd.core.cost import (
    Pricing,
    at_hourly_rate,
    billed_ms,
    cold_share_nano,
    pricing_of,
    replica_ms,
    request_nano_usd,
)
from policyd.core.fleet import Fleet
from policyd.core.inputs import performance_of
from policyd.core.pool import Pool, Price
from policyd.core.quantities import MAX_SAFE, MS_PER_HOUR, NANO_PER_MICRO, PPM, ceil_div
from policyd.errors import Finding, RequestError

HOURS_PER_WEEK: Final = 168
HOURS_PER_MONTH: Final = 730
RATE_MAX: Final = 1_000_000_000
"""Requests per hour beyond which nothing is computed; also the ceiling of a demand."""
STEPS_MAX: Final = 2_000
"""Gains of a replica that are looked at one by one, for each line."""
_S_PER_HOUR: Final = 3_600
_MTOK: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Traffic:
    """How requests arrive and how large they are.

    ``hours`` holds (requests in the hour, how many hours of the week are like that); ``week_requests`` is their sum.
    """

    hours: tuple[tuple[int, int], ...]
    week_requests: int
    input_tokens: int
    output_tokens: int

    @property
    def peak(self) -> int:
        """Requests in the busiest hour of the profile."""
        return max(requests for requests, _ in self.hours)


def traffic_of(hourly: Sequence[int], input_tokens: int, output_tokens: int) -> Traffic:
    """Traffic from one figure for every hour, or from 168 (Monday 00:00 first). Raises ``RequestError``."""
    if len(hourly) not in (1, HOURS_PER_WEEK):
        raise _refused("hourly", f"{len(hourly)} figures: give one, or {HOURS_PER_WEEK} (Monday 00:00 first)")
    if any(not 0 <= figure <= RATE_MAX for figure in hourly):
        raise _refused("hourly", f"requests per hour lie between 0 and {RATE_MAX}")
    if sum(hourly) == 0:
        raise _refused("hourly", "nobody asks for anything: at least one request in the week is needed")
    if min(input_tokens, output_tokens) < 0 or input_tokens + output_tokens == 0:
        raise _refused("input_tokens", "a request has at least one token, and never fewer than none")
    counted = Counter(hourly)
    each = HOURS_PER_WEEK // len(hourly)
    hours = tuple(sorted((figure, count * each) for figure, count in counted.items()))
    return Traffic(hours, sum(figure * count for figure, count in hours), input_tokens, output_tokens)


def _refused(where: str, message: str) -> RequestError:
    return RequestError(message, findings=[Finding(where, message)])


@dataclass(frozen=True, slots=True)
class Line:
    """One way to serve the model. ``gpus_max`` None: no limit in GPUs. ``instance_gpus``: GPUs sold together."""

    pool: str
    kind: str
    pricing: Pricing
    basis: str = "fully_loaded"
    gpus_max: int | None = None
    instance_gpus: int = 1
    elastic: bool = False

    @property
    def name(self) -> str:
        """The pool, with a word when only its marginal cost counts."""
        return f"{self.pool} (marginal)" if self.basis == "marginal" else self.pool


@dataclass(frozen=True, slots=True)
class Unpriced:
    """A pool that offers the model and has no line, with the fact that is missing."""

    pool: str
    kind: str
    missing: str


def lines_of(
    fleet: Fleet, model: str, keep: Callable[[Pool], bool], *, elastic: bool
) -> tuple[list[Line], list[Unpriced]]:
    """The lines of every kept pool that offers the model; ``elastic`` lets on-demand capacity follow the hours."""
    lines: list[Line] = []
    unpriced: list[Unpriced] = []
    for pool in fleet.pools.values():
        offering = pool.offering(model)
        if offering is None or not keep(pool):
            continue
        price = offering.price or pool.price
        pricing = pricing_of(pool, offering, performance_of(pool, offering, fleet), fleet)
        if price is None or isinstance(pricing, str):
            unpriced.append(Unpriced(pool.id, pool.kind, "price" if isinstance(pricing, Pricing) else pricing))
        elif pool.capacity is None and pricing.form != "tokens":
            unpriced.append(Unpriced(pool.id, pool.kind, "capacity"))
        else:
            lines.extend(_lines(pool, price, pricing, elastic=elastic))
    return lines, unpriced


def _lines(pool: Pool, price: Price, pricing: Pricing, *, elastic: bool) -> list[Line]:
    if pricing.form == "tokens" or pool.capacity is None:
        return [Line(pool.id, pool.kind, pricing)]
    line = Line(
        pool.id,
        pool.kind,
        pricing,
        gpus_max=pool.capacity.gpus,
        instance_gpus=(price.gpus_per_instance or 1) if pricing.form == "gpu" else 1,
        elastic=elastic and pool.kind == "on_demand",
    )
    if not pricing.other_basis:
        return [line]
    other = at_hourly_rate(pricing, pricing.other_hour_nano)
    loaded, marginal = (pricing, other) if pricing.other_basis == "marginal" else (other, pricing)
    unused = pool.commitment.unused_gpus if pool.commitment else pool.capacity.gpus
    return [
        replace(line, pricing=loaded),
        replace(line, pricing=marginal, basis="marginal", gpus_max=min(unused, pool.capacity.gpus)),
    ]


def _work(line: Line, traffic: Traffic) -> tuple[int, int]:
    """Replica-hours of one request at the batch throughput, as numerator and denominator."""
    prefill, decode = line.pricing.prefill_tokens_per_s, line.pricing.decode_tokens_per_s
    return traffic.input_tokens * decode + traffic.output_tokens * prefill, prefill * decode * _S_PER_HOUR


def _replicas(line: Line, traffic: Traffic, week: int, figure: int) -> int:
    """Replicas that carry the hours of that figure, when a week brings ``week`` requests."""
    if line.pricing.form == "billed":
        own_ms = billed_ms(line.pricing, traffic.input_tokens, traffic.output_tokens)
        return ceil_div(week * figure * own_ms, traffic.week_requests * MS_PER_HOUR * line.pricing.concurrency)
    work, hour = _work(line, traffic)
    return ceil_div(week * figure * work, traffic.week_requests * hour)


def replicas(line: Line, traffic: Traffic, week: int) -> int:
    """Replicas in the busiest hour, one as soon as there is a request; none of a token-priced line."""
    return 0 if line.pricing.form == "tokens" else _replicas(line, traffic, week, traffic.peak)


def _gpus(line: Line, count: int) -> int:
    return ceil_div(count * line.pricing.gpus, line.instance_gpus) * line.instance_gpus


def gpus(line: Line, traffic: Traffic, week: int) -> int:
    """GPUs that are paid for in the busiest hour."""
    return _gpus(line, replicas(line, traffic, week))


def _gpu_hours(line: Line, traffic: Traffic, week: int) -> int:
    if not line.elastic:
        return HOURS_PER_WEEK * gpus(line, traffic, week)
    return sum(count * _gpus(line, _replicas(line, traffic, week, figure)) for figure, count in traffic.hours)


def carries(line: Line, traffic: Traffic, week: int) -> bool:
    """Whether the pool has the GPUs for the busiest hour."""
    return line.gpus_max is None or replicas(line, traffic, week) * line.pricing.gpus <= line.gpus_max


def _week_nano(line: Line, traffic: Traffic, week: int) -> tuple[int, int]:
    """Nano-USD of a week, as numerator and denominator."""
    pricing = line.pricing
    if pricing.form == "gpu":
        return pricing.hour_nano * _gpu_hours(line, traffic, week) + pricing.request_nano * week, 1
    if pricing.form == "tokens":
        return week * request_nano_usd(pricing, traffic.input_tokens, traffic.output_tokens, 0), 1
    own_ms = billed_ms(pricing, traffic.input_tokens, traffic.output_tokens)
    total = 0
    for figure, count in traffic.hours:
        requests, hours = count * week * figure, count * traffic.week_requests
        each = pricing.request_nano + cold_share_nano(pricing, requests // hours)
        total += replica_ms(pricing, own_ms, requests, hours) * pricing.ms_nano_x1000 + 1_000 * requests * each
    return total, 1_000 * traffic.week_requests


def month_micro_usd(line: Line, traffic: Traffic, week: int) -> int:
    """What a month costs when a week brings ``week`` requests. Raises ``RequestError`` beyond 2**53 - 1."""
    nano, parts = _week_nano(line, traffic, week)
    cost = ceil_div(nano * HOURS_PER_MONTH, parts * HOURS_PER_WEEK * NANO_PER_MICRO)
    if cost > MAX_SAFE:
        raise _refused("requests_per_hour", f"a month on {line.name} costs more than {MAX_SAFE} micro-USD")
    return cost


def utilisation_ppm(line: Line, traffic: Traffic, week: int) -> int | None:
    """Share of the paid GPU time that works, in ppm; None where only use is paid. A part of an instance idles too."""
    if line.pricing.form != "gpu":
        return None
    work, hour = _work(line, traffic)
    return week * work * line.pricing.gpus * PPM // (hour * _gpu_hours(line, traffic, week))


@dataclass(frozen=True, slots=True)
class Standing:
    """A line at the given profile. ``month_micro_usd`` None: the pool has too few GPUs for the busiest hour.

    ``rate_max`` is the mean rate up to which the pool carries this profile; None without a limit in GPUs.
    """

    line: Line
    month_micro_usd: int | None
    request_micro_usd: int | None
    micro_usd_per_million_tokens: int | None
    utilisation_ppm: int | None
    replicas: int
    gpus: int
    rate_max: int | None


def standing(line: Line, traffic: Traffic) -> Standing:
    """How a line stands at the profile as given."""
    week = traffic.week_requests
    fits = carries(line, traffic, week)
    nano, parts = _week_nano(line, traffic, week)
    tokens = traffic.input_tokens + traffic.output_tokens
    return Standing(
        line=line,
        month_micro_usd=month_micro_usd(line, traffic, week) if fits else None,
        request_micro_usd=ceil_div(nano, parts * week * NANO_PER_MICRO) if fits else None,
        micro_usd_per_million_tokens=ceil_div(nano * _MTOK, parts * week * tokens * NANO_PER_MICRO) if fits else None,
        utilisation_ppm=utilisation_ppm(line, traffic, week) if fits else None,
        replicas=replicas(line, traffic, week),
        gpus=gpus(line, traffic, week),
        rate_max=rate_max(line, traffic),
    )


def rate_max(line: Line, traffic: Traffic) -> int | None:
    """The highest mean rate in requests per hour that the pool carries; 0 when not even one replica fits."""
    if line.gpus_max is None:
        return None
    return _last(lambda rate: carries(line, traffic, HOURS_PER_WEEK * rate), 0, RATE_MAX)


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The last integer of ``low..high`` at which ``holds``, given that it holds at ``low`` and stops at most once."""
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True, slots=True)
class Crossing:
    """``cheaper`` beats ``dearer`` from ``from_rate`` requests an hour on, having cost as much or more below.

    Steps make leads come and go: from ``for_good_rate`` on it stays the cheaper one, as far as both pools reach; when
    it does not, that is None and ``until_rate`` is the last rate at which it leads. ``utilisation_ppm`` is that of
    ``utilised``, the one of the two that pays for hours, at ``from_rate``.
    """

    cheaper: Line
    dearer: Line
    from_rate: int
    for_good_rate: int | None
    until_rate: int | None
    utilised: Line | None
    utilisation_ppm: int | None


@dataclass(frozen=True, slots=True)
class Range:
    """From ``from_rate`` to ``to_rate`` requests an hour nothing is cheaper than ``line``; None: nothing carries it."""

    from_rate: int
    to_rate: int
    line: Line | None


@dataclass
class Curves:
    """Lines over rates, each cost computed once. ``top_rate`` is the last rate that is looked at."""

    traffic: Traffic
    top_rate: int

    def __post_init__(self) -> None:
        self._costs: dict[tuple[str, int], int | None] = {}

    def cost(self, line: Line, rate: int) -> int | None:
        """Micro-USD of a month at a mean rate; None beyond the pool's GPUs."""
        key = (line.name, rate)
        if key not in self._costs:
            week = HOURS_PER_WEEK * rate
            fits = carries(line, self.traffic, week)
            self._costs[key] = month_micro_usd(line, self.traffic, week) if fits else None
        return self._costs[key]

    def cheaper(self, one: Line, other: Line, rate: int) -> bool:
        """Whether ``one`` costs less; a line that does not reach that far costs more than any."""
        here, there = self.cost(one, rate), self.cost(other, rate)
        return here is not None and (there is None or here < there)

    def steps(self, line: Line) -> list[int]:
        """The last rate before each further replica and the first with it."""
        return _steps(line, self.traffic, self.top_rate)

    def rates(self, lines: Sequence[Line], digits: int) -> list[int]:
        """Rates of so many significant digits, and those at which the lines have steps."""
        steps = {rate for line in lines for rate in self.steps(line)}
        return sorted(steps.union(significant_rates(self.top_rate, digits)))

    def crossing(self, one: Line, other: Line) -> Crossing | None:
        """Where the dearer of the two at low rates becomes the cheaper one, as far as both pools reach."""
        ends = [end for end in (rate_max(one, self.traffic), rate_max(other, self.traffic)) if end is not None]
        top = min([*ends, self.top_rate])
        rates = [rate for rate in self.rates([one, other], 3) if rate < top] + [top]
        if top < 1:
            return None
        first = next((rate for rate in rates if self.cost(one, rate) != self.cost(other, rate)), None)
        if first is None:
            return None
        under, over = (one, other) if self.cheaper(one, other, first) else (other, one)
        leads = [self.cheaper(over, under, rate) for rate in rates]
        if not any(leads):
            return None
        pairs = list(zip(rates, leads, rates[1:], leads[1:], strict=False))
        gains = [(low, high) for low, before, high, after in pairs if not before and after]
        losses = [(low, high) for low, before, high, after in pairs if before and not after]
        start = self._gain(over, under, *gains[0])
        utilised = next((line for line in (over, under) if line.pricing.form == "gpu"), None)
        week = HOURS_PER_WEEK * start
        return Crossing(
            cheaper=over,
            dearer=under,
            from_rate=start,
            for_good_rate=self._gain(over, under, *gains[-1]) if leads[-1] else None,
            until_rate=None if leads[-1] else self._loss(over, under, *losses[-1]),
            utilised=utilised,
            utilisation_ppm=utilisation_ppm(utilised, self.traffic, week) if utilised else None,
        )

    def _gain(self, over: Line, under: Line, low: int, high: int) -> int:
        return 1 + _last(lambda rate: not self.cheaper(over, under, rate), low, high - 1)

    def _loss(self, over: Line, under: Line, low: int, high: int) -> int:
        return _last(lambda rate: self.cheaper(over, under, rate), low, high - 1)

    def cheapest(self, lines: Sequence[Line], rate: int) -> Line | None:
        """The line that costs least at a rate; of equals the first by name."""
        known = ((self.cost(line, rate), line.name, line) for line in lines)
        best = min(((cost, name, line) for cost, name, line in known if cost is not None), default=None)
        return best[2] if best else None

    def ranges(self, lines: Sequence[Line]) -> list[Range]:
        """Which line is cheapest, from one request an hour to ``top_rate``."""
        winners = {line.name: line for rate in self.rates([], 2) if (line := self.cheapest(lines, rate))}
        lines = list(winners.values())
        rates = self.rates(lines, 2)
        found: list[Range] = []
        start, line = rates[0], self.cheapest(lines, rates[0])
        for low, high in pairwise(rates):
            after = self.cheapest(lines, high)
            while after != line:
                current = line
                end = _last(lambda rate, current=current: self.cheapest(lines, rate) == current, low, high - 1)  # type: ignore[misc]
                found.append(Range(start, end, line))
                low = start = end + 1
                line = self.cheapest(lines, start)
        return [*found, Range(start, rates[-1], line)]


def significant_rates(top_rate: int, digits: int) -> list[int]:
    """All integers from 1 of at most so many significant digits up to ``top_rate``, and ``top_rate`` itself."""
    rates, unit = list(range(1, min(10**digits, top_rate + 1))), 10
    while (first := 10 ** (digits - 1) * unit) <= top_rate:
        rates.extend(range(first, min(10 * first, top_rate + 1), unit))
        unit *= 10
    return rates if rates[-1] == top_rate else [*rates, top_rate]


def _steps(line: Line, traffic: Traffic, top_rate: int) -> list[int]:
    """For the peak hour; of an elastic line for any hour."""
    if line.pricing.form == "tokens":
        return []
    if line.pricing.form == "billed":
        work = billed_ms(line.pricing, traffic.input_tokens, traffic.output_tokens)
        hour = MS_PER_HOUR * line.pricing.concurrency
    else:
        work, hour = _work(line, traffic)
    figures = [figure for figure, _ in traffic.hours if figure] if line.elastic else [traffic.peak]
    replicas_max = STEPS_MAX if line.gpus_max is None else line.gpus_max // line.pricing.gpus
    steps: list[int] = []
    for figure in figures:
        for count in range(1, min(replicas_max, STEPS_MAX // len(figures)) + 1):
            rate = count * traffic.week_requests * hour // (HOURS_PER_WEEK * figure * work)
            if rate >= top_rate:
                break
            steps.extend((rate, rate + 1) if rate else (1,))
    return steps


@dataclass(frozen=True, slots=True)
class Report:
    """The whole answer: every line at the profile, the best of each kind against each other, the cheapest by rate.

    ``ranges`` count everything fully loaded; ``ranges_paid`` counts hardware that is already paid at its marginal cost.
    """

    model: str
    traffic: Traffic
    standings: tuple[Standing, ...]
    contenders: tuple[Line, ...]
    crossings: tuple[Crossing, ...]
    ranges: tuple[Range, ...]
    ranges_paid: tuple[Range, ...]
    unpriced: tuple[Unpriced, ...]
    top_rate: int


def break_even(
    model: str, lines: Sequence[Line], unpriced: Sequence[Unpriced], traffic: Traffic, *, top_rate: int
) -> Report:
    """Everything about these lines up to ``top_rate`` requests an hour. Raises ``RequestError`` without any line."""
    if not lines:
        raise _refused("pool", f"no pool has a price for {model}: {[f'{u.pool} lacks {u.missing}' for u in unpriced]}")
    standings = sorted((standing(line, traffic) for line in lines), key=_by_cost)
    curves = Curves(traffic, top_rate)
    best: dict[tuple[str, str], Line] = {}
    for entry in standings:
        best.setdefault((entry.line.kind, entry.line.basis), entry.line)
    contenders = tuple(best.values())
    pairs = [(one, other) for i, one in enumerate(contenders) for other in contenders[i + 1 :]]
    crossings = [crossing for one, other in pairs if (crossing := curves.crossing(one, other))]
    crossings.sort(key=lambda crossing: (crossing.from_rate, crossing.cheaper.name, crossing.dearer.name))
    loaded = [line for line in lines if line.basis != "marginal"]
    return Report(
        model=model,
        traffic=traffic,
        standings=tuple(standings),
        contenders=contenders,
        crossings=tuple(crossings),
        ranges=tuple(curves.ranges(loaded)) if loaded else (),
        ranges_paid=tuple(curves.ranges(list(lines))),
        unpriced=tuple(unpriced),
        top_rate=top_rate,
    )


def _by_cost(entry: Standing) -> tuple[bool, int, int, str]:
    cost = entry.month_micro_usd
    return cost is None, cost or 0, -(entry.rate_max or 0), entry.line.name
