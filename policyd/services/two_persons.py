"""What takes two persons: one proposes, another approves, and it is done in the transaction of the approval's entry.

    propose(action, document) ──► an entry, an id ──approve(id) by another──► an entry, the action, its own entry

Rules: both are authenticated, and each has a permission of its own for the action; the digest is over the whole
document with something random in it, so that it tells nothing about what can be guessed; nothing is done when the log
does not take the approval.
It refuses: ``local``, whoever that is, and the same name twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import Connection

from audit.query import Record
from audit.record import Entry, Kind, Personal, Search, encode, is_entry_id, personal
from audit.store import Position
from policyd.core.principal import LOCAL, Principal
from policyd.errors import Forbidden, NotFound
from policyd.services import holds, proposals
from policyd.services.actions import ACTIONS, Action
from policyd.services.clock import Now, now_us, rfc3339, uuid7
from policyd.services.commit import AdmittedPosition
from policyd.services.decisions import SnapshotNow
from policyd.services.idempotency import Claim, Done
from policyd.services.proposals import NO_PROPOSAL_REMEDY, Approve, Deed, Proposal, Propose, digest_of

T = TypeVar("T")
RECORD_VERSION: Final = 2
LISTED_MAX: Final = 1_000
_ABOUT: Final = ("subject", "nonce")


class Log(Protocol):
    """The writing side of the log, as far as two persons need it."""

    async def submit(self, entry: Entry, *, claim: Claim | None = None, deed: Deed) -> Position: ...


class Reader(Protocol):
    """The reading side of the log, as far as two persons need it."""

    async def read(self, read: Callable[[Connection], T]) -> T: ...

    async def by_id(self, entry_id: str) -> Record: ...

    async def by_ids(self, entry_ids: Sequence[str]) -> list[Record | None]: ...

    async def knows(self, tenant: str | None, subject: str) -> bool: ...


@dataclass
class TwoPersons:
    """Takes proposals and approvals."""

    log: Log
    reader: Reader
    snapshots: SnapshotNow
    origin: str
    ttl_ms: int = 604_800_000
    open_max: int = 1_000
    now: Now = now_us

    async def propose(
        self,
        action: str,
        tenant: str | None,
        document: Mapping[str, Any],
        principal: Principal,
        request_id: str,
        claim: Claim | None = None,
    ) -> dict[str, Any]:
        """Record what is proposed; answers with its id, digest and end. Raises ``Forbidden``."""
        self.require_asking(action, tenant, principal)
        time_us = self.now()
        entry_id = uuid7(time_us)
        whole = {**document, "nonce": os.urandom(16).hex()}
        named = digest_of(action, tenant, whole)
        expires_us = time_us + self.ttl_ms * 1_000
        said, about = _apart(whole)
        told = {"action": action, "digest": named, "document": said, "expires": rfc3339(expires_us)}
        entry = self._entry("proposal", entry_id, time_us, tenant, principal, request_id, told, about)
        deed = Propose(action, tenant, named, expires_us, self.open_max)
        position = await self.log.submit(entry, claim=claim, deed=deed)
        proposal = Proposal(entry_id, proposals.OPEN, action, tenant, named, whole, principal.name, time_us, expires_us)
        return {**proposal_json(proposal), "audit": self._place(position)}

    def require_asking(self, action: str, tenant: str | None, principal: Principal) -> None:
        """Raise ``Forbidden`` unless this principal may propose such a thing."""
        self._require(ACTIONS[action], ACTIONS[action].asking, tenant, principal)

    async def proposed(self, principal: Principal, done: Done) -> dict[str, Any]:
        """What ``propose`` has answered before. Raises ``NotFound``, also for who may no longer see it."""
        return {**proposal_json(await self.proposal(done.id, principal)), "audit": _place_of(done)}

    async def approved(self, proposal_id: str, principal: Principal, done: Done) -> dict[str, Any]:
        """What ``approve`` has answered before. Raises ``Forbidden`` and ``NotFound``."""
        proposal = await self.proposal(proposal_id, principal)
        self._require(ACTIONS[proposal.action], "approve", proposal.tenant, principal)
        told = {"id": proposal.id, "action": proposal.action, "tenant": proposal.tenant, "approval": done.id}
        return {**told, "result": dict(done.told), "audit": _place_of(done)}

    async def propose_erasure(
        self,
        tenant: str | None,
        subject: str,
        reason: str,
        principal: Principal,
        request_id: str,
        claim: Claim | None = None,
    ) -> dict[str, Any]:
        """As ``propose``, for a person of whom something is kept. Raises ``NotFound`` when nothing is."""
        self.require_asking("erasure", tenant, principal)
        if not await self.reader.knows(tenant, subject):
            raise NotFound(
                f"nothing is kept of {subject!r}" + ("" if tenant is None else f" of tenant {tenant!r}"),
                remedy="name the principal as the log does, such as token:ana or oidc:4711",
            )
        return await self.propose(
            "erasure", tenant, {"subject": subject, "reason": reason}, principal, request_id, claim
        )

    async def propose_lifting(
        self, hold_id: str, reason: str, principal: Principal, request_id: str, claim: Claim | None = None
    ) -> dict[str, Any]:
        """As ``propose``, of the hold with this id. Raises ``NotFound``, also for who may not see it."""
        hold = await self.hold(hold_id, principal)
        document = {"hold": hold.id, "reason": reason}
        return await self.propose("hold.lift", hold.tenant, document, principal, request_id, claim)

    async def approve(
        self,
        proposal_id: str,
        principal: Principal,
        request_id: str,
        read: str | None = None,
        claim: Claim | None = None,
    ) -> dict[str, Any]:
        """Approve, and have it done. ``read`` is the digest of what was read, when the caller says it.

        Raises ``Forbidden``, ``SamePerson``, ``NotFound``, ``ProposalClosed`` and what the action raises.
        """
        proposal = await self.proposal(proposal_id, principal)
        self._require(ACTIONS[proposal.action], "approve", proposal.tenant, principal)
        time_us = self.now()
        proposals.check_open(proposal, principal.name, read, time_us)
        told = {"action": proposal.action, "proposal": proposal.id, "digest": proposal.digest}
        approval_id = uuid7(time_us)
        entry = self._entry("approval", approval_id, time_us, proposal.tenant, principal, request_id, told)
        deed = Approve(proposal.id, proposal.digest, principal.name)
        position = await self.log.submit(entry, claim=claim, deed=deed)
        assert isinstance(position, AdmittedPosition)
        done = {"id": proposal.id, "action": proposal.action, "tenant": proposal.tenant, "approval": approval_id}
        return {**done, "result": dict(position.admission), "audit": self._place(position)}

    async def proposal(self, proposal_id: str, principal: Principal) -> Proposal:
        """The proposal with this id. Raises ``NotFound``, also for who may not see it."""
        if not is_entry_id(proposal_id):
            raise NotFound(f"{proposal_id[:100]!r} is no id of a proposal", remedy=NO_PROPOSAL_REMEDY)
        row = await self.reader.read(lambda connection: proposals.stored(connection, proposal_id))
        missing = f"there is no proposal {proposal_id}"
        if row is None:
            raise NotFound(missing, remedy=NO_PROPOSAL_REMEDY)
        if not self._sees(principal, row):
            raise NotFound(missing, remedy=NO_PROPOSAL_REMEDY, truth=f"proposal {proposal_id} was asked for")
        return proposals.proposal_of(row, await self.reader.by_id(proposal_id))

    async def waiting(self, principal: Principal) -> list[Proposal]:
        """The open proposals that this principal may see, oldest first."""
        time_us = self.now()
        found = await self.reader.read(lambda connection: proposals.waiting(connection, time_us, LISTED_MAX))
        seen = [row for row in found if self._sees(principal, row)]
        records = await self.reader.by_ids([row.id for row in seen])
        pairs = zip(seen, records, strict=True)
        return [proposals.proposal_of(row, record) for row, record in pairs if record is not None]

    async def holds_in_force(self, principal: Principal) -> list[dict[str, Any]]:
        """The holds in force of the tenants whose log this principal may read."""
        entitled = self.snapshots.current().entitlements
        found = await self.reader.read(holds.holds_in_force)
        seen = [hold for hold in found if principal.permitted(entitled, "audit", "read", hold.tenant)]
        records = await self.reader.by_ids([hold.id for hold in seen])
        documents = [{} if record is None else record.document().get("document", {}) for record in records]
        return [hold.to_json(document) for hold, document in zip(seen, documents, strict=True)]

    async def hold(self, hold_id: str, principal: Principal) -> holds.Hold:
        """The hold with this id. Raises ``NotFound``, also for who may not see it."""
        if not is_entry_id(hold_id):
            raise NotFound(f"{hold_id[:100]!r} is no id of a hold")
        found = await self.reader.read(lambda connection: holds.hold_of(connection, hold_id))
        if not self._may(ACTIONS["hold.lift"], "propose", found.tenant, principal):
            truth = f"hold {hold_id} of {found.tenant} was asked for"
            raise NotFound(f"no hold {hold_id} is in force", remedy="take the id from the list of holds", truth=truth)
        return found

    def _sees(self, principal: Principal, proposal: proposals.Row) -> bool:
        """Whoever may propose or approve such a thing, or read the log that has it."""
        action = ACTIONS.get(proposal.action)
        if action is None:
            return False
        ways = ((action.obj, action.asking), (action.obj, "approve"), ("audit", "read"))
        return any(self._permitted(principal, obj, verb, proposal.tenant) for obj, verb in ways)

    def _permitted(self, principal: Principal, obj: str, verb: str, tenant: str | None) -> bool:
        snapshot = self.snapshots.current()
        if tenant is None:
            return principal.permitted_everywhere(snapshot.entitlements, obj, verb, sorted(snapshot.fleet.tenants))
        return principal.permitted(snapshot.entitlements, obj, verb, tenant)

    def _may(self, action: Action, verb: str, tenant: str | None, principal: Principal) -> bool:
        return principal.name != LOCAL.name and self._permitted(principal, action.obj, verb, tenant)

    def _require(self, action: Action, verb: str, tenant: str | None, principal: Principal) -> None:
        if principal.name == LOCAL.name:
            raise Forbidden(
                f"{action.name} takes two authenticated persons, and `local` is nobody in particular",
                remedy="set up authentication, and have two persons do it with a token of their own each",
            )
        if not self._may(action, verb, tenant, principal):
            where = "all tenants" if tenant is None else f"tenant {tenant!r}"
            raise Forbidden(f"{principal.name!r} may not {verb} {action.name} for {where}")

    def _entry(
        self,
        kind: Kind,
        entry_id: str,
        time_us: int,
        tenant: str | None,
        principal: Principal,
        request_id: str,
        told: Mapping[str, Any],
        about: tuple[Personal, ...] = (),
    ) -> Entry:
        fields = {
            "v": RECORD_VERSION,
            "kind": kind,
            "id": entry_id,
            "time": rfc3339(time_us),
            "request_id": request_id,
            **({} if tenant is None else {"scope": [tenant, None, None]}),
            **told,
        }
        who = personal(principal.name, {"principal": principal.name})
        search = Search(tenant=tenant, principal=principal.name, request_id=request_id)
        return Entry(kind, entry_id, time_us, encode(fields, os.urandom(16)), search, (), (who, *about))

    def _place(self, position: Position) -> dict[str, Any]:
        return {"log": self.origin, "index": position.index, "leaf_hash": position.leaf_hash.hex()}


def _place_of(done: Done) -> dict[str, Any]:
    return {"log": done.log, "index": done.index, "leaf_hash": done.leaf_hash}


def _apart(document: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Personal, ...]]:
    """What a document says of no person, and what it says of one: the name, and what makes the digest no guess."""
    subject = document.get("subject")
    if subject is None:
        return dict(document), ()
    about = {name: document[name] for name in _ABOUT}
    rest = {name: value for name, value in document.items() if name not in _ABOUT}
    return rest, (personal(subject, {"document": about}),)


def proposal_json(proposal: Proposal) -> dict[str, Any]:
    """A proposal as a document."""
    return {
        "id": proposal.id,
        "action": proposal.action,
        "tenant": proposal.tenant,
        "digest": proposal.digest,
        "document": {name: value for name, value in proposal.document.items() if name != "nonce"},
        "proposed_by": proposal.proposer,
        "proposed_at": rfc3339(proposal.time_us),
        "expires_at": rfc3339(proposal.expires_us),
    }
