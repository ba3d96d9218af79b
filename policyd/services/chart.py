"""Pictures of a break-even report, as SVG: unit cost over the rate of requests, both on logarithmic axes.

One curve for the best pool of each kind, dashed where only the marginal cost of paid hardware counts; numbered markers
where one begins to beat another, told in words below; a line at the profile that was asked for. Colours are those of
Okabe and Ito, which people with any colour vision tell apart, and no curve is told by its colour alone.

Rules: pure and deterministic, the same report gives the same bytes; every text is escaped; amounts and crossings come
from the report as integers. Floats place ink and nothing else. It draws no other format and loads no font or script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from policyd.core.break_even import HOURS_PER_MONTH, Crossing, Curves, Line, Report

WIDTH: Final = 960
TOP: Final = 86
PLOT_HEIGHT: Final = 380
LEFT: Final = 84
RIGHT: Final = 660
"""Where the plot ends and the legend begins."""
ROW: Final = 19
MARKERS_MAX: Final = 10
DECADES_MAX: Final = 4
"""Decades of unit cost above the cheapest that are drawn; a curve that comes from higher is cut at the frame."""
POINTS_PER_DECADE: Final = 60

COLOURS: Final = {
    "on_prem": "#0072b2",
    "committed": "#009e73",
    "on_demand": "#d55e00",
    "spot": "#b8860b",
    "serverless": "#b5508f",
    "api": "#333333",
}
INK: Final = "#1f2328"
QUIET: Final = "#5c6570"
GRID: Final = "#e4e7eb"
FONT: Final = "'Inter','Segoe UI','Helvetica Neue',Arial,'DejaVu Sans',sans-serif"
_ROUND: Final = tuple(digit * 10**power for power in range(16) for digit in (1, 2, 5))
KIND_WORDS: Final = {
    "on_prem": "on premises",
    "committed": "committed",
    "on_demand": "on demand",
    "spot": "spot",
    "serverless": "serverless",
    "api": "token price",
}


@dataclass(frozen=True, slots=True)
class Frame:
    """The plot's corners, the rates as powers of ten, the costs as micro-USD of the ``_ROUND`` kind."""

    x_low: int
    x_high: int
    y_low: int
    y_high: int

    def x(self, rate: int) -> float:
        """Pixels of a rate."""
        return LEFT + (log10(rate) - self.x_low) / (self.x_high - self.x_low) * (RIGHT - LEFT)

    def y(self, micro_usd: int) -> float:
        """Pixels of a cost in micro-USD per million tokens."""
        return TOP + log10(self.y_high / micro_usd) / log10(self.y_high / self.y_low) * PLOT_HEIGHT


@dataclass(frozen=True, slots=True)
class Curve:
    """The drawn part of a line: (rate, micro-USD per million tokens), rates rising."""

    line: Line
    points: tuple[tuple[int, int], ...]


def picture(report: Report, fleet_revision: str) -> str:
    """The report as one SVG document. ``fleet_revision`` is named in the footnote."""
    curves_by_rate = Curves(report.traffic, report.top_rate)
    x_low, x_high = _rate_span(report)
    curves = [_curve(line, report, curves_by_rate, x_low, x_high) for line in report.contenders]
    drawn = [curve for curve in curves if curve.points]
    frame = _frame(drawn, x_low, x_high)
    markers = _markers(report, curves_by_rate, frame)
    told_rows = max(1, len(markers))
    notes_at = TOP + PLOT_HEIGHT + 74
    height = notes_at + told_rows * ROW + 36
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label={quoteattr(f"Unit cost of {report.model} by rate of requests")} font-family="{FONT}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        *_heading(report),
        *_axes(frame),
        f'<clipPath id="plot"><rect x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{PLOT_HEIGHT}"/></clipPath>',
        '<g clip-path="url(#plot)" fill="none" stroke-linejoin="round">',
        *(_path(curve, frame) for curve in drawn),
        "</g>",
        *_here(report, frame),
        *_dots(markers, frame),
        *_legend(report, curves),
        *_told(markers, notes_at),
        _text(LEFT, height - 18, _footnote(report, fleet_revision), size=11, fill=QUIET),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _marked(report: Report) -> list[Crossing]:
    """Crossings of everything fully loaded; first those that last."""
    wanted = [c for c in report.crossings if "marginal" not in (c.cheaper.basis, c.dearer.basis)]
    return sorted(wanted, key=lambda crossing: crossing.for_good_rate is None)[:MARKERS_MAX]


def _rate_span(report: Report) -> tuple[int, int]:
    """Powers of ten around the profile and every marked crossing, with some room on the left."""
    rates = [max(1, report.traffic.week_requests // 168)]
    rates += [rate for c in _marked(report) for rate in (c.from_rate, c.for_good_rate) if rate and rate > 1]
    low = max(0, floor(log10(min(rates) / 10)))
    high = min(ceil(log10(report.top_rate)), ceil(log10(max(rates) * 2)))
    return low, max(high, low + 2)


def _curve(line: Line, report: Report, costs: Curves, x_low: int, x_high: int) -> Curve:
    traffic = report.traffic
    tokens = HOURS_PER_MONTH * (traffic.input_tokens + traffic.output_tokens)
    spread = {round(10 ** (x_low + i / POINTS_PER_DECADE)) for i in range((x_high - x_low) * POINTS_PER_DECADE + 1)}
    spread.update(rate for rate in costs.steps(line) if 10**x_low <= rate <= 10**x_high)
    points = []
    for rate in sorted(spread):
        month = costs.cost(line, rate) if rate <= report.top_rate else None
        if month:
            points.append((rate, max(1, month * 1_000_000 // (rate * tokens))))
    return Curve(line, tuple(points))


def _frame(curves: Sequence[Curve], x_low: int, x_high: int) -> Frame:
    known = [cost for curve in curves for _, cost in curve.points] or [1]
    low = max(amount for amount in _ROUND if amount <= min(known))
    high = min(amount for amount in _ROUND if amount >= min(max(known), low * 10**DECADES_MAX) and amount > low)
    return Frame(x_low, x_high, low, high)


def _text(x: float, y: float, text: str, *, size: int, fill: str = INK, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}"{more}>{escape(text)}</text>'


def _heading(report: Report) -> list[str]:
    traffic = report.traffic
    tenfold = 10 * 168 * traffic.peak // traffic.week_requests
    uneven = f"the busiest hour {tenfold // 10}.{tenfold % 10} times the mean"
    shape = "the same every hour" if len(traffic.hours) == 1 else uneven
    said = f"{traffic.input_tokens:,} tokens in and {traffic.output_tokens:,} out per request, {shape}"
    return [
        _text(LEFT, 34, f"What {report.model} costs, by how much it is used", size=20, more=' font-weight="600"'),
        _text(LEFT, 57, said + "; best pool of each kind", size=13, fill=QUIET),
        _text(LEFT, TOP - 8, "USD per million tokens", size=12, fill=QUIET),
    ]


def _axes(frame: Frame) -> list[str]:
    bottom = TOP + PLOT_HEIGHT
    parts = []
    for amount in _ROUND:
        if frame.y_low <= amount <= frame.y_high:
            y, strong = frame.y(amount), str(amount).startswith("1")
            ink = GRID if strong else "#f1f3f5"
            words = _dollars(amount) if strong or amount in (frame.y_low, frame.y_high) else ""
            parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{RIGHT}" y2="{y:.1f}" stroke="{ink}"/>')
            parts.append(_text(LEFT - 10, y + 4, words, size=12, fill=QUIET, more=' text-anchor="end"'))
    for power in range(frame.x_low, frame.x_high + 1):
        x = frame.x(10**power)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{GRID}"/>')
        parts.append(_text(x, bottom + 20, f"{10**power:,}", size=12, fill=QUIET, more=' text-anchor="middle"'))
        if power < frame.x_high:
            minor = (frame.x(digit * 10**power) for digit in range(2, 10))
            parts.extend(
                f'<line x1="{m:.1f}" y1="{bottom}" x2="{m:.1f}" y2="{bottom + 4}" stroke="#b6bcc4"/>' for m in minor
            )
    parts.append(f'<line x1="{LEFT}" y1="{bottom}" x2="{RIGHT}" y2="{bottom}" stroke="#8a929c"/>')
    middle = (LEFT + RIGHT) / 2
    parts.append(
        _text(middle, bottom + 42, "requests per hour (mean)", size=12, fill=QUIET, more=' text-anchor="middle"')
    )
    return parts


def _dollars(micro_usd: int) -> str:
    """An amount of one digit in dollars, exactly."""
    whole, rest = divmod(micro_usd, 1_000_000)
    return f"${whole:,}" if whole else f"$0.{rest:06d}".rstrip("0")


def _path(curve: Curve, frame: Frame) -> str:
    ink = COLOURS[curve.line.kind]
    steps = " ".join(f"{frame.x(rate):.1f},{frame.y(cost):.1f}" for rate, cost in curve.points)
    dash = ' stroke-dasharray="3 5"' if curve.line.basis == "marginal" else ""
    return f'<polyline points="{steps}" stroke="{ink}" stroke-width="2.4"{dash}/>'


def _here(report: Report, frame: Frame) -> list[str]:
    rate = max(1, report.traffic.week_requests // 168)
    x = frame.x(rate)
    if not LEFT <= x <= RIGHT:
        return []
    foot, left = TOP + PLOT_HEIGHT, x > RIGHT - 150
    more = ' text-anchor="end"' if left else ""
    return [
        f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{foot}" stroke="#9aa2ac" stroke-dasharray="2 4"/>',
        _text(x + (-6 if left else 6), TOP + 15, f"this profile: {rate:,}/h", size=11, fill=QUIET, more=more),
    ]


@dataclass(frozen=True, slots=True)
class Marker:
    """A crossing with its number and its place."""

    number: int
    crossing: Crossing
    rate: int
    cost: int


def _markers(report: Report, costs: Curves, frame: Frame) -> list[Marker]:
    """The marked crossings where they begin, numbered from the lowest rate."""
    traffic = report.traffic
    tokens = HOURS_PER_MONTH * (traffic.input_tokens + traffic.output_tokens)
    placed = []
    for crossing in _marked(report):
        rate = crossing.from_rate
        month = costs.cost(crossing.cheaper, rate)
        if month:
            placed.append((rate, month * 1_000_000 // (rate * tokens), crossing))
    placed = [p for p in placed if 10**frame.x_low <= p[0] <= 10**frame.x_high and p[1] < frame.y_high]
    placed.sort(key=lambda p: (p[0], p[2].cheaper.name, p[2].dearer.name))
    return [Marker(i, crossing, rate, cost) for i, (rate, cost, crossing) in enumerate(placed, start=1)]


def _dots(markers: Sequence[Marker], frame: Frame) -> list[str]:
    """Markers where they belong; those that would cover another stand above it, tied to their place."""
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for marker in markers:
        x, y = frame.x(marker.rate), frame.y(marker.cost)
        at = y
        while any(abs(x - other_x) < 19 and abs(at - other_y) < 19 for other_x, other_y in taken):
            at -= 19
        taken.append((x, at))
        ink = COLOURS[marker.crossing.cheaper.kind]
        if at != y:
            parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{at:.1f}" stroke="{ink}"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{ink}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{at:.1f}" r="9" fill="#ffffff" stroke="{ink}" stroke-width="2"/>')
        more = ' text-anchor="middle" font-weight="600"'
        parts.append(_text(x, at + 4, str(marker.number), size=11, fill=ink, more=more))
    return parts


def _legend(report: Report, curves: Sequence[Curve]) -> list[str]:
    parts, y = [], TOP + 6
    by_name = {entry.line.name: entry for entry in report.standings}
    for curve in sorted(curves, key=lambda curve: curve.line.basis == "marginal"):
        line, ink = curve.line, COLOURS[curve.line.kind]
        dash = ' stroke-dasharray="3 5"' if line.basis == "marginal" else ""
        ends = f'x1="{RIGHT + 18}" y1="{y - 4}" x2="{RIGHT + 44}" y2="{y - 4}"'
        parts.append(f'<line {ends} stroke="{ink}" stroke-width="2.4"{dash}/>')
        squeezed = f' textLength="{WIDTH - RIGHT - 62}" lengthAdjust="spacingAndGlyphs"' if len(line.pool) > 34 else ""
        parts.append(_text(RIGHT + 52, y, line.pool, size=11, more=f' font-weight="600"{squeezed}'))
        words = KIND_WORDS[line.kind] + (", hardware already paid" if line.basis == "marginal" else "")
        parts.append(_text(RIGHT + 52, y + 15, words, size=11, fill=QUIET))
        if not curve.points:
            note = "costs nothing more: not on this scale" if by_name[line.name].month_micro_usd == 0 else "not drawn"
        else:
            note = f"{line.pricing.status} price of {line.pricing.checked}"
        parts.append(_text(RIGHT + 52, y + 29, note, size=11, fill=QUIET))
        y += 46
    return parts


def _told(markers: Sequence[Marker], y: int) -> list[str]:
    if not markers:
        return [_text(LEFT, y, "No two of these cross: the cheaper one is so at every rate.", size=12)]
    parts = []
    for marker in markers:
        ink = COLOURS[marker.crossing.cheaper.kind]
        parts.append(
            _text(LEFT + 14, y, str(marker.number), size=12, fill=ink, more=' font-weight="700" text-anchor="end"')
        )
        parts.append(_text(LEFT + 24, y, told(marker.crossing), size=12))
        y += ROW
    return parts


def told(crossing: Crossing) -> str:
    """A crossing as a sentence without a full stop."""
    said = f"{crossing.cheaper.name} beats {crossing.dearer.name} from {crossing.from_rate:,} requests/hour"
    if crossing.utilisation_ppm is not None and crossing.utilised is not None:
        whose = "" if crossing.utilised == crossing.cheaper else f" of {crossing.utilised.name}"
        said += f" (utilisation {percent(crossing.utilisation_ppm)}{whose})"
    if crossing.until_rate is not None:
        return f"{said}, no longer after {crossing.until_rate:,}"
    if crossing.for_good_rate != crossing.from_rate:
        said += f", for good from {crossing.for_good_rate:,}"
    return said


def percent(ppm: int) -> str:
    """Parts per million in percent with one decimal, rounded down; what would be zero is said to be below 0.1."""
    if 0 < ppm < 1_000:
        return "below 0.1 %"
    return f"{ppm // 10_000}.{ppm // 1_000 % 10} %"


def _footnote(report: Report, fleet_revision: str) -> str:
    prices = [line.pricing for line in report.contenders]
    dates = sorted(pricing.checked for pricing in prices)
    counts = {status: sum(p.status == status for p in prices) for status in ("contract", "list", "assumed")}
    kinds = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return (
        f"Prices: {kinds}; checked {span}. Fleet {fleet_revision}. A provisioned replica costs its hours, used or not."
    )
