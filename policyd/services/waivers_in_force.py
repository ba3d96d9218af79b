"""The waivers that decisions of this process stand on: the newest word of the database, at most a second old.

Rules: the word is read each ``INTERVAL_MS``, by every process for itself, so a waiver counts everywhere within that
time and one read; whether one has ended is compared with the time of each decision, so an expired one never counts,
however old the word is. When the database cannot be read, the last word stands: all that can happen to a waiver is that
it ends. A tenant without one costs a decision one look into a mapping.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import Connection

from audit.personal import ERASED, UNREADABLE
from audit.query import Record
from policyd.core.waivers import Waiver
from policyd.errors import NotFound, PolicydError
from policyd.services.clock import Now, now_us, rfc3339
from policyd.services.waiver_rows import Row, rows_in_force

T = TypeVar("T")
INTERVAL_MS: Final = 1_000
NAMES_EVERY_US: Final = 60_000_000
"""How often names are read again, since a person may have been erased."""
_log: Final = logging.getLogger(__name__)


class Reader(Protocol):
    """The reading side of the log, as far as this needs it."""

    async def read(self, read: Callable[[Connection], T]) -> T: ...

    async def by_id(self, entry_id: str) -> Record: ...


class WaiversNow(Protocol):
    """What decisions ask."""

    def of(self, tenant: str) -> Sequence[Waiver]: ...


class NoWaivers:
    """For where there is no log to read them from."""

    def of(self, tenant: str) -> Sequence[Waiver]:
        """None."""
        return ()


class WaiversInForce:
    """What is in force, by tenant."""

    def __init__(self, reader: Reader, now: Now = now_us) -> None:
        self._reader = reader
        self._now = now
        self._by_tenant: Mapping[str, tuple[Waiver, ...]] = {}
        self._names: dict[str, str | None] = {}
        self._named_us = 0

    def of(self, tenant: str) -> Sequence[Waiver]:
        """Those of a tenant; some may have ended meanwhile."""
        return self._by_tenant.get(tenant, ())

    def in_force(self) -> list[Waiver]:
        """All that have not ended yet."""
        now_us = self._now()
        return [waiver for found in self._by_tenant.values() for waiver in found if waiver.expires_us > now_us]

    async def refresh(self) -> None:
        """Read them. Raises ``PolicydError``."""
        now_us = self._now()
        rows = await self._reader.read(lambda connection: rows_in_force(connection, now_us))
        if now_us - self._named_us >= NAMES_EVERY_US:
            self._names, self._named_us = {}, now_us
        by_tenant: dict[str, tuple[Waiver, ...]] = {}
        for row in rows:
            waiver = replace(row.waiver, approver=await self._name(row))
            by_tenant[waiver.tenant] = (*by_tenant.get(waiver.tenant, ()), waiver)
        self._tell({waiver.id for found in self._by_tenant.values() for waiver in found}, by_tenant)
        self._by_tenant = by_tenant
        self._names = {row.approval: self._names[row.approval] for row in rows}

    async def keep_fresh(self) -> None:
        """``refresh`` each interval, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_MS / 1_000)
            try:
                await self.refresh()
            except PolicydError as error:
                _log.warning("the last word on waivers stands: %s", error.detail)

    async def _name(self, row: Row) -> str | None:
        if row.approval not in self._names:
            try:
                body: Mapping[str, Any] = (await self._reader.by_id(row.approval)).document()
            except NotFound:
                body = {}  # retention removes bodies of entries, and the waiver counts all the same
            name = body.get("principal")
            self._names[row.approval] = None if name in (ERASED, UNREADABLE) else name
        return self._names[row.approval]

    def _tell(self, known: set[str], found: Mapping[str, Sequence[Waiver]]) -> None:
        for waiver in (each for several in found.values() for each in several):
            if waiver.kind == "break_glass" and waiver.id not in known:
                _log.warning(
                    "the glass is broken: %s lifts soft rules of %s until %s (%s)",
                    waiver.approver or "somebody",
                    waiver.tenant,
                    rfc3339(waiver.expires_us),
                    waiver.id,
                )
