"""Revisions: the calls that say where they stand, and take the steps of a person.

Rules: a step is taken from where the revision stands, so one that was sent twice is refused the second time, and none
is repeated by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final, TypedDict, TypeVar

from policyd.client.calls import Call, encoded, fields, headers, page_of, segment
from policyd.client.documents import Page
from policyd.client.problems import json_of

Found = TypeVar("Found")


class RevisionStanding(TypedDict):
    """A revision: where it stands, since when, and what its gates said."""

    kind: str
    digest: str
    commit: str | None
    state: str
    paused: bool
    said: str
    gates: list[dict[str, Any]]
    seen: str
    since: str
    last_live: str | None


class ActiveRevisions(TypedDict):
    """What is live on the server that was asked, and what does not serve although it might."""

    policy: dict[str, Any]
    fleet: dict[str, Any]
    candidates: list[RevisionStanding]
    fault: str | None


class Revisions(ABC):
    """The calls of revisions."""

    @abstractmethod
    def send(self, call: Call[Found]) -> Found:
        """Send a call and wait for its answer."""

    def revisions(self, kind: str | None = None) -> Page[RevisionStanding]:
        """Where revisions stand, and what their gates said."""
        return self.send(_revisions(kind))

    def active_revisions(self) -> ActiveRevisions:
        """What is live, and why a candidate does not serve."""
        return self.send(_active())

    def activate_revision(self, digest: str, *, step: str = "next", request_id: str | None = None) -> RevisionStanding:
        """Have a revision take its next step; ``step`` may be ``pause`` or ``resume`` too."""
        return self.send(_activate(digest, step, request_id))

    def roll_back(self, kind: str, *, digest: str | None = None, request_id: str | None = None) -> RevisionStanding:
        """Go back to what was live before, or to the revision that is named."""
        return self.send(_roll_back(kind, digest, request_id))


class AsyncRevisions(ABC):
    """The same, awaited."""

    @abstractmethod
    async def send(self, call: Call[Found]) -> Found:
        """Send a call and await its answer."""

    async def revisions(self, kind: str | None = None) -> Page[RevisionStanding]:
        """Where revisions stand, and what their gates said."""
        return await self.send(_revisions(kind))

    async def active_revisions(self) -> ActiveRevisions:
        """What is live, and why a candidate does not serve."""
        return await self.send(_active())

    async def activate_revision(
        self, digest: str, *, step: str = "next", request_id: str | None = None
    ) -> RevisionStanding:
        """Have a revision take its next step; ``step`` may be ``pause`` or ``resume`` too."""
        return await self.send(_activate(digest, step, request_id))

    async def roll_back(
        self, kind: str, *, digest: str | None = None, request_id: str | None = None
    ) -> RevisionStanding:
        """Go back to what was live before, or to the revision that is named."""
        return await self.send(_roll_back(kind, digest, request_id))


def _revisions(kind: str | None) -> Call[Page[RevisionStanding]]:
    """``GET /v1/revisions``."""
    parameters = {} if kind is None else {"kind": kind}
    return Call("GET", "/v1/revisions", page_of, "page of revisions", parameters=parameters)


def _active() -> Call[ActiveRevisions]:
    """``GET /v1/revisions/active``."""
    return Call("GET", "/v1/revisions/active", _active_read, "what is live")


def _activate(digest: str, step: str, request_id: str | None) -> Call[RevisionStanding]:
    """``POST /v1/revisions/{digest}/activation``."""
    return _step(f"/v1/revisions/{segment(digest)}/activation", {"step": step}, request_id)


def _roll_back(kind: str, digest: str | None, request_id: str | None) -> Call[RevisionStanding]:
    """``POST /v1/revisions/rollback``."""
    return _step("/v1/revisions/rollback", {"kind": kind, **({} if digest is None else {"digest": digest})}, request_id)


def _step(path: str, document: dict[str, Any], request_id: str | None) -> Call[RevisionStanding]:
    sent = headers(request_id=request_id)
    return Call("POST", path, _standing, "revision", content=encoded(document), headers=sent, repeatable=False)


_shaped_standing: Final = fields(RevisionStanding, kind=str, digest=str, state=str, gates=list)
_shaped_active: Final = fields(ActiveRevisions, policy=dict, fleet=dict, candidates=list)


def _standing(body: bytes) -> RevisionStanding | None:
    return _shaped_standing(json_of(body))


def _active_read(body: bytes) -> ActiveRevisions | None:
    return _shaped_active(json_of(body))
