"""Changes that take two approvals: what takes protection away, or says who may.

    policies   a hard rule that is gone or weaker · OWNERS · rows of Casbin about the control plane, and its model
    fleet      what a pool is, for the policies: where, whose, how isolated, what was verified · a tenant's floors, and
               what the words in them mean · OWNERS

Rules: pure, over both revisions as they were read; a change is protected in both directions, because which of them
is the safer one is what the second person is for; what cannot be told apart counts as changed. Who the allowed signers
are is no part of a tree, so no revision changes that.
It does not see a hard rule that is there still and fires less often: that is found by the impact on real decisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from policyd.core.fleet import Fleet, Tenant
from policyd.core.verdict import Enforcement, RuleDoc
from policyd.revisions.owners import OWNERS
from policyd.revisions.policy_files import CASBIN_MODEL, CASBIN_ROWS

DATA_PLANE: Final = frozenset({"view", "place"})
"""What tenants do with pools; every other action is of the control plane."""
POOL_FACTS: Final = (
    "group",
    "account",
    "network",
    "tenancy",
    "dedicated_to",
    "hardware",
    "locations",
    "region_binding",
    "operator",
    "sub_processors",
    "certifications",
    "retention_days",
    "trains_on_data",
    "evidence",
)
"""What policies protect data by. Prices, speeds and sizes are not among them."""
Files = Mapping[PurePosixPath, bytes]
Rules = Mapping[str, Mapping[str, RuleDoc]]
"""The rules of each package, by their ids."""


@dataclass(frozen=True, slots=True)
class ProtectedChange:
    """One such change: which kind, where it stands, and what it is, for whoever is to approve it."""

    kind: str
    where: str
    message: str

    def to_json(self) -> dict[str, str]:
        """As a document."""
        return {"kind": self.kind, "where": self.where, "message": self.message}


@dataclass(frozen=True, slots=True)
class PolicySide:
    """A policy revision: its files, and the rules of its packages as their METADATA describes them."""

    files: Files
    rules: Rules


@dataclass(frozen=True, slots=True)
class FleetSide:
    """A fleet revision: its files, and the fleet that they are."""

    files: Files
    fleet: Fleet


Side = PolicySide | FleetSide


def protected_changes(before: Side, after: Side) -> tuple[ProtectedChange, ...]:
    """Every protected change from the one that is live to the one that would be; both are of one kind."""
    found = list(_owners(before.files, after.files))
    if isinstance(before, PolicySide) and isinstance(after, PolicySide):
        found += [*_hard_rules(before.rules, after.rules), *_control_plane(before.files, after.files)]
    elif isinstance(before, FleetSide) and isinstance(after, FleetSide):
        found += [*_pools(before.fleet, after.fleet), *_floors(before.fleet, after.fleet)]
    else:
        raise TypeError("a policy revision is compared with one, and a fleet with a fleet")
    return tuple(found)


def _owners(before: Files, after: Files) -> Iterator[ProtectedChange]:
    if before.get(OWNERS) != after.get(OWNERS):
        verb = "is gone" if OWNERS not in after else "is new" if OWNERS not in before else "is another one"
        yield ProtectedChange("owners", str(OWNERS), f"OWNERS {verb}: it says who must approve what")


def _hard_rules(before: Rules, after: Rules) -> Iterator[ProtectedChange]:
    for package, rules in sorted(before.items()):
        for rule in sorted(filter(_is_hard, rules.values()), key=lambda doc: doc.rule):
            told, found = f"{package}.{rule.rule}", after.get(package, {}).get(rule.rule)
            if found is None:
                yield ProtectedChange("hard_rule.removed", rule.location, f"the hard rule {told} is gone")
            elif not _is_hard(found):
                said = found.enforcement.value if found.export == "deny" else "a warning"
                yield ProtectedChange("hard_rule.weakened", found.location, f"the hard rule {told} is {said} now")


def _is_hard(rule: RuleDoc) -> bool:
    return rule.export == "deny" and rule.enforcement is Enforcement.HARD


Row = tuple[str, ...]


def _control_plane(before: Files, after: Files) -> Iterator[ProtectedChange]:
    if before.get(CASBIN_MODEL) != after.get(CASBIN_MODEL):
        yield ProtectedChange("control_plane", str(CASBIN_MODEL), "the model of Casbin is another one")
    rows = [_casbin_rows(files.get(CASBIN_ROWS, b"")) for files in (before, after)]
    holders = _holders([*rows[0], *rows[1]])
    own, new = ({row: line for row, line in each.items() if _controls(row, holders)} for each in rows)
    for row in sorted(own.keys() - new.keys()):
        yield ProtectedChange("control_plane", f"{CASBIN_ROWS}:{own[row]}", f"the row `{', '.join(row)}` is gone")
    for row in sorted(new.keys() - own.keys()):
        yield ProtectedChange("control_plane", f"{CASBIN_ROWS}:{new[row]}", f"the row `{', '.join(row)}` is new")


def _casbin_rows(content: bytes) -> dict[Row, int]:
    """Every row with its line; what is no row is kept as it is, so that a change of it counts."""
    found: dict[Row, int] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").split("\n"), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            found[tuple(value.strip() for value in text.split(","))] = number
    return found


def _holders(rows: Iterable[Row]) -> set[str]:
    """Who holds something of the control plane: by a row of their own, or by a role that does."""
    grants = [(row[1], row[2]) for row in rows if row[0] == "g" and len(row) >= 3]
    holders = {row[1] for row in rows if row[0] == "p" and len(row) >= 5 and row[4] not in DATA_PLANE}
    while True:
        more = {subject for subject, role in grants if role in holders} - holders
        if not more:
            return holders
        holders |= more


def _controls(row: Row, holders: set[str]) -> bool:
    if row[0] == "p" and len(row) == 6:
        return row[4] not in DATA_PLANE
    if row[0] == "g" and len(row) == 4:
        return row[2] in holders
    return True


def _pools(before: Fleet, after: Fleet) -> Iterator[ProtectedChange]:
    for id, pool in before.pools.items():
        now = after.pools.get(id)
        if now is None:
            continue  # it serves nobody any more
        for name in POOL_FACTS:
            was, becomes = (_plain(getattr(each, name)) for each in (pool, now))
            if was != becomes:
                yield ProtectedChange(f"pool.{name}", f"pools.{id}.{name}", f"{name} of {id}: {_said(was, becomes)}")


def _floors(before: Fleet, after: Fleet) -> Iterator[ProtectedChange]:
    for name, tenant in before.tenants.items():
        now = after.tenants.get(name)
        if now is None:
            continue
        was, becomes = _floors_of(tenant), _floors_of(now)
        for where in sorted(was.keys() | becomes.keys()):
            if was.get(where) != becomes.get(where):
                said = _said(was.get(where), becomes.get(where))
                yield ProtectedChange("floors", f"tenants.{name}.{where}", f"{where} of {name}: {said}")
    for what in ("place_groups", "classification_map"):
        pair = [_plain(getattr(fleet.document, what)) for fleet in (before, after)]
        for word in sorted(pair[0].keys() | pair[1].keys()):
            if pair[0].get(word) != pair[1].get(word):
                said = _said(pair[0].get(word), pair[1].get(word))
                yield ProtectedChange(what, f"{what}.{word}", f"{word}, which floors may name: {said}")
    for name, source in before.data_sources.items():
        other = after.data_sources.get(name)
        if other is not None and _plain(source) != _plain(other):
            yield ProtectedChange(
                "data_source", f"data_sources.{name}", f"what the data of {name} are is another thing"
            )


def _floors_of(tenant: Tenant) -> dict[str, Any]:
    """The floors of a tenant and of its projects. A project that is not named has those of the tenant."""
    found = {f"floors.{name}": value for name, value in _plain(tenant.floors).items()}
    found["default_project"] = tenant.default_project
    for project in tenant.projects:
        stated = {name: value for name, value in _plain(project.floors).items() if value not in (None, [])}
        found.update({f"projects.{project.name}.floors.{name}": value for name, value in stated.items()})
        if project.sources:
            found[f"projects.{project.name}.sources"] = list(project.sources)
    return found


def _plain(value: Any) -> Any:
    """A declared value as JSON values."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return getattr(value, "value", value)


def _said(was: Any, becomes: Any) -> str:
    """What of it is another one, not the whole."""
    if isinstance(was, Mapping) and isinstance(becomes, Mapping):
        parts = [name for name in (was.keys() | becomes.keys()) if was.get(name) != becomes.get(name)]
        return ", ".join(f"{name} {_said(was.get(name), becomes.get(name))}" for name in sorted(parts))
    return f"{_short(was)} becomes {_short(becomes)}"


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "nothing" if value in (None, []) else text if len(text) <= 80 else f"{text[:79]}…"
