"""Proofs about a log, from what is stored: its newest checkpoint, that it only grew, that one entry is in it.

Rules: a proof is against a checkpoint that was signed, never against what is not signed yet; an entry that was written
just now is waited for until its checkpoint is there, which takes a second; each proof is read in one transaction.
It refuses: sizes that no checkpoint reaches, and consistency from nothing.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, select

from audit.checkpoint import open_checkpoint
from audit.errors import KeyInvalid, LogCorrupt, ProofInvalid
from audit.export import export_lines
from audit.fold import GAPS_MAX
from audit.gap import Gap, read_gap
from audit.note import VerifierKey
from audit.proof import Receipt
from audit.record import KINDS
from audit.tables import BODY, ENTRY, LOG, has_body, index_of, place
from audit.tree import consistency_proof, edge_at, inclusion_proof
from audit.tree_store import StoredLog, last_checkpoint, stored_nodes
from audit.witness import joined
from policyd.errors import AuditError, AuditTampered, Finding, NotFound, RequestError
from policyd.services.log_reader import LogReader

WAIT_TRIES: Final = 30
WAIT_PAUSE_S: Final = 0.1
PAGE_ENTRIES: Final = 1_000

Signed = tuple[int, bytes]


def log_number(connection: Connection, origin: str) -> int:
    """The number of a log in its database. Raises ``LogCorrupt`` when it has lost its name."""
    found = connection.execute(select(LOG.c.number).where(LOG.c.origin == origin)).scalar()
    if found is None:
        raise LogCorrupt(f"there is no log {origin}")
    return int(found)


async def newest_checkpoint(reader: LogReader, origin: str) -> Signed:
    """Size and signed note of the newest checkpoint. Raises ``NotFound`` when nothing was signed yet."""
    found = await reader.read(lambda connection: last_checkpoint(connection, log_number(connection, origin)))
    if found is None:
        raise NotFound(f"nothing of the log {origin} is signed yet", remedy="ask again in a second")
    return found


async def consistency(reader: LogReader, origin: str, first: int, second: int) -> dict[str, Any]:
    """That the log of ``second`` entries begins with that of ``first``, as a document."""
    size, _ = await newest_checkpoint(reader, origin)
    if first < 1:
        raise _fault("from", "is at least 1: every log begins with nothing, so that there is nothing to prove")
    if second < first:
        raise _fault("to", f"is at least {first}, which `from` is")
    if second > size:
        raise _fault("to", f"is at most {size}, the size of the newest checkpoint")

    def read(connection: Connection) -> list[bytes]:
        return consistency_proof(first, second, stored_nodes(connection, log_number(connection, origin)))

    proof = await reader.read(read)
    return {"log": origin, "from": first, "to": second, "proof": [b64encode(found).decode() for found in proof]}


async def receipt(reader: LogReader, entry_id: str, kept: Callable[[], Sequence[bytes]] = tuple) -> Receipt:
    """The receipt of an entry, with the exact bytes of the entry in it, against a checkpoint of its log.

    That is the newest one that a witness has cosigned, of those that are ``kept``, when it is over the entry; else the
    newest that there is.

    Raises ``NotFound``, and ``AuditError`` when no checkpoint covers the entry and none comes.
    """
    record = await reader.by_id(entry_id)
    origin = record.origin
    signed: Signed | None = joined(await asyncio.to_thread(kept), origin, record.index)
    for _ in range(WAIT_TRIES if signed is None else 0):
        signed = await reader.read(lambda connection: last_checkpoint(connection, log_number(connection, origin)))
        if signed is not None and signed[0] > record.index:
            break
        await asyncio.sleep(WAIT_PAUSE_S)
    if signed is None or signed[0] <= record.index:
        raise AuditError(
            f"no checkpoint covers the entry {entry_id} yet",
            remedy="ask again in a second; a log that is not open for writing is signed when it is next opened",
        )
    size, note = signed

    def read(connection: Connection) -> list[bytes]:
        return inclusion_proof(record.index, size, stored_nodes(connection, log_number(connection, origin)))

    return Receipt(record.index, tuple(await reader.read(read)), note, record.body)


class _Page(StoredLog):
    """A log up to the first checkpoint that is over enough entries more than ``start``."""

    start = 0

    def checkpoints(self, after: int) -> Iterator[Signed]:
        for size, note in super().checkpoints(after):
            yield size, note
            if size - self.start >= PAGE_ENTRIES:
                return


async def export_page(reader: LogReader, origin: str, keys: Sequence[VerifierKey], start: int) -> bytes:
    """A part of the export of a log, which can be verified by itself: from ``start`` to a checkpoint."""
    size, newest = await newest_checkpoint(reader, origin)
    if start > size:
        raise _fault("from", f"is at most {size}, the size of the newest checkpoint")

    def read(connection: Connection) -> bytes:
        page = _Page(connection, origin, log_number(connection, origin))
        page.start = start
        _, note = next(page.checkpoints(start), (size, newest))
        key = open_checkpoint(note, keys).keys[0]
        return b"".join(export_lines(page, key, edge_at(start, page.node)))

    try:
        return await reader.read(read)
    except (ProofInvalid, KeyInvalid) as error:
        raise AuditTampered(f"the log cannot be exported: {error}") from error


async def gaps(reader: LogReader, origin: str, keys: Sequence[VerifierKey]) -> list[Gap]:
    """What the log says itself that it has lost, oldest first."""

    def read(connection: Connection) -> list[Gap]:
        number = log_number(connection, origin)
        # No tenant has such an entry, and an index finds those of none.
        mine = (ENTRY.c.index >= place(number, 0), ENTRY.c.index < place(number + 1, 0))
        query = select(ENTRY.c.index, BODY.c.body).join_from(ENTRY, BODY, has_body(connection)).where(*mine)
        wanted = query.where(ENTRY.c.tenant.is_(None), ENTRY.c.kind == KINDS.index("gap")).order_by(ENTRY.c.index)
        found = connection.execute(wanted.limit(GAPS_MAX)).all()
        return [read_gap(index_of(stored), bytes(body), keys, origin) for stored, body in found]

    try:
        return await reader.read(read)
    except (ProofInvalid, KeyInvalid) as error:
        raise AuditTampered(f"a gap of the log does not hold together: {error}") from error


def _fault(name: str, message: str) -> RequestError:
    return RequestError(f"`{name}` {message}", findings=[Finding(name, message)])
