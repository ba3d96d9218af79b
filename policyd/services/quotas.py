"""Pools whose group an account has no room for: they are refused, and the decision goes on with the others. Pure.

    made ──submitted──► groups without room ──spilled──► decided again without their pools ──submitted──► …

Rules: a full group refuses its own pools and nothing else; what is left is ranked as if they had been refused before;
the record names the account and the places of the pools among the rows of its sheet, so that a replay refuses the same
ones; each round takes out at least one group, so there are no more rounds than groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from policyd.core.decide import Spilled, decide
from policyd.core.sheet import Sheet
from policyd.services.answers import Made

POLICY: Final = "budget"
QUOTA_EXHAUSTED: Final = "quota_exhausted"
"""The rule that refuses the pools of a group without room."""


def spilled(made: Made, exhausted: Sequence[Mapping[str, Any]], groups: Mapping[str, str]) -> Made:
    """The decision without the pools of these groups that it has ranked. ``groups`` has the group of each pool.

    Where two accounts have no room for a group, the first one is named.
    """
    ranked = {scored.row.pool for scored in made.decision.ranked}
    places: dict[str, list[int]] = {}
    for place, row in enumerate(made.sheet.rows):
        if row.pool in ranked:
            places.setdefault(groups.get(row.pool, ""), []).append(place)
    found = [{**full, "rows": rows} for full in exhausted if (rows := places.pop(full["pools"], None))]
    told = (*made.spilled, *found)
    decision = decide(made.workload, made.sheet, made.facts, refusals_of(made.sheet, told))
    return made._replace(decision=decision, spilled=told)


def refusals_of(sheet: Sheet, told: Iterable[Mapping[str, Any]]) -> Spilled:
    """The violation of each pool that a record says was spilled."""
    violations = [(_violation(full), full["rows"]) for full in told]
    return {sheet.rows[place].pool: violation for violation, places in violations for place in places}


def refusals_of_groups(sheet: Sheet, told: Iterable[Mapping[str, Any]], groups: Mapping[str, str]) -> Spilled:
    """The violation of every eligible pool of a group that a record says was full, on whatever sheet: for a replay on
    another revision, where the places of the record mean nothing."""
    full = {each["pools"]: _violation(each) for each in told}
    if not full:
        return {}
    return {row.pool: full[group] for row in sheet.rows if (group := groups.get(row.pool, "")) in full}


def _violation(full: Mapping[str, Any]) -> dict[str, Any]:
    account, group, unit = full["path"], full["pools"], full["unit"]
    if full["why"] == "unknown":
        message = f"nobody can say how many {unit} this would take of account {account} in the group {group}"
    elif full["why"] == "debt":
        message = f"account {account} holds more {unit} in the group {group} than its quota of {full['limit']}"
    else:
        message = (
            f"account {account} has {full['remaining']} of {full['limit']} {unit} left in the group {group}, "
            f"and {full['asked']} are needed"
        )
    return {
        "policy": POLICY,
        "rule": QUOTA_EXHAUSTED,
        "enforcement": "hard",
        "location": f"docs/rules/core.md#{QUOTA_EXHAUSTED}",
        "message": message,
        "observed": {
            "account": account,
            "pools": group,
            "unit": unit,
            "limit": full["limit"],
            "remaining": full["remaining"],
        },
        "required": full["asked"],
        "remedy": "use a pool of another group, wait for running work to settle, or have the quota raised",
    }
