"""Every check of a policy tree beside a fleet: what keeps it from going live, and what is wrong in it all the same.

    error     it may not go live, or a rule or row in it does nothing             ends ``policyd policy check`` with 3
    warning   a fact of the fleet that ran out, is unknown or merely assumed      shown, and an error with ``--strict``

Rules: all checks run and all their findings are reported, not only the first; a check that cannot run because an
earlier one failed is left out, and that one's findings say why. It activates nothing and records nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import PurePosixPath
from typing import Final

from policyd.core.fleet import Fleet
from policyd.core.verdict import PolicySet
from policyd.engines.entitlement_review import idle_rows
from policyd.engines.rule_review import idle_rules, undocumented_rules
from policyd.errors import Finding, FleetInvalid, PolicyInvalid
from policyd.ports import Engine, Entitlements, PolicyTree
from policyd.revisions.fleet_review import review as fleet_review
from policyd.revisions.policy_files import policy_tree
from policyd.services.activation import dead_denials, unreadable_paths
from policyd.services.cases import read_cases

CHECKS: Final = {
    "files": "The files are those of a policy tree",
    "compile": "Syntax, METADATA, rule ids, built-ins, shape of what is exported, what is read",
    "input": "What packages read exists in the input",
    "rules": "Every rule is used, says something of its own and hides nothing",
    "documented": "Every rule says what it is for",
    "entitlements": "Casbin: the model, unknown roles, circles, denials that deny nothing",
    "rows": "Casbin: rows that allow nobody anything",
    "cases": "Golden cases are well formed",
    "fleet": "The fleet holds together",
    "facts": "Facts have a source, were verified and are in date",
}
"""What is checked, by the name that findings carry."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One finding, the check that found it, and whether it is an ``error`` or a ``warning``."""

    check: str
    level: str
    where: str
    message: str


@dataclass(frozen=True, slots=True)
class Review:
    """What was found; ``policies`` only of a tree that compiles."""

    tree: PolicyTree | None
    policies: PolicySet | None
    remarks: tuple[Remark, ...]

    @property
    def errors(self) -> tuple[Remark, ...]:
        """The remarks that are errors."""
        return tuple(remark for remark in self.remarks if remark.level == "error")


EntitlementsOf = Callable[[str, str, Fleet], Entitlements]


async def review(
    files: Mapping[PurePosixPath, bytes],
    commit: str | None,
    fleet_of: Callable[[], Fleet],
    engine: Engine,
    entitlements_of: EntitlementsOf,
    today: date,
) -> Review:
    """Run every check on the files of a tree. ``fleet_of`` may raise ``FleetInvalid``."""
    remarks: list[Remark] = []
    fleet = _fleet(fleet_of, remarks, today)
    remarks += _errors("cases", _cases(files))
    try:
        tree = policy_tree(dict(files), commit)
    except PolicyInvalid as error:
        return Review(None, None, (*_errors("files", error.findings), *remarks))
    policies: PolicySet | None = None
    try:
        policies = await engine.load(tree)
        remarks += _errors("input", unreadable_paths(policies))
    except PolicyInvalid as error:
        remarks += _errors("compile", error.findings)
    else:
        remarks += _errors("rules", idle_rules(tree.modules))
        remarks += _errors("documented", undocumented_rules(tree.modules))
    if fleet is not None:
        remarks += _entitlements(tree, fleet, entitlements_of)
    order = list(CHECKS)
    return Review(tree, policies, tuple(sorted(remarks, key=lambda remark: order.index(remark.check))))


def _errors(check: str, findings: Iterable[Finding]) -> list[Remark]:
    return [Remark(check, "error", finding.where, finding.message) for finding in findings]


def _fleet(fleet_of: Callable[[], Fleet], remarks: list[Remark], today: date) -> Fleet | None:
    try:
        fleet = fleet_of()
    except FleetInvalid as error:
        remarks += _errors("fleet", error.findings)
        return None
    found = [*fleet_review(fleet, today), *_unproved(fleet)]
    remarks += [Remark("facts", "warning", finding.where, finding.message) for finding in found]
    return fleet


def _unproved(fleet: Fleet) -> Iterable[Finding]:
    """Pools whose facts nobody vouches for."""
    for pool in fleet.pools.values():
        absent = [name for name in ("source", "verified_by", "expires") if getattr(pool.evidence, name) is None]
        if absent:
            yield Finding(f"pools.{pool.id}.evidence", f"names no {', '.join(absent)}")


def _cases(files: Mapping[PurePosixPath, bytes]) -> Iterable[Finding]:
    try:
        read_cases(cases_in(files))
    except PolicyInvalid as error:
        return error.findings
    return ()


def cases_in(files: Mapping[PurePosixPath, bytes]) -> dict[str, bytes]:
    """The files of golden cases of a tree."""
    return {
        str(path): content
        for path, content in files.items()
        if len(path.parts) == 2 and path.parts[0] == "cases" and path.suffix == ".yaml"
    }


def _entitlements(tree: PolicyTree, fleet: Fleet, entitlements_of: EntitlementsOf) -> list[Remark]:
    try:
        built = entitlements_of(tree.casbin_model, tree.casbin_rows, fleet)
    except PolicyInvalid as error:
        return _errors("entitlements", error.findings)
    found = _errors("entitlements", dead_denials(built, fleet))
    return found + _errors("rows", idle_rows(tree.casbin_rows, fleet))
