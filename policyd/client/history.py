"""The log of a server over time: a checkpoint that was kept, and the newer one that must continue it.

Rules: what was kept is believed and what the server says is checked against it; a log that is shorter, or has another
beginning, is an error that names both; with a key every checkpoint must be signed with it.
It refuses: a checkpoint of another log than the one that was kept.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from policyd.client.calls import TEXT, Call, segment
from policyd.client.problems import json_of
from policyd.errors import AuditRolledBack, ProofRefused, RequestError, SplitView

if TYPE_CHECKING:
    from audit.checkpoint import Checkpoint


def checkpoint() -> Call[bytes]:
    """``GET /v1/log/checkpoint``."""
    return Call("GET", "/v1/log/checkpoint", _bytes, "checkpoint", media_type=TEXT)


def receipt(decision_id: str) -> Call[bytes]:
    """``GET /v1/decisions/{id}/receipt``."""
    return Call("GET", f"/v1/decisions/{segment(decision_id)}/receipt", _bytes, "receipt", media_type=TEXT)


def consistency(first: int, second: int) -> Call[list[bytes]]:
    """``GET /v1/log/consistency``: the hashes of the proof."""

    def read(body: bytes) -> list[bytes] | None:
        found = json_of(body)
        proof = found.get("proof") if isinstance(found, dict) else None
        if not isinstance(proof, list) or (found["from"], found["to"]) != (first, second):
            return None
        try:
            return [b64decode(part, validate=True) for part in proof]
        except (TypeError, ValueError, Base64Error):
            return None

    asked = {"from": str(first), "to": str(second)}
    return Call("GET", "/v1/log/consistency", read, "consistency proof", parameters=asked)


class Gap(NamedTuple):
    """What a log says that it has lost: from an index on, of a history that was this long."""

    log: str
    first: int
    size: int
    words: str


def gaps() -> Call[list[Gap]]:
    """``GET /v1/log/gaps``."""

    def read(body: bytes) -> list[Gap] | None:
        found = json_of(body)
        try:
            log, items = str(found["log"]), found["items"]
            return [Gap(log, gap["lost"]["from"], gap["known"]["size"], str(gap["words"])) for gap in items]
        except (TypeError, KeyError):
            return None

    return Call("GET", "/v1/log/gaps", read, "list of gaps")


def export_page(start: int) -> Call[bytes]:
    """``GET /v1/log/export``: a part of the export, from this index on."""
    asked = {"from": str(start)}
    return Call("GET", "/v1/log/export", _bytes, "export", parameters=asked, media_type="application/jsonl")


def entries_page(start: int, log: str | None) -> Call[bytes]:
    """``GET /v1/log/entries``: entries with their columns, from this index on."""
    asked = {"from": str(start)} | ({} if log is None else {"log": log})
    return Call("GET", "/v1/log/entries", _bytes, "page of entries", parameters=asked, media_type="application/jsonl")


def named(error: AuditRolledBack | SplitView, kept: bytes, gaps: Sequence[Gap]) -> AuditRolledBack | SplitView:
    """The error of a log that does not continue what was kept, with the gap by which the log explains it, if any."""
    before = _read(kept, (), "the kept checkpoint")
    for gap in gaps:
        if gap.log == before.origin and gap.first < before.size <= gap.size:
            return AuditRolledBack(
                f"{error.detail}; the log names it itself: {gap.words}",
                remedy="ask these persons; keep the old checkpoint, which proves the loss, and begin with a new one",
            )
    return error


class Growth:
    """From a checkpoint that was kept to the one that a server shows now.

    ``sizes`` is what to ask a consistency proof for, or None when none is needed. Raises ``AuditRolledBack``,
    ``SplitView``, and ``ProofRefused`` for a checkpoint that is none or is not signed with one of ``keys``.
    """

    def __init__(self, kept: bytes | None, shown: bytes, keys: Sequence[str] = ()) -> None:
        self.shown = _read(shown, keys, "the server's checkpoint")
        self._kept = _read(kept, keys, "the kept checkpoint") if kept is not None else None
        self.sizes: tuple[int, int] | None = None
        if self._kept is None:
            return
        before, now = self._kept, self.shown
        if before.origin != now.origin:
            raise SplitView(f"the log that was kept is {before.origin}, and the server shows {now.origin}")
        if now.size < before.size:
            raise AuditRolledBack(
                f"the log {now.origin} has {now.size} entries, and {before.size} were seen: it was rolled back"
            )
        if now.size == before.size and now.root != before.root:
            raise self._split()
        if 0 < before.size < now.size:
            self.sizes = (before.size, now.size)

    def check(self, proof: list[bytes]) -> None:
        """The proof for ``sizes``. Raises ``SplitView``."""
        from audit.errors import ProofInvalid
        from audit.tree import verify_consistency

        assert self._kept is not None
        before, now = self._kept, self.shown
        try:
            verify_consistency(before.size, now.size, proof, before.root, now.root)
        except ProofInvalid as error:
            raise self._split() from error

    def _split(self) -> SplitView:
        assert self._kept is not None  # it is what the server's is held against
        return SplitView(
            f"the log {self.shown.origin} has shown a checkpoint over {self._kept.size} entries "
            f"that is no beginning of the one over {self.shown.size}"
        )


def _read(note: bytes, keys: Sequence[str], what: str) -> Checkpoint:
    # Imported here because signatures take time and room that most programs which ask for decisions do without.
    from audit.checkpoint import Checkpoint, open_checkpoint
    from audit.errors import KeyInvalid, ProofInvalid
    from audit.note import VerifierKey, parse_note

    try:
        known = [VerifierKey.parse(key) for key in keys]
    except KeyInvalid as error:
        raise RequestError(f"the key of the log is none: {error}") from error
    try:
        return open_checkpoint(note, known).checkpoint if known else Checkpoint.parse(parse_note(note).text)
    except ProofInvalid as error:
        raise ProofRefused(f"{what} proves nothing: {error}") from error


def _bytes(body: bytes) -> bytes | None:
    return body or None
