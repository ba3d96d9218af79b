"""Rows for a spreadsheet: read back as they were, and never a formula."""

from __future__ import annotations

import csv
import io

import pytest

from policyd.services.csv_text import csv_text


def test_rows_come_back() -> None:
    text = csv_text(["a", "b", "c"], [{"a": 'x,"y"\n', "b": None, "c": -3}, {"a": ["DE", "FR"], "c": 10**18}])
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        ["a", "b", "c"], ['x,"y"\n', "", "-3"], ["DE FR", "", str(10**18)],
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\r=x"])
def test_text_is_never_a_formula(text: str) -> None:
    assert csv_text(["a"], [{"a": text}]).split("\r\n", 1)[1].lstrip('"').startswith("'")
