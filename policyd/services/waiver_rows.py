"""Waivers as rows beside the log, and what the writer does with them.

    proposed (an entry) ──approved by another──► granted: a row and an entry, in one transaction ──time──► expired
    broken glass (an entry by one person) ──────► a row, in the same transaction

Rules: a row is never changed; whether it counts is a matter of the time and of its rule, which ``policyd.core.waivers``
compares at each decision; rows outlive their waivers by thirty days, so that a list can tell what became of them, and
the entries stay. The reason is in the entries alone. The table comes from ``audit/migrations``.
It refuses: to grant what has expired meanwhile, and more in force at once than ``IN_FORCE_MAX``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args
from uuid import UUID

import orjson
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
    delete,
    func,
    select,
)

from audit.personal import Vault
from audit.record import Entry, Search, encode, personal
from policyd.core.waivers import Kind, Waiver
from policyd.errors import Overloaded, ProposalClosed
from policyd.services.clock import rfc3339, uuid7
from policyd.services.proposals import KEPT_US, Alone, Approved, Effect

WAIVERS: Final = Table(
    "waiver",
    MetaData(),
    Column("id", LargeBinary, primary_key=True),
    Column("kind", SmallInteger, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("project", Text, nullable=True),
    Column("policy", Text, nullable=True),
    Column("rule", Text, nullable=True),
    Column("rule_digest", Text, nullable=True),
    Column("pool", Text, nullable=True),
    Column("model", Text, nullable=True),
    Column("approval", LargeBinary, nullable=False),
    Column("from_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""Stored as their position here: append new ones at the end, never reorder."""
IN_FORCE_MAX: Final = 1_000
LISTED_MAX: Final = 1_000
RECORD_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Row:
    """A waiver, and the entry of who answers for it."""

    waiver: Waiver
    approval: str


def grant(connection: Connection, approved: Approved, _: Vault) -> Effect:
    """The action ``waiver``: what two persons have agreed on is in force from the moment of the approval."""
    proposal = approved.proposal
    assert proposal.tenant is not None
    waiver = waiver_of(proposal.id, proposal.tenant, proposal.document, approved.time_us)
    if waiver.kind == "break_glass" or waiver.expires_us <= approved.time_us:
        raise ProposalClosed(
            f"waiver {proposal.id} would have ended at {rfc3339(waiver.expires_us)}",
            remedy="request it again, with an end that is still to come",
        )
    insert(connection, waiver, approved.approval)
    told = {"proposal": proposal.id, "approval": approved.approval}
    entry = waiver_entry("granted", uuid7(approved.time_us), approved.time_us, waiver, proposal.document, told)
    return Effect({"waiver": waiver.id, "expires_at": rfc3339(waiver.expires_us)}, (entry,))


def break_glass(connection: Connection, entry: Entry, deed: Alone) -> Effect:
    """What one person does alone: in force from the moment of the entry, which is its approval too."""
    document = orjson.loads(deed.document)
    waiver = waiver_of(entry.id, deed.tenant, document, entry.time_us)
    if waiver.kind != "break_glass" or waiver.expires_us <= entry.time_us:
        raise ProposalClosed("one person alone breaks the glass and does nothing else, for a time that is to come")
    insert(connection, waiver, entry.id)
    return Effect({"waiver": waiver.id})


def insert(connection: Connection, waiver: Waiver, approval: str) -> None:
    """Keep a waiver. Raises ``Overloaded``."""
    connection.execute(delete(WAIVERS).where(WAIVERS.c.expires_us <= waiver.from_us - KEPT_US))
    in_force = select(func.count()).select_from(WAIVERS).where(WAIVERS.c.expires_us > waiver.from_us)
    if connection.execute(in_force).scalar_one() >= IN_FORCE_MAX:
        raise Overloaded(f"{IN_FORCE_MAX} waivers are in force, the most that there can be")
    values = {name: getattr(waiver, name) for name in (*_TEXTS, "from_us", "expires_us")}
    numbered = {"id": UUID(waiver.id).bytes, "approval": UUID(approval).bytes, "kind": KINDS.index(waiver.kind)}
    connection.execute(WAIVERS.insert(), {**values, **numbered})


def waiver_of(waiver_id: str, tenant: str, document: Mapping[str, Any], from_us: int) -> Waiver:
    """The waiver that the document of a proposal asks for, from this moment on."""
    policy, _, rule = document.get("rule", "").partition(".")
    return Waiver(
        id=waiver_id,
        kind=document["kind"],
        tenant=tenant,
        project=document.get("project"),
        policy=policy or None,
        rule=rule or None,
        rule_digest=document.get("rule_digest"),
        pool=document.get("pool"),
        model=document.get("model"),
        from_us=from_us,
        expires_us=document["expires_us"],
    )


def waiver_entry(
    event: str,
    entry_id: str,
    time_us: int,
    waiver: Waiver,
    document: Mapping[str, Any],
    told: Mapping[str, Any],
    principal: str | None = None,
) -> Entry:
    """The entry of a waiver that is in force from now on, found by its id and its rule, and by who did it alone."""
    fields = {
        "v": RECORD_VERSION,
        "kind": "waiver",
        "event": event,
        "id": entry_id,
        "time": rfc3339(time_us),
        "scope": [waiver.tenant, waiver.project, None],
        "waiver": waiver.id,
        "document": {name: value for name, value in document.items() if name != "nonce"},
        **told,
    }
    terms = (("waiver", waiver.id), *((("rule", waiver.rule),) if waiver.rule else ()))
    search = Search(waiver.tenant, waiver.project, principal=principal, request_id=told.get("request_id"))
    about = () if principal is None else (personal(principal, {"principal": principal}),)
    return Entry("waiver", entry_id, time_us, encode(fields, os.urandom(16)), search, terms, about)


def rows_in_force(connection: Connection, time_us: int) -> Sequence[Row]:
    """What has not ended at this time."""
    return _rows(connection, WAIVERS.c.expires_us > time_us)


def rows_kept(connection: Connection) -> Sequence[Row]:
    """What is in force and what was lately, newest first."""
    return _rows(connection)


def _rows(connection: Connection, *conditions: ColumnElement[bool]) -> Sequence[Row]:
    query = select(WAIVERS).where(*conditions).order_by(WAIVERS.c.from_us.desc(), WAIVERS.c.id)
    found = connection.execute(query.limit(LISTED_MAX))
    return [Row(_waiver(row), str(UUID(bytes=row.approval))) for row in found]


_TEXTS: Final = ("tenant", "project", "policy", "rule", "rule_digest", "pool", "model")


def _waiver(row: Any) -> Waiver:
    texts = {name: getattr(row, name) for name in _TEXTS}
    times = {"from_us": row.from_us, "expires_us": row.expires_us}
    return Waiver(id=str(UUID(bytes=row.id)), kind=KINDS[row.kind], **texts, **times)
