"""A logged workload as the candidate's fleet would have it: names looked up again, its floors applied.

The record has the workload as it was normalised, and not the request. What a silent request was given by the fleet of
its time (residency, classification, categories, data sources, the model's version) is given anew by the candidate's
fleet, so that a fleet that loosens a floor shows it; everything else that the record says counts as asked for, and
floors only tighten it. With the fleet of its time the workload comes out as it was.

Rules: a name that the candidate's fleet does not have refuses the request, as it would refuse it live. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policyd.core.fleet import DataSource, Fleet, Model, Project, Tenant
from policyd.core.normalise import Normalised, known
from policyd.core.terms import Terms, merge
from policyd.core.workload import CLASSIFICATION_ORDER, Classification, Workload
from policyd.errors import Forbidden, PolicydError


def carried(workload: Workload, was: Fleet | None, now: Fleet) -> Normalised:
    """The workload on ``now``; ``was`` is the fleet that it was normalised on, None when nobody has that any more.

    Raises ``UnknownName`` and ``Forbidden``, as ``policyd.core.normalise`` does.
    """
    tenant = known(now.tenants, workload.tenant, "tenant", "workload.tenant")
    project = known({each.name: each for each in tenant.projects}, workload.project, "project", "workload.project")
    if workload.environment not in project.environments:
        raise Forbidden(f"project {project.name!r} has no environment {workload.environment!r}")
    model = known(now.models, workload.model, "model", "workload.model")
    known(now.sla_classes, workload.sla_class, "SLA class", "workload.sla_class")
    if workload.sla_class not in tenant.sla_classes:
        raise Forbidden(f"SLA class {workload.sla_class!r} is not open to tenant {tenant.name!r}")
    before = None if was is None or was.digest == now.digest else _silent(workload, was)
    names = project.sources if before is not None and before.all_sources else workload.sources
    sources = _sources(names, project, now)
    terms = merge(now, tenant, project, sources)
    countries, classification, categories, version = _given(workload, terms, model, before)
    known({each.version: each for each in model.versions}, version, f"version of {model.name}", "model_version")
    return Normalised(
        workload._replace(
            sources=tuple(sorted(source.name for source in sources)),
            permitted_countries=countries,
            classification=classification,
            categories=categories,
            model_version=version,
        ),
        terms,
    )


@dataclass(frozen=True, slots=True)
class _Silent:
    """What a silent request was given: terms, the version of the model, and whether it was all data of the project."""

    terms: Terms
    version: str | None
    all_sources: bool


def _silent(workload: Workload, was: Fleet) -> _Silent | None:
    """None when the fleet of its time does not explain the workload."""
    tenant: Tenant | None = was.tenants.get(workload.tenant)
    project = None if tenant is None else tenant.project(workload.project)
    model = was.models.get(workload.model)
    if tenant is None or project is None or model is None:
        return None
    try:
        terms = merge(was, tenant, project, _sources(workload.sources, project, was))
    except PolicydError:
        return None
    return _Silent(terms, _version(model, workload.environment), set(workload.sources) == set(project.sources))


def _given(
    workload: Workload, terms: Terms, model: Model, before: _Silent | None
) -> tuple[tuple[str, ...], str, tuple[str, ...], str]:
    """Countries, classification, categories and version: anew where the request was silent, else as asked."""
    countries = tuple(sorted(set(workload.permitted_countries) & terms.countries))
    classification, floor = workload.classification, terms.classification
    if floor is not None and CLASSIFICATION_ORDER[classification] < CLASSIFICATION_ORDER[floor]:
        classification = floor
    categories = tuple(sorted({*workload.categories, *terms.categories}))
    version = workload.model_version
    if before is None:
        return countries, classification, categories, version
    was = before.terms
    if set(workload.permitted_countries) == was.countries:
        countries = tuple(sorted(terms.countries))
    if workload.classification == (was.classification or Classification.RESTRICTED.value):
        classification = floor or Classification.RESTRICTED.value
    if set(workload.categories) == was.categories:
        categories = tuple(sorted(terms.categories))
    if version == before.version:
        version = _version(model, workload.environment) or version
    return countries, classification, categories, version


def _version(model: Model, environment: str) -> str | None:
    """The one that a request gets that names none; see ``policyd.core.normalise``."""
    approved = [version for version in model.versions if environment in version.approved_in]
    return next((each.version for each in (*approved, *model.versions)), None)


def _sources(names: Sequence[str], project: Project, fleet: Fleet) -> tuple[DataSource, ...]:
    found = []
    for name in names:
        source = known(fleet.data_sources, name, "data source", "workload.data.sources")
        if name not in project.sources:
            raise Forbidden(f"project {project.name!r} may not use data source {name!r}")
        found.append(source)
    return tuple(found)
