"""Whose turn it is for work that takes long beside the decisions: simulations and comparisons.

    asked ──a place free, for all and for this caller──► in progress ──its turn──► one piece of work ──► its next turn …

Rules: a caller, and a tenant through all its callers, holds ``per_caller_max`` places at most, so that the others find
some; one piece of work is done at a time, and who has done one waits behind everybody who waits already, so that a long
simulation only slows the others down. It refuses: to let anybody wait outside, without a bound.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from policyd.core.principal import Principal
from policyd.errors import LimitReached, Overloaded


class Turns:
    """The places of one kind of work, and the turn, for one event loop."""

    def __init__(self, what: str, in_progress_max: int, per_caller_max: int) -> None:
        self._what = what
        self._in_progress_max = in_progress_max
        self._per_caller_max = per_caller_max
        self._callers: Counter[tuple[str, str]] = Counter()
        self._taken = 0
        # asyncio's lock wakes who has waited longest, and lets nobody pass who comes in between.
        self.turn = asyncio.Lock()

    @contextmanager
    def place(self, principal: Principal) -> Generator[None, None, None]:
        """Hold a place. Raises ``LimitReached`` when the caller has its part, ``Overloaded`` when all are taken."""
        names = [("identity", principal.name), *(("tenant", name) for name in sorted(principal.tenants or ()))]
        for kind, name in names:
            if self._callers[kind, name] >= self._per_caller_max:
                raise LimitReached(
                    f"as many {self._what} are in progress for {kind} {name!r} as simulation.per_caller_max admits",
                    remedy="wait for their answers; the limit is simulation.per_caller_max",
                )
        if self._taken >= self._in_progress_max:
            raise Overloaded(f"as many {self._what} are in progress as simulation.in_progress_max admits")
        self._taken += 1
        self._callers.update(names)
        try:
            yield
        finally:
            self._taken -= 1
            self._callers.subtract(names)
            self._callers = +self._callers
