"""Contract prices from FOCUS exports: exact, dated, one per pool; what does not fit is told with its line."""

from __future__ import annotations

import csv
import io
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors import prices
from policyd.cli.main import run
from policyd.errors import FleetInvalid
from policyd.revisions.fleet_files import parse_fleet
from policyd.revisions.fleet_import import Catalogue, Imported, Origin
from policyd.revisions.fleet_import_focus import COLUMNS, import_focus
from policyd.revisions.fleet_review import review

EXPORT = Path(__file__).resolve().parent.parent / "data" / "focus_excerpt.csv"
CATALOGUE = Catalogue(prices.country_of, prices.hardware_of)
ORIGIN = Origin("bill.csv", date(2026, 11, 1))

CHARGE = {
    "BillingCurrency": "USD",
    "ChargeCategory": "Usage",
    "ChargePeriodStart": "2026-10-01T00:00:00Z",
    "ContractedUnitPrice": "51.2",
    "PricingCategory": "Standard",
    "PricingUnit": "Hours",
    "RegionId": "eu-central-1",
    "ServiceProviderName": "Amazon Web Services, Inc.",
    "SkuPriceDetails": '{"F_InstanceType": "p5.48xlarge"}',
    "SkuPriceId": "P1",
}


def imported(*charges: dict[str, str], rates: dict[str, str] | None = None) -> Imported:
    """An export of these changes to one good charge."""
    names = sorted({*CHARGE, *(name for charge in charges for name in charge)})
    written = io.StringIO()
    lines = csv.DictWriter(written, names, restval="")
    lines.writeheader()
    lines.writerows({**CHARGE, **charge} for charge in charges)
    known = {name: Decimal(rate) for name, rate in (rates or {}).items()}
    return import_focus(written.getvalue().encode(), "bill.csv", CATALOGUE, ORIGIN, known)


def price(found: Imported) -> dict[str, Any]:
    (pool,) = found.pools
    return dict(pool["price"])


def test_an_export_becomes_pools_at_contract_prices() -> None:
    found = import_focus(EXPORT.read_bytes(), "bill.csv", CATALOGUE, ORIGIN, {})
    pools = {pool["id"]: pool for pool in found.pools}
    assert {id: pool["price"]["amount"] for id, pool in pools.items()} == {
        "aws-eu-central-1-p5-48xlarge": "49.536001",  # the newest charge, rounded up
        "aws-eu-central-1-p5-48xlarge-committed": "30",  # effective cost by quantity: 60 for two hours
        "gcp-europe-west4-a3-highgpu-8g-spot": "19.8",  # by the second
        "azure-westeurope-nd96isr-h100-v5": "98.32",  # by the hundred hours
    }
    on_demand = pools["aws-eu-central-1-p5-48xlarge"]
    assert on_demand["locations"] == {"processing": ["DE"]}
    assert on_demand["accelerator"] == {"name": "H100", "memory_gib": 80}
    assert on_demand["price"] == {
        "unit": "instance_hour",
        "amount": "49.536001",
        "gpus_per_instance": 8,
        "status": "contract",
        "source": "bill.csv, FOCUS SKU price P2",
        "checked": "2026-10-31",
    }
    committed = pools["aws-eu-central-1-p5-48xlarge-committed"]
    assert committed["labels"] == {
        "sku_price_id": "P3",
        "commitment_discount_id": "sp-1",
        "commitment_discount_type": "Compute Savings Plan",
    }
    assert [str(finding) for finding in found.findings] == [
        "bill.csv:10: the accelerators of aws p9.huge are not known, or it has none or part of one"
    ]
    assert found.passed_over == 5


def test_what_is_written_loads_again_and_waits_for_the_unknown() -> None:
    text = import_focus(EXPORT.read_bytes(), "bill.csv", CATALOGUE, ORIGIN, {}).to_yaml("Imported")
    fleet = parse_fleet({PurePosixPath("new.yaml"): text.encode()})
    assert {pool.price.status for pool in fleet.pools.values() if pool.price} == {"contract"}
    refused = {finding.where for finding in review(fleet, date(2026, 11, 16)) if "refused until" in finding.message}
    assert refused == {f"pools.{id}" for id in fleet.pools}


def test_another_currency_needs_a_rate_or_nothing_is_imported() -> None:
    mixed = ({}, {"BillingCurrency": "EUR"}, {"BillingCurrency": "GBP"}, {"BillingCurrency": "EUR"})
    with pytest.raises(FleetInvalid, match="EUR, GBP") as refused:
        imported(*mixed)
    assert [finding.where for finding in refused.value.findings] == ["bill.csv:3", "bill.csv:4"]
    with pytest.raises(FleetInvalid, match="GBP"):
        imported(*mixed, rates={"EUR": "1.1"})
    found = price(imported({"BillingCurrency": "EUR"}, rates={"EUR": "1.10"}))
    assert (found["amount"], found["source"]) == ("56.32", "bill.csv, FOCUS SKU price P1, one EUR at 1.10 USD")


def test_of_charges_of_one_day_the_dearest_counts_in_any_order() -> None:
    charges = [{"ContractedUnitPrice": amount} for amount in ("51", "52.5", "50")]
    assert price(imported(*charges))["amount"] == price(imported(*charges[::-1]))["amount"] == "52.5"


@given(
    st.decimals(min_value="0.000001", max_value="99999", places=9, allow_nan=False),
    st.decimals(min_value="0.001", max_value="999", places=6, allow_nan=False),
    st.sampled_from([("Hours", 1), ("Minutes", 60), ("Seconds", 3600)]),
)
def test_money_is_exact_until_it_is_rounded_up_once(amount: Decimal, rate: Decimal, unit: tuple[str, int]) -> None:
    found = price(
        imported(
            {"ContractedUnitPrice": f"{amount:f}", "BillingCurrency": "EUR", "PricingUnit": unit[0]},
            rates={"EUR": f"{rate:f}"},
        )
    )
    exact = Fraction(amount) * Fraction(rate) * unit[1]
    assert 0 <= Fraction(found["amount"]) - exact < Fraction(1, 1_000_000)


@pytest.mark.parametrize(
    ("charge", "told"),
    [
        ({"ContractedUnitPrice": "0"}, "ContractedUnitPrice is '0'; a number above 0 is expected"),
        ({"ContractedUnitPrice": "-1"}, "ContractedUnitPrice is '-1'; a number above 0 is expected"),
        ({"ContractedUnitPrice": ""}, "ContractedUnitPrice is ''; a number above 0 is expected"),
        ({"ContractedUnitPrice": "NaN"}, "ContractedUnitPrice is 'NaN'; a number above 0 is expected"),
        ({"PricingUnit": "GB-Hours"}, "PricingUnit is 'GB-Hours'; hours, minutes or seconds are expected"),
        ({"PricingUnit": "0 Hours"}, "PricingUnit is '0 Hours'; hours, minutes or seconds are expected"),
        ({"PricingCategory": "Other"}, "PricingCategory is 'Other'; expected is one of Standard, Dynamic, Committed"),
        ({"PricingCategory": "Committed"}, "a committed price needs EffectiveCost: "
         "ContractedUnitPrice leaves its discount out"),
        ({"ChargePeriodStart": "yesterday"}, "ChargePeriodStart is 'yesterday'; an ISO 8601 time is expected"),
        ({"RegionId": "../etc"}, "RegionId '../etc' is not a name"),
        ({"RegionId": ""}, "RegionId '' is not a name"),
        ({"ServiceProviderName": ""}, "provider '' is not a name"),
        ({"SkuPriceDetails": "{"}, "SkuPriceDetails is not JSON"),
        ({"SkuPriceDetails": "[" * 9_000}, "SkuPriceDetails is not JSON"),
        ({"SkuPriceDetails": "7"}, "SkuPriceDetails is no object of JSON"),
        ({"SkuPriceDetails": '{"F_InstanceType": "p5.48xlarge", "F_GpuCount": 4}'},
         "p5.48xlarge is said to have 4 GPUs, and is known to have 8"),
    ],
)  # fmt: skip
def test_a_charge_that_cannot_be_used_is_told_with_its_line(charge: dict[str, str], told: str) -> None:
    found = imported({}, charge)
    assert [str(finding) for finding in found.findings] == [f"bill.csv:3: {told}"]
    assert len(found.pools) == 1


@pytest.mark.parametrize("missing", COLUMNS)
def test_a_file_without_a_needed_column_is_no_export(missing: str) -> None:
    header = ",".join(name for name in CHARGE if name != missing)
    with pytest.raises(FleetInvalid, match="expected are"):
        import_focus(header.encode(), "bill.csv", CATALOGUE, ORIGIN, {})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fleet", "import", "focus", str(EXPORT)]) == 3
    told = capsys.readouterr()
    assert "# Imported from focus_excerpt.csv, each price with its day." in told.out
    assert "4 pools, 1 unusable row, 5 rows passed over" in told.err
    euros = tmp_path / "euros.csv"
    euros.write_text(EXPORT.read_text().replace(",USD,", ",EUR,"))
    assert run(["fleet", "import", "focus", str(euros)]) == 1
    assert "--rate EUR=1.10" in capsys.readouterr().err
    assert run(["fleet", "import", "focus", str(euros), "--rate", "EUR=1.10"]) == 3
    assert 'amount: "33"' in capsys.readouterr().out
    assert run(["fleet", "import", "focus", str(euros), "--rate", "EUR=1,10"]) == 2
    assert run(["fleet", "import", "focus", str(euros), "--checked", "2026-11-01"]) == 2
    assert run(["fleet", "import", "prices", str(euros), "--rate", "EUR=1.10"]) == 2
