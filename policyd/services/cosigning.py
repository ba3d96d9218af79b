"""Another party's word on the log: the newest checkpoint, cosigned by a witness, in a file.

Rules: the file is replaced only by a checkpoint that the witness signed; what the witness saw last is taken from it, so
that it need not be asked; a witness that has seen another history is an error of the log, and no failure to reach it.
"""

from __future__ import annotations

from pathlib import Path

from audit.checkpoint import open_checkpoint
from audit.errors import AuditFailure, LogRolledBack, ProofInvalid
from audit.note import NOTE_MAX_BYTES, VerifierKey
from audit.signer import write_durably
from audit.tree import consistency_proof
from audit.tree_store import last_checkpoint
from audit.witness import Answer, cosigned
from connectors.witness import WitnessUnreachable, post_checkpoint
from policyd.errors import (
    AuditError,
    AuditRolledBack,
    ConfigError,
    NotFound,
    ProofRefused,
    ServerUnreachable,
    SplitView,
)
from policyd.services.data_directory import DataDirectory
from policyd.services.evidence import stored_log
from policyd.services.proofs import log_number


def cosign_newest(directory: DataDirectory, witness: VerifierKey, prefix: str, file: Path) -> int:
    """Ask the witness, and keep its word. Answers the size that it vouches for."""

    def post(body: bytes) -> Answer:
        return Answer(*post_checkpoint(prefix, body))

    with stored_log(directory) as (source, keys):
        newest = last_checkpoint(source.connection, log_number(source.connection, source.origin))
        if newest is None:
            raise NotFound(f"nothing of the log {source.origin} is signed yet")
        size, note = newest
        seen = _seen_before(file, [*keys, witness], source.origin)
        if seen > size:
            raise AuditRolledBack(f"{file} is over {seen} entries, and the log has {size}: it was rolled back")

        def prove(first: int, second: int) -> list[bytes]:
            return consistency_proof(first, second, source.node)

        try:
            found = cosigned(note, witness, post, prove, old_size=seen)
        except WitnessUnreachable as error:
            raise ServerUnreachable(str(error), remedy="try again later; the log is signed all the same") from error
        except LogRolledBack as error:
            raise AuditRolledBack(str(error)) from error
        except ProofInvalid as error:
            raise ProofRefused(str(error), remedy="check the key of the witness, and that it knows this log") from error
        except AuditFailure as error:
            raise SplitView(str(error)) from error
    try:
        write_durably(file, found, 0o644)
    except OSError as error:
        raise AuditError(f"{file} cannot be written: {error.strerror}") from error
    return size


def _seen_before(file: Path, keys: list[VerifierKey], origin: str) -> int:
    """The size that the kept checkpoint is over; 0 when there is none yet."""
    try:
        with file.open("rb") as opened:
            note = opened.read(NOTE_MAX_BYTES + 1)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    try:
        return open_checkpoint(note, keys, origin=origin).checkpoint.size
    except ProofInvalid as error:
        raise ProofRefused(f"{file}: {error}", remedy="name another file for the cosigned checkpoint") from error
