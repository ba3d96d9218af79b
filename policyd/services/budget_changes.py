"""Changing budgets while policyd runs: lowering by one person, raising by one who may or by two.

    wishes ──known account, within the fleet──► change ──the writer──► recorded and in force, in one transaction

Rules: the fleet's limit is a ceiling and never passed; only the writer knows what counts at that moment, so it says
whether a change raises; who may raise alone does so up to ``budgets.raise_alone_max`` of the unit; `local` raises
nothing, whatever the rows say. A change is whole or does not happen.
It refuses: an account that the fleet does not know, and the same limit twice in a change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from policyd.core.budgets import ORGANISATION, Budget, budgets
from policyd.core.fleet import Fleet
from policyd.core.principal import LOCAL, Principal
from policyd.core.snapshot import Snapshot
from policyd.documents import nearest
from policyd.errors import BudgetFixed, Finding, Forbidden, NotFound, PolicydError, RequestError
from policyd.ledger.changes import NO_CEILING, LimitKey, SetLimit, Setting, key_of, wanted
from policyd.ledger.chart import UNITS, chart_of
from policyd.ledger.rules import ALL_POOLS, Limit
from policyd.ledger.store import Change
from policyd.services.budget_entries import set_entry, setting_json
from policyd.services.budgets import permitted
from policyd.services.clock import Now, now_us, uuid7
from policyd.services.commit import AdmittedPosition
from policyd.services.decisions import Log, SnapshotNow

REASON_MAX_CHARS: Final = 500
LIMITS_MAX: Final = 32
"""Limits that one change may set."""


@dataclass(frozen=True, slots=True)
class Wish:
    """One limit as somebody asks for it. ``gives_back``: the fleet's alone is to count again.

    ``budget`` says of what, with the amount that is wished; thresholds only when they were named.
    """

    budget: Budget
    gives_back: bool = False
    thresholds: tuple[int, ...] | None = None

    @property
    def limit(self) -> Limit:
        """Of what it is a limit, without a ceiling; the path is not said yet."""
        budget = self.budget
        window, pools = budget.window or "now", budget.pools or ALL_POOLS
        return Limit("", UNITS[budget.unit], window, NO_CEILING, budget.zone or "UTC", pools)


class Known(Protocol):
    """What this process knows of the limits that are set."""

    def limits(self) -> Mapping[LimitKey, SetLimit]: ...

    async def refresh(self) -> None: ...


@dataclass
class BudgetChanges:
    """Changes budgets. ``raise_alone_max`` has amounts of the ledger's units."""

    log: Log
    snapshots: SnapshotNow
    known: Known
    origin: str
    raise_alone_max: Mapping[str, int]
    now: Now = now_us

    async def change(
        self, path: str, wishes: Sequence[Wish], reason: str, principal: Principal, request_id: str
    ) -> dict[str, Any]:
        """Set these limits. Raises ``NotFound``, ``Forbidden``, ``BudgetFixed``, ``BudgetRaised``, ``RequestError``."""
        snapshot = self.snapshots.current()
        self.check(path, principal, "set")
        settings = [
            self._alone(setting, principal, snapshot) for setting in self.settings(path, wishes, snapshot.fleet)
        ]
        time_us = self.now()
        entry_id = uuid7(time_us)
        who = {"principal": principal.name, "request_id": request_id, "reason": reason}
        entry = set_entry(entry_id, time_us, path, [setting_json(setting) for setting in settings], who)
        position = await self.log.submit(entry, (), None, Change(entry_id, tuple(settings)))
        assert isinstance(position, AdmittedPosition)
        await self.heard()
        place = {"log": self.origin, "index": position.index, "leaf_hash": position.leaf_hash.hex()}
        return {"id": entry_id, "audit": place}

    def document(self, path: str, wishes: Sequence[Wish], reason: str, principal: Principal) -> dict[str, Any]:
        """The change as a proposal for two persons. Raises as ``change``, but for a raise."""
        self.check(path, principal, "propose")
        settings = self.settings(path, wishes, self.snapshots.current().fleet)
        return {"path": path, "reason": reason, "limits": [setting_json(setting) for setting in settings]}

    async def heard(self) -> None:
        """Know of a change now and not at the next look; where that fails, at the next one."""
        with suppress(PolicydError):
            await self.known.refresh()

    def check(self, path: str, principal: Principal, action: str) -> None:
        """Raise ``NotFound`` or ``Forbidden`` unless the account is there and the principal may do that with it."""
        snapshot = self.snapshots.current()
        known = _accounts(snapshot.fleet)
        readable = [name for name in known if permitted(principal, snapshot, name, "read")]
        if path in known and permitted(principal, snapshot, path, action):
            return
        if path not in readable:
            raise NotFound(
                f"there is no account {path[:400]!r}{nearest(path[:400], readable)}",
                remedy="name a tenant, tenant/project or tenant/project/environment of the fleet, or * for all",
            )
        raise Forbidden(f"{principal.name!r} may not {action} the budgets of {path!r}")

    def settings(self, path: str, wishes: Sequence[Wish], fleet: Fleet) -> list[Setting]:
        """The change in the ledger's words. Raises ``BudgetFixed`` and ``RequestError``."""
        declared = {key_of(limit): limit for limit in chart_of(fleet).get(path, ())}
        groups = {pool.group for pool in fleet.pools.values()}
        found: dict[LimitKey, Setting] = {}
        for place, wish in enumerate(wishes):
            named = wish.limit
            key = key_of(named)._replace(path=path)
            if key in found:
                raise _refused(f"limits[{place}]", "names a limit that stands before it already")
            if named.pools != ALL_POOLS and named.pools not in groups:
                raise _refused(f"limits[{place}].pools", f"no pool is in the group {named.pools!r}")
            own = self.known.limits().get(key)
            zone = wish.budget.zone or (own.zone if own else _zone(path, fleet))
            ceiling = declared.get(key) or Limit(path, key.unit, key.window, NO_CEILING, zone, key.pools)
            if ceiling.amount != NO_CEILING and wish.budget.zone not in (None, ceiling.zone):
                raise BudgetFixed(f"the windows of {path} ({key.unit}) begin in {ceiling.zone}, as the fleet says")
            amount = None if wish.gives_back else wish.budget.amount
            if amount is not None and amount > ceiling.amount:
                raise BudgetFixed(f"the fleet limits {path} to {ceiling.amount} {key.unit} ({key.window})")
            found[key] = Setting(ceiling, amount, ceiling.zone, wish.thresholds, may_raise=False)
        return list(found.values())

    def _alone(self, setting: Setting, principal: Principal, snapshot: Snapshot) -> Setting:
        """The setting, permitted to raise when this principal may do so alone."""
        path, unit = setting.ceiling.path, setting.ceiling.unit
        alone = (
            principal.name != LOCAL.name
            and wanted(setting).amount <= self.raise_alone_max.get(unit, -1)
            and permitted(principal, snapshot, path, "raise")
        )
        return Setting(setting.ceiling, setting.amount, setting.zone, setting.thresholds, alone)


def _accounts(fleet: Fleet) -> set[str]:
    """Every account that there can be. Raises ``RequestError`` where a path could name two."""
    paths = {ORGANISATION}
    for tenant in fleet.tenants.values():
        for project in tenant.projects:
            if "/" in tenant.name + project.name:
                raise RequestError(
                    f"{tenant.name!r} or {project.name!r} holds a '/', so that a path could name two accounts",
                    remedy="rename it in the fleet; where there are budgets, names hold no '/'",
                )
            names = (f"{tenant.name}/{project.name}/{environment}" for environment in project.environments)
            paths.update((tenant.name, f"{tenant.name}/{project.name}", *names))
    return paths


def _zone(path: str, fleet: Fleet) -> str:
    """Where the windows of an account begin that nobody says anything of: as its other budgets, or its tenant."""
    for name, zone, _, _ in budgets(fleet.document):
        if name == path:
            return zone
    tenant = fleet.tenants.get(path.split("/")[0])
    return "UTC" if tenant is None else tenant.zone


def _refused(place: str, message: str) -> RequestError:
    return RequestError(f"{place}: {message}", findings=[Finding(place, message)])
