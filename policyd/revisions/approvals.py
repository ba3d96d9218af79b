"""An approval: an allowed signer's signature over one change, from the revision that serves to another one.

    {"digest":"sha256:…","expires":"2026-12-01T00:00:00Z","kind":"policy","replaces":"sha256:…"}     what is signed

Rules: what is signed has one form only (RFC 8785, no line break at the end), so the fields that an approval comes with
are all that it can be over; its namespace is of its own, so a signed commit is never an approval. It counts while it
has not expired, while what it replaces serves, and while its signer is allowed and in date.
Refused: an approval of something else, and one of the author.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args

import orjson

from policyd.errors import ApprovalRefused, SignatureRefused
from policyd.revisions.allowed_signers import AllowedSigners
from policyd.revisions.sshsig import parse

NAMESPACE: Final = "policyd-approval@v1"
RevisionKind = Literal["policy", "fleet"]
KINDS: Final[tuple[RevisionKind, ...]] = get_args(RevisionKind)
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Change:
    """What is approved: the revision ``digest`` in the place of ``replaces``."""

    kind: str
    digest: str
    replaces: str


@dataclass(frozen=True, slots=True)
class Approval:
    """A change, how long the approval holds, and the armoured signature over both."""

    change: Change
    expires: str
    signature: str

    @property
    def signed(self) -> bytes:
        """The bytes that the signature is over."""
        return signed_bytes(self.change, self.expires)

    def to_json(self) -> dict[str, Any]:
        """As a document."""
        change = self.change
        told = {"kind": change.kind, "digest": change.digest, "replaces": change.replaces}
        return {**told, "expires": self.expires, "signature": self.signature}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Approval:
        """What ``to_json`` wrote. Raises ``ApprovalRefused`` for anything else."""
        try:
            texts = {name: document[name] for name in ("kind", "digest", "replaces", "expires", "signature")}
        except (KeyError, TypeError):
            raise ApprovalRefused("is no approval: it has kind, digest, replaces, expires and signature") from None
        if not all(isinstance(text, str) for text in texts.values()):
            raise ApprovalRefused("is no approval: what it has is not all text")
        return cls(Change(texts["kind"], texts["digest"], texts["replaces"]), texts["expires"], texts["signature"])


def signed_bytes(change: Change, expires: str) -> bytes:
    """What an approval of this change is a signature over."""
    told = {"kind": change.kind, "digest": change.digest, "replaces": change.replaces, "expires": expires}
    return orjson.dumps(told, option=orjson.OPT_SORT_KEYS)


def approver_of(
    approval: Approval, change: Change, signers: AllowedSigners, authors: Collection[str], now_us: int
) -> str:
    """The person whose approval of this change it is, now. Raises ``ApprovalRefused``."""
    for name, told, wanted in (
        ("kind", approval.change.kind, change.kind),
        ("revision", approval.change.digest, change.digest),
        ("revision in whose place it comes", approval.change.replaces, change.replaces),
    ):
        if told != wanted:
            raise ApprovalRefused(f"it approves another {name}: {told[:100]}, and not {wanted}")
    if expires_us(approval.expires) <= now_us:
        raise ApprovalRefused(f"it has expired at {approval.expires}")
    try:
        signature = parse(approval.signature.encode("utf-8", "replace"))
        person = signers.signed_by(signature, approval.signed, NAMESPACE, now_us)
    except SignatureRefused as error:
        raise ApprovalRefused(error.detail) from None
    if person in authors:
        raise ApprovalRefused(f"{person} is an author of the revision, so somebody else must approve it")
    return person


def expires_us(text: str) -> int:
    """A time as approvals write it, in microseconds since 1970. Raises ``ApprovalRefused``."""
    try:
        moment = datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError:
        moment = _EPOCH
    if moment.strftime(_TIME) != text:
        raise ApprovalRefused(f"{text[:40]!r} is no time such as 2026-12-01T00:00:00Z")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def expiry(time_us: int) -> str:
    """A time as approvals write it, whole seconds."""
    return (_EPOCH + timedelta(seconds=time_us // 1_000_000)).strftime(_TIME)
