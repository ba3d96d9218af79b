"""Refusals of identity in the log: who was turned away, for what, and how often.

    first of its kind ──► an entry at once, and a count begins
    the same again    ──► counted; when the interval ends, one entry with the count

Rules: a flood of refusals is not a flood of entries; nothing is lost but the details of the repeated ones; what a
caller showed as proof is never recorded; a log that does not take the entry changes nothing about the refusal, which
stands, and the fault is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from audit.record import Blob, Entry, Search, encode, personal
from audit.store import Position
from policyd.errors import NotFound, PolicydError
from policyd.services.clock import Now, now_us, random_16, rfc3339, uuid7

KINDS_MAX: Final = 1_024
OTHERS: Final = ("", "others")
_log: Final = logging.getLogger(__name__)


class Log(Protocol):
    """The writing side of the decision log."""

    async def submit(self, entry: Entry, blobs: Sequence[Blob] = ()) -> Position: ...


@dataclass(slots=True)
class _Repeated:
    since_us: int
    detail: str
    count: int = 0


@dataclass
class Refusals:
    """Records refusals. ``flush`` writes the counts of repeated ones; call it each ``interval_ms`` and at the end."""

    log: Log
    interval_ms: int = 10_000
    now: Now = now_us
    _repeated: dict[tuple[str, str], _Repeated] = field(default_factory=dict)

    async def record(self, error: PolicydError, who: str, request_id: str) -> None:
        """Record that ``who`` (a principal, or an address when nobody is proved) was refused with this error."""
        key = (error.code, who)
        detail = (isinstance(error, NotFound) and error.truth) or error.detail
        known = self._repeated.get(key)
        if known is None and len(self._repeated) >= KINDS_MAX:
            known = self._repeated.setdefault(OTHERS, _Repeated(self.now(), "of many different callers"))
        if known is not None:
            known.count += 1
            return
        self._repeated[key] = _Repeated(self.now(), detail)
        await self._write(error.code, who, detail, request_id=request_id)

    async def flush(self) -> None:
        """Write the counts, and begin anew."""
        counted, self._repeated = self._repeated, {}
        for (code, who), repeated in counted.items():
            if repeated.count:
                told = {"count": repeated.count, "since": rfc3339(repeated.since_us)}
                await self._write(code or "identity", who, repeated.detail, **told)

    async def keep_flushing(self) -> None:
        """``flush`` each interval, until cancelled."""
        while True:
            await asyncio.sleep(self.interval_ms / 1_000)
            await self.flush()

    async def _write(self, code: str, who: str, detail: str, **told: Any) -> None:
        time_us = self.now()
        entry_id = uuid7(time_us)
        body = {
            "v": 2,
            "kind": "refusal",
            "id": entry_id,
            "time": rfc3339(time_us),
            "outcome": "error",
            "code": code,
            **told,
        }
        about = (personal(who[:256], {"principal": who, "detail": detail[:2_000]}),)
        search = Search(
            principal=who[:256], outcome="error", denied_by=code, mode="enforce", request_id=told.get("request_id")
        )
        try:
            await self.log.submit(Entry("refusal", entry_id, time_us, encode(body, random_16()), search, (), about))
        except PolicydError as fault:
            _log.error("a refusal (%s) could not be recorded: %s", code, fault.detail)


async def ended(task: asyncio.Task[None], refusals: Refusals) -> None:
    """Stop the flushing task and write what is still counted."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await refusals.flush()
