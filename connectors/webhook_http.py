"""The way to receivers of webhooks over HTTP: one POST, of whose answer only the status is looked at.

Rules: the whole exchange has a deadline, however slowly the other side talks; redirects are not followed; the body of
the answer is not read; nothing is retried here; a connection is not kept for the next event, which may come in a week.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import httpx

from policyd.errors import ServerUnreachable


class WebhookHttp:
    """Posts to receivers. Made once, because what TLS needs takes long to read."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, timeout_ms: int) -> int:
        """The status of the answer. Raises ``ServerUnreachable``."""
        limit_s = timeout_ms / 1_000
        asked = self._client.stream("POST", url, content=body, headers=dict(headers), timeout=limit_s)
        try:
            async with asyncio.timeout(limit_s), asked as answer:
                return answer.status_code
        except TimeoutError:
            raise ServerUnreachable(f"it did not answer within {timeout_ms} ms") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerUnreachable(f"it cannot be reached: {str(error) or type(error).__name__}") from error
