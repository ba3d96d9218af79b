"""From what a policy or the core found to words that a person can act on.

Rules: messages are rendered here and not by engines, which print numbers differently; the order of violations is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from policyd.core.verdict import Enforcement, Package, RuleDoc, Violation

CORE: Final = "core"
"""Policy name of the violations that the core itself adds; their page is ``docs/rules/core.md``."""


def violation_of(package: Package, fields_: Mapping[str, Any], *, advisory: bool = False) -> Violation:
    """A policy's ``deny`` or ``warn`` object with the words of its METADATA; unknown rules take the package's."""
    rule = str(fields_.get("rule", "unnamed"))
    doc = package.rules.get(rule) or RuleDoc(rule, package.location, package.title, package.enforcement, package.remedy)
    observed, required = fields_.get("observed"), fields_.get("required")
    return Violation(
        policy=package.name,
        rule=rule,
        enforcement=Enforcement.ADVISORY if advisory else doc.enforcement,
        location=doc.location,
        message=f"{doc.title}: found {_words(observed)}, required {_words(required)}",
        observed=observed,
        required=required,
        remedy=doc.remedy,
    )


def _words(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(value[key])}" for key in sorted(value))
    if isinstance(value, list | tuple):
        shown = [_words(item) for item in value[:12]]
        return ", ".join(shown) + (f" and {len(value) - 12} more" if len(value) > 12 else "") if value else "nothing"
    return orjson.dumps(value).decode()


def violation_order(violation: Mapping[str, Any]) -> tuple[str, str, bytes]:
    return violation["policy"], violation["rule"], orjson.dumps(violation["observed"], option=orjson.OPT_SORT_KEYS)


def core_violation(rule: str, message: str, observed: Any, required: Any, remedy: str = "") -> Violation:
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
    return Violation(
        policy=package.name,
        rule="fact_missing",
        enforcement=Enforcement.HARD,
        location=package.location,
        message=f"{package.title}: nobody declared {', '.join(sorted(set(paths)))}",
        observed="missing",
        required=sorted(set(paths)),
        remedy="have the fleet owner declare the fact, with its source",
    )
