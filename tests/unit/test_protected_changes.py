"""What takes two approvals, and what does not: on the shipped policies and fleet, with one thing changed at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from policyd.core.fleet import Fleet
from policyd.core.verdict import Enforcement, RuleDoc
from policyd.revisions.fleet_files import parse_fleet
from policyd.revisions.owners import OWNERS
from policyd.revisions.protected_changes import FleetSide, PolicySide, protected_changes

ROOT = Path(__file__).parents[2]
ROWS = PurePosixPath("casbin/rows.csv")
MODEL = PurePosixPath("casbin/model.conf")
CASBIN = {path: (ROOT / "policies" / path).read_bytes() for path in (ROWS, MODEL)}
HARD = RuleDoc("location", "residency/residency.rego:10", "Where", Enforcement.HARD, "move it")
SOFT = replace(HARD, rule="distance", enforcement=Enforcement.SOFT)


def _policies(rules: Mapping[str, RuleDoc], files: Mapping[PurePosixPath, bytes] = CASBIN) -> PolicySide:
    return PolicySide(files, {"residency": rules})


def _told(before: PolicySide | FleetSide, after: PolicySide | FleetSide) -> list[tuple[str, str]]:
    return [(change.kind, change.message) for change in protected_changes(before, after)]


BEFORE = _policies({"location": HARD, "distance": SOFT})


def test_a_hard_rule_that_is_gone_or_weaker_is_protected() -> None:
    gone = ("hard_rule.removed", "the hard rule residency.location is gone")
    assert _told(BEFORE, _policies({"distance": SOFT})) == [gone]
    assert _told(BEFORE, PolicySide(CASBIN, {})) == [gone]
    for weaker, said in (
        (replace(HARD, enforcement=Enforcement.SOFT), "soft"),
        (replace(HARD, enforcement=Enforcement.ADVISORY), "advisory"),
        (replace(HARD, export="warn", enforcement=Enforcement.ADVISORY), "a warning"),
    ):
        found = _told(BEFORE, _policies({"location": weaker, "distance": SOFT}))
        assert found == [("hard_rule.weakened", f"the hard rule residency.location is {said} now")]


def test_what_protects_more_or_is_soft_is_not() -> None:
    assert _told(BEFORE, BEFORE) == []
    assert _told(BEFORE, _policies({"location": HARD})) == []
    assert _told(BEFORE, _policies({"location": HARD, "distance": replace(SOFT, enforcement=Enforcement.HARD)})) == []
    assert _told(BEFORE, _policies({"location": replace(HARD, title="Other", location="x:1"), "distance": SOFT})) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("p, developer, *, revisions, activate, allow", "is new"),
        ("p, developer, *, revisions, activate, deny", "is new"),
        ("  p ,developer,*,audit,export,allow ", "is new"),
        ("g, oidc:4711, governance, acme", "is new"),
        ("p, too, few", "is new"),
        ("x, what, is, this", "is new"),
    ],
)
def test_rows_of_the_control_plane_are_protected(line: str, said: str) -> None:
    more = {**CASBIN, ROWS: CASBIN[ROWS] + f"{line}\n".encode()}
    for before, after, verb in ((CASBIN, more, said), (more, CASBIN, "is gone")):
        found = _told(PolicySide(before, {}), PolicySide(after, {}))
        assert [kind for kind, _ in found] == ["control_plane"]
        assert found[0][1].endswith(verb)


def test_roles_that_reach_the_control_plane_through_others_are_protected() -> None:
    chain = b"g, oidc:1, helper, acme\ng, helper, deputy, acme\ng, deputy, governance, acme\n"
    after = {**CASBIN, ROWS: CASBIN[ROWS] + chain}
    assert len(_told(PolicySide(CASBIN, {}), PolicySide(after, {}))) == 3


def test_who_may_place_where_is_not_of_the_control_plane() -> None:
    after = {
        **CASBIN,
        ROWS: CASBIN[ROWS] + b"# a comment\n\np, uk, *, spot-us, place, allow\ng, tenant:nordic-lab, uk, nordic-lab\n",
    }
    assert _told(PolicySide(CASBIN, {}), PolicySide(after, {})) == []
    assert _told(PolicySide(CASBIN, {}), PolicySide({**CASBIN, ROWS: CASBIN[ROWS].replace(b", ", b",")}, {})) == []


def test_the_model_and_owners_are_protected() -> None:
    other = {**CASBIN, MODEL: CASBIN[MODEL] + b"# more\n"}
    assert _told(PolicySide(CASBIN, {}), PolicySide(other, {})) == [
        ("control_plane", "the model of Casbin is another one")
    ]
    owned, others = {**CASBIN, OWNERS: b"* 0\n"}, {**CASBIN, OWNERS: b"* 1\n"}
    for before, after, verb in ((CASBIN, owned, "new"), (owned, CASBIN, "gone"), (owned, others, "another one")):
        found = _told(PolicySide(before, {}), PolicySide(after, {}))
        assert found == [("owners", f"OWNERS is {verb}: it says who must approve what")]


FLEET = {PurePosixPath(path.name): path.read_text() for path in (ROOT / "examples/fleet").glob("*.yaml")}


def _fleet(change: tuple[str, str] = ("", ""), more: str = "") -> FleetSide:
    """The example fleet with one text in the place of another, and a file more."""
    files = {path: text.replace(*change) if change[0] else text for path, text in FLEET.items()}
    content = {path: text.encode() for path, text in files.items()}
    if more:
        content[PurePosixPath("more.yaml")] = more.encode()
    return FleetSide(content, parse_fleet(content))


def _changed(fleet: Fleet, pool: str, **fields: object) -> FleetSide:
    """The fleet with some facts of a pool changed."""
    pools = tuple(each.model_copy(update=fields) if each.id == pool else each for each in fleet.document.pools)
    return FleetSide({}, replace(fleet, document=fleet.document.model_copy(update={"pools": pools})))


def test_what_a_pool_is_for_the_policies_is_protected() -> None:
    before = _fleet()
    fleet = before.fleet
    pool = next(pool for pool in fleet.pools.values() if pool.locations.processing == ("DE",))
    locations = pool.locations.model_copy(update={"processing": ("US",)})
    operator = pool.operator.model_copy(update={"seat": "US"})
    evidence = pool.evidence.model_copy(update={"verified_by": "somebody else"})
    other = "shared" if pool.tenancy != "shared" else "dedicated"
    for name, value, said in (
        ("locations", locations, "processing DE becomes US"),
        ("operator", operator, "becomes US"),
        ("tenancy", other, f"becomes {other}"),
        ("evidence", evidence, "becomes somebody else"),
        ("group", "another-group", "becomes another-group"),
    ):
        found = protected_changes(FleetSide({}, fleet), _changed(fleet, pool.id, **{name: value}))
        assert [(change.kind, change.where) for change in found] == [(f"pool.{name}", f"pools.{pool.id}.{name}")]
        assert said in found[0].message
    for name, value in (("price", None), ("capacity", None), ("cold_start_ms", 7), ("labels", {"a": "b"})):
        assert protected_changes(FleetSide({}, fleet), _changed(fleet, pool.id, **{name: value})) == ()


def test_floors_and_the_words_in_them_are_protected() -> None:
    before = _fleet().fleet
    tenant = before.document.tenants[0]
    floors = tenant.floors.model_copy(update={"residency": ("US",)})
    project = tenant.projects[0]
    looser = project.model_copy(update={"floors": project.floors.model_copy(update={"network": "public"})})
    for changed, where in (
        (tenant.model_copy(update={"floors": floors}), "floors.residency"),
        (
            tenant.model_copy(update={"projects": (looser, *tenant.projects[1:])}),
            f"projects.{project.name}.floors.network",
        ),
    ):
        document = before.document.model_copy(update={"tenants": (changed, *before.document.tenants[1:])})
        found = protected_changes(FleetSide({}, before), FleetSide({}, replace(before, document=document)))
        assert [change.where for change in found] == [f"tenants.{tenant.name}.{where}"]
    document = before.document.model_copy(update={"place_groups": {**before.document.place_groups, "near": ("US",)}})
    found = protected_changes(FleetSide({}, before), FleetSide({}, replace(before, document=document)))
    assert [(change.kind, change.message) for change in found] == [
        ("place_groups", "near, which floors may name: nothing becomes US")
    ]


def test_the_same_fleet_from_other_files_is_no_protected_change() -> None:
    before = _fleet()
    assert protected_changes(before, _fleet(more="currencies: {}\n")) == ()
    gone = replace(before.fleet, document=before.fleet.document.model_copy(update={"pools": ()}))
    assert protected_changes(before, FleetSide(before.files, gone)) == ()
    with pytest.raises(TypeError):
        protected_changes(before, BEFORE)
