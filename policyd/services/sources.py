"""Follows the sources of both trees: what was read last, what may be tried, what is good, and what serves meanwhile.

    look ──► newest tree of each kind ──► gates ──► wanted ──► a pair to try ──► activation ──► good: kept, confirmed
                 │ fault                    └─ refused               └──► refused: not tried again for a while
                 └──► the last good one serves, and the fault is told

Rules: when both trees are new and the pair is refused, each is tried beside the good other one, so that a broken policy
does not hold up a fleet; where gates stand before the pair (``gated``), only what they let through is wanted at all; a
refused pair is tried again after ``RETRY_S``, since an engine can fail too; a source that is not followed is read when
somebody asks, and its faults are raised. All reading is bounded by the sources themselves.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final

from policyd.errors import FleetInvalid, PolicydError, PolicyInvalid, RevisionError
from policyd.ports import TreeSource
from policyd.revisions import fleet_files, policy_files
from policyd.revisions.kept import KeptTrees, Tree
from policyd.revisions.tree_files import TreeFiles
from policyd.revisions.trees import read_tree, tree_commit
from policyd.services.clock import Now, now_us
from policyd.services.freshness import FLEET, POLICIES, Freshness, SourceState

RETRY_S: Final = 600.0
CONFIRM_EVERY_US: Final = 60_000_000
"""How often the time of the last confirmation goes to disk."""
REFUSED_MAX: Final = 64
_log: Final = logging.getLogger(__name__)


@dataclass
class Followed:
    """One source that is polled: what it has now, and what of it went live last."""

    kind: str
    source: TreeSource
    kept: KeptTrees
    stale_max_ms: int | None
    newest: Tree | None = None
    good: Tree | None = None
    confirmed_us: int = 0
    read_us: int = 0
    """When the source was asked what it answered last."""
    noted_us: int = 0
    wanted: Tree | None = None
    """What is to be live, where gates stand before it."""
    held: str | None = None
    """The digest of the newest, when it is not to be live yet, or not any more: what is live is confirmed then."""
    refused: str | None = None
    """Why the newest is not let through by its gates, as a sentence."""
    fault: str | None = None
    """Why nothing could be read at the last look; then ``newest`` is what is good."""

    def read(self, now_us: int) -> None:
        """Look what the source has now; a fault leaves what is good."""
        if self.good is None:
            kept = self.kept.live()
            if kept is not None:
                self.good, self.confirmed_us = kept
        # What is good may be another one by the time that the source has answered.
        before, known = self.fault, self.good
        try:
            found = self.source.read(None if known is None else known.commit)
        except PolicydError as error:
            if error.detail != before:
                _log.error("%s: %s", self.kind, error.detail)
            self.fault, self.newest = error.detail, self.good
            return
        if before is not None:
            _log.warning("%s: %s can be read again", self.kind, self.source.place)
        self.newest = known if found is None else Tree.of(found.files, found.commit, found.proof)
        self.fault, self.read_us = None, now_us

    @property
    def confirmed(self) -> bool:
        """Whether the source was read, and has what went live last."""
        if self.fault is not None or self.newest is None or self.good is None:
            return False
        if self.held is not None and self.newest.digest == self.held:
            return True
        return (self.newest.digest, self.newest.commit) == (self.good.digest, self.good.commit)

    def confirm(self, now_us: int) -> None:
        """Note the time at which the source was asked, on disk once in a while."""
        assert self.good is not None
        self.confirmed_us = now_us
        if now_us - self.noted_us < CONFIRM_EVERY_US:
            return
        self.noted_us = now_us
        try:
            self.kept.confirm(self.good, now_us)
        except OSError as error:
            _log.error("%s: the time of the last confirmation is not on disk: %s", self.kind, error.strerror)

    def went_live(self, tree: Tree, now_us: int) -> None:
        """Keep what went live."""
        if tree is not self.good:
            self.good, self.noted_us = tree, now_us
            try:
                newest = self.newest is not None and _named(tree) == _named(self.newest)
                self.kept.keep(tree, now_us if newest else self.confirmed_us)
            except RevisionError as error:
                _log.error("%s", error.detail)


Pair = tuple[Tree, Tree]
"""Policies and fleet."""


def _named(tree: Tree) -> tuple[str, str | None]:
    return tree.digest, tree.commit


def _key(pair: Pair) -> tuple[str, str | None, str, str | None]:
    return (*_named(pair[0]), *_named(pair[1]))


@dataclass
class Sources:
    """Both trees. ``fixed`` are the folders of the kinds that no source is followed for."""

    followed: dict[str, Followed]
    fixed: dict[str, Path]
    poll_ms: int = 10_000
    gated: bool = False
    """Whether gates stand before the pair: whoever keeps them looks at the sources then, and who reads does not."""
    asked: bool = False
    """Whether somebody wants the sources to be looked at soon."""
    freshness: Freshness = field(default_factory=Freshness)
    now: Now = now_us
    _fixed_trees: dict[str, Tree] = field(default_factory=dict)
    _trying: Pair | None = None
    _live: Pair | None = None
    _handed: tuple[Pair, TreeFiles] | None = None
    _refused: dict[tuple[str, str | None, str, str | None], tuple[float, str]] = field(default_factory=dict)
    _reading: Lock = field(default_factory=Lock)

    def read(self) -> TreeFiles:
        """The trees to try now: the newest pair, or the best one that is left. Raises when there is none at all."""
        with self._reading:
            self._trying = None
            for kind, path in self.fixed.items():
                self._fixed_trees[kind] = _fixed_tree(kind, path)
            if self.gated:
                self.asked = True
            else:
                self._poll()
            pair = self._next_pair() or self._live
            if pair is None:
                raise self._nothing()
            self._trying = pair
            if self._handed is None or _key(pair) != _key(self._handed[0]):
                self._handed = pair, self._files(pair)
            return self._handed[1]

    def to_try(self) -> bool:
        """Whether there is something to try, by what was read last."""
        with self._reading:
            return self._next_pair() is not None

    def waits_for(self, key: tuple[str, ...]) -> bool:
        """Whether the pair of these digests and commits is the next to try, and does not serve yet."""
        with self._reading:
            pair = self._trying or self._next_pair()
            return pair is not None and tuple(name or "" for name in _key(pair)) == key

    def look(self) -> None:
        """Look what every followed source has now, and at the folders once."""
        with self._reading:
            for kind, path in self.fixed.items():
                if kind not in self._fixed_trees:
                    self._fixed_trees[kind] = _fixed_tree(kind, path)
        # Not under the lock: a source may take its whole deadline, and what is to be live does not wait for it.
        for followed in self.followed.values():
            followed.read(self.now())

    def tell(self) -> None:
        """Say what is known of every source, after its gates have spoken."""
        with self._reading:
            self._judge()

    def beside(self, kind: str) -> Tree | None:
        """The tree of a kind that others stand beside: what is wanted, live, or in its folder."""
        followed = self.followed.get(kind)
        if followed is None:
            return self._fixed_trees.get(kind)
        return followed.wanted or followed.good

    def why_not(self, kind: str) -> str | None:
        """Why what is wanted of this kind was refused when it was to go live."""
        with self._reading:
            wanted = self.followed[kind].wanted
            return None if wanted is None else self._why_refused(kind, wanted)

    def files(self, policies: Tree, fleet: Tree) -> TreeFiles:
        """Both trees, as something that can be handed on."""
        return self._files((policies, fleet))

    def settled(self, fault: PolicydError | str | None) -> bool:
        """Say what became of the pair that was tried; whether another one is left."""
        with self._reading:
            if self._trying is None:
                return False
            pair, self._trying = self._trying, None
            if fault is None:
                self._went_live(pair)
            elif isinstance(fault, str | RevisionError):
                said = fault if isinstance(fault, str) else _told(fault)
                if len(self._refused) >= REFUSED_MAX:
                    self._refused.clear()
                self._refused[_key(pair)] = (time.monotonic(), said)
            self._judge()
            return isinstance(fault, str | RevisionError) and self._next_pair() is not None

    def _poll(self) -> None:
        for followed in self.followed.values():
            followed.read(self.now())
        self._judge()

    def _went_live(self, pair: Pair) -> None:
        self._live = pair
        for kind, tree in zip((POLICIES, FLEET), pair, strict=True):
            if kind in self.followed:
                self.followed[kind].went_live(tree, self.now())

    def _judge(self) -> None:
        """What is told of every source: that it has what is live, or why not."""
        for kind, followed in self.followed.items():
            if followed.confirmed:
                followed.confirm(followed.read_us)
            fault, newest = followed.fault, followed.newest
            if fault is None and newest is not None and followed.refused is not None:
                fault = followed.refused
            elif fault is None and newest is not None and (said := self._why_refused(kind, newest)) is not None:
                fault = f"{newest.commit or newest.digest} was refused: {said}"
            self.freshness.states[kind] = SourceState(
                followed.source.place, fault, followed.confirmed_us, followed.stale_max_ms
            )

    def _why_refused(self, kind: str, tree: Tree) -> str | None:
        """Why a tree that is not good was refused, the last time that it was tried."""
        followed = self.followed[kind]
        if followed.good is not None and _named(tree) == _named(followed.good):
            return None
        at = 0 if kind == POLICIES else 2
        said = [said for key, (_, said) in self._refused.items() if key[at : at + 2] == _named(tree)]
        return said[-1] if said else None

    def _candidates(self) -> list[Pair]:
        """Both newest, then one of them beside the other good one, then what is good."""
        policies, fleet = self._newest_and_good(POLICIES), self._newest_and_good(FLEET)
        pairs = [(new, other) for new in policies for other in fleet]
        return sorted(pairs, key=lambda pair: (pair[0] is not policies[0]) + (pair[1] is not fleet[0]))

    def _newest_and_good(self, kind: str) -> list[Tree]:
        followed = self.followed.get(kind)
        if followed is None:
            trees = [self._fixed_trees.get(kind)]
        else:
            trees = [followed.wanted if self.gated else followed.newest, followed.good]
        return list({_named(tree): tree for tree in reversed(trees) if tree is not None}.values())[::-1]

    def _next_pair(self) -> Pair | None:
        """The best pair that is neither live nor refused lately."""
        now = time.monotonic()
        for pair in self._candidates():
            if self._live is not None and _key(pair) == _key(self._live):
                return None
            refused = self._refused.get(_key(pair))
            if refused is None or now - refused[0] > RETRY_S:
                return pair
        return None

    def _nothing(self) -> PolicydError:
        """Why nothing can be served at all."""
        for followed in self.followed.values():
            if followed.fault is not None:
                return RevisionError(
                    f"no {followed.kind} to serve, and none are kept from before: {followed.fault}",
                    remedy="mend the source; once a revision went live, it is kept for such a time",
                )
        said = next((said for _, said in self._refused.values()), "nothing was read")
        return RevisionError(f"no pair of revisions may go live: {said}")

    def _files(self, pair: Pair) -> TreeFiles:
        policies, fleet = pair
        return TreeFiles(
            self._root(POLICIES),
            policies.files,
            policies.commit,
            self._root(FLEET),
            fleet.files,
            fleet.commit,
        )

    def _root(self, kind: str) -> Path:
        followed = self.followed.get(kind)
        if followed is not None:
            return Path(followed.source.place)
        path = self.fixed[kind]
        return path if kind == POLICIES or path.is_dir() else path.parent


def _told(fault: RevisionError) -> str:
    """What is at fault, with the first place where it can be mended."""
    first = str(fault.findings[0]) if fault.findings else ""
    return fault.detail if first in fault.detail else f"{fault.detail}: {first}"


def _fixed_tree(kind: str, path: Path) -> Tree:
    suffixes, invalid = _SHAPES[kind]
    files = read_tree(path, suffixes, invalid)
    return Tree.of(files, tree_commit(path, files, suffixes))


_SHAPES: Final[dict[str, tuple[tuple[str, ...], type[RevisionError]]]] = {
    POLICIES: (policy_files.SUFFIXES, PolicyInvalid),
    FLEET: (fleet_files.SUFFIXES, FleetInvalid),
}
