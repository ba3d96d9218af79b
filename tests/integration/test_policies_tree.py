"""The shipped policy tree: it compiles, its tests hold on both engines, and its pages say what it does."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path

import pytest

from policyd.core.inputs import json_schema
from policyd.core.verdict import Enforcement, PolicySet
from policyd.engines.embedded import EmbeddedEngine
from policyd.ports import TestResult
from policyd.revisions.policy_files import load_policy_tree

PACKAGES = [
    "budget",
    "capability",
    "data_terms",
    "isolation",
    "models",
    "profile",
    "residency",
    "sla",
    "sovereignty",
]


@pytest.fixture(scope="module")
def loaded(repository: Path) -> tuple[PolicySet, list[TestResult]]:
    """The compiled tree and the results of its own tests, on the embedded engine."""

    async def load() -> tuple[PolicySet, list[TestResult]]:
        tree = load_policy_tree(repository / "policies")
        engine = EmbeddedEngine(workers=1)
        try:
            return await engine.load(tree), await engine.test(tree)
        finally:
            await engine.close()

    return asyncio.run(load())


def test_the_shipped_packages_compile_without_a_finding(loaded: tuple[PolicySet, list[TestResult]]) -> None:
    policies, _ = loaded

    assert sorted(policies.packages) == PACKAGES


def test_no_package_reads_what_would_stop_pools_from_sharing_a_verdict(
    loaded: tuple[PolicySet, list[TestResult]],
) -> None:
    own = {("pool", "id"), ("pool",), ("workload",), ("workload", "project"), ("workload", "labels"), ()}
    policies, _ = loaded

    reads = {name: own.intersection(package.reads) for name, package in policies.packages.items()}

    assert reads == {name: set() for name in PACKAGES}


def test_no_package_excuses_a_missing_fact(loaded: tuple[PolicySet, list[TestResult]]) -> None:
    policies, _ = loaded

    assert [name for name, package in policies.packages.items() if package.optional] == []


def test_the_trees_own_tests_hold_on_the_embedded_engine(loaded: tuple[PolicySet, list[TestResult]]) -> None:
    _, results = loaded

    assert len(results) >= 100
    assert [f"{result.location} {result.rule}: {result.detail}" for result in results if not result.passed] == []


def test_every_rule_has_a_test_that_names_it(repository: Path, loaded: tuple[PolicySet, list[TestResult]]) -> None:
    policies, _ = loaded
    missing = [
        f"{name}/{rule}"
        for name, package in policies.packages.items()
        for rule in package.rules
        if f'"{rule}"' not in (repository / "policies" / name / f"{name}_test.rego").read_text()
    ]

    assert missing == []


@pytest.mark.parametrize("name", PACKAGES)
def test_the_page_of_a_package_lists_its_rules(
    repository: Path, loaded: tuple[PolicySet, list[TestResult]], name: str
) -> None:
    policies, _ = loaded
    page = (repository / "policies" / name / "README.md").read_text()

    listed = dict(re.findall(r"^\| `(\w+)` \| (hard|soft|advisory) \|", page, re.MULTILINE))

    assert listed == {rule: doc.enforcement.value for rule, doc in policies.packages[name].rules.items()}


def test_the_reference_lists_every_rule_of_every_package(
    repository: Path, loaded: tuple[PolicySet, list[TestResult]]
) -> None:
    policies, _ = loaded
    page = (repository / "docs" / "reference" / "policies.md").read_text()

    listed = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (hard|soft|advisory) \|", page, re.MULTILINE)

    assert sorted(listed) == sorted(
        (name, rule, doc.enforcement.value)
        for name, package in policies.packages.items()
        for rule, doc in package.rules.items()
    )


def test_a_soft_rule_says_who_may_lift_it_or_what_to_do_instead(
    loaded: tuple[PolicySet, list[TestResult]],
) -> None:
    policies, _ = loaded
    soft = [doc for package in policies.packages.values() for doc in package.rules.values()]

    assert [doc.rule for doc in soft if doc.enforcement is Enforcement.SOFT and not doc.remedy] == []


def test_the_input_schema_is_the_one_that_the_core_fills(repository: Path) -> None:
    written = json.loads((repository / "policies" / "schemas" / "input.json").read_text())

    assert written == json_schema(), "regenerate policies/schemas/input.json from policyd.core.inputs.json_schema()"


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--strict", "--schema", "policies/schemas/input.json", "policies"],
        ["fmt", "--fail", "--list", "policies"],
        ["test", "policies"],
    ],
    ids=["check", "fmt", "test"],
)
def test_a_plain_opa_accepts_the_tree(repository: Path, opa_binary: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [opa_binary, *arguments], cwd=repository, capture_output=True, text=True, check=False, timeout=120
    )

    assert done.returncode == 0, done.stdout + done.stderr
