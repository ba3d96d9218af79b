"""What a person is told about a decision: the ranked table, each refused pool, and what residency or isolation costs.

Rules: pure; numbers come from the decision, never anew from a fleet; a sentence about money names both amounts.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from policyd.core.cost import Pricing, cost_micro_usd
from policyd.core.decide import Decision
from policyd.core.sheet import Refused, Sheet
from policyd.core.workload import Workload
from policyd.errors import RequestError


@dataclass(frozen=True, slots=True)
class Forgone:
    """A refused pool, what it would have cost, and how much dearer the first choice is, in percent of it."""

    pool: str
    kind: str
    micro_usd: int
    dearer_percent: int | None
    policies: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "pool": self.pool,
            "kind": self.kind,
            "micro_usd": self.micro_usd,
            "dearer_percent": self.dearer_percent,
            "refused_by": list(self.policies),
        }


def forgone(workload: Workload, sheet: Sheet, decision: Decision) -> list[Forgone]:
    """Refused pools that the tenant may see and that have a price, cheapest first, against the first choice."""
    chosen = decision.ranked[0].cost_micro_usd if decision.ranked else None
    found = []
    for entry in sheet.refused:
        if entry.pricing is None or entry.hidden:
            continue
        with suppress(RequestError):  # costs more than any number here may say, so nothing was forgone
            found.append(_forgone(entry, entry.pricing, workload, chosen))
    return sorted(found, key=lambda entry: (entry.micro_usd, entry.pool))


def _forgone(entry: Refused, pricing: Pricing, workload: Workload, chosen: int | None) -> Forgone:
    cost = cost_micro_usd(pricing, workload)
    dearer = None if chosen is None or cost == 0 else (100 * (chosen - cost) + cost // 2) // cost
    policies = tuple(dict.fromkeys(violation["policy"] for violation in entry.violations))
    return Forgone(entry.pool, entry.kind, cost, dearer, policies)


def price_of_policy(workload: Workload, sheet: Sheet, decision: Decision) -> dict[str, int]:
    """For each policy that alone refused some pool: by how many percent the first choice is dearer than the cheapest.

    A pool that a second policy refuses too says nothing about what the first one costs, so it is left out.
    """
    cheapest: dict[str, int] = {}
    for entry in forgone(workload, sheet, decision):
        if len(entry.policies) == 1 and entry.dearer_percent is not None:
            cheapest.setdefault(entry.policies[0], entry.dearer_percent)
    return {policy: percent for policy, percent in sorted(cheapest.items()) if percent > 0}
