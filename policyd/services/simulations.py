"""Simulations beside a server that decides: what if, asked of the live revisions or of a tree that an operator named.

    request ──overrides──► other snapshot ──► each workload decided twice: today's snapshot, the other one

Rules: a caller names a tree and never a path; what the caller may do is asked of the live entitlements, whatever the
other tree says; a pool that the caller may not see cannot be named; which trees there are, and what is wrong in one, is
for who simulates for every tenant; the work is bounded (``policyd.services.turns``, sheets of its own), and no sheet of
the live book is evicted for it; policies that only a simulation needs are loaded and forgotten while no revision is
being activated.
It refuses: to write, to reserve, to answer after the deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from policyd.core.fleet import Fleet
from policyd.core.normalise import known
from policyd.core.principal import Principal
from policyd.core.snapshot import Snapshot
from policyd.core.workload import DecisionRequest
from policyd.errors import Finding, Forbidden, RevisionError, TimedOut
from policyd.ports import PolicyTree
from policyd.revisions.fleet_files import load_fleet
from policyd.revisions.policy_files import load_policy_tree
from policyd.services.activation import Activation
from policyd.services.clock import Now, now_us
from policyd.services.decisions import FactsNow
from policyd.services.permission import OBJECT, visible_pools
from policyd.services.sheets import SheetBook, SheetLimits
from policyd.services.simulation import Overrides, Simulated, Simulator, overridden
from policyd.services.turns import Turns

_log: Final = logging.getLogger(__name__)
LOGGED_FINDINGS_MAX: Final = 5
COLD_IN_PROGRESS_MAX: Final = 4
"""A simulation starts one class at a time; the others are those that a deadline left behind."""


@dataclass(frozen=True, slots=True)
class SimulationLimits:
    """Bounds of all simulations; the settings of the same names carry the defaults."""

    in_progress_max: int = 8
    per_caller_max: int = 2
    sheets_max: int = 256
    sheets_max_mib: int = 64
    answers_max: int = 16_384
    deadline_ms: int = 1_000


@dataclass(frozen=True, slots=True)
class Asked:
    """One simulation: workloads and what is different. ``policies`` and ``fleet`` name trees of the settings."""

    requests: Sequence[DecisionRequest]
    overrides: Overrides
    policies: str | None = None
    fleet: str | None = None
    time_us: int | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """One workload: what it gets today and in the simulation."""

    today: Simulated
    simulated: Simulated

    @property
    def lost(self) -> bool:
        """Whether a workload that has a pool today has none in the simulation."""
        return _allowed(self.today) and not _allowed(self.simulated)


def _allowed(side: Simulated) -> bool:
    return side.made is not None and side.made.decision.outcome == "allow"


class Simulations:
    """Answers ``POST /v1/simulations``."""

    def __init__(
        self,
        activation: Activation,
        facts: FactsNow,
        book: SheetBook,
        trees: Mapping[str, Path],
        limits: SimulationLimits,
        now: Now = now_us,
    ) -> None:
        self._activation = activation
        self._facts = facts
        self._trees = trees
        self._limits = limits
        self._now = now
        self._turns = Turns("simulations", limits.in_progress_max, limits.per_caller_max)
        self._users: Counter[str] = Counter()
        bounds = SheetLimits(
            sheets_max=limits.sheets_max,
            sheets_max_mib=limits.sheets_max_mib,
            answers_max=limits.answers_max,
            cold_in_progress_max=COLD_IN_PROGRESS_MAX,
            cold_per_tenant_max=COLD_IN_PROGRESS_MAX,
            cold_per_tenant_per_s=100_000,
            cold_per_tenant_burst=100_000,
            deadline_ms=limits.deadline_ms,
        )
        self._simulator = Simulator(activation.engine, activation.entitlements_of, bounds, made_already=book)

    async def compare(self, asked: Asked, principal: Principal, deadline_ms: int) -> list[Compared]:
        """Each workload today and in the simulation; one that is not done by the deadline has ``TimedOut`` instead.

        Raises ``Overloaded``, ``LimitReached``, ``UnknownName``, ``RequestError``, and ``RevisionError`` for a tree
        that does not hold together; what is wrong with it is for those who simulate for every tenant.
        """
        with self._turns.place(principal):
            today = self._activation.current()
            async with self._other(today, asked, principal) as other:
                return await self._decided(today, other, asked, principal, deadline_ms)

    async def _decided(
        self, today: Snapshot, other: Snapshot, asked: Asked, principal: Principal, deadline_ms: int
    ) -> list[Compared]:
        facts, _ = self._facts.current()
        now = self._now()
        loop = asyncio.get_running_loop()
        ends = loop.time() + deadline_ms / 1_000

        async def side(snapshot: Snapshot, request: DecisionRequest, time_us: int) -> Simulated:
            # A turn of the loop between any two, so that a long simulation holds up nobody.
            await asyncio.sleep(0)
            late = TimedOut("the time for this simulation is over", remedy="simulate fewer workloads")
            if loop.time() >= ends:
                return Simulated(None, late)
            try:
                async with asyncio.timeout_at(ends), self._turns.turn:
                    return await self._simulator.decide(snapshot, request, principal, facts, time_us)
            except TimeoutError:
                return Simulated(None, late)

        found = []
        for request in asked.requests:
            was = await side(today, request, now)
            # Policies that a simulation tries must not give anybody the right to try them.
            refused = isinstance(was.error, Forbidden)
            found.append(Compared(was, was if refused else await side(other, request, asked.time_us or now)))
        return found

    @asynccontextmanager
    async def _other(self, today: Snapshot, asked: Asked, principal: Principal) -> AsyncIterator[Snapshot]:
        """The snapshot of the simulation, until the block ends."""
        trees = _Trees(
            self._trees, principal.permitted_everywhere(today.entitlements, OBJECT, "simulate", today.fleet.tenants)
        )
        async with self._turns.turn:
            fleet = await asyncio.to_thread(_fleet, today, asked, principal, trees)
        if asked.policies is None:
            tree = self._activation.tree()
            with trees.opened(asked.fleet, "fleet") if asked.fleet is not None else nullcontext():
                snapshot = await asyncio.to_thread(self._same_policies, today, tree, fleet)
            yield snapshot
            return
        with trees.opened(asked.policies, "policies") as path:
            tree = await asyncio.to_thread(load_policy_tree, path)
        self._users[tree.digest] += 1
        try:
            with trees.opened(asked.policies, "policies"):
                async with self._turns.turn, self._activation.changing:
                    snapshot = await self._activation.build(tree, fleet)
            yield snapshot
        finally:
            self._users[tree.digest] -= 1
            if not self._users[tree.digest]:
                del self._users[tree.digest]
                async with self._activation.changing:
                    await self._activation.drop(tree.digest)

    def _same_policies(self, today: Snapshot, tree: PolicyTree, fleet: Fleet) -> Snapshot:
        """Today's policies, which the engine has, over another fleet."""
        if fleet.digest == today.fleet.digest:
            return today
        entitlements = self._activation.entitlements_of(tree.casbin_model, tree.casbin_rows, fleet)
        return Snapshot(today.policies, fleet, entitlements)


@dataclass(frozen=True, slots=True)
class _Trees:
    """The trees that the settings name, as one caller may know them: who simulates for every tenant is an operator."""

    paths: Mapping[str, Path]
    of_operator: bool

    @contextmanager
    def opened(self, name: str, what: str) -> Generator[Path, None, None]:
        """The directory behind a name. Other names, and what is wrong inside, tell of other tenants and of the machine:
        only an operator hears of them, and nobody of paths outside the tree."""
        if self.of_operator:
            path = known(self.paths, name, "tree", f"overrides.{what}")
        else:
            path = known({name: self.paths[name]} if name in self.paths else {}, name, "tree", f"overrides.{what}")
        try:
            yield path
        except RevisionError as error:
            found = "; ".join(map(str, error.findings[:LOGGED_FINDINGS_MAX]))
            _log.warning("the tree %s of simulation.trees does not load: %s: %s", name, error.detail, found)
            if not self.of_operator:
                raise type(error)(f"the tree {name!r} does not hold together", remedy=_TELL_OPERATOR) from error
            findings = [
                Finding(_inside(at.where, path, name), _inside(at.message, path, name)) for at in error.findings
            ]
            raise type(error)(_inside(error.detail, path, name), findings=findings, remedy=error.remedy_text) from error


_TELL_OPERATOR: Final = "have an operator look at it: the server's log says what is wrong"


def _inside(text: str, path: Path, name: str) -> str:
    return text.replace(str(path), name)


def _fleet(today: Snapshot, asked: Asked, principal: Principal, trees: _Trees) -> Fleet:
    if asked.fleet is None:
        fleet = today.fleet
    else:
        with trees.opened(asked.fleet, "fleet") as path:
            fleet = load_fleet(path)
    _check_visible(today, fleet, asked.overrides, principal)
    return overridden(fleet, asked.overrides)


def _check_visible(today: Snapshot, fleet: Fleet, overrides: Overrides, principal: Principal) -> None:
    """Whether every pool and provider that is named can be seen. Raises ``UnknownName``, as for what does not exist."""
    entitled = today.entitlements
    tenants = [
        name for name in today.fleet.tenants if principal.permitted_somewhere(entitled, "decisions", "simulate", name)
    ]
    seen = visible_pools(entitled, fleet, tenants)
    pools = {name: pool for name, pool in fleet.pools.items() if name in seen}
    providers = {pool.provider: pool for pool in pools.values()}
    for name in overrides.without_providers:
        known(providers, name, "provider", "overrides.without_providers")
    for where, names in (("without_pools", overrides.without_pools), ("price_percent", tuple(overrides.price_percent))):
        for name in names:
            known(pools, name, "pool", f"overrides.{where}")
