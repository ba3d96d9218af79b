"""The description of approvals of revisions, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, Field

from policyd.api.openapi import PositionDocument, content_of, problems_of, route


class RevisionApprovalDocument(BaseModel):
    """An approval of a revision, as it is in the log. ``signer`` has given it, and ``counts`` says whether it would be
    taken now; ``audit`` is there when it is sent."""

    id: str
    kind: str
    digest: str
    replaces: str = Field(description="what serves when it is approved; the approval is good for this change only")
    expires: str
    signer: str | None
    time: str | None = None
    counts: bool | None = None
    said: str | None = Field(None, description="why it does not count")
    audit: PositionDocument | None = None


class RevisionApprovals(BaseModel):
    """The approvals of a revision, oldest first, and what serves of each kind."""

    digest: str
    live: dict[str, str]
    items: list[RevisionApprovalDocument]


_DIGEST: Final = "sha256:" + "ab" * 32
_LIVE: Final = "sha256:" + "cd" * 32
_CHANGE: Final = {"kind": "policy", "digest": _DIGEST, "replaces": _LIVE, "expires": "2026-12-01T00:00:00Z"}
_TAKEN: Final[dict[str, Any]] = {
    "id": "01990000-0000-7000-8000-000000000000",
    **_CHANGE,
    "signer": "ana@example.org",
}
_AUDIT: Final[dict[str, Any]] = {"log": "policyd/0", "index": 12, "leaf_hash": "0" * 64}
SIGNATURE_EXAMPLE: Final = (
    "-----BEGIN SSH SIGNATURE-----\n"
    "U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgJKxoLBJBivUPNTUJUSslQTt2hDjozKvH\n"
    "-----END SSH SIGNATURE-----\n"
)
APPROVED: Final = route(
    "taken into the log",
    content_of("RevisionApprovalDocument", {**_TAKEN, "audit": _AUDIT}),
    problems_of(400, 403, 413, 415, 422, 503),
    requestBody={
        "required": True,
        "content": content_of("RevisionApprovalRequest", {**_CHANGE, "signature": SIGNATURE_EXAMPLE}),
    },
)
APPROVALS: Final = route(
    "the approvals",
    content_of(
        "RevisionApprovals",
        {
            "digest": _DIGEST,
            "live": {"policy": _LIVE, "fleet": "sha256:" + "ef" * 32},
            "items": [{**_TAKEN, "time": "2026-11-24T10:00:00.000000Z", "counts": True, "said": ""}],
        },
    ),
    problems_of(400, 403, 503),
)
APPROVALS_SHOWN: Final[tuple[type[BaseModel], ...]] = (RevisionApprovalDocument, RevisionApprovals)
