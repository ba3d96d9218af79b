"""What if: the decision for a workload on a changed fleet, other policies, another time. Nothing is logged or reserved.

    live parts ──overrides──► a second snapshot, built like any other ──► the same decide as for a real request

Rules: an override only changes what it names, and a name that the fleet does not know is an error; the changed fleet
has its own digest, so that no sheet of the real one answers for it; the answer says ``mode: simulation`` and has no
place in the log. It refuses to write: it is given no log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

import orjson

from policyd.core.decide import decide
from policyd.core.facts import Facts
from policyd.core.fleet import Fleet, SlaClass, Weights
from policyd.core.normalise import known
from policyd.core.pool import Pool, Price
from policyd.core.principal import Principal
from policyd.core.snapshot import Snapshot
from policyd.core.workload import DecisionRequest
from policyd.errors import PolicydError, RequestError
from policyd.ports import Engine, Entitlements, PolicyTree
from policyd.services.activation import Candidates
from policyd.services.answers import Made, Revisions
from policyd.services.clock import next_boundary_us, uuid7
from policyd.services.frames import Frames
from policyd.services.permission import require_scope, told_to
from policyd.services.sheets import SheetBook, SheetLimits

PERCENT_MAX: Final = 10_000
WEIGHTS_TOTAL: Final = 1_000
MODE: Final = "simulation"


@dataclass(frozen=True, slots=True)
class Overrides:
    """What is different in the simulation.

    ``price_percent`` maps a pool id to percent of its declared prices (80 is a fifth cheaper); ``weights`` maps score
    components to thousandths, for every SLA class; the components that are not named share what is left in their old
    proportions.
    """

    without_providers: tuple[str, ...] = ()
    without_pools: tuple[str, ...] = ()
    price_percent: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, int] = field(default_factory=dict)

    @property
    def none(self) -> bool:
        """Whether nothing is overridden."""
        return not (self.without_providers or self.without_pools or self.price_percent or self.weights)


def overridden(fleet: Fleet, overrides: Overrides) -> Fleet:
    """The fleet with the overrides applied. Raises ``UnknownName`` and ``RequestError``."""
    if overrides.none:
        return fleet
    providers = {pool.provider: pool for pool in fleet.pools.values()}
    for name in overrides.without_providers:
        known(providers, name, "provider", "without_provider")
    for where, names in (("without_pool", overrides.without_pools), ("price", tuple(overrides.price_percent))):
        for name in names:
            known(fleet.pools, name, "pool", where)
    for name, percent in overrides.price_percent.items():
        if not 1 <= percent <= PERCENT_MAX:
            raise RequestError(f"the price of {name!r} would be {percent} %; name 1 to {PERCENT_MAX}")
    pools = tuple(
        _priced(pool, overrides.price_percent.get(pool.id))
        for pool in fleet.document.pools
        if pool.provider not in overrides.without_providers and pool.id not in overrides.without_pools
    )
    classes = tuple(_weighed(sla, overrides.weights) for sla in fleet.document.sla_classes)
    document = fleet.document.model_copy(update={"pools": pools, "sla_classes": classes})
    content = orjson.dumps([fleet.digest, document.model_dump(mode="json")], option=orjson.OPT_SORT_KEYS)
    return Fleet(document, "sha256:" + sha256(content).hexdigest(), None, fleet.groups)


def _priced(pool: Pool, percent: int | None) -> Pool:
    if percent is None:
        return pool
    offerings = tuple(
        offering.model_copy(update={"price": _scaled(offering.price, percent)}) for offering in pool.offerings
    )
    return pool.model_copy(update={"price": _scaled(pool.price, percent), "offerings": offerings})


def _scaled(price: Price | None, percent: int) -> Price | None:
    """Every rate of a price, by its region multiplier, which the cost unit applies to all of them."""
    if price is None:
        return None
    return price.model_copy(update={"region_multiplier_ppm": max(1, price.region_multiplier_ppm * percent // 100)})


def _weighed(sla: SlaClass, asked: Mapping[str, int]) -> SlaClass:
    if not asked:
        return sla
    old: dict[str, int] = sla.weights.model_dump()
    for name in asked:
        known(old, name, "score component", "weight")
    return sla.model_copy(update={"weights": Weights(**_shared(old, asked))})


def _shared(old: Mapping[str, int], asked: Mapping[str, int]) -> dict[str, int]:
    """The named weights as asked; the others share what is left as before, largest remainders first."""
    left = WEIGHTS_TOTAL - sum(asked.values())
    others = [name for name in old if name not in asked]
    if left < 0 or min(asked.values()) < 0 or (left and not others):
        raise RequestError(f"the weights add up to {sum(asked.values())}, not to {WEIGHTS_TOTAL}")
    before = sum(old[name] for name in others)
    parts = {name: (old[name] if before else 1) * left for name in others}
    total = before or len(others) or 1
    shared = {name: part // total for name, part in parts.items()}
    missing = left - sum(shared.values())
    for name in sorted(others, key=lambda name: (-(parts[name] % total), name))[:missing]:
        shared[name] += 1
    return {**shared, **asked}


@dataclass(frozen=True, slots=True)
class Simulated:
    """One workload in one snapshot: what was made, or the error that a real request would have met."""

    made: Made | None
    error: PolicydError | None = None


class Simulator:
    """Decides without a log. Shares one engine between snapshots; ``build`` makes them.

    ``made_already`` is looked in and never written to.
    """

    def __init__(
        self,
        engine: Engine,
        entitlements_of: Callable[[str, str, Fleet], Entitlements],
        limits: SheetLimits,
        made_already: SheetBook | None = None,
    ) -> None:
        self._candidates = Candidates(engine, entitlements_of)
        self._book = SheetBook(engine, limits)
        self._made_already = made_already

    async def build(self, tree: PolicyTree, fleet: Fleet) -> Snapshot:
        """A snapshot of these revisions, each checked by itself."""
        return await self._candidates.build(tree, fleet)

    async def decide(
        self, snapshot: Snapshot, request: DecisionRequest, principal: Principal, facts: Facts, time_us: int
    ) -> Simulated:
        """What a request would get at that moment (microseconds since 1970)."""
        try:
            return Simulated(await self._made(snapshot, request, principal, facts, time_us))
        except PolicydError as error:
            return Simulated(None, error)

    async def _made(
        self, snapshot: Snapshot, request: DecisionRequest, principal: Principal, facts: Facts, time_us: int
    ) -> Made:
        try:
            framed = Frames().place(snapshot, request.workload, principal, facts, time_us)
        except PolicydError as error:
            raise told_to(principal, snapshot, "simulate", request.workload, error) from None
        workload = framed.normalised.workload
        require_scope(principal, snapshot.entitlements, "simulate", workload)
        sheet = self._book.find(snapshot, framed.key)
        if sheet is None and self._made_already is not None:
            sheet = self._made_already.find(snapshot, framed.key)
        if sheet is None:
            sheet = await self._book.make(snapshot, framed.key, framed.normalised, framed.document(snapshot))
        return Made(
            id=uuid7(time_us),
            time_us=time_us,
            valid_until_us=next_boundary_us(time_us, quarterly=snapshot.reads.clock),
            principal=principal.name,
            request_id="simulation",
            workload=workload,
            options=request.options,
            sheet=sheet,
            facts=facts,
            revisions=Revisions.of(snapshot),
            decision=decide(workload, sheet, facts),
            mode=MODE,
        )
