"""The fleet: every declared fact that decisions stand on, as one immutable value with a digest.

Loading from files is ``policyd.revisions.fleet_files``; this module only says what a fleet is and that it holds
together: ids unique, every name that is referred to exists.

Rules: floors are explicit (a tenant without a declared residency does not load); defaults never protect less than
floors; what changes by the minute is in ``policyd.core.facts``, not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from policyd.core.budgets import Budget, Zone, budget_findings
from policyd.core.places import COUNTRIES, GROUPS, UnknownPlace, expand, expand_one
from policyd.core.pool import Amount, Count, Country, Declared, Performance, Pool, Text
from policyd.core.workload import (
    CLASSIFICATION_ORDER,
    Category,
    Classification,
    DemandRequest,
    Environment,
    Name,
    ProfileRequest,
    Task,
)

Level = Literal["public", "internal", "confidential", "restricted"]


class ModelVersion(Declared):
    """One version of a model: the digest of its weights, where it is approved, until when its validation counts."""

    version: Name
    digest: Name | None = None
    approved_in: tuple[Environment, ...] = ()
    validated_on: date | None = None
    validation_expires: date | None = None


class Model(Declared):
    """A model of the registry. ``versions`` are newest first; an environment's default is the first approved in it."""

    name: Name
    versions: tuple[ModelVersion, ...] = Field(min_length=1)
    parameters_billion: Count | None = None
    memory_gib: Count | None = None
    max_context_tokens: Count | None = None
    max_output_tokens: Count | None = None
    permitted_tasks: tuple[Task, ...] | None = None
    risk_tier: Literal["minimal", "limited", "high"] | None = None
    owner: Text | None = None
    source: Text | None = None


class DataSource(Declared):
    """Where data comes from: what it is worth, where it may go, who owns it, what using it obliges to."""

    name: Name
    classification: Level
    categories: tuple[Category, ...] = ()
    residency: tuple[Name, ...] = Field(min_length=1)
    owner: Text
    obligations: tuple[Name, ...] = ()


class Floors(Declared):
    """The least protection of a tenant or project. A request, and a project under its tenant, may only tighten.

    ``foreign_control``: how an operator or parent seated outside ``permitted_seats`` counts. ``tenancy`` is the least
    isolated form that is accepted (``shared`` accepts all). Tenants state every field, projects what they tighten.
    """

    classification: Level | None = None
    categories: tuple[Category, ...] = ()
    residency: tuple[Name, ...] | None = Field(default=None, min_length=1)
    foreign_control: Literal["hard", "soft", "off"] | None = None
    permitted_seats: tuple[Name, ...] | None = Field(default=None, min_length=1)
    tenancy: Literal["dedicated", "single_tenant", "shared"] | None = None
    network: Literal["private", "public"] | None = None
    account: Literal["ours", "provider"] | None = None
    certifications: tuple[Name, ...] | None = None
    max_retention_days: Count | None = None
    training_allowed: bool | None = None


class Defaults(Declared):
    """What a request that says nothing means. Never a floor: the request may say something else."""

    environment: Environment | None = None
    sla_class: Name | None = None
    profile: ProfileRequest = ProfileRequest()
    demand: DemandRequest = DemandRequest()


class Project(Declared):
    """A project of a tenant: its environments, floors above the tenant's, defaults and budgets."""

    name: Name
    environments: tuple[Environment, ...] = Field(min_length=1)
    floors: Floors = Floors()
    defaults: Defaults = Defaults()
    sources: tuple[Name, ...] = ()
    budget: Budget | None = None
    budgets: tuple[Budget, ...] = ()
    environment_budgets: dict[Environment, tuple[Budget, ...]] = Field(default_factory=dict)


class Tenant(Declared):
    """Who places workloads. ``zone`` is the IANA time zone in which its hours of the week are counted."""

    name: Name
    title: Text
    seat: Country
    sector: Literal["bank", "health", "public", "startup", "research", "retail", "industry", "media", "other"]
    zone: Zone
    floors: Floors
    defaults: Defaults = Defaults()
    sla_classes: tuple[Name, ...] = Field(min_length=1)
    default_project: Name | None = None
    projects: tuple[Project, ...] = Field(min_length=1)
    budget: Budget | None = None
    budgets: tuple[Budget, ...] = ()

    def project(self, name: str) -> Project | None:
        """The project of that name, or None."""
        for project in self.projects:
            if project.name == name:
                return project
        return None


class Weights(Declared):
    """How much each component of a pool's score counts, in thousandths; they add up to 1000."""

    control: Annotated[int, Field(ge=0, le=1000)]
    availability: Annotated[int, Field(ge=0, le=1000)]
    price: Annotated[int, Field(ge=0, le=1000)]
    latency: Annotated[int, Field(ge=0, le=1000)]
    preference: Annotated[int, Field(ge=0, le=1000)]

    def model_post_init(self, context: Any) -> None:
        """Raise ValueError unless the five add up to 1000."""
        total = self.control + self.availability + self.price + self.latency + self.preference
        if total != 1000:
            raise ValueError(f"the weights add up to {total}, not 1000")


class SlaClass(Declared):
    """A promise: time to first token, speed of one stream, availability, and what may happen on the way."""

    name: Name
    ttft_p95_ms: Count
    ttft_p99_ms: Count
    stream_tokens_per_s: Count
    availability_ppm: Annotated[int, Field(ge=0, le=1_000_000)]
    cold_start_allowed: bool
    contention_allowed: bool
    interruption_allowed: bool
    weights: Weights


class Profile(Declared):
    """Measured or published speed of a model on ``gpus`` accelerators of one kind."""

    model: Name
    accelerator: Name
    gpus: Annotated[int, Field(ge=1, le=1024)]
    performance: Performance


class Currency(Declared):
    """What one unit of a currency is worth in USD, with source and date."""

    usd: Amount
    source: Text
    checked: date


class FleetDocument(Declared):
    """The whole content of a fleet directory, merged. Field names are the top-level keys of the files."""

    pools: tuple[Pool, ...] = ()
    models: tuple[Model, ...] = ()
    tenants: tuple[Tenant, ...] = ()
    sla_classes: tuple[SlaClass, ...] = ()
    profiles: tuple[Profile, ...] = ()
    data_sources: tuple[DataSource, ...] = ()
    currencies: dict[Annotated[str, Field(pattern=r"^[A-Z]{3}$")], Currency] = Field(default_factory=dict)
    place_groups: dict[Name, tuple[Name, ...]] = Field(default_factory=dict)
    classification_map: dict[Name, Classification] = Field(default_factory=dict, max_length=64)
    defaults: Defaults = Defaults()
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True)
class Fleet:
    """A fleet revision: the document, its content address, and look-ups by name (built once, never changed)."""

    document: FleetDocument
    digest: str
    commit: str | None = None
    groups: Mapping[str, frozenset[str]] = field(default_factory=lambda: GROUPS)

    @cached_property
    def pools(self) -> Mapping[str, Pool]:
        """Pools by id, in order of id."""
        return {pool.id: pool for pool in sorted(self.document.pools, key=lambda pool: pool.id)}

    @cached_property
    def models(self) -> Mapping[str, Model]:
        """Models by name."""
        return {model.name: model for model in self.document.models}

    @cached_property
    def tenants(self) -> Mapping[str, Tenant]:
        """Tenants by name."""
        return {tenant.name: tenant for tenant in self.document.tenants}

    @cached_property
    def classifications(self) -> Mapping[str, Classification]:
        """Our words and the company's own, each with what it means."""
        return {**{word.value: word for word in Classification}, **self.document.classification_map}

    @cached_property
    def sla_classes(self) -> Mapping[str, SlaClass]:
        """SLA classes by name."""
        return {sla.name: sla for sla in self.document.sla_classes}

    @cached_property
    def data_sources(self) -> Mapping[str, DataSource]:
        """Data sources by name."""
        return {source.name: source for source in self.document.data_sources}

    @cached_property
    def profiles(self) -> Mapping[tuple[str, str, int], Performance]:
        """Performance by (model, accelerator, GPUs of one replica)."""
        return {(p.model, p.accelerator, p.gpus): p.performance for p in self.document.profiles}


def dangling(document: FleetDocument) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every reference to a name that does not exist and every id given twice: location in the document, message."""
    models = {model.name for model in document.models}
    classes = {sla.name for sla in document.sla_classes}
    sources = {source.name for source in document.data_sources}
    tenants = {tenant.name for tenant in document.tenants}
    yield from _twice(document)
    yield from _places(document)
    for word in document.classification_map:
        if word in CLASSIFICATION_ORDER:
            yield ("classification_map", word), f"{word!r} is known already and cannot be redefined"
    if document.defaults.sla_class is not None and document.defaults.sla_class not in classes:
        yield ("defaults", "sla_class"), f"unknown SLA class {document.defaults.sla_class!r}"
    for i, pool in enumerate(document.pools):
        for j, name in enumerate(pool.dedicated_to or ()):
            if name not in tenants:
                yield ("pools", i, "dedicated_to", j), f"unknown tenant {name!r}"
        for j, offering in enumerate(pool.offerings):
            if offering.model not in models:
                yield ("pools", i, "offerings", j, "model"), f"unknown model {offering.model!r}"
    for i, profile in enumerate(document.profiles):
        if profile.model not in models:
            yield ("profiles", i, "model"), f"unknown model {profile.model!r}"
    for i, tenant in enumerate(document.tenants):
        yield from _dangling_tenant(("tenants", i), tenant, classes, sources)
    yield from _currencies(document)
    yield from budget_findings(document)


_STATED_FLOORS: Final = (
    "residency",
    "foreign_control",
    "permitted_seats",
    "tenancy",
    "network",
    "account",
    "certifications",
    "max_retention_days",
    "training_allowed",
)
"""What every tenant states. A classification need not be: without one, the strictest holds."""


def _dangling_tenant(
    at: tuple[str | int, ...], tenant: Tenant, classes: set[str], sources: set[str]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for j, name in enumerate(tenant.sla_classes):
        if name not in classes:
            yield (*at, "sla_classes", j), f"unknown SLA class {name!r}"
    for name in _STATED_FLOORS:
        if getattr(tenant.floors, name) is None:
            yield (*at, "floors"), f"tenant {tenant.name!r} does not state its floor {name!r}"
    if tenant.default_project is not None and tenant.project(tenant.default_project) is None:
        yield (*at, "default_project"), f"unknown project {tenant.default_project!r}"
    if tenant.defaults.sla_class is not None and tenant.defaults.sla_class not in tenant.sla_classes:
        yield (*at, "defaults", "sla_class"), f"{tenant.defaults.sla_class!r} is not among the tenant's SLA classes"
    for j, project in enumerate(tenant.projects):
        yield from _dangling_project((*at, "projects", j), project, tenant, sources)


def _dangling_project(
    at: tuple[str | int, ...], project: Project, tenant: Tenant, sources: set[str]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if project.defaults.sla_class is not None and project.defaults.sla_class not in tenant.sla_classes:
        yield (*at, "defaults", "sla_class"), "not among the tenant's SLA classes"
    if project.defaults.environment is not None and project.defaults.environment not in project.environments:
        yield (*at, "defaults", "environment"), "not among the project's environments"
    for k, source in enumerate(project.sources):
        if source not in sources:
            yield (*at, "sources", k), f"unknown data source {source!r}"


def _twice(document: FleetDocument) -> Iterator[tuple[tuple[str | int, ...], str]]:
    named: list[tuple[str, list[Any]]] = [
        ("pools", [pool.id for pool in document.pools]),
        ("models", [model.name for model in document.models]),
        ("tenants", [tenant.name for tenant in document.tenants]),
        ("sla_classes", [sla.name for sla in document.sla_classes]),
        ("data_sources", [source.name for source in document.data_sources]),
        ("profiles", [(profile.model, profile.accelerator, profile.gpus) for profile in document.profiles]),
    ]
    for key, names in named:
        seen: set[Any] = set()
        for i, name in enumerate(names):
            if name in seen:
                yield (key, i), f"{name!r} is declared twice"
            seen.add(name)
    for i, pool in enumerate(document.pools):
        offered = [offering.model for offering in pool.offerings]
        for j, name in enumerate(offered):
            if name in offered[:j]:
                yield ("pools", i, "offerings", j), f"pool {pool.id!r} offers {name!r} twice"
    for i, tenant in enumerate(document.tenants):
        names = [project.name for project in tenant.projects]
        for j, name in enumerate(names):
            if name in names[:j]:
                yield ("tenants", i, "projects", j), f"project {name!r} is declared twice"


def place_groups(document: FleetDocument) -> Mapping[str, frozenset[str]]:
    """The known groups of countries, and those that the fleet declares (of countries and known groups)."""
    return {**GROUPS, **{name: expand(members) for name, members in document.place_groups.items()}}


def _places(document: FleetDocument) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Names that are neither a country nor a group, and known groups that the fleet would redefine."""
    known: dict[str, frozenset[str]] = dict(GROUPS)
    for name, members in document.place_groups.items():
        if name in GROUPS or name in COUNTRIES:
            yield ("place_groups", name), f"{name!r} is known already and cannot be redefined"
        yield from _unknown_places(("place_groups", name), members, GROUPS)
        known.setdefault(name, frozenset())
    for i, source in enumerate(document.data_sources):
        yield from _unknown_places(("data_sources", i, "residency"), source.residency, known)
    for i, tenant in enumerate(document.tenants):
        floors: list[tuple[tuple[str | int, ...], Floors]] = [(("tenants", i, "floors"), tenant.floors)]
        floors += [(("tenants", i, "projects", j, "floors"), p.floors) for j, p in enumerate(tenant.projects)]
        for at, floor in floors:
            yield from _unknown_places((*at, "residency"), floor.residency or (), known)
            yield from _unknown_places((*at, "permitted_seats"), floor.permitted_seats or (), known)


def _unknown_places(
    at: tuple[str | int, ...], names: tuple[str, ...], known: Mapping[str, frozenset[str]]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for i, name in enumerate(names):
        try:
            expand_one(name, known)
        except UnknownPlace as unknown:
            yield (*at, i), str(unknown)


def _currencies(document: FleetDocument) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for i, pool in enumerate(document.pools):
        prices = [(("price",), pool.price)] + [
            (("offerings", j, "price"), offering.price) for j, offering in enumerate(pool.offerings)
        ]
        for where, price in prices:
            if price is not None and price.currency != "USD" and price.currency not in document.currencies:
                yield ("pools", i, *where, "currency"), f"no rate for {price.currency} under `currencies`"
