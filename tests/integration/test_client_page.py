"""The page about the Python client: its blocks run, in order, against a real server; its table names every argument."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from policyd.client.connections import Given
from tests.integration.conftest import ApiServer

PAGE = "docs/how-to/python-client.md"
BLOCK = re.compile(r"^<!-- run -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_blocks_of_the_page_run(repository: Path, api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    text = (repository / PAGE).read_text()
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("```python") >= 6
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block.replace("http://127.0.0.1:8470", api.address), PAGE, "exec"), names)
    told = capsys.readouterr().out
    assert "1 " in told
    assert "recorded as" in told
    assert "['allow', 'allow']" in told


def test_the_table_names_every_argument(repository: Path) -> None:
    table = (repository / PAGE).read_text().partition("| argument |")[2]
    assert set(re.findall(r"`([a-z_]+)`", table.partition("\n\n")[0])) == set(Given.__annotations__)
