"""Asking a witness to cosign a checkpoint (``c2sp.org/tlog-witness``): what is sent, and what its answer means.

    POST <prefix>/add-checkpoint      old <size>, the consistency proof from there, an empty line, the checkpoint
    200   signature lines             the checkpoint with the witness's signature
    409   text/x.tlog.size            the witness has another size: asked once more, from there
    409   anything else               the witness has seen another root of this size
    403, 404, 422, …                  refused

Rules: no input or output: whoever calls brings the way to post; a witness's word counts when its signature verifies;
a witness that has seen more than the log has is a finding, and no refusal to be waited out.
It refuses: answers that are too long, and a second change of mind.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from audit.checkpoint import Checkpoint
from audit.errors import LogCorrupt, LogRolledBack, ProofInvalid
from audit.note import NOTE_MAX_BYTES, WITNESS_ALGORITHM, Note, VerifierKey, parse_note, parse_signatures, verify_note

SIZE_TYPE: Final = "text/x.tlog.size"
PROOF_MAX_LINES: Final = 63
TRIES_MAX: Final = 2

_SIZE: Final = re.compile(rb"(0|[1-9][0-9]{0,18})\n")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a witness answered: status, media type, body."""

    status: int
    media_type: str
    body: bytes


Post = Callable[[bytes], Answer]
"""Posts a body to ``add-checkpoint`` of one witness."""
Prove = Callable[[int, int], Sequence[bytes]]
"""The consistency proof between two sizes of the log."""


def submission(old_size: int, proof: Sequence[bytes], note: bytes) -> bytes:
    """The body of ``add-checkpoint``."""
    if len(proof) > PROOF_MAX_LINES or (old_size == 0 and proof):
        raise ProofInvalid("a witness takes at most 63 hashes, and none from size 0")
    lines = "".join(f"{b64encode(part).decode('ascii')}\n" for part in proof)
    return f"old {old_size}\n{lines}\n".encode() + note


def cosigned(note: bytes, witness: VerifierKey, post: Post, prove: Prove, *, old_size: int = 0) -> bytes:
    """The checkpoint with the signature of the witness added; ``old_size`` is what it saw last, as far as is known.

    Raises ``LogRolledBack`` when the witness has seen more, ``LogCorrupt`` when it has seen another root, and
    ``ProofInvalid`` when it refuses or its answer proves nothing.
    """
    if witness.algorithm != WITNESS_ALGORITHM:
        raise ProofInvalid(f"{witness.name} is the key of a log, and not of a witness")
    own = parse_note(note)
    size = Checkpoint.parse(own.text).size
    for _ in range(TRIES_MAX):
        proof = prove(old_size, size) if 0 < old_size < size else ()
        answer = post(submission(old_size, proof, note))
        if answer.status == 200:
            return _with_signature(own, answer.body, witness)
        if answer.status != 409:
            raise ProofInvalid(f"the witness {witness.name} answered {answer.status} and signed nothing")
        old_size = _seen(answer, size, witness.name)
    raise ProofInvalid(f"the witness {witness.name} changed its mind about what it has seen")


def _seen(answer: Answer, size: int, name: str) -> int:
    found = _SIZE.fullmatch(answer.body) if answer.media_type == SIZE_TYPE else None
    if found is None:
        raise LogCorrupt(f"the witness {name} has seen another log of {size} entries")
    seen = int(found[1])
    if seen > size:
        raise LogRolledBack(f"the witness {name} has seen {seen} entries: the log was rolled back", index=size)
    return seen


def _with_signature(own: Note, body: bytes, witness: VerifierKey) -> bytes:
    if len(body) > NOTE_MAX_BYTES:
        raise ProofInvalid(f"the witness {witness.name} answered with more than {NOTE_MAX_BYTES} bytes")
    try:
        signatures = parse_signatures(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ProofInvalid(f"the witness {witness.name} answered with something that is no text") from error
    theirs = tuple(each for each in signatures if (each.name, each.key_id) == (witness.name, witness.id))
    verify_note(Note(own.text, theirs[:1]), [witness])
    return Note(own.text, (*own.signatures, theirs[0])).encode()


def joined(notes: Iterable[bytes], origin: str, index: int) -> tuple[int, bytes] | None:
    """The newest of these checkpoints that is over the entry at ``index``, with every signature that any has of it."""
    best: tuple[int, Note] | None = None
    for data in notes:
        try:
            note = parse_note(data)
            found = Checkpoint.parse(note.text)
        except ProofInvalid:
            continue
        if found.origin != origin or found.size <= index or (best is not None and found.size < best[0]):
            continue
        if best is not None and best[1].text == note.text:
            more = tuple(each for each in note.signatures if each not in best[1].signatures)
            note = Note(note.text, (*best[1].signatures, *more))
        best = (found.size, note)
    return None if best is None else (best[0], best[1].encode())
