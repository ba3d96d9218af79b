"""The facts in force: read from their source at intervals, never on the path of a decision.

Rules: facts that cannot be read keep the last good ones for ``stale_after_ms`` and no longer; facts that say that they
were observed longer ago than ``max_age_ms`` do not count either, since a monitor that died leaves a readable file. Then
every decision is an error: old headroom is no fact. The bytes that decisions name are kept with them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Final

import orjson

from audit.record import Blob
from policyd.core.facts import Facts, facts_from_json
from policyd.errors import ConfigError, FactsUnavailable
from policyd.ports import FactSource
from policyd.services.clock import Now, from_rfc3339, now_us

_log: Final = logging.getLogger(__name__)


@dataclass
class FactsHolder:
    """Holds what a source said last. ``refresh`` reads it; ``keep_fresh`` does so until cancelled."""

    source: FactSource
    refresh_ms: int = 1_000
    stale_after_ms: int = 60_000
    max_age_ms: int | None = None
    now: Now = now_us
    _current: tuple[Facts, Blob] | None = None
    _read_at: float = field(default=0.0)
    _fault: str | None = None

    @property
    def fault(self) -> str | None:
        """Why the last reading failed, or None."""
        return self._fault

    @property
    def read_age_s(self) -> float | None:
        """Time since the source was last read; None before that."""
        return None if self._current is None else time.monotonic() - self._read_at

    @property
    def observed_age_s(self) -> float | None:
        """Time since what the source says was observed; None when it does not say when."""
        observed_at = None if self._current is None else self._current[0].observed_at
        return None if observed_at is None else (self.now() - from_rfc3339(observed_at)) / 1_000_000

    def refresh(self) -> None:
        """Read the source. A failure is remembered and raised only when there is nothing to fall back on."""
        try:
            content = orjson.dumps(self.source.read(), option=orjson.OPT_SORT_KEYS)
            blob = Blob.of("facts", content)
            if self._current is None or self._current[1].digest != blob.digest:
                self._current = (facts_from_json(orjson.loads(content), blob.digest), blob)
        except ConfigError as error:
            if self._fault is None:
                _log.error("facts cannot be read: %s", error)
            self._fault = error.detail
            if self._current is None:
                raise
            return
        self._fault = None
        self._read_at = time.monotonic()

    async def keep_fresh(self) -> None:
        """Refresh for ever, in a thread: a source may be a slow disk. No fault of a source ends it."""
        while True:
            await asyncio.sleep(self.refresh_ms / 1_000)
            try:
                await asyncio.to_thread(self.refresh)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next reading may succeed
                if self._fault is None:
                    _log.exception("the source of facts failed")
                self._fault = repr(error)

    def current(self) -> tuple[Facts, Blob]:
        """The facts and their bytes. Raises ``FactsUnavailable`` when none were ever read or they are too old."""
        if self._current is None:
            raise FactsUnavailable("no facts were read yet")
        age_ms = (time.monotonic() - self._read_at) * 1_000
        if age_ms > self.stale_after_ms + self.refresh_ms:
            raise FactsUnavailable(f"the facts are {int(age_ms)} ms old and cannot be read anew: {self._fault}")
        self._refuse_old(self._current[0].observed_at)
        return self._current

    def _refuse_old(self, observed_at: str | None) -> None:
        """Declared capacity was observed by nobody (None) and has no age."""
        if self.max_age_ms is None or observed_at is None:
            return
        age_ms = (self.now() - from_rfc3339(observed_at)) // 1_000
        if age_ms > self.max_age_ms:
            raise FactsUnavailable(
                f"the facts were observed {age_ms} ms ago, at {observed_at}",
                remedy="see that whatever writes the facts still runs, or raise facts.max_age_ms",
            )
