"""The worked example of the page on writing policies loads beside the shipped packages, and its tests hold."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from policyd.core.verdict import PolicySet
from policyd.engines.embedded import EmbeddedEngine
from policyd.ports import TestResult
from policyd.revisions.policy_files import load_policy_tree

BLOCK = re.compile(r"^<!-- (?P<how>file|append): (?P<path>\S+) -->\n```\w+\n(?P<text>.*?)^```$", re.M | re.S)


@pytest.fixture
def tree(repository: Path, tmp_path: Path) -> Path:
    """The shipped tree with the example's files written into it."""
    root = tmp_path / "policies"
    shutil.copytree(repository / "policies", root)
    page = (repository / "docs" / "explanation" / "writing-policies.md").read_text()
    for block in BLOCK.finditer(page):
        path = root / block["path"]
        path.parent.mkdir(exist_ok=True)
        before = path.read_text() if block["how"] == "append" else ""
        path.write_text(before + block["text"])
    return root


def test_the_example_loads_and_its_tests_hold_on_the_embedded_engine(tree: Path) -> None:
    async def load() -> tuple[PolicySet, list[TestResult]]:
        engine = EmbeddedEngine(workers=1)
        try:
            policies = load_policy_tree(tree)
            return await engine.load(policies), await engine.test(policies)
        finally:
            await engine.close()

    policies, results = asyncio.run(load())
    mine = [result for result in results if result.package == "placement.export_control_test"]

    assert policies.packages["export_control"].reads == (
        ("pool", "locations", "support_access"),
        ("workload", "data", "categories"),
    )
    assert [result.rule for result in mine if result.passed] == [
        "test_cleared_support_is_quiet",
        "test_other_data_is_not_tested",
        "test_support_from_elsewhere_is_refused",
    ]


def test_the_example_passes_a_plain_opa(tree: Path, opa_binary: Path) -> None:
    for arguments in (["check", "--strict", "--schema", str(tree / "schemas/input.json")], ["fmt", "--fail"], ["test"]):
        done = subprocess.run(
            [opa_binary, *arguments, str(tree)], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
