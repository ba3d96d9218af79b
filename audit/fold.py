"""Checking a log from its first entry to its last: entries and checkpoints go in, in order, and a verdict comes out.

Rules: pure, and flat in the length of the log; a checkpoint counts when a known key signed it and its root is that of
what came before; a key that an entry names, signed with a known one, is known from then on; an anchor is a root that
somebody else has kept or signed. What is reported first is what is wrong first.
It refuses to say "untampered": whoever holds the signing key can rewrite what nobody else has seen.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from json import loads
from typing import Final

from audit.balances import Balances
from audit.checkpoint import Checkpoint, open_checkpoint, open_rotation
from audit.errors import KeyInvalid, LogCorrupt, LogRolledBack, ProofInvalid
from audit.gap import Gap, read_gap
from audit.note import LOG_ALGORITHM, VerifierKey
from audit.retention import Pending, Warrant, read_warrant
from audit.seen import read_seen
from audit.tree import Edge, Run

GAPS_MAX: Final = 1_000
"""Restores that one log may tell of."""
SEEN_MAX: Final = 1_024
"""Other logs that one log may tell of."""
WARRANTS_MAX: Final = 1_000
"""Warrants that a verdict names, the newest; it counts all."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A root that somebody vouches for: ``who``, in words that stand after "by"."""

    size: int
    root: bytes
    who: str
    own: bool = False
    """Whether the log keeps it itself: then it must hold, and anchors nothing."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far the word of a verification goes. ``fault`` is None when nothing is wrong."""

    origin: str
    first: int
    entries: int
    """Entries from ``first`` on that were read and are what was recorded."""
    checkpoints: int
    covered: int
    """The size of the last checkpoint that verified: what lies beyond is not signed yet."""
    anchors: tuple[Anchor, ...]
    keys: tuple[VerifierKey, ...]
    key_given: bool
    """Whether the reader brought the key, or the log named its own."""
    gaps: tuple[Gap, ...] = ()
    """What the log says itself that it has lost."""
    seen: tuple[Checkpoint, ...] = ()
    """The newest checkpoint of each other log that this one has seen."""
    accounts: int | None = None
    """Budget accounts whose changes follow each other; None when they were not folded."""
    elsewhere: int = 0
    """Changes of these accounts that other logs have."""
    passed_over: int = 0
    """Changes of these accounts that were in bodies which retention removed."""
    removed: int = 0
    """Bodies that are missing; without a fault, each of them has a warrant."""
    warrants: tuple[Warrant, ...] = ()
    """The newest warrants of missing bodies."""
    warrants_total: int = 0
    error: LogCorrupt | None = None

    @property
    def fault(self) -> str | None:
        """What is wrong, in words; None when nothing is."""
        return None if self.error is None else str(self.error)

    @property
    def bad_index(self) -> int | None:
        """The first entry that is wrong, when one can be named."""
        return None if self.error is None else self.error.index

    @property
    def word(self) -> str:
        """How far it goes, in a line."""
        if self.anchors:
            return "; ".join(f"anchored to size {anchor.size} by {anchor.who}" for anchor in self.anchors)
        return "NOT ANCHORED (self-signed)"


class Fold:
    """The check of one log. Every method raises ``LogCorrupt`` or ``ProofInvalid`` at the first thing that is wrong."""

    def __init__(
        self,
        origin: str,
        keys: Iterable[VerifierKey],
        *,
        edge: Edge | None = None,
        anchors: Iterable[Anchor] = (),
        key_given: bool = True,
        accounts: bool = False,
    ) -> None:
        self._edge = edge or Edge()
        self._origin = origin
        self._keys = list(keys)
        self._key_given = key_given
        self._kept = sorted(anchors, key=lambda anchor: anchor.size)
        self._anchors: list[Anchor] = []
        self._gaps: list[Gap] = []
        self._seen: dict[str, Checkpoint] = {}
        self._pending = Pending()
        self._warrants: deque[Warrant] = deque(maxlen=WARRANTS_MAX)
        self._warrants_total = 0
        self._checkpoints = 0
        self.first = self._edge.size
        self._balances = Balances(whole=self.first == 0) if accounts else None
        self.covered = self.first
        self.extend(())

    @property
    def size(self) -> int:
        """Entries so far."""
        return self._edge.size

    @property
    def next_stop(self) -> int | None:
        """The next size at which somebody has kept a root: no batch may go past it."""
        for anchor in self._kept:
            if anchor.size > self._edge.size:
                return anchor.size
        return None

    def extend(self, leaves: Sequence[bytes]) -> list[Run]:
        """The leaf hashes of the next entries, which do not pass ``next_stop``; answers the nodes that are complete."""
        runs = self._edge.extend(leaves)
        for anchor in self._kept:
            if anchor.size == self._edge.size:
                if anchor.root != self._edge.root():
                    self._refuse_lost(anchor)
                    raise LogCorrupt(
                        f"the first {anchor.size} entries are not those that were kept by {anchor.who}",
                        index=self._suspect(),
                    )
                if not anchor.own:
                    self._anchors.append(anchor)
        return runs

    def rotation(self, index: int, body: bytes) -> None:
        """The entry at this index names a new key."""
        try:
            note = b64decode(loads(body)["note"], validate=True)
            new = open_rotation(note, self._own_keys(), origin=self._origin)
        except (ValueError, TypeError, KeyError, Base64Error, ProofInvalid, KeyInvalid) as error:
            raise LogCorrupt(f"it names a new key, and {error}", index=index) from error
        if new not in self._keys:
            self._keys.append(new)

    def gap(self, index: int, body: bytes) -> None:
        """The entry at this index says that entries were lost."""
        try:
            found = read_gap(index, body, self._own_keys(), self._origin)
        except (ProofInvalid, KeyInvalid) as error:
            raise LogCorrupt(str(error), index=index) from error
        if len(self._gaps) >= GAPS_MAX:
            raise LogCorrupt(f"it names a gap, and {GAPS_MAX} are named already", index=index)
        self._gaps.append(found)

    def missing(self, index: int) -> None:
        """The body of the entry at this index is not there: a later entry must be the warrant of that."""
        self._pending.miss(index)
        if self._balances is not None:
            self._balances.removed += 1

    def retention(self, index: int, body: bytes) -> None:
        """The entry at this index says that bodies were removed."""
        try:
            found = read_warrant(index, body)
        except ProofInvalid as error:
            raise LogCorrupt(str(error), index=index) from error
        bodies = sum(self._pending.warrant(first, last) for first, last in found.removed)
        if bodies:
            # Its ranges have done their work, and memory is flat.
            self._warrants.append(replace(found, bodies=bodies, removed=()))
            self._warrants_total += 1

    def balances(self, index: int, body: bytes) -> None:
        """The entry at this index may say something of budget accounts."""
        if self._balances is not None:
            self._balances.entry(index, body)

    def seen(self, index: int, body: bytes) -> None:
        """The entry at this index says what was seen of other logs."""
        try:
            for found in read_seen(body):
                if found.origin in self._seen or len(self._seen) < SEEN_MAX:
                    self._seen[found.origin] = found
        except ProofInvalid as error:
            raise LogCorrupt(str(error), index=index) from error

    def _refuse_lost(self, anchor: Anchor) -> None:
        """What somebody has kept of a history that the log says it has lost is a rollback with a name."""
        for gap in self._gaps:
            if gap.first < anchor.size <= gap.last + 1:
                raise LogRolledBack(
                    f"{anchor.who} has seen {anchor.size} entries of another history: {gap.words}", index=gap.first
                )

    def checkpoint(self, note: bytes) -> None:
        """A checkpoint over exactly the entries so far."""
        try:
            opened = open_checkpoint(note, self._keys, origin=self._origin)
        except (ProofInvalid, KeyInvalid) as error:
            raise LogCorrupt(f"the checkpoint over {self._edge.size} entries does not verify: {error}") from error
        found = opened.checkpoint
        if found.size != self._edge.size:
            raise LogCorrupt(
                f"a checkpoint over {found.size} entries stands where the log has {self._edge.size}",
                index=min(found.size, self._edge.size),
            )
        if found.root != self._edge.root():
            raise LogCorrupt(
                f"entries {self._suspect()} to {found.size - 1} are not those that were signed", index=self._suspect()
            )
        self._checkpoints += 1
        self.covered = found.size
        self._anchors += [
            Anchor(found.size, found.root, f"{seen.name} (seen at {seen.time_s} s)") for seen in opened.witnesses
        ]

    def verdict(self) -> Verdict:
        """What was found, when nothing was wrong."""
        missing = [anchor for anchor in self._kept if anchor.size > self._edge.size]
        if missing:
            self._refuse_lost(missing[0])
            raise LogRolledBack(
                f"the log has {self._edge.size} entries, and {missing[0].who} has seen {missing[0].size}: "
                "it was rolled back",
                index=self._edge.size,
            )
        if self._pending.first is not None:
            raise LogCorrupt("its body is missing, and no later retention entry covers it", index=self._pending.first)
        if self._balances is not None and self._balances.missing is not None and not self._seen:
            raise self._balances.missing
        return self._verdict()

    def failed(self, error: LogCorrupt) -> Verdict:
        """What was found up to what is wrong."""
        return replace(self._verdict(), error=error)

    def _verdict(self) -> Verdict:
        last: dict[str, Anchor] = {anchor.who.partition(" (seen")[0]: anchor for anchor in self._anchors}
        return Verdict(
            self._origin,
            self.first,
            self._edge.size - self.first,
            self._checkpoints,
            self.covered,
            tuple(last.values()),
            self._own_keys(),
            self._key_given,
            tuple(self._gaps),
            tuple(self._seen.values()),
            None if self._balances is None else len(self._balances.accounts),
            0 if self._balances is None else self._balances.missing_total,
            0 if self._balances is None else self._balances.passed_over,
            self._pending.total,
            tuple(self._warrants),
            self._warrants_total,
        )

    def _own_keys(self) -> tuple[VerifierKey, ...]:
        return tuple(key for key in self._keys if key.algorithm == LOG_ALGORITHM)

    def _suspect(self) -> int:
        """The first entry that nothing vouches for."""
        return max(self.covered, *(anchor.size for anchor in self._anchors), self.first)
