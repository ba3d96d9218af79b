"""The fault table says what tests counted, and that a test failed or was skipped."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from tests.fault_table import rows_of, table


def report(
    fault: str | None, outcome: Literal["passed", "failed", "skipped"] = "passed", when: Any = "call", **counts: int
) -> pytest.TestReport:
    properties: list[tuple[str, object]] = [] if fault is None else [("fault", fault)]
    properties += [(f"fault.{name}", count) for name, count in counts.items()]
    return pytest.TestReport("test", ("test.py", 1, "test"), {}, outcome, None, when, user_properties=properties)


def test_counts_of_the_same_fault_add_up() -> None:
    rows = rows_of(
        [
            report("kill", rounds=2, acknowledged=1_000, lost=0),
            report("kill", rounds=3, lost=1),
            report(None),
            report("kill", when="teardown", rounds=3),
        ]
    )
    assert [row.cells() for row in rows] == [["kill", "5", "1,000", "1", "-", "passed"]]


def test_what_failed_or_was_skipped_is_told() -> None:
    rows = rows_of([report("disk", "skipped", "setup"), report("kill"), report("kill", "failed"), report("kill")])
    assert [(row.fault, row.result, row.lost) for row in rows] == [("disk", "skipped", None), ("kill", "failed", None)]
    assert [line.split()[-1] for line in table(rows)] == ["result", "skipped", "failed"]
