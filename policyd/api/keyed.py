"""What is done once under an ``Idempotency-Key``, for routes that propose and approve.

Rules: a key belongs to one principal, tenant and path; without one the request is done as it comes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson
from fastapi import Request
from fastapi.responses import Response

from policyd.api.bodies import Body, parse_json, read_bytes
from policyd.api.callers import principal_of
from policyd.api.keys import key_of
from policyd.api.parts import Parts
from policyd.api.queries import parameters
from policyd.core.principal import Principal
from policyd.services.idempotency import Claim, Done
from policyd.services.repeats import Json, Key

NO_STORE: Final = {"Cache-Control": "no-store"}


@dataclass(frozen=True)
class Keyed:
    """Reads requests with their keys, and answers each key once."""

    parts: Parts

    async def read(self, request: Request, model: type[Body]) -> tuple[Body, Principal, Key | None]:
        """The body, who asks, and the key that it came with."""
        parameters(request, ())
        content = await read_bytes(request, self.parts.settings.api.body_max_bytes)
        written = key_of(request)
        key = None if written is None else Key(written, request.scope["path"], content)
        return parse_json(content, model), principal_of(request), key

    async def once(
        self,
        principal: Principal,
        tenant: str | None,
        key: Key | None,
        do: Callable[[Claim | None], Awaitable[Json]],
        again: Callable[[Done], Awaitable[Json]],
    ) -> Response:
        """The answer of ``do``, or of ``again`` when the key was used for it before."""
        return answer(await (do(None) if key is None else self.parts.repeats.deed(principal, tenant, key, do, again)))

    async def proposed(
        self, principal: Principal, tenant: str | None, key: Key | None, do: Callable[[Claim | None], Awaitable[Json]]
    ) -> Response:
        """The same, for a proposal."""
        return await self.once(principal, tenant, key, do, partial(self.parts.two_persons.proposed, principal))


def answer(document: Mapping[str, Any]) -> Response:
    """A document that nobody may keep."""
    return Response(orjson.dumps(document), headers=NO_STORE, media_type="application/json")
