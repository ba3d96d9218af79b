"""Reload: both trees read again, built aside, warmed and swapped in at once; a tree that fails changes nothing.

    asked ──► read both ──► build aside ──► evaluate the recent classes ──► record, swap ──► done
                  └──────────────┴─────── a fault: the last good pair goes on, and ``fault`` says why

Rules: one reload at a time; one that is asked for meanwhile follows once, however many asked; files are read and parsed
beside the event loop; warming has a limit in classes and in time, and what it cannot make is made when it is asked for;
trees that are live already are left alone. It never raises for a tree: who asked with a signal cannot be answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from policyd.core.fleet import Fleet
from policyd.core.snapshot import Snapshot
from policyd.errors import PolicydError
from policyd.ports import PolicyTree
from policyd.services.activation import Activation
from policyd.services.clock import now_us, rfc3339
from policyd.services.decisions import DecisionService

WARM_AT_ONCE: Final = 4
_log: Final = logging.getLogger(__name__)


@dataclass
class Reload:
    """Reloads on demand. ``read`` gives both trees as they are on disk; ``swapped`` is told right after a swap."""

    activation: Activation
    decisions: DecisionService
    read: Callable[[], tuple[PolicyTree, Fleet]]
    swapped: Callable[[Fleet], None]
    settled: Callable[[PolicydError | None], bool] = lambda fault: False
    """Told what became of each pair; says whether another one is to be tried."""
    warm_classes_max: int = 256
    warm_wait_ms: int = 5_000
    fault: str | None = None
    """Why the last reload changed nothing, for a person; None after one that went well."""
    count: int = 0
    """Reloads that have ended, whichever way."""
    _running: asyncio.Task[None] | None = None
    _again: bool = False

    def ask(self) -> asyncio.Task[None]:
        """Reload soon; a reload that is under way is followed by another, since files may have changed behind it."""
        if self._running is not None and not self._running.done():
            self._again = True
            return self._running
        self._running = asyncio.create_task(self._run())
        return self._running

    def look(self) -> None:
        """Ask without waiting."""
        self.ask()

    async def _run(self) -> None:
        while True:
            self._again = False
            await self._once()
            self.count += 1
            if not self._again:
                return

    async def _once(self) -> None:
        try:
            tree, fleet = await asyncio.to_thread(self.read)
            before = self.activation.current()
            if _same(before, tree, fleet):
                _log.info("reload: both trees are live already")
            else:
                snapshot = await self.activation.activate(tree, fleet, self.warm, self.swapped)
                # Requests in progress may still look for sheets of the pair before; those before it are done.
                self.decisions.book.keep(*self.activation.kept())
                _log.warning("reload: %s and %s are live", snapshot.policies.digest, snapshot.fleet.digest)
        except PolicydError as error:
            self._refused(error.detail)
            self._again = self.settled(error) or self._again
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the last good pair must go on and somebody be told
            _log.exception("a reload failed")
            self._refused(f"an unforeseen {type(error).__name__}")
            return
        self.fault = None
        self._again = self.settled(None) or self._again

    def _refused(self, detail: str) -> None:
        self.fault = f"the reload at {rfc3339(now_us())} changed nothing: {detail}"
        _log.error("%s; the last good revisions go on", self.fault)

    async def warm(self, snapshot: Snapshot) -> None:
        """Make the sheets of the classes that were asked for lately, so that the swap costs nobody an evaluation."""
        pending = self.decisions.recent_requests(self.warm_classes_max)

        async def some() -> None:
            while pending:
                await self.decisions.prepare(snapshot, *pending.pop(0))

        try:
            async with asyncio.timeout(self.warm_wait_ms / 1_000):
                await asyncio.gather(*(some() for _ in range(WARM_AT_ONCE)))
        except TimeoutError:
            _log.warning("reload: %d recent classes are not evaluated yet", len(pending))


def _same(live: Snapshot, tree: PolicyTree, fleet: Fleet) -> bool:
    before = (live.policies.digest, live.policies.commit, live.fleet.digest, live.fleet.commit)
    return before == (tree.digest, tree.commit, fleet.digest, fleet.commit)
