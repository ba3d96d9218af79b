"""The gate ``impact`` in the order of gates: what it is asked for, and what its answer asks of the gate after it.

    replay in a process of its own ──► its shares ──► passed or refused
                                   └─► would place what a hard rule refused ──► one approval more, whatever the share

Rules: what serves nowhere yet has nothing to be compared with, and passes; what needs an approval where nobody is named
who could give one is refused, so that it is not left to wait for nobody; what does not say whether it needs one, does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from policyd.revisions.approval_gate import Besides
from policyd.revisions.gates import GateResult
from policyd.services.gate_runs import Offer

IMPACT: Final = "impact"
APPROVALS_NEEDED: Final = 1
"""Of somebody who has neither written nor signed the commit: the second person."""


@dataclass(frozen=True)
class ImpactGate:
    """``replay`` runs it; ``approvable`` says that persons are named who could approve what it finds."""

    replay: Callable[[Offer], Awaitable[Sequence[GateResult]]]
    approvable: bool

    async def __call__(self, offer: Offer) -> tuple[GateResult, ...]:
        """What the gate says; nothing when it is not to run. Raises as ``replay`` does."""
        if IMPACT not in offer.gates:
            return ()
        if offer.live is None:
            said = "nothing was live before, so there is nothing to compare with"
            return (GateResult(IMPACT, True, said, details={"needs_approval": False}),)
        return tuple(self._judged(result) for result in await self.replay(offer))

    def _judged(self, result: GateResult) -> GateResult:
        if self.approvable or not (result.passed and needs_of([result.to_json()])):
            return result
        said = f"{result.said}; name those who could give it: revisions.allowed_signers_file"
        return replace(result, passed=False, said=said)


def needs_of(gates: Iterable[Mapping[str, Any]]) -> tuple[Besides, ...]:
    """The approvals that the impact asks for, of what gates said as ``GateResult.to_json`` writes it."""
    found = [gate["details"] for gate in gates if gate["gate"] == IMPACT]
    asking = [details for details in found if details.get("needs_approval") is not False]
    if not asking:
        return ()
    hard = asking[0].get("hard", "unknown")
    return (Besides(APPROVALS_NEEDED, f"logged decisions that would be placed where a hard rule refused: {hard}"),)
