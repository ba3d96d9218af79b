"""The words between an API process and the writer of the log, as bytes: framing without any input or output.

    frame = length (4 bytes, big-endian, of what follows) · kind (1 byte) · payload
      append   API process → writer   4 bytes length · JSON, a list an entry: ticket, kind, id, time, body length,
                                      search, terms, blobs, claim · the bodies and blob contents, one after the other
      answers  writer → API process   JSON [[ticket, index, leaf hash] or [ticket, code, detail]]
      told     either way             a JSON object

Rules: a frame has a limit; what arrives is checked as if a stranger had sent it, entries by the rules of
``audit.record``; a frame that is garbled breaks the link for good, since nothing after it can be trusted.
It refuses to guess: there is no resynchronisation and no partial frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Final

import orjson

from audit.errors import RecordInvalid
from audit.record import Blob, Entry, Search
from audit.store import Position
from policyd.errors import AuditError, KeyInProgress, KeyReused, Overloaded, PolicydError
from policyd.services.idempotency import Claim

APPEND: Final = 1
ANSWERS: Final = 2
TOLD: Final = 3
FRAME_MAX_BYTES: Final = 80 * 1024 * 1024
"""Longer than the longest blob with its entry."""
FRAME_FULL_BYTES: Final = 1024 * 1024
"""What waits is cut into frames of about this length, so that the writer begins before all has arrived."""
_LENGTH_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Submission:
    """An entry to append, with what it needs; ``ticket`` is how its answer is known."""

    ticket: int
    entry: Entry
    blobs: tuple[Blob, ...] = ()
    claim: Claim | None = None

    @property
    def length_bytes(self) -> int:
        """About what it takes in a frame."""
        return 1_024 + len(self.entry.body) + sum(len(blob.content) for blob in self.blobs)


@dataclass(frozen=True, slots=True)
class Appended:
    """An ``append`` frame, read."""

    submissions: tuple[Submission, ...]


Outcome = Position | PolicydError
_ERRORS: Final[Mapping[str, type[PolicydError]]] = {
    error.code: error for error in (AuditError, Overloaded, KeyInProgress, KeyReused)
}
"""What the writer answers with; anything else arrives as ``AuditError``."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An ``answers`` frame, read."""

    outcomes: tuple[tuple[int, Outcome], ...]


@dataclass(frozen=True, slots=True)
class Told:
    """A ``told`` frame, read."""

    document: dict[str, Any]


Message = Appended | Answered | Told


def append_frames(submissions: Iterable[Submission]) -> Iterator[bytes]:
    """Frames for all of them, in order. Raises ``AuditError`` when one is too long for any frame."""
    waiting: list[Submission] = []
    length = 0
    for submission in submissions:
        if waiting and length + submission.length_bytes > FRAME_FULL_BYTES:
            yield _append_frame(waiting)
            waiting, length = [], 0
        waiting.append(submission)
        length += submission.length_bytes
    if waiting:
        yield _append_frame(waiting)


def _append_frame(submissions: Sequence[Submission]) -> bytes:
    table, contents = [], []
    for submission in submissions:
        entry = submission.entry
        blobs = [[blob.digest, blob.kind, len(blob.content), blob.terms] for blob in submission.blobs]
        place = [submission.ticket, entry.kind, entry.id, entry.time_us, len(entry.body)]
        claim = submission.claim
        claimed = claim and [claim.scope.hex(), claim.request.hex(), claim.now_us, claim.expires_us]
        table.append([*place, astuple(entry.search), entry.terms, blobs, claimed])
        contents.append(entry.body)
        contents += [blob.content for blob in submission.blobs]
    head = orjson.dumps(table)
    return _frame(APPEND, len(head).to_bytes(_LENGTH_BYTES, "big"), head, *contents)


def answers_frame(outcomes: Iterable[tuple[int, Outcome]]) -> bytes:
    """One frame with these answers."""
    rows = [
        [ticket, outcome.index, outcome.leaf_hash.hex()]
        if isinstance(outcome, Position)
        else [ticket, outcome.code, outcome.detail]
        for ticket, outcome in outcomes
    ]
    return _frame(ANSWERS, orjson.dumps(rows))


def told_frame(document: dict[str, Any]) -> bytes:
    """One frame with this object."""
    return _frame(TOLD, orjson.dumps(document))


def _frame(kind: int, *parts: bytes) -> bytes:
    length = 1 + sum(map(len, parts))
    if length > FRAME_MAX_BYTES:
        raise AuditError(f"an entry takes {length} bytes on its way to the writer; {FRAME_MAX_BYTES} are possible")
    return b"".join((length.to_bytes(_LENGTH_BYTES, "big"), bytes((kind,)), *parts))


class FrameReader:
    """Bytes in, messages out. After it has raised it takes nothing more."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._broken = False

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now. Raises ``AuditError`` for what is no frame of ours."""
        if self._broken:
            raise _garbled("it came after a garbled frame")
        self._waiting += data
        try:
            return list(self._whole())
        except (ValueError, TypeError, KeyError, RecordInvalid) as error:
            self._broken = True
            raise _garbled(str(error)) from error

    def _whole(self) -> Iterator[Message]:
        start = 0
        while len(self._waiting) - start >= _LENGTH_BYTES:
            length = int.from_bytes(self._waiting[start : start + _LENGTH_BYTES], "big")
            if not 0 < length <= FRAME_MAX_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            end = start + _LENGTH_BYTES + length
            if len(self._waiting) < end:
                break
            yield _read(bytes(self._waiting[start + _LENGTH_BYTES : end]))
            start = end
        del self._waiting[:start]


def _garbled(why: str) -> AuditError:
    return AuditError(f"the link to the writer of the log is broken: {why}")


def _read(frame: bytes) -> Message:
    kind, payload = frame[0], frame[1:]
    if kind == APPEND:
        return Appended(tuple(_submissions(payload)))
    if kind == ANSWERS:
        return Answered(tuple(_outcome(row) for row in orjson.loads(payload)))
    if kind == TOLD:
        document = orjson.loads(payload)
        if not isinstance(document, dict):
            raise ValueError("what is told is no object")
        return Told(document)
    raise ValueError(f"kind {kind} is unknown")


def _submissions(payload: bytes) -> Iterator[Submission]:
    table_end = _LENGTH_BYTES + int.from_bytes(payload[:_LENGTH_BYTES], "big")
    table = orjson.loads(payload[_LENGTH_BYTES:table_end])
    at = table_end

    def take(length: int) -> bytes:
        nonlocal at
        if type(length) is not int or length < 0 or at + length > len(payload):
            raise ValueError("a length leads out of the frame")
        at += length
        return payload[at - length : at]

    for ticket, kind, entry_id, time_us, length, search, terms, blobs, claimed in table:
        if type(ticket) is not int:
            raise ValueError("a ticket is no number")
        entry = Entry(kind, entry_id, time_us, take(length), Search(*search), _terms(terms))
        contents = tuple(Blob(digest, of, take(size), _terms(found)) for digest, of, size, found in blobs)
        yield Submission(ticket, entry, contents, None if claimed is None else _claim(*claimed))
    if at != len(payload):
        raise ValueError("bytes are left over")


def _claim(scope: str, request: str, now_us: int, expires_us: int) -> Claim:
    if type(now_us) is not int or type(expires_us) is not int:
        raise ValueError("a claim has no times")
    return Claim(bytes.fromhex(scope), bytes.fromhex(request), now_us, expires_us)


def _terms(pairs: Any) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in pairs)


def _outcome(row: Any) -> tuple[int, Outcome]:
    ticket, first, second = row
    if type(ticket) is not int or type(second) is not str:
        raise ValueError("an answer is none")
    if type(first) is int and first >= 0:
        leaf_hash = bytes.fromhex(second)
        if len(leaf_hash) != 32:
            raise ValueError("a leaf hash has 32 bytes")
        return ticket, Position(first, leaf_hash)
    if type(first) is not str:
        raise ValueError("an answer is none")
    return ticket, _ERRORS.get(first, AuditError)(second)
