"""The shipped Casbin model and rows, asked with Casbin itself: who sees, who places, and who never does what."""

from __future__ import annotations

from pathlib import Path

import casbin
import pytest

from policyd.revisions.fleet_files import load_fleet

EVERY_TENANT = "*"


@pytest.fixture(scope="module")
def rows(repository: Path) -> list[list[str]]:
    """The rows of the file, comments and blanks left out."""
    lines = (repository / "policies" / "casbin" / "rows.csv").read_text().splitlines()
    return [[cell.strip() for cell in line.split(",")] for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def tenants(repository: Path) -> list[str]:
    return list(load_fleet(repository / "examples" / "fleet").tenants)


@pytest.fixture(scope="module")
def enforcer(repository: Path, rows: list[list[str]], tenants: list[str]) -> casbin.Enforcer:
    """A plain enforcer on the shipped model, the rows of domain ``*`` copied to every tenant of the example fleet."""
    enforcer = casbin.Enforcer(str(repository / "policies" / "casbin" / "model.conf"))
    for kind, subject, *rest in rows:
        if kind == "g":
            enforcer.add_grouping_policy(subject, *rest)
            continue
        domain, *what = rest
        for each in tenants if domain == EVERY_TENANT else [domain]:
            enforcer.add_policy(subject, each, *what)
    return enforcer


def test_every_row_has_the_shape_of_the_model(rows: list[list[str]]) -> None:
    assert {(row[0], len(row)) for row in rows} == {("p", 6), ("g", 4)}
    assert len({tuple(row) for row in rows}) == len(rows), "a row stands twice"


def test_every_pool_group_of_the_example_fleet_is_an_object_of_some_row(
    repository: Path, rows: list[list[str]]
) -> None:
    groups = {pool.group for pool in load_fleet(repository / "examples" / "fleet").pools.values()}

    assert groups == {row[3] for row in rows if row[0] == "p" and row[4] in ("view", "place")}


def test_every_tenant_of_the_example_fleet_has_a_role(rows: list[list[str]], tenants: list[str]) -> None:
    assert {f"tenant:{name}" for name in tenants} == {row[1] for row in rows if row[0] == "g"}


@pytest.mark.parametrize(
    ("tenant", "group", "sees", "places"),
    [
        ("eu-bank", "own-eu", True, True),
        ("eu-bank", "hyperscale-us", True, False),
        ("eu-bank", "own-hospital", False, False),
        ("st-anna-hospital", "own-hospital", True, True),
        ("st-anna-hospital", "api-eu", True, False),
        ("spark-startup", "own-eu", False, False),
        ("spark-startup", "neocloud-global", True, True),
        ("globex-saas", "serverless-global", True, True),
    ],
)
def test_tenants_see_and_place_by_their_roles(
    enforcer: casbin.Enforcer, tenant: str, group: str, sees: bool, places: bool
) -> None:
    assert enforcer.enforce(f"tenant:{tenant}", tenant, group, "view") is sees
    assert enforcer.enforce(f"tenant:{tenant}", tenant, group, "place") is places


def test_one_row_that_denies_outweighs_the_role_that_allows(enforcer: casbin.Enforcer) -> None:
    assert enforcer.enforce("anywhere", "globex-saas", "neocloud-global", "place") is True
    assert enforcer.enforce("tenant:globex-saas", "globex-saas", "neocloud-global", "place") is False


def test_a_role_in_one_domain_is_none_in_another(enforcer: casbin.Enforcer) -> None:
    assert enforcer.enforce("tenant:spark-startup", "eu-bank", "api-us", "place") is False


def test_local_decides_and_reads_for_every_tenant_and_never_changes_anything(
    enforcer: casbin.Enforcer, rows: list[list[str]], tenants: list[str]
) -> None:
    for tenant in tenants:
        assert enforcer.enforce("local", tenant, "decisions", "decide") is True
        assert enforcer.enforce("local", tenant, "audit", "read") is True
    actions = {row[4] for row in rows if row[0] == "p" and row[1] == "local"}

    assert actions == {"decide", "simulate", "read"}
    assert not [row for row in rows if row[0] == "g" and row[1] == "local"]


def test_no_role_approves_what_it_activates(rows: list[list[str]]) -> None:
    may = {action: {row[1] for row in rows if row[0] == "p" and row[4] == action} for action in ("activate", "approve")}

    assert may["activate"]
    assert may["approve"]
    assert not may["activate"] & may["approve"]


def test_the_auditor_only_reads(rows: list[list[str]]) -> None:
    assert {row[4] for row in rows if row[0] == "p" and row[1] == "auditor"} == {"read"}
