"""What CI and pre-commit are given runs as it stands: the review of a change, and each hook."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from policyd.documents import read_yaml

BIN = Path(sys.executable).parent


def executed(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("POLICYD_", "GITHUB_"))}
    environment |= {"PATH": f"{BIN}:{environment['PATH']}", **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def change(tmp_path: Path, repository: Path) -> Path:
    """A repository of policies and a fleet, as a team has it."""
    shutil.copytree(repository / "policies", tmp_path / "policies")
    shutil.copytree(repository / "examples" / "fleet", tmp_path / "fleet")
    return tmp_path


def test_a_change_that_breaks_a_case_is_told_with_its_reason(change: Path, repository: Path) -> None:
    rego = change / "policies" / "residency" / "residency.rego"
    text = rego.read_text()
    rego.write_text(text.replace("enforcement: hard", "enforcement: advisory", 1))
    script = str(repository / "deploy" / "ci" / "review")
    done = executed([script, "policies", "comment.md"], change)
    comment = (change / "comment.md").read_text()
    assert done.returncode == 3, done.stdout + done.stderr
    assert "| test | **findings** |" in comment
    assert "| impact | not measured: no log was named |" in comment
    assert comment.count("~~~") % 2 == 0


def test_a_review_without_arguments_says_what_it_needs(change: Path, repository: Path) -> None:
    done = executed([str(repository / "deploy" / "ci" / "review")], change)
    assert (done.returncode, done.stdout) == (2, "")
    assert "name the folder" in done.stderr


def test_a_review_whose_log_is_not_there_fails_and_says_so(change: Path, repository: Path) -> None:
    script = str(repository / "deploy" / "ci" / "review")
    done = executed([script, "policies", "comment.md", "--data-dir", "nowhere"], change)
    assert done.returncode == 1
    comment = (change / "comment.md").read_text()
    assert "| impact | **failed** (1) |" in comment
    assert "there is no log in nowhere" in comment


def test_each_hook_of_pre_commit_runs(change: Path, repository: Path) -> None:
    hooks = read_yaml((repository / ".pre-commit-hooks.yaml").read_bytes(), "hooks").value
    assert {hook["id"] for hook in hooks} == {"policyd-check", "policyd-test", "policyd-fleet-check"}
    for hook in hooks:
        assert hook["language"] == "python"
        done = executed([*hook["entry"].split(), *hook["args"]], change)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["github.yml", "gitlab.yml"])
def test_each_recipe_calls_the_review_that_is_shipped(repository: Path, name: str) -> None:
    document = read_yaml((repository / "deploy" / "ci" / name).read_bytes(), name)
    assert document.findings == ()
    assert "deploy/ci/review policies comment.md" in str(document.value)
