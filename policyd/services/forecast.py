"""How long what is handed over now is likely to wait: what the service goes by before it takes more than it can do.

Rules: nothing under way means no wait, whatever came before, so that one request always tries; what is under way waits
at least as long as it has waited already, so that a disk that hangs is seen while it hangs. One clock is read, nothing
is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

WEIGHT: Final = 0.25
"""Of the newest duration in the average: four quick ones forget a slow one."""


class Forecast:
    """Of one queue whose work is done in the order of coming, one batch at a time."""

    __slots__ = ("_began_s", "_now_s", "_usual_s")

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._began_s: float | None = None
        self._usual_s = 0.0

    def begun(self) -> None:
        """A batch is under way."""
        self._began_s = self._now_s()

    def ended(self) -> float:
        """It is done; how long it took, in seconds."""
        took_s = self._now_s() - (self._began_s if self._began_s is not None else self._now_s())
        self._began_s = None
        self._usual_s += WEIGHT * (took_s - self._usual_s)
        return took_s

    def wait_ms(self, batches_ahead: int) -> float:
        """Of what comes now, behind the batch under way and so many others, its own among them."""
        if self._began_s is None:
            return 0.0
        return 1_000 * (max(self._now_s() - self._began_s, self._usual_s) + batches_ahead * self._usual_s)
