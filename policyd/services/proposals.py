"""Proposals of one person that another approves, as rows beside the log, and what the writer does with them.

    propose ──an entry──► open ──approved by another: entry and action in one transaction──► done
                           └────────────── time passes ──────────────► expired

Rules: a proposal names its action whole, by a digest over a document that never changes; whoever approves is another
one than whoever proposed; a proposal is used once, and everything about that is judged again in the writer's
transaction, where nobody comes between; what it says is in its entry alone, since that
is where personal fields are encrypted. The table comes from
``audit/migrations``. It owns no transaction: ``policyd.services.commit`` does.
It refuses: to approve what is done, expired, unknown, other than what was read, or one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol
from uuid import UUID

import orjson
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    delete,
    func,
    select,
    update,
)

from audit.personal import ERASED, UNREADABLE, Vault
from audit.query import Record, by_id
from audit.record import Entry, digest
from policyd.errors import NotFound, Overloaded, PolicydError, ProposalClosed, SamePerson
from policyd.services.revision_rows import Step, take

PROPOSALS: Final = Table(
    "proposal",
    MetaData(),
    Column("id", LargeBinary, primary_key=True),
    Column("state", SmallInteger, nullable=False),
    Column("action", Text, nullable=False),
    Column("tenant", Text, nullable=True),
    Column("digest", Text, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
OPEN: Final = 0
DONE: Final = 1
KEPT_US: Final = 30 * 86_400_000_000
"""How long a row outlives its proposal, so that who comes late is told what became of it; the entries stay."""
NO_PROPOSAL_REMEDY: Final = "take the id from `GET /v1/proposals` or `policyd approve`"


@dataclass(frozen=True, slots=True)
class Propose:
    """Open a proposal under the id of its entry, which says what it is; ``tenant`` None concerns all of them."""

    action: str
    tenant: str | None
    digest: str
    expires_us: int
    open_max: int


@dataclass(frozen=True, slots=True)
class Approve:
    """Do what a proposal says. ``digest`` is that of what the approver has read."""

    proposal: str
    digest: str
    approver: str


@dataclass(frozen=True, slots=True)
class Alone:
    """Do what one person may do alone, in the transaction of its entry. ``document`` is JSON."""

    action: str
    tenant: str
    document: str


Deed = Propose | Approve | Alone | Step
"""What an entry does besides being one: to proposals, to waivers, or to revisions."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposal as it is kept. ``document`` and ``proposer`` are those of its entry, as far as that can be read."""

    id: str
    state: int
    action: str
    tenant: str | None
    digest: str
    document: dict[str, Any]
    proposer: str
    time_us: int
    expires_us: int


@dataclass(frozen=True, slots=True)
class Approved:
    """What an action is told: the proposal, who approved it with which entry, and when."""

    proposal: Proposal
    approval: str
    approver: str
    time_us: int


@dataclass(frozen=True, slots=True)
class Effect:
    """What an action has done: what the approver is told, and the entries that follow the approval."""

    told: Mapping[str, Any] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()


Perform = Callable[[Connection, Approved, Vault], Effect]
"""Does it, in the writer's transaction, with the keys of personal fields.

Raises ``PolicydError`` before it has written anything.
"""


PerformAlone = Callable[[Connection, Entry, Alone], Effect]
"""The same, of what one person does alone."""


class Submitted(Protocol):
    """What is judged: an entry, and what it does to proposals."""

    @property
    def entry(self) -> Entry: ...

    @property
    def deed(self) -> Deed | None: ...


@dataclass(frozen=True, slots=True)
class Performed:
    """Of each submission with a deed, by entry id: what it did, or why it is refused."""

    effects: Mapping[str, Effect]
    refused: Mapping[str, PolicydError]


NOTHING: Final = Performed({}, {})


class Deeds:
    """The proposals behind the writer's connection; ``actions`` of two persons, and those of one ``alone``, by name."""

    def __init__(self, actions: Mapping[str, Perform], vault: Vault, alone: Mapping[str, PerformAlone]) -> None:
        self._actions = actions
        self._alone = alone
        self._vault = vault

    def judge(self, connection: Connection, batch: Iterable[Submitted]) -> Performed:
        """Open and perform what the batch brings, in its order."""
        asked = [(each.entry, each.deed) for each in batch if each.deed is not None]
        if not asked:
            return NOTHING
        effects: dict[str, Effect] = {}
        refused: dict[str, PolicydError] = {}
        for entry, deed in asked:
            try:
                if isinstance(deed, Step):
                    taken = take(connection, deed, entry.time_us)
                    effects[entry.id] = Effect({"revisions": [[each.kind, each.digest, each.state] for each in taken]})
                elif isinstance(deed, Propose):
                    effects[entry.id] = self._open(connection, entry, deed)
                elif isinstance(deed, Alone):
                    effects[entry.id] = self._perform_alone(connection, entry, deed)
                else:
                    effects[entry.id] = self._perform(connection, entry, deed)
            except PolicydError as error:
                refused[entry.id] = error
        return Performed(effects, refused)

    def _open(self, connection: Connection, entry: Entry, deed: Propose) -> Effect:
        if deed.action not in self._actions:
            raise NotFound(f"there is no action {deed.action!r}")
        connection.execute(delete(PROPOSALS).where(PROPOSALS.c.expires_us <= entry.time_us - KEPT_US))
        is_open = (PROPOSALS.c.state == OPEN, PROPOSALS.c.expires_us > entry.time_us)
        count = connection.execute(select(func.count()).select_from(PROPOSALS).where(*is_open)).scalar_one()
        if count >= deed.open_max:
            raise Overloaded(f"{count} proposals wait for approval, the most that proposals.open_max admits")
        connection.execute(
            PROPOSALS.insert(),
            {
                "id": UUID(entry.id).bytes,
                "state": OPEN,
                "action": deed.action,
                "tenant": deed.tenant,
                "digest": deed.digest,
                "time_us": entry.time_us,
                "expires_us": deed.expires_us,
            },
        )
        return Effect({"proposal": entry.id, "digest": deed.digest})

    def _perform_alone(self, connection: Connection, entry: Entry, deed: Alone) -> Effect:
        if deed.action not in self._alone:
            raise NotFound(f"there is no action {deed.action!r} of one person")
        return self._alone[deed.action](connection, entry, deed)

    def _perform(self, connection: Connection, entry: Entry, deed: Approve) -> Effect:
        row, record = stored(connection, deed.proposal), by_id(connection, deed.proposal)
        if row is None or record is None:
            raise NotFound(f"there is no proposal {deed.proposal}", remedy=NO_PROPOSAL_REMEDY)
        proposal = proposal_of(row, replace(record, personal=self._vault.fields(record.body)))
        check_open(proposal, deed.approver, deed.digest, entry.time_us)
        of_this = PROPOSALS.c.id == UUID(proposal.id).bytes
        # Another writer of the database may be approving it at this moment: the second one finds it done.
        closed = connection.execute(
            update(PROPOSALS).where(of_this, PROPOSALS.c.state == OPEN).values(state=DONE)
        ).rowcount
        if closed != 1:
            raise ProposalClosed(f"proposal {proposal.id} was approved just before")
        approved = Approved(proposal, entry.id, deed.approver, entry.time_us)
        try:
            return self._actions[proposal.action](connection, approved, self._vault)
        except PolicydError:
            connection.execute(update(PROPOSALS).where(of_this).values(state=OPEN))
            raise


def check_open(proposal: Proposal, approver: str, read: str | None, time_us: int) -> None:
    """Raise ``ProposalClosed`` or ``SamePerson`` unless this person may approve it now."""
    if proposal.state != OPEN:
        raise ProposalClosed(f"proposal {proposal.id} was approved already, and is used up")
    if proposal.expires_us <= time_us:
        raise ProposalClosed(f"proposal {proposal.id} has expired; propose it again")
    if digest_of(proposal.action, proposal.tenant, proposal.document) != proposal.digest:
        raise ProposalClosed(f"proposal {proposal.id} can no longer be read; whom it is about was erased")
    if read is not None and read != proposal.digest:
        raise ProposalClosed(
            f"proposal {proposal.id} is {proposal.digest}, and not what was read",
            remedy="read the proposal again, and approve what it says",
        )
    if proposal.proposer in (ERASED, UNREADABLE):
        # Nobody can say any more that the approver is another one.
        raise ProposalClosed(f"nobody can read who proposed {proposal.id}; propose it again")
    if approver == proposal.proposer:
        raise SamePerson(f"{approver!r} has proposed {proposal.id}, so another person must approve it")


@dataclass(frozen=True, slots=True)
class Row:
    """What the table knows of a proposal."""

    id: str
    state: int
    action: str
    tenant: str | None
    digest: str
    time_us: int
    expires_us: int


def stored(connection: Connection, proposal_id: str) -> Row | None:
    """The proposal with this id."""
    row = connection.execute(select(PROPOSALS).where(PROPOSALS.c.id == UUID(proposal_id).bytes)).one_or_none()
    return None if row is None else _row(row)


def waiting(connection: Connection, time_us: int, limit: int) -> Sequence[Row]:
    """The proposals that may be approved at this time, oldest first."""
    rows = connection.execute(
        select(PROPOSALS)
        .where(PROPOSALS.c.state == OPEN, PROPOSALS.c.expires_us > time_us)
        .order_by(PROPOSALS.c.time_us, PROPOSALS.c.id)
        .limit(limit)
    )
    return [_row(row) for row in rows]


def proposal_of(row: Row, record: Record) -> Proposal:
    """A proposal, whole: what its entry says with what the table knows."""
    body = record.document()
    document, proposer = body.get("document", {}), body["principal"]
    names = ("id", "state", "action", "tenant", "digest", "time_us", "expires_us")
    return Proposal(document=document, proposer=proposer, **{name: getattr(row, name) for name in names})


def digest_of(action: str, tenant: str | None, document: Mapping[str, Any]) -> str:
    """What names a proposal: over all that it says."""
    return digest(orjson.dumps([action, tenant, document], option=orjson.OPT_SORT_KEYS))


def _row(row: Any) -> Row:
    names = ("state", "action", "tenant", "digest", "time_us", "expires_us")
    return Row(str(UUID(bytes=row.id)), *(getattr(row, name) for name in names))
