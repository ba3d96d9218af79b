"""The picture of a burn-down, as SVG: what was spent of one limit over its window, the limit, and where it leads.

Rules: pure and deterministic; every text is escaped; a dashed line is a projection and says so; the colours are those
of ``policyd.services.chart``, told apart by their kind of line as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

from policyd.services.chart import FONT, GRID, INK, QUIET
from policyd.services.events import amount

WIDTH: Final = 960
HEIGHT: Final = 460
LEFT: Final = 96
RIGHT: Final = 900
TOP: Final = 86
BOTTOM: Final = 390
SPENT: Final = "#0072b2"
LIMIT: Final = "#d55e00"
STEPS_Y: Final = 4
STEPS_X: Final = 6


def burn_down_picture(report: Mapping[str, Any], burned: Mapping[str, Any]) -> str:
    """One limit of an account as one SVG document."""
    start, now = _seconds(burned["starts_at"]), _seconds(report["time"])
    end: float = _seconds(burned["ends_at"]) if burned["ends_at"] else now
    points = [(_seconds(at), spent) for at, spent in burned["points"]]
    led_to = _leads_to(points, start, now, end)
    step = _step(max(burned["limit"], led_to, *(spent for _, spent in points), 1))
    top = step * STEPS_Y

    def x(second: float) -> float:
        return LEFT + (second - start) / max(1.0, end - start) * (RIGHT - LEFT)

    def y(value: int) -> float:
        return BOTTOM - value / top * (BOTTOM - TOP)

    spent_of = "USD" if burned["unit"] == "micro_usd" else burned["unit"].replace("_", " ")
    title = f"{report['path']}: {spent_of} spent, {burned['window']}"
    steps = " ".join(f"{x(at):.1f},{y(spent):.1f}" for at, spent in points)
    last, limit_y = points[-1][1], y(burned["limit"])
    projected = f'<line x1="{x(now):.1f}" y1="{y(last):.1f}" x2="{x(end):.1f}" y2="{y(led_to):.1f}"'
    said = f"{amount(last, burned['unit'])} of {amount(burned['limit'], burned['unit'])} spent"
    if end > now:
        said += f"; dashed: at the pace so far {amount(led_to, burned['unit'])} at the end of the window"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label={quoteattr(title)} font-family="{FONT}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 34, title, size=20, more=' font-weight="600"'),
        _text(LEFT, 57, said, size=13, fill=QUIET),
        *(_across(y(step * nth), amount(step * nth, burned["unit"])) for nth in range(STEPS_Y + 1)),
        *(_down(x(at), at) for at in _marks(start, end)),
        f'<line x1="{LEFT}" y1="{limit_y:.1f}" x2="{RIGHT}" y2="{limit_y:.1f}" stroke="{LIMIT}" stroke-width="2" '
        'stroke-dasharray="10 4"/>',
        _text(RIGHT, limit_y - 6, "limit", size=12, fill=LIMIT, more=' text-anchor="end" font-weight="600"'),
        f'<polyline points="{steps}" fill="none" stroke="{SPENT}" stroke-width="2.6" stroke-linejoin="round"/>',
        f'<circle cx="{x(now):.1f}" cy="{y(last):.1f}" r="4" fill="{SPENT}"/>',
        f'{projected} stroke="{SPENT}" stroke-width="1.8" stroke-dasharray="3 5"/>' if end > now else "",
        _text(LEFT, HEIGHT - 18, f"As of {report['time'][:19].replace('T', ' ')} UTC", size=11, fill=QUIET),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _step(highest: int) -> int:
    """The distance of the lines across: of two digits, the second a 0 or a 5, the smallest that reaches the top."""
    least = -(-highest // STEPS_Y)
    unit: int = 10 ** max(0, len(str(least)) - 2)
    in_units = -(-least // unit)
    return unit * (in_units if in_units < 10 else -(-in_units // 5) * 5)


def _leads_to(points: Sequence[tuple[float, int]], start: float, now: float, end: float) -> int:
    """What is spent at the end, if it goes on as it did since the window began."""
    last = points[-1][1]
    return last if now <= start else round(last * (end - start) / (now - start))


def _marks(start: float, end: float) -> list[float]:
    return [start + (end - start) * nth / STEPS_X for nth in range(STEPS_X + 1)]


def _across(y: float, words: str) -> str:
    line = f'<line x1="{LEFT}" y1="{y:.1f}" x2="{RIGHT}" y2="{y:.1f}" stroke="{GRID}"/>'
    return line + _text(LEFT - 10, y + 4, words, size=11, fill=QUIET, more=' text-anchor="end"')


def _down(x: float, second: float) -> str:
    words = datetime.fromtimestamp(second, UTC).strftime("%d %b %H:%M")
    return _text(x, BOTTOM + 22, words, size=11, fill=QUIET, more=' text-anchor="middle"')


def _text(x: float, y: float, text: str, *, size: int, fill: str = INK, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}"{more}>{escape(text)}</text>'


def _seconds(written: str) -> float:
    return datetime.fromisoformat(written).timestamp()
