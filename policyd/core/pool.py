"""A pool: GPUs that can serve a workload, as declared facts.

A fact that nobody declared is None. No fact that a policy or a price reads has a default: what is not known refuses
(see ``policyd.core.sheet``). Structural fields (``id``, ``kind``, ``group``, ``provider``, ``region``) are required.

Rules: prices are decimals in the files and become integers of nano-USD here; times are dates in UTC.
"""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, StringConstraints, model_validator

from policyd.core.places import COUNTRIES
from policyd.core.workload import Name

Kind = Literal["on_prem", "committed", "on_demand", "spot", "serverless", "api"]
PriceStatus = Literal["list", "contract", "assumed"]

_DECIMAL: Final = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?")


def _known_country(value: object) -> object:
    if isinstance(value, str) and value not in COUNTRIES:
        raise ValueError(f"unknown country {value!r}: use ISO 3166-1 alpha-2, for example GB and not UK")
    return value


def _exact_decimal(value: object) -> object:
    """A YAML float has already lost its digits, so money is written as a quoted string or an integer."""
    if isinstance(value, Decimal):
        return value
    written = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(written, str) or not _DECIMAL.fullmatch(written):
        raise ValueError("write amounts of money as quoted decimals, for example '88.49'")
    return Decimal(written)


Country = Annotated[str, BeforeValidator(_known_country)]
Amount = Annotated[
    Decimal,
    BeforeValidator(_exact_decimal),
    Field(ge=0, le=10_000_000, decimal_places=12),
    PlainSerializer(lambda amount: format(amount, "f"), return_type=str, when_used="json"),
]
"""Money in units of the price's currency."""
Quantity = Annotated[
    Decimal,
    BeforeValidator(_exact_decimal),
    Field(ge=0, le=9_007_199_254_740_991, decimal_places=12),
    PlainSerializer(lambda amount: format(amount, "f"), return_type=str, when_used="json"),
]
"""What a budget may limit: tokens run into the thousands of millions."""
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Ppm = Annotated[int, Field(ge=0, le=1_000_000_000)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=500)]


class Declared(BaseModel):
    """Base of everything in fleet files: unknown keys refused, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Locations(Declared):
    """Every place where data or weights may be, as ISO countries. A serverless input may cross another country."""

    processing: tuple[Country, ...] | None = Field(default=None, min_length=1)
    ingress: tuple[Country, ...] | None = Field(default=None, min_length=1)
    storage: tuple[Country, ...] | None = Field(default=None, min_length=1)
    weights: tuple[Country, ...] | None = Field(default=None, min_length=1)
    support_access: tuple[Country, ...] | None = Field(default=None, min_length=1)


class Operator(Declared):
    """Who runs the pool. An EU region of a US company is exposed to US law through ``parent_seat``."""

    name: Text | None = None
    seat: Country | None = None
    parent_seat: Country | None = None


class SubProcessor(Declared):
    """A company that the operator passes data to, its seat and where it works."""

    name: Text
    seat: Country | None = None
    countries: tuple[Country, ...] | None = None


class Certification(Declared):
    """A certificate with its last valid day."""

    name: Name
    expires: date | None = None


class Accelerator(Declared):
    """One GPU of the pool."""

    name: Name | None = None
    memory_gib: Count | None = None


class Evidence(Declared):
    """Where the declared facts come from, who checked them, when, and until when that check counts."""

    source: Text | None = None
    verified_by: Text | None = None
    checked: date | None = None
    expires: date | None = None


class Price(Declared):
    """What the pool costs.

    ``unit`` says what ``amount`` buys: ``gpu_hour``, ``instance_hour`` (then ``gpus_per_instance`` divides it),
    ``gpu_second``, or ``million_tokens`` (then ``input`` and ``output`` hold the amounts and ``amount`` is absent).
    ``vcpu_second`` and ``gib_second`` are charged beside the GPU for ``vcpus`` and ``ram_gib``. ``marginal`` is the
    amount per ``unit`` that one more hour costs when the hardware is already paid; ``cost_basis`` says which counts.
    A serverless replica stays warm for ``keep_warm_ms`` after its last request, and is billed for it (as most providers
    do) unless ``keep_warm_billed`` is false.
    """

    unit: Literal["gpu_hour", "instance_hour", "gpu_second", "million_tokens"]
    amount: Amount | None = None
    input: Amount | None = None
    output: Amount | None = None
    marginal: Amount | None = None
    cost_basis: Literal["fully_loaded", "marginal"] = "fully_loaded"
    gpus_per_instance: Annotated[int, Field(ge=1, le=1024)] | None = None
    vcpu_second: Amount = Decimal(0)
    vcpus: Count = 0
    gib_second: Amount = Decimal(0)
    ram_gib: Count = 0
    min_billed_ms: Count | None = None
    rounding_ms: Annotated[int, Field(ge=1, le=3_600_000)] | None = None
    request_fee: Amount | None = None
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 1
    keep_warm_ms: Count | None = None
    keep_warm_billed: bool = True
    region_multiplier_ppm: Annotated[int, Field(ge=1, le=100_000_000)] = 1_000_000
    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")] = "USD"
    status: PriceStatus
    source: Text
    checked: date

    @model_validator(mode="after")
    def _amounts_fit_unit(self) -> Price:
        if self.unit == "million_tokens":
            if self.input is None or self.output is None or self.amount is not None:
                raise ValueError("a price per million_tokens has `input` and `output`, and no `amount`")
        elif self.amount is None or self.input is not None or self.output is not None:
            raise ValueError(f"a price per {self.unit} has `amount`, and neither `input` nor `output`")
        if (self.unit == "instance_hour") != (self.gpus_per_instance is not None):
            raise ValueError("`gpus_per_instance` belongs to a price per instance_hour, and to no other")
        for rate, size in (("vcpu_second", "vcpus"), ("gib_second", "ram_gib")):
            if bool(getattr(self, rate)) != bool(getattr(self, size)):
                raise ValueError(f"`{rate}` and `{size}` stand together or not at all")
        return self


class Commitment(Declared):
    """Capacity that is already bought: what, from when, until when, how much lies unused, what follows."""

    kind: Literal["contract", "savings_plan", "capacity_block"]
    start: date
    end: date
    committed_gpus: Count
    unused_gpus: Count
    follows: Text

    @model_validator(mode="after")
    def _runs_forward(self) -> Commitment:
        if self.end < self.start:
            raise ValueError("the commitment ends before it starts")
        if self.unused_gpus > self.committed_gpus:
            raise ValueError("more GPUs unused than committed")
        return self


class Capacity(Declared):
    """``fixed`` pools have so many GPUs; ``elastic`` ones scale to ``gpus`` (a quota). Headroom is a fact, not here."""

    kind: Literal["fixed", "elastic"]
    gpus: Count


class Performance(Declared):
    """Speed of one replica, with its source.

    ``prefill_tokens_per_s`` and ``decode_tokens_per_s`` are totals over a full batch, ``stream_tokens_per_s`` what one
    caller sees; time to first token in milliseconds at the 95th and 99th percentile, warm.
    """

    prefill_tokens_per_s: Annotated[int, Field(ge=1)] | None = None
    decode_tokens_per_s: Annotated[int, Field(ge=1)] | None = None
    stream_tokens_per_s: Annotated[int, Field(ge=1)] | None = None
    ttft_p95_ms: Count | None = None
    ttft_p99_ms: Count | None = None
    source: Text
    status: Literal["measured", "published", "assumed"]


class Offering(Declared):
    """A model that the pool serves: version, proof of the weights, limits, GPUs of one replica, its own price."""

    model: Name
    version: Name | None = None
    digest: Name | None = None
    verified_by: Text | None = None
    max_context_tokens: Count | None = None
    gpus: Count | None = None
    price: Price | None = None
    performance: Performance | None = None


class Pool(Declared):
    """One pool of the fleet. See the module for what None means."""

    id: Name
    kind: Kind
    group: Name
    provider: Name
    region: Name
    account: Literal["ours", "provider"] | None = None
    network: Literal["private", "public"] | None = None
    tenancy: Literal["dedicated", "single_tenant", "shared"] | None = None
    dedicated_to: tuple[Name, ...] | None = None
    hardware: Literal["owned", "leased", "rented"] | None = None
    locations: Locations = Locations()
    region_binding: Literal["enforced", "preferred"] | None = None
    operator: Operator = Operator()
    sub_processors: tuple[SubProcessor, ...] | None = None
    certifications: tuple[Certification, ...] | None = None
    retention_days: Count | None = None
    trains_on_data: bool | None = None
    accelerator: Accelerator = Accelerator()
    gpu_count: Count | None = None
    capacity: Capacity | None = None
    cold_start_ms: Count | None = None
    scale_to_zero: bool | None = None
    contended: bool | None = None
    interruption_per_hour_ppm: Ppm | None = None
    interruption_overhead_ppm: Ppm | None = None
    availability_ppm: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    evidence: Evidence = Evidence()
    price: Price | None = None
    commitment: Commitment | None = None
    offerings: tuple[Offering, ...] = ()
    labels: dict[Name, Text] = Field(default_factory=dict)

    def offering(self, model: str) -> Offering | None:
        """What the pool says of ``model``, or None when it does not serve it."""
        for offering in self.offerings:
            if offering.model == model:
                return offering
        return None


_ASPECTS: Final = tuple(Locations.model_fields)


def declared_of(pool: Pool) -> dict[str, Any]:
    """What a person is told of a pool, kept in the sheet so that an old decision needs no old fleet to be explained."""
    checked = pool.evidence.checked
    return {
        "provider": pool.provider,
        "region": pool.region,
        "locations": {name: places for name in _ASPECTS if (places := getattr(pool.locations, name)) is not None},
        "operator": {
            "name": pool.operator.name,
            "seat": pool.operator.seat,
            "parent_seat": pool.operator.parent_seat,
        },
        "tenancy": pool.tenancy,
        "evidence_checked": None if checked is None else checked.isoformat(),
    }
