"""Windows of a budget, and the time that they are counted in. Pure: clocks and zones are arguments.

    wall clock, monotonic clock ──► LedgerTime ──► window_of(window, zone) ──► [start, end)

Rules: the windows of a zone cut time without gap and overlap, whatever the zone's clocks do: a day of 23 or 25 hours is
one day, and an hour ends early where the clocks are set. Ledger time never goes back; it runs after a wall clock that
is ahead at most ``CATCH_UP`` faster than the monotonic clock, so that a clock set forward opens no new budget.
It refuses: a window that does not exist.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

Window = Literal["hour", "day", "week", "month", "total", "now"]
"""``total`` never ends. ``now`` is that of gauges: what is in flight, whenever it began."""

WINDOWS: Final[tuple[Window, ...]] = ("hour", "day", "week", "month", "total", "now")
CATCH_UP: Final = 10
"""Ledger time that is behind gains one part in this many."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR_US: Final = 3_600_000_000
_MICROSECOND: Final = timedelta(microseconds=1)


class Span(NamedTuple):
    """From ``start_us`` up to but without ``end_us``, microseconds since 1970; an end that is None never comes."""

    start_us: int
    end_us: int | None

    def holds(self, time_us: int) -> bool:
        """Whether the moment lies in it."""
        return self.start_us <= time_us and (self.end_us is None or time_us < self.end_us)


def window_of(window: Window, zone: ZoneInfo, time_us: int) -> Span:
    """The window that holds a moment. Raises ValueError for a window that does not exist."""
    if window in ("total", "now"):
        return Span(0, None)
    local = _local(zone, time_us)
    if window == "hour":
        return _hour(zone, local, time_us)
    day = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if window == "day":
        return Span(_us(day), _us(day + timedelta(days=1)))
    if window == "week":
        monday = day - timedelta(days=day.weekday())
        return Span(_us(monday), _us(monday + timedelta(days=7)))
    if window == "month":
        first = day.replace(day=1)
        return Span(_us(first), _us((first + timedelta(days=31)).replace(day=1)))
    raise ValueError(f"there is no window {window!r}: one of {', '.join(WINDOWS)}")


def _hour(zone: ZoneInfo, local: datetime, time_us: int) -> Span:
    into_us = (local.minute * 60 + local.second) * 1_000_000 + local.microsecond
    start_us, offset = time_us - into_us, local.utcoffset()
    end_us = start_us + _HOUR_US
    if _local(zone, start_us).utcoffset() != offset:
        start_us = _changed(zone, start_us, time_us)
    if _local(zone, end_us - 1).utcoffset() != offset:
        end_us = _changed(zone, time_us, end_us - 1)
    return Span(start_us, end_us)


def _changed(zone: ZoneInfo, before_us: int, after_us: int) -> int:
    """The first moment with the offset of ``after_us``; the offset changes once between the two."""
    wanted = _local(zone, after_us).utcoffset()
    while after_us - before_us > 1:
        middle_us = (before_us + after_us) // 2
        if _local(zone, middle_us).utcoffset() == wanted:
            after_us = middle_us
        else:
            before_us = middle_us
    return after_us


def _local(zone: ZoneInfo, time_us: int) -> datetime:
    return (_EPOCH + timedelta(microseconds=time_us)).astimezone(zone)


def _us(local: datetime) -> int:
    return (local.astimezone(UTC) - _EPOCH) // _MICROSECOND


class LedgerTime:
    """The clock of a ledger: ``last_us`` is the latest moment it has given, ``monotonic_us`` when that was."""

    def __init__(self, last_us: int, monotonic_us: int) -> None:
        self.last_us = last_us
        self._monotonic_us = monotonic_us

    def advance(self, wall_us: int, monotonic_us: int) -> int:
        """The ledger time now: the wall clock's, as far as it may follow."""
        elapsed_us = max(0, monotonic_us - self._monotonic_us)
        furthest_us = self.last_us + elapsed_us + elapsed_us // CATCH_UP
        self.last_us = max(self.last_us, min(wall_us, furthest_us))
        self._monotonic_us = max(self._monotonic_us, monotonic_us)
        return self.last_us
