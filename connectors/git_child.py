"""Reads one tree out of a git repository, in a process of its own: a repository may be hostile, a server may hang.

    python -m connectors.git_child < REQUEST > ANSWER        both JSON; started by ``connectors.git_source`` only

Rules: memory, size of files and life time are limited by the kernel before a byte of the repository is read; no git
binary, hook, filter, credential helper or submodule ever runs; every object that is used is hashed again; what may be
refused is refused with a sentence that says what to do. The history that was fetched lies in a bare repository of its
own (``mirror``), which is thrown away and fetched again when it cannot be read.

Refused: a repository without its whole history (shallow), a branch whose new commit does not descend from the last good
one, submodules, links, names that are no plain path, files and trees that are too large.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import resource
import shlex
import shutil
import signal
import stat
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from dulwich.client import GitClient, LocalGitClient, SSHGitClient, Urllib3HttpGitClient
from dulwich.errors import GitProtocolError, HangupException, NotGitRepository
from dulwich.objects import Blob, Commit, ObjectID, ShaFile, Tag, Tree
from dulwich.protocol import DEPTH_INFINITE
from dulwich.repo import Repo

MEMORY_BYTES: Final = 1024**3
HISTORY_MAX: Final = 200_000
"""Commits that are looked through for the last good one."""
ENTRIES_MAX: Final = 50_000
"""Entries of a tree that are looked at, whatever their names."""
PROOF_MAX_BYTES: Final = 8 * 1024**2
"""The commit and its folders, which whoever asks computes again."""
TAGS_MAX: Final = 8
"""Tags that may point at one another."""
NAMES_SHOWN: Final = 8
_S_IFGITLINK: Final = 0o160000


class Refused(Exception):
    """What the repository holds may not go live; the text is a sentence for a person."""


class Shallow(Refused):
    """The history is cut off; what was fetched of it is of no use later either."""


class Unreachable(Exception):
    """The repository did not answer as one."""


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that a request asks for, as ``{"commit", "files", "proof"}``; only the commit when it is known already.

    The proof is the commit and its folders, as they are: whoever asks trusts this process with nothing.
    """
    mirror = Path(request["mirror"])
    repository = _opened(mirror)
    with repository:
        try:
            tip = _fetched(request, repository)
        except NotGitRepository as error:
            raise Unreachable("there is no git repository at that address, or it is not shown to us") from error
        except (GitProtocolError, HangupException, OSError) as error:
            if isinstance(error, OSError) and error.errno == 27:  # EFBIG: the kernel's limit on the size of a file
                raise Refused(_too_much(request)) from error
            raise Unreachable(f"{type(error).__name__}: {error}") from error
        commit = _commit_at(repository, tip)
        known = request["known"]
        if known == commit.id.decode("ascii"):
            return {"commit": known}
        if known is not None and not request["accept_rewritten"]:
            _require_descent(repository, commit, ObjectID(known.encode("ascii")))
        proof = _Proof()
        proof.add(commit)
        files = dict(_files(repository, commit, request, proof))
        repository.refs[_ref(request)] = commit.id
        return {"commit": commit.id.decode("ascii"), "files": files, "proof": proof.told}


class _Proof:
    """The objects that lead from the commit to the files, in base64, the commit first."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self._seen: set[ObjectID] = set()
        self._bytes = 0

    def add(self, found: ShaFile) -> None:
        if found.id in self._seen:
            return
        raw = found.as_raw_string()
        self._seen.add(found.id)
        self._bytes += len(raw)
        if self._bytes > PROOF_MAX_BYTES:
            raise Refused(f"the commit and its folders are larger than {PROOF_MAX_BYTES} bytes")
        self.told.append(base64.b64encode(raw).decode("ascii"))


def _opened(mirror: Path) -> Repo:
    """The bare repository that holds what was fetched before; a new one when there is none, or a damaged one."""
    if mirror.is_dir():
        try:
            repository = Repo(str(mirror))
            for ref in repository.refs.allkeys():
                if ref.startswith(b"refs/"):
                    repository[repository.refs[ref]]
            return repository
        except Exception:  # noqa: BLE001 - a damaged repository fails in many ways, and it is only a copy
            shutil.rmtree(mirror)
    mirror.mkdir(parents=True, mode=0o700)
    return Repo.init_bare(str(mirror))


def _ref(request: Mapping[str, Any]) -> Any:
    kind = "tags" if request["tag"] is not None else "heads"
    return f"refs/{kind}/{request['tag'] or request['branch']}".encode()


def _client(request: Mapping[str, Any]) -> tuple[GitClient, str]:
    """What speaks to the repository, and the path that it is asked for."""
    location = request["location"]
    parts = urlsplit(location)
    if parts.scheme in ("http", "https"):
        base = f"{parts.scheme}://{parts.netloc}"
        client = Urllib3HttpGitClient(
            base, username=request["username"], password=request["password"], timeout=request["deadline_s"]
        )
        return client, parts.path
    if parts.scheme == "ssh":
        command = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]
        if request["known_hosts"] is not None:
            command += ["-o", f"UserKnownHostsFile={request['known_hosts']}"]
        if request["key"] is not None:
            command += ["-o", "IdentitiesOnly=yes"]
        return SSHGitClient(
            parts.hostname or "",
            parts.port,
            parts.username,
            key_filename=request["key"],
            ssh_command=shlex.join(command),
        ), unquote(parts.path)
    return LocalGitClient(), unquote(parts.path) if parts.scheme == "file" else location


def _fetched(request: Mapping[str, Any], repository: Repo) -> ObjectID:
    """Fetch the whole history of the one branch or tag, and say where it stands."""
    ref = _ref(request)
    client, path = _client(request)
    if isinstance(client, LocalGitClient):
        with Repo(path) as there:
            if there.get_shallow():
                raise Shallow(_SHALLOW)

    def wanted(refs: Mapping[Any, ObjectID], depth: int | None = None) -> list[ObjectID]:
        if refs.get(ref) is None:
            raise Refused(_no_such(request, refs))
        tip = refs[ref]
        return [] if tip in repository.object_store else [tip]

    # Asked for without a depth, the cut of a shallow repository would pass for the beginning of its history.
    local = isinstance(client, LocalGitClient)
    result = client.fetch(path, repository, wanted, depth=None if local else DEPTH_INFINITE)
    if result.new_shallow or repository.get_shallow():
        raise Shallow(_SHALLOW)
    tip = result.refs.get(ref)
    if tip is None:
        raise Refused(_no_such(request, result.refs))
    return tip


_SHALLOW: Final = (
    "the repository is shallow, so nothing shows what its newest commit descends from; "
    "name a whole one (`git fetch --unshallow` makes one of this)"
)


def _no_such(request: Mapping[str, Any], refs: Mapping[Any, Any]) -> str:
    kind, name = ("tag", request["tag"]) if request["tag"] is not None else ("branch", request["branch"])
    folder = b"refs/tags/" if kind == "tag" else b"refs/heads/"
    found = sorted(
        ref[len(folder) :].decode("utf-8", "replace")
        for ref in refs
        if ref.startswith(folder) and not ref.endswith(b"^{}")
    )
    if not found:
        return f"there is no {kind} {name!r}; the repository has none at all"
    shown = ", ".join(found[:NAMES_SHOWN]) + (
        f" and {len(found) - NAMES_SHOWN} more" if len(found) > NAMES_SHOWN else ""
    )
    return f"there is no {kind} {name!r}; there is {shown}"


def _too_much(request: Mapping[str, Any]) -> str:
    return f"the history is larger than fetch_max_mib, {request['fetch_max_mib']} MiB"


def _object(repository: Repo, name: ObjectID) -> ShaFile:
    """An object whose content has that name. A repository that says otherwise is damaged, or lies."""
    try:
        kind, raw = repository.object_store.get_raw(name)
    except KeyError:
        raise Refused(f"the repository is incomplete: the object {name.decode()} is missing") from None
    found = ShaFile.from_raw_string(kind, raw)
    header = found.type_name + b" " + str(len(raw)).encode() + b"\0"
    if hashlib.sha1(header + raw, usedforsecurity=False).hexdigest().encode() != name:
        raise Refused(f"the repository is corrupt: the object {name.decode()} holds something else")
    return found


def _commit_at(repository: Repo, name: ObjectID) -> Commit:
    for _ in range(TAGS_MAX):
        found = _object(repository, name)
        if isinstance(found, Commit):
            return found
        if not isinstance(found, Tag):
            break
        name = found.object[1]
    raise Refused("the tag does not lead to a commit")


def _require_descent(repository: Repo, tip: Commit, known: ObjectID) -> None:
    """Refuse a commit that does not have the last good one among its ancestors."""
    seen, pending = {tip.id}, deque([tip])
    while pending:
        for parent in pending.popleft().parents:
            if parent == known:
                return
            if parent in seen:
                continue
            if len(seen) >= HISTORY_MAX:
                raise Refused(f"the last good commit {known.decode()} is not among the last {HISTORY_MAX} commits")
            seen.add(parent)
            found = _object(repository, parent)
            if isinstance(found, Commit):
                pending.append(found)
    raise Refused(
        f"history was rewritten: {tip.id.decode()} does not descend from {known.decode()}, the last good commit; "
        "put that commit back below it, or set rewritten_history to accept once you know who rewrote it"
    )


def _files(repository: Repo, commit: Commit, request: Mapping[str, Any], proof: _Proof) -> Iterator[tuple[str, str]]:
    """Path and base64 of every file of the tree whose name ends as those of its kind."""
    limits, suffixes = request["limits"], tuple(request["suffixes"])
    pending: list[tuple[str, Tree, int]] = [("", _folder(repository, commit, request["path"], proof), 0)]
    entries = files = total_bytes = 0
    while pending:
        above, tree, depth = pending.pop()
        if depth > limits["depth"]:
            raise Refused(f"{above} is deeper than {limits['depth']} folders")
        proof.add(tree)
        entries += len(tree)
        if entries > ENTRIES_MAX:
            raise Refused(f"the tree has more than {ENTRIES_MAX} entries")
        for path, folder, name in _taken(above, tree, suffixes):
            found = _object(repository, name)
            if not isinstance(found, Tree if folder else Blob):
                raise Refused(f"the repository is corrupt: {path} is a {found.type_name.decode()}")
            if isinstance(found, Tree):
                pending.append((f"{path}/", found, depth + 1))
                continue
            content = found.as_raw_string()
            files, total_bytes = files + 1, total_bytes + len(content)
            if len(content) > limits["file_bytes"]:
                raise Refused(f"{path} is larger than {limits['file_bytes']} bytes")
            if files > limits["files"] or total_bytes > limits["tree_bytes"]:
                raise Refused(f"the tree has more than {limits['files']} files, or {limits['tree_bytes']} bytes")
            yield path, base64.b64encode(content).decode("ascii")


def _taken(above: str, tree: Tree, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bool, ObjectID]]:
    """Path, whether it is a folder, and object of the entries that belong to the tree by their names."""
    for name, mode, sha in tree.items():
        text = _plain(above, name)
        path = f"{above}{text}"
        if text.startswith("."):
            continue
        kind = stat.S_IFMT(mode)
        if kind == _S_IFGITLINK:
            raise Refused(f"{path} is a submodule, whose files are in another repository; put the files here")
        if kind == stat.S_IFLNK:
            raise Refused(f"{path} is a link; put the file here")
        if kind == stat.S_IFDIR or text.endswith(suffixes):
            yield path, kind == stat.S_IFDIR, sha


def _folder(repository: Repo, commit: Commit, path: str, proof: _Proof) -> Tree:
    found: ShaFile = _object(repository, commit.tree)
    proof.add(found)
    for part in [part for part in path.split("/") if part]:
        if not isinstance(found, Tree) or part.encode() not in found:
            raise Refused(f"the commit {commit.id.decode()} has no folder {path!r}")
        mode, name = found[part.encode()]
        if stat.S_IFMT(mode) != stat.S_IFDIR:
            raise Refused(f"{path!r} is no folder of the commit {commit.id.decode()}")
        found = _object(repository, name)
        proof.add(found)
    if not isinstance(found, Tree):
        raise Refused(f"{path!r} is no folder of the commit {commit.id.decode()}")
    return found


def _plain(above: str, name: bytes) -> str:
    """A name that can only mean a file below its folder, on every file system."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(f"{above}{name!r} is no UTF-8 name") from None
    if text in ("", ".", "..") or "/" in text or "\\" in text or not text.isprintable():
        raise Refused(f"{above}{text!r} is no plain name of a file")
    return text


def confine(fetch_max_mib: int, deadline_s: float) -> None:
    """Have the kernel limit this process: its memory, the size of its files, and how long it may live."""
    size_bytes = fetch_max_mib * 1024**2
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
    memory_bytes = MEMORY_BYTES + size_bytes
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Who started this process ends it at the deadline; this is for the case that nobody is left to do so.
    signal.alarm(int(deadline_s) + 5)


def main() -> None:
    """Read the request, and write the answer: the tree, or ``refused`` or ``unreachable`` with a sentence."""
    request = json.load(sys.stdin)
    confine(request["fetch_max_mib"], request["deadline_s"])
    os.environ["GIT_CONFIG_NOSYSTEM"] = "1"
    try:
        said: dict[str, Any] = answer(request)
    except Shallow as error:
        shutil.rmtree(request["mirror"])
        said = {"refused": str(error)}
    except Refused as error:
        said = {"refused": str(error)}
    except Unreachable as error:
        said = {"unreachable": str(error)}
    except MemoryError:
        said = {"refused": f"reading it takes more than {MEMORY_BYTES // 1024**2} MiB of memory"}
    except Exception as error:  # noqa: BLE001 - whatever hostile bytes bring about is the repository's fault
        said = {"refused": f"the repository cannot be read: {type(error).__name__}: {error}"[:2_000]}
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
