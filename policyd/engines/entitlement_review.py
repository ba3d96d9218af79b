"""Rows of the entitlements that say nothing: of nobody, for nowhere, about nothing, or outweighed by another row.

Rules: pure; a review names rows that can be taken away without changing an answer, each with its line; what may not go
live at all (unknown kinds, circles, roles without rows) is found when the entitlements are built, and not here. The
subjects of rows about the control plane may be named by the settings, so only rows about pools are held to the fleet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from policyd.core.fleet import Fleet
from policyd.core.normalise import nearest
from policyd.engines.entitlements import EVERY_DOMAIN, ROWS_PATH, Row, rows_of
from policyd.errors import Finding

POOL_ACTIONS = ("view", "place")
TENANT = "tenant:"


def idle_rows(text: str, fleet: Fleet) -> list[Finding]:
    """A finding for each row that gives and takes nothing, in the order of the lines."""
    rows = rows_of(text, [])
    tenants, groups = fleet.tenants, {pool.group for pool in fleet.pools.values()}
    held = {row.values[1] for row in rows if row.section == "g"}
    found = [
        Finding(f"{ROWS_PATH}:{row.line}", said)
        for row in rows
        if (said := _idle_role(row, tenants) if row.section == "g" else _idle_right(row, tenants, groups, held))
    ]
    found += _outweighed(rows)
    return sorted(found, key=lambda finding: int(finding.where.rpartition(":")[2]))


def _idle_role(row: Row, tenants: Collection[str]) -> str | None:
    subject, _, domain = row.values
    if domain != EVERY_DOMAIN and domain not in tenants:
        return f"the role is given in {domain!r}, which is no tenant{nearest(domain, tenants)}"
    return _no_tenant(subject, tenants)


def _idle_right(row: Row, tenants: Collection[str], groups: Collection[str], held: Collection[str]) -> str | None:
    subject, domain, obj, action, effect = row.values
    if domain != EVERY_DOMAIN and domain not in tenants:
        return f"the row is for {domain!r}, which is no tenant{nearest(domain, tenants)}"
    if action not in POOL_ACTIONS:
        return _no_tenant(subject, tenants)
    if effect == "deny":  # a denial of nothing is a fault, found when both revisions are built
        return None
    if obj not in groups:
        return f"no pool is of the group {obj!r}{nearest(obj, groups)}"
    if subject.startswith(TENANT):
        return _no_tenant(subject, tenants)
    return None if subject in held else f"nobody has the role {subject!r}, so this row allows nothing"


def _no_tenant(subject: str, tenants: Collection[str]) -> str | None:
    if not subject.startswith(TENANT) or subject.removeprefix(TENANT) in tenants:
        return None
    name = subject.removeprefix(TENANT)
    return f"there is no tenant {name!r}{nearest(name, tenants)}"


def _outweighed(rows: Sequence[Row]) -> Iterator[Finding]:
    """Rows that a wider row of the same subject repeats, and allowing rows that a denial of the same subject undoes."""
    rights = [row for row in rows if row.section == "p"]
    first: dict[tuple[str, ...], Row] = {row.values: row for row in reversed(rights)}
    for row in rights:
        subject, domain, obj, action, effect = row.values
        for place in {domain, EVERY_DOMAIN}:
            denial = first.get((subject, place, obj, action, "deny"))
            if effect == "allow" and denial is not None:
                yield Finding(f"{ROWS_PATH}:{row.line}", f"line {denial.line} denies the same, and outweighs it")
        wider = first.get((subject, EVERY_DOMAIN, obj, action, effect))
        if domain != EVERY_DOMAIN and wider is not None:
            yield Finding(f"{ROWS_PATH}:{row.line}", f"line {wider.line} says the same of every tenant")
