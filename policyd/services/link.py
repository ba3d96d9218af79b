"""The words between an API process and the writer of the log, as bytes: framing without any input or output.

    frame = length (4 bytes, big-endian, of what follows) · kind (1 byte) · payload
      append   API process → writer   4 bytes length · JSON, a list an entry: ticket, kind, id, time, body length,
                                      search, terms, blobs, claim, operation, deed, personal fields · the bodies
                                      and blob contents, one after the other
      answers  writer → API process   JSON [[ticket, index, leaf hash, admission or null] or [ticket, code, detail]
                                      or [ticket, "exhausted", "", groups of pools without room]]
      told     either way             a JSON object

Rules: a frame has a limit; what arrives is checked as if a stranger had sent it, entries by the rules of
``audit.record``; a frame that is garbled breaks the link for good, since nothing after it can be trusted.
It refuses to guess: there is no resynchronisation and no partial frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from typing import Any, Final

import orjson

from audit.errors import RecordInvalid
from audit.record import Blob, Entry, Personal, Search, is_entry_id
from audit.store import Position
from policyd.core.budgets import known_zone
from policyd.errors import (
    AmountInvalid,
    AuditError,
    BudgetRaised,
    KeyInProgress,
    KeyReused,
    NotFound,
    OnHold,
    Overloaded,
    PolicydError,
    ProposalClosed,
    ReservationConflict,
    RevisionConflict,
    SamePerson,
)
from policyd.ledger.changes import Setting
from policyd.ledger.rules import UNITS, Charge, Limit, Reservation, Unit
from policyd.ledger.store import Change, Extension, Operation, Settlement, Void
from policyd.ledger.windows import WINDOWS, Window
from policyd.services.admission import QuotaExhausted
from policyd.services.commit import AdmittedPosition, Outcome, Submission
from policyd.services.idempotency import Claim
from policyd.services.proposals import Alone, Approve, Deed, Propose
from policyd.services.revision_rows import Step, step_from_json, step_json

APPEND: Final = 1
ANSWERS: Final = 2
TOLD: Final = 3
FRAME_MAX_BYTES: Final = 80 * 1024 * 1024
"""Longer than the longest blob with its entry."""
FRAME_FULL_BYTES: Final = 1024 * 1024
"""What waits is cut into frames of about this length, so that the writer begins before all has arrived."""
_LENGTH_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Ticketed:
    """A submission on its way; ``ticket`` is how its answer is known."""

    ticket: int
    submission: Submission

    @property
    def length_bytes(self) -> int:
        """About what it takes in a frame."""
        submission = self.submission
        return 1_024 + len(submission.entry.body) + sum(len(blob.content) for blob in submission.blobs)


@dataclass(frozen=True, slots=True)
class Appended:
    """An ``append`` frame, read."""

    submissions: tuple[Ticketed, ...]


_ERRORS: Final[Mapping[str, type[PolicydError]]] = {
    error.code: error
    for error in (
        *(AmountInvalid, AuditError, BudgetRaised, KeyInProgress, KeyReused, NotFound, Overloaded),
        *(OnHold, ProposalClosed, ReservationConflict, RevisionConflict, SamePerson),
    )
}
"""What the writer answers with; anything else arrives as ``AuditError``."""


_EXHAUSTED: Final = "exhausted"
"""No code of an error: who reads it asks again."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An ``answers`` frame, read."""

    outcomes: tuple[tuple[int, Outcome], ...]


@dataclass(frozen=True, slots=True)
class Told:
    """A ``told`` frame, read."""

    document: dict[str, Any]


Message = Appended | Answered | Told


def append_frames(submissions: Iterable[Ticketed]) -> Iterator[bytes]:
    """Frames for all of them, in order. Raises ``AuditError`` when one is too long for any frame."""
    waiting: list[Ticketed] = []
    length = 0
    for submission in submissions:
        if waiting and length + submission.length_bytes > FRAME_FULL_BYTES:
            yield _append_frame(waiting)
            waiting, length = [], 0
        waiting.append(submission)
        length += submission.length_bytes
    if waiting:
        yield _append_frame(waiting)


def _append_frame(submissions: Sequence[Ticketed]) -> bytes:
    table, contents = [], []
    for ticketed in submissions:
        submission = ticketed.submission
        entry = submission.entry
        blobs = [[blob.digest, blob.kind, len(blob.content), blob.terms] for blob in submission.blobs]
        place = [ticketed.ticket, entry.kind, entry.id, entry.time_us, len(entry.body)]
        if submission.removal is not None:
            raise AuditError("bodies are removed by the process that writes the log, and by no other")
        claim = submission.claim
        claimed = claim and [claim.scope.hex(), claim.request.hex(), claim.now_us, claim.expires_us]
        asked = None if submission.operation is None else _operation_json(submission.operation)
        table.append(
            [
                *place,
                [*entry.search],
                entry.terms,
                blobs,
                claimed,
                asked,
                _deed_json(submission.deed),
                _personal_json(entry.personal),
            ]
        )
        contents.append(entry.body)
        contents += [blob.content for blob in submission.blobs]
    head = orjson.dumps(table)
    return _frame(APPEND, len(head).to_bytes(_LENGTH_BYTES, "big"), head, *contents)


def answers_frame(outcomes: Iterable[tuple[int, Outcome]]) -> bytes:
    """One frame with these answers."""
    return _frame(ANSWERS, orjson.dumps([[ticket, *_outcome_json(outcome)] for ticket, outcome in outcomes]))


def _outcome_json(outcome: Outcome) -> list[Any]:
    if isinstance(outcome, Position):
        return [outcome.index, outcome.leaf_hash.hex(), getattr(outcome, "admission", None)]
    if isinstance(outcome, QuotaExhausted):
        return [_EXHAUSTED, "", outcome.groups]
    return [outcome.code, outcome.detail]


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


def _submissions(payload: bytes) -> Iterator[Ticketed]:
    table_end = _LENGTH_BYTES + int.from_bytes(payload[:_LENGTH_BYTES], "big")
    table = orjson.loads(payload[_LENGTH_BYTES:table_end])
    at = table_end

    def take(length: int) -> bytes:
        nonlocal at
        if type(length) is not int or length < 0 or at + length > len(payload):
            raise ValueError("a length leads out of the frame")
        at += length
        return payload[at - length : at]

    for ticket, kind, entry_id, time_us, length, search, terms, blobs, claimed, asked, deed, personal in table:
        if type(ticket) is not int:
            raise ValueError("a ticket is no number")
        entry = Entry(kind, entry_id, time_us, take(length), Search(*search), _terms(terms), _personal(personal))
        contents = tuple(Blob(digest, of, take(size), _terms(found)) for digest, of, size, found in blobs)
        claim = None if claimed is None else _claim(*claimed)
        operation = None if asked is None else _operation(asked)
        yield Ticketed(ticket, Submission(entry, contents, claim, operation, None if deed is None else _deed(*deed)))
    if at != len(payload):
        raise ValueError("bytes are left over")


def _claim(scope: str, request: str, now_us: int, expires_us: int) -> Claim:
    if type(now_us) is not int or type(expires_us) is not int:
        raise ValueError("a claim has no times")
    return Claim(bytes.fromhex(scope), bytes.fromhex(request), now_us, expires_us)


def _terms(pairs: Any) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in pairs)


def _personal_json(personal: tuple[Personal, ...]) -> list[Any]:
    return [[name, fields.decode()] for name, fields in personal]


def _personal(pairs: list[Any]) -> tuple[Personal, ...]:
    return tuple((name, fields.encode()) for name, fields in pairs)


_DEEDS: Final[Mapping[str, type[Propose | Approve | Alone]]] = {
    "propose": Propose,
    "approve": Approve,
    "alone": Alone,
}
_DEED_NAMES: Final[Mapping[type, str]] = {kind: name for name, kind in _DEEDS.items()}


def _deed_json(deed: Deed | None) -> list[Any] | None:
    if isinstance(deed, Step):
        return ["step", step_json(deed)]
    return None if deed is None else [_DEED_NAMES[type(deed)], *astuple(deed)]


def _deed(name: str, *values: Any) -> Deed:
    """What an API process does to proposals or revisions; whether it may is for the rows to say."""
    if name == "step":
        return step_from_json(*values)
    kind = _DEEDS[name]
    types = {"tenant": (str, type(None)), "expires_us": (int,), "open_max": (int,)}
    for field, value in zip(fields(kind), values, strict=True):
        if type(value) not in types.get(field.name, (str,)):
            raise ValueError(f"a deed has a {field.name} that is none")
    deed = kind(*values)
    if isinstance(deed, Approve) and not is_entry_id(deed.proposal):
        raise ValueError("an approval without a proposal")
    return deed


def _operation_json(operation: Operation) -> list[Any]:
    if isinstance(operation, Reservation):
        charges = [[astuple(limit), amount] for limit, amount in operation.charges]
        return ["reserve", operation.id, charges, operation.hold_us, operation.holds]
    if isinstance(operation, Settlement):
        return ["settle", operation.id, operation.actual]
    if isinstance(operation, Void):
        return ["void", operation.id]
    if isinstance(operation, Change):
        return ["change", operation.id, [[astuple(each.ceiling), *astuple(each)[1:]] for each in operation.settings]]
    return ["extend", operation.id, operation.hold_us]


def _operation(row: list[Any]) -> Operation:
    """What an API process asks of the ledger; names and amounts are judged by the ledger's rules."""
    name, hold, *rest = row
    if not is_entry_id(hold):
        raise ValueError("a reservation without an id")
    if name == "reserve":
        charges, hold_us, holds = rest
        if type(holds) is not bool:
            raise ValueError("a reservation does not say whether it holds")
        limits = ((*limit[:-1], tuple(limit[-1])) for limit, _ in charges)
        charged = tuple(Charge(_limit(*limit), amount) for limit, (_, amount) in zip(limits, charges, strict=True))
        return Reservation(hold, charged, hold_us, holds)
    if name == "settle":
        return Settlement(hold, tuple((unit, amount) for unit, amount in rest[0]))
    if name == "void":
        return Void(hold)
    if name == "extend":
        return Extension(hold, rest[0])
    if name == "change":
        return Change(hold, tuple(_setting(*row) for row in rest[0]))
    raise ValueError(f"the ledger knows no {name!r}")


def _setting(ceiling: list[Any], amount: Any, zone: str, thresholds: Any, may_raise: Any) -> Setting:
    told = None if thresholds is None else tuple(thresholds)
    if type(may_raise) is not bool or type(amount) not in (int, type(None)) or {type(p) for p in told or ()} - {int}:
        raise ValueError("a change of a limit is none")
    return Setting(_limit(*ceiling[:-1], tuple(ceiling[-1])), amount, known_zone(zone), told, may_raise)


@lru_cache(maxsize=20_000)
def _limit(
    path: str, unit: Unit, window: Window, amount: int, zone: str, pools: str, thresholds: tuple[int, ...]
) -> Limit:
    """The limit of a row: the same object each time, which is how the ledger knows it again."""
    if unit not in UNITS or window not in WINDOWS or {type(path), type(zone), type(pools)} != {str}:
        raise ValueError("a limit is none")
    if {type(percent) for percent in (amount, *thresholds)} != {int}:
        raise ValueError("a limit has no amount")
    return Limit(path, unit, window, amount, known_zone(zone), pools, thresholds)


def _outcome(row: Any) -> tuple[int, Outcome]:
    ticket, first, second, *rest = row
    if type(ticket) is not int or type(second) is not str:
        raise ValueError("an answer is none")
    if type(first) is int and first >= 0:
        leaf_hash = bytes.fromhex(second)
        if len(leaf_hash) != 32:
            raise ValueError("a leaf hash has 32 bytes")
        (admission,) = rest
        return ticket, Position(first, leaf_hash) if admission is None else AdmittedPosition(
            first, leaf_hash, admission
        )
    if type(first) is not str:
        raise ValueError("an answer is none")
    if first == _EXHAUSTED:
        (groups,) = rest
        if not isinstance(groups, list) or not groups or not all(isinstance(group, dict) for group in groups):
            raise ValueError("groups without room are none")
        return ticket, QuotaExhausted(groups)
    return ticket, _ERRORS.get(first, AuditError)(second)
