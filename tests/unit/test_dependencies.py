"""The locks hold what ``pyproject.toml`` asks for, install from any index, and nothing is imported undeclared."""

from __future__ import annotations

import ast
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = ["runtime.lock", "postgresql.lock", "parquet.lock", "dev.lock"]
OURS = {"policyd", "audit", "connectors"}
FOUND_BY_NAME = {"uvloop", "httptools", "cryptography"}  # uvicorn and PyJWT look for them


def project(repository: Path) -> dict[str, list[str]]:
    """Requirement lines by the lock that must hold them."""
    table = tomllib.loads((repository / "pyproject.toml").read_text())
    runtime = table["project"]["dependencies"]
    extras = table["project"]["optional-dependencies"]
    development = [*runtime, *table["dependency-groups"]["dev"], *itertools.chain(*extras.values())]
    return {
        "runtime.lock": runtime,
        "dev.lock": development,
        **{f"{extra}.lock": runtime + lines for extra, lines in extras.items()},
    }


def extras(repository: Path) -> dict[str, str]:
    """The extra that brings a package, by the package's canonical name."""
    table = tomllib.loads((repository / "pyproject.toml").read_text())
    return {
        canonicalize_name(Requirement(line).name): extra
        for extra, lines in table["project"]["optional-dependencies"].items()
        for line in lines
    }


def pins(repository: Path, lock: str) -> dict[str, str]:
    """Version by canonical name."""
    lines = (repository / "requirements" / lock).read_text().splitlines()
    found = [re.match(r"([a-z0-9._-]+)==(\S+)", line) for line in lines]
    return {canonicalize_name(pin[1]): pin[2] for pin in found if pin}


def imported(repository: Path) -> Iterator[tuple[str, str]]:
    """Every (top-level module, file) that the packages import from elsewhere."""
    for package in sorted(OURS):
        for path in sorted((repository / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                for name in names:
                    top = name.partition(".")[0]
                    if top not in sys.stdlib_module_names | OURS:
                        yield top, str(path.relative_to(repository))


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_pins_every_requirement_in_its_range(repository: Path, lock: str) -> None:
    pinned = pins(repository, lock)
    for line in project(repository)[lock]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned.get(canonicalize_name(requirement.name), "0")), (
            f"{line} is not met by requirements/{lock}: run scripts/lock"
        )


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_has_hashes_and_names_no_index(repository: Path, lock: str) -> None:
    text = (repository / "requirements" / lock).read_text()
    assert "://" not in text
    assert "--index-url" not in text
    entries = [entry for entry in re.split(r"\n(?=[a-z])", text) if not entry.startswith("#")]
    assert len(entries) > 10
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("lock", LOCKS[1:])
def test_every_lock_agrees_with_what_a_deployment_installs(repository: Path, lock: str) -> None:
    larger = pins(repository, lock)
    runtime = pins(repository, "runtime.lock")
    assert {name: larger.get(name) for name in runtime} == runtime


def test_every_extra_has_a_lock(repository: Path) -> None:
    assert {path.name for path in (repository / "requirements").glob("*.lock")} == set(LOCKS) == {*project(repository)}


def test_every_import_is_declared(repository: Path) -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in project(repository)["runtime.lock"]}
    declared |= extras(repository).keys()
    distributions = packages_distributions()
    undeclared = [
        f"{path} imports {module}, which no dependency of pyproject.toml brings"
        for module, path in imported(repository)
        if not declared & {canonicalize_name(name) for name in distributions.get(module, [])}
    ]
    assert undeclared == []


def test_every_dependency_is_used(repository: Path) -> None:
    distributions = packages_distributions()
    used = {canonicalize_name(name) for module, _ in imported(repository) for name in distributions.get(module, [])}
    declared = {canonicalize_name(Requirement(line).name) for line in project(repository)["runtime.lock"]}
    assert sorted(declared - used - FOUND_BY_NAME) == [], "use it, or take it out of pyproject.toml and the locks"
