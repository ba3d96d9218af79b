"""Errors as problem documents (RFC 9457), and the pages that their ``type`` leads to.

Rules: every error of the surface is one of these, those of the web framework and of the HTTP parser too; ``type`` is a
path that this server answers; what went wrong inside is logged with the request id and never sent.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from policyd.errors import (
    Finding,
    LimitReached,
    NotFound,
    Overloaded,
    PolicydError,
    RequestError,
    TimedOut,
    Unauthenticated,
    WrongMethod,
    all_errors,
)

PROBLEM_JSON: Final = "application/problem+json"
CODE_KEY: Final = "policyd.problem"
"""Where the scope of a request keeps the code of the problem that it was answered with, for the metrics."""
PAGES: Final = "/docs/errors"
RETRY_AFTER_S: Final = 1
FINDINGS_MAX: Final = 50

_log: Final = logging.getLogger(__name__)
_PACKAGE: Final = Path(__file__).resolve().parent.parent


def problem_json(error: PolicydError, request_id: str) -> dict[str, Any]:
    """The problem document of an error, as JSON values."""
    document: dict[str, Any] = {
        "type": f"{PAGES}/{error.code}",
        "title": error.title,
        "status": error.http_status,
        "detail": error.detail,
        "code": error.code,
        "source": "policyd",
        "remedy": error.remedy_text,
        "request_id": request_id,
    }
    if error.findings:
        shown = error.findings[:FINDINGS_MAX]
        document["findings"] = [{"where": finding.where, "message": finding.message} for finding in shown]
    return document


def problem_headers(error: PolicydError) -> dict[str, str]:
    """The headers that go with it."""
    headers = {"Content-Type": PROBLEM_JSON, "Cache-Control": "no-store"}
    if isinstance(error, Overloaded | TimedOut | LimitReached):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="policyd"'
    if error.decision_id is not None:
        headers["X-Policyd-Decision-Id"] = error.decision_id
    return headers


def problem(error: PolicydError, request_id: str) -> Response:
    """The answer for an error."""
    content = orjson.dumps(problem_json(error, request_id))
    return Response(content, error.http_status, problem_headers(error))


def logged_problem(error: PolicydError, request_id: str) -> Response:
    """The answer for an error, which the log of the server has too when it is the server's own."""
    # A flood that is refused must not become a flood of lines.
    if error.http_status >= 500 and not isinstance(error, Overloaded):
        _log.error("request %s: %s: %s", request_id, error.code, error.detail)
    return problem(error, request_id)


def request_id_of(request: Request) -> str:
    """The identifier that ``policyd.api.gate`` gave the request."""
    found: str = request.scope["policyd.request_id"]
    return found


def _answer(error: PolicydError, request: Request) -> Response:
    request.scope[CODE_KEY] = error.code
    return problem(error, request_id_of(request))


Refuse = Callable[[Request, PolicydError], Awaitable[None]]
"""Records that a principal was refused."""


def install(app: FastAPI, routers: Sequence[APIRouter], refuse: Refuse) -> None:
    """Answer every error that is raised below the gate with a problem document, and record what identity refused.

    ``routers`` are all that it answers.
    """

    async def policyd_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, PolicydError)
        request.scope[CODE_KEY] = error.code
        await refuse(request, error)
        return logged_problem(error, request_id_of(request))

    async def framework_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code != 405:
            return _answer(_of_status(error, request), request)
        answer = _answer(_of_status(error, request), request)
        answer.headers["Allow"] = ", ".join(allowed_methods(routers, request))
        return answer

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        findings = [Finding(".".join(str(part) for part in fault["loc"]), fault["msg"]) for fault in error.errors()]
        found = RequestError(f"the request cannot be read: {findings[0]}", findings=findings)
        return _answer(found, request)

    async def unforeseen(request: Request, error: Exception) -> Response:
        # The framework would answer with words of its own; the gate has the ones for this.
        raise error

    app.add_exception_handler(PolicydError, policyd_error)
    app.add_exception_handler(Exception, unforeseen)
    app.add_exception_handler(HTTPException, framework_error)
    app.add_exception_handler(RequestValidationError, invalid)


def _of_status(error: HTTPException, request: Request) -> PolicydError:
    path = request.url.path[:200]
    if error.status_code == 404:
        return NotFound(f"nothing answers the path {path!r}", remedy="see /openapi.json for the paths")
    if error.status_code == 405:
        return WrongMethod(f"{request.method[:20]} {path} is not answered")
    if error.status_code < 500:
        return RequestError(str(error.detail))
    return PolicydError("the server failed to answer")


def allowed_methods(routers: Sequence[APIRouter], request: Request) -> list[str]:
    """The methods that some route answers on this path. A path that stands for itself is no other route's parameter."""
    routes = [route for router in routers for route in router.routes]
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    literal = [route for route in matching if getattr(route, "path", None) == request.scope["path"]]
    found: set[str] = set()
    for route in literal or matching:
        found |= set(getattr(route, "methods", None) or ())
    return sorted(found)


@cache
def _pages() -> Path:
    """The directory of the pages: installed with the package, or of the checkout."""
    for path in (_PACKAGE / "_shipped" / "errors", _PACKAGE.parent / "docs" / "errors"):
        if path.is_dir():
            return path
    raise FileNotFoundError("the pages of the errors are not installed")


@cache
def _page(code: str) -> bytes:
    return (_pages() / f"{code}.md").read_bytes()


def page_router(codes: Iterable[str] | None = None) -> APIRouter:
    """``GET /docs/errors/{code}``: what the ``type`` of a problem leads to."""
    known = frozenset(codes if codes is not None else (error.code for error in all_errors()))
    router = APIRouter(tags=["documentation"])

    described: dict[int | str, dict[str, Any]] = {
        200: {"description": "the page", "content": {"text/markdown": {"schema": {"type": "string"}}}},
        404: {
            "description": "there is no such error",
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        },
    }

    @router.get(
        f"{PAGES}/{{code}}",
        summary="What an error means and what to do",
        response_class=Response,
        responses=described,
    )
    async def page(code: str) -> Response:
        if code not in known:
            raise NotFound(f"there is no error {code[:100]!r}", remedy=f"the pages are {', '.join(sorted(known))}")
        return Response(_page(code), media_type="text/markdown; charset=utf-8", headers={"Cache-Control": "no-cache"})

    return router
