"""The gates that a revision passes before it serves, and what one of them says.

    signature ──► check ──► tests ──► impact ──► approval ──► it may serve

Rules: the order is fixed, and the first gate that is not passed ends the way; a gate says in one sentence why, for a
person, and names the places that can be mended; what it says goes into the log, so it has a length.
It refuses to leave a gate open: whatever raises in a gate is that gate not passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from policyd.errors import Finding

GateName = Literal["signature", "check", "tests", "impact", "approval"]
GATES: Final[tuple[GateName, ...]] = get_args(GateName)
"""In the order in which a revision passes them."""
FINDINGS_TOLD_MAX: Final = 20
SAID_MAX_CHARACTERS: Final = 500


@dataclass(frozen=True, slots=True)
class GateResult:
    """What a gate says of a revision: ``said`` is a sentence, ``findings`` the single faults, ``details`` figures in
    JSON's own types, kept with the revision."""

    gate: str
    passed: bool
    said: str
    findings: tuple[Finding, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a document of bounded length, for the log and the API; ``findings_total`` tells of those left out."""
        return {
            "gate": self.gate,
            "passed": self.passed,
            "said": _cut(self.said),
            "findings": [[_cut(each.where), _cut(each.message)] for each in self.findings[:FINDINGS_TOLD_MAX]],
            "findings_total": len(self.findings),
            "details": dict(self.details),
        }


def _cut(text: str) -> str:
    return text if len(text) <= SAID_MAX_CHARACTERS else text[: SAID_MAX_CHARACTERS - 1] + "…"
