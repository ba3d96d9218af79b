"""Rows on one line each where they fit, else with their lesser facts on a line below.

Rules: a name or a number never breaks in its middle while there is room for the columns that stay; nothing is cut off:
what does not even fit then wraps; lines have no trailing blanks, so that a copied row is what it seems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

GAP: Final = "  "
BESIDE: Final = " · "
"""Between two facts on a line below."""


@dataclass(frozen=True, slots=True)
class Column:
    """One fact of every row.

    ``leaves`` says when it moves below: 0 never, 1 as soon as a row is too wide, 2 when that was not enough.
    ``label`` precedes it there, where no head names it; ``starts`` makes it begin a new line.
    """

    name: str
    right: bool = False
    leaves: int = 0
    label: str = ""
    starts: bool = False


def draw_rows(
    console: Console, columns: Sequence[Column], rows: Sequence[Sequence[str]], styles: Mapping[str, str] | None = None
) -> None:
    """Print rows of as many texts as there are columns. ``styles`` gives a text, wherever it stands, a style."""
    from rich.text import Text

    stage = next((stage for stage in range(3) if _width(columns, rows, stage) <= console.width), 2)
    kept = [index for index, column in enumerate(columns) if column.leaves == 0 or column.leaves > stage]
    widths = {index: _column_width(columns, rows, index) for index in kept}

    def line(texts: Sequence[str], style: str) -> Text:
        said = Text(style=style)
        for index in kept:
            blank = " " * (widths[index] - _cells(texts[index]))
            said.append(GAP if said else "")
            said.append(blank if columns[index].right else "")
            said.append(texts[index], style=(styles or {}).get(texts[index]))
            said.append("" if columns[index].right else blank)
        said.rstrip()
        return said

    console.print(line([column.name for column in columns], "bold"))
    console.print("─" * min(console.width, sum(widths.values()) + len(GAP) * (len(kept) - 1)))
    first = columns[kept[0]]
    indent = widths[kept[0]] + len(GAP) if first.right else len(GAP)
    for row in rows:
        console.print(line(row, ""))
        for below in _below(columns, row, kept):
            _draw_below(below, indent, console)


def _below(columns: Sequence[Column], row: Sequence[str], kept: Sequence[int]) -> list[str]:
    lines: list[list[str]] = [[]]
    for index, column in enumerate(columns):
        if index in kept or not row[index]:
            continue
        said = f"{column.label} {row[index]}" if column.label else row[index]
        if column.starts:
            lines.append([])
        lines[-1].append(said)
    return [BESIDE.join(line) for line in lines if line]


def _draw_below(said: str, indent: int, console: Console) -> None:
    from rich.text import Text

    for line in Text(said).wrap(console, max(console.width - indent, 1), overflow="fold"):
        line.rstrip()
        console.print(Text(" " * indent) + line)


def _width(columns: Sequence[Column], rows: Sequence[Sequence[str]], stage: int) -> int:
    """Cells of the widest row when the columns of this stage have moved below."""
    kept = [index for index, column in enumerate(columns) if column.leaves == 0 or column.leaves > stage]
    return sum(_column_width(columns, rows, index) for index in kept) + len(GAP) * (len(kept) - 1)


def _column_width(columns: Sequence[Column], rows: Sequence[Sequence[str]], index: int) -> int:
    return max(_cells(columns[index].name), *(_cells(row[index]) for row in rows), 0)


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
