"""The ledger in the writer's transaction: each submission that touches budgets is judged before it is appended.

    batch ──LedgerRows.apply──► held: the record gets its admission
                            ──► room, and nothing to hold: the record says so
                            ──► no room: the record becomes a deny
                            ──► no room in some group of pools: no record, and the groups are named
                            ──► refused: no record, an error
    what happened by the way (expired holds, changed limits, thresholds) becomes entries of its own, in the order of the
    postings, so that the log folds into the balances

Rules: a record's bytes are made here for the last time; ``admission`` and ``accounts`` sort before every other key of a
body, so they are put in front without encoding it again; postings have the form of ``policyd.ledger.postings``, for the
path that the workload or the scope of the record names. It owns no transaction: ``policyd.services.commit`` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import orjson
from sqlalchemy import Connection

from audit.personal import Vault
from audit.record import Entry, Search, encode, salt_of
from policyd.core.budgets import ORGANISATION, account_path
from policyd.errors import PolicydError
from policyd.ledger.postings import deepest, read, written
from policyd.ledger.rules import (
    AccountKey,
    Changed,
    Crossing,
    Denied,
    Exhausted,
    Fits,
    Posted,
    Posting,
    Relimited,
    Reservation,
)
from policyd.ledger.store import Applied, Change, Clock, Jump, LedgerRows, Operation
from policyd.services.budget_entries import set_entry, setting_by_two
from policyd.services.clock import rfc3339, uuid7
from policyd.services.proposals import Approved, Effect

RECORD_VERSION: Final = 1
CHARGE_MAX_BYTES: Final = 1_024
"""The longest that one charge takes in a record."""
DUE_EVERY_US: Final = 1_000_000
"""How often a batch without reservations looks for holds that are due."""


class QuotaExhausted(PolicydError):
    """Groups of pools without room for a reservation: nothing was held or recorded, and it may come again without these
    pools. ``groups`` has for each one what ``denied`` has in an admission. Whoever submits reservations catches it."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(f"no room for {', '.join(sorted({str(each.get('pools')) for each in groups}))}")
        self.groups = tuple(groups)


class Submitted(Protocol):
    """What is judged: an entry, and what it asks of the ledger."""

    @property
    def entry(self) -> Entry: ...

    @property
    def operation(self) -> Operation | None: ...


@dataclass(frozen=True, slots=True)
class Judged:
    """The entries to append, in order; what the ledger says of submissions, and which it refuses, by entry id."""

    entries: list[Entry]
    admissions: Mapping[str, Mapping[str, Any]]
    refused: Mapping[str, PolicydError]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a proposal asks of the ledger."""

    entry: Entry
    operation: Operation | None


class Admission:
    """The ledger of one connection, made anew with it. Only a file has one writer alone."""

    def __init__(self, connection: Connection, log: int, clock_jump_us: int, clock: Clock | None = None) -> None:
        self._ledger = LedgerRows(connection, shared=connection.dialect.name != "sqlite", log=log, clock=clock)
        self._looked_us = 0
        began = self._ledger.began
        self._jump: Jump | None = began if began.to_us - began.from_us > clock_jump_us else None
        self._jump_told = self._jump_written = False

    def judge(self, connection: Connection, batch: Sequence[Submitted]) -> Judged:
        """Apply what the batch asks of the ledger. Nothing is stored before ``write``."""
        jumped = self._jumped()
        judged = self._judge(connection, batch)
        return replace(judged, entries=[*jumped, *judged.entries]) if jumped else judged

    def _jumped(self) -> list[Entry]:
        """The entry of a jump at the start, until a transaction with it went through."""
        if self._jump_written:
            self._jump, self._jump_written = None, False
        if self._jump is None:
            return []
        self._jump_told = True
        body = {"event": "clock_jump", "from": rfc3339(self._jump.from_us), "to": rfc3339(self._jump.to_us)}
        return [_budget_entry(body, self._jump.to_us, None)]

    def _judge(self, connection: Connection, batch: Sequence[Submitted]) -> Judged:
        operations = [each.operation for each in batch if each.operation is not None]
        if not operations and not self._is_due(connection):
            return Judged([each.entry for each in batch], {}, {})
        # The log takes no entry whose id it has, so a decision has held nothing yet.
        new = {each.entry.id for each in batch if isinstance(each.operation, Reservation)}
        applied = self._ledger.apply(connection, operations, new)
        self._looked_us = applied.time_us
        entries = list(_by_the_way(applied))
        admissions: dict[str, Mapping[str, Any]] = {}
        refused: dict[str, PolicydError] = {}
        results = iter(applied.results)
        for each in batch:
            if each.operation is None:
                entries.append(each.entry)
                continue
            result = next(results)
            if isinstance(result, PolicydError):
                refused[each.entry.id] = result
                continue
            if isinstance(result, Exhausted):
                refused[each.entry.id] = QuotaExhausted([denied_json(group) for group in result.groups])
                continue
            told = admission_of(each.operation, result, applied.time_us)
            admissions[each.entry.id] = told
            entries.append(_recorded(each, result, told))
            if isinstance(result, Posted | Changed):
                entries += [_threshold(crossing, applied.time_us) for crossing in result.crossings]
        return Judged(entries, admissions, refused)

    def set_by_two(self, connection: Connection, approved: Approved, _: Vault) -> Effect:
        """What two persons have decided on limits. Raises ``PolicydError`` when the ledger refuses it."""
        document = approved.proposal.document
        path, entry_id = document["path"], uuid7(approved.time_us)
        change = Change(entry_id, tuple(setting_by_two(path, limit) for limit in document["limits"]))
        told = {"proposal": approved.proposal.id, "approval": approved.approval, "reason": document["reason"]}
        entry = set_entry(entry_id, approved.time_us, path, document["limits"], told)
        judged = self._judge(connection, [_Asked(entry, change)])
        if entry_id in judged.refused:
            raise judged.refused[entry_id]
        return Effect({"change": entry_id}, tuple(judged.entries))

    def write(self, connection: Connection) -> None:
        """Store what ``judge`` has changed."""
        self._ledger.write(connection)
        if self._jump is not None and self._jump_told:
            self._ledger.keep_time(connection)
            self._jump_written = True

    def forget(self) -> None:
        """After a rollback, what was judged did not happen."""
        self._ledger.forget()
        self._jump_told = self._jump_written = False

    def _is_due(self, connection: Connection) -> bool:
        now_us = self._ledger.now(connection)
        if now_us - self._looked_us < DUE_EVERY_US:
            return False
        self._looked_us = now_us
        return self._ledger.due(connection)


def admission_of(operation: Operation, result: Posted | Fits | Denied | Changed, time_us: int) -> dict[str, Any]:
    """What the record says of the ledger, as plain JSON values."""
    if isinstance(result, Denied):
        return {"denied": denied_json(result), "time_us": time_us}
    if isinstance(result, Changed):
        return {**_accounts(result.postings), "time_us": time_us}
    if isinstance(result, Fits):
        return {"held": False}
    told: dict[str, Any] = {"expires_us": result.hold.expires_us, "postings": _postings(result)}
    if not isinstance(operation, Reservation):
        told["state"] = result.hold.state
        told["time_us"] = time_us
    if result.replay:
        told["replay"] = True
    return told


def denied_json(denied: Denied) -> dict[str, Any]:
    """The account without room, and what was left there, as plain JSON values."""
    key = dict(zip(AccountKey._fields, denied.key, strict=True))
    room = {"why": denied.why, "asked": denied.asked, "limit": denied.limit, "remaining": denied.remaining}
    return {**key, **room, "resets_us": denied.resets_us}


def postings_of(body: Mapping[str, Any]) -> list[tuple[Posting, int | None]]:
    """What the entry with this body changed of accounts, and what the hold took of each. Empty when it changed none."""
    told = body.get("admission") or body.get("accounts") or {}
    if not told.get("postings"):
        return []
    if "workload" in body:
        path = account_path(*(body["workload"][name] for name in ("tenant", "project", "environment")))
    else:
        path = told.get("account") or account_path(*body.get("scope", ()))
    return read(told["postings"], path)


def listed(body: Mapping[str, Any], *, whole: bool = True) -> dict[str, Any]:
    """The body of an entry for whoever reads a list: postings by name, and nothing that only its hash needs.

    Who may not read the ``whole`` log is not told what all tenants together have spent.
    """
    found = {name: value for name, value in body.items() if name not in ("salt", "v")}
    for name in ("admission", "accounts"):
        if "postings" in found.get(name, {}):
            shown = [pair for pair in postings_of(body) if whole or pair[0].key.path != ORGANISATION]
            found[name] = {**found[name], "postings": [posting_json(*pair) for pair in shown]}
    return found


def posting_json(posting: Posting, held: int | None) -> dict[str, Any]:
    """A posting for whoever reads it outside of the log."""
    path, pools, unit, window, start_us = posting.key
    account = {"path": path, "pools": pools, "unit": unit, "window": window, "starts_at": rfc3339(start_us)}
    balance = {name: getattr(posting, name) for name in ("sequence", "limit", "reserved", "spent", "debt")}
    return {**account, "held": held, **balance}


def _postings(posted: Posted) -> list[list[Any]]:
    postings = posted.postings
    return written(postings, [amount for _, amount in posted.hold.charges] if postings else ())


def _recorded(each: Submitted, result: Posted | Fits | Denied | Changed, told: Mapping[str, Any]) -> Entry:
    entry = each.entry
    if isinstance(result, Denied):
        return _denied(entry, told)
    key = "admission" if isinstance(each.operation, Reservation) else "accounts"
    return entry.begun_with(key, orjson.dumps(told, option=orjson.OPT_SORT_KEYS))


NO_BUDGET: Final = "no_budget"
"""The rule that refuses every pool of a decision without budget."""


def _denied(entry: Entry, told: Mapping[str, Any]) -> Entry:
    """The record of a decision that would have been an allow: nothing is ranked, and every pool is refused."""
    body = orjson.loads(entry.body)
    salt = salt_of(body.pop("salt"))
    ranked = body.pop("ranked", [])
    body.pop("ranked_total", None)
    denied = {**body, "admission": told, "outcome": "deny", "denied_by": "budget"}
    search = entry.search._replace(outcome="deny", denied_by="budget", pool=None, provider=None, country=None)
    terms = dict.fromkeys([*entry.terms, ("rule", NO_BUDGET), *(("rejected_pool", pool) for pool, _, _ in ranked)])
    written = encode(denied, salt)
    return Entry(entry.kind, entry.id, entry.time_us, written, search, tuple(terms), entry.personal, entry.token)


def _by_the_way(applied: Applied) -> Iterable[Entry]:
    """Entries for what nobody submitted: holds that expired, limits that changed."""
    for expired in applied.expired:
        held = [amount for _, amount in expired.hold.charges]
        body = {"event": "expired", "decision": expired.hold.id, "accounts": _accounts(expired.postings, held)}
        yield _budget_entry(body, applied.time_us, expired.hold.charges[-1][0] if expired.hold.charges else None)
        yield from (_threshold(crossing, applied.time_us) for crossing in expired.crossings)
    for relimited in applied.relimited:
        yield from _limit(relimited, applied.time_us)


def _limit(relimited: Relimited, time_us: int) -> Iterable[Entry]:
    body = {"event": "limit", "accounts": _accounts((relimited.posting,))}
    yield _budget_entry(body, time_us, relimited.posting.key)
    yield from (_threshold(crossing, time_us) for crossing in relimited.crossings)


def _threshold(crossing: Crossing, time_us: int) -> Entry:
    balance = {name: getattr(crossing, name) for name in ("percent", "sequence", "spent", "limit")}
    return _budget_entry({"event": "threshold", "account": list(crossing.key), **balance}, time_us, crossing.key)


def _accounts(postings: Sequence[Posting], held: Sequence[int] = ()) -> dict[str, Any]:
    return {"account": deepest(postings), "postings": written(postings, held)}


def _budget_entry(body: Mapping[str, Any], time_us: int, key: AccountKey | None) -> Entry:
    """An entry that the writer makes itself; it belongs to the tenant of its account, if that has one."""
    entry_id = uuid7(time_us)
    tenant = None if key is None or key.path == "*" else key.path.split("/")[0]
    fields = {**body, "v": RECORD_VERSION, "kind": "budget", "id": entry_id, "time": rfc3339(time_us)}
    return Entry("budget", entry_id, time_us, encode(fields, os.urandom(16)), Search(tenant=tenant))


def presumed_entries(posting: Posting, crossings: Iterable[Crossing], time_us: int, gap: str) -> Iterable[Entry]:
    """What is presumed to be spent of one account in a part of the log that was lost."""
    yield _budget_entry({"event": "presumed", "accounts": _accounts((posting,)), "gap": gap}, time_us, posting.key)
    yield from (_threshold(crossing, time_us) for crossing in crossings)
