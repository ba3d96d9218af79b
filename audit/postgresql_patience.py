"""How long a statement waits for PostgreSQL: a server that is silent and ends no connection holds nobody.

    statement ──an answer────────────────────► as always
              ──its limit or patience is over──► the connection is closed, and that is an error

Rules: what was sent may have been done: a connection that was given up is never used again, and whoever sent a commit
finds out by the ids of its entries; patience may end in another thread, while a statement waits.
It refuses: to wait without a bound.
"""

from __future__ import annotations

import time
from typing import Any, Final, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.waiting import Ready

WAKE_S: Final = 0.1
"""How often a statement that waits looks whether it may go on."""
OPENING_MAX_S: Final = 600.0
"""For what is done while a log is opened: a migration takes as long as the log is large."""
RV = TypeVar("RV")


class Patience:
    """Until when the connections of one store may wait, whatever their limits say."""

    def __init__(self) -> None:
        self.ends_s = float("inf")

    def end_after(self, seconds: float | None) -> None:
        """No statement waits longer than this from now on; None: as long as its limit."""
        self.ends_s = float("inf") if seconds is None else time.monotonic() + seconds


class PatientConnection(psycopg.Connection[Any]):
    """A connection whose statements end. ``limit_s`` is for each of them."""

    limit_s = OPENING_MAX_S
    patience = Patience()

    def wait(self, gen: PQGen[RV], interval: float = WAKE_S, timeout: float | None = None) -> RV:
        """As in the driver, with an end. Raises ``OperationalError`` when it came."""
        try:
            return super().wait(self._until(gen, time.monotonic() + self.limit_s), interval, timeout)
        except psycopg.errors.ConnectionTimeout:
            self.close()
            raise

    def _until(self, gen: PQGen[RV], ends_s: float) -> PQGen[RV]:
        """The same steps; each time that nothing has come, a look at the clock."""
        try:
            wanted = next(gen)
            while True:
                came = yield wanted
                if came == Ready.NONE and time.monotonic() > min(ends_s, self.patience.ends_s):
                    gen.close()
                    raise psycopg.errors.ConnectionTimeout("the server does not answer; the connection was given up")
                wanted = gen.send(came)
        except StopIteration as ended:
            found: RV = ended.value
            return found
