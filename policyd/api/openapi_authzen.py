"""The description of AuthZEN, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from policyd.api.authzen_mapping import Semantic
from policyd.api.openapi import content_of, problems_of, route


class _Open(BaseModel):
    """AuthZEN has further fields ignored."""

    model_config = ConfigDict(extra="allow", defer_build=True)


class AuthzenSubject(_Open):
    """The tenant that the workload belongs to."""

    type: str = Field(description="`tenant`; anything else is denied")
    id: str


class AuthzenAction(_Open):
    """What is to be done."""

    name: str = Field(description="`place`; anything else is denied")


class AuthzenResourceType(_Open):
    """What is searched for."""

    type: str = Field(description="`pool`; anything else is denied")


class AuthzenResource(AuthzenResourceType):
    """The pool that is asked about."""

    id: str


class _Context(_Open):
    context: dict[str, Any] = Field({}, description="the other fields of a workload; `model` is required")


class AuthzenEvaluation(_Context):
    """One question: may this tenant's workload be placed on this pool."""

    subject: AuthzenSubject
    action: AuthzenAction
    resource: AuthzenResource


class AuthzenItem(_Context):
    """A question of several; what it leaves out is taken from the request around it."""

    subject: AuthzenSubject | None = None
    action: AuthzenAction | None = None
    resource: AuthzenResource | None = None


class AuthzenOptions(_Open):
    """How several are evaluated."""

    evaluations_semantic: Semantic = "execute_all"


class AuthzenEvaluations(AuthzenItem):
    """Several questions, with defaults."""

    evaluations: list[AuthzenItem] = []
    options: AuthzenOptions = AuthzenOptions()


class AuthzenPage(_Open):
    """Which part of the results is wanted."""

    token: str = Field("", description="`next_token` of the answer before")
    limit: int = Field(1_000, ge=0, description="results of a page; above 1000 it is 1000")


class AuthzenSearch(_Context):
    """A question about every pool."""

    subject: AuthzenSubject
    action: AuthzenAction
    resource: AuthzenResourceType
    page: AuthzenPage = AuthzenPage()


class AuthzenDecision(_Open):
    """``context`` says why: the entry in the log, the rank or the violations."""

    decision: bool
    context: dict[str, Any] = {}


class AuthzenDecisions(_Open):
    """Decisions in the order of the questions, or one decision when there was one question."""

    evaluations: list[AuthzenDecision] = []


class AuthzenFoundPage(_Open):
    """How the results go on."""

    next_token: str = Field(description="empty on the last page")
    count: int
    total: int


class AuthzenResults(_Open):
    """The pools, best first."""

    results: list[AuthzenResource]
    page: AuthzenFoundPage
    context: dict[str, Any]


class AuthzenConfiguration(_Open):
    """Where AuthZEN answers."""

    policy_decision_point: str
    access_evaluation_endpoint: str
    access_evaluations_endpoint: str
    search_resource_endpoint: str


AUTHZEN_SHOWN: Final[tuple[type[BaseModel], ...]] = (
    AuthzenEvaluation, AuthzenEvaluations, AuthzenSearch,
    AuthzenDecision, AuthzenDecisions, AuthzenResults, AuthzenConfiguration,
)  # fmt: skip

_ENTITIES: Final[dict[str, Any]] = {
    "subject": {"type": "tenant", "id": "eu-bank"},
    "action": {"name": "place"},
    "context": {"project": "support-chat", "environment": "prod", "model": "llama-3.1-70b-instruct"},
}
_POOL: Final = {"type": "pool", "id": "aws-us-east-1-h100"}
_FALSE: Final = {"decision": False, "context": {"reason": "refused by residency.location_not_permitted"}}
Kind = Literal["AuthzenEvaluation", "AuthzenEvaluations", "AuthzenSearch"]


def _post(kind: Kind, example: dict[str, Any], words: str, answer: str, answered: dict[str, Any]) -> dict[str, Any]:
    return route(
        words,
        content_of(answer, answered),
        problems_of(400, 403, 413, 415, 503),
        requestBody={"required": True, "content": content_of(kind, example)},
    )


EVALUATION: Final = _post(
    "AuthzenEvaluation", {**_ENTITIES, "resource": _POOL}, "true or false", "AuthzenDecision", _FALSE
)
EVALUATIONS: Final = _post(
    "AuthzenEvaluations",
    {**_ENTITIES, "evaluations": [{"resource": _POOL}]},
    "true or false for each, in order",
    "AuthzenDecisions",
    {"evaluations": [_FALSE]},
)
SEARCH_RESOURCE: Final = _post(
    "AuthzenSearch",
    {**_ENTITIES, "resource": {"type": "pool"}, "page": {"limit": 10}},
    "the pools",
    "AuthzenResults",
    {
        "results": [{"type": "pool", "id": "onprem-fra-h100"}],
        "page": {"next_token": "", "count": 1, "total": 1},
        "context": {"id": "01990000-0000-7000-8000-000000000000"},
    },
)
_HOST: Final = "http://127.0.0.1:8470"
_ENDPOINTS: Final = {
    "policy_decision_point": _HOST,
    "access_evaluation_endpoint": f"{_HOST}/access/v1/evaluation",
    "access_evaluations_endpoint": f"{_HOST}/access/v1/evaluations",
    "search_resource_endpoint": f"{_HOST}/access/v1/search/resource",
}
CONFIGURATION: Final = route("the endpoints", content_of("AuthzenConfiguration", _ENDPOINTS), {})
