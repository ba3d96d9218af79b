"""The first gate: whether an allowed signer has signed the commit that a candidate is.

Rules: pure, over what was read; the signers are those of the running configuration and never of the candidate; without
``required`` the gate lets everything pass and tells who has signed, if somebody has. Its ``details`` name the
``authors``, who do not approve what is their own: the signer, and whom the commit names, among the allowed signers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policyd.errors import SignatureRefused
from policyd.revisions.allowed_signers import AllowedSigners
from policyd.revisions.commit_proof import commit_object, signer_of
from policyd.revisions.gates import GateResult
from policyd.revisions.kept import Tree

NAME = "signature"


def signature_gate(
    tree: Tree, suffixes: Sequence[str], signers: AllowedSigners | None, now_us: int, *, required: bool
) -> GateResult:
    """What the gate says of a candidate. ``suffixes`` are those of the files of its kind."""
    if signers is None:
        said = "no signers are named (revisions.allowed_signers_file), so nobody's signature can be told"
        return GateResult(NAME, not required, said)
    named = _named(tree, signers)
    details: dict[str, Any] = {"commit": tree.commit, "signers": signers.digest, "authors": named}
    try:
        signer = signer_of(tree.proof, tree.commit, tree.files, suffixes, signers, now_us)
    except SignatureRefused as error:
        said = error.detail if required else f"not required, and not there: {error.detail}"
        return GateResult(NAME, not required, said, details=details)
    details |= {"signer": signer.person, "key": signer.fingerprint, "authors": sorted({*named, signer.person})}
    return GateResult(NAME, True, f"{signer.person} has signed the commit {tree.commit}", details=details)


def _named(tree: Tree, signers: AllowedSigners) -> list[str]:
    """The allowed signers whom the commit names as author or committer, proved or not."""
    if tree.proof is None or tree.commit is None:
        return []
    try:
        emails = commit_object(tree.proof.commit, tree.commit).emails
    except SignatureRefused:
        return []
    return sorted({person for email in emails if (person := signers.person(email)) is not None})
