"""The states of a revision, and what leads from one to the next: tables and pure rules.

    (none) ──seen──► candidate ──gates──► waiting ──► shadow ──► canary ──► live ──► retired
                         │  a gate is not passed, a guard, somebody rolls it back │        │
                         └───────────────────────► refused ◄─────────────────────┘        └─ rollback ─► live

Rules: a revision is a tree of one kind, named by its digest; of each kind at most one is live, and at most one on its
way. It refuses every step that the table does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from policyd.errors import RevisionConflict

RevisionKind = Literal["policy", "fleet"]
KINDS: Final[tuple[RevisionKind, ...]] = get_args(RevisionKind)
State = Literal["candidate", "refused", "waiting", "shadow", "canary", "live", "retired"]
STATES: Final[tuple[State, ...]] = get_args(State)
"""Stored as their position here: append at the end, never reorder."""
Verb = Literal[
    "seen", "judged", "wait", "shadow", "canary", "activate", "retire", "rollback", "refuse", "pause", "resume"
]
VERBS: Final[tuple[Verb, ...]] = get_args(Verb)
ON_ITS_WAY: Final[tuple[State, ...]] = ("shadow", "canary")

_GOES: Final[Mapping[Verb, Mapping[State | None, State]]] = {
    "seen": {None: "candidate", "refused": "candidate", "retired": "candidate"},
    "judged": {"candidate": "candidate", "waiting": "waiting"},
    "wait": {"candidate": "waiting"},
    "shadow": {"candidate": "shadow", "waiting": "shadow"},
    "canary": {"candidate": "canary", "waiting": "canary", "shadow": "canary"},
    "activate": {"candidate": "live", "waiting": "live", "shadow": "live", "canary": "live", "live": "live"},
    "retire": {
        "candidate": "retired",
        "waiting": "retired",
        "shadow": "retired",
        "canary": "retired",
        "live": "retired",
    },
    "rollback": {"retired": "live", "refused": "live", "live": "refused", "canary": "refused", "shadow": "refused"},
    "refuse": {
        "candidate": "refused",
        "waiting": "refused",
        "shadow": "refused",
        "canary": "refused",
        "live": "refused",
    },
    "pause": {"shadow": "shadow", "canary": "canary"},
    "resume": {"shadow": "shadow", "canary": "canary"},
}
"""Where each verb leads from each state; None is a revision that nobody has seen."""
_NEEDS_GATES: Final[tuple[Verb, ...]] = ("shadow", "canary", "activate")


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision as it stands. ``blob`` names its files in the log; ``version`` grows with every step; ``since_us`` is
    when it came into its state, ``gates`` what they said, as ``GateResult.to_json`` writes it."""

    kind: str
    digest: str
    commit: str | None
    blob: str
    state: State
    verb: Verb
    said: str
    gates: Sequence[Mapping[str, Any]]
    paused: bool
    seen_us: int
    since_us: int
    served_us: int
    """When it last went live; 0 when it never did."""
    version: int

    @property
    def name(self) -> str:
        """What a person calls it."""
        return self.commit or self.digest


@dataclass(frozen=True, slots=True)
class Move:
    """One revision's part of a step: ``version`` is that of the revision as it was read, 0 for one not seen before."""

    kind: str
    digest: str
    verb: Verb
    version: int
    said: str = ""
    commit: str | None = None
    blob: str = ""
    gates: tuple[Mapping[str, Any], ...] = ()
    """What gates said in this step; those of the same name from before are replaced."""


def moved(found: Revision | None, move: Move, time_us: int) -> Revision:
    """The revision after its part of a step. Raises ``RevisionConflict`` when it does not stand where it was read."""
    state = None if found is None else found.state
    if (0 if found is None else found.version) != move.version:
        raise RevisionConflict(f"{move.kind} {move.commit or move.digest} is {state or 'gone'} by now")
    goes = _GOES[move.verb].get(state)
    if goes is None:
        raise RevisionConflict(
            f"{move.kind} {move.commit or move.digest} is {state or 'not known'}: {_CANNOT[move.verb]}"
        )
    if move.verb == "rollback" and goes == "live" and not (found is not None and found.served_us):
        raise RevisionConflict(f"{move.kind} {move.commit or move.digest} was never live, so nobody can go back to it")
    told = {each["gate"] for each in move.gates}
    before = () if found is None or move.verb == "seen" else found.gates
    gates = (*(each for each in before if each["gate"] not in told), *move.gates)
    if move.verb in _NEEDS_GATES and not all(each["passed"] for each in gates):
        raise RevisionConflict(f"{move.kind} {move.commit or move.digest} has not passed its gates")
    return Revision(
        kind=move.kind,
        digest=move.digest,
        commit=move.commit if found is None or move.commit is not None else found.commit,
        blob=move.blob or ("" if found is None else found.blob),
        state=goes,
        verb=move.verb,
        said=move.said if move.verb != "judged" or found is None else found.said,
        gates=gates,
        paused=move.verb == "pause",
        seen_us=time_us if found is None else found.seen_us,
        since_us=time_us if found is None or goes != found.state else found.since_us,
        served_us=time_us if goes == "live" else 0 if found is None else found.served_us,
        version=move.version + 1,
    )


_CANNOT: Final[Mapping[Verb, str]] = {
    verb: f"{verb} starts from {', '.join(state for state in goes if state is not None)}"
    for verb, goes in _GOES.items()
}


def check_together(revisions: Iterable[Revision]) -> None:
    """Raise ``RevisionConflict`` when of a kind two are live, or two on their way."""
    live: dict[str, str] = {}
    way: dict[str, str] = {}
    for each in revisions:
        for found, states in ((live, ("live",)), (way, ON_ITS_WAY)):
            if each.state in states and found.setdefault(each.kind, each.digest) != each.digest:
                raise RevisionConflict(f"another {each.kind} is {states[0]} already: {found[each.kind]}")


@dataclass(frozen=True, slots=True)
class Plan:
    """How a revision that has passed its gates goes live. ``steps`` are those before it is live, with the least time
    in each. Where a person activates (not ``automatic``), one takes the last step too."""

    automatic: bool = True
    steps: tuple[State, ...] = ()
    least_us: Mapping[str, int] | None = None

    def begins(self, *, asked: bool) -> Verb:
        """The first step after the gates."""
        if not (self.automatic or asked):
            return "wait"
        return _verb(self.steps[0]) if self.steps else "activate"

    def goes_on(self, revision: Revision, time_us: int) -> Verb | None:
        """The step that is due for a revision on its way."""
        if revision.state not in ON_ITS_WAY or revision.paused or not self.automatic:
            return None
        if time_us - revision.since_us < (self.least_us or {}).get(revision.state, 0):
            return None
        later = [step for step in self.steps if ON_ITS_WAY.index(step) > ON_ITS_WAY.index(revision.state)]
        return _verb(later[0]) if later else "activate"


def _verb(step: State) -> Verb:
    return "shadow" if step == "shadow" else "canary"
