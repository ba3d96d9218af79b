"""The description of the HTTP surface (OpenAPI 3.1): what a client generator and a person read.

Rules: it describes and never validates, so that the hot route pays nothing for it; a request is described by the very
model that reads it; answers are described by the models here, which a test holds against real answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from audit.query import FILTERS, TIME_FILTERS
from policyd.api.openapi_document import complete
from policyd.api.openapi_examples import (
    ENTRY_PAGE_EXAMPLE,
    EXPLANATION_EXAMPLE,
    EXPLANATION_TEXT_EXAMPLE,
    FLEET_EXAMPLE,
    LIVE_EXAMPLE,
    MODEL_PAGE_EXAMPLE,
    NOT_READY_EXAMPLE,
    POOL_EXAMPLE,
    POOL_PAGE_EXAMPLE,
    READY_EXAMPLE,
)
from policyd.core.workload import DecisionRequest
from policyd.services.log_reader import WORDS

Json = dict[str, Any]


class _Answer(BaseModel):
    """An answer may grow by fields; what is described stays."""

    model_config = ConfigDict(extra="allow", defer_build=True)


class FindingDocument(BaseModel):
    """One fault of a request."""

    where: str = Field(description="the dotted path of the field, or the name of the parameter")
    message: str


class Problem(_Answer):
    """Why there is no answer (RFC 9457)."""

    type: str = Field(description="path of the page that explains this code", examples=["/docs/errors/request.invalid"])
    title: str
    status: int
    detail: str
    code: str = Field(description="stable and dotted")
    source: Literal["policyd", "upstream"]
    remedy: str
    request_id: str
    findings: list[FindingDocument] = []


class ViolationDocument(_Answer):
    """Why a pool is refused."""

    policy: str
    rule: str
    enforcement: Literal["hard", "soft", "approval", "advisory"]
    location: str = Field(description="file and line of the rule")
    message: str
    observed: Any
    required: Any
    remedy: str
    lifted_by: str | None = Field(None, description="in a warning about what a waiver has lifted: its id")


class ComponentDocument(_Answer):
    """One part of a score: 0..1000, its weight in thousandths, and what it was made of."""

    name: Literal["control", "availability", "price", "latency", "preference"]
    value: int
    weight: int
    inputs: Json


class CostDocument(_Answer):
    """Expected cost of the workload on this pool, in millionths of a US dollar."""

    micro_usd: int
    per: Literal["request", "deployment"]
    micro_usd_per_million_tokens: int | None
    basis: str
    price_status: Literal["list", "contract", "assumed"]


class RankedDocument(_Answer):
    """A pool that the workload may run on."""

    pool: str
    rank: int
    score: int
    components: list[ComponentDocument]
    cost: CostDocument
    model: Json
    backends: list[str]
    warnings: list[ViolationDocument]


class RejectedDocument(_Answer):
    """A pool that the workload may not run on."""

    pool: str
    violations: list[ViolationDocument]


class PositionDocument(BaseModel):
    """Where the entry stands in the log."""

    log: str
    index: int
    leaf_hash: str


class StoodOnDocument(_Answer):
    """What persons have lifted for a decision; null is all of the tenant's, or nobody who can be named any more."""

    id: str
    kind: Literal["waiver", "approval", "break_glass"]
    rule: str | None
    project: str | None
    pool: str | None
    model: str | None
    approved_by: str | None
    expires_at: str


class DecisionDocument(_Answer):
    """A decision. ``denied_by`` is there when the outcome is a deny, ``waivers`` when rules were lifted for it."""

    id: str
    outcome: Literal["allow", "deny"]
    denied_by: str | None = None
    time: str
    valid_until: str
    mode: str
    workload: Json = Field(description="as normalised: floors applied, groups of countries expanded")
    ranked: list[RankedDocument]
    ranked_total: int
    rejected: list[RejectedDocument]
    hidden_total: int
    obligations: list[Json]
    reservation: Json | None
    sheet: str
    policy: Json
    fleet: Json
    facts: Json
    waivers: list[StoodOnDocument] = []
    approval: Json | None = Field(
        None,
        description="when it is denied by `approval_required`: `pools` with their `rules`, and where to `request` it",
    )
    audit: PositionDocument


class EntryPage(BaseModel):
    """Entries of the log, newest first."""

    items: list[Json]
    next: str | None = Field(description="cursor of the next page; null at the end")


class RevisionDocument(BaseModel):
    """Which fleet this is."""

    commit: str | None
    digest: str


class PoolDocument(_Answer):
    """A pool with its declared facts; null is a fact that nobody declared."""

    id: str
    kind: Literal["on_prem", "committed", "on_demand", "spot", "serverless", "api"]
    provider: str
    region: str
    locations: Json
    operator: Json
    tenancy: str | None
    accelerator: Json
    gpu_count: int | None
    price: Json | None
    capacity: Json | None


class PoolPage(BaseModel):
    """Pools in order of id."""

    items: list[PoolDocument]
    next: str | None
    fleet: RevisionDocument


class ModelDocument(_Answer):
    """One version of a model."""

    name: str
    version: str
    digest: str | None


class ModelPage(BaseModel):
    """Versions of models by name, newest first."""

    items: list[ModelDocument]
    next: str | None
    fleet: RevisionDocument


class FleetDocument(_Answer):
    """The fleet revision in force."""

    commit: str | None
    digest: str
    pools_total: int
    tenants: list[Json]
    models: list[str]
    sla_classes: list[Json]


class ReadyDocument(BaseModel):
    """Whether each part is ready, and why not."""

    ready: bool
    checks: list[Json]


SHOWN: Final[tuple[type[BaseModel], ...]] = (
    DecisionRequest, DecisionDocument, EntryPage, Problem,
    PoolDocument, PoolPage, ModelPage, FleetDocument, ReadyDocument,
)  # fmt: skip

REQUEST_EXAMPLE: Final[Json] = {
    "workload": {
        "tenant": "eu-bank",
        "project": "support-chat",
        "environment": "prod",
        "model": "llama-3.1-70b-instruct",
        "profile": {"urgency": "interactive", "traffic": "bursty", "task": "chat"},
        "data": {"classification": "restricted", "categories": ["personal", "financial"], "residency": ["EU"]},
        "demand": {"input_tokens": 1200, "max_output_tokens": 400, "requests_per_hour": 3600},
    },
    "options": {"limit": 5},
}

VIOLATION_EXAMPLE: Final[Json] = {
    "policy": "residency",
    "rule": "location_not_permitted",
    "enforcement": "hard",
    "location": "residency/residency.rego:18",
    "message": "Data stays inside the countries it is permitted in: found processing US, required EU",
    "observed": {"processing": ["US"]},
    "required": ["EU"],
    "remedy": "choose a pool whose every location is permitted, or have the data reclassified",
}

ANSWER_EXAMPLE: Final[Json] = {
    "id": "01990000-0000-7000-8000-000000000000",
    "outcome": "deny",
    "denied_by": "eligibility",
    "time": "2026-11-22T10:00:00.000000Z",
    "valid_until": "2026-11-22T10:01:00.000000Z",
    "mode": "enforce",
    "workload": {"tenant": "eu-bank", "project": "support-chat", "model": "llama-3.1-70b-instruct"},
    "ranked": [],
    "ranked_total": 0,
    "rejected": [{"pool": "aws-us-east-1-h100", "violations": [VIOLATION_EXAMPLE]}],
    "hidden_total": 0,
    "obligations": [],
    "reservation": None,
    "sheet": "sha256:" + "0" * 64,
    "policy": {"commit": None, "digest": "sha256:" + "0" * 64, "engine": "regopy 1.5.2"},
    "fleet": {"commit": None, "digest": "sha256:" + "0" * 64},
    "facts": {"digest": "sha256:" + "0" * 64, "observed_at": None},
    "audit": {"log": "policyd/0", "index": 0, "leaf_hash": "0" * 64},
}

PROBLEM_EXAMPLE: Final[Json] = {
    "type": "/docs/errors/request.invalid",
    "title": "The request cannot be read",
    "status": 400,
    "detail": "the request cannot be read: unknown key `workload.tenat`; did you mean `tenant`?",
    "code": "request.invalid",
    "source": "policyd",
    "remedy": "correct the named fields and send it again",
    "request_id": "01990000-0000-7000-8000-000000000001",
    "findings": [{"where": "workload.tenat", "message": "unknown key `workload.tenat`; did you mean `tenant`?"}],
}


def _schema(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def content_of(name: str, example: Json | None = None) -> Json:
    """A JSON body of that schema."""
    body: Json = {"schema": _schema(name)}
    if example is not None:
        body["example"] = example
    return {"application/json": body}


def problems_of(*statuses: int) -> dict[int, Json]:
    """The problem documents that a route may answer with."""
    words = {
        400: "the request cannot be read", 403: "not permitted, or below a floor", 404: "there is no such thing",
        409: "a request with this idempotency key is in progress",
        413: "too long", 415: "not JSON", 422: "names something that does not exist",
        503: "overload, deadline, engine or log: nothing was allowed",
    }  # fmt: skip
    body = {"application/problem+json": {"schema": _schema("Problem"), "example": PROBLEM_EXAMPLE}}
    return {status: {"description": words[status], "content": body} for status in statuses}


def route(description: str, content: Json, problems: dict[int, Json], **extra: Any) -> dict[str, Any]:
    """The answers and parameters of a route, for its decorator."""
    return {"responses": {200: {"description": description, "content": content}, **problems}, "openapi_extra": extra}


_TEXT: Final[Json] = {"type": "string", "minLength": 1}
_TIME: Final[Json] = {"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "pattern": "Z$"}]}


def parameter(name: str, description: str, schema: Json | None = None, place: str = "query") -> Json:
    """A parameter of a query, or of the headers."""
    return {"name": name, "in": place, "description": description, "schema": schema or _TEXT}


def filter_parameter(name: str) -> Json:
    """A filter of a search."""
    if name in TIME_FILTERS:
        words = {"from": "the first moment that counts, in UTC", "to": "the first moment that does not, in UTC"}
        return parameter(name, words[name], _TIME)
    words_schema: Json | None = {"type": "string", "enum": list(WORDS[name])} if name in WORDS else None
    return parameter(name, "only entries with this value", words_schema)


_PAGE: Final = [
    parameter("cursor", "`next` of the page before; no other text is one"),
    parameter("limit", "entries of a page", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
]
_ETAG: Final = [
    parameter("If-None-Match", "the `ETag` of an earlier answer: 304 when it still holds", {"type": "string"}, "header")
]

IDEMPOTENCY_KEY: Final = [
    parameter(
        "Idempotency-Key",
        "the same key with the same body gets the first answer again",
        {"type": "string", "pattern": "^[!-~]{1,128}$"},
        place="header",
    )
]

DECIDE: Final = route(
    "the decision: allow or deny",
    content_of("DecisionDocument", ANSWER_EXAMPLE),
    problems_of(400, 403, 409, 413, 415, 422, 503),
    parameters=IDEMPOTENCY_KEY,
    requestBody={"required": True, "content": content_of("DecisionRequest", REQUEST_EXAMPLE)},
)
SEARCH: Final = route(
    "entries, newest first",
    content_of("EntryPage", ENTRY_PAGE_EXAMPLE),
    problems_of(400, 503),
    parameters=[*(filter_parameter(name) for name in FILTERS), *_PAGE],
)
RECORD: Final = route("the record", content_of("DecisionDocument", ANSWER_EXAMPLE), problems_of(400, 404, 503))
EXPLANATION: Final = route(
    "the explanation, as `Accept` or `format` asks",
    {
        "application/json": {"schema": {"type": "object"}, "example": EXPLANATION_EXAMPLE},
        "text/plain": {"schema": {"type": "string"}, "example": EXPLANATION_TEXT_EXAMPLE},
    },
    problems_of(400, 404, 503),
    parameters=[parameter("format", "what to answer with", {"type": "string", "enum": ["text", "json"]})],
)
POOLS: Final = route(
    "the pools", content_of("PoolPage", POOL_PAGE_EXAMPLE), problems_of(400, 503), parameters=[*_PAGE, *_ETAG]
)
POOL: Final = route("the pool", content_of("PoolDocument", POOL_EXAMPLE), problems_of(400, 404, 503), parameters=_ETAG)
MODELS: Final = route(
    "the models", content_of("ModelPage", MODEL_PAGE_EXAMPLE), problems_of(400, 503), parameters=[*_PAGE, *_ETAG]
)
FLEET: Final = route("the fleet", content_of("FleetDocument", FLEET_EXAMPLE), problems_of(400, 503), parameters=_ETAG)
LIVE: Final = route("it answers", {"application/json": {"schema": {"type": "object"}, "example": LIVE_EXAMPLE}}, {})
READY: Final = route(
    "it is ready",
    content_of("ReadyDocument", READY_EXAMPLE),
    {
        503: {
            "description": "it is not ready; the reasons are in the body",
            "content": content_of("ReadyDocument", NOT_READY_EXAMPLE),
        }
    },
)

_TAGS: Final = [
    {"name": "decisions", "description": "On which pools a workload may run, and the record of it."},
    {"name": "authzen", "description": "The same decisions in the words of OpenID AuthZEN 1.0."},
    {"name": "enforcement", "description": "For proxies that ask before they forward."},
    {"name": "reports", "description": "What was decided in a period, counted."},
    {"name": "budgets", "description": "What accounts may spend, have spent and hold; and what reservations become."},
    {"name": "fleet", "description": "The fleet as decided on."},
    {"name": "health", "description": "For whoever supervises the server."},
    {"name": "documentation", "description": "The pages that the `type` of a problem names."},
]
_DESCRIPTION: Final = (
    "Decides on which GPU pools an inference workload may run, in what order and why, and keeps the evidence. "
    "Every error is a problem document; an error is never an allow."
)


def describe(app: FastAPI, version: str, shown: Sequence[type[BaseModel]] = ()) -> Json:
    """The OpenAPI document of the application, made once. ``shown`` are schemas described beside this module."""
    if app.openapi_schema is None:
        document = get_openapi(
            title="policyd", version=version, description=_DESCRIPTION, tags=_TAGS, routes=app.routes
        )
        _, schemas = models_json_schema(
            [(model, "validation") for model in (*SHOWN, *shown)], ref_template="#/components/schemas/{model}"
        )
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        app.openapi_schema = complete(document, app.routes)
    return app.openapi_schema
