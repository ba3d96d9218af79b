"""Decide, and record before answering: the life of a decision from a parsed request to durable bytes.

    normalise -> class key -> sheet (found or made) -> decide -> record committed -> answer
                                                         ▲──────── no room in a group of pools: without its pools

Rules: no answer leaves before its entry is durable; an error is recorded and raised, never turned into an allow; the
snapshot and the facts are taken once at the start, so that a swap in between changes nothing; what a revision in canary
spoils is recorded as its error, and decided anew on what is live.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

from audit.errors import RecordInvalid
from audit.record import BODY_MAX_BYTES, Blob, Entry
from audit.store import Position
from policyd.core.decide import decide
from policyd.core.facts import Facts
from policyd.core.principal import Principal
from policyd.core.sheet import Sheet
from policyd.core.snapshot import Snapshot
from policyd.core.waivers import Lifted, Waiver, lift
from policyd.core.workload import DecisionRequest, Workload, WorkloadRequest
from policyd.errors import AuditError, Overloaded, PolicydError, RequestError, TimedOut
from policyd.ledger.rules import Reservation
from policyd.ledger.store import Operation
from policyd.services.admission import CHARGE_MAX_BYTES, QuotaExhausted
from policyd.services.answers import Made, Revisions, answer_pieces, entry_of, error_entry, sheet_blob
from policyd.services.clock import Now, next_boundary_us, now_us, uuid7
from policyd.services.commit import AdmittedPosition
from policyd.services.frames import Framed, Frames
from policyd.services.freshness import Freshness
from policyd.services.idempotency import Claim
from policyd.services.permission import require_scope, told_to
from policyd.services.proposals import Deed
from policyd.services.quotas import spilled
from policyd.services.reservations import admitted, reservation_of
from policyd.services.sheets import SheetBook
from policyd.services.trials import OnTrial, Trials, require_whole
from policyd.services.waivers_in_force import NoWaivers, WaiversNow
from policyd.telemetry import Stages, Telemetry

REMEMBERED_BLOBS_MAX = 8_192
REMEMBERED_CLASSES_MAX = 4_096


class Log(Protocol):
    """The writing side of the decision log: resolves only when the entry is durable."""

    async def submit(
        self,
        entry: Entry,
        blobs: Sequence[Blob] = (),
        claim: Claim | None = None,
        operation: Operation | None = None,
    ) -> Position: ...


class WrittenLog(Protocol):
    """The log with what is known of its writer, which may be another process."""

    async def submit(
        self,
        entry: Entry,
        blobs: Sequence[Blob] = (),
        claim: Claim | None = None,
        operation: Operation | None = None,
        deed: Deed | None = None,
    ) -> Position: ...

    @property
    def healthy(self) -> bool: ...

    @property
    def fault(self) -> str | None: ...

    @property
    def origin(self) -> str: ...

    @property
    def queued_entries(self) -> int: ...

    @property
    def entries_total(self) -> int: ...

    @property
    def wait_ms(self) -> float: ...


class FactsNow(Protocol):
    """The newest facts and their bytes for the log."""

    def current(self) -> tuple[Facts, Blob]: ...


class SnapshotNow(Protocol):
    """The live snapshot."""

    def current(self) -> Snapshot: ...


Failed = Callable[[Exception], Awaitable[PolicydError]]
"""Records what stopped a decision, and gives the error to raise."""

Asked = tuple[WorkloadRequest, Principal]
"""What leads to a class: a request and who made it."""


class Answered(NamedTuple):
    """A durable decision: its id, the made parts, and the body to send, in pieces or whole."""

    id: str
    made: Made
    pieces: tuple[bytes, ...]

    @property
    def body(self) -> bytes:
        """The pieces as one."""
        return b"".join(self.pieces)


@dataclass
class DecisionService:
    """Answers ``POST /v1/decisions`` and ``policyd decide``."""

    snapshots: SnapshotNow
    facts: FactsNow
    book: SheetBook
    log: Log
    origin: str
    ttl_ms: int = 60_000
    sheet_wait_ms: int = 8_000
    queue_max_ms: int = 2_000
    hold_ms: int = 900_000
    now: Now = now_us
    queue_ms: Callable[[], float] = lambda: 0.0
    """How long what is recorded now is likely to wait."""
    frames: Frames = field(default_factory=Frames)
    freshness: Freshness = field(default_factory=Freshness)
    waivers: WaiversNow = field(default_factory=NoWaivers)
    telemetry: Telemetry = field(default_factory=lambda: Telemetry(metrics=False))
    trials: Trials = field(default_factory=Trials)
    _durable: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _first_asked: OrderedDict[bytes, Asked] = field(default_factory=OrderedDict)

    async def decide(
        self, request: DecisionRequest, principal: Principal, request_id: str, claim: Claim | None = None
    ) -> Answered:
        """Decide, record, answer; with a ``claim`` the key's use is recorded in the same transaction.

        Raises any ``PolicydError``; all but those of the log itself and of overload are recorded first.
        """
        begun = time.perf_counter()
        wait_ms = self.queue_ms()
        if wait_ms > self.queue_max_ms:
            # Before any work: what is refused at once costs a busy server nothing, and its caller may go elsewhere.
            self.telemetry.decided("error", Overloaded.code, "", "", 0.0)
            raise Overloaded(
                f"a decision would wait {wait_ms:.0f} ms to be recorded, longer than api.queue_max_ms",
                remedy="try again later, or look at the disk of the data directory",
            )
        time_us = self.now()
        decision_id = uuid7(time_us)
        stages = self.telemetry.stages(decision_id)
        outcome, denied_by, mode, tenant = "error", "cancelled", "", ""
        try:
            trial = self.trials.chosen(request.workload, principal)
            try:
                answered = await self._decide(
                    request, principal, request_id, decision_id, time_us, stages, claim, trial
                )
            except PolicydError as error:
                if trial is None or not self.trials.blamed(trial, error):
                    raise
                time_us = self.now()
                answered = await self._decide(request, principal, request_id, uuid7(time_us), time_us, stages, claim)
            decision = answered.made.decision
            outcome, denied_by = decision.outcome, decision.denied_by or ""
            mode, tenant = answered.made.mode, answered.made.workload.tenant
            return answered
        except PolicydError as error:
            denied_by = error.code
            raise
        finally:
            self.telemetry.decided(outcome, denied_by, mode, tenant, time.perf_counter() - begun)
            stages.close(outcome, denied_by)

    async def _decide(
        self,
        request: DecisionRequest,
        principal: Principal,
        request_id: str,
        decision_id: str,
        time_us: int,
        stages: Stages,
        claim: Claim | None,
        trial: OnTrial | None = None,
    ) -> Answered:
        snapshot: Snapshot | None = None
        workload: Workload | None = None
        failed = partial(self._failed, decision_id, time_us, principal, request_id, request)
        try:
            snapshot, frames = (
                (self.snapshots.current(), self.frames) if trial is None else (trial.snapshot, trial.frames)
            )
            self.freshness.require(time_us)
            facts, facts_blob = self.facts.current()
            framed = _place(frames, snapshot, request, principal, facts, time_us)
            workload = framed.normalised.workload
            if not framed.decides:
                require_scope(principal, snapshot.entitlements, "decide", workload)
            stages.ended("normalise")
            known = self.book.find(snapshot, framed.key)
            sheet = known or await self._make_sheet(snapshot, framed, (request.workload, principal))
            stages.ended("sheet", "found" if known else "made")
            if trial is not None:
                require_whole(sheet)
            waivers = self.waivers.of(workload.tenant)
            lifted = lift(sheet, workload, waivers, time_us) if waivers else Lifted(sheet)
            sheet = lifted.sheet
            made = Made(
                id=decision_id,
                time_us=time_us,
                valid_until_us=self._valid_until_us(snapshot, time_us, lifted.waivers),
                principal=principal.name,
                request_id=request_id,
                workload=workload,
                options=request.options,
                sheet=sheet,
                facts=facts,
                revisions=Revisions.of(snapshot, self.freshness.both()),
                decision=decide(workload, sheet, facts),
                waivers=lifted.waivers,
            )
            reservation = reservation_of(made, framed.charged, framed.groups, self.hold_ms)
            entry = recordable(made, reservation)
            stages.ended("decide")
        except (AuditError, Overloaded):
            raise
        except Exception as fault:
            raise await failed(fault, snapshot, workload) from fault
        told = partial(failed, snapshot=snapshot, workload=workload)
        made, position = await self._hold(made, entry, reservation, framed, facts_blob, claim, told)
        stages.ended("commit")
        audit = {"log": self.origin, "index": position.index, "leaf_hash": position.leaf_hash.hex()}
        pieces = answer_pieces(made, audit)
        stages.ended("answer")
        return Answered(decision_id, made, pieces)

    async def _failed(
        self,
        decision_id: str,
        time_us: int,
        principal: Principal,
        request_id: str,
        request: DecisionRequest,
        fault: Exception,
        snapshot: Snapshot | None,
        workload: Workload | None,
    ) -> PolicydError:
        """Record what stopped the decision, and give the error to raise."""
        if isinstance(fault, PolicydError):
            # Who waits for the same sheet gets the same error object; each is told its own id.
            error = copy(fault)
        else:
            error = PolicydError(f"an unforeseen {type(fault).__name__} stopped the decision")
        error.decision_id = decision_id
        entry = error_entry(
            id=decision_id,
            time_us=time_us,
            principal=principal,
            request_id=request_id,
            asked=request.model_dump(mode="json", exclude_unset=True),
            error=error,
            snapshot=snapshot,
            workload=workload,
        )
        await self.log.submit(entry)
        return error

    async def _hold(
        self,
        made: Made,
        entry: Entry,
        reservation: Reservation | None,
        framed: Framed,
        facts_blob: Blob,
        claim: Claim | None,
        failed: Failed,
    ) -> tuple[Made, Position]:
        """Record the decision and hold its budget: once more, without their pools, when groups have no room.

        A full group is found by the writer, which records nothing then. Each round takes a group out.
        """
        for _ in range(1 + len({limit.pools for limit in framed.charged})):
            try:
                position = await self._commit(made, entry, facts_blob, claim, reservation)
            except QuotaExhausted as full:
                try:
                    made = spilled(made, full.groups, framed.groups)
                    reservation = reservation_of(made, framed.charged, framed.groups, self.hold_ms)
                    entry = recordable(made, reservation)
                except Exception as fault:
                    raise await failed(fault) from fault
                continue
            admission = position.admission if isinstance(position, AdmittedPosition) else None
            if reservation is not None and admission is None:
                raise _unheld(made, "the decision was recorded, and nobody says whether there is budget for it")
            return admitted(made, admission), position
        raise _unheld(made, "the ledger finds no room for pools that were taken out of the decision already")

    async def _make_sheet(self, snapshot: Snapshot, framed: Framed, asked: Asked) -> Sheet:
        """The sheet of a new class; who waits for it longer than ``sheet_wait_ms`` gets an error, and it is made on."""
        self._first_asked[framed.key] = asked
        while len(self._first_asked) > REMEMBERED_CLASSES_MAX:
            self._first_asked.popitem(last=False)
        try:
            async with asyncio.timeout(self.sheet_wait_ms / 1_000):
                return await self.book.make(
                    snapshot, framed.key, framed.normalised, framed.document(snapshot), asked[1].name
                )
        except TimeoutError:
            raise TimedOut(
                f"the policies gave no verdict for all pools within {self.sheet_wait_ms} ms",
                remedy="simplify slow packages, add engine.workers, or raise engine.sheet_wait_ms",
            ) from None

    def recent_requests(self, limit: int) -> list[Asked]:
        """A request for each of the classes that were asked for last, at most ``limit``."""
        keys = self.book.recent(self.snapshots.current(), limit)
        return [self._first_asked[key] for key in keys if key in self._first_asked]

    async def prepare(self, snapshot: Snapshot, request: WorkloadRequest, principal: Principal) -> None:
        """Have the sheet for a request ready in a snapshot that is not live yet; one that it refuses needs none."""
        try:
            facts, _ = self.facts.current()
            framed = Frames(self.frames.ledger).place(snapshot, request, principal, facts, self.now())
            await self.book.warm(snapshot, framed.key, framed.normalised, framed.document(snapshot))
        except PolicydError:
            return
        # The class has another key there, and the next reload wants to know what leads to it.
        self._first_asked[framed.key] = (request, principal)

    def _valid_until_us(self, snapshot: Snapshot, time_us: int, waivers: Sequence[Waiver]) -> int:
        boundary = next_boundary_us(time_us, quarterly=snapshot.reads.clock)
        return min(time_us + self.ttl_ms * 1_000, boundary, *(waiver.expires_us for waiver in waivers))

    async def _commit(
        self, made: Made, entry: Entry, facts_blob: Blob, claim: Claim | None, reservation: Reservation | None
    ) -> Position:
        blobs = []
        if made.sheet.digest not in self._durable:
            blobs.append(sheet_blob(made.sheet))
        if facts_blob.digest not in self._durable:
            blobs.append(facts_blob)
        position = await self.log.submit(entry, blobs, claim, reservation)
        for blob in blobs:
            self._durable[blob.digest] = None
        while len(self._durable) > REMEMBERED_BLOBS_MAX:
            self._durable.popitem(last=False)
        return position


def _place(
    frames: Frames, snapshot: Snapshot, request: DecisionRequest, principal: Principal, facts: Facts, time_us: int
) -> Framed:
    try:
        return frames.place(snapshot, request.workload, principal, facts, time_us)
    except PolicydError as error:
        raise told_to(principal, snapshot, "decide", request.workload, error) from None


def _unheld(made: Made, detail: str) -> AuditError:
    error = AuditError(detail)
    error.decision_id = made.id
    return error


def recordable(made: Made, reservation: Reservation | None) -> Entry:
    """The log entry of a decision. Raises ``RequestError`` when the request is too long for one."""
    try:
        entry = entry_of(made)
        if (
            reservation is not None
            and entry.length_bytes + CHARGE_MAX_BYTES * len(reservation.charges) > BODY_MAX_BYTES
        ):
            raise RecordInvalid(f"with its {len(reservation.charges)} charges it may pass {BODY_MAX_BYTES} bytes")
        return entry
    except RecordInvalid as error:
        raise RequestError(
            f"the request cannot be recorded: {error}", remedy="send shorter labels and shorter lists"
        ) from error
