"""Budgets as a fleet declares them: limits of the organisation, of tenants, projects and environments.

Rules: an account is named by its path, ``*`` for the organisation, then ``tenant/project/environment``; where there are
budgets no name holds a ``/``, so that a path names one account only. One account has one limit for each unit, window
and group of pools. Money is USD, in whole micro-USD.
It refuses: a window for what is only in flight, and none for what is spent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field

from policyd.core.pool import Declared, Quantity
from policyd.core.quantities import MAX_SAFE
from policyd.core.workload import Name

if TYPE_CHECKING:
    from policyd.core.fleet import FleetDocument

ORGANISATION: Final = "*"
IN_FLIGHT: Final = ("gpus", "in_flight")
"""Units of what is held and never spent."""

SCALE: Final = {"usd": 1_000_000, "tokens": 1, "gpu_hours": 3_600_000, "requests": 1, "gpus": 1, "in_flight": 1}
"""How many of the ledger's units one of the fleet's is: micro-USD, tokens, GPU-milliseconds, …"""


def known_zone(value: str) -> str:
    """An IANA time zone. Raises ValueError for another name."""
    try:
        ZoneInfo(value)
    except (LookupError, ValueError, OSError):
        raise ValueError(f"unknown time zone {value!r}: use an IANA name, for example Europe/Berlin") from None
    return value


Zone = Annotated[str, AfterValidator(known_zone)]


class Budget(Declared):
    """A limit on what an account may use in a window, in ``unit``; or on what is in flight at once, without a window.

    ``zone`` is where days, weeks and months begin (the tenant's own when it says nothing), ``pools`` the group of pools
    that a limit on what is in flight counts, ``thresholds`` the percentages whose crossing is told.
    """

    limit: Quantity
    window: Literal["hour", "day", "week", "month", "total"] | None = None
    unit: Literal["usd", "tokens", "gpu_hours", "requests", "gpus", "in_flight"] = "usd"
    zone: Zone | None = None
    pools: Name | None = None
    thresholds: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field((50, 80, 95), max_length=10)

    def model_post_init(self, context: Any) -> None:
        """Raise ValueError for a limit that the ledger could not keep."""
        if (self.unit in IN_FLIGHT) == (self.window is not None):
            raise ValueError(f"a limit in {self.unit} {'needs a' if self.window is None else 'has no'} window")
        if self.pools is not None and self.unit not in IN_FLIGHT:
            raise ValueError(f"only gpus and in_flight are counted for a group of pools, not {self.unit}")
        if list(self.thresholds) != sorted(set(self.thresholds)):
            raise ValueError("thresholds rise from one to the next")
        if self.amount > MAX_SAFE:
            raise ValueError(f"the limit is beyond {MAX_SAFE} of the ledger's units")
        if self.amount != self.limit * SCALE[self.unit]:
            raise ValueError(f"the limit is no whole number of the ledger's units; one is 1/{SCALE[self.unit]}")

    @property
    def amount(self) -> int:
        """The limit in the ledger's unit."""
        return int(self.limit * SCALE[self.unit])

    @property
    def counts(self) -> tuple[str, str | None, str | None]:
        """What an account can have one limit for."""
        return self.unit, self.window, self.pools


Where = tuple[str | int, ...]


def account_path(*names: str) -> str:
    """The path of an account: of a tenant, one of its projects, or one of that one's environments."""
    return "/".join(names)


def budgets(document: FleetDocument) -> Iterator[tuple[str, str, tuple[Budget, ...], Where]]:
    """Every account with budgets: its path, the zone of its windows, the budgets, and where they stand."""
    if document.budgets:
        yield ORGANISATION, "UTC", document.budgets, ("budgets",)
    for i, tenant in enumerate(document.tenants):
        own = (*((tenant.budget,) if tenant.budget else ()), *tenant.budgets)
        if own:
            yield tenant.name, tenant.zone, own, ("tenants", i)
        for j, project in enumerate(tenant.projects):
            own = (*((project.budget,) if project.budget else ()), *project.budgets)
            at: Where = ("tenants", i, "projects", j)
            if own:
                yield account_path(tenant.name, project.name), tenant.zone, own, at
            for environment, inner in project.environment_budgets.items():
                path = account_path(tenant.name, project.name, environment)
                yield path, tenant.zone, inner, (*at, "environment_budgets", environment)


def budget_findings(document: FleetDocument) -> Iterator[tuple[Where, str]]:
    """What is wrong with the budgets of a fleet, with the place."""
    groups = {pool.group for pool in document.pools}
    declared = list(budgets(document))
    for path, _, limits, at in declared:
        seen = set()
        for budget in limits:
            if budget.counts in seen:
                yield at, f"account {path!r} has two limits in {budget.unit} for the same window and pools"
            seen.add(budget.counts)
            if budget.pools is not None and budget.pools not in groups:
                yield at, f"no pool is in the group {budget.pools!r}"
    for i, tenant in enumerate(document.tenants):
        for j, project in enumerate(tenant.projects):
            for environment in project.environment_budgets:
                if environment not in project.environments:
                    where = ("tenants", i, "projects", j, "environment_budgets", environment)
                    yield where, f"{environment!r} is not among the project's environments"
            if declared and "/" in project.name:
                yield ("tenants", i, "projects", j, "name"), _AMBIGUOUS
        if declared and "/" in tenant.name:
            yield ("tenants", i, "name"), _AMBIGUOUS


_AMBIGUOUS: Final = "where there are budgets, names of tenants and projects have no '/'"
