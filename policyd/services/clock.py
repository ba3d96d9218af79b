"""Time and identifiers: the only place in the services that asks the machine for them.

Rules: times are UTC; a UUIDv7 (RFC 9562, section 5.7) carries milliseconds and 74 random bits; within one process later
identifiers are never smaller than earlier ones as far as the millisecond tells.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

Now = Callable[[], int]
"""Microseconds since 1970, UTC."""


DAY_US: Final = 86_400_000_000
"""A day of UTC as the machine counts it, without leap seconds."""
_RANDOM_BYTES: Final = 16
_DRAWN: Final = 256
_random: Final[list[bytes]] = []
# A child that was forked would otherwise repeat what its parent draws.
os.register_at_fork(after_in_child=_random.clear)


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1_000


def random_16() -> bytes:
    """16 bytes of the machine's randomness, each used once.

    Many are asked for at once: asking lets go of the interpreter lock, and a decision would wait for whoever takes it.
    """
    try:
        return _random.pop()
    except IndexError:
        block = os.urandom(_RANDOM_BYTES * _DRAWN)
        found = [block[start : start + _RANDOM_BYTES] for start in range(0, len(block), _RANDOM_BYTES)]
        _random.extend(found[1:])
        return found[0]


def uuid7(time_us: int) -> str:
    """A UUIDv7 for a time in microseconds, as lower-case text."""
    moment, drawn = f"{time_us // 1_000:012x}", random_16().hex()
    return f"{moment[:8]}-{moment[8:]}-7{drawn[:3]}-{_VARIANT[drawn[3]]}{drawn[4:7]}-{drawn[7:19]}"


_VARIANT: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
"""Two random bits behind the two that say which kind of identifier it is."""


def rfc3339(time_us: int) -> str:
    """``2026-11-22T10:00:00.000000Z``."""
    return _second(time_us // 1_000_000) + f".{time_us % 1_000_000:06d}Z"


@lru_cache(maxsize=1_024)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def day(time_us: int) -> str:
    """The UTC day as ISO 8601."""
    return _second(time_us // 1_000_000)[:10]


@lru_cache(maxsize=256)
def _hour_of_week(zone: str, quarter: int) -> int:
    local = datetime.fromtimestamp(quarter * 900, UTC).astimezone(ZoneInfo(zone))
    return local.weekday() * 24 + local.hour


def hour_of_week(zone: str, time_us: int) -> int:
    """Hours since Monday 00:00 in the zone, 0..167. Zones are offset from UTC by whole quarters of an hour."""
    return _hour_of_week(zone, time_us // 900_000_000)


def next_boundary_us(time_us: int, *, quarterly: bool) -> int:
    """The next moment at which a verdict may change by itself: midnight UTC, or a quarter hour when hours are read."""
    boundary = (time_us // DAY_US + 1) * DAY_US
    return min(boundary, (time_us // 900_000_000 + 1) * 900_000_000) if quarterly else boundary


def from_rfc3339(text: str) -> int:
    """Microseconds since 1970 of a time with a zone. Raises ValueError for anything else."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone")
    return int((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
