"""Waivers: the calls that request, approve and list them, and that break the glass.

Rules: as in ``policyd.client.two_persons``: what was sent twice is two requests, so nothing is repeated by itself.
"""

from __future__ import annotations

from typing import Any, Final

from policyd.client.calls import Call, encoded, fields, headers, page_of, segment
from policyd.client.documents import Approval, Page, Proposal, Waiver
from policyd.client.problems import json_of


def waivers() -> Call[Page[Waiver]]:
    """``GET /v1/waivers``."""
    return Call("GET", "/v1/waivers", page_of, "page of waivers")


def request_waiver(asked: dict[str, Any], request_id: str | None) -> Call[Proposal]:
    """``POST /v1/waivers``."""
    return _post("/v1/waivers", asked, _proposal, "proposal", request_id)


def approve_waiver(waiver_id: str, digest: str | None, request_id: str | None) -> Call[Approval]:
    """``POST /v1/waivers/{id}/approval``."""
    content = {} if digest is None else {"digest": digest}
    return _post(f"/v1/waivers/{segment(waiver_id)}/approval", content, _approval, "approval", request_id)


def break_glass(asked: dict[str, Any], request_id: str | None) -> Call[Waiver]:
    """``POST /v1/waivers/break-glass``."""
    return _post("/v1/waivers/break-glass", asked, _waiver, "waiver", request_id)


def scope_of(tenant: str, reason: str, expires_at: str, **named: str | None) -> dict[str, Any]:
    """The body of a request: what is not named is all of the tenant's."""
    scope = {name: value for name, value in named.items() if value is not None}
    return {"tenant": tenant, **scope, "reason": reason, "expires_at": expires_at}


def _post(path: str, document: dict[str, Any], read: Any, noun: str, request_id: str | None) -> Call[Any]:
    sent = headers(request_id=request_id)
    return Call("POST", path, read, noun, content=encoded(document), headers=sent, repeatable=False)


_shaped_proposal: Final = fields(Proposal, id=str, action=str, digest=str, document=dict)
_shaped_approval: Final = fields(Approval, id=str, action=str, approval=str, result=dict)
_shaped_waiver: Final = fields(Waiver, id=str, kind=str, state=str, tenant=str, expires_at=str)


def _proposal(body: bytes) -> Proposal | None:
    return _shaped_proposal(json_of(body))


def _approval(body: bytes) -> Approval | None:
    return _shaped_approval(json_of(body))


def _waiver(body: bytes) -> Waiver | None:
    return _shaped_waiver(json_of(body))
