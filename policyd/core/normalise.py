"""From what a caller wrote to what policyd decides on: names resolved, defaults filled in, floors applied.

Where a value comes from, first that speaks: the request, the project's defaults, the tenant's, the fleet's, and last
``FALLBACK``. Floors are no defaults: they hold whatever the request says, and a value below one is ``Loosens``.

Rules: the caller cannot choose its law. Residency intersects; classification takes the stricter and, when nobody says
anything, the strictest; a request that names no data source is taken to use all that its project may use. Every name
must exist; a name that does not is an error with the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from policyd.core.fleet import DataSource, Defaults, Fleet, Model, Project, Tenant
from policyd.core.places import UnknownPlace, expand_one
from policyd.core.principal import Principal
from policyd.core.quantities import ceil_div
from policyd.core.terms import Terms, merge
from policyd.core.workload import CLASSIFICATION_ORDER, Classification, Workload, WorkloadRequest
from policyd.errors import Finding, Forbidden, Loosens, RequestError, UnknownName

T = TypeVar("T")

FALLBACK: Final[Mapping[str, Any]] = {
    "urgency": "standard",
    "traffic": "steady",
    "task": "other",
    "memory_bound": False,
    "input_tokens": 1_024,
    "max_output_tokens": 1_024,
    "requests_per_hour": 60,
    "duration_hours": 1,
}
"""What a field means when request, project, tenant and fleet are all silent."""


@dataclass(frozen=True, slots=True)
class Normalised:
    """A workload with the terms that bind it."""

    workload: Workload
    terms: Terms


def normalise(request: WorkloadRequest, principal: Principal, fleet: Fleet) -> Normalised:
    """The workload that a request means to this principal on this fleet.

    Raises ``RequestError`` (a needed field is missing), ``UnknownName``, ``Forbidden`` (tenant, environment or data
    source that the identity or project may not use), ``Loosens`` (a value below its floor).
    """
    tenant = _tenant(request, principal, fleet)
    project = _project(request, tenant)
    defaults = (project.defaults, tenant.defaults, fleet.document.defaults)
    environment = _environment(request, project, defaults)
    model = known(fleet.models, request.model, "model", "workload.model")
    sources = _sources(request, tenant, project, fleet)
    terms = merge(fleet, tenant, project, sources)
    demand = {name: _first(name, request.demand, [d.demand for d in defaults]) for name in _DEMAND}
    if request.demand.hourly is not None and request.demand.requests_per_hour is None:
        demand["requests_per_hour"] = ceil_div(sum(request.demand.hourly), len(request.demand.hourly))
    if request.demand.max_output_tokens is None and model.max_output_tokens is not None:
        demand["max_output_tokens"] = min(demand["max_output_tokens"], model.max_output_tokens)
    workload = Workload(
        scope=request.scope or "request",
        tenant=tenant.name,
        project=project.name,
        environment=environment,
        model=model.name,
        model_version=_version(request, model, environment),
        classification=_classification(request, terms, fleet),
        categories=tuple(sorted(terms.categories | set(request.data.categories or ()))),
        permitted_countries=_countries(request, terms, fleet),
        sources=tuple(sorted(source.name for source in sources)),
        sla_class=_sla_class(request, tenant, fleet, defaults),
        accelerators=tuple(sorted(set(request.resources.accelerators or ()))),
        gpu_count=request.resources.gpu_count or 0,
        gpu_memory_gib=request.resources.gpu_memory_gib or 0,
        labels=tuple(sorted(request.labels.items())),
        **{name: _first(name, request.profile, [d.profile for d in defaults]) for name in _PROFILE},
        **demand,
    )
    return Normalised(workload, terms)


_PROFILE: Final = ("urgency", "traffic", "task", "memory_bound")
_DEMAND: Final = ("input_tokens", "max_output_tokens", "requests_per_hour", "duration_hours")


def known(things: Mapping[str, T], name: str, noun: str, where: str) -> T:
    """The thing of that name; raises ``UnknownName`` with the nearest known name."""
    thing = things.get(name)
    if thing is None:
        hint = nearest(name, things)
        raise UnknownName(f"unknown {noun} {name!r}{hint}", findings=[Finding(where, f"unknown {noun} {name!r}{hint}")])
    return thing


def nearest(name: str, names: Iterable[str]) -> str:
    """``; did you mean …?`` for the nearest of the names, or nothing."""
    listed = list(names)
    # A name cut short, as `llama` for `llama-3.1-70b-instruct`, is far from the whole one by its letters.
    near = difflib.get_close_matches(name, listed, n=1, cutoff=0.5) or [
        known for known in sorted(listed) if len(name) > 2 and name in known
    ]
    return f"; did you mean {near[0]!r}?" if near else ""


def _tenant(request: WorkloadRequest, principal: Principal, fleet: Fleet) -> Tenant:
    name, tenants = request.tenant, principal.tenants
    if name is None:
        own = tenants if tenants is not None else frozenset(fleet.tenants)
        if len(own) != 1:
            raise RequestError(
                "the identity does not settle the tenant: name one",
                findings=[Finding("workload.tenant", "required for this identity")],
            )
        name = next(iter(own))
    if tenants is not None and name not in tenants:
        raise Forbidden(f"{principal.name!r} may not act for tenant {name!r}")
    return known(fleet.tenants, name, "tenant", "workload.tenant")


def _project(request: WorkloadRequest, tenant: Tenant) -> Project:
    projects = {project.name: project for project in tenant.projects}
    name = request.project or tenant.default_project
    if name is None:
        if len(projects) != 1:
            raise RequestError(
                f"tenant {tenant.name!r} has several projects and no default: name one of {sorted(projects)}",
                findings=[Finding("workload.project", "required for this tenant")],
            )
        return tenant.projects[0]
    return known(projects, name, "project", "workload.project")


def _environment(request: WorkloadRequest, project: Project, defaults: Sequence[Defaults]) -> str:
    named = [d.environment for d in defaults if d.environment is not None and d.environment in project.environments]
    environment = request.environment or next(iter(named), None)
    if environment is None and len(project.environments) == 1:
        environment = project.environments[0]
    if environment is None:
        raise RequestError(
            f"project {project.name!r} has several environments and no default: name one",
            findings=[Finding("workload.environment", f"required; one of {sorted(project.environments)}")],
        )
    if environment not in project.environments:
        raise Forbidden(
            f"project {project.name!r} has no environment {environment!r}, only {sorted(project.environments)}",
            findings=[Finding("workload.environment", "not permitted to this project")],
        )
    return environment


def _version(request: WorkloadRequest, model: Model, environment: str) -> str:
    if request.model_version is not None:
        versions = {version.version: version for version in model.versions}
        return known(versions, request.model_version, f"version of {model.name}", "workload.model_version").version
    approved = [version for version in model.versions if environment in version.approved_in]
    return (approved or model.versions)[0].version


def _sources(request: WorkloadRequest, tenant: Tenant, project: Project, fleet: Fleet) -> tuple[DataSource, ...]:
    # An empty list names none, just as silence does: with it, a caller would shed every duty of its data.
    names = tuple(sorted(set(request.data.sources or ()))) or project.sources
    # What only other tenants use does not exist here, so that no error tells of their data.
    usable = {name: fleet.data_sources[name] for one in tenant.projects for name in one.sources}
    found = []
    for name in names:
        source = known(usable, name, "data source", "workload.data.sources")
        if name not in project.sources:
            raise Forbidden(
                f"project {project.name!r} may not use data source {name!r}",
                findings=[Finding("workload.data.sources", f"permitted: {sorted(project.sources)}")],
            )
        found.append(source)
    return tuple(found)


def _classification(request: WorkloadRequest, terms: Terms, fleet: Fleet) -> str:
    written, floor = request.data.classification, terms.classification
    if written is None:
        return floor or Classification.RESTRICTED.value
    given = known(fleet.classifications, written, "classification", "workload.data.classification").value
    if floor is not None and CLASSIFICATION_ORDER[given] < CLASSIFICATION_ORDER[floor]:
        raise Loosens(
            f"classification {written!r} is below the floor {floor!r} of this project or its data",
            findings=[Finding("workload.data.classification", f"at least {floor!r}")],
        )
    return given


def _countries(request: WorkloadRequest, terms: Terms, fleet: Fleet) -> tuple[str, ...]:
    if request.data.residency is None:
        return tuple(sorted(terms.countries))
    asked: set[str] = set()
    for name in request.data.residency:
        try:
            countries = expand_one(name, fleet.groups)
        except UnknownPlace as unknown:
            raise UnknownName(str(unknown), findings=[Finding("workload.data.residency", str(unknown))]) from None
        if not countries & terms.countries:
            raise Loosens(
                f"residency {name!r} lies outside the countries that this tenant, project and data permit",
                findings=[Finding("workload.data.residency", f"permitted: {sorted(terms.countries)}")],
            )
        asked |= countries
    return tuple(sorted(asked & terms.countries))


def _sla_class(request: WorkloadRequest, tenant: Tenant, fleet: Fleet, defaults: Sequence[Defaults]) -> str:
    name = request.sla_class or next((d.sla_class for d in defaults if d.sla_class in tenant.sla_classes), None)
    if name is None:
        raise RequestError(
            f"tenant {tenant.name!r} has no default SLA class: name one of {sorted(tenant.sla_classes)}",
            findings=[Finding("workload.sla_class", "required for this tenant")],
        )
    known(fleet.sla_classes, name, "SLA class", "workload.sla_class")
    if name not in tenant.sla_classes:
        raise Loosens(
            f"SLA class {name!r} is not open to tenant {tenant.name!r}",
            findings=[Finding("workload.sla_class", f"permitted: {sorted(tenant.sla_classes)}")],
        )
    return name


def _first(name: str, given: object, defaults: Sequence[object]) -> Any:
    for layer in (given, *defaults):
        value = getattr(layer, name)
        if value is not None:
            return value
    return FALLBACK[name]
