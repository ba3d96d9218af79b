"""Is it alive, is it ready: two questions for whoever supervises the server.

Rules: ``/livez`` touches nothing; ``/readyz`` is 200 only when a decision asked now would be answered: a snapshot is
loaded, the log takes entries, the facts are fresh, the engine answers, and the server is not about to end. The engine
is asked at most once a second, however many ask here.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from policyd.api.openapi import LIVE, READY
from policyd.api.parts import Parts
from policyd.errors import PolicydError
from policyd.services.clock import now_us

ENGINE_CACHE_MS: Final = 1_000
ENGINE_TIMEOUT_MS: Final = 3_000
WITHHELD: Final = "not ready; the server's log says why"
SOURCES_WITHHELD: Final = "a source does not confirm what is live; the server's log says why"
_NO_STORE: Final = {"Cache-Control": "no-store"}


@dataclass
class Readiness:
    """What stands between this server and its next decision."""

    parts: Parts
    draining: bool = False
    _engine_reason: str | None = None
    _engine_asked_at: float | None = None
    _engine_asks: asyncio.Lock = field(default_factory=asyncio.Lock)

    def parts_ready(self) -> list[tuple[tuple[str, ...], float]]:
        """For metrics: 1 for each part that is ready, 0 for the others. The engine as it was last asked, if ever."""
        found = self._reasons_now()
        if self._engine_asked_at is not None:
            found["engine"] = self._engine_reason
        return [((name,), int(reason is None)) for name, reason in found.items()]

    async def reasons(self) -> dict[str, str | None]:
        """For each part None when it is ready, else why not."""
        return {**self._reasons_now(), "engine": await self._engine()}

    def _reasons_now(self) -> dict[str, str | None]:
        return {
            "server": "the server is about to end" if self.draining else None,
            "snapshot": self._snapshot(),
            "log": None if self.parts.committer.healthy else self.parts.committer.fault or "the log is closed",
            "facts": self._facts(),
            "revisions": self._revisions(),
            **({"workers": self.parts.workers_fault()} if self.parts.settings.workers > 1 else {}),
        }

    def _snapshot(self) -> str | None:
        try:
            _ = self.parts.snapshot
        except PolicydError as error:
            return error.detail
        return None

    def _facts(self) -> str | None:
        try:
            self.parts.facts.current()
        except PolicydError as error:
            return error.detail
        return None

    def _revisions(self) -> str | None:
        try:
            self.parts.decisions.freshness.require(now_us())
        except PolicydError as error:
            return error.detail
        return None

    async def _engine(self) -> str | None:
        async with self._engine_asks:
            now = time.monotonic()
            if self._engine_asked_at is None or (now - self._engine_asked_at) * 1_000 >= ENGINE_CACHE_MS:
                self._engine_reason = await self._ask_engine()
                self._engine_asked_at = time.monotonic()
            return self._engine_reason

    async def _ask_engine(self) -> str | None:
        try:
            async with asyncio.timeout(ENGINE_TIMEOUT_MS / 1_000):
                await self.parts.engine.health()
        except TimeoutError:
            return f"the engine did not answer within {ENGINE_TIMEOUT_MS} ms"
        except PolicydError as error:
            return error.detail
        return None


def health_router(readiness: Readiness) -> APIRouter:
    """The routes of health."""
    router = APIRouter(tags=["health"])
    alive = orjson.dumps({"alive": True})

    @router.get("/livez", summary="Does the process answer", **LIVE)
    async def live() -> Response:
        """Answers whenever the process can answer at all."""
        return Response(alive, headers=_NO_STORE, media_type="application/json")

    @router.get("/readyz", summary="Would a decision be answered now", **READY)
    async def ready(request: Request) -> Response:
        """200 when every part is ready, else 503; each part with the reason."""
        # Whoever is not known here learns that a part is not ready; paths and addresses are for the operator's log.
        told = readiness.parts.callers.authenticator is None
        reasons = await readiness.reasons()
        checks: list[dict[str, Any]] = [
            {"name": name, "ok": reason is None, "reason": reason if told else reason and WITHHELD}
            for name, reason in reasons.items()
        ]
        ok = all(check["ok"] for check in checks)
        # The last good revisions serve, so this is no reason to send nothing here: but somebody should look.
        checks.append({"name": "reload", "ok": True, "reason": readiness.parts.reload.fault})
        faults = "; ".join(readiness.parts.decisions.freshness.faults()) or None
        checks.append({"name": "sources", "ok": True, "reason": faults if told else faults and SOURCES_WITHHELD})
        body = orjson.dumps({"ready": ok, "checks": checks})
        return Response(body, 200 if ok else 503, headers=_NO_STORE, media_type="application/json")

    return router
