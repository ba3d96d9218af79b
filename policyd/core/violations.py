"""From what a policy or the core found to words that a person can act on.

Rules: messages are rendered here and not by engines, which print numbers differently; the order of violations is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import orjson

from policyd.core.places import COUNTRIES, compact
from policyd.core.verdict import Enforcement, Package, RuleDoc, Violation

CORE: Final = "core"
"""Policy name of the violations that the core itself adds; their page is ``docs/rules/core.md``."""

POLICIES: Final = "policies/"
"""Where a reader of a violation finds its rule: packages know their path in the policy tree, people know the tree."""


def violations_of(package: Package, denials: Sequence[Mapping[str, Any]], *, advisory: bool = False) -> list[Violation]:
    """A package's ``deny`` or ``warn`` objects with the words of its METADATA; unknown rules take the package's.

    Objects of one rule that require the same and observed named things (``{"storage": "US"}``) become one violation
    that names them all: a person mends a pool, not each of its countries.
    """
    if not denials:
        return []
    merged: dict[tuple[str, bytes], dict[str, Any]] = {}
    single: list[tuple[str, Any, Any]] = []
    for denial in denials:
        rule, observed, required = str(denial.get("rule", "unnamed")), denial.get("observed"), denial.get("required")
        if isinstance(observed, Mapping):
            together = merged.setdefault((rule, orjson.dumps(required, option=orjson.OPT_SORT_KEYS)), {})
            for name, value in observed.items():
                together.setdefault(name, []).append(value)
        else:
            single.append((rule, observed, required))
    for (rule, required_json), together in merged.items():
        single.append(
            (rule, {name: _one_or_all(values) for name, values in together.items()}, orjson.loads(required_json))
        )
    return [_violation(package, *parts, advisory=advisory) for parts in single]


def _one_or_all(values: list[Any]) -> Any:
    """A single value as it is, several as a sorted list of distinct ones."""
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    distinct = {orjson.dumps(item, option=orjson.OPT_SORT_KEYS): item for item in flat}
    if len(values) == 1:
        return values[0]
    return [distinct[key] for key in sorted(distinct)]


def _violation(package: Package, rule: str, observed: Any, required: Any, *, advisory: bool) -> Violation:
    doc = package.rules.get(rule) or RuleDoc(rule, package.location, package.title, package.enforcement, package.remedy)
    required = _brief(required)
    return Violation(
        policy=package.name,
        rule=rule,
        enforcement=Enforcement.ADVISORY if advisory else doc.enforcement,
        location=POLICIES + doc.location,
        message=f"{doc.title}: found {words(observed)}, required {words(required)}",
        observed=observed,
        required=required,
        remedy=doc.remedy,
    )


def _brief(required: Any) -> Any:
    """A long list of countries as the groups it consists of; anything else as it is."""
    if not isinstance(required, list) or len(required) <= _COUNTRIES_LISTED:
        return required
    names = tuple(required)
    return list(_grouped(names)) if all(type(name) is str for name in names) else required


@lru_cache(maxsize=256)
def _grouped(names: tuple[str, ...]) -> tuple[str, ...]:
    """The pools of a class are refused for the same list, so it is looked at once."""
    return tuple(compact(names)) if COUNTRIES.issuperset(names) else names


_COUNTRIES_LISTED: Final = 6


def words(value: Any) -> str:
    """A JSON value as a person reads it."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {words(value[key])}" for key in sorted(value))
    if isinstance(value, list | tuple):
        shown = [words(item) for item in value[:12]]
        return ", ".join(shown) + (f" and {len(value) - 12} more" if len(value) > 12 else "") if value else "nothing"
    return orjson.dumps(value).decode()


def violation_order(violation: Mapping[str, Any]) -> tuple[str, str, bytes]:
    """The one order of violations: by policy, rule and what was observed."""
    return violation["policy"], violation["rule"], orjson.dumps(violation["observed"], option=orjson.OPT_SORT_KEYS)


def core_violation(rule: str, message: str, observed: Any, required: Any, remedy: str = "") -> Violation:
    """A hard violation that the core itself found."""
    return Violation(
        policy=CORE,
        rule=rule,
        enforcement=Enforcement.HARD,
        location=f"docs/rules/core.md#{rule}",
        message=message,
        observed=observed,
        required=required,
        remedy=remedy or "have the fleet owner declare the fact, with its source",
    )


def fact_missing(package: Package, paths: Sequence[str]) -> Violation:
    """The hard violation of a pool about which nobody declared what the package reads."""
    return Violation(
        policy=package.name,
        rule="fact_missing",
        enforcement=Enforcement.HARD,
        location=POLICIES + package.location,
        message=f"{package.title}: nobody declared {', '.join(sorted(set(paths)))}",
        observed="missing",
        required=sorted(set(paths)),
        remedy="have the fleet owner declare the fact, with its source",
    )
