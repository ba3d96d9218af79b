"""Takes what the sources have through its gates and on its way, and says what is to be live.

    source has something new ──► seen ──► gates, one entry each ──► waiting, shadow, canary or live, as the plan says
                                               └─ not passed ──► refused, and the source's fault says why

Rules: what is to be live stands in the database of the log, so that every process of every replica comes to the same,
also one that was away; each step is taken once, by whoever is first; gates are judged beside what is live, and when
both trees are new, together first and then each by itself; a gate that gives no result is asked again after
``RETRY_S``; what is refused is judged again when the other tree has changed, or by a process that starts.
It refuses to start with a tree that has not passed its gates, when none was live before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from policyd.errors import PolicydError, RevisionConflict, RevisionError
from policyd.revisions.approval_gate import NAME as APPROVAL
from policyd.revisions.gates import GateResult
from policyd.revisions.kept import Tree
from policyd.revisions.protected_changes import protected_changes
from policyd.revisions.states import KINDS, Move, Revision, Verb
from policyd.services.canary import Key, Trial
from policyd.services.freshness import FLEET, POLICIES
from policyd.services.gate_runs import Offer
from policyd.services.impact_gate import needs_of
from policyd.services.revision_desk import RevisionDesk, files_blob, replaced
from policyd.services.sources import Sources
from policyd.services.trust import Trust, side_of

RETRY_S: Final = 600.0
APPROVED_EVERY_S: Final = 2.0
"""How often what waits is judged by the approval gate again."""
TREES_MAX: Final = 8
SOURCE_OF: Final[Mapping[str, str]] = {"policy": POLICIES, "fleet": FLEET}
ACTIONS: Final[Mapping[str, str]] = {"tests": "test", "approval": "approve"}
"""The action of an entry, where it is another word than the gate."""
_log: Final = logging.getLogger(__name__)

Gate = Callable[[Offer], Awaitable[Sequence[GateResult]]]
"""Judges an offer; may speak for several gates. Raises ``PolicydError`` when it cannot say."""


@dataclass
class Lifecycle:
    """What is new, what is to be live, and what stands between."""

    desk: RevisionDesk
    sources: Sources
    gates: Sequence[Gate]
    gates_of: Mapping[str, tuple[str, ...]]
    """The gates of each kind that is followed, by name."""
    trust: Trust | None = None
    """The gates of signature and approval; None when nobody is named who could sign."""
    converge_ms: int = 250
    try_out: Callable[[Trial | None], None] = lambda trial: None
    """Told each turn what is to be tried on a share of the tenants."""
    fault: str | None = None
    """Why a candidate could not be judged."""
    _trees: dict[str, Tree] = field(default_factory=dict)
    _beside: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    _newest: dict[str, str] = field(default_factory=dict)
    _again_at_s: float = 0.0
    _approved_s: float = 0.0
    _judging: asyncio.Task[None] | None = None
    _looking: asyncio.Task[None] | None = None
    _looked_s: float = field(default_factory=time.monotonic)
    _tried: Trial | None = None
    _spoilt: tuple[Key, str] | None = None

    @property
    def kinds(self) -> list[str]:
        """The kinds that are followed."""
        return [kind for kind in KINDS if SOURCE_OF[kind] in self.sources.followed]

    async def begin(self) -> None:
        """Come to where the database says, or take the first revisions through their gates.

        Raises ``RevisionError`` when there is nothing that may be live.
        """
        self.sources.gated = True
        await asyncio.to_thread(self.sources.look)
        standing = await self._notice(await self.desk.revisions())
        if any(_live(standing, kind) is None for kind in self.kinds):
            await self._judge(standing)
            standing = await self.desk.revisions()
        await self._want(standing)
        for kind in self.kinds:
            if _live(standing, kind) is None:
                followed = self.sources.followed[SOURCE_OF[kind]]
                raise RevisionError(
                    f"no {followed.kind} to serve, and none are kept from before: "
                    f"{followed.fault or followed.refused or self.fault or 'none has passed its gates'}",
                    remedy="mend what is named; once a revision went live, it is kept for such a time",
                )

    async def keep_turning(self, ask: Callable[[], object]) -> None:
        """Turn for ever; ``ask`` for a reload when something else is to be live."""
        while True:
            await asyncio.sleep(self.converge_ms / 1_000)
            try:
                if self._looking is None or self._looking.done():
                    self._looking = asyncio.create_task(self._look())
                await self.turn(ask)
            except PolicydError as error:
                _log.error("revisions: %s", error.detail)
            except Exception:  # noqa: BLE001 - a turn must not be the last one, whatever it met
                _log.exception("a turn of the revisions failed")

    async def close(self) -> None:
        """End what is being judged and looked at."""
        ended = [task for task in (self._judging, self._looking) if task is not None]
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)

    async def _look(self) -> None:
        """Look at the sources when it is time or somebody asked; beside the turns, for a source may take long."""
        if not self.sources.asked and time.monotonic() - self._looked_s < self.sources.poll_ms / 1_000:
            return
        self.sources.asked, self._looked_s = False, time.monotonic()
        try:
            await asyncio.to_thread(self.sources.look)
        except Exception:  # noqa: BLE001 - the next look must come, whatever this one met
            _log.exception("a look at the sources failed")

    async def turn(self, ask: Callable[[], object]) -> None:
        """One turn; what is judged and looked at goes on beside it."""
        standing = await self.desk.revisions()
        standing = await self._notice(standing)
        if self._judging is None or self._judging.done():
            self._judging = asyncio.create_task(self._judge(standing))
        standing = await self._failed(standing)
        standing = await self._taken_back(standing)
        standing = await self._approved(standing)
        standing = await self._go_on(standing)
        await self._want(standing)
        if self.sources.to_try():
            ask()
        self._tried = await self._trial(standing)
        self.try_out(self._tried)

    async def _notice(self, standing: list[Revision]) -> list[Revision]:
        """What sources have that nobody has seen, and what is live from before there were states."""
        for kind in self.kinds:
            followed = self.sources.followed[SOURCE_OF[kind]]
            live = _live(standing, kind)
            if live is None and followed.good is not None:
                standing = await self._adopt(kind, followed.good, standing)
                live = _live(standing, kind)
            newest = followed.newest if followed.fault is None else None
            if newest is None:
                continue
            changed = self._newest.get(kind) not in (None, newest.digest)
            first = kind not in self._newest
            self._newest[kind] = newest.digest
            found = _find(standing, kind, newest.digest)
            if found is None or self._again(found, newest, changed=changed, first=first, standing=standing):
                standing = await self._see(kind, newest, found, standing)
            elif (
                found.state == "live" and newest.commit not in (None, found.commit) and await self._signed(kind, newest)
            ):
                move = Move(kind, newest.digest, "activate", found.version, "another commit holds it", newest.commit)
                standing = await self._took("activate", [move], standing)
        return standing

    def _again(
        self, found: Revision, newest: Tree, *, changed: bool, first: bool, standing: Sequence[Revision]
    ) -> bool:
        """Whether what was refused or replaced before is a candidate again, now that its source has it."""
        if found.state == "retired":
            return changed or (first and (newest.commit is None or newest.commit != found.commit))
        if found.state != "refused" or found.verb == "rollback":
            return False
        other = "fleet" if found.kind == "policy" else "policy"
        beside = _live(standing, other)
        now = found.digest, None if beside is None else beside.digest
        before = self._beside.setdefault(found.kind, now)
        self._beside[found.kind] = now
        # The same files in another commit: somebody has signed them, perhaps.
        recommitted = newest.commit not in (None, found.commit)
        return first or changed or recommitted or (before[0] == now[0] and before[1] != now[1])

    async def _signed(self, kind: str, tree: Tree) -> bool:
        """Whether another commit may lend its name to what is live."""
        return self.trust is None or (await self.trust.signature(kind, tree)).passed

    async def _adopt(self, kind: str, tree: Tree, standing: list[Revision]) -> list[Revision]:
        """What was live before it had a state stays live."""
        found = _find(standing, kind, tree.digest)
        version = 0 if found is None else found.version
        blob = files_blob(tree)
        said = "was live before its state was kept"
        moves = [
            Move(kind, tree.digest, "seen", version, said, tree.commit, blob.digest),
            Move(kind, tree.digest, "activate", version + 1, said),
        ]
        try:
            await self.desk.take("activate", moves, standing, said=said, blobs=[blob])
        except RevisionConflict as error:
            _log.info("revisions: %s", error.detail)
        return await self.desk.revisions()

    async def _see(self, kind: str, tree: Tree, found: Revision | None, standing: list[Revision]) -> list[Revision]:
        blob = files_blob(tree)
        version = 0 if found is None else found.version
        moves = [Move(kind, tree.digest, "seen", version, "", tree.commit, blob.digest)]
        for each in standing:
            if each.kind == kind and each.state == "candidate" and each.digest != tree.digest:
                said = f"{tree.commit or tree.digest} was offered before it was judged"
                moves.append(Move(kind, each.digest, "retire", each.version, said))
        self._keep(tree)
        self._again_at_s = 0.0
        try:
            await self.desk.take("seen", moves, standing, blobs=[blob])
        except RevisionConflict as error:
            _log.info("revisions: %s", error.detail)
        return await self.desk.revisions()

    async def _took(
        self, action: str, moves: Sequence[Move], standing: list[Revision], said: str = ""
    ) -> list[Revision]:
        """Take a step, unless somebody else was first."""
        try:
            await self.desk.take(action, moves, standing, said=said)
        except RevisionConflict as error:
            _log.info("revisions: %s", error.detail)
        return await self.desk.revisions()

    async def _judge(self, standing: list[Revision]) -> None:
        """Take the candidates that the sources have through their gates."""
        if time.monotonic() < self._again_at_s:
            return
        offered = []
        for kind in self.kinds:
            newest = self.sources.followed[SOURCE_OF[kind]].newest
            found = None if newest is None else _find(standing, kind, newest.digest)
            if found is not None and found.state == "candidate":
                offered.append(found)
        options = [offered, *([[each] for each in offered] if len(offered) > 1 else [])]
        try:
            for option in options:
                if option and await self._passed(option, alone=len(option) == 1):
                    break
            self.fault = None
        except RevisionConflict as error:
            _log.info("revisions: %s", error.detail)
        except PolicydError as error:
            self.fault = f"its gates gave no result: {error.detail}"
            self._again_at_s = time.monotonic() + RETRY_S
            _log.error("%s", self.fault)

    async def _passed(self, option: Sequence[Revision], *, alone: bool) -> bool:
        """Judge these together; whether they go on. One that fails alone is refused."""
        trees = {each.kind: await self._tree(each) for each in option}
        pair = [trees.get(kind) or self.sources.beside(SOURCE_OF[kind]) for kind in KINDS]
        policies, fleet = pair
        if policies is None or fleet is None:
            return False
        gates = tuple(dict.fromkeys(gate for each in option for gate in self.gates_of[each.kind]))
        before = [self.sources.beside(SOURCE_OF[kind]) for kind in KINDS]
        live = (before[0].digest, before[1].digest) if before[0] is not None and before[1] is not None else None
        offer = Offer(tuple(each.kind for each in option), self.sources.files(policies, fleet), gates, live)
        results = await self._results(option, trees, offer)
        failed = next((result for _, result in results if not result.passed), None)
        if failed is not None and not alone and all(self.sources.beside(SOURCE_OF[each.kind]) for each in option):
            return False  # each has a good one of the other kind to be judged beside
        standing = await self.desk.revisions()
        if failed is not None and failed.gate != APPROVAL:
            first = str(failed.findings[0]) if failed.findings else ""
            said = f"{failed.gate}: {failed.said}" + ("" if first in failed.said else f": {first}")
            told = tuple(result.to_json() for _, result in results)
            moves = [Move(each.kind, each.digest, "refuse", each.version, said, gates=told) for each in option]
            await self._took("refuse", moves, standing, said)
            return False
        for kind, result in results:
            moves = [
                Move(each.kind, each.digest, "judged", each.version, gates=(result.to_json(),))
                for each in _same(standing, option)
                if kind in (None, each.kind)
            ]
            standing = await self._took(ACTIONS.get(result.gate, result.gate), moves, standing)
        if failed is not None:
            moves = [
                Move(each.kind, each.digest, "wait", each.version, failed.said) for each in _same(standing, option)
            ]
            await self._took("wait", moves, standing, failed.said)
            return True
        await self._begin_way(_same(standing, option), standing)
        return True

    async def _results(
        self, option: Sequence[Revision], trees: Mapping[str, Tree], offer: Offer
    ) -> list[tuple[str | None, GateResult]]:
        """What the gates say, in their order and up to the first that is not passed, each with the kind that it is of;
        None: of all that are offered."""
        results: list[tuple[str | None, GateResult]] = []
        authors: dict[str, list[str]] = {}
        if self.trust is not None:
            for each in option:
                result = await self.trust.signature(each.kind, trees[each.kind])
                authors[each.kind] = list(result.details.get("authors", ()))
                results.append((each.kind, result))
        for gate in self.gates:
            if all(result.passed for _, result in results):
                results += [(None, result) for result in await gate(offer)]
        if self.trust is not None and all(result.passed for _, result in results):
            needs = needs_of([result.to_json() for _, result in results])
            for each in option:
                live = self.sources.beside(SOURCE_OF[each.kind])
                said = await self.trust.approval(each.kind, trees[each.kind], live, authors[each.kind], needs)
                results.append((each.kind, said))
        return results

    async def _approved(self, standing: list[Revision]) -> list[Revision]:
        """What waits is judged by the approval gate again: somebody may have approved it, or a word run out."""
        if self.trust is None or time.monotonic() - self._approved_s < APPROVED_EVERY_S:
            return standing
        self._approved_s = time.monotonic()
        for each in [each for each in standing if each.state == "waiting"]:
            before = next((gate for gate in each.gates if gate["gate"] == APPROVAL), None)
            signed = next((gate for gate in each.gates if gate["gate"] == "signature"), None)
            if before is None or signed is None or each.kind not in self.kinds:
                continue
            live, authors = self.sources.beside(SOURCE_OF[each.kind]), signed["details"].get("authors", ())
            needs = needs_of(each.gates)
            told = (await self.trust.approval(each.kind, await self._tree(each), live, authors, needs)).to_json()
            if (told["passed"], told["said"]) == (before["passed"], before["said"]):
                continue
            standing = await self._took(
                "approve", [Move(each.kind, each.digest, "judged", each.version, gates=(told,))], standing
            )
            if told["passed"]:
                await self._begin_way(_same(standing, [each]), standing)
                standing = await self.desk.revisions()
        return standing

    async def _begin_way(self, passed: Sequence[Revision], standing: list[Revision]) -> None:
        """The first step after the gates; the first revision of a kind has nothing to be compared with."""
        first = any(_live(standing, each.kind) is None for each in passed)
        verb: Verb = "activate" if first else self.desk.plan.begins(asked=False)
        moves = [Move(each.kind, each.digest, verb, each.version) for each in passed]
        if verb == "wait" and all(each.state == "waiting" for each in passed):
            return
        if verb != "wait":
            moves += [move for each in passed for move in replaced(standing, each, verb)]
        await self._took(verb, moves, standing)

    async def _failed(self, standing: list[Revision]) -> list[Revision]:
        """What could not go live although it is to be: refused, and what was live before is live again."""
        for kind in self.kinds:
            why = self.sources.why_not(SOURCE_OF[kind])
            live = _live(standing, kind)
            wanted = self.sources.followed[SOURCE_OF[kind]].wanted
            if why is None or live is None or wanted is None or wanted.digest != live.digest:
                continue
            before = [each for each in standing if each.kind == kind and each.state == "retired" and each.served_us]
            if not before:
                continue
            last = max(before, key=lambda each: each.served_us)
            if await self._takes_away(wanted, last):
                # Nothing takes protection away by itself: it goes on as it is, and somebody is told why.
                _log.error("revisions: %s cannot go live (%s), and going back takes persons", live.name, why)
                continue
            said = f"could not go live: {why}"
            moves = [
                Move(kind, live.digest, "refuse", live.version, said),
                Move(kind, last.digest, "rollback", last.version, f"{live.name} {said}"),
            ]
            standing = await self._took("rollback", moves, standing, said)
        return standing

    async def _takes_away(self, live: Tree, last: Revision) -> bool:
        """Whether going back by itself would change what takes two persons; what cannot be read counts as that."""
        before = await self._tree(last)
        try:
            sides = await asyncio.to_thread(lambda: (side_of(last.kind, live), side_of(last.kind, before)))
        except RevisionError:
            return True
        return bool(protected_changes(*sides))

    async def _go_on(self, standing: list[Revision]) -> list[Revision]:
        """Steps that are due."""
        time_us = self.desk.now()
        due: dict[Verb, list[Revision]] = {}
        for each in standing:
            verb = self.desk.plan.goes_on(each, time_us)
            if verb is not None:
                due.setdefault(verb, []).append(each)
        for verb, revisions in due.items():
            # Both kinds in one step, for they may need each other.
            moves = [Move(each.kind, each.digest, verb, each.version) for each in revisions]
            moves += [move for each in revisions for move in replaced(standing, each, verb)]
            standing = await self._took(verb, moves, standing)
        return standing

    def spoilt(self, key: Key, said: str) -> None:
        """Hear that a pair in canary cannot be built, or spoils decisions: the next turn takes it back."""
        self._spoilt = key, said

    async def _taken_back(self, standing: list[Revision]) -> list[Revision]:
        """What spoils decisions in canary goes back by itself, to be refused until a person wants it again."""
        if self._spoilt is None:
            return standing
        key, said = self._spoilt
        moves = [
            Move(each.kind, each.digest, "rollback", each.version, said)
            for each in standing
            if each.state == "canary" and each.digest in key
        ]
        if moves:
            _log.error("revisions: the canary is taken back: %s", said)
            standing = await self._took("rollback", moves, standing, said)
        self._spoilt = None
        return standing

    async def _trial(self, standing: Sequence[Revision]) -> Trial | None:
        """What is in canary, beside what is live of the other kind; what goes live is tried until it serves."""
        canary = [each for each in standing if each.state == "canary" and each.kind in self.kinds]
        if not canary:
            return self._tried if self._tried is not None and self.sources.waits_for(self._tried.key) else None
        trees = {each.kind: await self._tree(each) for each in canary}
        policies, fleet = (trees.get(kind) or self.sources.beside(SOURCE_OF[kind]) for kind in KINDS)
        if policies is None or fleet is None:
            return None
        key = (policies.digest, policies.commit or "", fleet.digest, fleet.commit or "")
        if self._tried is not None and self._tried.key == key:
            return self._tried
        digest = next(each.digest for kind in KINDS for each in canary if each.kind == kind)
        return Trial(key, digest, self.sources.files(policies, fleet))

    async def _want(self, standing: Sequence[Revision]) -> None:
        """Tell the sources what is to be live, and what becomes of their newest."""
        for kind in self.kinds:
            followed = self.sources.followed[SOURCE_OF[kind]]
            live = _live(standing, kind)
            if live is not None and (
                followed.wanted is None
                or (followed.wanted.digest, followed.wanted.commit) != (live.digest, live.commit)
            ):
                followed.wanted = await self._tree(live)
            newest = None if followed.newest is None else _find(standing, kind, followed.newest.digest)
            refused = newest is not None and newest.state == "refused" and newest.verb != "rollback"
            followed.refused = None
            if newest is not None and refused:
                followed.refused = f"{newest.name} was refused: {newest.said}"
            elif newest is not None and newest.state == "candidate" and self.fault is not None:
                followed.refused = f"{newest.name}: {self.fault}"
            held = newest is not None and not refused and newest.state not in ("candidate", "live")
            followed.held = newest.digest if newest is not None and held else None
        self.sources.tell()

    async def _tree(self, revision: Revision) -> Tree:
        """The files of a revision, from memory, the source, the disk or the log."""
        followed = self.sources.followed[SOURCE_OF[revision.kind]]
        near = (self._trees.get(revision.digest), followed.newest, followed.good)
        found = next((each for each in near if each is not None and each.digest == revision.digest), None)
        if found is None:
            found = await asyncio.to_thread(followed.kept.find, revision.digest) or await self.desk.files(revision)
        self._keep(found)
        return found.under(revision.commit)

    def _keep(self, tree: Tree) -> None:
        self._trees.pop(tree.digest, None)
        self._trees[tree.digest] = tree
        while len(self._trees) > TREES_MAX:
            del self._trees[next(iter(self._trees))]


def _live(standing: Sequence[Revision], kind: str) -> Revision | None:
    return next((each for each in standing if each.kind == kind and each.state == "live"), None)


def _find(standing: Sequence[Revision], kind: str, digest: str) -> Revision | None:
    return next((each for each in standing if (each.kind, each.digest) == (kind, digest)), None)


def _same(standing: Sequence[Revision], option: Sequence[Revision]) -> list[Revision]:
    """The same revisions, as they stand now."""
    found = [_find(standing, each.kind, each.digest) for each in option]
    if None in found:
        raise RevisionConflict("a revision is forgotten that was just judged")
    return [each for each in found if each is not None]
