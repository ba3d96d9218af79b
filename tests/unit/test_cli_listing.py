"""Rows fit the width there is: one line each, or lesser facts below; no name breaks while there is room."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from policyd.cli.listing import Column, draw_rows

COLUMNS = (
    Column("#", right=True),
    Column("pool"),
    Column("kind", leaves=2),
    Column("where", leaves=1),
    Column("seat", leaves=1, label="seat"),
    Column("cost", right=True),
    Column("remedy", leaves=1, label="remedy:", starts=True),
)
ROWS = [
    ("1", "nebius-eu-north1-h200", "on_demand", "FI; support FI, NL", "NL", "$0.000491", "none"),
    ("12", "ovh", "committed", "FR", "", "$1.00", "ask"),
]


def drawn(width: int, rows: list[tuple[str, ...]] = ROWS) -> list[str]:
    said = io.StringIO()
    draw_rows(Console(file=said, width=width, color_system=None, highlight=False), COLUMNS, rows)
    return said.getvalue().splitlines()


def test_a_row_that_fits_is_one_line() -> None:
    assert drawn(100) == [
        " #  pool                   kind       where               seat       cost  remedy",
        "─" * 81,
        " 1  nebius-eu-north1-h200  on_demand  FI; support FI, NL  NL    $0.000491  none",
        "12  ovh                    committed  FR                            $1.00  ask",
    ]


def test_lesser_facts_move_below_first() -> None:
    assert drawn(60) == [
        " #  pool                   kind            cost",
        "─" * 47,
        " 1  nebius-eu-north1-h200  on_demand  $0.000491",
        "    FI; support FI, NL · seat NL",
        "    remedy: none",
        "12  ovh                    committed      $1.00",
        "    FR",
        "    remedy: ask",
    ]


def test_a_narrow_screen_takes_more_below() -> None:
    assert drawn(40)[2:4] == [" 1  nebius-eu-north1-h200  $0.000491", "    on_demand · FI; support FI, NL ·"]


@pytest.mark.parametrize("width", [1, 7, 20, 36, 48, 60, 90, 200])
def test_nothing_is_cut_off_and_nothing_is_too_wide(width: int) -> None:
    lines = drawn(width)
    assert all(len(line.rstrip()) <= width for line in lines)
    said = "".join("".join(lines).split())
    for row in ROWS:
        for text in row:
            assert "".join(text.split()) in said


@pytest.mark.parametrize("width", [48, 60, 90, 200])
def test_names_do_not_break_where_there_is_room(width: int) -> None:
    lines = drawn(width)
    for word in ("nebius-eu-north1-h200", "committed", "on_demand", "$0.000491"):
        assert any(word in line for line in lines)


def test_no_rows_give_a_head() -> None:
    assert drawn(100, [])[0].split() == ["#", "pool", "kind", "where", "seat", "cost", "remedy"]
