"""A snapshot: one policy revision, one fleet revision and one set of entitlements, immutable and swapped whole.

What is derived from the three (groupings per model, merged terms) is kept beside them, because it is as immutable as
they are; the memory it takes is bounded by models and projects of the fleet, never by requests.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from policyd.core.classes import ClassReads, Grouping, PoolSides, class_reads, group_pools, pool_sides
from policyd.core.fleet import Fleet
from policyd.core.verdict import PolicySet


class Permits(Protocol):
    """The part of the entitlements port that the core asks; a refusal is False, a failure raises."""

    @property
    def digest(self) -> str:
        """Content address of model and rows."""

    def permits(self, subject: str, domain: str, obj: str, action: str) -> bool:
        """Whether the subject may do the action on the object in the domain."""

    def denies(self, subject: str, domain: str, obj: str, action: str) -> bool:
        """Whether a row denies it."""


@dataclass(frozen=True)
class Snapshot:
    """Everything a sheet is made from, except the workload class."""

    policies: PolicySet
    fleet: Fleet
    entitlements: Permits
    _groupings: dict[str, Grouping] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def digest(self) -> str:
        """Content address of the three parts and the engine that evaluates them."""
        parts = (self.policies.digest, self.fleet.digest, self.entitlements.digest, self.policies.engine)
        return "sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @cached_property
    def reads(self) -> ClassReads:
        """What the policies read of the class side."""
        return class_reads(self.policies)

    @cached_property
    def sides(self) -> PoolSides:
        """The pools as policies see them, whatever the model."""
        return pool_sides(self.fleet, self.policies)

    def named(self, policies: PolicySet, fleet: Fleet) -> Snapshot:
        """The same content by the names of other commits; whoever asks has compared the digests."""
        return Snapshot(policies, fleet, self.entitlements, self._groupings)

    def grouping(self, model: str) -> Grouping:
        """The fleet's pools grouped for one model; made on first use."""
        grouping = self._groupings.get(model)
        if grouping is None:
            grouping = group_pools(self.fleet, self.policies, model, self.sides)
            self._groupings[model] = grouping
        return grouping
