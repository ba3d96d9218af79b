"""What a log says of other logs: the newest checkpoints of the replicas beside it, as they signed them.

    {"id":…,"kind":"checkpoint_seen","notes":[<note>, …],"rolled_back":[<origin>, …],"salt":…,"time":…,"v":1}

Rules: pure; a note is kept as it was signed, so that whoever has the key of that log can hold it against that log; a
log that has another past than it had, or is shorter, is named under ``rolled_back``.
It refuses: more notes than an entry can hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from json import loads
from typing import Any, Final

from audit.checkpoint import Checkpoint, open_checkpoint
from audit.errors import ProofInvalid
from audit.note import VerifierKey, parse_note

LOGS_MAX: Final = 64
"""Other logs in one entry."""


def seen_fields(notes: Sequence[bytes], rolled_back: Sequence[str]) -> dict[str, Any]:
    """The fields of an entry that are about other logs."""
    return {"notes": [note.decode() for note in notes], "rolled_back": list(rolled_back)}


def read_seen(body: bytes) -> list[Checkpoint]:
    """The checkpoints that an entry tells of; who signed them is not looked at. Raises ``ProofInvalid``."""
    return [Checkpoint.parse(parse_note(note).text) for note in _notes(body)]


def opened_seen(body: bytes, keys: Sequence[VerifierKey], origin: str) -> list[Checkpoint]:
    """Those of one log, which it has signed with one of these keys; others are not counted. Raises ``ProofInvalid``."""
    return [
        open_checkpoint(note, keys, origin=origin).checkpoint
        for note in _notes(body)
        if Checkpoint.parse(parse_note(note).text).origin == origin
    ]


def _notes(body: bytes) -> list[bytes]:
    try:
        notes = loads(body)["notes"]
        if not isinstance(notes, list) or len(notes) > LOGS_MAX:
            raise ProofInvalid("it tells of more logs than it can")
        return [note.encode() for note in notes]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProofInvalid(f"what it says of other logs cannot be read: {error}") from error
