"""A fault of a setting names where that setting stands: the line of the file, or the variable of the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyd.errors import ConfigError
from policyd.settings import load_settings


def places(file: Path, environment: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as fault:
        load_settings(file, environment)
    return sorted(finding.where for finding in fault.value.findings)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "p.yaml").write_text("port: 1\nengine:\n  kind: opa\n  wokers: 2\n")
    return tmp_path / "p.yaml"


def test_each_fault_is_told_where_it_stands(file: Path) -> None:
    variables = {"POLICYD_PORT": "abc", "POLICYD_ENGINE__KINDD": "x", "POLICYD_AUDIT__DURABLE": "y", "HOME": "/"}
    named = sorted([f"{file}:4", "POLICYD_AUDIT__DURABLE", "POLICYD_ENGINE__KINDD", "POLICYD_PORT"])
    assert places(file, variables) == named


def test_without_variables_the_file_is_at_fault(file: Path) -> None:
    assert places(file, {"HOME": "/"}) == [f"{file}:4"]


def test_what_a_variable_overrides_is_no_fault_of_the_file(file: Path) -> None:
    assert places(file, {"POLICYD_ENGINE__KIND": "oppa"}) == [f"{file}:4", "POLICYD_ENGINE__KIND"]


def test_a_variable_for_a_whole_section_is_named(file: Path) -> None:
    assert places(file, {"POLICYD_ENGINE": "opa"}) == ["POLICYD_ENGINE"]
