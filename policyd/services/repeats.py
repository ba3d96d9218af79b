"""Requests that may come twice: the same key with the same body gets the first one's answer.

    key ──in progress──► 409        ──used, same body──► the recorded decision, replayed
        ──new──► decide, with the claim in the entry's transaction    ──used, other body──► 422

Rules: nothing is decided under a key whose use cannot be looked up; the stored answer is the recorded decision with its
own ``valid_until``, never a new one, and only for who may still ask for it; an error did nothing, so it uses no key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from policyd.core.principal import Principal
from policyd.core.workload import DecisionRequest, Workload
from policyd.errors import AuditError, KeyInProgress, KeyReused
from policyd.services.answers import answer_pieces
from policyd.services.clock import Now, now_us
from policyd.services.decisions import Answered, DecisionService
from policyd.services.idempotency import Claim, Done, scope_of
from policyd.services.log_reader import LogReader
from policyd.services.replay import replay

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it came: with which body, on which route, and at which place of a batch."""

    text: str
    route: str
    content: bytes
    item: int = 0


@dataclass
class Repeats:
    """Decides under keys."""

    decisions: DecisionService
    reader: LogReader
    ttl_ms: int
    now: Now = now_us
    _in_progress: set[bytes] = field(default_factory=set)

    async def decide(self, request: DecisionRequest, principal: Principal, request_id: str, key: Key) -> Answered:
        """The answer to a request under a key. Raises ``KeyInProgress``, ``KeyReused``, and what deciding raises."""
        scope, digest = self._scope(request, principal, key), sha256(key.content).digest()
        with self._busy(scope):
            stored = await self._stored(scope, digest)
            if stored is not None and self._permitted(principal, stored.made.workload):
                return stored
            # Who has lost the right since then is refused, and recorded as refused, like anybody without it.
            time_us = self.now()
            claim = Claim(scope, digest, time_us, time_us + self.ttl_ms * 1_000)
            return await self.decisions.decide(request, principal, request_id, claim)

    async def deed(
        self,
        principal: Principal,
        tenant: str | None,
        key: Key,
        do: Callable[[Claim], Awaitable[Json]],
        again: Callable[[Done], Awaitable[Json]],
    ) -> Json:
        """What is done under a key once: ``do`` it with the claim, or tell of what was done ``again``.

        Raises ``KeyInProgress``, ``KeyReused``, and what either of them raises.
        """
        scope, digest = scope_of(principal.name, tenant or "", key.route, key.text), sha256(key.content).digest()
        with self._busy(scope):
            kept = await self.reader.key(scope, self.now())
            if kept is None:
                time_us = self.now()
                return await do(Claim(scope, digest, time_us, time_us + self.ttl_ms * 1_000))
            if kept.request != digest:
                raise _reused()
            return await again(Done.of(kept))

    def _permitted(self, principal: Principal, workload: Workload) -> bool:
        entitled = self.decisions.snapshots.current().entitlements
        scope = (workload.tenant, workload.project, workload.environment)
        return principal.permitted(entitled, "decisions", "decide", *scope)

    async def check(self, request: DecisionRequest, principal: Principal, key: Key) -> None:
        """Raise what ``decide`` would raise for a key that was used with another body."""
        kept = await self.reader.key(self._scope(request, principal, key), self.now())
        if kept is not None and kept.request != sha256(key.content).digest():
            raise _reused()

    @contextmanager
    def whole(self, principal: Principal, key: Key) -> Generator[None, None, None]:
        """Hold a key for a batch, whose items use it one by one. Raises ``KeyInProgress``."""
        with self._busy(scope_of(principal.name, "", key.route, key.text, -1)):
            yield

    @contextmanager
    def _busy(self, scope: bytes) -> Generator[None, None, None]:
        if scope in self._in_progress:
            raise KeyInProgress("a request with this key is being answered")
        self._in_progress.add(scope)
        try:
            yield
        finally:
            self._in_progress.discard(scope)

    def _scope(self, request: DecisionRequest, principal: Principal, key: Key) -> bytes:
        named = request.workload.tenant
        tenants = principal.tenants or frozenset()
        tenant = named if named is not None else next(iter(tenants)) if len(tenants) == 1 else ""
        return scope_of(principal.name, tenant, key.route, key.text, key.item)

    async def _stored(self, scope: bytes, digest: bytes) -> Answered | None:
        kept = await self.reader.key(scope, self.now())
        if kept is None:
            return None
        if kept.request != digest:
            raise _reused()
        replayed = await replay(self.reader, kept.decision)
        if replayed.made is None:
            raise AuditError(f"the entry {kept.decision} that a key was used for is no decision")
        record = replayed.record
        position = {"log": record.origin, "index": record.index, "leaf_hash": record.leaf_hash.hex()}
        return Answered(kept.decision, replayed.made, answer_pieces(replayed.made, position))


def _reused() -> KeyReused:
    return KeyReused("this idempotency key was used with another body")
