"""The two clients: the same calls, one of them waits and the other is awaited.

Rules: every method is a call of ``policyd.client.calls`` and nothing else; a call is sent once, unless
``attempts_max`` allows more and the call may be repeated; whatever happens is an answer or an error of
``policyd.errors``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, TypeVar, Unpack

from policyd.client import authzen_calls, calls, history
from policyd.client.calls import Call, Listing, Reply
from policyd.client.connections import Attempts, Body, Connection, Given, broken_off
from policyd.client.documents import (
    Asked,
    BreakEven,
    Budget,
    ChangedBudgets,
    Decision,
    Entry,
    Evaluation,
    Filters,
    Fleet,
    Json,
    Model,
    Options,
    Overrides,
    Page,
    Pool,
    PoolQuestion,
    PoolSearch,
    Readiness,
    Reservation,
    Semantic,
    Simulation,
    Traffic,
    Usage,
    Workload,
)
from policyd.client.revisions import AsyncRevisions, Revisions
from policyd.client.two_persons import AsyncTwoPersons, TwoPersons
from policyd.errors import AuditRolledBack, PolicydError, SplitView

Found = TypeVar("Found")
Item = TypeVar("Item")

PAGE_LIMIT: Final = 100
POOLS_LIMIT: Final = 1_000


class Client(TwoPersons, Revisions):
    """A policyd server, asked from code that waits. Safe to share between threads; close it, or use ``with``."""

    def __init__(self, address: str, **given: Unpack[Given]) -> None:
        import httpx

        self.connection = Connection(address=address, **given)
        self._broken_off = broken_off()
        self._http = httpx.Client(**self.connection.httpx_settings())

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def send(self, call: Call[Found]) -> Found:
        """Send a call and read its answer. Raises the error that the server answers."""
        attempts = Attempts(call, self.connection)
        while True:
            try:
                return call.finish(self._exchange(call), self.connection.address)
            except PolicydError as error:
                pause_s = attempts.pause_s(error)
            time.sleep(pause_s)

    def _exchange(self, call: Call[Any]) -> Reply:
        try:
            with self._http.stream(**self.connection.request(call)) as answer:
                body = Body(self.connection, answer)
                for part in answer.iter_raw():
                    body.add(part)
                return body.reply()
        except self._broken_off as error:
            raise self.connection.unreached(error) from None

    def _each(self, listing: Listing[Item]) -> Iterator[Item]:
        while listing.call is not None:
            yield from listing.take(self.send(listing.call))

    def decide(
        self,
        workload: Workload,
        options: Options | None = None,
        *,
        idempotency_key: str | None = None,
        request_id: str | None = None,
    ) -> Decision:
        """Decide on which pools a workload may run. A deny is an answer; an error is raised."""
        return self.send(calls.decide(workload, options, idempotency_key, request_id))

    def decide_batch(
        self, requests: Sequence[Asked], *, idempotency_key: str | None = None, request_id: str | None = None
    ) -> list[Decision | PolicydError]:
        """Decide many workloads, each for itself: a decision or its error for each, in order."""
        return self.send(calls.decide_batch(requests, idempotency_key, request_id))

    def simulate(self, requests: Sequence[Asked], overrides: Overrides) -> Simulation:
        """Decide with something changed, beside today's decisions. Nothing is recorded or reserved."""
        return self.send(calls.simulate(requests, overrides))

    def evaluate(self, tenant: str, pool_id: str, workload: Workload, *, request_id: str | None = None) -> Evaluation:
        """AuthZEN: whether this pool may take the tenant's workload. Each evaluation is a recorded decision."""
        return self.send(authzen_calls.evaluate(tenant, pool_id, workload, request_id))

    def evaluate_many(
        self,
        tenant: str,
        questions: Sequence[PoolQuestion],
        *,
        semantic: Semantic = "execute_all",
        request_id: str | None = None,
    ) -> list[Evaluation]:
        """AuthZEN: several evaluations in order, up to the one that ends the semantic."""
        return self.send(authzen_calls.evaluate_many(tenant, questions, semantic, request_id))

    def search_pools(
        self,
        tenant: str,
        workload: Workload,
        *,
        limit: int = POOLS_LIMIT,
        token: str | None = None,
        request_id: str | None = None,
    ) -> PoolSearch:
        """AuthZEN: the pools that may take the tenant's workload, best first. Each page is a recorded decision."""
        return self.send(authzen_calls.search_pools(tenant, workload, limit, token, request_id))

    def settle(self, decision_id: str, usage: Usage, *, request_id: str | None = None) -> Reservation:
        """Post what a decision did use. The same settlement again changes nothing."""
        return self.send(calls.settle(decision_id, usage, request_id))

    def void(self, decision_id: str, *, request_id: str | None = None) -> Reservation:
        """Release all of what a decision has reserved, because nothing was used."""
        return self.send(calls.void(decision_id, request_id))

    def extend(self, decision_id: str, hold_ms: int, *, request_id: str | None = None) -> Reservation:
        """Hold what a decision has reserved for so long from now."""
        return self.send(calls.extend(decision_id, hold_ms, request_id))

    def budgets(self) -> Page[Budget]:
        """Every budget that the caller may read."""
        return self.send(calls.budgets(None))

    def budget(self, account: str) -> Page[Budget]:
        """The budgets of one account, such as ``acme/support-chat``."""
        return self.send(calls.budgets(account))

    def set_budget(
        self,
        account: str,
        limits: Sequence[Mapping[str, Any]],
        reason: str,
        *,
        propose: bool = False,
        request_id: str | None = None,
    ) -> ChangedBudgets:
        """Set limits of an account, or propose that; see ``PUT /v1/budgets/{path}``."""
        return self.send(calls.set_budget(account, limits, reason, propose, request_id))

    def budget_report(self, account: str | None = None) -> Json:
        """Budgets, the burn-down of one account, and the hardware that is paid."""
        return self.send(calls.budget_report(account))

    def break_even(self, asked: Traffic) -> BreakEven:
        """What a month costs on pools of each form of price, and from which rate which is cheapest."""
        return self.send(calls.break_even(asked))

    def search(self, filters: Filters | None = None, *, page_limit: int = PAGE_LIMIT) -> Iterator[Entry]:
        """Every entry of the log that matches all filters, newest first, page by page as they are read."""
        return self._each(Listing(lambda cursor: calls.search(filters, cursor, page_limit)))

    def search_page(
        self, filters: Filters | None = None, *, cursor: str | None = None, limit: int = PAGE_LIMIT
    ) -> Page[Entry]:
        """One page of ``search``."""
        return self.send(calls.search(filters, cursor, limit))

    def report_page(self, by: str, filters: Mapping[str, str] | None = None, *, cursor: str | None = None) -> Json:
        """Entries counted, such as ``by="outcome,provider/country"``: one page, whose counts are to be added up."""
        return self.send(calls.report_page(by, filters or {}, cursor))

    def first_uses_page(self, filters: Mapping[str, str] | None = None, *, cursor: str | None = None) -> Json:
        """The first allowed decision for each model version in each environment: one page."""
        return self.send(calls.first_uses_page(filters or {}, cursor))

    def record(self, decision_id: str) -> Json:
        """The record of a decision: the answer as it was given, with who asked."""
        return self.send(calls.record(decision_id))

    def explanation(self, decision_id: str) -> Json:
        """A decision explained, as a document."""
        return self.send(calls.explanation(decision_id))

    def explanation_text(self, decision_id: str) -> str:
        """A decision explained to a person, as text."""
        return self.send(calls.explanation_text(decision_id))

    def pools(self, *, page_limit: int = PAGE_LIMIT) -> Iterator[Pool]:
        """Every pool of the fleet, in order of id."""
        return self._each(Listing(lambda cursor: calls.pools(cursor, page_limit)))

    def pool(self, pool_id: str) -> Pool:
        """One pool."""
        return self.send(calls.pool(pool_id))

    def models(self, *, page_limit: int = PAGE_LIMIT) -> Iterator[Model]:
        """Every version of every model."""
        return self._each(Listing(lambda cursor: calls.models(cursor, page_limit)))

    def fleet(self) -> Fleet:
        """The fleet revision in force."""
        return self.send(calls.fleet())

    def receipt(self, decision_id: str) -> bytes:
        """The receipt of a decision (``c2sp.org/tlog-proof@v1``), to be verified offline."""
        return self.send(history.receipt(decision_id))

    def follow_log(self, kept: bytes | None = None, *, keys: Sequence[str] = ()) -> bytes:
        """The newest checkpoint of the log, which continues the ``kept`` one; keep it for the next time.

        Raises ``AuditRolledBack`` or ``SplitView`` when it does not continue it, with what the log says of that,
        and ``ProofRefused`` when it is not signed with one of ``keys``.
        """
        shown = self.send(history.checkpoint())
        try:
            growth = history.Growth(kept, shown, keys)
            if growth.sizes is not None:
                growth.check(self.send(history.consistency(*growth.sizes)))
        except (AuditRolledBack, SplitView) as error:
            if kept is None:
                raise
            raise history.named(error, kept, self._gaps()) from error
        return shown

    def _gaps(self) -> list[history.Gap]:
        """What the log says that it has lost; nothing when it cannot be asked, for that is no answer either."""
        try:
            return self.send(history.gaps())
        except PolicydError:
            return []

    def ready(self) -> Readiness:
        """Whether a decision would be answered now, and why not."""
        return self.send(calls.ready())

    def live(self) -> bool:
        """True when the server answers; raises when it does not."""
        return self.send(calls.live())


class AsyncClient(AsyncTwoPersons, AsyncRevisions):
    """A policyd server, asked from coroutines of one event loop. Close it with ``aclose``, or use ``async with``."""

    def __init__(self, address: str, **given: Unpack[Given]) -> None:
        import httpx

        self.connection = Connection(address=address, **given)
        self._broken_off = broken_off()
        self._http = httpx.AsyncClient(**self.connection.httpx_settings())

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def send(self, call: Call[Found]) -> Found:
        """Send a call and read its answer. Raises the error that the server answers."""
        import asyncio

        attempts = Attempts(call, self.connection)
        while True:
            try:
                return call.finish(await self._exchange(call), self.connection.address)
            except PolicydError as error:
                pause_s = attempts.pause_s(error)
            await asyncio.sleep(pause_s)

    async def _exchange(self, call: Call[Any]) -> Reply:
        try:
            async with self._http.stream(**self.connection.request(call)) as answer:
                body = Body(self.connection, answer)
                async for part in answer.aiter_raw():
                    body.add(part)
                return body.reply()
        except self._broken_off as error:
            raise self.connection.unreached(error) from None

    async def _each(self, listing: Listing[Item]) -> AsyncIterator[Item]:
        while listing.call is not None:
            for item in listing.take(await self.send(listing.call)):
                yield item

    async def decide(
        self,
        workload: Workload,
        options: Options | None = None,
        *,
        idempotency_key: str | None = None,
        request_id: str | None = None,
    ) -> Decision:
        """Decide on which pools a workload may run. A deny is an answer; an error is raised."""
        return await self.send(calls.decide(workload, options, idempotency_key, request_id))

    async def decide_batch(
        self, requests: Sequence[Asked], *, idempotency_key: str | None = None, request_id: str | None = None
    ) -> list[Decision | PolicydError]:
        """Decide many workloads, each for itself: a decision or its error for each, in order."""
        return await self.send(calls.decide_batch(requests, idempotency_key, request_id))

    async def simulate(self, requests: Sequence[Asked], overrides: Overrides) -> Simulation:
        """Decide with something changed, beside today's decisions. Nothing is recorded or reserved."""
        return await self.send(calls.simulate(requests, overrides))

    async def evaluate(
        self, tenant: str, pool_id: str, workload: Workload, *, request_id: str | None = None
    ) -> Evaluation:
        """AuthZEN: whether this pool may take the tenant's workload. Each evaluation is a recorded decision."""
        return await self.send(authzen_calls.evaluate(tenant, pool_id, workload, request_id))

    async def evaluate_many(
        self,
        tenant: str,
        questions: Sequence[PoolQuestion],
        *,
        semantic: Semantic = "execute_all",
        request_id: str | None = None,
    ) -> list[Evaluation]:
        """AuthZEN: several evaluations in order, up to the one that ends the semantic."""
        return await self.send(authzen_calls.evaluate_many(tenant, questions, semantic, request_id))

    async def search_pools(
        self,
        tenant: str,
        workload: Workload,
        *,
        limit: int = POOLS_LIMIT,
        token: str | None = None,
        request_id: str | None = None,
    ) -> PoolSearch:
        """AuthZEN: the pools that may take the tenant's workload, best first. Each page is a recorded decision."""
        return await self.send(authzen_calls.search_pools(tenant, workload, limit, token, request_id))

    async def settle(self, decision_id: str, usage: Usage, *, request_id: str | None = None) -> Reservation:
        """Post what a decision did use. The same settlement again changes nothing."""
        return await self.send(calls.settle(decision_id, usage, request_id))

    async def void(self, decision_id: str, *, request_id: str | None = None) -> Reservation:
        """Release all of what a decision has reserved, because nothing was used."""
        return await self.send(calls.void(decision_id, request_id))

    async def extend(self, decision_id: str, hold_ms: int, *, request_id: str | None = None) -> Reservation:
        """Hold what a decision has reserved for so long from now."""
        return await self.send(calls.extend(decision_id, hold_ms, request_id))

    async def budgets(self) -> Page[Budget]:
        """Every budget that the caller may read."""
        return await self.send(calls.budgets(None))

    async def budget(self, account: str) -> Page[Budget]:
        """The budgets of one account, such as ``acme/support-chat``."""
        return await self.send(calls.budgets(account))

    async def set_budget(
        self,
        account: str,
        limits: Sequence[Mapping[str, Any]],
        reason: str,
        *,
        propose: bool = False,
        request_id: str | None = None,
    ) -> ChangedBudgets:
        """Set limits of an account, or propose that; see ``PUT /v1/budgets/{path}``."""
        return await self.send(calls.set_budget(account, limits, reason, propose, request_id))

    async def budget_report(self, account: str | None = None) -> Json:
        """Budgets, the burn-down of one account, and the hardware that is paid."""
        return await self.send(calls.budget_report(account))

    async def break_even(self, asked: Traffic) -> BreakEven:
        """What a month costs on pools of each form of price, and from which rate which is cheapest."""
        return await self.send(calls.break_even(asked))

    def search(self, filters: Filters | None = None, *, page_limit: int = PAGE_LIMIT) -> AsyncIterator[Entry]:
        """Every entry of the log that matches all filters, newest first, page by page as they are read."""
        return self._each(Listing(lambda cursor: calls.search(filters, cursor, page_limit)))

    async def search_page(
        self, filters: Filters | None = None, *, cursor: str | None = None, limit: int = PAGE_LIMIT
    ) -> Page[Entry]:
        """One page of ``search``."""
        return await self.send(calls.search(filters, cursor, limit))

    async def report_page(
        self, by: str, filters: Mapping[str, str] | None = None, *, cursor: str | None = None
    ) -> Json:
        """Entries counted, such as ``by="outcome,provider/country"``: one page, whose counts are to be added up."""
        return await self.send(calls.report_page(by, filters or {}, cursor))

    async def first_uses_page(self, filters: Mapping[str, str] | None = None, *, cursor: str | None = None) -> Json:
        """The first allowed decision for each model version in each environment: one page."""
        return await self.send(calls.first_uses_page(filters or {}, cursor))

    async def record(self, decision_id: str) -> Json:
        """The record of a decision: the answer as it was given, with who asked."""
        return await self.send(calls.record(decision_id))

    async def explanation(self, decision_id: str) -> Json:
        """A decision explained, as a document."""
        return await self.send(calls.explanation(decision_id))

    async def explanation_text(self, decision_id: str) -> str:
        """A decision explained to a person, as text."""
        return await self.send(calls.explanation_text(decision_id))

    def pools(self, *, page_limit: int = PAGE_LIMIT) -> AsyncIterator[Pool]:
        """Every pool of the fleet, in order of id."""
        return self._each(Listing(lambda cursor: calls.pools(cursor, page_limit)))

    async def pool(self, pool_id: str) -> Pool:
        """One pool."""
        return await self.send(calls.pool(pool_id))

    def models(self, *, page_limit: int = PAGE_LIMIT) -> AsyncIterator[Model]:
        """Every version of every model."""
        return self._each(Listing(lambda cursor: calls.models(cursor, page_limit)))

    async def fleet(self) -> Fleet:
        """The fleet revision in force."""
        return await self.send(calls.fleet())

    async def receipt(self, decision_id: str) -> bytes:
        """The receipt of a decision (``c2sp.org/tlog-proof@v1``), to be verified offline."""
        return await self.send(history.receipt(decision_id))

    async def follow_log(self, kept: bytes | None = None, *, keys: Sequence[str] = ()) -> bytes:
        """The newest checkpoint of the log, which continues the ``kept`` one; keep it for the next time.

        Raises ``AuditRolledBack`` or ``SplitView`` when it does not continue it, with what the log says of that,
        and ``ProofRefused`` when it is not signed with one of ``keys``.
        """
        shown = await self.send(history.checkpoint())
        try:
            growth = history.Growth(kept, shown, keys)
            if growth.sizes is not None:
                growth.check(await self.send(history.consistency(*growth.sizes)))
        except (AuditRolledBack, SplitView) as error:
            if kept is None:
                raise
            raise history.named(error, kept, await self._gaps()) from error
        return shown

    async def _gaps(self) -> list[history.Gap]:
        """What the log says that it has lost; nothing when it cannot be asked, for that is no answer either."""
        try:
            return await self.send(history.gaps())
        except PolicydError:
            return []

    async def ready(self) -> Readiness:
        """Whether a decision would be answered now, and why not."""
        return await self.send(calls.ready())

    async def live(self) -> bool:
        """True when the server answers; raises when it does not."""
        return await self.send(calls.live())
