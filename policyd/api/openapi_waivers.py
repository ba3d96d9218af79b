"""The description of waivers, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from policyd.api.openapi import PositionDocument, content_of, problems_of, route
from policyd.api.openapi_proposals import PROPOSAL_EXAMPLE, asked


class WaiverDocument(BaseModel):
    """A waiver, an approval or broken glass. Null in its scope is all of the tenant's.

    ``digest`` is that of the request, which an approval may name; it is there while it waits.
    """

    id: str
    kind: Literal["waiver", "approval", "break_glass"]
    state: Literal["waiting", "in_force", "expired", "void"]
    void_because: str | None = Field(description="why it lifts nothing, when the rule is not what it was")
    tenant: str
    project: str | None
    rule: str | None
    pool: str | None
    model: str | None
    reason: str | None
    digest: str | None
    requested_by: str | None
    requested_at: str | None
    approved_by: str | None
    approved_at: str | None
    expires_at: str
    audit: PositionDocument | None = None


class WaiverPage(BaseModel):
    """Waivers: what waits first, then the newest."""

    items: list[WaiverDocument]
    next: str | None


_ID: Final = "01990000-0000-7000-8000-000000000000"
_AUDIT: Final[dict[str, Any]] = {"log": "policyd/0", "index": 12, "leaf_hash": "0" * 64}
_ASKED: Final[dict[str, Any]] = {
    "tenant": "spark-startup",
    "project": "assistant",
    "rule": "sla.cold_start_not_allowed",
    "pool": "modal-us-h100",
    "reason": "change 4711: the launch",
    "expires_at": "2026-12-01T12:00:00Z",
}
_WAIVER: Final[dict[str, Any]] = {
    **_ASKED,
    "id": _ID,
    "kind": "waiver",
    "state": "in_force",
    "void_because": None,
    "model": None,
    "digest": None,
    "requested_by": "token:ana",
    "requested_at": "2026-11-22T10:00:00.000000Z",
    "approved_by": "token:ben",
    "approved_at": "2026-11-22T10:05:00.000000Z",
    "expires_at": "2026-12-01T12:00:00.000000Z",
}
_DOCUMENT: Final[dict[str, Any]] = {
    "kind": "waiver",
    **{name: value for name, value in _ASKED.items() if name != "tenant"},
    "rule_digest": "sha256:" + "cd" * 32,
    "title": "The pool starts from zero, which the class does not allow",
    "expires_us": 1_796_126_400_000_000,
}
_PROPOSED: Final[dict[str, Any]] = {
    **PROPOSAL_EXAMPLE,
    "action": "waiver",
    "tenant": "spark-startup",
    "document": _DOCUMENT,
    "audit": _AUDIT,
}
_APPROVED: Final[dict[str, Any]] = {
    "id": _ID,
    "action": "waiver",
    "tenant": "spark-startup",
    "approval": "01990000-0000-7000-8000-000000000001",
    "result": {"waiver": _ID, "expires_at": "2026-12-01T12:00:00.000000Z"},
    "audit": _AUDIT,
}
_BROKEN: Final[dict[str, Any]] = {
    **{name: value for name, value in _ASKED.items() if name not in ("rule", "project", "pool")},
    "reason": "incident 99: no pool is left",
    "expires_at": "2026-11-22T10:15:00Z",
}

WAIVERS: Final = route(
    "the waivers", content_of("WaiverPage", {"items": [_WAIVER], "next": None}), problems_of(400, 503)
)
REQUEST_WAIVER: Final = route(
    "the proposal, which another person approves",
    content_of("ProposalDocument", _PROPOSED),
    problems_of(400, 403, 413, 415, 422, 503),
    requestBody=asked("WaiverRequest", _ASKED),
)
APPROVE_WAIVER: Final = route(
    "approved, and in force",
    content_of("ApprovalDocument", _APPROVED),
    problems_of(400, 403, 404, 409, 413, 415, 422, 503),
    requestBody=asked("ApprovalRequest", {"digest": PROPOSAL_EXAMPLE["digest"]}),
)
BREAK_GLASS: Final = route(
    "in force",
    content_of(
        "WaiverDocument",
        {**_WAIVER, "kind": "break_glass", "requested_by": None, "requested_at": None, "audit": _AUDIT},
    ),
    problems_of(400, 403, 409, 413, 415, 422, 503),
    requestBody=asked("BreakGlassRequest", _BROKEN),
)
WAIVERS_SHOWN: Final[tuple[type[BaseModel], ...]] = (WaiverDocument, WaiverPage)
