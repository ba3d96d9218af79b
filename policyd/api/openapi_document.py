"""What every operation of the HTTP surface has in common, added to its description: the errors and headers that the
gate, the connection and the readers of requests bring, whichever the route.

Rules: a route describes what is its own; what all have is written here once, so that a new route cannot forget it; a
description that a route gives itself is never replaced. It refuses to describe null in a request, since
no reader takes one, and keys that match no pattern.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, Final

from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from starlette.routing import BaseRoute

from policyd.api.problems import problem_json
from policyd.errors import (
    HeadersTooLarge,
    KeyInProgress,
    Loosens,
    NotFound,
    Overloaded,
    PolicydError,
    RequestError,
    TooLarge,
    UnknownName,
    WrongMediaType,
)

Json = dict[str, Any]

PROBLEM_JSON: Final = "application/problem+json"
EXAMPLE_REQUEST_ID: Final = "01990000-0000-7000-8000-000000000001"
_FRAMEWORK_SCHEMAS: Final = ("HTTPValidationError", "ValidationError")
"""FastAPI describes answers of its own validation, which nothing here uses."""

_COMMON: Final = {
    431: "the request line and headers are too long",
    500: "an unforeseen fault; nothing was allowed",
    503: "overload or deadline; nothing was allowed",
}
_EXAMPLES: Final[tuple[PolicydError, ...]] = (
    RequestError("the request cannot be read: unknown key `workload.tenat`; did you mean `tenant`?"),
    Loosens("classification 'public' is below the floor 'confidential' of tenant 'eu-bank'"),
    NotFound("no entry has the id '01990000-0000-7000-8000-000000000002'"),
    KeyInProgress("a request with this key is being answered"),
    TooLarge("the body is longer than 262144 bytes"),
    WrongMediaType("there is no content type"),
    UnknownName("unknown tenant 'eu-banc'; did you mean 'eu-bank'?"),
    HeadersTooLarge("the request line and headers are longer than 65536 bytes"),
    PolicydError("an unforeseen fault; the server's log has it under this request id"),
    Overloaded("1024 requests are in progress, the most that api.in_flight_max admits"),
)
_HEADERS: Final[Json] = {
    "X-Request-ID": {
        "description": "the caller's, when it is a short printable token; else a new one",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    },
    "X-Content-Type-Options": {
        "description": "an answer is what its content type says",
        "required": True,
        "schema": {"type": "string", "enum": ["nosniff"]},
    },
    "Retry-After": {"description": "seconds, when it is worth asking again", "schema": {"type": "string"}},
    "ETag": {"description": "the digest of what was answered", "required": True, "schema": {"type": "string"}},
}
_ALWAYS: Final = ("X-Request-ID", "X-Content-Type-Options")
_PROBLEM: Final[Json] = {"$ref": "#/components/schemas/Problem"}


def complete(document: Json, routes: Sequence[BaseRoute]) -> Json:
    """The document with everything that all operations have in common, and with the examples of the routes whole."""
    for route in iter_route_contexts(routes):
        if isinstance(route.original_route, APIRoute) and route.include_in_schema:
            _restore_bodies(document["paths"][route.path_format], route)
    schemas = document["components"]["schemas"]
    for name in _FRAMEWORK_SCHEMAS:
        schemas.pop(name, None)
    document["components"].setdefault("headers", {}).update(_HEADERS)
    for operation in operations(document):
        _complete_answers(operation)
        for content in operation.get("requestBody", {}).get("content", {}).values():
            _as_read(content["schema"], schemas, set())
    return document


def operations(document: Json) -> Iterator[Json]:
    """Every operation of the document."""
    for methods in document["paths"].values():
        yield from methods.values()


def problem_example(status: int) -> Json | None:
    """A problem document of this status, of an error that there is."""
    error = next((error for error in _EXAMPLES if error.http_status == status), None)
    return None if error is None else problem_json(error, EXAMPLE_REQUEST_ID)


def _restore_bodies(methods: Json, route: RouteContext) -> None:
    """Put back what the routes say of bodies: FastAPI drops every null on the way, also those in examples."""
    for operation in (methods[method.lower()] for method in route.methods or ()):
        for status, answer in route.responses.items():
            if "content" in answer:
                operation["responses"][str(status)]["content"] = deepcopy(answer["content"])
        if "requestBody" in (route.openapi_extra or {}):
            operation["requestBody"] = deepcopy((route.openapi_extra or {})["requestBody"])


def _complete_answers(operation: Json) -> None:
    answers = operation["responses"]
    if "HTTPValidationError" in str(answers.get("422", "")):
        del answers["422"]
    for status, words in _COMMON.items():
        answers.setdefault(str(status), {"description": words, "content": {PROBLEM_JSON: {"schema": _PROBLEM}}})
    # Whoever answers another status than the usual one has said so; a 503 may be a route's own document or a problem.
    answers["503"].setdefault("content", {}).setdefault(PROBLEM_JSON, {"schema": _PROBLEM})
    if any(parameter["name"] == "If-None-Match" for parameter in operation.get("parameters", ())):
        answers.setdefault("304", {"description": "what the `If-None-Match` of the request names still holds"})
        for tagged in ("200", "304"):
            answers[tagged].setdefault("headers", {}).setdefault("ETag", _header("ETag"))
    for status, answer in answers.items():
        _complete_answer(int(status), answer)
    operation["responses"] = dict(sorted(answers.items()))


def _header(name: str) -> Json:
    return {"$ref": f"#/components/headers/{name}"}


def _complete_answer(status: int, answer: Json) -> None:
    headers = {**answer.get("headers", {})}
    for name in (*_ALWAYS, "Retry-After") if status == 503 else _ALWAYS:
        headers.setdefault(name, _header(name))
    answer["headers"] = headers
    found = answer.get("content", {}).get(PROBLEM_JSON)
    example = problem_example(status)
    if found is not None and example is not None and found.get("example", {}).get("status") != status:
        answer["content"] = {**answer["content"], PROBLEM_JSON: {**found, "example": example}}


def _as_read(schema: Any, schemas: Json, seen: set[str]) -> None:
    """Make a request's schema, and all that it leads to, as strict as the reader is: no null, no other keys."""
    if isinstance(schema, list):
        for part in schema:
            _as_read(part, schemas, seen)
    if not isinstance(schema, dict):
        return
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    if name and name not in seen:
        seen.add(name)
        _as_read(schemas[name], schemas, seen)
    if "patternProperties" in schema:
        schema.setdefault("additionalProperties", False)
    kept = [part for part in schema.get("anyOf", ()) if part != {"type": "null"}]
    if kept and len(kept) < len(schema["anyOf"]):
        del schema["anyOf"]
        schema.update(kept[0] if len(kept) == 1 else {"anyOf": kept})
        if schema.get("default", ...) is None:
            del schema["default"]
    for key, part in schema.items():
        if key not in ("example", "examples", "default", "const", "enum"):
            _as_read(part, schemas, seen)
