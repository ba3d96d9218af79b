"""Revisions by the names that a person gives them, for commands that compare: paths, commits, digests.

Rules: a digest is looked for on disk among the kept revisions first, and then in the log; without a name, the revision
is the one in use: the folder of the settings, or what a followed source had live last.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policyd.core.fleet import Fleet
    from policyd.ports import PolicyTree
    from policyd.revisions.kept import Tree
    from policyd.services.log_reader import LogReader
    from policyd.settings import Settings


class Kind(StrEnum):
    """What a revision is of."""

    POLICY = "policy"
    FLEET = "fleet"

    @property
    def folder(self) -> str:
        """Where the settings and the data directory have it."""
        return "policies" if self is Kind.POLICY else "fleet"


@dataclass(frozen=True, slots=True)
class NamedRevision:
    """A revision and what it was called; without ``files`` it is whole in the log only."""

    kind: Kind
    label: str
    digest: str
    commit: str | None
    root: Path
    files: dict[PurePosixPath, bytes] | None

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for another process; a byte is the character of its number."""
        files = None if self.files is None else {str(path): text.decode("latin-1") for path, text in self.files.items()}
        return {
            "kind": self.kind.value,
            "label": self.label,
            "digest": self.digest,
            "commit": self.commit,
            "root": str(self.root),
            "files": files,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> NamedRevision:
        """What ``to_json`` wrote."""
        files = document["files"]
        content = (
            None if files is None else {PurePosixPath(path): text.encode("latin-1") for path, text in files.items()}
        )
        return cls(
            Kind(document["kind"]),
            document["label"],
            document["digest"],
            document["commit"],
            Path(document["root"]),
            content,
        )

    async def policies(self, log: LogReader | None) -> PolicyTree:
        """The policy tree. Raises ``PolicyInvalid`` for files that are none, and ``NotFound``."""
        from policyd.revisions.policy_files import policy_tree
        from policyd.services.logged_trees import logged_policies

        if self.files is not None:
            return policy_tree(dict(self.files), self.commit, self.root)
        found = None if log is None else await logged_policies(log, self.digest)
        if found is None:
            raise self._absent()
        return found

    async def fleet(self, log: LogReader | None) -> Fleet:
        """The fleet. Raises ``FleetInvalid`` for files that are none, and ``NotFound``."""
        from policyd.revisions.fleet_files import parse_fleet
        from policyd.services.logged_trees import logged_fleet

        if self.files is not None:
            return parse_fleet(self.files, self.root, self.commit)
        found = None if log is None else await logged_fleet(log, self.digest)
        if found is None:
            raise self._absent()
        return found

    def _absent(self) -> Exception:
        from policyd.errors import NotFound

        return NotFound(
            f"no {self.kind.value} revision {self.digest} is kept here, on disk or in the log",
            remedy="take the digest from a decision of this log, or name a folder or a commit",
        )


def named_revision(settings: Settings, kind: Kind, name: str | None) -> NamedRevision:
    """The revision that is meant. Raises ``NotFound`` and ``SourceRefused``."""
    import re

    from policyd.bootstrap_sources import SUFFIXES, kept_trees
    from policyd.errors import NotFound
    from policyd.revisions.named_trees import named_tree

    kept = kept_trees(settings, kind.folder)
    if name is None:
        return _in_use(settings, kind)
    source = getattr(settings.sources, kind.folder)
    chosen = getattr(settings, kind.folder)
    folder = source.path if source is not None else str(chosen or _default_folder(kind))
    try:
        found = named_tree(name, SUFFIXES[kind.folder], kept, folder)
    except NotFound:
        if re.fullmatch(r"sha256:[0-9a-f]{64}", name):
            return NamedRevision(kind, name, name, None, Path(), None)
        raise
    return _of(kind, name, found.tree, found.root)


def _default_folder(kind: Kind) -> str:
    return "policies" if kind is Kind.POLICY else "fleet"


def _in_use(settings: Settings, kind: Kind) -> NamedRevision:
    """The revision that is in use here."""
    from policyd.bootstrap import fleet_path, policies_path
    from policyd.bootstrap_sources import SUFFIXES, kept_trees
    from policyd.revisions.named_trees import named_tree

    kept = kept_trees(settings, kind.folder)
    if getattr(settings.sources, kind.folder) is not None:
        live = kept.live()
        if live is not None:
            return _of(kind, "in use", live[0], Path())
    path = policies_path(settings) if kind is Kind.POLICY else fleet_path(settings)
    found = named_tree(str(path), SUFFIXES[kind.folder], kept, "")
    return _of(kind, "in use", found.tree, found.root)


def _of(kind: Kind, label: str, tree: Tree, root: Path) -> NamedRevision:
    return NamedRevision(kind, label, tree.digest, tree.commit, root, dict(tree.files))
