"""A git repository as a source of trees: each read is a child process, which ends at its deadline whatever happens.

Rules: the child and all that it started are killed at the deadline, as one group; what it answers is bounded; a secret
goes to it by its standard input, never by an argument, the environment or a message.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from policyd.errors import ConfigError, SourceRefused, SourceUnreachable
from policyd.ports import CommitProof, SourceTree, TreeLimits

SECRET_MAX_CHARS: Final = 8_192
_ENCODED: Final = 3
"""An answer is at most so many times as long as the tree in it."""
_PROOF_MAX_BYTES: Final = 16 * 1024**2
"""And so much longer, for the commit and its folders."""


@dataclass(frozen=True, slots=True)
class GitPlace:
    """Which tree of which repository, and how it is reached."""

    location: str
    branch: str = "main"
    tag: str | None = None
    path: str = ""
    username: str = "git"
    token_file: Path | None = None
    ssh_key_file: Path | None = None
    ssh_known_hosts_file: Path | None = None


@dataclass(frozen=True)
class GitSource:
    """Reads the tree of one branch or tag. ``mirror`` is a folder for what was fetched before."""

    at: GitPlace
    mirror: Path
    suffixes: tuple[str, ...]
    limits: TreeLimits
    deadline_ms: int = 30_000
    fetch_max_mib: int = 256
    accept_rewritten: bool = False

    @property
    def place(self) -> str:
        """Address, branch or tag, and folder."""
        parts = urlsplit(self.at.location)
        shown = self.at.location if not parts.username else self.at.location.replace(f"{parts.username}@", "", 1)
        return f"{shown} {self.at.tag or self.at.branch}{':' + self.at.path if self.at.path else ''}"

    def read(self, known: str | None) -> SourceTree | None:
        """See ``policyd.ports.TreeSource``."""
        said = self._asked(known)
        if "refused" in said:
            raise SourceRefused(f"{self.place}: {said['refused']}")
        if "unreachable" in said:
            raise SourceUnreachable(f"{self.place}: {said['unreachable']}")
        if "files" not in said:
            return None
        files = {PurePosixPath(path): base64.b64decode(content) for path, content in said["files"].items()}
        if not files:
            raise SourceRefused(f"{self.place}: holds no file that ends in {' or '.join(self.suffixes)}")
        commit, *trees = (base64.b64decode(raw) for raw in said["proof"])
        return SourceTree(files, said["commit"], CommitProof(commit, tuple(trees), self.at.path))

    def _request(self, known: str | None) -> dict[str, Any]:
        at, limits = self.at, self.limits
        return {
            "location": at.location,
            "branch": at.branch,
            "tag": at.tag,
            "path": at.path,
            "username": at.username if at.token_file is not None else None,
            "password": _secret(at.token_file),
            "key": None if at.ssh_key_file is None else str(at.ssh_key_file.absolute()),
            "known_hosts": None if at.ssh_known_hosts_file is None else str(at.ssh_known_hosts_file.absolute()),
            "known": known,
            "accept_rewritten": self.accept_rewritten,
            "mirror": str(self.mirror.absolute()),
            "suffixes": self.suffixes,
            "fetch_max_mib": self.fetch_max_mib,
            "deadline_s": self.deadline_ms / 1_000,
            "limits": {
                "files": limits.files,
                "file_bytes": limits.file_bytes,
                "tree_bytes": limits.tree_bytes,
                "depth": limits.depth,
            },
        }

    def _asked(self, known: str | None) -> dict[str, Any]:
        """What the child answers. A file takes it, so that a child that writes for ever meets its own limit."""
        request = orjson.dumps(self._request(known))
        with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as complained:
            command = [sys.executable, "-m", "connectors.git_child"]
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=told, stderr=complained, start_new_session=True
            )
            try:
                child.communicate(request, timeout=self.deadline_ms / 1_000)
            except subprocess.TimeoutExpired:
                raise SourceUnreachable(
                    f"{self.place}: did not answer within {self.deadline_ms} ms and was given up",
                    remedy="look at that server, or raise deadline_ms; the last good revision keeps serving",
                ) from None
            finally:
                # The group outlives its leader: ssh, for one, may still wait for a server that says nothing.
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            told.seek(0)
            answer_max_bytes = self.limits.tree_bytes * _ENCODED + _PROOF_MAX_BYTES
            content = told.read(answer_max_bytes + 1)
            if child.returncode != 0 or len(content) > answer_max_bytes:
                complained.seek(0)
                last = complained.read(65_536).decode("utf-8", "replace").strip().splitlines()[-1:]
                reason = last[0] if last else f"ended with {child.returncode}"
                raise SourceRefused(f"{self.place}: what reads it died, as no repository should bring about: {reason}")
        said: dict[str, Any] = orjson.loads(content)
        return said


def _secret(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(SECRET_MAX_CHARS).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {path} cannot be read: {error}") from None
