"""What takes two persons: the calls that propose it, list what waits, and approve it.

Rules: a proposal that was sent twice is two proposals, and an approval is good once, so neither is repeated by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from policyd.client import waivers
from policyd.client.calls import Call, encoded, fields, headers, page_of, segment
from policyd.client.documents import Approval, Hold, Page, Proposal, RevisionApproval, RevisionApprovals, Waiver
from policyd.client.problems import json_of

Found = TypeVar("Found")


class TwoPersons(ABC):
    """What a client that waits can do of it."""

    @abstractmethod
    def send(self, call: Call[Found]) -> Found:
        """Send a call and wait for its answer."""

    def proposals(self) -> Page[Proposal]:
        """What waits for a second person, as far as the caller may see it."""
        return self.send(_proposals())

    def approve(self, proposal_id: str, *, digest: str | None = None, request_id: str | None = None) -> Approval:
        """Approve what another person has proposed, and have it done; ``digest`` is that of what was read."""
        return self.send(_approve(proposal_id, digest, request_id))

    def revision_approvals(self, digest: str) -> RevisionApprovals:
        """What has been approved of a revision, and what serves in its place."""
        return self.send(_revision_approvals(digest))

    def approve_revision(self, approval: Mapping[str, str], *, request_id: str | None = None) -> RevisionApproval:
        """Bring a signed approval: ``kind``, ``digest``, ``replaces``, ``expires`` and ``signature``."""
        return self.send(_approve_revision(approval, request_id))

    def holds(self) -> Page[Hold]:
        """The legal holds in force."""
        return self.send(_holds())

    def propose_hold(
        self, tenant: str, reason: str, *, subject: str | None = None, request_id: str | None = None
    ) -> Proposal:
        """Propose that nothing of the tenant, or of one principal there, is erased or removed."""
        return self.send(_propose_hold(tenant, subject, reason, request_id))

    def propose_erasure(
        self, tenant: str | None, subject: str, reason: str, *, request_id: str | None = None
    ) -> Proposal:
        """Propose to make the personal fields of one principal unreadable for good; without a tenant, everywhere."""
        return self.send(_propose_erasure(tenant, subject, reason, request_id))

    def propose_lifting(self, hold_id: str, reason: str, *, request_id: str | None = None) -> Proposal:
        """Propose to lift a legal hold."""
        return self.send(_propose_lifting(hold_id, reason, request_id))

    def waivers(self) -> Page[Waiver]:
        """Waivers and approvals: what waits, is in force, or was lately."""
        return self.send(waivers.waivers())

    def request_waiver(
        self,
        tenant: str,
        rule: str,
        reason: str,
        expires_at: str,
        *,
        project: str | None = None,
        pool: str | None = None,
        model: str | None = None,
        request_id: str | None = None,
    ) -> Proposal:
        """Request that a soft or approval rule (``policy.rule``) refuses nothing in this scope until then."""
        scope = {"project": project, "pool": pool, "model": model}
        return self.send(
            waivers.request_waiver(waivers.scope_of(tenant, reason, expires_at, rule=rule, **scope), request_id)
        )

    def approve_waiver(self, waiver_id: str, *, digest: str | None = None, request_id: str | None = None) -> Approval:
        """Approve what another person has requested; it is in force from then on."""
        return self.send(waivers.approve_waiver(waiver_id, digest, request_id))

    def break_glass(
        self,
        tenant: str,
        reason: str,
        expires_at: str,
        *,
        rule: str | None = None,
        project: str | None = None,
        pool: str | None = None,
        model: str | None = None,
        request_id: str | None = None,
    ) -> Waiver:
        """Lift soft rules alone, for minutes, where a setting admits it."""
        scope = {"rule": rule, "project": project, "pool": pool, "model": model}
        return self.send(waivers.break_glass(waivers.scope_of(tenant, reason, expires_at, **scope), request_id))


class AsyncTwoPersons(ABC):
    """The same, awaited."""

    @abstractmethod
    async def send(self, call: Call[Found]) -> Found:
        """Send a call and await its answer."""

    async def proposals(self) -> Page[Proposal]:
        """What waits for a second person, as far as the caller may see it."""
        return await self.send(_proposals())

    async def approve(self, proposal_id: str, *, digest: str | None = None, request_id: str | None = None) -> Approval:
        """Approve what another person has proposed, and have it done; ``digest`` is that of what was read."""
        return await self.send(_approve(proposal_id, digest, request_id))

    async def revision_approvals(self, digest: str) -> RevisionApprovals:
        """What has been approved of a revision, and what serves in its place."""
        return await self.send(_revision_approvals(digest))

    async def approve_revision(self, approval: Mapping[str, str], *, request_id: str | None = None) -> RevisionApproval:
        """Bring a signed approval: ``kind``, ``digest``, ``replaces``, ``expires`` and ``signature``."""
        return await self.send(_approve_revision(approval, request_id))

    async def holds(self) -> Page[Hold]:
        """The legal holds in force."""
        return await self.send(_holds())

    async def propose_hold(
        self, tenant: str, reason: str, *, subject: str | None = None, request_id: str | None = None
    ) -> Proposal:
        """Propose that nothing of the tenant, or of one principal there, is erased or removed."""
        return await self.send(_propose_hold(tenant, subject, reason, request_id))

    async def propose_erasure(
        self, tenant: str, subject: str, reason: str, *, request_id: str | None = None
    ) -> Proposal:
        """Propose to make the personal fields of one principal of the tenant unreadable for good."""
        return await self.send(_propose_erasure(tenant, subject, reason, request_id))

    async def propose_lifting(self, hold_id: str, reason: str, *, request_id: str | None = None) -> Proposal:
        """Propose to lift a legal hold."""
        return await self.send(_propose_lifting(hold_id, reason, request_id))

    async def waivers(self) -> Page[Waiver]:
        """Waivers and approvals: what waits, is in force, or was lately."""
        return await self.send(waivers.waivers())

    async def request_waiver(
        self,
        tenant: str,
        rule: str,
        reason: str,
        expires_at: str,
        *,
        project: str | None = None,
        pool: str | None = None,
        model: str | None = None,
        request_id: str | None = None,
    ) -> Proposal:
        """Request that a soft or approval rule (``policy.rule``) refuses nothing in this scope until then."""
        scope = {"project": project, "pool": pool, "model": model}
        return await self.send(
            waivers.request_waiver(waivers.scope_of(tenant, reason, expires_at, rule=rule, **scope), request_id)
        )

    async def approve_waiver(
        self, waiver_id: str, *, digest: str | None = None, request_id: str | None = None
    ) -> Approval:
        """Approve what another person has requested; it is in force from then on."""
        return await self.send(waivers.approve_waiver(waiver_id, digest, request_id))

    async def break_glass(
        self,
        tenant: str,
        reason: str,
        expires_at: str,
        *,
        rule: str | None = None,
        project: str | None = None,
        pool: str | None = None,
        model: str | None = None,
        request_id: str | None = None,
    ) -> Waiver:
        """Lift soft rules alone, for minutes, where a setting admits it."""
        scope = {"rule": rule, "project": project, "pool": pool, "model": model}
        return await self.send(waivers.break_glass(waivers.scope_of(tenant, reason, expires_at, **scope), request_id))


def _proposals() -> Call[Page[Proposal]]:
    """``GET /v1/proposals``."""
    return Call("GET", "/v1/proposals", page_of, "page of proposals")


def _holds() -> Call[Page[Hold]]:
    """``GET /v1/log/holds``."""
    return Call("GET", "/v1/log/holds", page_of, "page of holds")


def _approve(proposal_id: str, digest: str | None, request_id: str | None) -> Call[Approval]:
    """``POST /v1/proposals/{id}/approval``."""
    path = f"/v1/proposals/{segment(proposal_id)}/approval"
    content = encoded({} if digest is None else {"digest": digest})
    sent = headers(request_id=request_id)
    return Call("POST", path, _approval, "approval", content=content, headers=sent, repeatable=False)


def _revision_approvals(digest: str) -> Call[RevisionApprovals]:
    """``GET /v1/revisions/{digest}/approval``."""
    path = f"/v1/revisions/{segment(digest)}/approval"
    return Call("GET", path, lambda body: _shaped_approvals(json_of(body)), "approvals of a revision")


def _approve_revision(approval: Mapping[str, str], request_id: str | None) -> Call[RevisionApproval]:
    """``POST /v1/revisions/{digest}/approval``."""
    path = f"/v1/revisions/{segment(approval['digest'])}/approval"
    content, sent = encoded(dict(approval)), headers(request_id=request_id)
    read = "approval of a revision"
    return Call(
        "POST",
        path,
        lambda body: _shaped_revision(json_of(body)),
        read,
        content=content,
        headers=sent,
        repeatable=False,
    )


def _propose_hold(tenant: str, subject: str | None, reason: str, request_id: str | None) -> Call[Proposal]:
    """``POST /v1/log/holds``."""
    about = {} if subject is None else {"subject": subject}
    return _propose("/v1/log/holds", {"tenant": tenant, **about, "reason": reason}, request_id)


def _propose_erasure(tenant: str | None, subject: str, reason: str, request_id: str | None) -> Call[Proposal]:
    """``POST /v1/log/erasures``."""
    within = {} if tenant is None else {"tenant": tenant}
    return _propose("/v1/log/erasures", {**within, "subject": subject, "reason": reason}, request_id)


def _propose_lifting(hold_id: str, reason: str, request_id: str | None) -> Call[Proposal]:
    """``POST /v1/log/holds/{id}/lifting``."""
    return _propose(f"/v1/log/holds/{segment(hold_id)}/lifting", {"reason": reason}, request_id)


def _propose(path: str, document: dict[str, Any], request_id: str | None) -> Call[Proposal]:
    sent = headers(request_id=request_id)
    return Call("POST", path, _proposal, "proposal", content=encoded(document), headers=sent, repeatable=False)


_shaped_proposal: Final = fields(Proposal, id=str, action=str, digest=str, document=dict)
_shaped_approvals: Final = fields(RevisionApprovals, digest=str, live=dict, items=list)
_shaped_revision: Final = fields(RevisionApproval, id=str, kind=str, digest=str, replaces=str, expires=str)
_shaped_approval: Final = fields(Approval, id=str, action=str, approval=str, result=dict)


def _proposal(body: bytes) -> Proposal | None:
    return _shaped_proposal(json_of(body))


def _approval(body: bytes) -> Approval | None:
    return _shaped_approval(json_of(body))
