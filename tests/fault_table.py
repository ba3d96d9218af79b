"""The fault table: what was done to the log and the ledger, how often, and what was lost. Printed below the tests.

    @pytest.mark.fault("SIGKILL under load") ──► the test counts with ``counted`` ──► one row at the end of the session

Rules: a row says what tests counted, and adds up what tests of the same fault counted; a test that counted nothing says
``-`` and no zero; one that failed or was skipped says so in its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest

Counted = Callable[[str, int], None]


@dataclass
class Row:
    """One fault. None is what no test has counted."""

    fault: str
    rounds: int | None = None
    acknowledged: int | None = None
    lost: int | None = None
    unaccounted: int | None = None
    result: str = "passed"

    def add(self, name: str, count: int) -> None:
        """Count more of it."""
        setattr(self, name, (getattr(self, name) or 0) + count)

    def cells(self) -> list[str]:
        """As text, in the order of the columns."""
        counts = (self.rounds, self.acknowledged, self.lost, self.unaccounted)
        return [self.fault, *("-" if count is None else f"{count:,}" for count in counts), self.result]


COLUMNS = ["fault", "rounds", "acknowledged", "lost", "unaccounted", "result"]
COUNTS = frozenset(COLUMNS[1:5])


@pytest.fixture
def counted(record_property: Callable[[str, object], None]) -> Counted:
    """Say how many ``rounds`` there were, and what was ``acknowledged``, ``lost`` or ``unaccounted`` for."""

    def count(name: str, number: int) -> None:
        assert name in COUNTS, name
        record_property(f"fault.{name}", number)

    return count


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("fault")
    if marker is not None:
        item.user_properties.append(("fault", marker.args[0]))


def rows_of(reports: Iterable[pytest.TestReport]) -> list[Row]:
    """A row for each fault, in the order of the tests."""
    rows: dict[str, Row] = {}
    for report in reports:
        properties = dict(report.user_properties)
        fault = properties.get("fault")
        # Set-up tells of skips and failures only; the counts of a test are in each of its reports.
        if fault is None or (report.when != "call" and report.passed):
            continue
        row = rows.setdefault(str(fault), Row(str(fault)))
        if not report.passed and row.result != "failed":
            row.result = report.outcome
        for name, number in report.user_properties:
            if name.startswith("fault."):
                assert isinstance(number, int)
                row.add(name.removeprefix("fault."), number)
    return list(rows.values())


def table(rows: Iterable[Row]) -> list[str]:
    """The lines of the table."""
    lines = [COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(COLUMNS))]
    return [
        "  ".join(
            cell.rjust(width) if COLUMNS[place] in COUNTS else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report
        for outcome in ("passed", "failed", "skipped")
        for report in terminalreporter.stats.get(outcome, ())
        if isinstance(report, pytest.TestReport)
    ]
    rows = rows_of(reports)
    if rows:
        terminalreporter.section("faults")
        for line in table(rows):
            terminalreporter.write_line(line)
