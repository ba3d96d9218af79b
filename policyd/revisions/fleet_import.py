"""Price lists become pools that a person completes: what the list says is filled in, what it does not say is left out.

| format       | a row is                                                                   |
|--------------|----------------------------------------------------------------------------|
| ``prices``   | one instance type of one cloud in one region, on demand or spot            |
| ``offers``   | one accelerator of one provider, by the hour or the second, with a source  |
| ``tokens``   | one model of one provider, per million tokens                              |
| ``skypilot`` | one instance type of one zone, as in the catalogs of SkyPilot              |

Rules: a pool from a list knows its kind, place of processing, accelerator and price, and nothing of operators, terms or
certificates, so every policy refuses it until a person has written those down; money is rounded up to six decimals;
of two prices for one pool (zones of a region) the higher one counts. A row that cannot be used is a finding with its
line, and the other rows are still read.

Refused: other columns, text that is not UTF-8, more than ``MAX_ROWS`` rows.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import ROUND_UP, Decimal
from typing import Any, Final, Protocol

from policyd.core.inputs import POOL_SHAPE
from policyd.errors import Finding, FleetInvalid
from policyd.revisions.fleet_import_text import gpu_memory_gib, pools_yaml

MAX_ROWS: Final = 100_000

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    name: tuple(columns.split())
    for name, columns in {
        "prices": "cloud region instance_type capacity_type usd_per_hour",
        "offers": "provider kind region accelerator gpu_count gpu_memory_gib price unit source checked",
        "tokens": "provider model context_window input_usd_per_million_tokens output_usd_per_million_tokens",
        "skypilot": "InstanceType AcceleratorName AcceleratorCount vCPUs MemoryGiB Price Region GpuInfo SpotPrice"
        " AvailabilityZone",
    }.items()
}
"""The columns of each format, in any order; all of them and no others."""

_AMOUNT: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,20})?")
_WHOLE: Final = re.compile(r"([0-9]{1,9})(\.0+)?")
_UNITS: Final = {
    "usd_per_gpu_second": "gpu_second",
    "usd_per_gpu_hour": "gpu_hour",
    "usd_per_hour": "instance_hour",
}
_PRICED_KINDS: Final = ("on_demand", "spot", "serverless")


class Hardware(Protocol):
    """The accelerators of one instance."""

    @property
    def accelerator(self) -> str: ...
    @property
    def gpus(self) -> int: ...
    @property
    def memory_gib(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What lists leave out: the country of a provider's region, and the hardware of its instance types (or None)."""

    country_of: Callable[[str, str], str | None]
    hardware_of: Callable[[str, str], Hardware | None]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a list comes from: the text that names its source, the day of its prices, the pools' group and provider.

    ``provider`` is only needed where the list has none (``skypilot``).
    """

    source: str
    checked: date
    group: str = "imported"
    provider: str = ""


@dataclass(frozen=True, slots=True)
class Imported:
    """Pools as they stand in fleet files, the rows that could not be used, and how many rows have no accelerator."""

    pools: tuple[dict[str, Any], ...]
    findings: tuple[Finding, ...]
    passed_over: int = 0

    def to_yaml(self, heading: str) -> str:
        """A fleet file, with a comment that names the facts that a person still has to write down."""
        return pools_yaml(self.pools, heading, tuple(POOL_SHAPE["pool"]))


class Unusable(Exception):
    """A row that cannot become a pool; the text says why."""


@dataclass
class _Import:
    """One import in progress: pools by id, in the order of the list."""

    catalogue: Catalogue
    origin: Origin
    pools: dict[str, dict[str, Any]] = field(default_factory=dict)
    passed_over: int = 0

    def put(self, pool: dict[str, Any]) -> None:
        """Add a pool; of two with one id, the one with the higher price stays (the same region, another zone)."""
        there = self.pools.get(pool["id"])
        if there is None or Decimal(pool["price"]["amount"]) > Decimal(there["price"]["amount"]):
            self.pools[pool["id"]] = pool


def import_list(content: bytes, file: str, format: str, catalogue: Catalogue, origin: Origin) -> Imported:
    """The pools of a price list in one of the formats of ``COLUMNS``.

    Raises ``FleetInvalid`` when the file is no such list at all; single bad rows are findings of the result.
    """
    rows = {"prices": _price_row, "offers": _offer_row, "tokens": _token_row, "skypilot": _skypilot_row}[format]
    if format == "skypilot" and not origin.provider:
        raise FleetInvalid(
            "a SkyPilot catalog does not name its provider: say which one it is",
            remedy="name it with --provider, for example --provider aws",
        )
    state = _Import(catalogue, origin)
    findings: list[Finding] = []
    for line, row in rows_of(content, file, COLUMNS[format], findings):
        try:
            rows(state, row)
        except Unusable as unusable:
            findings.append(Finding(f"{file}:{line}", str(unusable)))
    return Imported(tuple(state.pools.values()), tuple(findings), state.passed_over)


def rows_of(
    content: bytes, file: str, columns: tuple[str, ...], findings: list[Finding], *, others: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line and fields of every row that has all columns; ``others`` lets the list have further ones."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FleetInvalid(
            f"{file} is not UTF-8 text", findings=[Finding(f"{file}:{line}", "not UTF-8 text")]
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = tuple(name.strip() for name in next(reader, []))
        missing = [name for name in columns if name not in header]
        if missing or len(set(header)) != len(header) or (len(header) != len(columns) and not others):
            message = f"the columns are {', '.join(header)[:500] or 'none'}; expected are {', '.join(columns)}"
            raise FleetInvalid(f"{file}: {message}", findings=[Finding(f"{file}:1", message)])
        for count, fields in enumerate(reader):
            if count >= MAX_ROWS:
                findings.append(
                    Finding(f"{file}:{reader.line_num}", f"more than {MAX_ROWS} rows; the rest was not read")
                )
                return
            if len(fields) == len(header):
                yield reader.line_num, dict(zip(header, (field.strip() for field in fields), strict=True))
            elif fields:
                findings.append(Finding(f"{file}:{reader.line_num}", f"{len(fields)} fields instead of {len(header)}"))
    except csv.Error as error:
        findings.append(Finding(f"{file}:{reader.line_num}", f"not CSV: {error}; the rest was not read"))


def _price_row(state: _Import, row: Mapping[str, str]) -> None:
    kind = _one_of(row, "capacity_type", ("on_demand", "spot"))
    cloud, region, instance = name_in(row, "cloud"), name_in(row, "region"), name_in(row, "instance_type")
    hardware = state.catalogue.hardware_of(cloud, instance)
    if hardware is None:
        raise Unusable(f"the accelerators of {cloud} {instance} are not known, or it has part of one")
    pool = pool_of(state.catalogue, state.origin, cloud, region, id_of(cloud, region, instance, kind), kind)
    pool["accelerator"] = {"name": hardware.accelerator, "memory_gib": hardware.memory_gib}
    pool["price"] = _instance_price(state, _amount(row, "usd_per_hour"), hardware.gpus)
    state.put(pool)


def _offer_row(state: _Import, row: Mapping[str, str]) -> None:
    kind = _one_of(row, "kind", _PRICED_KINDS)
    unit = _UNITS[_one_of(row, "unit", tuple(_UNITS))]
    provider, region, accelerator = name_in(row, "provider"), name_in(row, "region"), name_in(row, "accelerator")
    gpus, memory_gib = _whole(row, "gpu_count"), _whole(row, "gpu_memory_gib")
    named = f"{accelerator}x{gpus}"
    pool = pool_of(state.catalogue, state.origin, provider, region, id_of(provider, region, named, kind), kind)
    pool["accelerator"] = {"name": accelerator, "memory_gib": memory_gib}
    price: dict[str, Any] = {"unit": unit, "amount": _amount(row, "price")}
    if unit == "instance_hour":
        price["gpus_per_instance"] = gpus
    pool["price"] = {**price, "status": "list", "source": _text(row, "source"), "checked": _day(row, "checked")}
    state.put(pool)


def _token_row(state: _Import, row: Mapping[str, str]) -> None:
    provider, model = name_in(row, "provider"), name_in(row, "model")
    price = {
        "unit": "million_tokens",
        "input": _amount(row, "input_usd_per_million_tokens"),
        "output": _amount(row, "output_usd_per_million_tokens"),
        **_provenance(state),
    }
    offering: dict[str, Any] = {"model": model, "gpus": 0, "price": price}
    if row["context_window"]:
        offering["max_context_tokens"] = _whole(row, "context_window")
    pool = state.pools.get(f"{provider}-api")
    if pool is None:
        pool = pool_of(state.catalogue, state.origin, provider, "global", f"{provider}-api", "api")
        pool |= {"accelerator": {"name": "undisclosed", "memory_gib": 0}, "gpu_count": 0, "offerings": []}
        state.pools[pool["id"]] = pool
    if any(there["model"] == model for there in pool["offerings"]):
        raise Unusable(f"{provider} offers {model} twice")
    pool["offerings"].append(offering)


def _skypilot_row(state: _Import, row: Mapping[str, str]) -> None:
    if not row["AcceleratorName"]:
        state.passed_over += 1
        return
    if not row["Price"] and not row["SpotPrice"]:
        raise Unusable("neither Price nor SpotPrice")
    region, instance = name_in(row, "Region"), name_in(row, "InstanceType")
    gpus = _whole(row, "AcceleratorCount")
    accelerator: dict[str, Any] = {"name": name_in(row, "AcceleratorName")}
    memory_gib = gpu_memory_gib(row["GpuInfo"])
    if memory_gib is not None:
        accelerator["memory_gib"] = memory_gib
    for column, kind in (("Price", "on_demand"), ("SpotPrice", "spot")):
        if row[column]:
            provider = state.origin.provider
            pool = pool_of(
                state.catalogue, state.origin, provider, region, id_of(provider, region, instance, kind), kind
            )
            pool["accelerator"] = accelerator
            pool["price"] = _instance_price(state, _amount(row, column), gpus)
            state.put(pool)


def pool_of(catalogue: Catalogue, origin: Origin, provider: str, region: str, id: str, kind: str) -> dict[str, Any]:
    """A pool that knows what it is called, its kind, and where it processes when the catalogue knows."""
    pool: dict[str, Any] = {"id": id, "kind": kind, "group": origin.group, "provider": provider, "region": region}
    country = catalogue.country_of(provider, region)
    if country is not None:
        pool["locations"] = {"processing": [country]}
    return pool


def _provenance(state: _Import) -> dict[str, str]:
    return {"status": "list", "source": state.origin.source, "checked": state.origin.checked.isoformat()}


def _instance_price(state: _Import, amount: str, gpus: int) -> dict[str, Any]:
    return {"unit": "instance_hour", "amount": amount, "gpus_per_instance": gpus, **_provenance(state)}


def id_of(provider: str, region: str, what: str, kind: str) -> str:
    """The id of a pool of a list."""
    suffix = "" if kind == "on_demand" else f"-{kind}"
    return f"{provider}-{region}-{what}{suffix}".lower().replace("_", "-").replace(".", "-")


def name_in(row: Mapping[str, str], column: str) -> str:
    """A column that holds a name. Raises ``Unusable``."""
    value = row[column]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,99}", value):
        raise Unusable(f"{column} {value[:40]!r} is not a name")
    return value


def _text(row: Mapping[str, str], column: str) -> str:
    if not 0 < len(row[column]) <= 500:
        raise Unusable(f"{column} has {len(row[column])} characters; 1 to 500 are expected")
    return row[column]


def _one_of(row: Mapping[str, str], column: str, known: tuple[str, ...]) -> str:
    if row[column] not in known:
        raise Unusable(f"{column} is {row[column][:40]!r}; expected is one of {', '.join(known)}")
    return row[column]


def _whole(row: Mapping[str, str], column: str) -> int:
    found = _WHOLE.fullmatch(row[column])
    if found is None or int(found.group(1)) == 0:
        raise Unusable(f"{column} is {row[column][:40]!r}; a whole number above 0 is expected")
    return int(found.group(1))


def _amount(row: Mapping[str, str], column: str) -> str:
    """Money as it stands in fleet files: at most six decimals, rounded up. Nothing is free in a price list."""
    if not _AMOUNT.fullmatch(row[column]) or Decimal(row[column]) == 0:
        raise Unusable(f"{column} is {row[column][:40]!r}; an amount of money above 0 is expected")
    exact = Decimal(row[column])
    rounded = exact.quantize(Decimal("0.000001"), rounding=ROUND_UP)
    return format(exact if exact == rounded else rounded, "f")


def _day(row: Mapping[str, str], column: str) -> str:
    """A date; a year alone is its first day, the oldest that it can mean."""
    value = row[column]
    try:
        return date.fromisoformat(f"{value}-01-01" if re.fullmatch(r"[0-9]{4}", value) else value).isoformat()
    except ValueError:
        raise Unusable(f"{column} is {value[:40]!r}; a date such as 2026-07-01 is expected") from None
