"""What a git commit proves: who has signed it, and that the files of a tree are those that it holds.

    signature ──covers──► commit object ──names──► tree objects ──name──► the files that a revision is made of

Rules: the objects come from a process that read a repository nobody trusts, so every link is computed again here, from
the bytes of the commit down to those of each file; a commit names its tree once, and its signature covers all else in
it. The names are git's, SHA-1: they hold against whoever does not already sign, and the digest of a revision, which an
approval is over, is SHA-256.

Refused: a commit without a signature, with two of them or one of OpenPGP; headers in another order than git writes;
objects that are missing or damaged; a file that the commit does not hold, or holds otherwise, and one that was left
out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from policyd.errors import SignatureRefused
from policyd.ports import CommitProof
from policyd.revisions.allowed_signers import AllowedSigners
from policyd.revisions.sshsig import parse

NAMESPACE: Final = "git"
_TREE: Final = re.compile(rb"tree ([0-9a-f]{40})")
_PERSON: Final = re.compile(rb"(author|committer) [^\n]*<([^<>\n]*)> -?\d+ [+-]\d{4}")
_SIGNATURE: Final = b"gpgsig"
_FOLDER: Final = b"40000"


@dataclass(frozen=True, slots=True)
class CommitObject:
    """A commit, taken apart: its tree, whom it names, its signature, and everything else, which that is over."""

    tree: bytes
    emails: tuple[str, ...]
    signature: bytes | None
    signed: bytes


@dataclass(frozen=True, slots=True)
class CommitSigner:
    """Who has signed a commit, with which key, and whom the commit itself names as author and committer."""

    person: str
    fingerprint: str
    emails: tuple[str, ...]


def signer_of(
    proof: CommitProof | None,
    commit: str | None,
    files: Mapping[PurePosixPath, bytes],
    suffixes: Sequence[str],
    signers: AllowedSigners,
    now_us: int,
) -> CommitSigner:
    """Who has signed the commit that holds exactly these files. Raises ``SignatureRefused``."""
    if proof is None or commit is None:
        raise SignatureRefused("no commit comes with these files, and only a commit is signed; follow a git repository")
    found = commit_object(proof.commit, commit)
    if found.signature is None:
        raise SignatureRefused(f"the commit {commit} is not signed")
    if found.signature.startswith(b"-----BEGIN PGP"):
        raise SignatureRefused(
            f"the commit {commit} is signed with OpenPGP; sign it with an SSH key (`git config gpg.format ssh`)"
        )
    require_files(proof, found.tree, files, suffixes)
    signature = parse(found.signature)
    person = signers.signed_by(signature, found.signed, NAMESPACE, now_us)
    return CommitSigner(person, signature.key.fingerprint, found.emails)


def commit_object(raw: bytes, name: str) -> CommitObject:
    """The commit of that name. Raises ``SignatureRefused`` when these bytes are another one, or none."""
    if _name(b"commit", raw).hex() != name:
        raise SignatureRefused(f"what was given for the commit {name} is something else")
    head, blank, message = raw.partition(b"\n\n")
    if not blank:
        raise SignatureRefused(f"the commit {name} has no message")
    headers = _headers(head)
    tree = _TREE.fullmatch(headers[0])
    if tree is None or sum(header.startswith(b"tree ") for header in headers) != 1:
        raise SignatureRefused(f"the commit {name} does not begin with the one tree that it holds")
    people = [match for match in map(_PERSON.fullmatch, headers) if match is not None]
    if [match[1] for match in people] != [b"author", b"committer"]:
        raise SignatureRefused(f"the commit {name} does not name one author and one committer")
    signatures = [header for header in headers if header.startswith(_SIGNATURE)]
    if len(signatures) > 1 or any(not header.startswith(_SIGNATURE + b" ") for header in signatures):
        raise SignatureRefused(f"the commit {name} has more than one signature, or one of another hash")
    emails = tuple(dict.fromkeys(match[2].decode("utf-8", "replace") for match in people))
    if not signatures:
        return CommitObject(bytes.fromhex(tree[1].decode()), emails, None, raw)
    signed = b"\n".join(header for header in headers if header is not signatures[0]) + blank + message
    value = signatures[0].removeprefix(_SIGNATURE + b" ").replace(b"\n ", b"\n")
    return CommitObject(bytes.fromhex(tree[1].decode()), emails, value, signed)


def require_files(
    proof: CommitProof, tree: bytes, files: Mapping[PurePosixPath, bytes], suffixes: Sequence[str]
) -> None:
    """Raise ``SignatureRefused`` unless the folder of the proof below this tree holds exactly these files."""
    trees = {_name(b"tree", raw): raw for raw in proof.trees}
    for part in [part.encode() for part in proof.path.split("/") if part]:
        found = [name for mode, entry, name in _entries(trees, tree) if entry == part and mode == _FOLDER]
        if len(found) != 1:
            raise SignatureRefused(f"the commit has no folder {proof.path!r}")
        tree = found[0]
    held = dict(_held(trees, tree, tuple(suffix.encode() for suffix in suffixes)))
    given = {str(path).encode(): _name(b"blob", content) for path, content in files.items()}
    for path in sorted(held.keys() | given.keys()):
        if held.get(path) != given.get(path):
            raise SignatureRefused(f"{path.decode('utf-8', 'replace')} is not what the signed commit holds")


def _headers(head: bytes) -> list[bytes]:
    """Each header with the lines that continue it."""
    headers: list[bytes] = []
    for line in head.split(b"\n"):
        if line.startswith(b" ") and headers:
            headers[-1] += b"\n" + line
        else:
            headers.append(line)
    return headers


def _held(trees: Mapping[bytes, bytes], root: bytes, suffixes: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes]]:
    """Path and name of every file that belongs to a tree by its name, as those who read trees take them."""
    pending = [(b"", root)]
    while pending:
        above, tree = pending.pop()
        for mode, entry, name in _entries(trees, tree):
            if entry.startswith(b"."):
                continue
            if mode == _FOLDER:
                pending.append((above + entry + b"/", name))
            elif entry.endswith(suffixes):
                yield above + entry, name


def _entries(trees: Mapping[bytes, bytes], name: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Mode, name and object of the entries of a tree."""
    if name not in trees:
        raise SignatureRefused(f"the folder {name.hex()} of the commit was not given")
    raw, at = trees[name], 0
    while at < len(raw):
        space, end = raw.find(b" ", at), raw.find(b"\0", at)
        if not at < space < end or end + 21 > len(raw):
            raise SignatureRefused(f"the folder {name.hex()} of the commit cannot be read")
        yield raw[at:space], raw[space + 1 : end], raw[end + 1 : end + 21]
        at = end + 21


def _name(kind: bytes, raw: bytes) -> bytes:
    return hashlib.sha1(kind + b" %d\0" % len(raw) + raw, usedforsecurity=False).digest()
