"""Runs the gates ``check``, ``tests`` and ``impact`` of a candidate in processes of their own.

Rules: a process gets the files, and for ``impact`` the place of the log to read; it has a deadline, and is killed with
what it has started, so that a policy which never ends, or takes all memory, harms no decision; a gate that is cut is
not passed; what it says is read as if a stranger had sent it. A process that ends without a word is a fault and no
result: the candidate is tried again.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import orjson

from policyd.errors import EngineError, Finding
from policyd.revisions.gates import GateResult
from policyd.revisions.tree_files import TreeFiles

ANSWER_MAX_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Offer:
    """What gates judge: the kinds that are new, and both trees. ``gates`` are those that are to run, ``live`` the
    digests of the policies and the fleet that serve now, if both do."""

    kinds: tuple[str, ...]
    trees: TreeFiles
    gates: tuple[str, ...]
    live: tuple[str, str] | None = None


@dataclass(frozen=True)
class GateRuns:
    """``command`` starts the process; ``settings`` is the document of all settings, ``names`` the gates it is for."""

    command: Sequence[str]
    settings: dict[str, Any]
    deadline_ms: int
    names: tuple[str, ...] = ("check", "tests")

    async def __call__(self, offer: Offer) -> tuple[GateResult, ...]:
        """What the gates say, in their order. Raises ``EngineError`` when the process does not say it."""
        wanted = [gate for gate in self.names if gate in offer.gates]
        if not wanted:
            return ()
        process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=ANSWER_MAX_BYTES,
        )
        asked = {
            "settings": self.settings,
            "trees": offer.trees.to_json(),
            "kinds": offer.kinds,
            "gates": wanted,
            "live": offer.live,
        }
        try:
            async with asyncio.timeout(self.deadline_ms / 1_000):
                answer, _ = await process.communicate(orjson.dumps(asked))
        except TimeoutError:
            said = f"took longer than {self.deadline_ms} ms, so nobody knows whether it would pass"
            return (GateResult(wanted[-1], False, said),)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        try:
            return tuple(_result(each) for each in orjson.loads(answer)["results"])
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(f"what judges revisions ended with {process.returncode} and gave no result") from error


def _result(row: Any) -> GateResult:
    findings = tuple(Finding(str(where), str(message)) for where, message in row["findings"])
    return GateResult(str(row["gate"]), row["passed"] is True, str(row["said"]), findings, dict(row["details"]))
