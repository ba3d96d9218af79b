r"""Gap entries: what a log says of entries that it has lost, once it goes on from a backup.

    plan      what is missing, and what is presumed: a document, named by its digest
    approval  a note over the digest, signed by one person:  policyd/restore@v1\n<origin>\n<digest>\n
    entry     {"id":…,"kind":"gap","known":<note>,"lost":[first, last],"persons":[…],"plan":<digest>,"salt":…,
              "signatures":[<note>, …],"signed":<note or null>,"time":…,"v":1,"why":…}

``known`` is the newest checkpoint that somebody kept of what is lost, ``signed`` the last one of what was restored.

Rules: pure; the entry stands where the first lost one stood; two persons have signed, by two keys with two names; all
that they signed is in the entry, so that it can be checked again.
It refuses: one person twice, a signature over another plan or another log, a gap that nobody's checkpoint shows.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from json import loads
from typing import Any, Final

from audit.checkpoint import Checkpoint, open_checkpoint
from audit.errors import ProofInvalid
from audit.note import LOG_ALGORITHM, Signer, VerifierKey, parse_note, sign_note, verify_note

PERSONS_MIN: Final = 2
_APPROVAL: Final = "policyd/restore@v1"


@dataclass(frozen=True, slots=True)
class Gap:
    """A range of entries that a log has lost, and who let it go on. ``known`` is what was kept of the lost history."""

    index: int
    id: str
    first: int
    last: int
    known: Checkpoint
    persons: tuple[str, ...]
    why: str
    time: str

    @property
    def words(self) -> str:
        """The gap in a sentence."""
        names = " and ".join(self.persons)
        return (
            f"entry {self.index} ({self.id}) says that entries {self.first} to {self.last} were lost, "
            f"and that {names} restored the log from a backup at {self.time}: {self.why}"
        )

    def to_json(self) -> dict[str, Any]:
        """The gap as a document."""
        return {
            "index": self.index,
            "id": self.id,
            "lost": {"from": self.first, "to": self.last},
            "known": {"size": self.known.size, "root": b64encode(self.known.root).decode()},
            "persons": list(self.persons),
            "why": self.why,
            "time": self.time,
            "words": self.words,
        }


def approve(signer: Signer, origin: str, digest: str) -> bytes:
    """One person's signature over a plan."""
    return sign_note(_approval(origin, digest), signer)


def approvers(notes: Sequence[bytes], keys: Iterable[VerifierKey], origin: str, digest: str) -> tuple[str, ...]:
    """The persons who signed this plan for this log. Raises ``ProofInvalid`` unless they are two or more."""
    known = [key for key in keys if key.algorithm == LOG_ALGORITHM]
    signed: dict[str, bytes] = {}
    for data in notes:
        note = parse_note(data)
        if note.text != _approval(origin, digest):
            raise ProofInvalid(f"a signature is not over the plan {digest} of the log {origin}")
        for each in verify_note(note, known):
            signed.setdefault(each.key.name, each.key.public)
    if len(signed) < PERSONS_MIN or len(set(signed.values())) < len(signed):
        raise ProofInvalid(
            f"{PERSONS_MIN} persons sign a restore, each with a key of their own; here {len(signed)} did"
        )
    return tuple(sorted(signed))


def _approval(origin: str, digest: str) -> str:
    return f"{_APPROVAL}\n{origin}\n{digest}\n"


def gap_fields(
    known: bytes, lost: tuple[int, int], digest: str, signatures: Sequence[bytes], signed: bytes | None
) -> dict[str, Any]:
    """The fields of an entry that are about its gap."""
    return {
        "known": known.decode(),
        "lost": list(lost),
        "plan": digest,
        "signatures": [note.decode() for note in signatures],
        "signed": None if signed is None else signed.decode(),
    }


def read_gap(index: int, body: bytes, keys: Sequence[VerifierKey], origin: str) -> Gap:
    """The gap that the entry at this index tells of. Raises ``ProofInvalid`` when it does not hold together.

    Who the persons are is for whoever has their keys: see ``approvers``.
    """
    try:
        told = loads(body)
        first, last = told["lost"]
        persons = tuple(str(name) for name in told["persons"])
        known = open_checkpoint(told["known"].encode(), keys, origin=origin).checkpoint
        found = Gap(index, str(told["id"]), first, last, known, persons, str(told["why"]), str(told["time"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProofInvalid(f"it names a gap, and is not written as one: {error}") from error
    if type(first) is not int or type(last) is not int or first != index or last < first or known.size != last + 1:
        raise ProofInvalid("it names a gap that is not where it stands, or that its checkpoint does not show")
    if len(set(persons)) < PERSONS_MIN:
        raise ProofInvalid("it names a gap that one person let pass")
    return found
