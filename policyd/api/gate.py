"""The door of the HTTP surface: request ids, limits on work in progress, deadlines, and the last line against faults.

Rules: plain ASGI, since every decision passes here; a request over the limit is refused before any work; who asks is
settled before any route, and what is not plainly open needs a proof; a request that takes too long is an error and
never an allow; whatever is raised below leaves as a problem document without a trace, or, when an answer has begun, as
a closed connection.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from policyd.api.callers import ANONYMOUS, SCOPE_KEY, Callers
from policyd.api.problems import CODE_KEY, problem
from policyd.errors import Overloaded, PolicydError, TimedOut
from policyd.services.clock import now_us, uuid7
from policyd.settings import ApiSettings
from policyd.telemetry import Telemetry

_TOKEN: Final = re.compile(rb"[!-~]{1,128}")
_UNLIMITED: Final = frozenset({"/livez", "/readyz", "/metrics"})
"""Paths that tell how the server is must answer when it is busy."""
_OPEN: Final = frozenset(
    {"/livez", "/readyz", "/openapi.json", "/.well-known/authzen-configuration", "/v1/revisions/webhook"}
)
_OPEN_BELOW: Final = "/docs/errors/"
"""What everybody may ask: whether it lives, what it answers, and what its errors mean; the webhook proves itself."""
_NOSNIFF: Final = (b"x-content-type-options", b"nosniff")
_log: Final = logging.getLogger(__name__)


class Gate:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp, limits: ApiSettings, callers: Callers, telemetry: Telemetry) -> None:
        self._app = app
        self._callers = callers
        self._limits = limits
        self._timeout_s = limits.request_timeout_ms / 1_000
        self._telemetry = telemetry
        self.in_flight = 0
        telemetry.observe("policyd.requests.in_flight", lambda: [((), self.in_flight)])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_from(scope)
        scope["policyd.request_id"] = request_id
        scope[SCOPE_KEY] = ANONYMOUS
        door = _Door(send, request_id)
        path = scope["path"]
        limited = path not in _UNLIMITED
        if limited and self.in_flight >= self._limits.in_flight_max:
            full = Overloaded(f"{self.in_flight} requests are in progress, the most that api.in_flight_max admits")
            scope[CODE_KEY] = full.code
            self._telemetry.turned_away(full.code)
            await problem(full, request_id)(scope, receive, door)
            self._telemetry.answered(door.status, full.code)
            return
        self.in_flight += limited
        try:
            await self._pass(scope, receive, door)
        finally:
            self.in_flight -= limited
            if door.begun:
                self._telemetry.answered(door.status, scope.get(CODE_KEY))

    async def _pass(self, scope: Scope, receive: Receive, door: _Door) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                if is_open(scope["path"]):
                    await self._app(scope, receive, door)
                else:
                    await self._for_principal(scope, receive, door)
            return
        except ClientDisconnect:
            return
        except TimeoutError:
            error: PolicydError = TimedOut(f"no answer within {self._limits.request_timeout_ms} ms")
        except PolicydError as raised:
            # What is raised inside has been answered there: this is the door's own word.
            self._telemetry.turned_away(raised.code)
            await self._callers.refused(scope, raised)
            error = raised
        except Exception:
            _log.exception("request %s failed", door.request_id)
            error = PolicydError("an unforeseen fault; the server's log has it under this request id")
            if door.begun:
                raise
        if not door.begun:
            door.closing = True
            scope[CODE_KEY] = error.code
            await problem(error, door.request_id)(scope, receive, door)

    async def _for_principal(self, scope: Scope, receive: Receive, door: _Door) -> None:
        principal = scope[SCOPE_KEY] = await self._callers.principal(scope)
        limiter = self._callers.limiter
        limiter.enter(principal.name)
        try:
            await self._app(scope, receive, door)
        finally:
            limiter.leave(principal.name)


def is_open(path: str) -> bool:
    """Whether everybody may ask that path, without saying who they are."""
    return path in _OPEN or path.startswith(_OPEN_BELOW)


class _Door:
    """``send`` that adds the headers every answer has, and knows whether an answer has begun."""

    __slots__ = ("_send", "begun", "closing", "request_id", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.begun = False
        self.closing = False
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self.status = message["status"]
            headers = list(message["headers"])
            headers += [(b"x-request-id", self.request_id.encode("ascii")), _NOSNIFF]
            if self.closing:
                # What the client still sends of this request was not read and must not be taken for the next one.
                headers.append((b"connection", b"close"))
            message["headers"] = headers
        await self._send(message)


def request_id_from(scope: Scope) -> str:
    """The caller's ``X-Request-ID`` when it is a short printable token, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _TOKEN.fullmatch(value):
            return str(value, "ascii")
    return uuid7(now_us())
