"""A tree by the name that a person gives it: a path, a bundle, a kept digest, or a commit of the repository here.

    policies/                   a folder            sha256:4f1c…        a revision that went live here before
    law.tar.gz                  an OPA bundle       main, v2, HEAD~1    a commit, its folder as in ``main:policies``

Rules: a path that exists is that path; a commit is read from the repository's objects and never checked out; without a
folder, the one that the working directory's tree has counts. It refuses links and submodules, like every source.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from dulwich.object_store import tree_lookup_path
from dulwich.objects import Blob, Tree
from dulwich.objectspec import parse_commit
from dulwich.repo import Repo

from policyd.errors import NotFound, SourceRefused
from policyd.ports import TreeSource
from policyd.revisions.kept import KeptTrees
from policyd.revisions.kept import Tree as Kept
from policyd.revisions.tree_sources import BundleSource, DirectorySource
from policyd.revisions.trees import MAX_DEPTH, MAX_FILE_BYTES, MAX_FILES, MAX_TREE_BYTES

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
BUNDLE_SUFFIXES: Final = (".tar.gz", ".tgz")


@dataclass(frozen=True, slots=True)
class NamedTree:
    """The files under a name; ``root`` is put before their paths where findings are shown."""

    tree: Kept
    root: Path


def named_tree(name: str, suffixes: tuple[str, ...], kept: KeptTrees, folder: str) -> NamedTree:
    """The tree that is meant. ``folder`` holds it in a commit that names none.

    Raises ``SourceRefused`` for what may not be read as a tree, and ``NotFound`` when nothing has that name.
    """
    path = Path(name)
    if path.exists():
        bundle = path.is_file() and path.name.endswith(BUNDLE_SUFFIXES)
        source: TreeSource = BundleSource(path, suffixes) if bundle else DirectorySource(path, suffixes)
        found = source.read(None)
        assert found is not None  # only a source that is asked for a known commit says that nothing is new
        return NamedTree(Kept.of(found.files, found.commit, found.proof), path if path.is_dir() else path.parent)
    if _DIGEST.fullmatch(name):
        tree = kept.find(name)
        if tree is None:
            raise NotFound(f"no revision {name} is kept in {kept.folder}")
        return NamedTree(tree, Path())
    return _of_a_commit(name, suffixes, folder)


def _of_a_commit(name: str, suffixes: tuple[str, ...], folder: str) -> NamedTree:
    revision, colon, below = name.partition(":")
    below = below if colon else folder
    try:
        with Repo.discover(".") as repo:
            commit = parse_commit(repo, revision)
            tree_id = commit.tree
            if below.strip("/"):
                _, tree_id = tree_lookup_path(repo.__getitem__, tree_id, below.strip("/").encode())
            tree = repo[tree_id]
            if not isinstance(tree, Tree):
                raise SourceRefused(f"{name}: {below!r} is no folder of the commit {commit.id.decode()}")
            files = _files(repo, tree, suffixes, name)
            return NamedTree(Kept.of(files, commit.id.decode()), Path(below))
    except SourceRefused:
        raise
    except Exception as error:
        raise NotFound(
            f"{name!r} is no file or folder, no digest, and no commit with a folder {below!r} of a repository here"
        ) from error


def _files(repo: Repo, root: Tree, suffixes: tuple[str, ...], name: str) -> dict[PurePosixPath, bytes]:
    found: dict[PurePosixPath, bytes] = {}
    total_bytes = 0
    for entry in repo.object_store.iter_tree_contents(root.id):
        assert entry.path is not None  # of every entry of a tree
        path = PurePosixPath(entry.path.decode("utf-8"))
        if any(part.startswith(".") for part in path.parts) or not path.name.endswith(suffixes):
            continue
        if not stat.S_ISREG(entry.mode or 0):
            raise SourceRefused(f"{name}: {path} is a link or a submodule; put the file here")
        blob = repo[entry.sha]
        if not isinstance(blob, Blob) or ".." in path.parts or len(path.parts) > MAX_DEPTH + 1:
            raise SourceRefused(f"{name}: {path} is no file of a tree")
        content = blob.as_raw_string()
        total_bytes += len(content)
        if len(content) > MAX_FILE_BYTES or total_bytes > MAX_TREE_BYTES or len(found) >= MAX_FILES:
            raise SourceRefused(f"{name}: the tree is larger than {MAX_FILES} files or {MAX_TREE_BYTES} bytes")
        found[path] = content
    if not found:
        raise SourceRefused(f"{name}: holds no file that ends in {' or '.join(suffixes)}")
    return found
