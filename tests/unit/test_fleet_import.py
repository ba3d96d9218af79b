"""Importers on excerpts of real price lists, and on rows that cannot be used."""

from __future__ import annotations

from datetime import date
from pathlib import Path, PurePosixPath

import pytest

from connectors import prices
from policyd.errors import FleetInvalid
from policyd.revisions import fleet_import
from policyd.revisions.fleet_files import parse_fleet
from policyd.revisions.fleet_import import COLUMNS, Catalogue, Imported, Origin, import_list
from policyd.revisions.fleet_import_text import gpu_memory_gib
from policyd.revisions.fleet_review import review

DATA = Path(__file__).resolve().parent.parent / "data"
CATALOGUE = Catalogue(prices.country_of, prices.hardware_of)
ORIGIN = Origin("a price list", date(2026, 7, 1), group="new", provider="nebius")


def imported(format: str, content: str | bytes) -> Imported:
    raw = content.encode() if isinstance(content, str) else content
    return import_list(raw, "list.csv", format, CATALOGUE, ORIGIN)


def excerpt(name: str, format: str) -> Imported:
    return imported(format, (DATA / name).read_bytes())


def test_prices_become_pools_with_country_and_hardware() -> None:
    found = excerpt("gpu_prices_excerpt.csv", "prices")
    by_id = {pool["id"]: pool for pool in found.pools}
    assert by_id["gcp-europe-west4-a3-highgpu-8g"] == {
        "id": "gcp-europe-west4-a3-highgpu-8g",
        "kind": "on_demand",
        "group": "new",
        "provider": "gcp",
        "region": "europe-west4",
        "locations": {"processing": ["NL"]},
        "accelerator": {"name": "H100", "memory_gib": 80},
        "price": {
            "unit": "instance_hour",
            "amount": "112.540480",
            "gpus_per_instance": 8,
            "status": "list",
            "source": "a price list",
            "checked": "2026-07-01",
        },
    }
    assert by_id["gcp-us-central1-a3-highgpu-8g-spot"]["kind"] == "spot"
    assert by_id["aws-us-east-1-p5-48xlarge"]["price"]["amount"] == "55.04"
    assert [str(finding) for finding in found.findings] == [
        "list.csv:7: the accelerators of aws g6f.large are not known, or it has part of one"
    ]


def test_offers_keep_their_own_source_and_day() -> None:
    found = excerpt("offers_excerpt.csv", "offers")
    by_id = {pool["id"]: pool for pool in found.pools}
    assert found.findings == ()
    assert by_id["modal-global-h100x1-serverless"]["price"]["unit"] == "gpu_second"
    assert "locations" not in by_id["modal-global-h100x1-serverless"], "nobody knows where global is"
    block = by_id["nebius-eu-north1-h200x8-spot"]
    assert block["locations"] == {"processing": ["FI"]}
    assert (block["price"]["amount"], block["price"]["gpus_per_instance"]) == ("11.60", 8)
    assert block["price"]["checked"] == "2026-01-01", "a year alone is its first day"


def test_token_prices_become_one_pool_a_provider() -> None:
    found = excerpt("tokens_excerpt.csv", "tokens")
    assert {pool["id"] for pool in found.pools} == {"ovhcloud-api", "openai-api", "mistral-api"}
    openai = next(pool for pool in found.pools if pool["provider"] == "openai")
    assert openai["accelerator"] == {"name": "undisclosed", "memory_gib": 0}
    (offering,) = openai["offerings"]
    assert (offering["model"], offering["price"]["input"], offering["price"]["output"]) == (
        "gpt-4o-mini",
        "0.15",
        "0.6",
    )


def test_skypilot_catalog() -> None:
    found = excerpt("skypilot_excerpt.csv", "skypilot")
    by_id = {pool["id"]: pool for pool in found.pools}
    assert set(by_id) == {
        "nebius-eu-north1-gpu-h200-sxm-8gpu-128vcpu-1600gb",
        "nebius-eu-north1-gpu-h200-sxm-8gpu-128vcpu-1600gb-spot",
        "nebius-us-central1-gpu-b200-sxm-8gpu-160vcpu-1792gb",
    }
    h200 = by_id["nebius-eu-north1-gpu-h200-sxm-8gpu-128vcpu-1600gb"]
    assert h200["price"]["amount"] == "28.5", "the dearer zone counts"
    assert h200["accelerator"] == {"name": "H200", "memory_gib": 141}
    assert "memory_gib" not in by_id["nebius-us-central1-gpu-b200-sxm-8gpu-160vcpu-1792gb"]["accelerator"]
    assert found.passed_over == 1
    assert [str(finding) for finding in found.findings] == [
        "list.csv:6: AcceleratorCount is 'half'; a whole number above 0 is expected"
    ]


@pytest.mark.parametrize(
    ("name", "format"),
    [("gpu_prices_excerpt.csv", "prices"), ("offers_excerpt.csv", "offers"), ("skypilot_excerpt.csv", "skypilot")],
)
def test_what_is_written_loads_again_and_waits_for_the_unknown(name: str, format: str) -> None:
    found = excerpt(name, format)
    text = found.to_yaml("Imported in a test")
    assert text.startswith("# Imported in a test\n# Not known from the list")
    fleet = parse_fleet({PurePosixPath("new.yaml"): text.encode()})
    assert set(fleet.pools) == {pool["id"] for pool in found.pools}
    refused = {finding.where for finding in review(fleet, date(2026, 7, 1)) if "refused until" in finding.message}
    assert refused == {f"pools.{id}" for id in fleet.pools}, "an imported pool is never usable by itself"


ROW = "gcp,us-central1,a3-highgpu-8g,spot,1\n"
HEADER = ",".join(COLUMNS["prices"]) + "\n"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("gcp,us-central1,a3-highgpu-8g,reserved,1", "capacity_type is 'reserved'; expected is one of on_demand, spot"),
        ("gcp,us-central1,a3-highgpu-8g,spot,0", "usd_per_hour is '0'; an amount of money above 0 is expected"),
        ("gcp,us-central1,a3-highgpu-8g,spot,-1", "usd_per_hour is '-1'; an amount of money above 0 is expected"),
        ("gcp,us-central1,a3-highgpu-8g,spot,1e9", "usd_per_hour is '1e9'; an amount of money above 0 is expected"),
        ("gcp,us-central1,a3-highgpu-8g,spot,nan", "usd_per_hour is 'nan'; an amount of money above 0 is expected"),
        ("gcp,us-central1,a3-highgpu-8g,spot", "4 fields instead of 5"),
        ("gcp,../etc,a3-highgpu-8g,spot,1", "region '../etc' is not a name"),
        (
            "gcp,us-central1,warp-drive,spot,1",
            "the accelerators of gcp warp-drive are not known, or it has part of one",
        ),
    ],
)
def test_a_bad_row_is_a_finding_with_its_line_and_the_others_are_read(row: str, message: str) -> None:
    found = imported("prices", HEADER + ROW + row + "\n\n" + ROW.replace("central1", "east4"))
    assert [str(finding) for finding in found.findings] == [f"list.csv:3: {message}"]
    assert len(found.pools) == 2


def test_a_file_that_is_no_such_list() -> None:
    for content in (b"", b"a,b\n1,2\n", HEADER.encode() + b"\xff\xfe\n", (DATA / "offers_excerpt.csv").read_bytes()):
        with pytest.raises(FleetInvalid) as caught:
            imported("prices", content)
        assert caught.value.findings[0].where.startswith("list.csv:")


def test_broken_quotes_end_the_reading_with_a_finding() -> None:
    found = imported("prices", HEADER + ROW + 'gcp,"us"x,\n' + ROW)
    assert len(found.pools) == 1
    assert "not CSV" in found.findings[0].message


def test_too_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_import, "MAX_ROWS", 1)
    found = imported("prices", HEADER + ROW + ROW.replace("central1", "east4"))
    assert len(found.pools) == 1
    assert "more than 1 rows" in found.findings[0].message


def test_skypilot_needs_a_provider() -> None:
    with pytest.raises(FleetInvalid):
        import_list(b"", "list.csv", "skypilot", CATALOGUE, Origin("s", date(2026, 7, 1)))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "{'Gpus': []}", "__import__('os')", "(" * 1500, '{"Gpus": [{"MemoryInfo": {"SizeInMiB": true}}]}'],
)
def test_gpu_info_that_says_nothing_is_unknown(text: str) -> None:
    assert gpu_memory_gib(text) is None
