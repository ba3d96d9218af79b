"""FOCUS exports become pools at contract prices: what the company really pays for an hour of GPUs.

A row is one charge of the FinOps Open Cost and Usage Specification, 1.1 or newer:

| what          | from                                                                                             |
|---------------|--------------------------------------------------------------------------------------------------|
| provider      | ``ServiceProviderName``, or ``ProviderName`` as it was called before 1.3                         |
| instance type | ``F_InstanceType`` or ``InstanceType`` of ``SkuPriceDetails``                                    |
| kind          | ``PricingCategory``: Standard is on demand, Dynamic is spot, Committed is committed              |
| price         | ``ContractedUnitPrice`` of one ``PricingUnit``, in ``BillingCurrency``                           |
| commitment    | that price leaves its discount out, so ``EffectiveCost`` divided by ``PricingQuantity`` is taken |

Rules: money is exact until it is rounded up to a micro-USD, once; another currency than USD needs a rate that a person
gives, or nothing is imported; of many charges for one pool the newest counts, and of those the dearest. Taxes, credits,
purchases, corrections and charges without an instance type are passed over and counted; an instance type that nobody
knows is a finding with its first line. Further columns, ``x_`` ones included, are not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from policyd.errors import Finding, FleetInvalid
from policyd.revisions.fleet_import import (
    Catalogue,
    Hardware,
    Imported,
    Origin,
    Unusable,
    id_of,
    name_in,
    pool_of,
    rows_of,
)

COLUMNS: Final = (
    "BillingCurrency", "ChargeCategory", "ChargePeriodStart", "ContractedUnitPrice", "PricingCategory", "PricingUnit",
    "RegionId", "SkuPriceDetails", "SkuPriceId",
)  # fmt: skip
"""What is needed of every export, beside one of the provider's two names; of a commitment more is."""

_PROVIDER_COLUMNS: Final = ("ServiceProviderName", "ProviderName")
_PROVIDERS: Final = {
    "amazon web services": "aws", "amazon web services, inc.": "aws", "aws": "aws",
    "microsoft": "azure", "microsoft azure": "azure", "azure": "azure",
    "google": "gcp", "google cloud": "gcp", "google cloud platform": "gcp", "gcp": "gcp",
}  # fmt: skip
_KINDS: Final = {"Standard": "on_demand", "Dynamic": "spot", "Committed": "committed"}
_DETAILS_MAX_CHARS: Final = 10_000
_AMOUNT: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?")
_UNIT: Final = re.compile(r"(?:([1-9][0-9]{0,5}) )?(hour|hr|minute|second)s?", re.IGNORECASE)
_PER_HOUR: Final = {"hour": 1, "hr": 1, "minute": 60, "second": 3_600}
_MICRO: Final = 1_000_000


@dataclass
class _State:
    """One import in progress: pools by id with the day and the micro-USD of the charge that counts."""

    file: str
    catalogue: Catalogue
    origin: Origin
    rates: Mapping[str, Decimal]
    pools: dict[str, tuple[date, int, dict[str, Any]]] = field(default_factory=dict)
    unmatched: set[tuple[str, str]] = field(default_factory=set)
    without_rate: dict[str, Finding] = field(default_factory=dict)
    passed_over: int = 0


def import_focus(
    content: bytes, file: str, catalogue: Catalogue, origin: Origin, rates: Mapping[str, Decimal]
) -> Imported:
    """The pools of a FOCUS export. ``rates`` holds what one unit of a currency is worth in USD.

    Raises ``FleetInvalid`` when the file is no such export, or has a currency without a rate; single bad rows are
    findings of the result.
    """
    state = _State(file, catalogue, origin, rates)
    findings: list[Finding] = []
    for line, row in rows_of(content, file, COLUMNS, findings, others=True):
        try:
            _charge(state, row, f"{file}:{line}")
        except Unusable as unusable:
            findings.append(Finding(f"{file}:{line}", str(unusable)))
    if state.without_rate:
        names = sorted(state.without_rate)
        raise FleetInvalid(
            f"{file} has prices in {', '.join(names)} and there is no rate for {'it' if len(names) == 1 else 'them'}",
            findings=[state.without_rate[name] for name in names],
            remedy="say what one unit is worth in USD, for example --rate EUR=1.10",
        )
    return Imported(tuple(pool for _, _, pool in state.pools.values()), tuple(findings), state.passed_over)


def _charge(state: _State, row: Mapping[str, str], where: str) -> None:
    details = _details(row)
    instance = details.get("F_InstanceType") or details.get("InstanceType") or ""
    if row["ChargeCategory"] != "Usage" or row.get("ChargeClass") == "Correction" or not instance:
        state.passed_over += 1
        return
    written = next((row[column] for column in _PROVIDER_COLUMNS if row.get(column)), "")
    provider = name_in({"provider": _PROVIDERS.get(written.casefold(), written)}, "provider")
    hardware, gpus = _hardware(state.catalogue, provider, instance), _gpus(details)
    if hardware is None:
        _unmatched(state, provider, instance, gpus)
        return
    if gpus is not None and gpus != hardware.gpus:
        raise Unusable(f"{instance[:60]} is said to have {gpus} GPUs, and is known to have {hardware.gpus}")
    kind = _KINDS.get(row["PricingCategory"])
    if kind is None:
        raise Unusable(f"PricingCategory is {row['PricingCategory'][:40]!r}; expected is one of {', '.join(_KINDS)}")
    currency = row["BillingCurrency"]
    rate = Decimal(1) if currency == "USD" else state.rates.get(currency)
    if rate is None:
        state.without_rate.setdefault(currency, Finding(where, f"BillingCurrency {currency[:20]!r} has no rate"))
        return
    micro_usd = -(-_hourly(row, kind) * Fraction(rate) * _MICRO // 1)
    _put(state, _pool(state, row, provider, instance, kind, hardware), _day(row), micro_usd, _source(state, row, rate))


def _put(state: _State, pool: dict[str, Any], day: date, micro_usd: int, source: str) -> None:
    there = state.pools.get(pool["id"])
    if there is not None and there[:2] >= (day, micro_usd):
        return
    pool["price"] = {
        "unit": "instance_hour",
        "amount": f"{micro_usd // _MICRO}.{micro_usd % _MICRO:06}".rstrip("0").rstrip("."),
        "gpus_per_instance": pool.pop("gpus_per_instance"),
        "status": "contract",
        "source": source,
        "checked": day.isoformat(),
    }
    state.pools[pool["id"]] = (day, micro_usd, pool)


def _pool(
    state: _State, row: Mapping[str, str], provider: str, instance: str, kind: str, hardware: Hardware
) -> dict[str, Any]:
    region = name_in(row, "RegionId")
    name_in({"instance type": instance}, "instance type")
    pool = pool_of(state.catalogue, state.origin, provider, region, id_of(provider, region, instance, kind), kind)
    pool["accelerator"] = {"name": hardware.accelerator, "memory_gib": hardware.memory_gib}
    pool["gpus_per_instance"] = hardware.gpus
    labels = {"sku_price_id": row["SkuPriceId"]}
    if kind == "committed":
        labels["commitment_discount_id"] = row.get("CommitmentDiscountId", "")
        labels["commitment_discount_type"] = row.get("CommitmentDiscountType", "")
    pool["labels"] = {name: value[:200] for name, value in labels.items() if value}
    return pool


def _hardware(catalogue: Catalogue, provider: str, instance: str) -> Hardware | None:
    """The accelerators of an instance type; Azure's exports may leave out the word that its types begin with."""
    found = catalogue.hardware_of(provider, instance)
    return found or (catalogue.hardware_of(provider, f"Standard_{instance}") if provider == "azure" else None)


def _unmatched(state: _State, provider: str, instance: str, gpus: Fraction | None) -> None:
    """An instance type that is said to have no GPU is none of ours; any other is told once."""
    if gpus == 0 or (provider, instance) in state.unmatched:
        state.passed_over += 1
        return
    state.unmatched.add((provider, instance))
    raise Unusable(f"the accelerators of {provider} {instance[:60]} are not known, or it has none or part of one")


def _gpus(details: Mapping[str, str]) -> Fraction | None:
    """How many GPUs the export says that one unit has; None when it does not say."""
    written = details.get("F_GpuCount") or details.get("GpuCount") or ""
    return Fraction(written) if _AMOUNT.fullmatch(written) else None


def _details(row: Mapping[str, str]) -> dict[str, str]:
    """The properties of the SKU price, numbers as they are written; none when there are none."""
    written = row["SkuPriceDetails"]
    if not written or written.casefold() == "null":
        return {}
    if len(written) > _DETAILS_MAX_CHARS:
        raise Unusable(f"SkuPriceDetails has more than {_DETAILS_MAX_CHARS} characters")
    try:
        found = json.loads(written, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        raise Unusable("SkuPriceDetails is not JSON") from None
    if not isinstance(found, dict):
        raise Unusable("SkuPriceDetails is no object of JSON")
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _hourly(row: Mapping[str, str], kind: str) -> Fraction:
    """What an hour costs, in the currency of the bill."""
    unit = _UNIT.fullmatch(row["PricingUnit"])
    if unit is None:
        raise Unusable(f"PricingUnit is {row['PricingUnit'][:40]!r}; hours, minutes or seconds are expected")
    per_hour = Fraction(_PER_HOUR[unit[2].lower()], int(unit[1] or 1))
    if kind != "committed":
        return _positive(row, "ContractedUnitPrice") * per_hour
    for column in ("EffectiveCost", "PricingQuantity"):
        if not row.get(column):
            raise Unusable(f"a committed price needs {column}: ContractedUnitPrice leaves its discount out")
    return _positive(row, "EffectiveCost") / _positive(row, "PricingQuantity") * per_hour


def _positive(row: Mapping[str, str], column: str) -> Fraction:
    if not _AMOUNT.fullmatch(row[column]) or Fraction(row[column]) == 0:
        raise Unusable(f"{column} is {row[column][:40]!r}; a number above 0 is expected")
    return Fraction(row[column])


def _day(row: Mapping[str, str]) -> date:
    value = row["ChargePeriodStart"]
    try:
        return date.fromisoformat(value[:10])
    except ValueError:
        raise Unusable(f"ChargePeriodStart is {value[:40]!r}; an ISO 8601 time is expected") from None


def _source(state: _State, row: Mapping[str, str], rate: Decimal) -> str:
    what = f"{state.origin.source}, FOCUS SKU price {row['SkuPriceId'][:200] or 'unnamed'}"
    if row["BillingCurrency"] == "USD":
        return what
    return f"{what}, one {row['BillingCurrency']} at {rate} USD"
