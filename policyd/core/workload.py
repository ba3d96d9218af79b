"""What wants to run: the request as a caller writes it, and the workload as policyd understands it.

``WorkloadRequest`` mirrors the HTTP contract: only ``model`` is required, a field that is not given is None, null and
unknown fields are refused. ``Workload`` is the result of ``policyd.core.normalise``: every floor applied, every group
expanded, every number exact.

Rules: tuples are sorted and unique, so that equal workloads have equal bytes; numbers are integers with a ceiling.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Scope = Literal["request", "deployment"]
Environment = Literal["experiment", "dev", "staging", "prod"]
Urgency = Literal["interactive", "standard", "batch"]
Traffic = Literal["steady", "bursty", "intermittent", "scheduled"]
Task = Literal["chat", "completion", "rag", "embedding", "vision", "speech", "other"]

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A name from the fleet: ASCII only, so that no look-alike letter passes for another tenant."""

LabelValue = Annotated[str, StringConstraints(max_length=256)]


class Classification(StrEnum):
    """How much harm a leak of the data would do, mildest first."""

    PUBLIC = "public"
    INTERNAL = "internal"
    CONFIDENTIAL = "confidential"
    RESTRICTED = "restricted"


CLASSIFICATION_ORDER: Final[Mapping[str, int]] = {c.value: i for i, c in enumerate(Classification)}

Category = Literal[
    "personal", "health", "biometric", "financial", "payment", "children", "public_sector", "export_controlled"
]


class Given(BaseModel):
    """Base of everything a caller sends: unknown fields refused, no coercion between types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ProfileRequest(Given):
    """How the workload behaves."""

    urgency: Urgency | None = None
    traffic: Traffic | None = None
    task: Task | None = None
    memory_bound: bool | None = None


class DataRequest(Given):
    """What the workload touches. ``residency`` holds ISO 3166-1 codes or group names.

    ``classification`` is ``public``, ``internal``, ``confidential`` or ``restricted``, or a word of the fleet's
    ``classification_map``.
    """

    classification: Name | None = None
    categories: list[Category] | None = Field(default=None, max_length=16)
    residency: list[Name] | None = Field(default=None, min_length=1, max_length=256)
    sources: list[Name] | None = Field(default=None, max_length=64)


class ResourcesRequest(Given):
    """Lower bounds on hardware; ``accelerators`` are alternatives."""

    accelerators: list[Name] | None = Field(default=None, max_length=32)
    gpu_count: int | None = Field(default=None, ge=1, le=65_536)
    gpu_memory_gib: int | None = Field(default=None, ge=1, le=1_048_576)


class DemandRequest(Given):
    """How much is asked for. ``hourly`` is 168 requests-per-hour figures, Monday 00:00 first, in the tenant's zone."""

    input_tokens: int | None = Field(default=None, ge=0, le=16_777_216)
    max_output_tokens: int | None = Field(default=None, ge=0, le=16_777_216)
    requests_per_hour: int | None = Field(default=None, ge=0, le=1_000_000_000)
    duration_hours: int | None = Field(default=None, ge=1, le=87_840)
    hourly: list[Annotated[int, Field(ge=0, le=1_000_000_000)]] | None = Field(
        default=None, min_length=168, max_length=168
    )


class WorkloadRequest(Given):
    """The workload of ``POST /v1/decisions``, before floors."""

    scope: Scope | None = None
    tenant: Name | None = None
    project: Name | None = None
    environment: Environment | None = None
    model: Name
    model_version: Name | None = None
    profile: ProfileRequest = ProfileRequest()
    data: DataRequest = DataRequest()
    sla_class: Name | None = None
    resources: ResourcesRequest = ResourcesRequest()
    demand: DemandRequest = DemandRequest()
    labels: dict[Name, LabelValue] = Field(default_factory=dict, max_length=32)


LIMIT_MAX: Final = 1_000
"""The longest ranked list."""


class DecisionOptions(Given):
    """``reserve`` asks to hold budget; ``limit`` cuts the ranked list, never the refused one."""

    reserve: bool = True
    limit: int = Field(default=10, ge=1, le=LIMIT_MAX)


class DecisionRequest(Given):
    """Body of ``POST /v1/decisions``."""

    workload: WorkloadRequest
    options: DecisionOptions = DecisionOptions()


class Workload(NamedTuple):
    """A workload with its floors applied. Token and rate figures are exact here and quantised only for policies."""

    scope: str
    tenant: str
    project: str
    environment: str
    model: str
    model_version: str
    urgency: str
    traffic: str
    task: str
    memory_bound: bool
    classification: str
    categories: tuple[str, ...]
    permitted_countries: tuple[str, ...]
    sources: tuple[str, ...]
    sla_class: str
    accelerators: tuple[str, ...]
    gpu_count: int
    gpu_memory_gib: int
    input_tokens: int
    max_output_tokens: int
    requests_per_hour: int
    duration_hours: int
    labels: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The contract's shape of a workload, as normalised."""
        return {
            "scope": self.scope,
            "tenant": self.tenant,
            "project": self.project,
            "environment": self.environment,
            "model": self.model,
            "model_version": self.model_version,
            "profile": {
                "urgency": self.urgency,
                "traffic": self.traffic,
                "task": self.task,
                "memory_bound": self.memory_bound,
            },
            "data": {
                "classification": self.classification,
                "categories": self.categories,
                "residency": self.permitted_countries,
                "sources": self.sources,
            },
            "sla_class": self.sla_class,
            "resources": {
                "accelerators": self.accelerators,
                "gpu_count": self.gpu_count,
                "gpu_memory_gib": self.gpu_memory_gib,
            },
            "demand": {
                "input_tokens": self.input_tokens,
                "max_output_tokens": self.max_output_tokens,
                "requests_per_hour": self.requests_per_hour,
                "duration_hours": self.duration_hours,
            },
            "labels": dict(self.labels),
        }
