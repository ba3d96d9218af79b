"""Signed commits: what git signs is taken with the files it covers, and with no other commit, tree, file or key."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from dulwich.objects import Commit

from connectors.git_source import GitPlace, GitSource
from policyd.errors import SignatureRefused
from policyd.ports import CommitProof, SourceTree
from policyd.revisions import sshsig
from policyd.revisions.allowed_signers import AllowedSigners, parse_allowed_signers
from policyd.revisions.commit_proof import commit_object, signer_of
from policyd.revisions.kept import KeptTrees, Tree
from policyd.revisions.signature_gate import signature_gate
from policyd.revisions.tree_sources import LIMITS
from tests.integration.git_server import BareRepository
from tests.programs import needs

FILES = {"policies/a/a.rego": b"package a\n", "policies/settings.yaml": b"settings: {}\n", "readme.md": b"no"}
SUFFIXES = (".rego", ".yaml")
ANA, BEN = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
NOW_US = 1_790_000_000_000_000


def _signers(more: str = "", key: ed25519.Ed25519PrivateKey = ANA) -> AllowedSigners:
    public = base64.b64encode(sshsig._written(key)).decode()
    return parse_allowed_signers(f"ana@example.org {more} ssh-ed25519 {public}\n".encode(), "signers")


class Signed:
    """A repository whose commits are signed, and what is read of it."""

    def __init__(self, folder: Path) -> None:
        self.bare = BareRepository(folder / "repository.git")
        self.source = GitSource(
            GitPlace(f"file://{self.bare.path}", path="policies"), folder / "mirror", SUFFIXES, LIMITS
        )

    def commit(self, key: ed25519.Ed25519PrivateKey = ANA, namespace: str = "git", **more: bytes) -> SourceTree:
        """Sign the next commit of the files, and read it."""
        name = self.bare.commit({**FILES, **{f"policies/{path}": content for path, content in more.items()}})
        return self.signed(name, lambda raw: sshsig.sign(key, raw, namespace).encode())

    def signed(self, name: str, sign: Callable[[bytes], bytes]) -> SourceTree:
        commit = self.bare.repo[name.encode()]
        assert isinstance(commit, Commit)
        commit.gpgsig = sign(commit.as_raw_string()).rstrip(b"\n")
        self.bare.repo.object_store.add_object(commit)
        self.bare.repo.refs[b"refs/heads/main"] = commit.id  # type: ignore[index] - a name of a ref is bytes
        found = self.source.read(None)
        assert found is not None
        return found


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    return Signed(tmp_path)


def _signer(found: SourceTree, signers: AllowedSigners, suffixes: tuple[str, ...] = SUFFIXES) -> str:
    return signer_of(found.proof, found.commit, found.files, suffixes, signers, NOW_US).person


def test_a_signed_commit_names_its_signer(signed: Signed) -> None:
    found = signed.commit()
    assert found.proof is not None
    assert _signer(found, _signers()) == "ana@example.org"
    whole = signer_of(found.proof, found.commit, found.files, SUFFIXES, _signers(), NOW_US)
    assert whole.emails == ("author@example.org",)
    assert whole.fingerprint.startswith("SHA256:")


def test_whoever_signed_must_be_allowed_now_and_for_commits(signed: Signed) -> None:
    found = signed.commit()
    for signers, said in (
        (_signers(key=BEN), "none of an allowed signer"),
        (_signers("valid-before=20200101Z"), "has expired at 2020-01-01"),
        (_signers("valid-after=20990101Z"), "not valid before 2099-01-01"),
        (_signers('namespaces="policyd-approval@v1"'), "not allowed to sign for 'git'"),
    ):
        with pytest.raises(SignatureRefused, match=said):
            _signer(found, signers)
    with pytest.raises(SignatureRefused, match="is for 'file', and 'git' is needed"):
        _signer(signed.commit(namespace="file"), _signers())
    unsigned = signed.bare.commit(FILES)
    found = signed.source.read(None) or found
    assert found.commit == unsigned
    with pytest.raises(SignatureRefused, match=f"the commit {unsigned} is not signed"):
        _signer(found, _signers())


def test_a_signature_holds_for_no_other_commit(signed: Signed) -> None:
    first = signed.commit()
    assert first.proof is not None
    signature = commit_object(first.proof.commit, first.commit or "").signature
    assert signature is not None
    other = signed.signed(signed.bare.commit({**FILES, "policies/a/a.rego": b"package b\n"}), lambda _: signature)
    with pytest.raises(SignatureRefused, match="over something else"):
        _signer(other, _signers())
    pgp = signed.signed(signed.bare.commit(FILES), lambda _: b"-----BEGIN PGP SIGNATURE-----\n\nx\n-----END PGP")
    with pytest.raises(SignatureRefused, match="is signed with OpenPGP"):
        _signer(pgp, _signers())


def test_the_files_are_those_of_the_signed_commit(signed: Signed) -> None:
    found = signed.commit()
    assert found.proof is not None
    path, other = PurePosixPath("a/a.rego"), PurePosixPath("b.rego")
    for files in (
        {**found.files, path: b"package evil\n"},
        {**found.files, other: b"package evil\n"},
        {name: content for name, content in found.files.items() if name != path},
    ):
        with pytest.raises(SignatureRefused, match="is not what the signed commit holds"):
            _signer(SourceTree(files, found.commit, found.proof), _signers())
    for proof, said in (
        (replace(found.proof, path=""), "is not what the signed commit holds"),
        (replace(found.proof, path="elsewhere"), "has no folder 'elsewhere'"),
        (replace(found.proof, trees=found.proof.trees[:-1]), "was not given"),
        (replace(found.proof, trees=(b"40000 x", *found.proof.trees[1:])), "was not given"),
        (replace(found.proof, commit=found.proof.commit + b" "), "is something else"),
        (None, "no commit comes with these files"),
    ):
        with pytest.raises(SignatureRefused, match=said):
            _signer(SourceTree(found.files, found.commit, proof), _signers())


HEAD = b"tree " + b"1" * 40 + b"\nauthor A <a@example.org> 1 +0000\ncommitter A <a@example.org> 1 +0000"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (HEAD, "has no message"),
        (b"parent " + b"1" * 40 + b"\n" + HEAD + b"\n\nx", "does not begin with the one tree"),
        (HEAD + b"\ntree " + b"2" * 40 + b"\n\nx", "does not begin with the one tree"),
        (b"tree " + b"1" * 40 + b"\n\nx", "does not name one author and one committer"),
        (HEAD + b"\nauthor B <b@example.org> 1 +0000\n\nx", "does not name one author"),
        (HEAD + b"\ngpgsig a\n b\ngpgsig c\n\nx", "more than one signature"),
        (HEAD + b"\ngpgsig-sha256 a\n b\n\nx", "more than one signature, or one of another hash"),
    ],
)
def test_a_commit_is_written_as_git_writes_one(raw: bytes, said: str) -> None:
    name = hashlib.sha1(b"commit %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()
    with pytest.raises(SignatureRefused, match=said):
        commit_object(raw, name)


def test_the_gate_refuses_only_where_signatures_are_required(signed: Signed) -> None:
    found = signed.commit()
    tree = Tree.of(found.files, found.commit, found.proof)
    gate = signature_gate(tree, SUFFIXES, _signers(), NOW_US, required=True)
    assert gate.passed
    assert (gate.details["signer"], gate.details["authors"]) == ("ana@example.org", ["ana@example.org"])
    gate = signature_gate(tree, SUFFIXES, _signers(key=BEN), NOW_US, required=True)
    assert not gate.passed
    assert "none of an allowed signer" in gate.said
    gate = signature_gate(tree, SUFFIXES, _signers(key=BEN), NOW_US, required=False)
    assert gate.passed
    assert "not required" in gate.said
    assert not signature_gate(tree, SUFFIXES, None, NOW_US, required=True).passed
    assert signature_gate(tree, SUFFIXES, None, NOW_US, required=False).passed


def test_whom_the_commit_names_is_an_author_too(signed: Signed) -> None:
    found = signed.commit()
    tree = Tree.of(found.files, found.commit, found.proof)
    public = base64.b64encode(sshsig._written(BEN)).decode()
    signers = parse_allowed_signers(f"author@example.org ssh-ed25519 {public}\n".encode(), "signers")
    assert signature_gate(tree, SUFFIXES, signers, NOW_US, required=False).details["authors"] == ["author@example.org"]


def test_a_kept_revision_still_proves_who_signed_it(signed: Signed, tmp_path: Path) -> None:
    found = signed.commit()
    kept = KeptTrees(tmp_path / "kept")
    tree = Tree.of(found.files, found.commit, found.proof)
    kept.keep(tree, 1)
    assert kept.find(tree.digest) == tree
    live = kept.live()
    assert live is not None
    assert live[0].proof == found.proof
    kept.confirm(Tree.of(found.files, "0" * 40), 2)
    live = kept.live()
    assert live is not None
    assert live[0].proof is None


@needs("git", "ssh-keygen")
def test_what_git_itself_signs_is_taken(tmp_path: Path) -> None:
    work, key = tmp_path / "work", tmp_path / "key"
    work.mkdir()

    def run(*command: str) -> str:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
        return subprocess.run(command, cwd=work, env=environment, check=True, capture_output=True, text=True).stdout

    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key))
    run("git", "init", "-q", "-b", "main")
    for name, value in (
        ("user.name", "Ana"),
        ("user.email", "ana@example.org"),
        ("gpg.format", "ssh"),
        ("user.signingKey", str(key)),
        ("commit.gpgSign", "true"),
    ):
        run("git", "config", name, value)
    signers = parse_allowed_signers(f"ana@example.org {key.with_suffix('.pub').read_text()}".encode(), "signers")
    source = GitSource(GitPlace(str(work), path="policies"), tmp_path / "mirror", SUFFIXES, LIMITS)
    for message in ("one", "two\n\nwith a body\n\n-- \n trailer", "gpgsig in the message\ntree 1"):
        for path, content in FILES.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_bytes(content + message.encode() if path == "readme.md" else content)
        run("git", "add", ".")
        run("git", "commit", "-q", "-m", message)
        found = source.read(None)
        assert found is not None
        assert isinstance(found.proof, CommitProof)
        assert found.commit == run("git", "rev-parse", "HEAD").strip()
        assert _signer(found, signers) == "ana@example.org"
    run("git", "checkout", "-q", "-b", "side", "HEAD~1")
    run("git", "commit", "-q", "--allow-empty", "-m", "aside")
    run("git", "tag", "-s", "-m", "signed too", "v1")
    run("git", "checkout", "-q", "main")
    run("git", "merge", "-q", "--no-ff", "-m", "merged", "v1")
    merged = source.read(None)
    assert merged is not None
    assert merged.proof is not None
    assert b"\nmergetag " in merged.proof.commit
    assert _signer(merged, signers) == "ana@example.org"
