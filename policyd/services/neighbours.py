"""The other logs of a database, as this replica has seen them: their newest checkpoints become entries of its own.

    each interval ──logs that have grown──► one entry with their checkpoints ──► one that is rolled back is caught by it

Rules: one entry a turn at the most, with a limit of logs; what has grown by such entries alone is not told, or two
quiet replicas would go on about each other for ever; a log that is shorter than it was, or has another past, is named
in the entry and in the server's own log.
It refuses: to be part of any decision: it submits like everybody else, and a turn that fails is left out.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, select

from audit.checkpoint import Checkpoint
from audit.errors import AuditFailure
from audit.note import parse_note
from audit.record import KINDS, Entry, encode
from audit.seen import LOGS_MAX, seen_fields
from audit.tables import ENTRY, LOG, place
from audit.tree import root_at
from audit.tree_store import entries_of, last_checkpoint, stored_nodes
from policyd.errors import PolicydError
from policyd.services.admission import RECORD_VERSION
from policyd.services.clock import now_us, rfc3339, uuid7
from policyd.services.committer import Committer
from policyd.services.log_reader import LogReader

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Look:
    """What is new about one other log."""

    note: bytes
    checkpoint: Checkpoint
    rolled_back: bool


class Neighbours:
    """Looks at the other logs for one writer."""

    def __init__(self, reader: LogReader, committer: Committer) -> None:
        self._reader = reader
        self._committer = committer
        self._seen: dict[str, Checkpoint] = {}

    async def keep_looking(self, interval_ms: int) -> None:
        """A turn each interval, until it is cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(interval_ms / 1_000)

    async def turn(self) -> None:
        """Record what is new about other logs, if anything is."""
        try:
            found = await self._reader.read(self._look)
            if not found:
                return
            await self._committer.submit(_entry(found))
        except PolicydError as error:
            _log.warning("other logs of the database were not looked at: %s", error.detail)
            return
        for each in found:
            self._seen[each.checkpoint.origin] = each.checkpoint
            if each.rolled_back:
                _log.error("the log %s is not what it was: it was rolled back", each.checkpoint.origin)

    def _look(self, connection: Connection) -> list[_Look]:
        found = []
        for number, origin in connection.execute(select(LOG.c.number, LOG.c.origin).order_by(LOG.c.number)).all():
            newest = None if origin == self._committer.origin else last_checkpoint(connection, number)
            if newest is None:
                continue
            look = self._compared(connection, number, Checkpoint.parse(parse_note(newest[1]).text), newest[1])
            if look is not None:
                found.append(look)
        return found[:LOGS_MAX]

    def _compared(self, connection: Connection, number: int, now: Checkpoint, note: bytes) -> _Look | None:
        before = self._seen.get(now.origin)
        if before is None:
            return _Look(note, now, rolled_back=False)
        try:
            whole = now.size >= before.size and entries_of(connection, number) >= before.size
            same = whole and root_at(before.size, stored_nodes(connection, number)) == before.root
        except AuditFailure:
            same = False
        if same and (now.size == before.size or not _told_more(connection, number, before.size, now.size)):
            return None
        return None if not same and now == before else _Look(note, now, rolled_back=not same)


def _told_more(connection: Connection, number: int, start: int, end: int) -> bool:
    """Whether a log has grown by more than what it has seen of others."""
    within = (ENTRY.c.index >= place(number, start), ENTRY.c.index < place(number, end))
    other = select(ENTRY.c.index).where(*within, ENTRY.c.kind != KINDS.index("checkpoint_seen")).limit(1)
    return connection.execute(other).first() is not None


def _entry(found: list[_Look]) -> Entry:
    time_us = now_us()
    entry_id = uuid7(time_us)
    rolled_back = [each.checkpoint.origin for each in found if each.rolled_back]
    fields = seen_fields([each.note for each in found], rolled_back)
    # Verification looks for the kind right behind the id, so that no field comes before or between them.
    head = {"id": entry_id, "kind": "checkpoint_seen", "time": rfc3339(time_us), "v": RECORD_VERSION}
    return Entry("checkpoint_seen", entry_id, time_us, encode({**head, **fields}, os.urandom(16)))
