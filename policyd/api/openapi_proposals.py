"""The description of what takes two persons, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, Field

from policyd.api.openapi import IDEMPOTENCY_KEY, PositionDocument, content_of, problems_of, route


class ProposalDocument(BaseModel):
    """What one person has proposed. ``digest`` is over all that it says; ``audit`` is there when it is proposed."""

    id: str
    action: str
    tenant: str | None = Field(description="the tenant that it concerns; null: all of them")
    digest: str
    document: dict[str, Any]
    proposed_by: str
    proposed_at: str
    expires_at: str
    audit: PositionDocument | None = None


class ProposalPage(BaseModel):
    """Open proposals, oldest first."""

    items: list[ProposalDocument]
    next: str | None


class ApprovalDocument(BaseModel):
    """What was approved, and what it did. ``audit`` is the place of the approval; what was done follows it."""

    id: str
    action: str
    tenant: str | None
    approval: str
    result: dict[str, Any]
    audit: PositionDocument


class HoldDocument(BaseModel):
    """A legal hold in force. ``subject`` null covers all that belongs to the tenant."""

    id: str
    tenant: str
    subject: str | None
    reason: str
    placed_at: str


class HoldPage(BaseModel):
    """Holds in force, oldest first."""

    items: list[HoldDocument]
    next: str | None


_ID: Final = "01990000-0000-7000-8000-000000000000"
_AUDIT: Final[dict[str, Any]] = {"log": "policyd/0", "index": 12, "leaf_hash": "0" * 64}
PROPOSAL_EXAMPLE: Final[dict[str, Any]] = {
    "id": _ID,
    "action": "hold.place",
    "tenant": "eu-bank",
    "digest": "sha256:" + "ab" * 32,
    "document": {"subject": "oidc:4711", "reason": "case 2026-17"},
    "proposed_by": "token:ana",
    "proposed_at": "2026-11-22T10:00:00.000000Z",
    "expires_at": "2026-11-29T10:00:00.000000Z",
}
_APPROVAL: Final[dict[str, Any]] = {
    "id": _ID,
    "action": "hold.place",
    "tenant": "eu-bank",
    "approval": "01990000-0000-7000-8000-000000000001",
    "result": {"hold": _ID},
    "audit": _AUDIT,
}
_HOLD: Final[dict[str, Any]] = {
    "id": _ID,
    "tenant": "eu-bank",
    "subject": "oidc:4711",
    "reason": "case 2026-17",
    "placed_at": "2026-11-22T11:00:00.000000Z",
}
PROPOSED: Final = content_of("ProposalDocument", {**PROPOSAL_EXAMPLE, "audit": _AUDIT})
PROPOSING: Final = problems_of(400, 403, 404, 409, 413, 415, 422, 503)


def asked(name: str, example: dict[str, Any]) -> dict[str, Any]:
    """A body that a route needs."""
    return {"required": True, "content": content_of(name, example)}


PROPOSALS: Final = route(
    "the proposals", content_of("ProposalPage", {"items": [PROPOSAL_EXAMPLE], "next": None}), problems_of(400, 503)
)
APPROVE: Final = route(
    "approved and done",
    content_of("ApprovalDocument", _APPROVAL),
    problems_of(400, 403, 404, 409, 413, 415, 422, 503),
    parameters=IDEMPOTENCY_KEY,
    requestBody=asked("ApprovalRequest", {"digest": PROPOSAL_EXAMPLE["digest"]}),
)
HOLDS: Final = route("the holds", content_of("HoldPage", {"items": [_HOLD], "next": None}), problems_of(400, 503))
PLACE: Final = route(
    "the proposal",
    PROPOSED,
    PROPOSING,
    parameters=IDEMPOTENCY_KEY,
    requestBody=asked("HoldRequest", {"tenant": "eu-bank", "subject": "oidc:4711", "reason": "case 2026-17"}),
)
ERASE: Final = route(
    "the proposal",
    content_of("ProposalDocument", {**PROPOSAL_EXAMPLE, "action": "erasure", "audit": _AUDIT}),
    PROPOSING,
    parameters=IDEMPOTENCY_KEY,
    requestBody=asked("ErasureRequest", {"tenant": "eu-bank", "subject": "oidc:4711", "reason": "request 2026-31"}),
)
LIFT: Final = route(
    "the proposal",
    PROPOSED,
    PROPOSING,
    parameters=IDEMPOTENCY_KEY,
    requestBody=asked("LiftRequest", {"reason": "case 2026-17 is closed"}),
)
PROPOSALS_SHOWN: Final[tuple[type[BaseModel], ...]] = (
    ProposalDocument,
    ProposalPage,
    ApprovalDocument,
    HoldDocument,
    HoldPage,
)
