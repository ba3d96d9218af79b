"""Every error code has a page, every page a code, and what a page says agrees with the class."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from policyd.errors import PolicydError, all_errors

HEADINGS = ["What it means", "Example", "Why", "What to do"]
SHIPPED = [error for error in all_errors() if error.__module__ == "policyd.errors"]


def page(repository: Path, error: type[PolicydError]) -> str:
    return (repository / "docs" / "errors" / f"{error.code}.md").read_text()


def test_every_code_has_a_page_and_every_page_a_code(repository: Path) -> None:
    pages = {path.stem for path in (repository / "docs" / "errors").glob("*.md")} - {"index"}
    assert pages == {error.code for error in SHIPPED}


def test_no_two_errors_share_a_code() -> None:
    assert len({error.code for error in SHIPPED}) == len(SHIPPED)


@pytest.mark.parametrize("error", SHIPPED, ids=lambda error: error.code)
def test_the_page_agrees_with_the_class(repository: Path, error: type[PolicydError]) -> None:
    text = page(repository, error)
    assert text.startswith(f"# `{error.code}`: {error.title}\n")
    assert f"HTTP status {error.http_status} · exit code {error.exit_code}\n" in text
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert all(part.strip() for part in re.split(r"^## .+$", text, flags=re.MULTILINE))


@pytest.mark.parametrize("error", SHIPPED, ids=lambda error: error.code)
def test_the_example_is_what_the_class_answers(repository: Path, error: type[PolicydError]) -> None:
    block = re.search(r"```json\n(.*?)```", page(repository, error), re.DOTALL)
    assert block is not None
    example = json.loads(block[1])
    assert example.pop("detail")
    assert example == {
        "title": error.title,
        "status": error.http_status,
        "code": error.code,
        "remedy": error.remedy,
    }


def test_the_index_lists_every_code(repository: Path) -> None:
    index = (repository / "docs" / "errors" / "index.md").read_text()
    rows = re.findall(r"^\| \[`(.+?)`\]\((.+?)\.md\) \| (.+?) \| (\d+) \| (\d+) \|$", index, re.MULTILINE)
    assert sorted(rows) == sorted(
        (error.code, error.code, error.title, str(error.http_status), str(error.exit_code)) for error in SHIPPED
    )
