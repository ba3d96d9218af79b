"""The two journeys: every stage is a whole fleet, adds to the one before it, and decides what its page says."""

from __future__ import annotations

import json
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from policyd.cli.main import run
from policyd.revisions.fleet_files import load_fleet
from policyd.revisions.fleet_review import review

JOURNEYS = Path(__file__).resolve().parent.parent.parent / "examples" / "journeys"


def stages(journey: str) -> list[Path]:
    """The folders of a journey, earliest first: each lies in the next one."""
    (last,) = (JOURNEYS / journey).glob("20*")
    found = [last, *sorted(path for path in last.rglob("20*") if path.is_dir())]
    return found[::-1]


@pytest.mark.parametrize("journey", ["cloud", "own"])
def test_every_stage_is_a_fleet_that_adds_to_the_one_before(journey: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = stages(journey)
    assert len(found) == 3
    assert [path.name for path in found] == sorted(path.name for path in found), "dated"
    fleets = [load_fleet(path) for path in found]
    for earlier, later in pairwise(fleets):
        assert set(earlier.pools) < set(later.pools)
    for path, fleet in zip(found, fleets, strict=True):
        assert run(["fleet", "check", str(path)]) == 0
        assert {finding.message.split(" (")[0] for finding in review(fleet, date(2026, 11, 16))} <= {
            "has status assumed"
        }, path
    capsys.readouterr()


def test_real_prices_say_where_they_are_from_and_the_others_that_they_are_assumed() -> None:
    for journey in ("cloud", "own"):
        for pool in load_fleet(stages(journey)[-1]).pools.values():
            assert pool.price is not None
            assert (pool.price.status == "assumed") == ("assumed" in pool.price.source)
            assert pool.price.status in ("list", "assumed")


def simulated(journey: str, stage: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """For each workload its (outcome, first choice) in a stage and in the next one."""
    found = stages(journey)
    monkeypatch.setenv("POLICYD_FLEET", str(found[stage]))
    workloads = str(JOURNEYS / journey / "workloads")
    assert run(["simulate", workloads, "--fleet", str(found[stage + 1]), "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)

    def first(side: dict[str, Any]) -> str:
        return side["ranked"][0]["pool"] if side["outcome"] == "allow" else f"deny {side['denied_by']}"

    return {Path(entry["file"]).stem: (first(entry["today"]), first(entry["simulated"])) for entry in document}


def test_from_one_region_to_a_committed_base(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = simulated("cloud", 0, monkeypatch, capsys)
    assert grown["chat-eu"] == ("deny eligibility", "gcp-europe-west1-h100")
    assert grown["nightly"] == ("gcp-us-central1-h100", "gcp-us-east4-h100-spot")
    committed = simulated("cloud", 1, monkeypatch, capsys)
    assert committed["chat-us"] == ("gcp-us-central1-h100", "gcp-us-central1-h100-committed")
    assert committed["chat-eu"] == ("gcp-europe-west1-h100", "gcp-europe-west1-h100-committed")
    assert committed["launch"] == ("gcp-us-central1-h100", "gcp-us-central1-h100"), "it overflows"


def test_from_own_gpus_to_several_clouds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    first = simulated("own", 0, monkeypatch, capsys)
    assert first["election"] == ("deny eligibility", "gcp-europe-west1-h100")
    several = simulated("own", 1, monkeypatch, capsys)
    assert several["election"] == ("gcp-europe-west1-h100", "nebius-eu-north1-h100")
    assert several["archive"] == ("onprem-fra-h100", "nebius-eu-north1-h200-spot")
    assert first["newsroom"] == several["newsroom"] == ("onprem-fra-h100", "onprem-fra-h100")
