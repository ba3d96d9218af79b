"""Revisions that went live, kept on disk: what serves when their source does not answer.

    <data_dir>/revisions/<kind>/<digest>.json     the files of a tree, with the commit that holds them
    <data_dir>/revisions/<kind>/live              which of them was live last, and when its source confirmed it last

Rules: a file is whole or not there (written aside, made durable, renamed); what is read back must have the digest that
it is named by, so a damaged file is none; the newest ``KEPT_MAX`` are kept.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import orjson

from policyd.errors import RevisionError
from policyd.ports import CommitProof
from policyd.revisions.trees import MAX_TREE_BYTES, tree_digest

KEPT_MAX: Final = 16
_LIVE: Final = "live"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_FILE_MAX_BYTES: Final = 2 * MAX_TREE_BYTES


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of one revision, its content address, the commit that holds it, and what shows that it does."""

    files: Mapping[PurePosixPath, bytes]
    commit: str | None
    digest: str
    proof: CommitProof | None = None

    @classmethod
    def of(cls, files: Mapping[PurePosixPath, bytes], commit: str | None, proof: CommitProof | None = None) -> Tree:
        """The revision that these files are."""
        return cls(files, commit, tree_digest(files), proof)

    def under(self, commit: str | None) -> Tree:
        """The same tree under a commit that holds it too; what was shown of another one shows nothing of this."""
        return self if commit == self.commit else Tree(self.files, commit, self.digest)


@dataclass(frozen=True, slots=True)
class KeptTrees:
    """The kept revisions of one kind, in a folder of their own."""

    folder: Path

    def keep(self, tree: Tree, confirmed_us: int) -> None:
        """Keep a revision as the live one. Raises ``RevisionError`` when the disk does not take it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = self._path(tree.digest)
            if not path.exists():
                _write(path, _encoded(tree))
            else:
                path.touch()
            self.confirm(tree, confirmed_us)
            self._forget()
        except OSError as error:
            raise RevisionError(
                f"the live revision cannot be kept in {self.folder}: {error.strerror}",
                remedy="mend the disk: without it, a restart has to wait for the source",
            ) from error

    def confirm(self, tree: Tree, confirmed_us: int) -> None:
        """Note when the source last said that the live revision is its newest."""
        said = {"digest": tree.digest, "commit": tree.commit, "confirmed_us": confirmed_us}
        _write(self.folder / _LIVE, orjson.dumps(said))

    def live(self) -> tuple[Tree, int] | None:
        """The revision that was live last and when it was confirmed; None when there is none that can be read."""
        try:
            said = orjson.loads((self.folder / _LIVE).read_bytes())
            tree = self.find(said["digest"])
            confirmed_us = int(said["confirmed_us"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None if tree is None else (tree.under(said["commit"]), confirmed_us)

    def find(self, digest: str) -> Tree | None:
        """A kept revision by its digest; None when it is not there, or is not what was kept."""
        if not _DIGEST.fullmatch(digest):
            return None
        try:
            with self._path(digest).open("rb") as file:
                found = orjson.loads(file.read(_FILE_MAX_BYTES))
            files = {PurePosixPath(path): base64.b64decode(text) for path, text in found["files"].items()}
            commit, proof = found["commit"], _proof(found.get("proof"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        tree = Tree.of(files, commit, proof)
        return tree if tree.digest == digest else None

    def digests(self) -> list[str]:
        """Those of all kept revisions, the newest first."""
        paths = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return [f"sha256:{path.stem}" for path in paths]

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest.removeprefix('sha256:')}.json"

    def _forget(self) -> None:
        for digest in self.digests()[KEPT_MAX:]:
            self._path(digest).unlink(missing_ok=True)


def _encoded(tree: Tree) -> bytes:
    document: dict[str, Any] = {
        "commit": tree.commit,
        "files": {str(path): base64.b64encode(content).decode("ascii") for path, content in tree.files.items()},
    }
    if tree.proof is not None:
        objects = (tree.proof.commit, *tree.proof.trees)
        document["proof"] = [tree.proof.path, *(base64.b64encode(raw).decode("ascii") for raw in objects)]
    return orjson.dumps(document)


def _proof(told: list[str] | None) -> CommitProof | None:
    if told is None:
        return None
    path, commit, *trees = told
    return CommitProof(base64.b64decode(commit), tuple(map(base64.b64decode, trees)), path)


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
