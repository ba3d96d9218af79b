"""The pair in canary, in one process: built beside what is live, warmed, and let go again.

    told of a trial ──► build aside, warm, record ──► tenants in the share are decided on it ──► told of none: let go
                             └─ a fault of the trees: told, and not tried again until something else is to be tried

Rules: what is tried follows what the lifecycle says, which follows the table; one change at a time, the last one told
is what counts; what fails for want of an engine is tried again after ``RETRY_S``; until it is built, everybody is
decided on what is live.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from policyd.errors import PolicydError, RevisionError
from policyd.revisions.tree_files import TreeFiles
from policyd.services.frames import Frames
from policyd.services.reload import Reload
from policyd.services.trials import OnTrial

RETRY_S: Final = 5.0
_log: Final = logging.getLogger(__name__)

Key = tuple[str, ...]
"""Digests and commits of a pair."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A pair that is to be tried: ``digest`` is that of the revision whose share of tenants it is."""

    key: Key
    digest: str
    files: TreeFiles

    def to_json(self) -> dict[str, Any]:
        """For another process."""
        return {"key": list(self.key), "digest": self.digest, "files": self.files.to_json()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | None) -> Trial | None:
        """What ``to_json`` wrote."""
        if document is None:
            return None
        return cls(tuple(document["key"]), document["digest"], TreeFiles.from_json(document["files"]))


def _unheard(key: Key, said: str) -> None:
    return


@dataclass
class Canary:
    """Tries in this process what is told. ``failed`` hears of a pair that cannot be built or spoils decisions."""

    reload: Reload
    share_ppm: int
    failed: Callable[[Key, str], None] = field(default=_unheard)
    _wanted: Trial | None = None
    _is: Key | None = None
    _changing: asyncio.Task[None] | None = None

    def take(self, trial: Trial | None) -> None:
        """Try this from now on; soon, in a task."""
        self._wanted = trial
        if _key(trial) != self._is and (self._changing is None or self._changing.done()):
            self._changing = asyncio.create_task(self._change())

    async def close(self) -> None:
        """End what is being built."""
        if self._changing is not None:
            self._changing.cancel()
            await asyncio.gather(self._changing, return_exceptions=True)

    async def _change(self) -> None:
        while _key(self._wanted) != self._is:
            trial = self._wanted
            try:
                await self._let_go()
                if trial is not None:
                    await self._build(trial)
                self._is = _key(trial)
            except RevisionError as error:
                self._is = _key(trial)
                if trial is not None:
                    self.failed(trial.key, f"it cannot be built beside what is live: {error.detail}")
            except PolicydError as error:
                _log.error("canary: %s; tried again in %.0f s", error.detail, RETRY_S)
                await asyncio.sleep(RETRY_S)
            except Exception:  # noqa: BLE001 - whatever it is, the live pair goes on and somebody is told
                _log.exception("canary: an unforeseen fault")
                await asyncio.sleep(RETRY_S)

    async def _build(self, trial: Trial) -> None:
        tree, fleet = await asyncio.to_thread(trial.files.revisions)
        decisions = self.reload.decisions
        snapshot = await self.reload.activation.try_out(tree, fleet, self.reload.warm)
        if self._wanted is None or self._wanted.key != trial.key:
            return
        frames = Frames(decisions.frames.ledger, decisions.frames.limits)
        decisions.trials.failed = lambda _, said: self.failed(trial.key, said)
        decisions.trials.now = OnTrial(snapshot, trial.digest, self.share_ppm, frames)
        _log.warning("canary: %s and %s are tried on a share", snapshot.policies.digest, snapshot.fleet.digest)

    async def _let_go(self) -> None:
        decisions, activation = self.reload.decisions, self.reload.activation
        decisions.trials.now = None
        await activation.end_trial()
        decisions.book.keep(*activation.kept())


def _key(trial: Trial | None) -> Key | None:
    return None if trial is None else trial.key
