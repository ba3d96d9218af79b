"""Receipts: the proof that one entry is in a log, as one file (``c2sp.org/tlog-proof@v1``).

    c2sp.org/tlog-proof@v1
    extra <base64>           optional; here the exact bytes of the entry
    index <index>
    <base64>                 siblings from the leaf up, one a line
                             an empty line
    <checkpoint>             as it was signed

Rules: pure; a receipt is verified against keys that its reader has already, and against nothing in it; the extra bytes
count only when they are the entry that the proof is about.
It refuses: any other spelling of the format, receipts that are too long.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from audit.checkpoint import Opened, open_checkpoint
from audit.errors import ProofInvalid
from audit.note import NOTE_MAX_BYTES, VerifierKey, decode_base64
from audit.tree import PROOF_MAX_HASHES, leaf_hash, verify_inclusion

FORMAT: Final = "c2sp.org/tlog-proof@v1"
RECEIPT_MAX_BYTES: Final = 256 * 1024

_INDEX: Final = re.compile(r"index (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class Receipt:
    """A proof as read; nothing in it is verified yet."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None

    def encode(self) -> bytes:
        """The receipt as bytes."""
        extra = "" if self.extra is None else f"extra {_base64(self.extra)}\n"
        path = "".join(f"{_base64(sibling)}\n" for sibling in self.path)
        return f"{FORMAT}\n{extra}index {self.index}\n{path}\n".encode() + self.checkpoint

    @classmethod
    def parse(cls, data: bytes) -> Receipt:
        """Reads a receipt, strictly. Raises ``ProofInvalid``."""
        if len(data) > RECEIPT_MAX_BYTES:
            raise ProofInvalid(f"a receipt has at most {RECEIPT_MAX_BYTES} bytes, and here {len(data)}")
        head, empty, checkpoint = data.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError as error:
            raise ProofInvalid("the receipt is no text") from error
        if lines[0] != FORMAT:
            raise ProofInvalid(f"this is no receipt: the first line is not {FORMAT}")
        if not empty or len(checkpoint) > NOTE_MAX_BYTES:
            raise ProofInvalid("the receipt has no checkpoint; it may be cut off")
        extra = None
        if len(lines) > 1 and lines[1].startswith("extra "):
            extra = decode_base64(lines.pop(1)[len("extra ") :])
        found = _INDEX.fullmatch(lines[1]) if len(lines) > 1 else None
        if found is None:
            raise ProofInvalid("the receipt does not say which entry it is about")
        if len(lines) - 2 > PROOF_MAX_HASHES:
            raise ProofInvalid("the proof is too long")
        return cls(int(found[1]), tuple(decode_base64(line) for line in lines[2:]), checkpoint, extra)

    def verify(
        self, keys: Iterable[VerifierKey], *, origin: str | None = None, expected_leaf: bytes | None = None
    ) -> Opened:
        """Check everything: the signature of the checkpoint, the way to its root, and the bytes of the entry.

        ``expected_leaf`` is the leaf hash that the decision came with; without it the extra bytes are the entry.
        Raises ``ProofInvalid``.
        """
        leaf = expected_leaf
        if self.extra is not None:
            leaf = leaf_hash(self.extra)
            if expected_leaf is not None and leaf != expected_leaf:
                raise ProofInvalid("the receipt holds another entry than the one with this leaf hash")
        if leaf is None:
            raise ProofInvalid("the receipt holds no entry, so that it needs the leaf hash of one")
        opened = open_checkpoint(self.checkpoint, keys, origin=origin)
        verify_inclusion(leaf, self.index, opened.checkpoint.size, self.path, opened.checkpoint.root)
        return opened


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")
