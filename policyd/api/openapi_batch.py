"""The description of batches, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from policyd.api.openapi import (
    ANSWER_EXAMPLE,
    IDEMPOTENCY_KEY,
    PROBLEM_EXAMPLE,
    REQUEST_EXAMPLE,
    DecisionDocument,
    Problem,
    content_of,
    problems_of,
    route,
)
from policyd.core.workload import DecisionRequest


class BatchRequest(BaseModel):
    """Bodies of ``POST /v1/decisions``; ``api.batch_max_items`` bounds them."""

    model_config = ConfigDict(extra="forbid")

    requests: list[DecisionRequest] = Field(min_length=1, max_length=1_000)


class BatchItem(BaseModel):
    """What the single route would have answered: ``decision`` with the status 200, else ``problem``."""

    status: int = Field(description="the HTTP status of the single route")
    decision: DecisionDocument | None = Field(None, description="there when the status is 200")
    problem: Problem | None = Field(None, description="there when the status is another one")
    decision_id: str | None = Field(None, description="the entry in the log of a request that brought no decision")


class BatchDocument(BaseModel):
    """Answers in the order of the requests."""

    items: list[BatchItem]


_EXAMPLE: Final[dict[str, Any]] = {
    "items": [{"status": 200, "decision": ANSWER_EXAMPLE}, {"status": 400, "problem": PROBLEM_EXAMPLE}]
}

BATCH: Final = route(
    "an answer for each request, in order, however many of them failed",
    content_of("BatchDocument", _EXAMPLE),
    problems_of(400, 409, 413, 415, 422, 503),
    parameters=IDEMPOTENCY_KEY,
    requestBody={"required": True, "content": content_of("BatchRequest", {"requests": [REQUEST_EXAMPLE]})},
)
BATCH_SHOWN: Final[tuple[type[BaseModel], ...]] = (BatchRequest, BatchDocument)
