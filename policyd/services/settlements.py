"""Settling, making void and extending what a decision has reserved: priced, permitted, and recorded with what changes.

    usage ──priced by the recorded pool──► amounts ──the writer──► posted and recorded in one transaction

Rules: the price is that of the pool that served, as its decision recorded it, whether the call was whole, streamed or
broken; what nobody measured counts as held; who may decide in the scope of a decision may settle it. The same
settlement again changes nothing, and is recorded again. A price that is not known settles nothing.
It refuses: usage that names no amount at all, and a pool that the decision did not let in.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson

from audit.query import Record
from audit.record import Entry, Kind, Search, encode, personal
from policyd.core.budgets import ORGANISATION
from policyd.core.cost import Pricing, request_cost_micro_usd
from policyd.core.principal import Principal
from policyd.core.quantities import MAX_SAFE, MICRO_PER_UNIT, MS_PER_HOUR, NANO_PER_MICRO, PPM, ceil_div
from policyd.core.sheet import Row, Sheet, sheet_from_content
from policyd.core.workload import Workload
from policyd.errors import AmountInvalid, Finding, NotFound, RequestError, UnknownName
from policyd.ledger.rules import Unit
from policyd.ledger.store import Extension, Operation, Settlement, Void
from policyd.services.admission import posting_json, postings_of
from policyd.services.answers import LISTED_MAX, workload_from_record
from policyd.services.clock import Now, now_us, rfc3339, uuid7
from policyd.services.commit import AdmittedPosition
from policyd.services.decisions import Log
from policyd.services.reservations import request_gpu_ms

RECORD_VERSION: Final = 2
REMEMBERED_SHEETS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Usage:
    """What was really used. None is what nobody measured; ``pool`` None is the first that was ranked."""

    pool: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    requests: int | None = None
    gpu_ms: int | None = None
    micro_usd: int | None = None
    output_sha256: str | None = None


class Records(Protocol):
    """The reading side of the log, as far as a settlement needs it."""

    async def by_id(self, entry_id: str) -> Record: ...

    async def blob(self, digest: str) -> bytes: ...


@dataclass
class Settlements:
    """Posts what reservations did use."""

    log: Log
    reader: Records
    origin: str
    now: Now = now_us
    _sheets: OrderedDict[str, Sheet] = field(default_factory=OrderedDict)

    async def settle(self, decision_id: str, usage: Usage, principal: Principal, request_id: str) -> dict[str, Any]:
        """Post the usage. Raises ``NotFound``, ``ReservationConflict``, ``AmountInvalid`` and ``RequestError``."""
        body = await self._reserved(decision_id)
        pool, actual = await self._amounts(body, usage)
        used = {name: getattr(usage, name) for name in Usage.__dataclass_fields__ if name != "pool"}
        measured = {name: value for name, value in used.items() if value is not None}
        told = {"pool": pool, "used": measured, "actual": dict(sorted(actual.items()))}
        operation = Settlement(decision_id, tuple(sorted(actual.items())))
        return await self._record("settlement", body, operation, told, principal, request_id)

    async def void(self, decision_id: str, principal: Principal, request_id: str) -> dict[str, Any]:
        """Release what was not used. Raises ``NotFound`` and ``ReservationConflict``."""
        body = await self._reserved(decision_id)
        return await self._record("void", body, Void(decision_id), {}, principal, request_id)

    async def extend(self, decision_id: str, hold_ms: int, principal: Principal, request_id: str) -> dict[str, Any]:
        """Hold for so long from now. Raises ``NotFound`` and ``ReservationConflict``."""
        body = await self._reserved(decision_id)
        operation = Extension(decision_id, hold_ms * 1_000)
        return await self._record("extension", body, operation, {"hold_ms": hold_ms}, principal, request_id)

    async def _reserved(self, decision_id: str) -> dict[str, Any]:
        """The body of a decision that has reserved."""
        record = await self.reader.by_id(decision_id)
        body = record.document()
        if record.kind != "decision" or "postings" not in body.get("admission", {}):
            raise NotFound(f"decision {decision_id} has reserved nothing", remedy="settle what has a reservation")
        return body

    async def _amounts(self, body: Mapping[str, Any], usage: Usage) -> tuple[str, dict[Unit, int]]:
        ranked = [pool for pool, _, _ in body["ranked"]]
        pool = usage.pool or ranked[0]
        sheet = await self._sheet(body["sheet"])
        # The sheet also has rows of pools that facts refused at that moment, and of those that the answer did not name.
        named = pool in ranked or len(ranked) >= LISTED_MAX
        row = next((row for row in sheet.rows if row.pool == pool), None) if named else None
        if row is None:
            message = f"the decision did not let in pool {pool!r}"
            raise UnknownName(message, findings=[Finding("pool", message)], remedy=f"name one of {', '.join(ranked)}")
        workload = workload_from_record(body["workload"])
        price_ppm = await self._price_ppm(body["facts"], pool)
        actual = amounts(usage, row, workload, price_ppm)
        for unit, amount in actual.items():
            if amount > MAX_SAFE:
                raise AmountInvalid(f"{unit}: {amount} is beyond {MAX_SAFE}")
        return pool, actual

    async def _sheet(self, digest: str) -> Sheet:
        sheet = self._sheets.get(digest)
        if sheet is None:
            sheet = self._sheets[digest] = sheet_from_content(await self.reader.blob(digest))
            while len(self._sheets) > REMEMBERED_SHEETS_MAX:
                self._sheets.popitem(last=False)
        return sheet

    async def _price_ppm(self, facts: str, pool: str) -> int:
        """The price of that moment against the declared one, which the answer was costed with."""
        document = orjson.loads(await self.reader.blob(facts))
        return int(document.get("pools", {}).get(pool, {}).get("price_ppm", PPM))

    async def _record(
        self,
        kind: Kind,
        body: Mapping[str, Any],
        operation: Operation,
        told: Mapping[str, Any],
        principal: Principal,
        request_id: str,
    ) -> dict[str, Any]:
        workload = body["workload"]
        scope = {name: workload[name] for name in ("tenant", "project", "environment")}
        time_us = self.now()
        entry_id = uuid7(time_us)
        fields = {
            "v": RECORD_VERSION,
            "kind": kind,
            "id": entry_id,
            "time": rfc3339(time_us),
            "decision": body["id"],
            "request_id": request_id,
            "scope": list(scope.values()),
            **told,
        }
        search = Search(**scope, principal=principal.name, pool=told.get("pool"), request_id=request_id)
        about = (personal(principal.name, {"principal": principal.name}),)
        entry = Entry(kind, entry_id, time_us, encode(fields, os.urandom(16)), search, (), about)
        position = await self.log.submit(entry, (), None, operation)
        assert isinstance(position, AdmittedPosition)
        return answer_json(body["id"], position, fields, self.origin)


def amounts(usage: Usage, row: Row, workload: Workload, price_ppm: int) -> dict[Unit, int]:
    """What the usage takes of each unit, as far as it says. Raises ``RequestError`` when it says nothing of money."""
    tokens = usage.input_tokens, usage.output_tokens
    actual: dict[Unit, int] = {}
    gpu_ms = usage.gpu_ms
    if usage.requests is not None:
        actual["requests"] = usage.requests
    if tokens[0] is not None and tokens[1] is not None:
        actual["tokens"] = tokens[0] + tokens[1]
        if gpu_ms is None and workload.scope == "request":
            gpu_ms = request_gpu_ms(row.pricing, tokens[0], tokens[1])
    if gpu_ms is not None:
        actual["gpu_ms"] = gpu_ms
    money = usage.micro_usd if usage.micro_usd is not None else _priced(usage, row.pricing, workload)
    if money is None:
        message = "name `micro_usd`, or both `input_tokens` and `output_tokens`, or `gpu_ms` of a deployment"
        raise RequestError(f"the usage cannot be priced: {message}", findings=[Finding("", message)])
    actual["micro_usd"] = money if usage.micro_usd is not None else ceil_div(money * price_ppm, PPM)
    return actual


def _priced(usage: Usage, pricing: Pricing, workload: Workload) -> int | None:
    """The cost in micro-USD at the declared price; None when it cannot be told from what was measured."""
    tokens = (
        None if usage.input_tokens is None or usage.output_tokens is None else (usage.input_tokens, usage.output_tokens)
    )
    if workload.scope == "request":
        return None if tokens is None else request_cost_micro_usd(pricing, *tokens, workload.requests_per_hour)
    fees = pricing.request_nano * (usage.requests or 0)
    if pricing.form == "tokens":
        if tokens is None:
            return None
        spent = ceil_div(tokens[0] * pricing.input_nano + tokens[1] * pricing.output_nano, MICRO_PER_UNIT)
    elif usage.gpu_ms is None:
        return None
    elif pricing.form == "gpu":
        spent = ceil_div(usage.gpu_ms * pricing.hour_nano, MS_PER_HOUR)
    else:
        spent = ceil_div(usage.gpu_ms * pricing.ms_nano_x1000, 1_000 * pricing.gpus)
    return ceil_div(spent + fees, NANO_PER_MICRO)


def answer_json(decision_id: str, position: AdmittedPosition, told: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """What the caller hears: the state, and the accounts as they stand now, without those of all tenants together."""
    shown = ("path", "pools", "unit", "window", "limit", "reserved", "spent", "debt")
    postings = (posting_json(*pair) for pair in postings_of({"accounts": position.admission, "scope": told["scope"]}))
    return {
        "id": decision_id,
        "state": position.admission["state"],
        "expires_at": rfc3339(position.admission["expires_us"]),
        "replay": position.admission.get("replay", False),
        **({"pool": told["pool"], "actual": told["actual"]} if "actual" in told else {}),
        "accounts": [
            {name: posting[name] for name in shown} for posting in postings if posting["path"] != ORGANISATION
        ],
        "audit": {"log": origin, "index": position.index, "leaf_hash": position.leaf_hash.hex()},
    }
