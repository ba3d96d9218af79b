"""The page of metrics is what the table in ``policyd/telemetry.py`` says: every metric, and no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from policyd.telemetry import METRICS


def test_the_page_is_written_from_the_table(repository: Path) -> None:
    script = repository / "scripts" / "metrics-reference"
    written = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    assert (repository / "docs" / "reference" / "metrics.md").read_text() == written, (
        "run scripts/metrics-reference > docs/reference/metrics.md"
    )


def test_no_name_stands_twice_and_units_are_base_units() -> None:
    assert len({metric.name for metric in METRICS}) == len({metric.prometheus for metric in METRICS}) == len(METRICS)
    assert {metric.unit for metric in METRICS if not metric.unit.startswith("{")} <= {"s", "By", ""}
    assert all(metric.name.startswith(("policyd.", "process.")) for metric in METRICS)
    assert all(bool(metric.bounds) == (metric.kind == "histogram") for metric in METRICS)
