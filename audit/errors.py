"""Everything that the log raises on purpose.

    AuditFailure
    ├── RecordInvalid       an entry or blob that the log does not take
    │   └── EntriesRefused  some entries of a batch; names each with its reason
    ├── QueryInvalid        an unknown filter, a bad value, a foreign cursor
    ├── LogUnavailable      the log cannot be opened, or is blocked
    │   ├── LogLocked       somebody else writes it
    │   └── SchemaUnknown   the file is no log, or was written by a newer version
    ├── BodyRemoved         retention has removed what an entry said; its leaf hash is there
    ├── SearchTooSlow       a search was stopped at its deadline
    ├── LogCorrupt          stored bytes are not what was recorded; names the index when one is known
    │   ├── LogRolledBack   fewer entries than a checkpoint is over
    │   └── LogCutOff       an export without its end
    ├── KeyInvalid          a signing or verifying key that is missing, unreadable or none
    └── ProofInvalid        a note, checkpoint, proof or receipt that does not show what it claims

Rules: a failure to write is never retried here; a corrupt record is never returned.
"""

from __future__ import annotations

from collections.abc import Mapping


class AuditFailure(Exception):
    """Root of the tree. The text is a sentence for a person."""


class RecordInvalid(AuditFailure):
    """The entry or blob breaks a rule of ``audit.record``; nothing was written."""


class EntriesRefused(RecordInvalid):
    """Some entries of a batch cannot be taken; the caller rolls back and may append the others.

    ``reasons`` maps an entry id to a sentence.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{entry_id}: {reason}" for entry_id, reason in reasons.items()))
        self.reasons = dict(reasons)


class QueryInvalid(AuditFailure):
    """The search cannot be understood. ``field`` names the filter, ``cursor`` or ``limit``."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class BodyRemoved(AuditFailure):
    """The body of an entry was removed by retention; its hash is in the tree as before."""

    def __init__(self, index: int, leaf_hash: bytes) -> None:
        super().__init__(f"retention has removed the body of entry {index}, whose leaf hash is {leaf_hash.hex()}")
        self.index = index
        self.leaf_hash = leaf_hash


class LogUnavailable(AuditFailure):
    """The log cannot be opened or is blocked by somebody else."""


class LogLocked(LogUnavailable):
    """Another writer has the log. It may be our own last session, whose end the database has not noticed yet."""


class SearchTooSlow(AuditFailure):
    """The database was told to stop at the deadline, and did."""


class SchemaUnknown(LogUnavailable):
    """The file is not a log of a version that this program understands; it was left untouched."""


class LogCorrupt(AuditFailure):
    """Stored bytes are not what was recorded. ``index`` is the first bad entry, when one is known."""

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(f"entry {index}: {message}" if index is not None else message)
        self.index = index


class LogRolledBack(LogCorrupt):
    """The log has fewer entries than a checkpoint that somebody has: an older state of it came back."""


class LogCutOff(LogCorrupt):
    """An export ends before its last line."""


class KeyInvalid(AuditFailure):
    """A key that is missing, unreadable, of an unknown kind, or not the one that is expected."""


class ProofInvalid(AuditFailure):
    """A note, checkpoint, proof or receipt is malformed, or does not show what it claims."""
