"""A server that ends while a revision is at its gates: the next one judges it again, and it goes live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policyd.revisions.policy_files import SUFFIXES
from policyd.revisions.trees import read_tree
from tests.integration.conftest import ApiServer, serving
from tests.integration.git_server import BareRepository
from tests.integration.test_sources import FEW, eventually


def standing(server: ApiServer) -> dict[str, str]:
    """The state of each commit, as the database has it."""
    found: Any = server.run(server.parts.desk.revisions())
    return {each.commit: each.state for each in found}


@pytest.fixture
def law(tmp_path: Path, repository: Path) -> tuple[BareRepository, dict[str, bytes]]:
    tree = read_tree(repository / "policies", SUFFIXES)
    return BareRepository(tmp_path / "law.git"), {
        str(path): content for path, content in tree.items() if path.parts[0] in FEW
    }


def test_what_was_at_its_gates_is_judged_again_by_the_next_process(
    tmp_path: Path, law: tuple[BareRepository, dict[str, bytes]]
) -> None:
    bare, files = law
    first = bare.commit(files)
    settings = {
        "data_dir": tmp_path / "data",
        "sources": {"policies": {"kind": "git", "location": str(bare.path)}, "poll_ms": 200},
        "activation": {"gates": ["check"]},
    }
    with serving(settings) as server:
        assert server.parts.snapshot.policies.commit == first
        second = bare.commit({**files, "settings.yaml": files["settings.yaml"] + b"# 2\n"})
        # It is seen before its gates, which take a process of their own, have said anything.
        assert eventually(lambda: standing(server).get(second)) == "candidate"
    with serving(settings) as server:
        eventually(lambda: server.parts.snapshot.policies.commit == second)
        assert standing(server) == {first: "retired", second: "live"}
