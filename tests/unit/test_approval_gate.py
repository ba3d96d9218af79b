"""Approvals: what one is over, whose counts, and how many a change needs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from policyd.errors import ApprovalRefused
from policyd.revisions import sshsig
from policyd.revisions.allowed_signers import AllowedSigners, parse_allowed_signers
from policyd.revisions.approval_gate import Besides, approval_gate
from policyd.revisions.approvals import NAMESPACE, Approval, Change, approver_of, expires_us, expiry, signed_bytes
from policyd.revisions.gates import GateResult
from policyd.revisions.owners import OWNERS
from policyd.revisions.protected_changes import ProtectedChange
from policyd.revisions.sshsig import sign

KEYS = {name: ed25519.Ed25519PrivateKey.generate() for name in ("ana", "ben", "ben2", "cleo", "eve")}
CHANGE = Change("policy", "sha256:" + "a" * 64, "sha256:" + "b" * 64)
NOW_US = int(datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()) * 1_000_000
EXPIRES = "2026-12-01T00:00:00Z"
PROTECTED = [ProtectedChange("hard_rule.removed", "residency/residency.rego:10", "the hard rule r.x is gone")]
RULE = PurePosixPath("residency/residency.rego")
LIVE = {RULE: b"package a\n"}
CANDIDATE = {RULE: b"package b\n"}


def _line(name: str, person: str, options: str = "") -> str:
    public = base64.b64encode(sshsig._written(KEYS[name])).decode()
    return f"{person}@example.org {options} ssh-ed25519 {public}\n"


def _signers(more: str = "") -> AllowedSigners:
    lines = [_line("ana", "ana"), _line("ben", "ben"), _line("ben2", "ben"), _line("cleo", "cleo"), more]
    return parse_allowed_signers("".join(lines).encode(), "signers")


def _approval(name: str, change: Change = CHANGE, expires: str = EXPIRES, namespace: str = NAMESPACE) -> Approval:
    return Approval(change, expires, sign(KEYS[name], signed_bytes(change, expires), namespace))


def _gate(
    approvals: Sequence[Approval],
    protected: Sequence[ProtectedChange] = (),
    owners: str | None = None,
    authors: Sequence[str] = (),
    besides: Sequence[Besides] = (),
) -> GateResult:
    own = {} if owners is None else {OWNERS: owners.encode()}
    live, candidate = {**LIVE, **own}, {**CANDIDATE, **own}
    return approval_gate(CHANGE, approvals, _signers(), live, candidate, protected, authors, NOW_US, besides)


def test_what_is_signed_has_one_form() -> None:
    told = f'{{"digest":"{CHANGE.digest}","expires":"{EXPIRES}","kind":"policy","replaces":"{CHANGE.replaces}"}}'
    assert signed_bytes(CHANGE, EXPIRES) == told.encode()
    approval = _approval("ana")
    assert Approval.from_json(approval.to_json()) == approval
    assert approver_of(approval, CHANGE, _signers(), (), NOW_US) == "ana@example.org"
    assert expiry(expires_us(EXPIRES)) == EXPIRES


OTHER = Change("policy", "sha256:" + "c" * 64, CHANGE.replaces)


@pytest.mark.parametrize(
    ("approval", "said"),
    [
        (_approval("ana", OTHER), "approves another revision: sha256:cc"),
        (Approval(CHANGE, EXPIRES, _approval("ana", OTHER).signature), "over something else"),
        (_approval("ana", Change("fleet", CHANGE.digest, CHANGE.replaces)), "approves another kind: fleet"),
        (_approval("ana", Change("policy", CHANGE.digest, OTHER.digest)), "another revision in whose place it comes"),
        (_approval("ana", expires="2026-11-24T12:00:00Z"), "has expired at 2026-11-24T12:00:00Z"),
        (Approval(CHANGE, "2027-12-01T00:00:00Z", _approval("ana").signature), "over something else"),
        (_approval("ana", expires="2026-12-01"), "is no time such as"),
        (_approval("ana", expires="2026-12-1T00:00:00Z"), "is no time such as"),
        (_approval("ana", namespace="git"), "is for 'git', and 'policyd-approval@v1' is needed"),
        (_approval("eve"), "is none of an allowed signer"),
        (Approval(CHANGE, EXPIRES, "approved-by: ana@example.org"), "does not begin with"),
        (Approval(CHANGE, EXPIRES, ""), "does not begin with"),
        (Approval(CHANGE, EXPIRES, "\ud800"), "does not begin with"),
        (_approval("cleo"), "cleo@example.org is an author"),
    ],
)
def test_an_approval_that_does_not_count_says_why_and_harms_no_other(approval: Approval, said: str) -> None:
    authors = ("cleo@example.org",)
    with pytest.raises(ApprovalRefused, match=said):
        approver_of(approval, CHANGE, _signers(), authors, NOW_US)
    gate = _gate([approval, _approval("ana")], PROTECTED, authors=authors)
    assert not gate.passed
    assert gate.details["approvers"] == ["ana@example.org"]
    assert any(said in finding.message for finding in gate.findings)
    assert _gate([approval, _approval("ana"), _approval("ben")], PROTECTED, authors=authors).passed


def test_an_expired_key_and_a_signer_who_was_taken_out_approve_nothing() -> None:
    for more, said in (
        (_line("eve", "eve", "valid-before=20260101Z"), "eve@example.org has expired"),
        (_line("eve", "eve", 'namespaces="git"'), "not allowed to sign for 'policyd-approval@v1'"),
        ("", "none of an allowed signer"),
    ):
        with pytest.raises(ApprovalRefused, match=said):
            approver_of(_approval("eve"), CHANGE, _signers(more), (), NOW_US)
    good = _signers(_line("eve", "eve", 'namespaces="policyd-*",valid-before=20270101Z'))
    assert approver_of(_approval("eve"), CHANGE, good, (), NOW_US) == "eve@example.org"


@pytest.mark.parametrize("document", [{}, {"kind": "policy"}, {**_approval("ana").to_json(), "digest": 7}])
def test_what_is_no_approval_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ApprovalRefused, match="is no approval"):
        Approval.from_json(document)


def test_a_protected_change_needs_two_persons_not_two_keys() -> None:
    gate = _gate([], PROTECTED)
    assert not gate.passed
    assert gate.said == "not approved yet: 2 more of allowed signers must approve it: the hard rule r.x is gone"
    assert gate.findings[1].where == "residency/residency.rego:10"
    assert not _gate([_approval("ben"), _approval("ben2"), _approval("ben")], PROTECTED).passed
    gate = _gate([_approval("ben"), _approval("ana")], PROTECTED)
    assert gate.passed
    assert gate.details["approvers"] == ["ana@example.org", "ben@example.org"]
    assert not _gate([_approval("ben"), _approval("ana")], PROTECTED, authors=["ana@example.org"]).passed


def test_owners_say_who_and_how_many() -> None:
    assert _gate([]).passed
    assert not _gate([], owners="").passed
    assert _gate([_approval("cleo")], owners="").passed
    gate = _gate([_approval("cleo")], owners="/residency/ ANA@example.org ben@example.org\n")
    assert gate.said == (
        "not approved yet: 1 more of ana@example.org, ben@example.org must approve it: "
        "residency/residency.rego, by line 1 of OWNERS"
    )
    assert _gate([_approval("ben2")], owners="/residency/ ana@example.org ben@example.org\n").passed
    assert _gate([], owners="/residency/ 0\n").passed
    two = "* 2 ana@example.org ben@example.org cleo@example.org\n"
    assert not _gate([_approval("ana")], owners=two).passed
    assert _gate([_approval("ana"), _approval("cleo")], owners=two).passed
    both = _gate([_approval("ana"), _approval("cleo")], PROTECTED, owners="* ben@example.org\n")
    assert not both.passed
    assert "1 more of ben@example.org" in both.said


def test_the_owners_of_what_is_live_decide_and_a_broken_file_never_comes() -> None:
    live = {**LIVE, OWNERS: b"* ana@example.org\n"}
    taken = {**CANDIDATE, OWNERS: b"* 0\n"}
    gate = approval_gate(CHANGE, [_approval("ben")], _signers(), live, taken, [], (), NOW_US)
    assert not gate.passed
    broken = {**CANDIDATE, OWNERS: b"*\n"}
    gate = approval_gate(CHANGE, [_approval("ana")], _signers(), live, broken, [], (), NOW_US)
    assert not gate.passed
    assert gate.findings[0].where == "OWNERS:1"


def test_other_gates_may_ask_for_an_approval_too() -> None:
    need = [Besides(1, "3 decisions that a hard rule denied would be allowed")]
    assert not _gate([], besides=need).passed
    assert _gate([_approval("ana")], besides=need).passed
    assert not approval_gate(CHANGE, [], None, LIVE, CANDIDATE, [], (), NOW_US, need).passed
    gate = approval_gate(CHANGE, [], None, LIVE, CANDIDATE, PROTECTED, (), NOW_US)
    assert gate.passed
    assert "nobody is named who could approve" in gate.said
