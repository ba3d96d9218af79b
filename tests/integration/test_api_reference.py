"""The reference page of HTTP says what is: its examples run, its tables are whole, its defaults are the settings'."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from audit.query import FILTERS
from policyd.settings import Settings


@pytest.fixture
def page(repository: Path) -> str:
    return (repository / "docs" / "reference" / "http.md").read_text()


def test_the_examples_run(api: Any, page: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    examples = re.findall(r"<!-- run status=(\d+) -->\n```sh\n(.*?)```", page, re.DOTALL)
    assert len(examples) == page.count("```sh")
    for status, command in examples:
        told = command.replace("curl ", "curl -s -o /dev/null -w '%{http_code}' ", 1)
        done = subprocess.run(
            ["sh", "-eu", "-c", told], env={"URL": api.address, "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stdout == status, command


def test_every_route_is_named(api: Any, page: str) -> None:
    described = {
        f"{method.upper()} {path}"
        for path, methods in api.client.get("/openapi.json").json()["paths"].items()
        for method in methods
    }
    assert set(re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", page, re.MULTILINE)) == described


def test_every_filter_is_named(page: str) -> None:
    table = page[page.index("| filter | matches |") : page.index("## Explanations")]
    assert set(re.findall(r"`([a-z_]+)`(?=[,` |].*\|)", table)) >= set(FILTERS)


def test_the_defaults_are_those_of_the_settings(page: str) -> None:
    named = re.findall(r"\| `([a-z_]+)\.([a-z_]+)` \| (\d+) \|", page)
    assert len(named) >= 8
    for section, name, default in named:
        assert getattr(getattr(Settings(), section), name) == int(default)
