"""Trees of files: read once into memory, named by their content, and by the git commit that holds the same bytes.

Rules: a tree is what was read, never what lies on the disk later; a path is relative, POSIX and UTF-8; hidden files and
folders (a leading dot) are not part of a tree; every limit is a constant below, and every fault of a tree is reported,
not only the first one.

Refused: links that leave the tree, linked folders, files that are not regular, unreadable or oversized ones, and an
empty tree. Git is read by dulwich, so no git binary is needed, and no hook or filter of a repository ever runs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Final

from dulwich.object_store import tree_lookup_path
from dulwich.objects import Blob, Commit, Tree
from dulwich.repo import Repo

from policyd.errors import Finding, RevisionError

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
MAX_TREE_BYTES: Final = 64 * 1024 * 1024
MAX_FILES: Final = 10_000
MAX_DEPTH: Final = 16
"""Folders below the root of a tree."""


def read_tree(
    root: Path, suffixes: Sequence[str], invalid: type[RevisionError] = RevisionError
) -> dict[PurePosixPath, bytes]:
    """Every file below ``root`` whose name ends in one of ``suffixes``, sorted by path; a file as root is its own tree.

    Raises ``invalid`` with one finding for each fault of the tree (see the module for what is refused).
    """
    findings: list[Finding] = []
    files: dict[PurePosixPath, bytes] = {}
    total_bytes = 0
    for path in _candidates(root, tuple(suffixes), findings):
        if len(files) >= MAX_FILES:
            findings.append(Finding(str(root), f"more than {MAX_FILES} files"))
            break
        content = _content(root, path, findings)
        if content is None:
            continue
        total_bytes += len(content)
        if total_bytes > MAX_TREE_BYTES:
            findings.append(Finding(str(root), f"more than {MAX_TREE_BYTES} bytes in all"))
            break
        files[PurePosixPath(path.name if path == root else path.relative_to(root).as_posix())] = content
    if not files and not findings:
        findings.append(Finding(str(root), f"holds no file that ends in {' or '.join(suffixes)}"))
    if findings:
        raise invalid(f"{root} cannot be read as a tree: {findings[0].message}", findings=findings)
    return dict(sorted(files.items(), key=lambda item: _bytes_of(item[0])))


def tree_digest(files: Mapping[PurePosixPath, bytes]) -> str:
    """The content address of a tree: ``sha256:`` over each path, a zero byte and the SHA-256 of its content, sorted.

    A path holds no zero byte and a SHA-256 has a fixed length, so two different trees never hash the same bytes.
    """
    whole = sha256()
    for path in sorted(files, key=_bytes_of):
        whole.update(_bytes_of(path) + b"\0" + sha256(files[path]).digest())
    return f"sha256:{whole.hexdigest()}"


def tree_commit(root: Path, files: Mapping[PurePosixPath, bytes], suffixes: Sequence[str]) -> str | None:
    """The id of HEAD when its tree at ``root`` holds exactly ``files`` (among names in ``suffixes``), else None.

    None means that no commit can be shown to hold these bytes: no repository, no commit yet, a changed, added or
    deleted file, or a repository that cannot be read.
    """
    folder = root.resolve() if root.is_dir() else root.resolve().parent
    try:
        with Repo.discover(str(folder)) as repo:
            head = repo.head()
            committed = dict(_committed(repo, head, folder))
    except Exception:  # noqa: BLE001 - a damaged repository fails in many ways, and none of them proves a commit
        return None
    wanted = {_bytes_of(path): Blob.from_string(content).id for path, content in files.items()}
    if folder == root.resolve():
        committed = {path: blob for path, blob in committed.items() if _belongs(path, tuple(suffixes))}
    else:
        committed = {path: blob for path, blob in committed.items() if path in wanted}
    return head.decode("ascii") if committed == wanted else None


def _committed(repo: Repo, head: bytes, folder: Path) -> Iterator[tuple[bytes, bytes]]:
    """Path below ``folder`` and blob id of every file that HEAD holds there."""
    commit = repo[head]
    if not isinstance(commit, Commit):
        return
    below = folder.relative_to(Path(repo.path).resolve()).as_posix()
    tree_id = commit.tree
    if below != ".":
        _, tree_id = tree_lookup_path(repo.__getitem__, tree_id, os.fsencode(below))
    if isinstance(repo[tree_id], Tree):
        for entry in repo.object_store.iter_tree_contents(tree_id):
            if entry.sha is not None:
                yield entry.path, entry.sha


def _belongs(path: bytes, suffixes: tuple[str, ...]) -> bool:
    """Whether ``read_tree`` would have taken a committed path."""
    parts = path.split(b"/")
    return not any(part.startswith(b".") for part in parts) and path.endswith(tuple(map(os.fsencode, suffixes)))


def _candidates(root: Path, suffixes: tuple[str, ...], findings: list[Finding]) -> Iterator[Path]:
    """Paths that belong to the tree by their name, in a stable order."""
    if not root.is_dir():
        if root.exists() or root.is_symlink():
            yield root
        else:
            findings.append(Finding(str(root), "no such file or folder"))
        return
    pending = [root]
    while pending:
        folder = pending.pop()
        if len(folder.relative_to(root).parts) > MAX_DEPTH:
            findings.append(Finding(str(folder), f"deeper than {MAX_DEPTH} folders"))
            continue
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            findings.append(Finding(str(folder), f"cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif entry.is_symlink() and path.is_dir():
                findings.append(Finding(str(path), "a linked folder; put the files here, or name them one by one"))
            elif entry.name.endswith(suffixes):
                yield path


def _content(root: Path, path: Path, findings: list[Finding]) -> bytes | None:
    """The bytes of one file, or None after a finding."""
    shown = str(path).encode("utf-8", "replace").decode("utf-8")
    if shown != str(path) or not path.name.isprintable():
        findings.append(Finding(shown, "the name is not printable UTF-8"))
        return None
    try:
        if path != root and not path.resolve(strict=True).is_relative_to(root.resolve()):
            findings.append(Finding(shown, "a link that leaves the tree"))
            return None
        # Without O_NONBLOCK, opening a named pipe would wait for its writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                findings.append(Finding(shown, "not a regular file"))
                return None
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a ring of links, up to Python 3.12
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        findings.append(Finding(shown, f"cannot be read: {reason}"))
        return None
    if len(content) > MAX_FILE_BYTES:
        findings.append(Finding(shown, f"larger than {MAX_FILE_BYTES} bytes"))
        return None
    return content


def _bytes_of(path: PurePosixPath) -> bytes:
    return os.fsencode(str(path))
