"""The files of a policy tree and a fleet tree together, as something that another process can be handed.

Rules: what is handed over are the bytes that were read, so that every process makes the same revisions of them; nothing
is judged here but what ``policyd.revisions.trees`` refuses to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from policyd.core.fleet import Fleet
from policyd.errors import FleetInvalid, PolicyInvalid
from policyd.ports import PolicyTree
from policyd.revisions import fleet_files, policy_files
from policyd.revisions.trees import read_tree, tree_commit

Files = Mapping[PurePosixPath, bytes]


@dataclass(frozen=True, slots=True)
class TreeFiles:
    """Both trees as files, with the commits that hold them."""

    policies_root: Path
    policies: Files
    policies_commit: str | None
    fleet_root: Path
    fleet: Files
    fleet_commit: str | None

    def revisions(self) -> tuple[PolicyTree, Fleet]:
        """The revisions that these files are. Raises ``PolicyInvalid`` or ``FleetInvalid``."""
        fleet = fleet_files.parse_fleet(self.fleet, self.fleet_root, self.fleet_commit)
        return policy_files.policy_tree(dict(self.policies), self.policies_commit, self.policies_root), fleet

    def to_json(self) -> dict[str, Any]:
        """As JSON values; a byte is the character of its number."""
        return {
            "policies": [str(self.policies_root), _written(self.policies), self.policies_commit],
            "fleet": [str(self.fleet_root), _written(self.fleet), self.fleet_commit],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TreeFiles:
        """What ``to_json`` wrote."""
        policies_root, policies, policies_commit = document["policies"]
        fleet_root, fleet, fleet_commit = document["fleet"]
        return cls(Path(policies_root), _read(policies), policies_commit, Path(fleet_root), _read(fleet), fleet_commit)


def read_tree_files(policies: Path, fleet: Path) -> TreeFiles:
    """The files as they are now. Raises ``PolicyInvalid`` or ``FleetInvalid``."""
    policy_content = read_tree(policies, policy_files.SUFFIXES, PolicyInvalid)
    fleet_content = read_tree(fleet, fleet_files.SUFFIXES, FleetInvalid)
    return TreeFiles(
        policies,
        policy_content,
        tree_commit(policies, policy_content, policy_files.SUFFIXES),
        fleet if fleet.is_dir() else fleet.parent,
        fleet_content,
        tree_commit(fleet, fleet_content, fleet_files.SUFFIXES),
    )


def _written(files: Files) -> dict[str, str]:
    return {str(path): content.decode("latin-1") for path, content in files.items()}


def _read(files: Mapping[str, str]) -> dict[PurePosixPath, bytes]:
    return {PurePosixPath(path): content.encode("latin-1") for path, content in files.items()}
