"""What one principal may ask at once and for how long, so that no caller takes the service from the others.

Rules: a principal over its limit is refused and its other requests go on; the books are bounded, and who has been quiet
long enough to have its whole burst again is forgotten.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from policyd.errors import LimitReached, Overloaded

PRINCIPALS_MAX = 10_000


@dataclass(slots=True)
class _Book:
    left: float
    filled_at: float
    in_flight: int = 0


@dataclass
class Limiter:
    """Counts requests by principal. ``now_s`` is a clock that never goes back."""

    in_flight_max: int
    per_s: int
    burst: int
    now_s: Callable[[], float] = time.monotonic
    _books: OrderedDict[str, _Book] = field(default_factory=OrderedDict)

    def enter(self, name: str) -> None:
        """Count a request that begins. Raises ``LimitReached``, and ``Overloaded`` when too many principals ask."""
        now = self.now_s()
        book = self._books.get(name)
        if book is None:
            book = self._opened(name, now)
        else:
            self._books.move_to_end(name)
        book.left = min(float(self.burst), book.left + (now - book.filled_at) * self.per_s)
        book.filled_at = now
        if book.in_flight >= self.in_flight_max:
            raise LimitReached(f"{book.in_flight} requests of this identity are in progress, the most that it may have")
        if book.left < 1:
            raise LimitReached(f"this identity asks more than {self.per_s} times a second")
        book.left -= 1
        book.in_flight += 1

    def leave(self, name: str) -> None:
        """Count a request that has ended; ``enter`` has returned for it before."""
        self._books[name].in_flight -= 1

    def _opened(self, name: str, now: float) -> _Book:
        if len(self._books) >= PRINCIPALS_MAX:
            self._forget(now)
        book = self._books[name] = _Book(float(self.burst), now)
        return book

    def _forget(self, now: float) -> None:
        """Make room: the principal that has been quiet longest goes, unless it still has something to be held to."""
        for name, book in self._books.items():
            refilled = book.left + (now - book.filled_at) * self.per_s >= self.burst
            if not book.in_flight and refilled:
                del self._books[name]
                return
        raise Overloaded("too many different identities ask at once")
