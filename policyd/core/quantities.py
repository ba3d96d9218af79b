"""Numbers of the domain: micro-USD, tokens, milliseconds, parts per million. Integers only.

Rules: money rounds up (a cost is never understated), sizes round up to their class, no float enters or leaves.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

MAX_SAFE: Final = 2**53 - 1
"""Largest integer that JSON carries between all languages (RFC 8259, section 6)."""

PPM: Final = 1_000_000
MS_PER_HOUR: Final = 3_600_000
MICRO_PER_UNIT: Final = 1_000_000
NANO_PER_MICRO: Final = 1_000

SIZE_CLASSES: Final = (256, 1_024, 4_096, 16_384, 32_768, 65_536, 131_072, 262_144, 1_048_576, 4_194_304)
"""Token counts reach policies only as the smallest of these that is not smaller."""

RATE_CLASSES: Final = (0, 1, 10, 60, 600, 3_600, 36_000, 360_000, 3_600_000, 36_000_000)
"""Requests per hour reach policies only as the smallest of these that is not smaller."""


def ceil_div(numerator: int, denominator: int) -> int:
    """``numerator / denominator`` rounded up; the denominator is positive."""
    return -(-numerator // denominator)


def size_class(value: int, classes: tuple[int, ...] = SIZE_CLASSES) -> int:
    """The smallest class that holds ``value``; beyond the last one, ``MAX_SAFE`` (which no rule mistakes for small)."""
    index = bisect_left(classes, value)
    return classes[index] if index < len(classes) else MAX_SAFE
