"""Takes approvals of revisions into the log, and finds them there again by the digest that they are of.

    a signature ──checked, permission of whoever brings it──► an entry ──by digest──► the gate, which judges it again

Rules: who brings an approval is proved and permitted, and who gives it is whoever signed: they need not be the same;
the entry holds what was signed and the signature, so anybody with the signers' keys can check it from the log alone;
nothing is decided here for good, since a signer may be taken out, a key expire and another revision go live before the
gate asks.
It refuses: what the gate would refuse at this moment, approvals for longer than ``revisions.approval_max_ms``, and
``local``, whoever that is.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from audit.query import Page, Record
from audit.record import Entry, Kind, Search, encode, personal
from audit.store import Position
from policyd.core.principal import LOCAL, Principal
from policyd.core.snapshot import Snapshot
from policyd.errors import ApprovalRefused, Forbidden
from policyd.revision_settings import RevisionSettings
from policyd.revisions.allowed_signers import AllowedSigners, read_allowed_signers
from policyd.revisions.approvals import Approval, Change, approver_of, expires_us
from policyd.services.clock import Now, now_us, rfc3339, uuid7
from policyd.services.decisions import SnapshotNow

RECORD_VERSION: Final = 2
FOUND_MAX: Final = 1_000
"""Approvals of one revision that are looked at, the newest first."""


class Log(Protocol):
    """The writing side of the log, as far as approvals need it."""

    async def submit(self, entry: Entry) -> Position: ...


class Reader(Protocol):
    """The reading side of the log, as far as approvals need it."""

    async def search(self, filters: Mapping[str, str], *, limit: int, kinds: Sequence[Kind]) -> Page: ...


@dataclass
class RevisionApprovals:
    """Approvals of revisions, in the log."""

    log: Log
    reader: Reader
    snapshots: SnapshotNow
    settings: RevisionSettings
    origin: str
    now: Now = now_us

    async def take(self, digest: str, approval: Approval, principal: Principal, request_id: str) -> dict[str, Any]:
        """Record an approval of the revision that is named; answers with its place.

        Raises ``Forbidden``, ``ApprovalRefused`` and ``ConfigError``.
        """
        self._require("approve", principal)
        if approval.change.digest != digest:
            raise ApprovalRefused(f"it approves another revision: {approval.change.digest}, and not {digest}")
        signers = await signers_of(self.settings)
        if signers is None:
            raise ApprovalRefused("nobody is named who may approve", remedy=_NO_SIGNERS_REMEDY)
        time_us, change = self.now(), approval.change
        live = live_digests(self.snapshots.current())[change.kind]
        if change.digest == live:
            raise ApprovalRefused(f"the {change.kind} {live} serves already")
        person = approver_of(approval, Change(change.kind, change.digest, live), signers, (), time_us)
        if expires_us(approval.expires) - time_us > self.settings.approval_max_ms * 1_000:
            raise ApprovalRefused(
                f"{approval.expires} is further away than approvals hold: {self.settings.approval_max_ms} ms",
                remedy="approve it for a shorter time, or raise revisions.approval_max_ms",
            )
        entry = _entry(approval, person, signers.digest, principal, time_us, request_id)
        position = await self.log.submit(entry)
        place = {"log": self.origin, "index": position.index, "leaf_hash": position.leaf_hash.hex()}
        return {"id": entry.id, **_told(approval), "signer": person, "audit": place}

    async def listed(self, digest: str, principal: Principal) -> dict[str, Any]:
        """The approvals of a revision, whether each counts now and why not, and what an approval would replace."""
        self._require("read", principal)
        signers, time_us = await signers_of(self.settings), self.now()
        live = live_digests(self.snapshots.current())
        items = []
        for kind in live:
            for record in await records_of(self.reader, kind, digest):
                approval = approval_of(record)
                signer, said = _judged(approval, Change(kind, digest, live[kind]), signers, time_us)
                about = {"id": record.id, "time": rfc3339(record.time_us), **_told(approval)}
                items.append({**about, "signer": signer, "counts": signer is not None, "said": said})
        items.sort(key=lambda item: str(item["id"]))
        return {"digest": digest, "live": dict(live), "items": items}

    def _require(self, verb: str, principal: Principal) -> None:
        snapshot = self.snapshots.current()
        if verb == "approve" and principal.name == LOCAL.name:
            raise Forbidden(
                "`local` is nobody in particular, and so approves nothing",
                remedy="set up authentication, and bring the approval with a token of a person",
            )
        tenants = sorted(snapshot.fleet.tenants)
        if not principal.permitted_everywhere(snapshot.entitlements, "revisions", verb, tenants):
            raise Forbidden(f"{principal.name!r} may not {verb} revisions, which concern all tenants")


_NO_SIGNERS_REMEDY: Final = "name the file of their keys in revisions.allowed_signers_file"


async def signers_of(settings: RevisionSettings) -> AllowedSigners | None:
    """The allowed signers as the file has them now; None when no file is named. Raises ``ConfigError``."""
    path = settings.allowed_signers_file
    return None if path is None else await asyncio.to_thread(read_allowed_signers, path)


async def records_of(reader: Reader, kind: str, digest: str) -> Sequence[Record]:
    """The entries of the approvals of a revision, newest first."""
    page = await reader.search({f"{kind}_commit": digest}, limit=FOUND_MAX, kinds=("approval",))
    return page.items


def live_digests(snapshot: Snapshot) -> Mapping[str, str]:
    """The revision of each kind that serves."""
    return {"policy": snapshot.policies.digest, "fleet": snapshot.fleet.digest}


def approval_of(record: Record) -> Approval:
    """The approval that an entry holds."""
    body = record.document()
    return Approval.from_json({**body["revision"], "expires": body["expires"], "signature": body["signature"]})


def _judged(approval: Approval, change: Change, signers: AllowedSigners | None, time_us: int) -> tuple[str | None, str]:
    if signers is None:
        return None, "nobody is named who may approve"
    try:
        return approver_of(approval, change, signers, (), time_us), ""
    except ApprovalRefused as error:
        return None, error.detail


def _told(approval: Approval) -> dict[str, str]:
    change = approval.change
    told = {"kind": change.kind, "digest": change.digest, "replaces": change.replaces}
    return {**told, "expires": approval.expires}


def _entry(approval: Approval, person: str, signers: str, principal: Principal, time_us: int, request_id: str) -> Entry:
    change, entry_id = approval.change, uuid7(time_us)
    fields = {
        "v": RECORD_VERSION,
        "kind": "approval",
        "event": "revision",
        "id": entry_id,
        "time": rfc3339(time_us),
        "request_id": request_id,
        "revision": {"kind": change.kind, "digest": change.digest, "replaces": change.replaces},
        "expires": approval.expires,
        "signature": approval.signature,
        "signers": signers,
    }
    # The digest stands where the commit does: it is what a revision is found by when no commit names it.
    found_by = {f"{change.kind}_commit": change.digest}
    search = Search(principal=principal.name, request_id=request_id, **found_by)
    whom = (personal(principal.name, {"principal": principal.name}), personal(person, {"signer": person}))
    return Entry("approval", entry_id, time_us, encode(fields, os.urandom(16)), search, (), whom)
