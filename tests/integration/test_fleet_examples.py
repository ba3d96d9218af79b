"""The example fleet and workloads: they load, are complete, and show what they promise."""

from __future__ import annotations

from collections import Counter
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path

import orjson
import pytest

from connectors.static import StaticFacts
from policyd.core.cost import Pricing, pricing_of
from policyd.core.facts import facts_from_json
from policyd.core.fleet import Fleet
from policyd.core.inputs import performance_of
from policyd.core.normalise import normalise
from policyd.core.pool import Price
from policyd.core.principal import LOCAL
from policyd.core.workload import DecisionRequest
from policyd.documents import read_yaml
from policyd.revisions.fleet_files import load_fleet
from policyd.revisions.fleet_review import review

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
WORKLOADS = sorted((EXAMPLES / "workloads").glob("*.yaml"))
DAY = date(2026, 11, 16)


@cache
def fleet() -> Fleet:
    return load_fleet(EXAMPLES / "fleet")


def test_it_is_as_large_and_as_mixed_as_promised() -> None:
    kinds = Counter(pool.kind for pool in fleet().pools.values())
    assert len(fleet().pools) >= 64
    assert set(kinds) == {"on_prem", "committed", "on_demand", "spot", "serverless", "api"}
    assert min(kinds.values()) >= 5
    assert fleet().pools["onprem-fra-h100"].gpu_count == 100
    assert len(fleet().models) >= 8
    assert len(fleet().data_sources) >= 9
    assert len(fleet().tenants) >= 8
    assert len({tenant.sector for tenant in fleet().tenants.values()}) >= 8
    assert all(len(tenant.projects) >= 2 for tenant in fleet().tenants.values())
    assert len({tenant.floors for tenant in fleet().tenants.values()}) == len(fleet().tenants), "tenants differ"


def test_the_review_finds_what_is_wrong_on_purpose_and_nothing_else() -> None:
    found = [finding for finding in review(fleet(), DAY) if "status assumed" not in finding.message]
    assert [str(finding) for finding in found] == [
        "models.meditron-70b.1.0: validation is overdue since 2026-05-31",
        "models.mistral-small-3.2-24b.2503: validation is overdue since 2026-08-31",
        "pools.onprem-par-l40s.certifications.ISO27017: expired on 2026-03-31",
    ]


def test_every_offering_has_a_price_for_a_request() -> None:
    for pool in fleet().pools.values():
        for offering in pool.offerings:
            performance = performance_of(pool, offering, fleet())
            assert isinstance(pricing_of(pool, offering, performance, fleet()), Pricing), (pool.id, offering.model)


def test_every_price_says_where_it_is_from() -> None:
    prices: list[Price] = []
    for pool in fleet().pools.values():
        prices += [
            price for price in (pool.price, *(offering.price for offering in pool.offerings)) if price is not None
        ]
    assert {price.status for price in prices} == {"list", "contract", "assumed"}
    assert all("assum" in price.source or "invented" in price.source for price in prices if price.status != "list")
    assert not any("assum" in price.source for price in prices if price.status == "list")


def test_residency_has_a_price() -> None:
    nl, us = (fleet().pools[f"gcp-{region}-h100"].price for region in ("europe-west4", "us-central1"))
    assert nl is not None
    assert us is not None
    assert nl.amount == Decimal("112.5405")
    assert us.amount == Decimal("88.49")
    assert round((nl.amount / us.amount - 1) * 100) == 27


def test_models_of_a_replica_fit_its_memory() -> None:
    for pool in fleet().pools.values():
        for offering in pool.offerings:
            need, have = fleet().models[offering.model].memory_gib, pool.accelerator.memory_gib
            assert need is not None
            assert have is not None
            assert pool.kind == "api" or need <= have * (offering.gpus or 0), (pool.id, offering.model)


def test_facts_cover_every_pool_and_every_budget() -> None:
    facts = facts_from_json(StaticFacts(EXAMPLES / "facts.yaml").read(), "sha256:x")
    assert set(facts.pools) == set(fleet().pools)
    for pool in fleet().pools.values():
        assert pool.capacity is not None
        assert (facts.pools[pool.id].available_gpus or 0) <= pool.capacity.gpus
    accounts = {tenant.name for tenant in fleet().tenants.values() if tenant.budget}
    accounts |= {f"{t.name}/{p.name}" for t in fleet().tenants.values() for p in t.projects if p.budget}
    assert set(facts.spent_micro_usd) == accounts


@pytest.mark.parametrize("path", WORKLOADS, ids=lambda path: path.stem)
def test_workloads_are_requests_that_say_what_to_expect(path: Path) -> None:
    document = read_yaml(path.read_bytes(), str(path))
    assert document.findings == ()
    assert "# Expect: " in path.read_text()
    request = DecisionRequest.model_validate_json(orjson.dumps(document.value))
    normalised = normalise(request.workload, LOCAL, fleet())
    assert normalised.workload.permitted_countries
    assert any(pool.offering(normalised.workload.model) for pool in fleet().pools.values())


def test_there_are_workloads_of_both_scopes() -> None:
    assert len(WORKLOADS) >= 6
    assert any("scope: deployment" in path.read_text() for path in WORKLOADS)
