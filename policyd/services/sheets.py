"""Where sheets come from: found in the book, or made once by the engine's workers.

Rules:

- one evaluation per class, however many wait for it (single flight);
- cold work is limited: per tenant in progress and per second, in total in progress; what is above is ``Overloaded``;
- a sheet with a failed evaluation serves its waiters (its pools are refused) and is then kept for ``quarantine_ms``
  only, so that a slow class costs one deadline now and then and never one per request;
- sheets and answers are bounded caches, least recently used out first.

It refuses to answer from a sheet of another snapshot: the snapshot's digest is part of every key.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from policyd.core.assemble import Basis, assemble
from policyd.core.classes import ClassView, questions_for, view_class
from policyd.core.normalise import Normalised
from policyd.core.sheet import Sheet
from policyd.core.snapshot import Snapshot
from policyd.core.verdict import Answer, Question
from policyd.errors import EngineError, Overloaded
from policyd.ports import Engine
from policyd.telemetry import Telemetry

BUCKETS_MAX = 4_096
BYTES_PER_CONTENT_BYTE = 6
"""What a sheet takes in memory for each byte of its content: its rows, and the answers that are written ahead."""


@dataclass(frozen=True, slots=True)
class SheetLimits:
    """Bounds of the book; the settings of the same names carry the defaults."""

    sheets_max: int = 4_096
    sheets_max_mib: int = 512
    answers_max: int = 65_536
    cold_in_progress_max: int = 32
    cold_per_tenant_max: int = 8
    cold_per_tenant_per_s: int = 50
    cold_per_tenant_burst: int = 200
    quarantine_ms: int = 5_000
    deadline_ms: int = 1_000


@dataclass(slots=True)
class SheetCounts:
    """What the book has done since start, for metrics and the bench."""

    hits: int = 0
    computed: int = 0
    joined: int = 0
    failed: int = 0
    refused: int = 0
    questions: int = 0
    questions_known: int = 0


@dataclass(slots=True)
class _Bucket:
    """Cold evaluations a tenant may still start: refills with time, holds at most the burst."""

    tokens: float
    filled_at: float
    in_progress: int = 0


@dataclass
class SheetBook:
    """All sheets of the live snapshot, and those of the one before until they fall out."""

    engine: Engine
    limits: SheetLimits = field(default_factory=SheetLimits)
    counts: SheetCounts = field(default_factory=SheetCounts)
    telemetry: Telemetry = field(default_factory=lambda: Telemetry(metrics=False))
    _sheets: OrderedDict[tuple[str, bytes], tuple[Sheet, float | None]] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _answers: OrderedDict[tuple[str, Question], Answer] = field(default_factory=OrderedDict)
    _pending: dict[tuple[str, bytes], asyncio.Task[Sheet]] = field(default_factory=dict)
    _buckets: dict[tuple[str, str], _Bucket] = field(default_factory=dict)

    @property
    def held(self) -> int:
        """Sheets in memory."""
        return len(self._sheets)

    @property
    def held_bytes(self) -> int:
        """About what they take."""
        return self._bytes

    @property
    def in_progress(self) -> int:
        """Sheets being made."""
        return len(self._pending)

    def find(self, snapshot: Snapshot, key: bytes) -> Sheet | None:
        """The sheet of that class when the book has it and it is not out of quarantine."""
        entry = self._sheets.get((snapshot.digest, key))
        if entry is None:
            return None
        sheet, until = entry
        if until is not None and time.monotonic() >= until:
            self._drop((snapshot.digest, key))
            return None
        self._sheets.move_to_end((snapshot.digest, key))
        self.counts.hits += 1
        return sheet

    async def make(
        self,
        snapshot: Snapshot,
        key: bytes,
        normalised: Normalised,
        document: Mapping[str, Any],
        principal: str | None = None,
    ) -> Sheet:
        """The sheet of that class, evaluated now or awaited from whoever evaluates it already.

        The cold work counts for the tenant, and for the principal when there is one.

        Raises ``Overloaded`` above the limits and ``EngineError`` when nothing could be evaluated.
        """
        pending = self._pending.get((snapshot.digest, key))
        if pending is None:
            names = [("tenant", normalised.workload.tenant), *([("principal", principal)] if principal else [])]
            buckets = self._admit(names)
            pending = asyncio.create_task(self._compute(snapshot, key, normalised, document, buckets))
            self._pending[snapshot.digest, key] = pending
            pending.add_done_callback(lambda _: self._pending.pop((snapshot.digest, key), None))
        else:
            self.counts.joined += 1
        # A waiter that goes away must not cancel the evaluation that others wait for.
        return await asyncio.shield(pending)

    async def warm(self, snapshot: Snapshot, key: bytes, normalised: Normalised, document: Mapping[str, Any]) -> None:
        """Make a sheet that nobody waits for yet, outside the limits of tenants; the caller bounds how many."""
        if self.find(snapshot, key) is None and (snapshot.digest, key) not in self._pending:
            await self._compute(snapshot, key, normalised, document, [])

    def recent(self, snapshot: Snapshot, limit: int) -> list[bytes]:
        """The keys of that snapshot's classes, those asked for last first."""
        found = (key for digest, key in reversed(self._sheets) if digest == snapshot.digest)
        return list(islice(found, limit))

    def _admit(self, names: Sequence[tuple[str, str]]) -> list[_Bucket]:
        """Take one cold evaluation from every bucket, or from none."""
        now = time.monotonic()
        buckets = [self._filled(name, now) for name in names]
        for (kind, name), bucket in zip(names, buckets, strict=True):
            if (
                len(self._pending) >= self.limits.cold_in_progress_max
                or bucket.in_progress >= self.limits.cold_per_tenant_max
                or bucket.tokens < 1
            ):
                self.counts.refused += 1
                raise Overloaded(
                    f"too many new workload classes at once for {kind} {name!r}",
                    remedy="send known workload classes, or wait; limits: engine.cold_* settings",
                )
        for bucket in buckets:
            bucket.tokens -= 1
            bucket.in_progress += 1
        return buckets

    def _filled(self, name: tuple[str, str], now: float) -> _Bucket:
        burst = float(self.limits.cold_per_tenant_burst)
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= BUCKETS_MAX:
                self._forget_full(now)
            bucket = self._buckets[name] = _Bucket(burst, now)
        bucket.tokens = min(burst, bucket.tokens + (now - bucket.filled_at) * self.limits.cold_per_tenant_per_s)
        bucket.filled_at = now
        return bucket

    def _forget_full(self, now: float) -> None:
        """Make room: a bucket that has filled up again says nothing that a new one would not."""
        burst, per_s = self.limits.cold_per_tenant_burst, self.limits.cold_per_tenant_per_s
        self._buckets = {
            name: bucket
            for name, bucket in self._buckets.items()
            if bucket.in_progress or bucket.tokens + (now - bucket.filled_at) * per_s < burst
        }
        if len(self._buckets) >= BUCKETS_MAX:
            self.counts.refused += 1
            raise Overloaded("too many different callers bring new workload classes at once")

    async def _compute(
        self,
        snapshot: Snapshot,
        key: bytes,
        normalised: Normalised,
        document: Mapping[str, Any],
        buckets: list[_Bucket],
    ) -> Sheet:
        begun = time.monotonic()
        try:
            view = view_class(key, document, snapshot.reads)
            basis = basis_of(snapshot, normalised, document)
            answers = await self._ask(snapshot, view, basis)
        finally:
            for bucket in buckets:
                bucket.in_progress -= 1
        sheet = assemble(basis, view, answers, snapshot.reads.clock)
        self.counts.computed += 1
        self.counts.failed += sheet.failed
        self.telemetry.sheet_made(time.monotonic() - begun)
        until = time.monotonic() + self.limits.quarantine_ms / 1000 if sheet.failed else None
        self._drop((snapshot.digest, key))
        self._sheets[snapshot.digest, key] = (sheet, until)
        self._bytes += _bytes_of(sheet)
        most = self.limits.sheets_max_mib * 1024**2
        # One stays whatever it takes: its waiters have it, and the next one of its class would only make it again.
        while len(self._sheets) > 1 and (len(self._sheets) > self.limits.sheets_max or self._bytes > most):
            self._drop(next(iter(self._sheets)))
        return sheet

    def _drop(self, key: tuple[str, bytes]) -> None:
        found = self._sheets.pop(key, None)
        if found is not None:
            self._bytes -= _bytes_of(found[0])

    async def _ask(self, snapshot: Snapshot, view: ClassView, basis: Basis) -> dict[Question, Answer]:
        """Answers to all questions: known ones from the cache, the others from the engine in one batch."""
        digest = snapshot.policies.digest
        questions = questions_for(view, basis.grouping)
        answers: dict[Question, Answer] = {}
        open_questions: list[Question] = []
        for question in questions:
            known = self._answers.get((digest, question))
            if known is None:
                open_questions.append(question)
            else:
                self._answers.move_to_end((digest, question))
                answers[question] = known
        self.counts.questions += len(questions)
        self.counts.questions_known += len(answers)
        if open_questions:
            fresh = await self.engine.evaluate(digest, open_questions, self.limits.deadline_ms)
            if len(fresh) != len(open_questions):
                raise EngineError(f"the engine gave {len(fresh)} answers to {len(open_questions)} questions")
            for question, answer in zip(open_questions, fresh, strict=True):
                answers[question] = answer
                if answer.error is None:
                    self._answers[digest, question] = answer
            while len(self._answers) > self.limits.answers_max:
                self._answers.popitem(last=False)
        return answers

    def keep(self, *snapshots: Snapshot) -> None:
        """Forget what belongs to any other snapshot: a sheet takes a megabyte, and nobody asks for those any more."""
        live, policies = {each.digest for each in snapshots}, {each.policies.digest for each in snapshots}
        for key in [key for key in self._sheets if key[0] not in live]:
            self._drop(key)
        for asked in [asked for asked in self._answers if asked[0] not in policies]:
            del self._answers[asked]

    def clear(self) -> None:
        """Forget every sheet and answer (benches measure cold work with it)."""
        self._sheets.clear()
        self._bytes = 0
        self._answers.clear()


def _bytes_of(sheet: Sheet) -> int:
    return BYTES_PER_CONTENT_BYTE * len(sheet.content)


def basis_of(snapshot: Snapshot, normalised: Normalised, document: Mapping[str, Any]) -> Basis:
    """What ``assemble`` needs of a snapshot for one class, the entitlements of its tenant included."""
    tenant = normalised.workload.tenant
    permits = snapshot.entitlements.permits
    subject = f"tenant:{tenant}"
    return Basis(
        fleet=snapshot.fleet,
        policies=snapshot.policies,
        grouping=snapshot.grouping(normalised.workload.model),
        workload=normalised.workload,
        terms=normalised.terms,
        date=document["clock"]["date"],
        casbin_digest=snapshot.entitlements.digest,
        may_place=lambda group: permits(subject, tenant, group, "place"),
        may_view=lambda group: permits(subject, tenant, group, "view"),
    )
