"""Searching a log, newest first, and reading single records and blobs.

A search is a mapping of filter names to texts; all must hold. ``country``, ``rejected_pool`` and ``rule`` match the
entry itself, what it has several of, or its sheet. ``from`` is the first moment that counts and ``to`` the first that
does not, both ISO 8601 in UTC. Entries of one microsecond come in the order of the log, newest first, and those of
several logs in one database log by log.

Rules: every value is a bound parameter; a cursor continues only the search that it came from; bodies and blobs are
checked against their hashes before they leave; every filter has an index: ids and requests one of their own, the others
the blocks of ``audit.block_search``.
It refuses: unknown filters (naming the nearest one), foreign cursors, pages over 1,000.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from hashlib import sha256
from itertools import chain
from typing import Any, Final
from uuid import UUID

import orjson
from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, literal_column, or_, select, tuple_

from audit.block_search import Group, Wanted, newest
from audit.blocks import FIELDS
from audit.errors import BodyRemoved, LogCorrupt, QueryInvalid
from audit.personal import opened
from audit.record import (
    KINDS,
    SHEET_TERM_FIELDS,
    TERM_FIELDS,
    Kind,
    encodable,
    is_digest,
    is_entry_id,
    leaf_hash,
)
from audit.store import ROWS_PER_STATEMENT_MAX, numbers_of, unpack
from audit.tables import BLOB, BODY, ENTRY, ENTRY_TERM, INDEX_BITS, LOG, SHEET_TERM, WORD, has_body, index_of

WORD_FILTERS: Final = (
    "tenant",
    "project",
    "environment",
    "principal",
    "outcome",
    "denied_by",
    "pool",
    "provider",
    "country",
    "model",
    "model_version",
    "classification",
    "sla_class",
    "mode",
    "policy_commit",
    "fleet_commit",
)
"""Filters on a column of its own."""

TIME_FILTERS: Final = ("from", "to")
FILTERS: Final = tuple(dict.fromkeys((*WORD_FILTERS, *TERM_FIELDS, "request_id", *TIME_FILTERS)))
"""Every filter that there is."""

RARE_TERMS: Final = ("waiver", "approver")
"""Few entries have one, so the search starts from these instead of looking through all entries."""

FEW_ENTRIES: Final = 1_000
DECISION_KINDS: Final[tuple[Kind, ...]] = ("decision", "error", "refusal")
LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1_000
CURSOR_MAX_CHARS: Final = 256

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PLACE_MAX: Final = 2**63 - 1
_PLACE_MIN: Final = -(2**63)
OWNED_BY: Final = ("project", "environment")
"""What narrows a tenant's part of a log."""
_ORIGIN: Final = (
    select(LOG.c.origin)
    .where(LOG.c.number == ENTRY.c.index.op(">>")(literal_column(str(INDEX_BITS))))
    .scalar_subquery()
)


@dataclass(frozen=True, slots=True)
class Record:
    """One entry as stored: where it stands in which log, what it is, and the exact bytes of its body."""

    origin: str
    index: int
    id: str
    kind: Kind
    time_us: int
    leaf_hash: bytes
    body: bytes
    personal: Mapping[str, Any] | None = None
    """Its personal fields, for whoever has their keys; see ``audit.personal``."""

    def document(self) -> dict[str, Any]:
        """The body as JSON values, personal fields where they belong."""
        return opened(self.body, self.personal)


Filters = Mapping[str, str | tuple[str, ...]]
"""Texts by name of the filter; several texts are one value under several names, the one that was asked for first."""


@dataclass(frozen=True, slots=True)
class Within:
    """A part of the log that somebody may read: a tenant, in these projects and environments; None is every one."""

    tenant: str
    projects: frozenset[str] | None = None
    environments: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """To whom an entry belongs, as searches see it; all None when it belongs to nobody in particular."""

    tenant: str | None
    project: str | None
    environment: str | None
    principal: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a search. ``next`` continues it, and is None at the end."""

    items: tuple[Record, ...]
    next: str | None


def search(
    connection: Connection,
    filters: Filters,
    cursor: str | None = None,
    limit: int = LIMIT_DEFAULT,
    *,
    kinds: Sequence[Kind] = DECISION_KINDS,
    within: Sequence[Within] | None = None,
) -> Page:
    """The newest ``limit`` entries of ``kinds`` that match every filter, or those after ``cursor``.

    ``within`` limits them to parts of the log; entries of no tenant are in none, and None is the whole log.
    Raises ``QueryInvalid`` naming the filter at fault, and ``LogCorrupt`` when a found record is damaged.
    """
    if type(limit) is not int or not 1 <= limit <= LIMIT_MAX:
        raise QueryInvalid("limit", f"is a whole number from 1 to {LIMIT_MAX}")
    wanted = _wanted(connection, filters, kinds, within)
    binding = _binding(filters, kinds)
    if cursor is not None:
        before = _position(cursor, binding)
        wanted = None if wanted is None else replace(wanted, before=before)
    if wanted is None:
        return Page((), None)
    if "request_id" in filters:
        found = _of_request(connection, filters, kinds, within, wanted.before, limit + 1)
    else:
        found = newest(connection, wanted, limit + 1)
    places = [place for _, place in found[:limit]]
    items = tuple(_records_at(connection, places))
    return Page(items, _cursor(*found[limit - 1], binding) if len(found) > limit else None)


def _wanted(
    connection: Connection, filters: Filters, kinds: Sequence[Kind], within: Sequence[Within] | None
) -> Wanted | None:
    """What a search asks of the blocks; None when a word never occurred in this log, so that nothing can match."""
    _check_filters(filters)
    from_us, until_us = (
        time_us_of(name, _texts(filters[name])[0]) if name in filters else None for name in TIME_FILTERS
    )
    words = {name: _texts(value) for name, value in filters.items() if name in FIELDS}
    parts = [(part.tenant, part.projects, part.environments) for part in within or ()]
    named = {name for _, *several in parts for names in several for name in names or ()}
    numbers = numbers_of(connection, sorted({*chain(*words.values()), *(tenant for tenant, _, _ in parts), *named}))
    asked = {name: tuple(sorted(numbers[each] for each in value if each in numbers)) for name, value in words.items()}
    if not all(asked.values()):
        return None
    ways = [
        [
            ("tenant", [tenant]),
            *((name, names) for name, names in zip(OWNED_BY, several, strict=True) if names is not None),
        ]
        for tenant, *several in parts
    ]
    known = tuple(
        tuple(Group(name, tuple(sorted(numbers[each] for each in names if each in numbers))) for name, names in way)
        for way in ways
    )
    known = tuple(way for way in known if all(group.numbers for group in way))
    if within is not None and not known:
        return None
    every = [Group("kind", tuple(KINDS.index(kind) for kind in kinds))]
    every += [Group(name, found) for name, found in asked.items()]
    return Wanted(
        tuple(every),
        None if within is None else known,
        _PLACE_MIN if from_us is None else from_us,
        _PLACE_MAX if until_us is None else until_us,
        None,
    )


def _of_request(
    connection: Connection,
    filters: Filters,
    kinds: Sequence[Kind],
    within: Sequence[Within] | None,
    before: tuple[int, int] | None,
    limit: int,
) -> list[tuple[int, int]]:
    """The newest entries with this request id, which has an index of its own: too few share one for a block."""
    conditions = matching(connection, filters, kinds, within)
    if conditions is None:
        return []
    if before is not None:
        conditions.append(tuple_(ENTRY.c.time_us, ENTRY.c.index) < tuple_(*before))
    query = select(ENTRY.c.time_us, ENTRY.c.index.label("place")).where(*conditions)
    rows = connection.execute(query.order_by(ENTRY.c.time_us.desc(), ENTRY.c.index.desc()).limit(limit))
    return [(time_us, place) for time_us, place in rows]


def _records_at(connection: Connection, places: Sequence[int]) -> Iterator[Record]:
    """The entries at these places, in their order."""
    found: dict[int, Row[Any]] = {}
    for start in range(0, len(places), ROWS_PER_STATEMENT_MAX):
        query = _records(connection).where(ENTRY.c.index.in_(places[start : start + ROWS_PER_STATEMENT_MAX]))
        found.update((row[0], row) for row in connection.execute(query))
    for place in places:
        if place not in found:
            raise LogCorrupt("missing, and the search index knows it", index=index_of(place))
        yield _record(found[place])


def matching(
    connection: Connection, filters: Filters, kinds: Sequence[Kind], within: Sequence[Within] | None
) -> list[ColumnElement[bool]] | None:
    """What an entry must be to be of ``kinds``, match every filter and be ``within``; None when nothing can.

    Raises ``QueryInvalid`` naming the filter at fault.
    """
    _check_filters(filters)
    conditions = _time_conditions(filters)
    conditions.append(ENTRY.c.kind.in_([KINDS.index(kind) for kind in kinds]))
    words = _word_conditions(connection, filters)
    allowed = _within_condition(connection, within) if within is not None else None
    if words is None or (within is not None and allowed is None):
        return None
    return [*conditions, *words, *([] if allowed is None else [allowed])]


def by_id(connection: Connection, entry_id: str) -> Record | None:
    """The entry with this id, or None. Raises ``LogCorrupt`` when it is damaged."""
    if not is_entry_id(entry_id):
        return None
    row = connection.execute(_records(connection).where(ENTRY.c.id == UUID(entry_id).bytes)).one_or_none()
    return None if row is None else _record(row)


def owner_of(connection: Connection, entry_id: str) -> Owner | None:
    """To whom the entry with this id belongs, or None when there is none. Its body is not looked at, so that who may
    not read it learns nothing from its being damaged."""
    if not is_entry_id(entry_id):
        return None
    columns = (ENTRY.c.tenant, ENTRY.c.project, ENTRY.c.environment, ENTRY.c.principal)
    numbers = connection.execute(select(*columns).where(ENTRY.c.id == UUID(entry_id).bytes)).one_or_none()
    if numbers is None:
        return None
    texts = select(WORD.c.number, WORD.c.text).where(WORD.c.number.in_([each for each in numbers if each is not None]))
    words = {row.number: row.text for row in connection.execute(texts)}
    return Owner(*(words.get(number) for number in numbers))


def blob(connection: Connection, digest: str) -> bytes | None:
    """The content with this address, or None. Raises ``LogCorrupt`` when it is damaged."""
    if not is_digest(digest):
        return None
    row = connection.execute(select(BLOB.c.encoding, BLOB.c.content).where(BLOB.c.digest == digest)).one_or_none()
    return None if row is None else unpack(row.encoding, row.content, digest)


def _check_filters(filters: Filters) -> None:
    for name, value in filters.items():
        if name not in FILTERS:
            near = get_close_matches(name, FILTERS, n=1, cutoff=0.5)
            raise QueryInvalid(name, f"is no filter; did you mean {near[0]}?" if near else "is no filter")
        if not all(_texts(value)):
            raise QueryInvalid(name, "needs a value")
        if not all(map(encodable, _texts(value))):
            raise QueryInvalid(name, "holds half a character (a lone surrogate)")


def _time_conditions(filters: Filters) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if "from" in filters:
        conditions.append(ENTRY.c.time_us >= time_us_of("from", _texts(filters["from"])[0]))
    if "to" in filters:
        conditions.append(ENTRY.c.time_us < time_us_of("to", _texts(filters["to"])[0]))
    return conditions


def time_us_of(name: str, text: str) -> int:
    """The moment that a filter names, in microseconds since 1970. Raises ``QueryInvalid``."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise QueryInvalid(name, f"{text!r} is not an ISO 8601 time such as 2026-01-31T12:00:00Z") from error
    if moment.tzinfo is None and len(text) > len("2026-01-31"):
        raise QueryInvalid(name, f"{text!r} does not say that it is UTC; end it with Z")
    if moment.tzinfo is not None and moment.utcoffset():
        raise QueryInvalid(name, f"{text!r} is not UTC; end it with Z")
    return (moment.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


def _word_conditions(connection: Connection, filters: Filters) -> list[ColumnElement[bool]] | None:
    """The conditions on words; None when a word never occurred in this log, so that nothing can match."""
    words = {name: _texts(value) for name, value in filters.items() if name in WORD_FILTERS or name in TERM_FIELDS}
    numbers = numbers_of(connection, list(dict.fromkeys(text for value in words.values() for text in value)))
    conditions: list[ColumnElement[bool]] = []
    if "request_id" in filters:
        conditions.append(ENTRY.c.request_id == _texts(filters["request_id"])[0])
    for name, value in words.items():
        found = [numbers[text] for text in value if text in numbers]
        if not found:
            return None
        conditions.append(or_(*(_word_condition(connection, name, number) for number in found)))
    return conditions


def _texts(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _few(connection: Connection, term: ColumnElement[bool]) -> bool:
    """Whether so few entries have this term that a search does well to start from them."""
    counted = select(ENTRY_TERM.c.index).where(term).limit(FEW_ENTRIES + 1).subquery()
    return connection.execute(select(func.count()).select_from(counted)).scalar_one() <= FEW_ENTRIES


def _within_condition(connection: Connection, within: Sequence[Within]) -> ColumnElement[bool] | None:
    """What is in one of the parts; None when nothing of the log can be."""
    words = {part.tenant for part in within}
    for part in within:
        words |= (part.projects or frozenset()) | (part.environments or frozenset())
    numbers = numbers_of(connection, sorted(words))
    ways: list[ColumnElement[bool]] = []
    for part in within:
        if part.tenant not in numbers:
            continue
        conditions: list[ColumnElement[bool]] = [ENTRY.c.tenant == numbers[part.tenant]]
        for column, names in ((ENTRY.c.project, part.projects), (ENTRY.c.environment, part.environments)):
            if names is not None:
                conditions.append(column.in_([numbers[name] for name in sorted(names) if name in numbers]))
        ways.append(and_(*conditions))
    return or_(*ways) if ways else None


def _word_condition(connection: Connection, name: str, number: int) -> ColumnElement[bool]:
    ways: list[ColumnElement[bool]] = []
    if name in WORD_FILTERS:
        ways.append(ENTRY.c[name] == number)
    if name in TERM_FIELDS:
        term = and_(ENTRY_TERM.c.field == TERM_FIELDS.index(name), ENTRY_TERM.c.value == number)
        if name in RARE_TERMS or _few(connection, term):
            ways.append(ENTRY.c.index.in_(select(ENTRY_TERM.c.index).where(term)))
        else:
            ways.append(select(ENTRY_TERM.c.index).where(term, ENTRY_TERM.c.index == ENTRY.c.index).exists())
    if name in SHEET_TERM_FIELDS:
        term = and_(SHEET_TERM.c.field == TERM_FIELDS.index(name), SHEET_TERM.c.value == number)
        ways.append(select(SHEET_TERM.c.sheet).where(term, SHEET_TERM.c.sheet == ENTRY.c.sheet).exists())
    return or_(*ways)


def _records(connection: Connection) -> Select[Any]:
    columns = (ENTRY.c.index, ENTRY.c.id, ENTRY.c.kind, ENTRY.c.time_us, ENTRY.c.leaf_hash, BODY.c.body, _ORIGIN)
    return select(*columns).join_from(ENTRY, BODY, has_body(connection), isouter=True)


def _record(row: Row[*tuple[Any, ...]]) -> Record:
    place, entry_id, kind, time_us, leaf, body, origin = row
    index = index_of(place)
    if body is None and kind < 0:
        raise BodyRemoved(index, leaf)
    if not isinstance(body, bytes) or leaf_hash(body) != leaf:
        raise LogCorrupt("the body is not what was recorded", index=index)
    if kind not in range(len(KINDS)) or not isinstance(entry_id, bytes) or len(entry_id) != 16:
        raise LogCorrupt("its columns are damaged", index=index)
    if origin is None:
        raise LogCorrupt("the log that holds it has lost its name", index=index)
    return Record(origin, index, str(UUID(bytes=entry_id)), KINDS[kind], time_us, leaf, body)


def _binding(filters: Filters, kinds: Sequence[Kind]) -> str:
    # Another name of a value may come up while its pages are read.
    asked = [(name, _texts(value)[0]) for name, value in filters.items()]
    return sha256(orjson.dumps([sorted(asked), sorted(kinds)])).hexdigest()[:16]


def _cursor(time_us: int, place: int, binding: str) -> str:
    return urlsafe_b64encode(orjson.dumps([binding, time_us, place])).rstrip(b"=").decode()


def _position(cursor: str, binding: str) -> tuple[int, int]:
    try:
        if len(cursor) > CURSOR_MAX_CHARS:
            raise ValueError
        bound_to, time_us, place = orjson.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        numbers = (time_us, place)
        if not isinstance(bound_to, str) or any(type(part) is not int for part in numbers):
            raise ValueError
        if any(not 0 <= part <= _PLACE_MAX for part in numbers):
            raise ValueError
    except (ValueError, TypeError) as error:
        raise QueryInvalid("cursor", "is none that this log gave") from error
    if bound_to != binding:
        raise QueryInvalid("cursor", "belongs to a search with other filters; start again without it")
    return time_us, place
