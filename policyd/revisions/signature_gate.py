"""The first gate: whether an allowed signer has signed the commit that a candidate is.

Rules: pure, over what was read; the signers are those of the running configuration and never of the candidate; without
``required`` the gate lets everything pass and tells who has signed, if somebody has.
"""

from __future__ import annotations

from collections.abc import Sequence

from policyd.errors import SignatureRefused
from policyd.revisions.allowed_signers import AllowedSigners
from policyd.revisions.commit_proof import CommitSigner, signer_of
from policyd.revisions.gates import GateResult
from policyd.revisions.kept import Tree

NAME = "signature"


def signature_gate(
    tree: Tree, suffixes: Sequence[str], signers: AllowedSigners | None, now_us: int, *, required: bool
) -> tuple[GateResult, CommitSigner | None]:
    """What the gate says, and who has signed, for the gate of approvals."""
    if signers is None:
        said = "no signers are named (revisions.allowed_signers_file), so nobody's signature can be told"
        return GateResult(NAME, not required, said), None
    details = {"commit": tree.commit, "signers": signers.digest, "signer": None, "key": None}
    try:
        signer = signer_of(tree.proof, tree.commit, tree.files, suffixes, signers, now_us)
    except SignatureRefused as error:
        said = error.detail if required else f"not required, and not there: {error.detail}"
        return GateResult(NAME, not required, said, details=details), None
    details |= {"signer": signer.person, "key": signer.fingerprint}
    return GateResult(NAME, True, f"{signer.person} has signed the commit {tree.commit}", details=details), signer
