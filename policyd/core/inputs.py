"""The input document: all that a policy may read, its shape, and how it is filled from the fleet and a workload.

``input`` has two sides. The **class side** (``workload tenant model sla budget clock``) is the same for every pool; the
**pool side** (``pool serving``) is the same for every workload that asks for one model. A package is evaluated once per
distinct projection, so the two sides are built, projected and checked apart.

Rules: a fact that nobody declared is absent, never null and never a default; numbers that vary per request are size
classes, rounded up; dates are ISO 8601 strings, which compare as text; lists are sorted where order means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from policyd.core.fleet import Fleet, Model, ModelVersion, SlaClass
from policyd.core.places import expand
from policyd.core.pool import Offering, Performance, Pool
from policyd.core.quantities import RATE_CLASSES, size_class
from policyd.core.terms import Terms
from policyd.core.workload import Workload

STRING: Final = "string"
INTEGER: Final = "integer"
BOOLEAN: Final = "boolean"
STRINGS: Final = "strings"
"""A list of strings."""
MAP: Final = "map"
"""An object from strings to strings."""

Shape = str | dict[str, Any] | list[Any]
"""A leaf type, an object with named fields, or (as a list of one shape) a list of such things."""

_LOCATIONS: Final[Shape] = {
    "processing": STRINGS,
    "ingress": STRINGS,
    "storage": STRINGS,
    "weights": STRINGS,
    "support_access": STRINGS,
}

CLASS_SHAPE: Final[dict[str, Any]] = {
    "workload": {
        "scope": STRING,
        "project": STRING,
        "environment": STRING,
        "model_version": STRING,
        "profile": {"urgency": STRING, "traffic": STRING, "task": STRING, "memory_bound": BOOLEAN},
        "data": {
            "classification": STRING,
            "categories": STRINGS,
            "permitted_countries": STRINGS,
            "sources": STRINGS,
            "obligations": STRINGS,
        },
        "resources": {"accelerators": STRINGS, "gpu_count": INTEGER, "gpu_memory_gib": INTEGER},
        "demand": {"input_size": INTEGER, "output_size": INTEGER, "requests_per_hour_size": INTEGER},
        "labels": MAP,
    },
    "tenant": {
        "name": STRING,
        "seat": STRING,
        "sector": STRING,
        "foreign_control": STRING,
        "permitted_seats": STRINGS,
        "tenancy": STRING,
        "network": STRING,
        "account": STRING,
        "certifications": STRINGS,
        "max_retention_days": INTEGER,
        "training_allowed": BOOLEAN,
    },
    "model": {
        "name": STRING,
        "version": STRING,
        "digest": STRING,
        "approved_in": STRINGS,
        "permitted_tasks": STRINGS,
        "risk_tier": STRING,
        "validation_expires": STRING,
        "memory_gib": INTEGER,
    },
    "sla": {
        "name": STRING,
        "ttft_p95_ms": INTEGER,
        "ttft_p99_ms": INTEGER,
        "stream_tokens_per_s": INTEGER,
        "availability_ppm": INTEGER,
        "cold_start_allowed": BOOLEAN,
        "contention_allowed": BOOLEAN,
        "interruption_allowed": BOOLEAN,
    },
    "budget": {"crossed_percent": INTEGER},
    "clock": {"hour_of_week": INTEGER, "date": STRING},
}

POOL_SHAPE: Final[dict[str, Any]] = {
    "pool": {
        "id": STRING,
        "kind": STRING,
        "group": STRING,
        "provider": STRING,
        "region": STRING,
        "account": STRING,
        "network": STRING,
        "tenancy": STRING,
        "dedicated_to": STRINGS,
        "hardware": STRING,
        "locations": _LOCATIONS,
        "region_binding": STRING,
        "operator": {"name": STRING, "seat": STRING, "parent_seat": STRING},
        "sub_processors": [{"name": STRING, "seat": STRING, "countries": STRINGS}],
        "certifications": [{"name": STRING, "expires": STRING}],
        "retention_days": INTEGER,
        "trains_on_data": BOOLEAN,
        "accelerator": {"name": STRING, "memory_gib": INTEGER},
        "gpu_count": INTEGER,
        "cold_start_ms": INTEGER,
        "scale_to_zero": BOOLEAN,
        "contended": BOOLEAN,
        "interruption_per_hour_ppm": INTEGER,
        "availability_ppm": INTEGER,
        "evidence": {"source": STRING, "verified_by": STRING, "checked": STRING, "expires": STRING},
        "commitment": {"kind": STRING, "start": STRING, "end": STRING, "unused_gpus": INTEGER},
        "labels": MAP,
    },
    "serving": {
        "version": STRING,
        "digest": STRING,
        "verified_by": STRING,
        "max_context_tokens": INTEGER,
        "gpus": INTEGER,
        "memory_gib": INTEGER,
        "ttft_p95_ms": INTEGER,
        "ttft_p99_ms": INTEGER,
        "stream_tokens_per_s": INTEGER,
    },
}

INPUT_SHAPE: Final[dict[str, Any]] = {**CLASS_SHAPE, **POOL_SHAPE}


def class_side(
    workload: Workload, terms: Terms, fleet: Fleet, crossed_percent: int | None, hour_of_week: int, date: str
) -> dict[str, Any]:
    """The class side of the input document for a normalised workload whose names all exist in the fleet.

    ``crossed_percent`` is the highest budget threshold crossed, None when it is not known (then it is absent).
    """
    tenant = fleet.tenants[workload.tenant]
    model = fleet.models[workload.model]
    return {
        "workload": _workload_side(workload, terms),
        "tenant": {"name": tenant.name, "seat": tenant.seat, "sector": tenant.sector, **terms.to_input()},
        "model": _model_side(model, workload.model_version),
        "sla": _sla_side(fleet.sla_classes[workload.sla_class]),
        "budget": _declared({"crossed_percent": crossed_percent}),
        "clock": {"hour_of_week": hour_of_week, "date": date},
    }


def _workload_side(workload: Workload, terms: Terms) -> dict[str, Any]:
    return {
        "scope": workload.scope,
        "project": workload.project,
        "environment": workload.environment,
        "model_version": workload.model_version,
        "profile": {
            "urgency": workload.urgency,
            "traffic": workload.traffic,
            "task": workload.task,
            "memory_bound": workload.memory_bound,
        },
        "data": {
            "classification": workload.classification,
            "categories": list(workload.categories),
            "permitted_countries": list(workload.permitted_countries),
            "sources": list(workload.sources),
            "obligations": list(terms.obligations),
        },
        "resources": {
            "accelerators": list(workload.accelerators),
            "gpu_count": workload.gpu_count,
            "gpu_memory_gib": workload.gpu_memory_gib,
        },
        "demand": {
            "input_size": size_class(workload.input_tokens),
            "output_size": size_class(workload.max_output_tokens),
            "requests_per_hour_size": size_class(workload.requests_per_hour, RATE_CLASSES),
        },
        "labels": dict(workload.labels),
    }


def _model_side(model: Model, version_name: str) -> dict[str, Any]:
    version: ModelVersion | None = next((v for v in model.versions if v.version == version_name), None)
    return _declared(
        {
            "name": model.name,
            "version": version_name,
            "digest": version.digest if version else None,
            "approved_in": list(version.approved_in) if version else None,
            "permitted_tasks": None if model.permitted_tasks is None else list(model.permitted_tasks),
            "risk_tier": model.risk_tier,
            "validation_expires": _iso(version.validation_expires) if version else None,
            "memory_gib": model.memory_gib,
        }
    )


def _sla_side(sla: SlaClass) -> dict[str, Any]:
    return sla.model_dump(exclude={"weights"})


def pool_side(pool: Pool, model: str, fleet: Fleet) -> dict[str, Any]:
    """The pool side of the input document: the pool, and how it would serve ``model`` (absent when it does not)."""
    serving = serving_facts(pool, model, fleet)
    side: dict[str, Any] = {"pool": pool_facts(pool)}
    return side if serving is None else {**side, "serving": serving}


def performance_of(pool: Pool, offering: Offering, fleet: Fleet) -> Performance | None:
    """The offering's own performance, else the fleet's profile for its model, accelerator and GPUs, else None."""
    if offering.performance is not None:
        return offering.performance
    if pool.accelerator.name is None or offering.gpus is None:
        return None
    return fleet.profiles.get((offering.model, pool.accelerator.name, offering.gpus))


def pool_facts(pool: Pool) -> dict[str, Any]:
    """``input.pool``: what is declared of a pool, whatever the model."""
    facts = pool.model_dump(
        mode="json",
        exclude={"price", "offerings", "capacity", "interruption_overhead_ppm", "commitment"},
        exclude_none=True,
    )
    for key in ("locations", "operator", "accelerator", "evidence"):
        if not facts[key]:
            del facts[key]
    if pool.commitment is not None:
        kept = pool.commitment.model_dump(mode="json", include={"kind", "start", "end", "unused_gpus"})
        facts["commitment"] = kept
    return facts


def serving_facts(pool: Pool, model: str, fleet: Fleet) -> dict[str, Any] | None:
    """``input.serving``: how the pool would serve ``model``; None when it does not."""
    offering = pool.offering(model)
    if offering is None:
        return None
    performance = performance_of(pool, offering, fleet)
    memory = pool.accelerator.memory_gib
    return _declared(
        {
            "version": offering.version,
            "digest": offering.digest,
            "verified_by": offering.verified_by,
            "max_context_tokens": offering.max_context_tokens,
            "gpus": offering.gpus,
            "memory_gib": None if memory is None or offering.gpus is None else memory * offering.gpus,
            "ttft_p95_ms": performance.ttft_p95_ms if performance else None,
            "ttft_p99_ms": performance.ttft_p99_ms if performance else None,
            "stream_tokens_per_s": performance.stream_tokens_per_s if performance else None,
        }
    )


def permitted_seats(names: Sequence[str], fleet: Fleet) -> tuple[str, ...]:
    """Seats of operators that a tenant accepts, groups expanded, sorted."""
    return tuple(sorted(expand(names, fleet.groups)))


def _declared(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value is not None}


def _iso(value: Any) -> str | None:
    return None if value is None else value.isoformat()


def shape_at(path: Sequence[str], shape: Shape = INPUT_SHAPE) -> Shape | None:
    """The shape below a path of the input document, or None when policies may not read there."""
    for key in path:
        if isinstance(shape, dict) and key in shape:
            shape = shape[key]
        elif shape == MAP:
            return STRING
        else:
            return None
    return shape


def missing_facts(
    document: Mapping[str, Any], path: tuple[str, ...], optional: frozenset[tuple[str, ...]]
) -> Iterator[tuple[str, ...]]:
    """Every path at or below ``path`` that is absent, null or of another type than its shape, unless optional.

    An optional path excuses absence of itself and so of everything below; what is present must still have its type.
    """
    shape: Shape | None = INPUT_SHAPE
    value: Any = document
    for depth, key in enumerate(path):
        at = path[: depth + 1]
        if isinstance(shape, dict):
            shape = shape.get(key)
        elif shape == MAP:
            shape = STRING
        else:
            shape = None
        value = value.get(key) if isinstance(value, Mapping) else None
        if value is None or shape is None:
            if not any(path[: len(excused)] == excused for excused in optional):
                yield at
            return
    if shape is not None:
        yield from _faults(value, shape, path, optional)


def _faults(
    value: Any, shape: Shape, path: tuple[str, ...], optional: frozenset[tuple[str, ...]]
) -> Iterator[tuple[str, ...]]:
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            yield path
            return
        for key, below in shape.items():
            at = (*path, key)
            if value.get(key) is None:
                if at not in optional:
                    yield at
            else:
                yield from _faults(value[key], below, at, optional)
    elif isinstance(shape, list):
        if not isinstance(value, list | tuple):
            yield path
            return
        for item in value:
            yield from _faults(item, shape[0], path, optional)
    elif not _LEAF_CHECKS[shape](value):
        yield path


_LEAF_CHECKS: Final = {
    STRING: lambda value: isinstance(value, str),
    INTEGER: lambda value: isinstance(value, int) and not isinstance(value, bool),
    BOOLEAN: lambda value: isinstance(value, bool),
    STRINGS: lambda value: isinstance(value, list | tuple) and all(isinstance(item, str) for item in value),
    MAP: lambda value: isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values()),
}


def json_schema(shape: Shape = INPUT_SHAPE) -> dict[str, Any]:
    """The shape as JSON Schema, for ``opa check --schema`` and for editors."""
    if isinstance(shape, dict):
        return {
            "type": "object",
            "properties": {key: json_schema(below) for key, below in shape.items()},
            "additionalProperties": False,
        }
    if isinstance(shape, list):
        return {"type": "array", "items": json_schema(shape[0])}
    return dict(_LEAF_SCHEMAS[shape])


_LEAF_SCHEMAS: Final[Mapping[str, dict[str, Any]]] = {
    STRING: {"type": "string"},
    INTEGER: {"type": "integer"},
    BOOLEAN: {"type": "boolean"},
    STRINGS: {"type": "array", "items": {"type": "string"}},
    MAP: {"type": "object", "additionalProperties": {"type": "string"}},
}
