"""Requests that are followed: the span around the gate, and the moment when the gate has let one in.

Rules: both stand in the application only when something takes traces, so that otherwise they cost nothing; of the
headers ``traceparent`` and ``tracestate`` are read and no others; health and metrics are not followed.
"""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from policyd.api.callers import SCOPE_KEY
from policyd.api.direct import PATH
from policyd.api.problems import CODE_KEY
from policyd.telemetry import Tracing

TRACE_KEY: Final = "policyd.trace"
_NOT_FOLLOWED: Final = frozenset({"/livez", "/readyz", "/metrics"})
_HEADERS: Final = (b"traceparent", b"tracestate")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


class Followed:
    """ASGI middleware outside the gate: one span a request."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and follow it."""
        if scope["type"] != "http" or scope["path"] in _NOT_FOLLOWED:
            await self._app(scope, receive, send)
            return
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _HEADERS}
        trace = self._tracing.request(headers)
        if not trace.sampled:
            try:
                await self._app(scope, receive, send)
            finally:
                trace.end("", 0, {})
            return
        scope[TRACE_KEY] = trace
        answer = _Answer(send)
        try:
            await self._app(scope, receive, answer)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
            route = route_of(scope)
            attributes = {"http.request.method": method} | _told(scope, answer.decision_id)
            if route:
                attributes["http.route"] = route
            trace.end(f"{method} {route}".rstrip(), answer.status, attributes)


class _Answer:
    """``send`` that knows the status and the decision."""

    __slots__ = ("_send", "decision_id", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.decision_id = ""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            for name, value in message["headers"]:
                if name == b"x-policyd-decision-id":
                    self.decision_id = value.decode("ascii")
        await self._send(message)


class Admitted:
    """ASGI middleware inside the gate: what comes here was let in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say so, and pass it on."""
        trace = scope.get(TRACE_KEY)
        if trace is not None:
            trace.admitted()
        await self._app(scope, receive, send)


def route_of(scope: Scope) -> str:
    """The path of the route that answered, with its parameters as names; empty when none did."""
    if scope["path"] == PATH:
        return PATH
    route = scope.get("route")
    return str(getattr(route, "path_format", None) or getattr(route, "path", ""))


def _told(scope: Scope, decision_id: str) -> dict[str, str]:
    principal = scope.get(SCOPE_KEY)
    found = {
        "policyd.request.id": scope.get("policyd.request_id", ""),
        "policyd.decision.id": decision_id,
        "policyd.principal": principal.name if principal is not None else "",
        "error.type": scope.get(CODE_KEY, ""),
    }
    return {name: value for name, value in found.items() if value}
