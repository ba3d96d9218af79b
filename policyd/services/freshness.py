"""How sure it is that what is live is the newest there is: since when a source could not confirm it, and for how long
that may go on.

Rules: a source that answers with what is live leaves no trace in a decision; from the first fault on, every decision
names since when its revision was not confirmed; beyond ``stale_max_ms`` no decision is made at all, also when nobody
has told of a fault, since whoever looks at the source may hang.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from policyd.errors import RevisionStale
from policyd.services.clock import rfc3339

POLICIES = "policies"
FLEET = "fleet"


@dataclass(frozen=True, slots=True)
class SourceState:
    """What is known of one source: its place in words, its fault, and when it last confirmed what is live."""

    place: str
    fault: str | None
    confirmed_us: int
    stale_max_ms: int | None

    @property
    def stale_since(self) -> str | None:
        """The time of the last confirmation, when the source has a fault since."""
        return rfc3339(self.confirmed_us) if self.fault is not None else None

    def too_old(self, now_us: int) -> bool:
        """Whether the limit is reached."""
        return self.stale_max_ms is not None and now_us - self.confirmed_us > self.stale_max_ms * 1_000


@dataclass
class Freshness:
    """The state of every source that is followed; kinds without a source have none."""

    states: dict[str, SourceState] = field(default_factory=dict)

    def since(self, kind: str) -> str | None:
        """Since when the live revision of that kind was not confirmed; None when it is, or nothing follows it."""
        state = self.states.get(kind)
        return None if state is None else state.stale_since

    def both(self) -> tuple[str | None, str | None]:
        """That of the policies and that of the fleet."""
        return (self.since(POLICIES), self.since(FLEET)) if self.states else (None, None)

    def require(self, now_us: int) -> None:
        """Raise ``RevisionStale`` when a revision was not confirmed for longer than is allowed."""
        for kind, state in self.states.items():
            if state.too_old(now_us):
                raise RevisionStale(
                    f"the {kind} were last confirmed at {rfc3339(state.confirmed_us)}, and stale_max_ms is "
                    f"{state.stale_max_ms}: {state.fault or 'nobody has looked at the source since'}"
                )

    def faults(self) -> Iterator[str]:
        """A sentence for each source with a fault."""
        for kind, state in self.states.items():
            if state.fault is not None:
                yield f"{kind}: {state.fault}; last confirmed at {rfc3339(state.confirmed_us)}"

    def to_json(self) -> dict[str, Any]:
        """For another process."""
        return {kind: asdict(state) for kind, state in self.states.items()}

    def take(self, document: Mapping[str, Any]) -> None:
        """What ``to_json`` gave in another process."""
        self.states = {kind: SourceState(**state) for kind, state in document.items()}
