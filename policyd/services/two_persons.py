"""What takes two persons: one proposes, another approves, and it is done in the transaction of the approval's entry.

    propose(action, document) ──► an entry, an id ──approve(id) by another──► an entry, the action, its own entry

Rules: both are authenticated, and each has a permission of its own for the action; the digest is over the whole
document with something random in it, so that it tells nothing about what can be guessed; nothing is done when the log
does not take the approval.
It refuses: ``local``, whoever that is, and the same name twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import orjson
from sqlalchemy import Connection

from audit.record import Entry, Kind, Search, digest, encode, is_entry_id
from audit.store import Position
from policyd.core.principal import LOCAL, Principal
from policyd.errors import Forbidden, NotFound
from policyd.services import holds, proposals
from policyd.services.actions import ACTIONS, Action
from policyd.services.clock import Now, now_us, rfc3339, uuid7
from policyd.services.commit import AdmittedPosition
from policyd.services.decisions import SnapshotNow
from policyd.services.proposals import NO_PROPOSAL_REMEDY, Approve, Deed, Proposal, Propose

T = TypeVar("T")
RECORD_VERSION: Final = 1
LISTED_MAX: Final = 1_000


class Log(Protocol):
    """The writing side of the log, as far as two persons need it."""

    async def submit(self, entry: Entry, *, deed: Deed) -> Position: ...


class Reader(Protocol):
    """The reading side of the log's database."""

    async def read(self, read: Callable[[Connection], T]) -> T: ...


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
        self, action: str, tenant: str | None, document: Mapping[str, Any], principal: Principal, request_id: str
    ) -> dict[str, Any]:
        """Record what is proposed; answers with its id, digest and end. Raises ``Forbidden``."""
        self._require(ACTIONS[action], "propose", tenant, principal)
        time_us = self.now()
        entry_id = uuid7(time_us)
        whole = {**document, "nonce": os.urandom(16).hex()}
        named = digest(orjson.dumps([action, tenant, whole], option=orjson.OPT_SORT_KEYS))
        expires_us = time_us + self.ttl_ms * 1_000
        told = {"action": action, "digest": named, "document": whole, "expires": rfc3339(expires_us)}
        entry = self._entry("proposal", entry_id, time_us, tenant, principal, request_id, told)
        deed = Propose(action, tenant, named, orjson.dumps(whole).decode(), principal.name, expires_us, self.open_max)
        position = await self.log.submit(entry, deed=deed)
        proposal = Proposal(entry_id, proposals.OPEN, action, tenant, named, whole, principal.name, time_us, expires_us)
        return {**proposal_json(proposal), "audit": self._place(position)}

    async def approve(
        self, proposal_id: str, principal: Principal, request_id: str, read: str | None = None
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
        position = await self.log.submit(entry, deed=Approve(proposal.id, proposal.digest, principal.name))
        assert isinstance(position, AdmittedPosition)
        done = {"id": proposal.id, "action": proposal.action, "tenant": proposal.tenant, "approval": approval_id}
        return {**done, "result": dict(position.admission), "audit": self._place(position)}

    async def proposal(self, proposal_id: str, principal: Principal) -> Proposal:
        """The proposal with this id. Raises ``NotFound``, also for who may not see it."""
        if not is_entry_id(proposal_id):
            raise NotFound(f"{proposal_id[:100]!r} is no id of a proposal", remedy=NO_PROPOSAL_REMEDY)
        found = await self.reader.read(lambda connection: proposals.stored(connection, proposal_id))
        missing = f"there is no proposal {proposal_id}"
        if found is None:
            raise NotFound(missing, remedy=NO_PROPOSAL_REMEDY)
        if not self._sees(principal, found):
            raise NotFound(missing, remedy=NO_PROPOSAL_REMEDY, truth=f"proposal {proposal_id} was asked for")
        return found

    async def waiting(self, principal: Principal) -> list[Proposal]:
        """The open proposals that this principal may see, oldest first."""
        time_us = self.now()
        found = await self.reader.read(lambda connection: proposals.waiting(connection, time_us, LISTED_MAX))
        return [proposal for proposal in found if self._sees(principal, proposal)]

    async def holds_in_force(self, principal: Principal) -> list[holds.Hold]:
        """The holds in force of the tenants whose log this principal may read."""
        entitled = self.snapshots.current().entitlements
        found = await self.reader.read(holds.holds_in_force)
        return [hold for hold in found if principal.permitted(entitled, "audit", "read", hold.tenant)]

    async def hold(self, hold_id: str, principal: Principal) -> holds.Hold:
        """The hold with this id. Raises ``NotFound``, also for who may not see it."""
        if not is_entry_id(hold_id):
            raise NotFound(f"{hold_id[:100]!r} is no id of a hold")
        found = await self.reader.read(lambda connection: holds.hold_of(connection, hold_id))
        if not self._may(ACTIONS["hold.lift"], "propose", found.tenant, principal):
            truth = f"hold {hold_id} of {found.tenant} was asked for"
            raise NotFound(f"no hold {hold_id} is in force", remedy="take the id from the list of holds", truth=truth)
        return found

    def _sees(self, principal: Principal, proposal: Proposal) -> bool:
        """Whoever may propose or approve such a thing, or read the log that has it."""
        action = ACTIONS.get(proposal.action)
        if action is None:
            return False
        ways = ((action.obj, "propose"), (action.obj, "approve"), ("audit", "read"))
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
    ) -> Entry:
        fields = {
            "v": RECORD_VERSION,
            "kind": kind,
            "id": entry_id,
            "time": rfc3339(time_us),
            "principal": principal.name,
            "request_id": request_id,
            **({} if tenant is None else {"scope": [tenant, None, None]}),
            **told,
        }
        search = Search(tenant=tenant, principal=principal.name, request_id=request_id)
        return Entry(kind, entry_id, time_us, encode(fields, os.urandom(16)), search)

    def _place(self, position: Position) -> dict[str, Any]:
        return {"log": self.origin, "index": position.index, "leaf_hash": position.leaf_hash.hex()}


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
