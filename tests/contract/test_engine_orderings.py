"""Text and numbers are ordered differently by each engine, so a rule that would compare them does not go live."""

from __future__ import annotations

import asyncio
from pathlib import PurePosixPath

import pytest

from policyd.engines.embedded import EmbeddedEngine
from policyd.errors import Finding, PolicyInvalid
from policyd.ports import PolicyTree

HEAD = """# METADATA
# title: Order
# custom: {enforcement: hard, owner: tests, remedy: none}
package placement.order

default limit := 0

limit := data.settings.limit

above(x, y) if x > y

"""
RULE = 'deny contains {{"rule": "r", "observed": 1}} if {{\n\t{0}\n}}\n'
MIXED = {
    "a quoted setting": ('"30"', "input.pool.retention_days > data.settings.limit"),
    "a quoted setting behind a rule": ('"30"', "input.pool.retention_days > limit"),
    "a quoted setting behind a function": ('"30"', "above(input.pool.retention_days, data.settings.limit)"),
    "a list in a setting": ("[30]", "input.pool.retention_days >= data.settings.limit"),
    "a label and a number": ("30", "input.pool.labels.rank < 5"),
    "a date and a setting": ("30", "input.clock.date < data.settings.limit"),
    "two facts": ("30", "input.pool.evidence.expires <= input.pool.retention_days"),
    "lists": ("30", "input.pool.dedicated_to < input.tenant.certifications"),
}
ALIKE = {
    "numbers": ("30", "input.pool.retention_days > data.settings.limit"),
    "a sum": ("30", "input.pool.retention_days > data.settings.limit + 1"),
    "a constant": ("30", "input.pool.retention_days > 5"),
    "behind a rule": ("30", "above(input.pool.retention_days, limit)"),
    "dates": ('"2026-01-01"', "input.pool.evidence.expires < data.settings.limit"),
    "a date and a text": ("30", 'input.clock.date < "2027-01-01"'),
    "texts and numbers in one function": (
        "30",
        'above(input.pool.retention_days, 5)\n\tabove(input.clock.date, "2026-01-01")',
    ),
    "labels": ("30", 'input.pool.labels.rank < "5"'),
}


def findings_of(setting: str, body: str) -> tuple[Finding, ...]:
    modules = {PurePosixPath("order.rego"): HEAD + RULE.format(body)}
    settings = {PurePosixPath("settings.yaml"): f"settings: {{limit: {setting}}}\n"}

    async def run() -> tuple[Finding, ...]:
        engine = EmbeddedEngine(1)
        try:
            await engine.load(PolicyTree("sha256:order", None, modules, {}, settings, "", ""))
        except PolicyInvalid as refused:
            return refused.findings
        finally:
            await engine.close()
        return ()

    return asyncio.run(run())


@pytest.mark.parametrize(("setting", "body"), MIXED.values(), ids=MIXED)
def test_what_has_no_order_is_a_finding(setting: str, body: str) -> None:
    [found] = findings_of(setting, body)
    assert found.where in ("order.rego:13", "order.rego:10")
    assert "can be ordered" in found.message


@pytest.mark.parametrize(("setting", "body"), ALIKE.values(), ids=ALIKE)
def test_what_has_an_order_passes(setting: str, body: str) -> None:
    assert findings_of(setting, body) == ()
