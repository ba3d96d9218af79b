"""What a gate says has a length, whatever it found."""

from __future__ import annotations

import orjson

from policyd.errors import Finding
from policyd.revisions.gates import FINDINGS_TOLD_MAX, GateResult


def test_what_a_gate_says_is_a_document_of_bounded_length() -> None:
    """Ten thousand findings of any length fit into an entry, and their number is told."""
    findings = tuple(Finding("x" * 5_000, "é" * 5_000) for _ in range(10_000))
    told = GateResult("check", False, "y" * 100_000, findings, {"rules": 3}).to_json()
    assert len(told["findings"]) == FINDINGS_TOLD_MAX
    assert told["findings_total"] == 10_000
    assert told["details"] == {"rules": 3}
    assert len(orjson.dumps(told)) < 40_000


def test_what_is_short_is_said_whole() -> None:
    """Nothing is cut that fits."""
    told = GateResult("tests", True, "12 tests passed", (Finding("a.rego:3", "dead"),)).to_json()
    assert (told["said"], told["findings"], told["findings_total"]) == ("12 tests passed", [["a.rego:3", "dead"]], 1)
