"""Reading a log from front to back: every entry with its columns in words, for whoever copies it elsewhere.

Rules: bodies are checked against their hashes before they leave; what is asked for is a part of the log by index, so
that whoever stops can go on; a missing index is damage and never passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import orjson
from sqlalchemy import Connection, select

from audit.errors import LogCorrupt
from audit.record import KINDS, SEARCH_FIELDS, Kind, leaf_hash
from audit.store import ROWS_PER_STATEMENT_MAX
from audit.tables import BODY, ENTRY, LOG, WORD, has_body, index_of, place

STEP_ENTRIES: Final = 5_000
_COLUMNS: Final = tuple(name for name in SEARCH_FIELDS if name != "request_id")
_PLACE: Final = "place"
"""The index of an entry; rows are tuples, which have an ``index`` of their own."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One entry as stored. ``search`` holds the columns that it has, by their names in ``audit.record.Search``."""

    index: int
    id: str
    kind: Kind
    time_us: int
    leaf_hash: bytes
    body: bytes
    search: dict[str, str]

    def document(self) -> dict[str, Any]:
        """The body as JSON values. Raises ``LogCorrupt`` when it is none."""
        try:
            found = orjson.loads(self.body)
        except ValueError as error:
            raise LogCorrupt("the body is no JSON", index=self.index) from error
        if not isinstance(found, dict):
            raise LogCorrupt("the body is no object", index=self.index)
        return found


@dataclass(frozen=True, slots=True)
class Facts:
    """What a body says beside the columns: the first choice's cost, the revisions, the sources, the rules of that
    minute. Those of its sheet are found by the sheet."""

    cost_micro_usd: int | None
    policy_digest: str | None
    fleet_digest: str | None
    data_sources: tuple[str, ...]
    rules_now: tuple[str, ...]


def facts_of(body: Mapping[str, Any]) -> Facts:
    """The facts of a body as JSON values, in the words of ``audit.record``; what it does not have is None or empty."""
    ranked, workload = body.get("ranked"), body.get("workload")
    data = workload.get("data") if isinstance(workload, dict) else None
    return Facts(
        ranked[0][2] if ranked else None,
        _digest(body.get("policy")),
        _digest(body.get("fleet")),
        tuple(data.get("sources", ())) if isinstance(data, dict) else (),
        tuple(dict.fromkeys(rule for _, rule in body.get("refused_now", ()))),
    )


def _digest(revision: Any) -> str | None:
    """Of a revision as ``[commit, digest]``, maybe with its engine."""
    return revision[1] if isinstance(revision, list) and len(revision) >= 2 else None


def numbered_origins(connection: Connection) -> dict[int, str]:
    """The names of the logs in the database, by their numbers."""
    return {row.number: row.origin for row in connection.execute(select(LOG.c.number, LOG.c.origin))}


def entries(
    connection: Connection, from_index: int, to_index: int, limit: int | None = None, *, log: int = 0
) -> list[Stored]:
    """The entries of a log from an index on, before ``to_index``, at most ``limit`` (``STEP_ENTRIES``); those
    whose body retention has removed are left out.

    Raises ``LogCorrupt`` naming the first that is missing or damaged.
    """
    end = min(to_index, from_index + (limit or STEP_ENTRIES))
    columns = [ENTRY.c.index.label(_PLACE), ENTRY.c.id, ENTRY.c.kind, ENTRY.c.time_us, ENTRY.c.leaf_hash]
    columns += [ENTRY.c.request_id, BODY.c.body, *(ENTRY.c[name] for name in _COLUMNS)]
    query = select(*columns).join_from(ENTRY, BODY, has_body(connection), isouter=True)
    query = query.where(ENTRY.c.index >= place(log, from_index), ENTRY.c.index < place(log, end)).order_by(
        ENTRY.c.index
    )
    rows = connection.execute(query).all()
    words = texts(connection, {getattr(row, name) for row in rows for name in _COLUMNS})
    found = []
    for nth, row in enumerate(rows, from_index):
        if index_of(row.place) != nth:
            raise LogCorrupt("missing", index=nth)
        if row.body is None and row.kind < 0:
            continue
        if not isinstance(row.body, bytes) or leaf_hash(row.body) != row.leaf_hash:
            raise LogCorrupt("the body is not what was recorded", index=nth)
        if row.kind not in range(len(KINDS)) or not isinstance(row.id, bytes) or len(row.id) != 16:
            raise LogCorrupt("its columns are damaged", index=nth)
        search = {name: words[number] for name in _COLUMNS if (number := getattr(row, name)) in words}
        if row.request_id is not None:
            search["request_id"] = row.request_id
        entry_id = str(UUID(bytes=row.id))
        found.append(Stored(nth, entry_id, KINDS[row.kind], row.time_us, row.leaf_hash, row.body, search))
    if len(rows) < end - from_index:
        raise LogCorrupt("missing", index=from_index + len(rows))
    return found


@dataclass(frozen=True, slots=True)
class Picked:
    """An entry of some kind, without its columns."""

    index: int
    id: str
    kind: Kind
    time_us: int
    body: bytes

    def document(self) -> dict[str, Any]:
        """The body as JSON values. Raises ``LogCorrupt`` when it is none."""
        try:
            found = orjson.loads(self.body)
        except ValueError as error:
            raise LogCorrupt("the body is no JSON", index=self.index) from error
        if not isinstance(found, dict):
            raise LogCorrupt("the body is no object", index=self.index)
        return found


def of_kinds(
    connection: Connection, kinds: Sequence[Kind], from_index: int, to_index: int, *, log: int = 0
) -> list[Picked]:
    """The entries of these kinds from an index on, before ``to_index``, in the order of the log.

    Raises ``LogCorrupt`` naming the first that is damaged.
    """
    columns = (ENTRY.c.index.label(_PLACE), ENTRY.c.id, ENTRY.c.kind, ENTRY.c.time_us, ENTRY.c.leaf_hash, BODY.c.body)
    query = select(*columns).join_from(ENTRY, BODY, has_body(connection), isouter=True)
    query = query.where(ENTRY.c.index >= place(log, from_index), ENTRY.c.index < place(log, to_index))
    query = query.where(ENTRY.c.kind.in_([KINDS.index(kind) for kind in kinds])).order_by(ENTRY.c.index)
    found = []
    for row in connection.execute(query):
        index = index_of(row.place)
        if not isinstance(row.body, bytes) or leaf_hash(row.body) != row.leaf_hash:
            raise LogCorrupt("the body is not what was recorded", index=index)
        found.append(Picked(index, str(UUID(bytes=row.id)), KINDS[row.kind], row.time_us, row.body))
    return found


def texts(connection: Connection, numbers: Iterable[int | None]) -> dict[int | None, str]:
    """The words with these numbers."""
    found: dict[int | None, str] = {}
    for part in parts(sorted({number for number in numbers if number is not None})):
        query = select(WORD.c.number, WORD.c.text).where(WORD.c.number.in_(part))
        found.update((row.number, row.text) for row in connection.execute(query))
    return found


def parts(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """As many as one statement takes, again and again."""
    for start in range(0, len(numbers), ROWS_PER_STATEMENT_MAX):
        yield numbers[start : start + ROWS_PER_STATEMENT_MAX]
