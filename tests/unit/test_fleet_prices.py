"""The tables beside price lists: every region of the list has a country, and instance types have their hardware."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from connectors.prices import Hardware, country_of, hardware_of, known_regions
from policyd.core.places import COUNTRIES

REGIONS = Path(__file__).resolve().parent.parent / "data" / "price_regions.csv"


def test_every_region_of_the_price_list_has_a_country() -> None:
    with REGIONS.open(newline="") as file:
        regions = [(row["cloud"], row["region"]) for row in csv.DictReader(file)]
    assert len(regions) == 82
    assert [region for region in regions if country_of(*region) is None] == []


def test_every_country_of_the_tables_exists() -> None:
    places = {country_of(provider, region) for provider, regions in known_regions().items() for region in regions}
    assert places <= COUNTRIES


@pytest.mark.parametrize(
    ("provider", "region", "country"),
    [
        ("aws", "eu-west-2", "GB"),
        ("azure", "northeurope", "IE"),
        ("azure", "westeurope", "NL"),
        ("azure", "eastasia", "HK"),
        ("gcp", "europe-west2", "GB"),
        ("gcp", "europe-west10", "DE"),
        ("gcp", "me-central2", "SA"),
        ("nebius", "eu-north1", "FI"),
        ("aws", "europe-west4", None),
        ("nobody", "eu-north1", None),
    ],
)
def test_countries(provider: str, region: str, country: str | None) -> None:
    assert country_of(provider, region) == country


@pytest.mark.parametrize(
    ("provider", "instance", "hardware"),
    [
        ("aws", "p5.48xlarge", Hardware("H100", 8, 80)),
        ("aws", "p5.4xlarge", Hardware("H100", 1, 80)),
        ("aws", "p5en.48xlarge", Hardware("H200", 8, 141)),
        ("aws", "p4d.24xlarge", Hardware("A100-40GB", 8, 40)),
        ("aws", "g6e.12xlarge", Hardware("L40S", 4, 48)),
        ("aws", "g6e.16xlarge", Hardware("L40S", 1, 48)),
        ("aws", "g6.xlarge", Hardware("L4", 1, 24)),
        ("azure", "Standard_ND96isr_H100_v5", Hardware("H100", 8, 80)),
        ("azure", "Standard_NC40ads_H100_v5", Hardware("H100-NVL", 1, 94)),
        ("azure", "Standard_ND96isr_MI300X_v5", Hardware("MI300X", 8, 192)),
        ("azure", "Standard_NC96ads_A100_v4", Hardware("A100-80GB", 4, 80)),
        ("gcp", "a3-highgpu-8g", Hardware("H100", 8, 80)),
        ("gcp", "a3-highgpu-1g", Hardware("H100", 1, 80)),
        ("gcp", "a2-megagpu-16g", Hardware("A100-40GB", 16, 40)),
        ("gcp", "g2-standard-96", Hardware("L4", 8, 24)),
        ("gcp", "g4-standard-384", Hardware("RTXPRO6000", 8, 96)),
        ("aws", "g6f.large", None),
        ("gcp", "p5.48xlarge", None),
        ("aws", "p5.48xlarge ", None),
    ],
)
def test_hardware(provider: str, instance: str, hardware: Hardware | None) -> None:
    assert hardware_of(provider, instance) == hardware
