"""Reads where revisions stand and records the steps that they take: one entry each, in the transaction of its step.

Rules: whoever takes a step names the revision as it was read; an entry says what moved from where to where, what the
gates said, and who did it, when a person did; a person needs the permission for it in all tenants, and ``local`` has
none once authentication is set up, nor ever for going live.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, Protocol, TypeVar

import orjson
from sqlalchemy import Connection

from audit.query import blob
from audit.record import BODY_MAX_BYTES, Blob, Entry, Search, encode, personal
from audit.store import Position
from policyd.core.principal import LOCAL, Principal
from policyd.errors import ApprovalRefused, Forbidden, NotFound, RevisionConflict, RevisionError
from policyd.revisions.kept import Tree
from policyd.revisions.states import ON_ITS_WAY, Move, Plan, Revision, Verb, moved
from policyd.services.clock import Now, now_us, rfc3339, uuid7
from policyd.services.decisions import SnapshotNow
from policyd.services.proposals import Deed
from policyd.services.revision_rows import Step, read_revisions
from policyd.services.trust import Trust

T = TypeVar("T")
RECORD_VERSION: Final = 2
GATES_MAX_BYTES: Final = BODY_MAX_BYTES // 2


class Log(Protocol):
    """The writing side of the log, as far as revisions need it."""

    async def submit(self, entry: Entry, blobs: Sequence[Blob] = (), *, deed: Deed) -> Position: ...


class Reader(Protocol):
    """The reading side of the log, as far as revisions need it."""

    async def read(self, read: Callable[[Connection], T]) -> T: ...


@dataclass
class RevisionDesk:
    """Where revisions stand, and the steps that anybody takes."""

    log: Log
    reader: Reader
    plan: Plan
    trust: Trust | None = None
    """Who must approve going back, as going forward; None when nobody is named who could."""
    now: Now = now_us

    async def revisions(self) -> list[Revision]:
        """Every revision that is remembered, the one that moved last first."""
        return await self.reader.read(read_revisions)

    async def files(self, revision: Revision) -> Tree:
        """The files of a revision. Raises ``RevisionError`` when the log does not give them back as they were."""
        content = await self.reader.read(lambda connection: blob(connection, revision.blob))
        tree = tree_of(content, revision.commit) if content is not None else None
        if tree is None or tree.digest != revision.digest:
            raise RevisionError(f"the log does not hold the files of {revision.kind} {revision.name}")
        return tree

    async def take(
        self,
        action: str,
        moves: Sequence[Move],
        standing: Iterable[Revision],
        *,
        said: str = "",
        blobs: Sequence[Blob] = (),
        by: Principal | None = None,
        request_id: str | None = None,
    ) -> Position:
        """Take a step and record it. ``standing`` is what was read.

        Raises ``RevisionConflict`` when it came too late.
        """
        time_us = self.now()
        before = {(each.kind, each.digest): each for each in standing}
        told = []
        for move in moves:
            found = before.get((move.kind, move.digest))
            after = before[move.kind, move.digest] = moved(found, move, time_us)
            was = None if found is None else found.state
            where = {"from": was, "to": after.state}
            told.append({"kind": move.kind, "digest": move.digest, "commit": after.commit, **where})
        entry = _entry(action, told, moves, said, time_us, by, request_id)
        return await self.log.submit(entry, blobs, deed=Step(tuple(moves)))

    async def activate(self, digest: str, by: Principal, request_id: str) -> Revision:
        """Have a revision that waits go on its way, or the next step; one that was live before is a rollback to it."""
        standing = await self.revisions()
        chosen = the_one(standing, digest)
        if chosen.state == "retired" or (chosen.state == "refused" and chosen.served_us):
            return await self._back(chosen, standing, by, request_id)
        verb: Verb
        if chosen.state == "refused" and chosen.verb == "rollback":
            # Taken back before it was ever live: it passes its gates again.
            verb = "seen"
        elif chosen.state in ON_ITS_WAY:
            verb = "activate"
        elif chosen.state == "waiting":
            verb = self.plan.begins(asked=True)
        else:
            why = chosen.said or "it is not its turn"
            raise RevisionConflict(f"{chosen.kind} {chosen.name} is {chosen.state}: {why}")
        moves = [Move(chosen.kind, chosen.digest, verb, chosen.version)]
        moves += replaced(standing, chosen, verb) if verb != "seen" else []
        await self.take(verb, moves, standing, by=by, request_id=request_id)
        return the_one(await self.revisions(), digest)

    async def rollback(self, kind: str, digest: str | None, by: Principal, request_id: str) -> Revision:
        """Take back what is on its way; without such, or with a ``digest``, go back to what was live before."""
        standing = await self.revisions()
        way = [each for each in standing if each.kind == kind and each.state in ON_ITS_WAY]
        if digest is None and way:
            move = Move(kind, way[0].digest, "rollback", way[0].version, "taken back by a person")
            await self.take("rollback", [move], standing, said=move.said, by=by, request_id=request_id)
            return next(each for each in await self.revisions() if each.kind == kind and each.state == "live")
        if digest is not None:
            chosen = the_one(standing, digest, kind)
        else:
            served = [each for each in standing if each.kind == kind and each.state == "retired" and each.served_us]
            if not served:
                raise NotFound(f"no {kind} revision was live before the one that is", remedy="name one by its digest")
            chosen = max(served, key=lambda each: each.served_us)
        return await self._back(chosen, standing, by, request_id)

    async def pause(self, digest: str, by: Principal, request_id: str, *, resume: bool = False) -> Revision:
        """Hold a revision on its way where it is, or have it go on."""
        standing = await self.revisions()
        chosen = the_one(standing, digest)
        verb = "resume" if resume else "pause"
        move = Move(
            chosen.kind, chosen.digest, "resume" if resume else "pause", chosen.version, f"{verb}d by {by.name}"
        )
        await self.take(verb, [move], standing, said=move.said, by=by, request_id=request_id)
        return the_one(await self.revisions(), digest)

    async def _back(self, chosen: Revision, standing: Sequence[Revision], by: Principal, request_id: str) -> Revision:
        await self._require_approved(chosen, standing)
        said = f"a person went back to {chosen.name}"
        same = [each for each in standing if each.kind == chosen.kind]
        left = [each for each in same if each.state == "live" or each.state in ON_ITS_WAY]
        moves = [Move(each.kind, each.digest, "rollback", each.version, said) for each in left]
        moves.append(Move(chosen.kind, chosen.digest, "rollback", chosen.version, said))
        await self.take("rollback", moves, standing, said=said, by=by, request_id=request_id)
        return the_one(await self.revisions(), chosen.digest)

    async def _require_approved(self, chosen: Revision, standing: Sequence[Revision]) -> None:
        """Raise ``ApprovalRefused`` when going back changes what takes persons, and they have not approved it."""
        live = next((each for each in standing if each.kind == chosen.kind and each.state == "live"), None)
        if self.trust is None or live is None or live.digest == chosen.digest:
            return
        result = await self.trust.approval(chosen.kind, await self.files(chosen), await self.files(live))
        if not result.passed:
            raise ApprovalRefused(
                f"going back to {chosen.name} is {result.said}",
                findings=result.findings,
                remedy=f"have it approved in the place of {live.digest}: `policyd policy approve`",
            )


def the_one(standing: Sequence[Revision], digest: str, kind: str | None = None) -> Revision:
    """The revision with this digest or commit. Raises ``NotFound``."""
    found = [each for each in standing if digest in (each.digest, each.commit) and kind in (None, each.kind)]
    if not found:
        raise NotFound(f"no revision {digest!r} is remembered", remedy="take the digest from `policyd policy log`")
    return found[0]


def replaced(standing: Iterable[Revision], chosen: Revision, verb: str) -> list[Move]:
    """What makes room for a revision that goes on its way or live."""
    gone = ("live", *ON_ITS_WAY) if verb == "activate" else ON_ITS_WAY
    others = [each for each in standing if each.kind == chosen.kind and each.digest != chosen.digest]
    said = f"replaced by {chosen.name}"
    return [Move(each.kind, each.digest, "retire", each.version, said) for each in others if each.state in gone]


def require_may(principal: Principal, snapshots: SnapshotNow, action: str) -> None:
    """Raise ``Forbidden`` unless the principal may do this with revisions. ``local`` may only read."""
    snapshot = snapshots.current()
    if action != "read" and principal.name == LOCAL.name:
        raise Forbidden(
            f"`local` is nobody in particular, and may not {action} revisions",
            remedy="set up authentication, and do it with a token of your own",
        )
    if not principal.permitted_everywhere(snapshot.entitlements, "revisions", action, sorted(snapshot.fleet.tenants)):
        raise Forbidden(f"{principal.name!r} may not {action} revisions, which concern all tenants")


def files_blob(tree: Tree) -> Blob:
    """The files of a revision, as the log keeps them."""
    files = {str(path): content.decode("latin-1") for path, content in tree.files.items()}
    return Blob.of("revision", orjson.dumps({"files": files}, option=orjson.OPT_SORT_KEYS))


def tree_of(content: bytes, commit: str | None) -> Tree:
    """What ``files_blob`` keeps."""
    files = orjson.loads(content)["files"]
    return Tree.of({PurePosixPath(path): text.encode("latin-1") for path, text in files.items()}, commit)


def _unnamed(gate: Mapping[str, Any]) -> dict[str, Any]:
    """What a gate said, for an entry: who signed and approved stands in their own entries, where it can be erased."""
    if gate["gate"] not in ("signature", "approval"):
        return dict(gate)
    details = {name: gate["details"][name] for name in _NO_PERSONS if name in gate["details"]}
    return {"gate": gate["gate"], "passed": gate["passed"], "details": details}


_NO_PERSONS: Final = ("commit", "key", "signers", "needed", "replaces", "protected_total")


def _entry(
    action: str,
    told: Sequence[Mapping[str, Any]],
    moves: Sequence[Move],
    said: str,
    time_us: int,
    by: Principal | None,
    request_id: str | None,
) -> Entry:
    entry_id = uuid7(time_us)
    gates = [_unnamed(gate) for move in moves for gate in move.gates]
    if len(orjson.dumps(gates)) > GATES_MAX_BYTES:
        gates = [{**gate, "findings": gate.get("findings", [])[:3], "details": {}} for gate in gates]
    fields = {
        "v": RECORD_VERSION,
        "kind": "revision",
        "id": entry_id,
        "time": rfc3339(time_us),
        "action": action,
        "revisions": list(told),
        **({"gates": gates} if gates else {}),
        **({"said": said} if said else {}),
        **({} if request_id is None else {"request_id": request_id}),
    }
    commits = {each["kind"]: each["commit"] for each in told}
    search = Search(
        principal=None if by is None else by.name,
        request_id=request_id,
        policy_commit=commits.get("policy"),
        fleet_commit=commits.get("fleet"),
    )
    who = () if by is None else (personal(by.name, {"principal": by.name}),)
    return Entry("revision", entry_id, time_us, encode(fields, os.urandom(16)), search, (), who)
