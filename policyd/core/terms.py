"""The terms that a tenant and its project set together: their floors merged, the stricter of each.

Rules: merging never loosens. The order of strictness is a table; residency and seats intersect; lists of duties unite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from policyd.core.fleet import DataSource, Fleet, Floors, Project, Tenant
from policyd.core.places import expand
from policyd.core.workload import CLASSIFICATION_ORDER

STRICTNESS: Final[Mapping[str, Mapping[str, int]]] = {
    "classification": CLASSIFICATION_ORDER,
    "foreign_control": {"off": 0, "soft": 1, "hard": 2},
    "tenancy": {"shared": 0, "single_tenant": 1, "dedicated": 2},
    "network": {"public": 0, "private": 1},
    "account": {"provider": 0, "ours": 1},
}


@dataclass(frozen=True, slots=True)
class Terms:
    """Merged floors of a tenant, a project and the data sources in use. ``classification`` None: no floor declared."""

    classification: str | None
    categories: frozenset[str]
    countries: frozenset[str]
    foreign_control: str
    permitted_seats: tuple[str, ...]
    tenancy: str
    network: str
    account: str
    certifications: tuple[str, ...]
    max_retention_days: int
    training_allowed: bool
    obligations: tuple[str, ...]

    def to_input(self) -> dict[str, Any]:
        """The part of the terms that policies read below ``input.tenant``."""
        return {
            "foreign_control": self.foreign_control,
            "permitted_seats": list(self.permitted_seats),
            "tenancy": self.tenancy,
            "network": self.network,
            "account": self.account,
            "certifications": list(self.certifications),
            "max_retention_days": self.max_retention_days,
            "training_allowed": self.training_allowed,
        }


def merge(fleet: Fleet, tenant: Tenant, project: Project, sources: tuple[DataSource, ...]) -> Terms:
    """The stricter of everything that applies. A tenant's floors are complete (``policyd.core.fleet.dangling``)."""
    layers = (tenant.floors, project.floors)
    countries = _countries(fleet, tenant.floors.residency, project.floors.residency)
    for source in sources:
        countries &= expand(source.residency, fleet.groups)
    seats = _countries(fleet, tenant.floors.permitted_seats, project.floors.permitted_seats)
    classification = _strictest("classification", layers)
    for source in sources:
        if classification is None or CLASSIFICATION_ORDER[source.classification] > CLASSIFICATION_ORDER[classification]:
            classification = source.classification
    return Terms(
        classification=classification,
        categories=frozenset().union(*(f.categories for f in layers), *(s.categories for s in sources)),
        countries=countries,
        foreign_control=_strictest("foreign_control", layers) or "hard",
        permitted_seats=tuple(sorted(seats)),
        tenancy=_strictest("tenancy", layers) or "dedicated",
        network=_strictest("network", layers) or "private",
        account=_strictest("account", layers) or "ours",
        certifications=tuple(sorted({name for floors in layers for name in floors.certifications or ()})),
        max_retention_days=min((f.max_retention_days for f in layers if f.max_retention_days is not None), default=0),
        training_allowed=all(f.training_allowed is not False for f in layers)
        and tenant.floors.training_allowed is True,
        obligations=tuple(sorted({name for source in sources for name in source.obligations})),
    )


def _countries(fleet: Fleet, *layers: tuple[str, ...] | None) -> frozenset[str]:
    """The intersection of the declared layers; nothing declared at all permits nothing."""
    declared = [expand(names, fleet.groups) for names in layers if names is not None]
    return frozenset.intersection(*declared) if declared else frozenset()


def _strictest(name: str, layers: tuple[Floors, ...]) -> str | None:
    values = [value for floors in layers if (value := getattr(floors, name)) is not None]
    return max(values, key=STRICTNESS[name].__getitem__, default=None)
