"""Legal holds: what one covers is neither removed by retention nor erased, until two persons lift it.

    placed (two persons, an entry) ──► in force ──lifted (two persons, an entry)──► lifted

Rules: a hold is above retention and erasure; it covers a tenant, or one person of it; its id is that of the proposal
that placed it, whose entry says whom it is about. The table comes from ``audit/migrations``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    or_,
    select,
    update,
)

from audit.personal import Vault
from audit.record import Entry, Kind, Search, encode
from policyd.errors import NotFound, ProposalClosed
from policyd.services.clock import rfc3339, uuid7
from policyd.services.proposals import Approved, Effect

HOLDS: Final = Table(
    "legal_hold",
    MetaData(),
    Column("id", LargeBinary, primary_key=True),
    Column("state", SmallInteger, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("token", Text, nullable=True),
    Column("time_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
IN_FORCE: Final = 0
LIFTED: Final = 1
RECORD_VERSION: Final = 1
HOLDS_MAX: Final = 1_000
"""Holds in force that are listed."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold. ``token`` is what entries of the person are found by; without it, it covers all of the tenant."""

    id: str
    tenant: str
    token: str | None
    time_us: int

    def to_json(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """As a document, with that of its proposal."""
        told = {"tenant": self.tenant, "subject": document.get("subject"), "reason": document.get("reason")}
        return {"id": self.id, **told, "placed_at": rfc3339(self.time_us)}


def place(connection: Connection, approved: Approved, vault: Vault) -> Effect:
    """The action ``hold.place``."""
    tenant, subject = approved.proposal.tenant, approved.proposal.document.get("subject")
    assert tenant is not None
    connection.execute(
        HOLDS.insert(),
        {
            "id": UUID(approved.proposal.id).bytes,
            "state": IN_FORCE,
            "tenant": tenant,
            "token": None if subject is None else vault.token(tenant, subject),
            "time_us": approved.time_us,
        },
    )
    return Effect({"hold": approved.proposal.id}, (_entry(approved, approved.proposal.id, "placed"),))


def lift(connection: Connection, approved: Approved, vault: Vault) -> Effect:
    """The action ``hold.lift``."""
    hold_id = approved.proposal.document["hold"]
    lifted = connection.execute(
        update(HOLDS).where(HOLDS.c.id == UUID(hold_id).bytes, HOLDS.c.state == IN_FORCE).values(state=LIFTED)
    ).rowcount
    if lifted != 1:
        raise ProposalClosed(f"hold {hold_id} was lifted before", remedy="look at the holds in force")
    return Effect({"hold": hold_id}, (_entry(approved, hold_id, "lifted"),))


def keep_holds(connection: Connection) -> None:
    """From here to the end of the transaction no hold is placed or lifted by another writer of the database."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"LOCK TABLE {HOLDS.name} IN SHARE ROW EXCLUSIVE MODE")


def holds_in_force(connection: Connection, *conditions: ColumnElement[bool]) -> Sequence[Hold]:
    """The holds in force, oldest first."""
    query = select(HOLDS).where(HOLDS.c.state == IN_FORCE, *conditions).order_by(HOLDS.c.time_us, HOLDS.c.id)
    rows = connection.execute(query.limit(HOLDS_MAX))
    return [Hold(str(UUID(bytes=row.id)), row.tenant, row.token, row.time_us) for row in rows]


def hold_of(connection: Connection, hold_id: str) -> Hold:
    """The hold with this id. Raises ``NotFound`` unless it is in force."""
    found = holds_in_force(connection, HOLDS.c.id == UUID(hold_id).bytes)
    if not found:
        raise NotFound(f"no hold {hold_id} is in force", remedy="take the id from the list of holds")
    return found[0]


def holds_on(connection: Connection, tenant: str, token: str) -> Sequence[Hold]:
    """The holds in force that cover this person of this tenant."""
    covered = or_(HOLDS.c.token.is_(None), HOLDS.c.token == token)
    return holds_in_force(connection, HOLDS.c.tenant == tenant, covered)


def effect_entry(kind: Kind, approved: Approved, **told: Any) -> Entry:
    """The entry of what two persons have done: it names the proposal and the approval, which name the persons."""
    entry_id = uuid7(approved.time_us)
    tenant = approved.proposal.tenant
    fields = {
        "v": RECORD_VERSION,
        "kind": kind,
        "id": entry_id,
        "time": rfc3339(approved.time_us),
        "proposal": approved.proposal.id,
        "approval": approved.approval,
        **({} if tenant is None else {"scope": [tenant, None, None]}),
        **told,
    }
    return Entry(kind, entry_id, approved.time_us, encode(fields, os.urandom(16)), Search(tenant=tenant))


def _entry(approved: Approved, hold_id: str, event: str) -> Entry:
    return effect_entry("hold", approved, event=event, hold=hold_id)
