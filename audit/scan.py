"""Decisions of a window page by page, straight from the tables: for whoever reads a million of them.

    ranges    the parts of each log in which the window lies, which can be divided further
    page      some entries of a range, in the order of the log, with their bodies

Rules: a body is checked against its hash before it leaves; an entry whose body was removed is there, without one, so
that nobody passes over it unseen; what a page does not hold is where the next one begins.
It refuses to search: who wants some of many entries asks ``audit.query``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, func, select

from audit.errors import LogCorrupt
from audit.query import DECISION_KINDS
from audit.record import BLOB_KINDS, KINDS, BlobKind, Kind, leaf_hash
from audit.tables import BLOB, BODY, ENTRY, LOG, has_body, index_of, place
from audit.tables import INDEX_BITS as INDEX_BITS  # what a place is made with

PAGE_ENTRIES: Final = 5_000
BLOBS_MAX: Final = 10_000
_NUMBERS: Final = tuple(KINDS.index(kind) for kind in DECISION_KINDS)

Range = tuple[int, int]
"""Places from the first one on, and before the second."""


@dataclass(frozen=True, slots=True)
class Scanned:
    """An entry of a page; without a body when that was removed."""

    id: str
    kind: Kind
    time_us: int
    body: bytes | None


@dataclass(frozen=True, slots=True)
class ScannedPage:
    """Entries, and the place where the next page begins; None at the end of the range."""

    entries: tuple[Scanned, ...]
    next: int | None


def ranges(connection: Connection, from_us: int, to_us: int) -> list[Range]:
    """The parts of the database's logs that hold all entries of the window; empty when there are none."""
    found = []
    for log in connection.execute(select(LOG.c.number).order_by(LOG.c.number)).scalars().all():
        of_log = (ENTRY.c.index >= place(log, 0), ENTRY.c.index < place(log + 1, 0))
        within = (ENTRY.c.time_us >= from_us, ENTRY.c.time_us < to_us)
        query = select(func.min(ENTRY.c.index), func.max(ENTRY.c.index)).where(*of_log, *within)
        first, last = connection.execute(query).one()
        if first is not None:
            found.append((first, last + 1))
    return found


def divided(parts: Iterable[Range], part: int, of: int) -> list[Range]:
    """The ``part``-th (from 1) of ``of`` shares of every range; together they are the ranges, and none twice."""
    shares = []
    for begin, end in parts:
        length = end - begin
        share = (begin + length * (part - 1) // of, begin + length * part // of)
        if share[0] < share[1]:
            shares.append(share)
    return shares


def page(connection: Connection, within: Range, from_us: int, to_us: int, limit: int = PAGE_ENTRIES) -> ScannedPage:
    """The next decisions of a range, errors and refusals too. Raises ``LogCorrupt``, naming the entry."""
    columns = (ENTRY.c.index.label("place"), ENTRY.c.id, ENTRY.c.kind, ENTRY.c.time_us, ENTRY.c.leaf_hash, BODY.c.body)
    wanted = [*_NUMBERS, *(~number for number in _NUMBERS)]
    query = (
        select(*columns)
        .join_from(ENTRY, BODY, has_body(connection), isouter=True)
        .where(ENTRY.c.index >= within[0], ENTRY.c.index < within[1])
        .where(ENTRY.c.time_us >= from_us, ENTRY.c.time_us < to_us, ENTRY.c.kind.in_(wanted))
        .order_by(ENTRY.c.index)
        .limit(limit)
    )
    rows = connection.execute(query).all()
    found = []
    for at, entry_id, kind, time_us, leaf, body in rows:
        removed = kind < 0
        if not removed and (not isinstance(body, bytes) or leaf_hash(body) != leaf):
            raise LogCorrupt("the body is not what was recorded", index=index_of(at))
        number = ~kind if removed else kind
        found.append(Scanned(str(UUID(bytes=bytes(entry_id))), KINDS[number], time_us, None if removed else body))
    return ScannedPage(tuple(found), rows[-1].place + 1 if len(rows) == limit else None)


def blobs_of(connection: Connection, kind: BlobKind) -> Sequence[str]:
    """The addresses of all blobs of a kind, of which there are few: revisions, and not sheets."""
    assert kind in BLOB_KINDS
    return connection.execute(select(BLOB.c.digest).where(BLOB.c.kind == kind).limit(BLOBS_MAX)).scalars().all()
