"""Erasing a person: the key of their personal fields is destroyed, and with it the way from the name to the entries.

    approved ──an entry and an intention, in one transaction──► due ──the key is destroyed──► done

Rules: the key store is another place than the log, so the intention is durable before the key goes, and is finished
whatever ends the process in between, at the next opening of the log; what a legal hold covers is not erased; without a
tenant it is the person in every tenant and in the entries of none; neither the rows here nor the entry say
whose key it was. The table comes from ``audit/migrations``.
It refuses: to erase a person of whom nothing is kept.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from sqlalchemy import BigInteger, Column, Connection, LargeBinary, MetaData, SmallInteger, Table, Text, select, update

from audit.personal import Vault
from policyd.errors import OnHold, ProposalClosed
from policyd.services.holds import effect_entry, holds_on, keep_holds
from policyd.services.proposals import Approved, Effect

ERASURES: Final = Table(
    "erasure",
    MetaData(),
    Column("id", LargeBinary, primary_key=True),
    Column("token", Text, primary_key=True),
    Column("state", SmallInteger, nullable=False, index=True),
    Column("time_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
DUE: Final = 0
DONE: Final = 1


def erase(connection: Connection, approved: Approved, vault: Vault) -> Effect:
    """The action ``erasure``."""
    asked, subject = approved.proposal.tenant, approved.proposal.document["subject"]
    found = [(tenant, token) for tenant, token in vault.everywhere(subject) if asked in (None, tenant)]
    if not found:
        raise ProposalClosed("nothing is kept of that person any more", remedy="it was erased before")
    # Another replica may be placing a hold on them at this moment.
    keep_holds(connection)
    held = [hold.id for tenant, token in found for hold in holds_on(connection, tenant, token)]
    if held:
        raise OnHold(f"what is kept of that person is held by {', '.join(held)}")
    tokens = sorted(token for _, token in found)
    row = {"id": UUID(approved.proposal.id).bytes, "state": DUE, "time_us": approved.time_us}
    connection.execute(ERASURES.insert(), [{**row, "token": token} for token in tokens])
    return Effect({"erased": tokens}, (effect_entry("erasure", approved, keys=tokens),))


def repeat(connection: Connection, vault: Vault) -> None:
    """Destroy every key that was ever erased, since an older key store may have been put back. Owns its transaction."""
    with connection.begin():
        tokens = list(connection.execute(select(ERASURES.c.token)).scalars())
        if tokens:
            vault.destroy(*tokens)
        connection.execute(update(ERASURES).where(ERASURES.c.state == DUE).values(state=DONE))


def finish(connection: Connection, vault: Vault) -> None:
    """Destroy the keys that are due. Owns its transactions."""
    with connection.begin():
        due = connection.execute(select(ERASURES.c.id, ERASURES.c.token).where(ERASURES.c.state == DUE)).all()
    for erasure_id, token in due:
        vault.destroy(token)
        with connection.begin():
            connection.execute(
                update(ERASURES).where(ERASURES.c.id == erasure_id, ERASURES.c.token == token).values(state=DONE)
            )
