"""The reading side of the log: search and single records, beside a running writer or without one.

Rules: reads run in threads, a few at a time, each with a deadline that really stops the database; the log's failures
become ``policyd.errors``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar, get_args

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from audit import entries, query, report, store, tree_store
from audit.entries import Stored
from audit.errors import AuditFailure, BodyRemoved, QueryInvalid, SearchTooSlow
from audit.query import DECISION_KINDS, LIMIT_DEFAULT, Owner, Page, Record, Within
from audit.record import Kind
from policyd.core.fleet import Level
from policyd.core.workload import Environment
from policyd.errors import AuditError, Finding, NotFound, Overloaded, RequestError
from policyd.ledger.changes import LimitKey, SetLimit
from policyd.ledger.rows import current_accounts, set_limits
from policyd.ledger.rules import Account
from policyd.services.checkpoints import audit_error, no_log, unreadable
from policyd.services.data_directory import DataDirectory
from policyd.services.idempotency import Kept, found

T = TypeVar("T")

SEARCH_DEADLINE_MS: Final = 10_000
WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "outcome": ("allow", "deny", "error"),
    "environment": get_args(Environment),
    "classification": get_args(Level),
}
"""The filters whose words are fixed."""
PERSONS: Final = ("principal", "approver")
"""The filters that name a person."""


class LogReader:
    """Reads one log. Made by ``open``; ``close`` gives its connections back.

    Raises ``RequestError`` for a search that cannot be understood, ``NotFound``, and ``AuditError`` for a log that is
    absent, damaged or too slow.
    """

    def __init__(self, directory: DataDirectory, *, deadline_ms: int = SEARCH_DEADLINE_MS) -> None:
        self._deadline_ms = deadline_ms
        self._store = directory.store
        if not self._store.exists():
            raise no_log(directory.path)
        try:
            self._engine = self._store.open_reader()
            self._keys = directory.open_readable()
        except AuditFailure as error:
            raise audit_error("the log cannot be read", error) from error

    @classmethod
    async def open(cls, directory: DataDirectory, *, deadline_ms: int = SEARCH_DEADLINE_MS) -> LogReader:
        """A reader of the log in this directory."""
        return await asyncio.to_thread(cls, directory, deadline_ms=deadline_ms)

    async def search(
        self,
        filters: Mapping[str, str],
        cursor: str | None = None,
        limit: int = LIMIT_DEFAULT,
        *,
        kinds: Sequence[Kind] = DECISION_KINDS,
        within: Sequence[Within] | None = None,
    ) -> Page:
        """Entries that match every filter, newest first; see ``audit.query``."""
        _check_words(filters)

        def read(connection: Connection) -> Page:
            return query.search(connection, self._known_as(filters), cursor, limit, kinds=kinds, within=within)

        return await self._read(lambda connection: self._page_opened(read(connection)))

    async def by_id(self, entry_id: str) -> Record:
        """The entry with this id."""
        (record,) = await self.by_ids([entry_id])
        if record is None:
            raise NotFound(no_entry(entry_id), remedy=NO_ENTRY_REMEDY)
        return record

    async def by_ids(self, entry_ids: Sequence[str]) -> list[Record | None]:
        """The entries with these ids, in one state of the log; None for one that is not there."""

        def read(connection: Connection) -> list[Record | None]:
            found = [query.by_id(connection, entry_id) for entry_id in entry_ids]
            opened = iter(self._opened([record for record in found if record is not None]))
            return [None if record is None else next(opened) for record in found]

        return await self._read(read)

    async def owner_of(self, entry_id: str, asker: str) -> Owner:
        """To whom the entry with this id belongs; it may be damaged all the same. Its principal is told only to
        ``asker``, when that is who it is."""

        def read(connection: Connection) -> Owner | None:
            owner = query.owner_of(connection, entry_id)
            if owner is None or owner.principal is None or owner.principal == asker:
                return owner
            return replace(owner, principal=asker if owner.principal in self._keys.tokens(asker) else None)

        owner = await self._read(read)
        if owner is None:
            raise NotFound(no_entry(entry_id), remedy=NO_ENTRY_REMEDY)
        return owner

    async def knows(self, tenant: str | None, subject: str) -> bool:
        """Whether entries of this person, of this tenant or of any, can be found and read."""
        return await self._read(lambda _: self._keys.knows(tenant, subject))

    async def personal(self, bodies: Sequence[bytes]) -> list[dict[str, Any] | None]:
        """The personal fields of bodies, where their keys are there; see ``audit.personal``."""
        return await asyncio.to_thread(self._keys.fields, bodies)

    def _opened(self, records: Sequence[Record]) -> tuple[Record, ...]:
        fields = self._keys.fields([record.body for record in records])
        pairs = zip(records, fields, strict=True)
        return tuple(record if found is None else replace(record, personal=found) for record, found in pairs)

    def _page_opened(self, page: Page) -> Page:
        return Page(self._opened(page.items), page.next)

    def _known_as(self, filters: Mapping[str, str]) -> query.Filters:
        """The filters, with all that a person is found by."""
        known = {name: (filters[name], *self._keys.tokens(filters[name])) for name in PERSONS if name in filters}
        return {**filters, **known} if known else filters

    async def blob(self, digest: str) -> bytes:
        """The sheet, revision or facts with this content address."""
        content = await self._read(lambda connection: query.blob(connection, digest))
        if content is None:
            raise NotFound(f"the log holds nothing with the digest {digest!r}")
        return content

    async def count(
        self,
        tables: Sequence[report.Table],
        filters: Mapping[str, str],
        read: Callable[[bytes], report.Told],
        spending: report.Spending,
        *,
        after: report.Place | None = None,
        rows_max: int,
        within: Sequence[Within] | None = None,
    ) -> report.Counted:
        """One step of counting; see ``audit.report``."""
        _check_words(filters)
        more: dict[str, Any] = {"spending": spending, "after": after, "rows_max": rows_max, "within": within}
        return await self._read(
            lambda connection: report.count(connection, tables, self._known_as(filters), read, **more)
        )

    async def logs(self) -> dict[int, str]:
        """The names of the logs in the database, by their numbers."""
        return await self._read(entries.numbered_origins)

    async def size(self, log: int) -> int:
        """How many entries a log has."""
        return await self._read(lambda connection: tree_store.entries_of(connection, log))

    async def entries(self, log: int, from_index: int, to_index: int) -> list[Stored]:
        """One step of reading a log from front to back; see ``audit.entries``."""
        return await self._read(lambda connection: entries.entries(connection, from_index, to_index, log=log))

    async def total(self, filters: Mapping[str, str], *, within: Sequence[Within] | None = None) -> int:
        """How many entries there are to count."""
        _check_words(filters)
        return await self._read(lambda connection: report.total(connection, self._known_as(filters), within=within))

    async def first_uses(
        self, filters: Mapping[str, str], from_index: int, *, within: Sequence[Within] | None = None
    ) -> tuple[list[report.FirstUse], int | None]:
        """One step of looking for first uses; see ``audit.report``."""
        _check_words(filters)
        return await self._read(
            lambda connection: report.first_uses(
                connection, self._known_as(filters), from_index=from_index, within=within
            )
        )

    async def accounts(self, paths: Sequence[str], time_us: int) -> list[Account]:
        """The budget accounts of these paths in the windows of that time."""
        return await self._read(lambda connection: current_accounts(connection, paths, time_us))

    async def set_limits(self) -> tuple[int, Mapping[LimitKey, SetLimit]]:
        """The number of the last change of limits, and what is set."""
        return await self._read(set_limits)

    async def key(self, scope: bytes, now_us: int) -> Kept | None:
        """What an idempotency key was used for, if it was and that has not expired."""
        return await self._read(lambda connection: found(connection, scope, now_us))

    async def origins(self) -> tuple[str, ...]:
        """The names of the logs that this reads: of a file one, of a database one for each writer there has been."""
        return await self._read(store.origins)

    async def read(self, read: Callable[[Connection], T]) -> T:
        """Whatever else is read of the log, in one transaction and within the deadline."""
        return await self._read(read)

    async def close(self) -> None:
        """Close every connection."""
        await asyncio.to_thread(self._engine.dispose)
        await asyncio.to_thread(self._keys.close)

    async def _read(self, read: Callable[[Connection], T]) -> T:
        return await asyncio.to_thread(self._read_now, read)

    def _read_now(self, read: Callable[[Connection], T]) -> T:
        try:
            with self._engine.connect() as connection, self._store.deadline(connection, self._deadline_ms):
                return read(connection)
        except QueryInvalid as error:
            raise RequestError(str(error), findings=[Finding(error.field, error.message)]) from error
        except SearchTooSlow as error:
            raise AuditError(str(error), remedy="narrow the search by from and to, or by tenant") from error
        except BodyRemoved as error:
            raise NotFound(str(error), remedy=REMOVED_REMEDY) from error
        except AuditFailure as error:
            raise audit_error("the log cannot be read", error) from error
        except PoolTimeout as error:
            raise Overloaded("too many searches of the log at once") from error
        except DBAPIError as error:
            raise unreadable(error) from error


REMOVED_REMEDY: Final = "receipts that were handed out before still verify; exports have the leaf hash and the proof"
NO_ENTRY_REMEDY: Final = "take the id from a search of this log"


def no_entry(entry_id: str) -> str:
    """The words for an entry that is not there, which are also those for one that the caller may not see."""
    return f"no entry has the id {entry_id!r}"


def _check_words(filters: Mapping[str, str]) -> None:
    """A filter that no entry can match is a mistake, and not an answer of nothing."""
    for field, words in WORDS.items():
        word = filters.get(field)
        if word is not None and word not in words:
            message = f"{word!r} is none of {', '.join(words)}"
            raise RequestError(f"{field}: {message}", findings=[Finding(field, message)])
