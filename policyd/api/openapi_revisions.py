"""The description of the routes of revisions, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from policyd.api.openapi import content_of, parameter, problems_of, route
from policyd.api.openapi_proposals import asked
from policyd.revisions.states import KINDS


class GateDocument(BaseModel):
    """What a gate said; ``findings`` are pairs of place and message, the first of ``findings_total``."""

    gate: str
    passed: bool
    said: str
    findings: list[list[str]]
    findings_total: int
    details: dict[str, Any]


class StandingDocument(BaseModel):
    """A revision, where it stands and why."""

    kind: Literal["policy", "fleet"]
    digest: str
    commit: str | None
    state: Literal["candidate", "refused", "waiting", "shadow", "canary", "live", "retired"]
    paused: bool
    said: str = Field(description="why it stands there, for a person; may be empty")
    gates: list[GateDocument]
    seen: str
    since: str
    last_live: str | None


class RevisionPage(BaseModel):
    """Revisions, the one that moved last first."""

    items: list[StandingDocument]
    next: str | None


class ActiveKindDocument(BaseModel):
    """What one kind decides on here, and its source. ``to_be_live`` is another digest while this lags behind."""

    commit: str | None
    digest: str
    to_be_live: str
    since: str | None
    source: str | None
    stale_since: str | None
    fault: str | None


class ActiveDocument(BaseModel):
    """What is live, and what does not serve although it might. ``fault``: why the last reload changed nothing."""

    policy: ActiveKindDocument
    fleet: ActiveKindDocument
    candidates: list[StandingDocument]
    fault: str | None


_DIGEST: Final = "sha256:" + "4f" * 32
_TIME: Final = "2026-11-24T10:00:00.000000Z"
_REVISION: Final[dict[str, Any]] = {
    "kind": "policy",
    "digest": _DIGEST,
    "commit": "1" * 40,
    "state": "live",
    "paused": False,
    "said": "",
    "gates": [
        {
            "gate": "tests",
            "passed": True,
            "said": "147 tests passed",
            "findings": [],
            "findings_total": 0,
            "details": {"passed": 147, "failed": 0},
        }
    ],
    "seen": _TIME,
    "since": _TIME,
    "last_live": _TIME,
}
_KIND: Final[dict[str, Any]] = {
    "commit": "1" * 40,
    "digest": _DIGEST,
    "to_be_live": _DIGEST,
    "since": _TIME,
    "source": "https://git.example/law main:policies",
    "stale_since": None,
    "fault": None,
}
REVISIONS: Final = route(
    "the revisions",
    content_of("RevisionPage", {"items": [_REVISION], "next": None}),
    problems_of(400, 403, 503),
    parameters=[parameter("kind", "only this kind", {"type": "string", "enum": list(KINDS)})],
)
ACTIVE: Final = route(
    "what is live",
    content_of("ActiveDocument", {"policy": _KIND, "fleet": _KIND, "candidates": [], "fault": None}),
    problems_of(400, 403, 503),
)
ACTIVATE: Final = route(
    "where it stands now",
    content_of("StandingDocument", _REVISION),
    problems_of(400, 403, 404, 409, 413, 415, 422, 503),
    requestBody=asked("ActivationRequest", {"step": "next"}),
)
ROLLBACK: Final = route(
    "what is to be live now",
    content_of("StandingDocument", _REVISION),
    problems_of(400, 403, 404, 409, 413, 415, 422, 503),
    requestBody=asked("RollbackRequest", {"kind": "policy"}),
)
REVISIONS_SHOWN: Final[tuple[type[BaseModel], ...]] = (
    GateDocument,
    StandingDocument,
    RevisionPage,
    ActiveKindDocument,
    ActiveDocument,
)
