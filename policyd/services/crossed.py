"""Which budget thresholds accounts have crossed, and which limits are set, as the ledger says.

Rules: only spending counts, never what is held; the newest word of the ledger is at most ``interval_ms`` old; when it
cannot be read the last word stands, and before the first there is none, so that a missing fact stays a refusal. Exact
limits are kept by the reservation itself and never by this: a limit that somebody has set for what had none is charged
once this has heard of it, and whatever else is set counts at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from policyd.core.facts import threshold_percent
from policyd.core.snapshot import Snapshot
from policyd.errors import PolicydError
from policyd.ledger.changes import LimitKey, SetLimit
from policyd.ledger.chart import counting_of
from policyd.ledger.rules import GAUGES, Account
from policyd.services.clock import Now
from policyd.services.ledger_time import LedgerNow

INTERVAL_MS: Final = 1_000
_log: Final = logging.getLogger(__name__)


class Accounts(Protocol):
    """The reading side of the ledger."""

    async def accounts(self, paths: Sequence[str], time_us: int) -> list[Account]: ...

    async def set_limits(self) -> tuple[int, Mapping[LimitKey, SetLimit]]: ...


class SnapshotNow(Protocol):
    """The live snapshot."""

    def current(self) -> Snapshot: ...


class Crossed:
    """The highest threshold that each account has crossed."""

    def __init__(
        self,
        reader: Accounts,
        snapshots: SnapshotNow,
        now: Now | None = None,
        beside: Callable[[], Sequence[Snapshot]] = tuple,
    ) -> None:
        self._reader = reader
        self._beside = beside
        self._snapshots = snapshots
        self._now = now or LedgerNow()
        self._percent: dict[str, int] | None = None
        self._set: tuple[int, Mapping[LimitKey, SetLimit]] = (0, {})

    def limits(self) -> Mapping[LimitKey, SetLimit]:
        """What somebody has set beside the fleet: the same object until that changes."""
        return self._set[1]

    def percent(self, levels: Sequence[str]) -> int | None:
        """The highest of these accounts; None while the ledger has not been read."""
        known = self._percent
        return None if known is None else max((known.get(path, 0) for path in levels), default=0)

    async def refresh(self) -> None:
        """Read the ledger. Raises ``PolicydError``."""
        found = await self._reader.set_limits()
        if found[0] > self._set[0]:
            self._set = found
        # What is decided on a fleet in canary may be charged to accounts that the live one does not have.
        fleets = [each.fleet for each in (self._snapshots.current(), *self._beside())]
        paths = list(dict.fromkeys(path for fleet in fleets for path in counting_of(fleet, self.limits())))
        accounts = await self._reader.accounts(paths, self._now()) if paths else []
        percent: dict[str, int] = {}
        for account in accounts:
            if account.key.unit not in GAUGES and account.spent:
                crossed = threshold_percent(account.spent, account.limit)
                percent[account.key.path] = max(percent.get(account.key.path, 0), crossed)
        self._percent = percent

    async def keep_fresh(self) -> None:
        """``refresh`` each interval, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_MS / 1_000)
            try:
                await self.refresh()
            except PolicydError as error:
                _log.warning("the last word of the ledger on thresholds stands: %s", error.detail)
