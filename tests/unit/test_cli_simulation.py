"""Overrides of a simulation: only what is named changes, and a changed fleet is another fleet."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.fleet import Fleet, Weights
from policyd.errors import RequestError, UnknownName
from policyd.revisions.fleet_files import load_fleet
from policyd.services.simulation import Overrides, _shared, overridden

COMPONENTS = ("control", "availability", "price", "latency", "preference")


@pytest.fixture(scope="module")
def fleet(repository: Path) -> Fleet:
    return load_fleet(repository / "examples" / "fleet")


def test_no_override_is_the_same_fleet(fleet: Fleet) -> None:
    assert overridden(fleet, Overrides()) is fleet


def test_a_provider_and_a_pool_go_away(fleet: Fleet) -> None:
    provider = next(iter(fleet.pools.values())).provider
    pool = next(pool.id for pool in fleet.pools.values() if pool.provider != provider)
    changed = overridden(fleet, Overrides(without_providers=(provider,), without_pools=(pool,)))
    gone = fleet.pools.keys() - changed.pools.keys()
    assert gone == {name for name, p in fleet.pools.items() if p.provider == provider} | {pool}
    assert all(changed.pools[name] is fleet.pools[name] for name in changed.pools)
    assert changed.digest != fleet.digest
    assert changed.commit is None


def test_a_price_changes_in_one_pool_only(fleet: Fleet) -> None:
    changed = overridden(fleet, Overrides(price_percent={"onprem-fra-h100": 80}))
    before, after = fleet.pools["onprem-fra-h100"].price, changed.pools["onprem-fra-h100"].price
    assert before is not None
    assert after is not None
    assert after.region_multiplier_ppm == before.region_multiplier_ppm * 80 // 100
    assert after.amount == before.amount
    assert [name for name in fleet.pools if changed.pools[name] != fleet.pools[name]] == ["onprem-fra-h100"]


def test_two_overrides_are_two_fleets(fleet: Fleet) -> None:
    digests = {overridden(fleet, Overrides(price_percent={"onprem-fra-h100": p})).digest for p in (80, 90)}
    digests.add(overridden(fleet, Overrides(weights={"price": 700})).digest)
    assert len(digests) == 3
    again = overridden(fleet, Overrides(weights={"price": 700})).digest
    assert again in digests


@pytest.mark.parametrize(
    ("overrides", "nearest"),
    [
        (Overrides(without_providers=("nebiu",)), "nebius"),
        (Overrides(without_pools=("onprem-fra-h10",)), "onprem-fra-h100"),
        (Overrides(price_percent={"onprem-fra-h10": 90}), "onprem-fra-h100"),
        (Overrides(weights={"prise": 700}), "price"),
    ],
)
def test_an_unknown_name_is_an_error(fleet: Fleet, overrides: Overrides, nearest: str) -> None:
    with pytest.raises(UnknownName, match=nearest):
        overridden(fleet, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        Overrides(price_percent={"onprem-fra-h100": 0}),
        Overrides(price_percent={"onprem-fra-h100": -20}),
        Overrides(price_percent={"onprem-fra-h100": 10_001}),
        Overrides(weights={"price": 1_001}),
        Overrides(weights=dict.fromkeys(COMPONENTS, 100)),
    ],
)
def test_a_senseless_number_is_an_error(fleet: Fleet, overrides: Overrides) -> None:
    with pytest.raises(RequestError):
        overridden(fleet, overrides)


@given(
    st.lists(st.integers(0, 1_000), min_size=5, max_size=5),
    st.dictionaries(st.sampled_from(COMPONENTS), st.integers(0, 250), min_size=1, max_size=4),
)
def test_weights_always_add_up_and_the_named_ones_are_as_asked(old: list[int], asked: dict[str, int]) -> None:
    shared = _shared(dict(zip(COMPONENTS, old, strict=True)), asked)
    assert Weights(**shared)
    assert {name: shared[name] for name in asked} == asked
    others = [(old[i], shared[name]) for i, name in enumerate(COMPONENTS) if name not in asked]
    assert all(mine <= theirs + 1 for was, mine in others for more, theirs in others if was <= more)
