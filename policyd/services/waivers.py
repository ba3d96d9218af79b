"""Waivers and approvals: requested by one person, approved by another, listed with what became of them.

    request ──a soft or approval rule as it is now──► proposal ──another person──► in force ──time──► expired
                                                                       └── the rule changes ──► void
    break glass ──one person, minutes, where a setting says so──► in force, and everybody hears of it

Rules: whoever asks names a rule of the live policies, and what is lifted is that rule as it is now, by its digest; the
end is in the future and no further away than the setting says; what is void says why. Who may neither request, approve
nor read the waivers of a tenant, nor read its log, learns nothing of them.
It refuses: a rule that is hard or only warns, a scope that does not exist, and approving what has become void.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import orjson
from sqlalchemy import Connection

from audit.query import Record
from audit.record import Entry
from audit.store import Position
from policyd.core.fleet import Fleet
from policyd.core.normalise import known
from policyd.core.principal import LOCAL, Principal
from policyd.core.quantities import MAX_SAFE
from policyd.core.snapshot import Snapshot
from policyd.core.verdict import RuleDoc
from policyd.core.waivers import LIFTS, Waiver
from policyd.errors import Finding, Forbidden, NotFound, PolicydError, RequestError, WaiverRefused, WaiverVoid
from policyd.services.actions import BREAK_GLASS, WAIVER
from policyd.services.clock import Now, from_rfc3339, now_us, rfc3339, uuid7
from policyd.services.decisions import SnapshotNow
from policyd.services.permission import visible_pools
from policyd.services.proposals import Alone, Deed, Proposal
from policyd.services.two_persons import TwoPersons
from policyd.services.waiver_rows import Row, rows_kept, waiver_entry, waiver_of
from policyd.services.waivers_in_force import WaiversInForce

T = TypeVar("T")
OBJECT: Final = "waivers"
NO_WAIVER_REMEDY: Final = "take the id from `GET /v1/waivers` or `policyd waiver list`"


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants lifted. ``rule`` is ``policy.rule``; None, for breaking the glass, is every soft rule."""

    tenant: str
    rule: str | None
    reason: str
    expires_at: str
    project: str | None = None
    pool: str | None = None
    model: str | None = None


class Log(Protocol):
    """The writing side of the log, as far as this needs it."""

    async def submit(self, entry: Entry, *, deed: Deed) -> Position: ...


class Reader(Protocol):
    """The reading side of the log, as far as this needs it."""

    async def read(self, read: Callable[[Connection], T]) -> T: ...

    async def by_id(self, entry_id: str) -> Record: ...


class Limits(Protocol):
    """For how long rules may be lifted: the settings below ``waivers``."""

    @property
    def max_duration_ms(self) -> int: ...

    @property
    def break_glass_max_ms(self) -> int: ...


@dataclass
class Waivers:
    """Takes requests and approvals, and lists what there is."""

    log: Log
    reader: Reader
    snapshots: SnapshotNow
    two_persons: TwoPersons
    in_force: WaiversInForce
    origin: str
    limits: Limits
    now: Now = now_us

    async def request(self, wish: Wish, principal: Principal, request_id: str) -> dict[str, Any]:
        """Propose a waiver or an approval, as the rule is one or the other.

        Raises ``Forbidden``, ``UnknownName`` and ``WaiverRefused``.
        """
        self.two_persons.require_asking(WAIVER, wish.tenant, principal)
        document = self._document(wish, self.limits.max_duration_ms)
        return await self.two_persons.propose(WAIVER, wish.tenant, document, principal, request_id)

    async def approve(
        self, waiver_id: str, principal: Principal, request_id: str, read: str | None = None
    ) -> dict[str, Any]:
        """Approve, from which moment on it is in force. Raises what ``TwoPersons.approve`` does, and ``WaiverVoid``."""
        proposal = await self.two_persons.proposal(waiver_id, principal)
        if proposal.action != WAIVER:
            raise NotFound(f"there is no waiver {waiver_id}", remedy=NO_WAIVER_REMEDY)
        why = void_because(self.snapshots.current(), _asked(proposal))
        if why is not None:
            raise WaiverVoid(f"waiver {waiver_id} cannot be approved any more: {why}")
        done = await self.two_persons.approve(waiver_id, principal, request_id, read)
        await self._heard()
        return done

    async def break_glass(self, wish: Wish, principal: Principal, request_id: str) -> dict[str, Any]:
        """Lift soft rules at once, alone, for minutes. Raises ``Forbidden``, ``UnknownName`` and ``WaiverRefused``."""
        snapshot = self.snapshots.current()
        if self.limits.break_glass_max_ms == 0:
            raise Forbidden("nobody may break the glass here", remedy="set waivers.break_glass_max_ms, or ask for two")
        named = principal.name != LOCAL.name
        if not named or not principal.permitted(snapshot.entitlements, OBJECT, "break_glass", wish.tenant):
            raise Forbidden(f"{principal.name!r} may not break the glass for tenant {wish.tenant!r}")
        asked = self._document(wish, self.limits.break_glass_max_ms)
        if asked.get("kind", "waiver") != "waiver":
            raise WaiverRefused(f"{wish.rule} asks for an approval, which one person alone never gives")
        document = {**asked, "kind": "break_glass"}
        time_us = self.now()
        entry_id = uuid7(time_us)
        waiver = waiver_of(entry_id, wish.tenant, document, time_us)
        entry = waiver_entry(
            "break_glass", entry_id, time_us, waiver, document, {"request_id": request_id}, principal.name
        )
        position = await self.log.submit(entry, deed=Alone(BREAK_GLASS, wish.tenant, orjson.dumps(document).decode()))
        await self._heard()
        place = {"log": self.origin, "index": position.index, "leaf_hash": position.leaf_hash.hex()}
        return {**_item(Row(waiver, entry_id), time_us, None), "reason": wish.reason, "audit": place}

    async def listed(self, principal: Principal) -> list[dict[str, Any]]:
        """What waits, is in force, or was lately, of the tenants whose waivers this principal may see."""
        snapshot, now_us = self.snapshots.current(), self.now()
        rows = await self.reader.read(rows_kept)
        items = [
            await self._told(row, snapshot, now_us)
            for row in rows
            if any(
                principal.permitted(snapshot.entitlements, obj, "read", row.waiver.tenant) for obj in (OBJECT, "audit")
            )
        ]
        waiting = [each for each in await self.two_persons.waiting(principal) if each.action == WAIVER]
        return [*(_waiting(proposal, snapshot, now_us) for proposal in waiting), *items]

    async def _told(self, row: Row, snapshot: Snapshot, now_us: int) -> dict[str, Any]:
        """A row with what its entries say, as far as they can be read."""
        asked, answered = await self._body(row.waiver.id), await self._body(row.approval)
        document = asked.get("document", {})
        item = _item(row, now_us, None if row.waiver.rule is None else void_because(snapshot, row.waiver))
        alone = row.waiver.kind == "break_glass"
        said = {"reason": document.get("reason"), "requested_by": None if alone else asked.get("principal")}
        return {**item, **said, "requested_at": asked.get("time"), "approved_by": answered.get("principal")}

    async def _body(self, entry_id: str) -> Mapping[str, Any]:
        try:
            return (await self.reader.by_id(entry_id)).document()
        except NotFound:
            return {}  # retention removes bodies of entries

    async def _heard(self) -> None:
        """Let this process know at once; the others, and this one when it cannot, hear of it within a second."""
        try:
            await self.in_force.refresh()
        except PolicydError:
            return

    def _document(self, wish: Wish, longest_ms: int) -> dict[str, Any]:
        """What is proposed, of names that exist and for a time that may be asked for."""
        snapshot, now_us = self.snapshots.current(), self.now()
        _check_scope(snapshot, wish)
        expires_us = _moment(wish.expires_at)
        if expires_us <= now_us:
            raise WaiverRefused(f"{rfc3339(expires_us)} has passed", remedy="name an end that is still to come")
        if expires_us - now_us > longest_ms * 1_000:
            raise WaiverRefused(
                f"it would end at {rfc3339(expires_us)}, more than {longest_ms // 1_000} s from now",
                remedy="ask for a shorter time; the limits are settings below `waivers`",
            )
        asked = {"project": wish.project, "pool": wish.pool, "model": wish.model}
        told = {
            **{name: value for name, value in asked.items() if value is not None},
            "reason": wish.reason,
            "expires_us": expires_us,
            "expires_at": rfc3339(expires_us),
        }
        if wish.rule is None:
            return told
        doc = rule_of(snapshot, wish.rule)
        kind = next((kind for kind, lifted in LIFTS.items() if lifted == doc.enforcement), None)
        if kind is None:
            raise WaiverRefused(
                f"{wish.rule} is {doc.enforcement}, and only soft and approval rules can be lifted",
                remedy="change the workload or the pool as the rule asks, or have the policy changed",
            )
        return {**told, "kind": kind, "rule": wish.rule, "rule_digest": doc.digest, "title": doc.title}


def rule_of(snapshot: Snapshot, name: str) -> RuleDoc:
    """The rule ``policy.rule`` of the live policies. Raises ``UnknownName``."""
    packages = snapshot.policies.packages
    rules = {f"{policy}.{rule}": doc for policy, package in packages.items() for rule, doc in package.rules.items()}
    return known(rules, name, "rule", "rule")


def void_because(snapshot: Snapshot, waiver: Waiver) -> str | None:
    """Why a waiver of one rule lifts nothing in this snapshot, whatever the time; None when it does."""
    package = snapshot.policies.packages.get(waiver.policy or "")
    doc = None if package is None else package.rules.get(waiver.rule or "")
    if doc is None:
        return "the rule is no longer in the policies"
    if doc.enforcement != LIFTS[waiver.kind]:
        return f"the rule is {doc.enforcement} now"
    if doc.digest != waiver.rule_digest:
        return "the rule has changed since it was requested"
    return None


def _moment(text: str) -> int:
    """The end that somebody names. Raises ``RequestError``."""
    try:
        time_us = from_rfc3339(text)
    except (ValueError, OverflowError):
        time_us = -1
    if not 0 <= time_us <= MAX_SAFE:
        message = f"{text!r} is no time with a zone, such as 2026-12-01T12:00:00Z"
        raise RequestError(f"expires_at: {message}", findings=[Finding("expires_at", message)])
    return time_us


def _check_scope(snapshot: Snapshot, wish: Wish) -> None:
    """Raise ``UnknownName`` for what the fleet does not have, or the tenant may not see."""
    fleet: Fleet = snapshot.fleet
    tenant = known(fleet.tenants, wish.tenant, "tenant", "tenant")
    if wish.project is not None:
        known({project.name: project for project in tenant.projects}, wish.project, "project", "project")
    if wish.pool is not None:
        seen = visible_pools(snapshot.entitlements, fleet, [wish.tenant])
        known({name: pool for name, pool in fleet.pools.items() if name in seen}, wish.pool, "pool", "pool")
    if wish.model is not None:
        known(fleet.models, wish.model, "model", "model")


def _asked(proposal: Proposal) -> Waiver:
    assert proposal.tenant is not None
    return waiver_of(proposal.id, proposal.tenant, proposal.document, proposal.time_us)


def _item(row: Row, now_us: int, why: str | None) -> dict[str, Any]:
    waiver = row.waiver
    state = "expired" if waiver.expires_us <= now_us else "void" if why else "in_force"
    return {
        **_scope(waiver),
        "state": state,
        "void_because": why,
        "reason": None,
        "digest": None,
        "requested_by": None,
        "requested_at": None,
        "approved_by": None,
        "approved_at": rfc3339(waiver.from_us),
        "expires_at": rfc3339(waiver.expires_us),
    }


def _waiting(proposal: Proposal, snapshot: Snapshot, now_us: int) -> dict[str, Any]:
    waiver = _asked(proposal)
    item = _item(Row(waiver, proposal.id), now_us, void_because(snapshot, waiver))
    state = "waiting" if item["state"] == "in_force" else item["state"]
    said = {"reason": proposal.document.get("reason"), "digest": proposal.digest, "approved_at": None}
    asked = {"requested_by": proposal.proposer, "requested_at": rfc3339(proposal.time_us)}
    return {**item, **said, **asked, "state": state}


def _scope(waiver: Waiver) -> dict[str, Any]:
    return {
        "id": waiver.id,
        "kind": waiver.kind,
        "tenant": waiver.tenant,
        "project": waiver.project,
        "rule": None if waiver.rule is None else f"{waiver.policy}.{waiver.rule}",
        "pool": waiver.pool,
        "model": waiver.model,
    }
