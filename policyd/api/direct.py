"""The shortest way to a decision: ``POST /v1/decisions`` answered in plain ASGI, everything else passed on.

Rules: it stands inside the gate, so that who asks, limits and deadlines are settled; it reads and refuses with the same
words as every other route; a request with an idempotency key is passed on. The framework's way to an endpoint takes
longer than a decision: that is why this one exists.
"""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from policyd.api.bodies import parse_json, receive_bytes
from policyd.api.callers import SCOPE_KEY
from policyd.api.packing import Packing
from policyd.api.parts import Parts
from policyd.api.problems import CODE_KEY, logged_problem
from policyd.core.workload import DecisionRequest
from policyd.errors import PolicydError

PATH: Final = "/v1/decisions"
NO_STORE: Final = (b"cache-control", b"no-store")


class DirectDecision:
    """ASGI middleware around the application, inside the gate."""

    def __init__(self, app: ASGIApp, parts: Parts, packing: Packing) -> None:
        self._app = app
        self._packing = packing
        self._decisions = parts.decisions
        self._body_max_bytes = parts.settings.api.body_max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a decision; pass on what is none."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST" or _repeatable(scope):
            await self._app(scope, receive, send)
            return
        request_id: str = scope["policyd.request_id"]
        try:
            content = await receive_bytes(scope["headers"], receive, self._body_max_bytes)
            asked = parse_json(content, DecisionRequest)
            answered = await self._decisions.decide(asked, scope[SCOPE_KEY], request_id)
        except PolicydError as error:
            scope[CODE_KEY] = error.code
            await logged_problem(error, request_id)(scope, receive, send)
            return
        headers, pieces = self._packing.answer(scope["headers"], answered.pieces, (answered.made.sheet,))
        headers += [(b"x-policyd-decision-id", answered.id.encode()), NO_STORE]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"".join(pieces), "more_body": False})


def _repeatable(scope: Scope) -> bool:
    """Whether the caller may send the same request again under a key: the long way knows about that."""
    return any(name == b"idempotency-key" for name, _ in scope["headers"])
