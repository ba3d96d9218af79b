"""Ledger time for whoever only reads: which window of a budget is the present one.

Rules: it begins with the machine's clock, as the ledger does, and follows that only as the ledger does; a clock that is
set forward under a server shows no window that the ledger has not opened.
"""

from __future__ import annotations

from policyd.ledger.store import Clock, machine_clock
from policyd.ledger.windows import LedgerTime


class LedgerNow:
    """A clock for readers, made when they start."""

    def __init__(self, clock: Clock = machine_clock) -> None:
        self._clock = clock
        self._time = LedgerTime(*clock())

    def __call__(self) -> int:
        """Microseconds since 1970, UTC."""
        return self._time.advance(*self._clock())
