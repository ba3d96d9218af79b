"""The live snapshot: built aside, checked, swapped once. A tree that fails leaves the last good one serving.

Rules: both revisions go into the log before the first decision that names them; the swap is one assignment; the engine
forgets the old policies only after the swap; a pair whose snapshot is still kept is not built again, so that going back
is a swap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import orjson

from audit.record import Blob, Entry, Search, encode
from policyd.core.fleet import Fleet
from policyd.core.inputs import INPUT_SHAPE, shape_at
from policyd.core.normalise import nearest
from policyd.core.snapshot import Snapshot
from policyd.core.verdict import PolicySet
from policyd.errors import EngineUnavailable, Finding, PolicydError, PolicyInvalid
from policyd.ports import Engine, Entitlements, PolicyTree
from policyd.services.clock import Now, now_us, random_16, rfc3339, uuid7
from policyd.services.decisions import Log

KEPT_BEFORE: Final = 1
"""Snapshots whose policies stay loaded after a swap, for decisions under way."""


@dataclass
class Candidates:
    """Builds snapshots beside whatever serves, and checks them. It has no log, so nothing of it can go live."""

    engine: Engine
    entitlements_of: Callable[[str, str, Fleet], Entitlements]

    async def build(self, tree: PolicyTree, fleet: Fleet) -> Snapshot:
        """A snapshot beside the live one. Raises ``PolicyInvalid`` or ``EngineError``; the live one is untouched."""
        # The engine knows the tree by its content; the commit that holds it may be another one by now.
        policies = replace(await self.engine.load(tree), commit=tree.commit)
        findings = list(unreadable_paths(policies))
        if findings:
            await self.drop(tree.digest)
            raise PolicyInvalid(f"a package reads what no input has: {findings[0]}", findings=findings)

        def assembled() -> Snapshot:
            entitlements = self.entitlements_of(tree.casbin_model, tree.casbin_rows, fleet)
            snapshot = Snapshot(policies, fleet, entitlements)
            for model in fleet.models:
                snapshot.grouping(model)
            return snapshot

        try:
            # Beside the event loop: decisions on the live snapshot go on meanwhile.
            return await asyncio.to_thread(assembled)
        except PolicydError:
            await self.drop(tree.digest)
            raise

    async def proved(self, tree: PolicyTree, fleet: Fleet) -> Snapshot:
        """A snapshot beside the live one that passes every check of both revisions together. Raises as ``build``."""
        snapshot = await self.build(tree, fleet)
        try:
            findings = await asyncio.to_thread(self._dead_denials, tree, fleet)
            if findings:
                raise PolicyInvalid(f"an entitlement denies nothing: {findings[0]}", findings=findings)
        except PolicydError:
            await self.drop(tree.digest)
            raise
        return snapshot

    async def drop(self, digest: str) -> None:
        """Have the engine forget policies."""
        await self.engine.unload(digest)

    def _dead_denials(self, tree: PolicyTree, fleet: Fleet) -> list[Finding]:
        return dead_denials(self.entitlements_of(tree.casbin_model, tree.casbin_rows, fleet), fleet)


@dataclass
class Activation(Candidates):
    """Owns which snapshot is live."""

    log: Log
    now: Now = now_us
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while policies are loaded or forgotten, so that nobody forgets what somebody else is about to use."""
    _live: Snapshot | None = None
    _tree: PolicyTree | None = None
    _before: list[Snapshot] = field(default_factory=list)
    _tried: Snapshot | None = None

    def current(self) -> Snapshot:
        """The live snapshot. Raises ``EngineUnavailable`` before the first activation."""
        if self._live is None:
            raise EngineUnavailable("no policies are active yet")
        return self._live

    def tree(self) -> PolicyTree:
        """The policy tree of the live snapshot. Raises ``EngineUnavailable`` before the first activation."""
        if self._tree is None:
            raise EngineUnavailable("no policies are active yet")
        return self._tree

    async def activate(
        self,
        tree: PolicyTree,
        fleet: Fleet,
        warm: Callable[[Snapshot], Awaitable[None]] | None = None,
        swapped: Callable[[Fleet], None] | None = None,
    ) -> Snapshot:
        """Build, check what only both revisions together show, ``warm``, record and swap; then tell ``swapped``."""
        async with self.changing:
            snapshot = await self._readied(tree, fleet, warm)
            if self._live is not None:
                self._before.append(self._live)
            self._live, self._tree = snapshot, tree
            if swapped is not None:
                swapped(fleet)
            await self._forget()
            return snapshot

    async def try_out(
        self, tree: PolicyTree, fleet: Fleet, warm: Callable[[Snapshot], Awaitable[None]] | None = None
    ) -> Snapshot:
        """Build, check, ``warm`` and record a pair that is tried beside the live one. Raises as ``proved``."""
        async with self.changing:
            snapshot = self._tried = await self.proved(tree, fleet)
        try:
            # Not under the lock: what is to be live must not wait for what is only tried.
            if warm is not None:
                await warm(snapshot)
            await self.log.submit(self._entry(snapshot, "try"), [policy_blob(tree), fleet_blob(fleet)])
        except PolicydError:
            await self.end_trial()
            raise
        return snapshot

    async def end_trial(self) -> None:
        """Forget what was tried, unless it is live by now."""
        async with self.changing:
            tried, self._tried = self._tried, None
            if tried is not None:
                await self.drop(tried.policies.digest)

    def kept(self) -> list[Snapshot]:
        """The snapshots that decisions may be under way on: the one before, the live one, and the one that is tried."""
        return [*self._before, *(each for each in (self._live, self._tried) if each is not None)]

    async def _readied(
        self, tree: PolicyTree, fleet: Fleet, warm: Callable[[Snapshot], Awaitable[None]] | None
    ) -> Snapshot:
        """A snapshot that is checked, warmed and recorded."""
        snapshot = await self._kept(tree, fleet) or await self.proved(tree, fleet)
        try:
            if warm is not None:
                await warm(snapshot)
            await self.log.submit(self._entry(snapshot), [policy_blob(tree), fleet_blob(fleet)])
        except PolicydError:
            await self.drop(tree.digest)
            raise
        return snapshot

    async def _kept(self, tree: PolicyTree, fleet: Fleet) -> Snapshot | None:
        """The snapshot of this pair from before the live one, or from canary: it has passed every check already."""
        for before in (*self._before, *(each for each in (self._tried,) if each is not None)):
            if (before.policies.digest, before.fleet.digest) == (tree.digest, fleet.digest):
                return before.named(replace(await self.engine.load(tree), commit=tree.commit), fleet)
        return None

    async def _forget(self) -> None:
        """Unload policies that no kept snapshot uses."""
        gone, self._before = self._before[:-KEPT_BEFORE], self._before[-KEPT_BEFORE:]
        for digest in {snapshot.policies.digest for snapshot in gone}:
            await self.drop(digest)

    async def drop(self, digest: str) -> None:
        """Have the engine forget policies, unless one of the kept snapshots is made of them."""
        if digest not in {snapshot.policies.digest for snapshot in self.kept()}:
            await self.engine.unload(digest)

    def _entry(self, snapshot: Snapshot, action: str = "activate") -> Entry:
        time_us = self.now()
        entry_id = uuid7(time_us)
        body = {
            "v": 1,
            "kind": "revision",
            "id": entry_id,
            "time": rfc3339(time_us),
            "action": action,
            "policy": [snapshot.policies.commit, snapshot.policies.digest, snapshot.policies.engine],
            "fleet": [snapshot.fleet.commit, snapshot.fleet.digest],
            "casbin": snapshot.entitlements.digest,
            "snapshot": snapshot.digest,
        }
        search = Search(policy_commit=snapshot.policies.commit, fleet_commit=snapshot.fleet.commit)
        return Entry("revision", entry_id, time_us, encode(body, random_16()), search)


def unreadable_paths(policies: PolicySet) -> Sequence[Finding]:
    """A finding for each path that a package reads or calls optional and that no input document has."""
    return [
        Finding(package.location, f"input.{'.'.join(path)} does not exist")
        for package in policies.packages.values()
        for path in (*package.reads, *package.optional)
        if path and shape_at(path, INPUT_SHAPE) is None
    ]


def dead_denials(entitlements: Entitlements, fleet: Fleet) -> list[Finding]:
    """A finding for each row that denies a pool group to a tenant, where one of the names is none of this fleet.

    A slip of the pen in a row that allows takes something away and is noticed; in one that denies it gives, silently.
    """
    groups = {pool.group for pool in fleet.pools.values()}
    findings = []
    for denial in entitlements.denials:
        if denial.action not in ("view", "place"):
            continue
        tenant = denial.subject.removeprefix("tenant:")
        if denial.obj not in groups:
            said = f"no pool is of the group {denial.obj!r}{nearest(denial.obj, groups)}"
        elif denial.domain != "*" and denial.domain not in fleet.tenants:
            said = f"there is no tenant {denial.domain!r}{nearest(denial.domain, fleet.tenants)}"
        elif not denial.role and (tenant == denial.subject or tenant not in fleet.tenants):
            said = f"{denial.subject!r} is neither a tenant nor a role that somebody has"
        else:
            continue
        findings.append(Finding(f"{denial.where}", f"this row denies nothing: {said}"))
    return findings


def policy_blob(tree: PolicyTree) -> Blob:
    """Every text of a policy tree that decisions stand on."""
    document = {
        "digest": tree.digest,
        "modules": {str(path): text for path, text in tree.modules.items()},
        "data": {str(path): text for path, text in tree.data.items()},
        "casbin_model": tree.casbin_model,
        "casbin_rows": tree.casbin_rows,
    }
    return Blob.of("policy", orjson.dumps(document, option=orjson.OPT_SORT_KEYS))


def fleet_blob(fleet: Fleet) -> Blob:
    """A whole fleet, as its checked document."""
    content = orjson.dumps(
        {"digest": fleet.digest, "fleet": fleet.document.model_dump(mode="json")}, option=orjson.OPT_SORT_KEYS
    )
    return Blob.of("fleet", content)
