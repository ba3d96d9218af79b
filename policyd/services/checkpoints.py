"""The checkpoints of the one writer: its tree grows with the entries, and its size is signed and kept outside, too.

    opened ──compared with the last checkpoint in the database and in the file──► growing
    growing ──a second, 4,096 entries, or the end──► signed in the same transaction ──durable──► in the file

Rules: a checkpoint is signed inside the transaction whose entries it covers, and leaves this process only when that is
durable; the file outside the database is replaced as a whole, with fsync; a log that is not what was signed is not
served; a signing key is made only for a log that nobody has signed yet.
It refuses: a log that is shorter than a checkpoint, or has another root; to go on without its signing key.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from audit.checkpoint import Checkpoint, Opened, open_checkpoint
from audit.errors import (
    AuditFailure,
    KeyInvalid,
    LogCorrupt,
    LogRolledBack,
    LogUnavailable,
    ProofInvalid,
    SchemaUnknown,
)
from audit.note import NOTE_MAX_BYTES, Signer, VerifierKey
from audit.signer import KEY_FILE, PUBLIC_FILE, open_signer, read_public, write_durably, write_public
from audit.store import Position
from audit.stores import is_damage
from audit.tree import root_at
from audit.tree_store import TreeTail, add_checkpoint, last_checkpoint, stored_nodes
from policyd.errors import AuditError, AuditKeyUnusable, AuditRolledBack, AuditTampered
from policyd.services.clock import now_us

CHECKPOINT_FILE: Final = "log.checkpoint"
ENTRIES_MAX: Final = 4_096
INTERVAL_S: Final = 1.0

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogFiles:
    """The files beside a log: its signing key, its public keys, and its last checkpoint."""

    key: Path
    public: Path
    checkpoint: Path

    @classmethod
    def within(cls, directory: Path) -> LogFiles:
        """Those of a data directory."""
        return cls(directory / KEY_FILE, directory / PUBLIC_FILE, directory / CHECKPOINT_FILE)

    def kept(self) -> bytes | None:
        """The checkpoint in the file, if there is one. Raises ``LogUnavailable``."""
        try:
            with self.checkpoint.open("rb") as file:
                return file.read(NOTE_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LogUnavailable(f"the checkpoint {self.checkpoint} cannot be read: {error.strerror}") from error


def public_keys(files: LogFiles) -> tuple[VerifierKey, ...]:
    """The keys that a log has had. Raises ``AuditKeyUnusable``."""
    try:
        return read_public(files.public)
    except KeyInvalid as error:
        raise audit_error("the log cannot be verified", error) from error


def audit_error(what: str, error: AuditFailure) -> AuditError:
    """What the log raised, in the words of the service."""
    kinds: tuple[tuple[type[AuditFailure], type[AuditError]], ...] = (
        (LogRolledBack, AuditRolledBack),
        (LogCorrupt, AuditTampered),
        (KeyInvalid, AuditKeyUnusable),
    )
    made = next((answer for kind, answer in kinds if isinstance(error, kind)), AuditError)
    remedy = "use the version of policyd that wrote it, or a newer one" if isinstance(error, SchemaUnknown) else None
    return made(f"{what}: {error}", remedy=remedy)


def no_log(folder: Path) -> AuditError:
    """Why a directory has no log to be read: nobody has begun one, or it is gone."""
    kept = LogFiles.within(folder).checkpoint
    if kept.exists():
        return AuditRolledBack(f"the log of {folder} is gone: {kept} was signed over it")
    return AuditError(
        f"there is no log in {folder}",
        remedy="name the directory of the log with --data-dir; the first decision makes a log",
    )


def unreadable(error: DBAPIError) -> AuditError:
    """What the database of a log raised for a reader: damage is told from a failure."""
    kind = AuditTampered if is_damage(error) else AuditError
    return kind(f"the log cannot be read: {error.orig}")


class Checkpoints:
    """The tree and the checkpoints of one log, behind one connection. Made anew for each connection.

    Raises ``LogCorrupt``, ``LogRolledBack``, ``KeyInvalid`` or ``LogUnavailable``. Needs a transaction.
    """

    def __init__(self, connection: Connection, files: LogFiles, origin: str, log: int = 0) -> None:
        self._connection = connection
        self._files = files
        self._origin = origin
        self._number = log
        self._tree: TreeTail | None = TreeTail(connection, log)
        stored, kept = last_checkpoint(connection, log), files.kept()
        self._signer: Signer = open_signer(files.key, origin, create=stored is None and kept is None)
        keys = self._known_keys()
        for note, where in ((stored and stored[1], "the database"), (kept, str(files.checkpoint))):
            if note is not None:
                self._compare(connection, note, keys, where)
        if stored is not None and kept is None:
            _log.warning("the file %s is missing; it is written anew", files.checkpoint)
        self._signed_entries = 0 if stored is None else stored[0]
        self._signed_at_s = time.monotonic()
        self._unpublished: bytes | None = stored[1] if stored is not None and stored[1] != kept else None

    @property
    def entries_open(self) -> int:
        """Entries that no checkpoint covers yet, as far as is remembered."""
        return 0 if self._tree is None else self._tree.edge.size - self._signed_entries

    @property
    def due(self) -> bool:
        """Whether a checkpoint is to be signed."""
        open_entries = self.entries_open
        return open_entries >= ENTRIES_MAX or (open_entries > 0 and self.wait_s <= 0)

    @property
    def wait_s(self) -> float:
        """How long until entries without a checkpoint get one."""
        return max(0.0, self._signed_at_s + INTERVAL_S - time.monotonic())

    def append(self, positions: Sequence[Position], *, now: bool = False) -> None:
        """The entries that this transaction appends; a checkpoint over them when one is due, or ``now``."""
        if self._tree is None:
            self._tree = TreeTail(self._connection, self._number)
        else:
            self._tree.extend(self._connection, [position.leaf_hash for position in positions])
        edge = self._tree.edge
        if positions and edge.size != positions[-1].index + 1:
            raise LogCorrupt(f"the tree has {edge.size} entries", index=positions[-1].index)
        if self.due or (now and self.entries_open > 0):
            self._unpublished = Checkpoint(self._origin, edge.size, edge.root()).sign(self._signer)
            add_checkpoint(self._connection, self._number, edge.size, now_us(), self._unpublished)

    def committed(self) -> None:
        """The transaction is durable: what it signed goes into the file. Raises ``LogUnavailable``."""
        if self._unpublished is None:
            return
        try:
            write_durably(self._files.checkpoint, self._unpublished, 0o644)
        except OSError as error:
            raise LogUnavailable(f"{self._files.checkpoint} cannot be written: {error.strerror}") from error
        assert self._tree is not None
        self._unpublished = None
        self._signed_entries = self._tree.edge.size
        self._signed_at_s = time.monotonic()

    def forget(self) -> None:
        """After a rollback, what was remembered of it did not happen."""
        self._tree = None
        self._unpublished = None

    def _known_keys(self) -> tuple[VerifierKey, ...]:
        """The keys that this log has had; the file of public keys is made, or gets the key in force."""
        own = self._signer.key
        try:
            keys = read_public(self._files.public)
        except KeyInvalid:
            if self._files.public.exists():
                raise
            keys = ()
        if own not in keys:
            keys = (*keys, own)
            try:
                write_public(self._files.public, keys)
            except OSError as error:
                raise LogUnavailable(f"{self._files.public} cannot be written: {error.strerror}") from error
        return keys

    def _compare(self, connection: Connection, note: bytes, keys: Sequence[VerifierKey], where: str) -> None:
        """A checkpoint that was signed before must be about a beginning of this log."""
        assert self._tree is not None
        try:
            opened: Opened = open_checkpoint(note, keys, origin=self._origin)
        except (ProofInvalid, KeyInvalid) as error:
            raise LogCorrupt(f"the last checkpoint in {where} does not verify: {error}") from error
        size, entries = opened.checkpoint.size, self._tree.edge.size
        if size > entries:
            raise LogRolledBack(
                f"the checkpoint in {where} is over {size} entries: the log was rolled back", index=entries
            )
        if root_at(size, stored_nodes(connection, self._number)) != opened.checkpoint.root:
            raise LogCorrupt(f"the first {size} entries are not those that the checkpoint in {where} is over")
