"""Witnesses that a server asks by itself: each newest checkpoint is shown to them, and their word is kept beside it.

    newest checkpoint ──each interval, in threads of its own──► a witness ──its signature──► witnesses/<key id>
                                                              ──anything else──────► a line in the log and a metric

Rules: no decision waits for a witness; one that does not answer holds nothing but its own turn; what it signed is
verified before it is kept, and the file is replaced as a whole; a word that contradicts the log is an error that is
told, and is no reason to stop.
It refuses: to keep a signature that does not verify, and one over less than is kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from audit.checkpoint import open_checkpoint
from audit.errors import AuditFailure, KeyInvalid, LogCorrupt, ProofInvalid
from audit.note import NOTE_MAX_BYTES, WITNESS_ALGORITHM, VerifierKey
from audit.signer import write_durably
from audit.tree import consistency_proof
from audit.tree_store import stored_nodes
from audit.witness import Answer, cosigned
from policyd.errors import ConfigError, PolicydError
from policyd.services.log_reader import LogReader
from policyd.services.proofs import log_number, newest_checkpoint
from policyd.settings import AuditSettings
from policyd.telemetry import Telemetry

FOLDER: Final = "witnesses"
FILES_MAX: Final = 64
PROOF_MAX_S: Final = 10.0
_log: Final = logging.getLogger(__name__)

Post = Callable[[str, bytes], tuple[int, str, bytes]]
"""Posts a body to a witness at an address: status, media type, body. Raises ``OSError`` or an error of its own."""


@dataclass(frozen=True, slots=True)
class Witness:
    """One that is asked: where, and whose signature counts."""

    key: VerifierKey
    address: str


def witnesses_of(audit: AuditSettings) -> list[Witness]:
    """Those that the settings name. Raises ``ConfigError``."""
    found = []
    for nth, each in enumerate(audit.witnesses):
        try:
            key = VerifierKey.parse(each.key)
        except KeyInvalid as error:
            raise ConfigError(f"audit.witnesses.{nth}.key: {error}") from error
        if key.algorithm != WITNESS_ALGORITHM:
            raise ConfigError(f"audit.witnesses.{nth}.key is the key of a log, and not of a witness")
        found.append(Witness(key, each.url))
    return found


def word_of(folder: Path, key: VerifierKey) -> Path:
    """Where the word of a witness is kept, below a data directory."""
    return folder / FOLDER / key.id.hex()


def words_kept(folder: Path) -> list[bytes]:
    """The checkpoints with signatures of witnesses that a data directory keeps, as they are."""
    found = []
    for path in sorted((folder / FOLDER).glob("[0-9a-f]" * 8))[:FILES_MAX]:
        try:
            with path.open("rb") as file:
                found.append(file.read(NOTE_MAX_BYTES + 1))
        except FileNotFoundError:
            continue
        except OSError as error:
            _log.warning("the word of a witness in %s cannot be read: %s", path, error.strerror)
    return found


class Witnesses:
    """Asks the witnesses of one log, for one event loop."""

    def __init__(
        self,
        reader: LogReader,
        origin: str,
        folder: Path,
        witnesses: Sequence[Witness],
        keys: Callable[[], Sequence[VerifierKey]],
        post: Post,
        telemetry: Telemetry,
    ) -> None:
        self._reader = reader
        self._origin = origin
        self._folder = folder
        self._witnesses = witnesses
        self._keys = keys
        self._post = post
        self._telemetry = telemetry
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(max(1, len(witnesses)), "witness")
        self._asked: dict[VerifierKey, asyncio.Future[int]] = {}
        self._seen: dict[VerifierKey, int] = {}

    async def keep_asking(self, interval_ms: int) -> None:
        """A turn each interval, until it is cancelled."""
        try:
            while True:
                await self.turn()
                await asyncio.sleep(interval_ms / 1_000)
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def turn(self) -> None:
        """Show the newest checkpoint to each witness that has not seen it and is not being asked still."""
        try:
            newest = await newest_checkpoint(self._reader, self._origin)
        except PolicydError:
            return  # nothing is signed yet, or the log says itself that it cannot be read
        for witness in self._witnesses:
            pending = self._asked.get(witness.key)
            if (pending is None or pending.done()) and self._seen.get(witness.key, -1) < newest[0]:
                asked = self._loop.run_in_executor(self._threads, self._ask, witness, *newest)
                self._asked[witness.key] = asked
                asked.add_done_callback(partial(self._answered, witness))

    def _ask(self, witness: Witness, size: int, note: bytes) -> int:
        """In a thread: ask, verify, keep."""
        path = word_of(self._folder, witness.key)
        keys = [*self._keys(), witness.key]
        seen = self._kept(path, keys)
        if seen >= size:
            return seen
        found = cosigned(
            note, witness.key, lambda body: Answer(*self._post(witness.address, body)), self._prove, old_size=seen
        )
        open_checkpoint(found, keys, origin=self._origin)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_durably(path, found, 0o644)
        return size

    def _kept(self, path: Path, keys: Sequence[VerifierKey]) -> int:
        try:
            with path.open("rb") as file:
                return open_checkpoint(file.read(NOTE_MAX_BYTES + 1), keys, origin=self._origin).checkpoint.size
        except (FileNotFoundError, ProofInvalid):
            return 0  # the witness says itself what it has seen

    def _prove(self, first: int, second: int) -> list[bytes]:
        async def read() -> list[bytes]:
            return await self._reader.read(
                lambda connection: consistency_proof(
                    first, second, stored_nodes(connection, log_number(connection, self._origin))
                )
            )

        return asyncio.run_coroutine_threadsafe(read(), self._loop).result(PROOF_MAX_S)

    def _answered(self, witness: Witness, done: asyncio.Future[int]) -> None:
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            self._seen[witness.key] = done.result()
            self._telemetry.cosigned(max(self._seen.values()))
            return
        contradicts = isinstance(error, LogCorrupt)
        refused = isinstance(error, AuditFailure)
        self._telemetry.witness_failed("contradicted" if contradicts else "refused" if refused else "unreachable")
        _log.log(
            logging.ERROR if contradicts else logging.WARNING,
            "the witness %s has not cosigned the log %s: %s",
            witness.key.name,
            self._origin,
            error,
        )
