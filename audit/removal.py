"""Removing bodies: what an entry said goes, with all that a search would find it by, and its leaf hash stays.

    entry, body, terms, postings ──remove──► entry: place, id, ~kind, time, tenant, leaf hash

A kind that is marked (``~kind``, below zero) is no kind that a search asks for; id and tenant stay, so that whoever
asks for the entry by its id is told what became of it. The blocks of the search index that the entries
are in are made again, so that they say what the entries say.

Rules: owns no transaction, and appends nothing: the caller appends the warrant in the same transaction, and whoever
remembers rows of the log (``audit.store.Tail``) reads them again; the work is bounded by the entries and the blocks
that they are in.
It refuses: nothing; what may be removed is for the caller to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, delete, select, update

from audit import blocks
from audit.block_store import Sealer, terms_between
from audit.block_tables import BLOCK, POSTING
from audit.record import SEARCH_FIELDS
from audit.tables import BODY, ENTRY, ENTRY_TERM, INDEX_BITS, place

_GONE: Final = {name: None for name in SEARCH_FIELDS if name != "tenant"}
"""What of the columns goes."""
ROWS_MAX: Final = 512


def remove(connection: Connection, log: int, indexes: Sequence[int]) -> None:
    """Remove the bodies of these entries, which are there and rise."""
    places = [place(log, index) for index in indexes]
    for number in sorted({blocks.block_of(each) for each in places}):
        first = blocks.first_place(number)
        end = first + blocks.block_entries()
        _remove_within(connection, log, number, [each for each in places if first <= each < end])


def _remove_within(connection: Connection, log: int, block: int, places: Sequence[int]) -> None:
    sealed = connection.execute(select(BLOCK.c.number).where(BLOCK.c.number == block)).scalar() is not None
    before = _postings(connection, log, block) if sealed else {}
    gone = set(places)
    terms = terms_between(connection, places[0], places[-1] + 1)
    _delete_terms(connection, [term for term in terms if term[2] in gone])
    for part in _parts(places):
        connection.execute(delete(BODY).where(BODY.c.index.in_(part)))
        marked: dict[Any, Any] = {
            ENTRY.c.kind: -1 - ENTRY.c.kind,
            **{ENTRY.c[name]: value for name, value in _GONE.items()},
        }
        connection.execute(update(ENTRY).where(ENTRY.c.index.in_(part), ENTRY.c.kind >= 0).values(marked))
    if sealed:
        _replace(connection, block, before, _postings(connection, log, block))


def _postings(connection: Connection, log: int, block: int) -> dict[tuple[int, int], bytes]:
    # It remembers nothing, so everything is read.
    _, rows = Sealer(log, 1 << INDEX_BITS).rows(connection, block)
    return {(field, value): offsets for field, value, _, offsets in rows}


def _replace(
    connection: Connection, block: int, before: dict[tuple[int, int], bytes], after: dict[tuple[int, int], bytes]
) -> None:
    changed = [key for key, offsets in before.items() if after.get(key) != offsets]
    same = and_(
        POSTING.c.field == bindparam("of_field"),
        POSTING.c.value == bindparam("of_value"),
        POSTING.c.block == block,
    )
    if changed:
        keys = [{"of_field": field, "of_value": value} for field, value in changed]
        connection.execute(delete(POSTING).where(same), keys)
    made = [key for key, offsets in after.items() if before.get(key) != offsets]
    if made:
        rows = [{"field": key[0], "value": key[1], "block": block, "offsets": after[key]} for key in sorted(made)]
        connection.execute(POSTING.insert(), rows)


def _delete_terms(connection: Connection, terms: Sequence[tuple[int, int, int]]) -> None:
    if not terms:
        return
    same = and_(
        ENTRY_TERM.c.field == bindparam("of_field"),
        ENTRY_TERM.c.value == bindparam("of_value"),
        ENTRY_TERM.c.index == bindparam("of_index"),
    )
    rows: list[dict[str, Any]] = [{"of_field": field, "of_value": value, "of_index": at} for field, value, at in terms]
    connection.execute(delete(ENTRY_TERM).where(same), rows)


def _parts(places: Sequence[int]) -> Iterable[Sequence[int]]:
    for start in range(0, len(places), ROWS_MAX):
        yield places[start : start + ROWS_MAX]
