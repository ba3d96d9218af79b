"""The description of the route for proxies, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from policyd.api.openapi import content_of, parameter, problems_of, route
from policyd.core.workload import NAME_PATTERN

_ID: Final = "01990000-0000-7000-8000-000000000000"
_NAME: Final[dict[str, Any]] = {"type": "string", "pattern": NAME_PATTERN}
_POOL_LIST: Final[dict[str, Any]] = {"type": "string", "pattern": r"^[A-Za-z0-9._-]+(, ?[A-Za-z0-9._-]+){0,255}$"}


class DenialDocument(BaseModel):
    """Why a proxy must not forward a request; the log has the reasons under ``decision_id``."""

    outcome: Literal["deny"]
    denied_by: str | None = Field(description="null when pools are left, and the proxy reaches none of them")
    detail: str
    decision_id: str
    request_id: str


EXT_AUTHZ_SHOWN: Final[tuple[type[BaseModel], ...]] = (DenialDocument,)

_DENIAL: Final = {
    "outcome": "deny",
    "denied_by": "eligibility",
    "detail": "no pool that may take this workload is in reach",
    "decision_id": _ID,
    "request_id": "01990000-0000-7000-8000-000000000001",
}
_DECISION: Final = {"description": "the entry in the log", "required": True, "schema": {"type": "string"}}
_POOL: Final = {"description": "the pool to forward to", "required": True, "schema": {"type": "string"}}


def _header(name: str, description: str, schema: dict[str, Any] = _NAME, *, required: bool = False) -> dict[str, Any]:
    return {**parameter(f"X-Policyd-{name}", description, schema, "header"), "required": required}


def _described() -> dict[str, Any]:
    environments = {"type": "string", "enum": ["experiment", "dev", "staging", "prod"]}
    levels = {"type": "string", "enum": ["public", "internal", "confidential", "restricted"]}
    found = route(
        "forward it",
        {},
        problems_of(400, 403, 404, 422, 503),
        parameters=[
            {**parameter("path", "the path that the proxy was asked", {"type": "string"}, "path"), "required": True},
            _header("Tenant", "the tenant; required unless the identity settles it"),
            _header("Project", "the project, else the tenant's default"),
            _header("Environment", "the environment, else the project's default", environments),
            _header("Model", "the model that the request is for", required=True),
            _header("Model-Version", "its version, else the newest approved one"),
            _header("SLA-Class", "the SLA class, else the project's default"),
            _header("Classification", "of the data; never below the floor of project and sources", levels),
            _header("Pools", "the pools that the proxy can reach, with commas; without it, every pool", _POOL_LIST),
        ],
    )
    responses = found["responses"]
    responses[200] = {
        "description": "forward it",
        "headers": {"X-Policyd-Decision-Id": _DECISION, "X-Policyd-Pool": _POOL},
    }
    refused = {**responses[403]["content"], **content_of("DenialDocument", _DENIAL)}
    responses[403] = {"description": "do not forward it", "content": refused}
    return found


EXT_AUTHZ: Final = _described()
