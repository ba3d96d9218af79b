r"""Checkpoints of a log (``c2sp.org/tlog-checkpoint``) and how their keys change.

    <origin>\n<size>\n<base64 of the root>\n · an empty line · signatures

A key is replaced by an entry of the log that holds a note, signed with the old key, which names the new one:

    policyd/key-rotation@v1\n<origin>\n<new vkey>\n

Rules: pure; a log signs under its own origin as key name; a size has one spelling; keys that a rotation named are added
to those that are known, so that earlier checkpoints still verify.
It refuses: extension lines, another origin than the one asked for, a rotation that the old key did not sign.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from audit.errors import ProofInvalid
from audit.note import (
    LOG_ALGORITHM,
    WITNESS_ALGORITHM,
    Note,
    Signed,
    Signer,
    VerifierKey,
    decode_base64,
    parse_note,
    sign_note,
    verify_note,
)
from audit.tree import EMPTY_ROOT, HASH_BYTES, SIZE_MAX

_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_ROTATION: Final = "policyd/key-rotation@v1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How much of a log there is, and the root over it."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not self.origin or "\n" in self.origin:
            raise ProofInvalid("a checkpoint names its log in one line")
        if not 0 <= self.size <= SIZE_MAX or len(self.root) != HASH_BYTES:
            raise ProofInvalid("a checkpoint has a size and a root of 32 bytes")
        if self.size == 0 and self.root != EMPTY_ROOT:
            raise ProofInvalid("an empty log has the root of nothing")

    @property
    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode('ascii')}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Reads the text of a note. Raises ``ProofInvalid``."""
        lines = text.split("\n")
        if len(lines) != 4 or lines[3]:
            raise ProofInvalid("a checkpoint is three lines: origin, size, root")
        origin, size, root = lines[:3]
        if not _SIZE.fullmatch(size):
            raise ProofInvalid(f"{size[:40]!r} is no size of a log")
        return cls(origin, int(size), decode_base64(root))

    def sign(self, *signers: Signer) -> bytes:
        """The checkpoint as a signed note."""
        return sign_note(self.text, *signers)


@dataclass(frozen=True, slots=True)
class Witnessed:
    """A cosignature that was verified: who saw this checkpoint, and when, in seconds since 1970."""

    name: str
    time_s: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint that was verified, by which keys of the log, and which witnesses saw it."""

    checkpoint: Checkpoint
    keys: tuple[VerifierKey, ...]
    witnesses: tuple[Witnessed, ...]


def open_checkpoint(data: bytes, keys: Iterable[VerifierKey], *, origin: str | None = None) -> Opened:
    """Read and verify a checkpoint. ``keys`` are those of the log and of the witnesses, told apart by their algorithm.

    Raises ``ProofInvalid`` unless a key of the log signed it, and when any of these keys signed something else.
    """
    note = parse_note(data)
    checkpoint = Checkpoint.parse(note.text)
    if origin is not None and checkpoint.origin != origin:
        raise ProofInvalid(f"the checkpoint is of the log {checkpoint.origin}, and not of {origin}")
    signed = _signed_by_log(note, keys)
    own = tuple(each.key for each in signed if each.key.algorithm == LOG_ALGORITHM)
    seen = tuple(Witnessed(each.key.name, each.time_s) for each in signed if each.key.algorithm == WITNESS_ALGORITHM)
    return Opened(checkpoint, own, seen)


def _signed_by_log(note: Note, keys: Iterable[VerifierKey]) -> tuple[Signed, ...]:
    signed = verify_note(note, keys)
    if not any(each.key.algorithm == LOG_ALGORITHM for each in signed):
        raise ProofInvalid("the checkpoint has no signature of the log itself")
    return signed


def sign_rotation(old: Signer, origin: str, new: VerifierKey) -> bytes:
    """The note by which a log replaces its key; it belongs into an entry of the log."""
    return sign_note(f"{_ROTATION}\n{origin}\n{new.text}\n", old)


def open_rotation(data: bytes, keys: Iterable[VerifierKey], *, origin: str) -> VerifierKey:
    """The new key that a rotation names. Raises ``ProofInvalid`` unless one of ``keys`` signed it for this log."""
    note = parse_note(data)
    lines = note.text.split("\n")
    if len(lines) != 4 or lines[0] != _ROTATION or lines[3]:
        raise ProofInvalid("this note replaces no key")
    _signed_by_log(note, keys)
    if lines[1] != origin:
        raise ProofInvalid(f"the key is replaced in the log {lines[1]}, and not in {origin}")
    new = VerifierKey.parse(lines[2])
    if new.algorithm != LOG_ALGORITHM or new.name != origin:
        raise ProofInvalid("the new key is not one of this log")
    return new
