"""What the command line prints, and where: data on stdout, talk on stderr.

Rules: ``--output json`` and ``yaml`` print the document and nothing else; tables wrap and never cut a fact off; nothing
that comes from a file, a server or the log is read as markup; ``NO_COLOR``, a pipe or a dumb terminal gives plain text.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

WIDTH_WITHOUT_TERMINAL: Final = 120
"""Columns of a table that goes into a pipe or a file, unless ``COLUMNS`` says another number."""
WIDE: Final = 72
"""Columns from which on names keep to one line; below, everything wraps, since nothing may be cut off."""

GOOD: Final = "green"
BAD: Final = "red"
CAREFUL: Final = "yellow"
QUIET: Final = "dim"


class Output(StrEnum):
    """How a command prints its result."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def data() -> Console:
    """The console for results: stdout."""
    return _console(sys.stdout)


def talk() -> Console:
    """The console for everything that is no result: stderr."""
    return _console(sys.stderr)


def speak_utf8() -> None:
    """Write UTF-8 whatever the locale says: a result that is in the log must not fail on its way to the screen."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().replace("-", "") != "utf8":
            stream.reconfigure(encoding="utf-8")


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    class Plain(Console):
        """A console that leaves it to the command what a reader who has gone means."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    width = None if stream.isatty() or os.environ.get("COLUMNS") else WIDTH_WITHOUT_TERMINAL
    return Plain(
        file=stream,
        width=width,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=False,
        color_system=None if plain else "auto",
    )


def say(*lines: str) -> None:
    """Lines of talk, as they are."""
    for line in lines:
        print(line, file=sys.stderr)


def emit(document: Any, output: Output, table: Callable[[Console], None]) -> None:
    """Print a result: as the document (JSON values) in JSON or YAML, or by ``table``, which draws on the console."""
    if output is Output.TABLE:
        table(data())
    else:
        sys.stdout.write(encoded(document, output))
        sys.stdout.flush()


def emit_bytes(body: bytes, output: Output, table: Callable[[Console], None]) -> None:
    """``emit`` for a document that is JSON already; ``json`` prints exactly those bytes and a newline."""
    if output is Output.JSON:
        sys.stdout.write(body.decode("utf-8") + "\n")
        sys.stdout.flush()
    else:
        import orjson

        emit(orjson.loads(body), output, table)


def encoded(document: Any, output: Output) -> str:
    """A document (JSON values) as JSON or YAML text."""
    if output is Output.YAML:
        from policyd.documents import write_yaml

        return write_yaml(document, width=WIDTH_WITHOUT_TERMINAL)
    import orjson

    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode("utf-8")


def grid(columns: Sequence[str], *, right: Sequence[str] = (), keep: Sequence[str] = ()) -> Table:
    """An empty table. ``right`` names columns of numbers, which never wrap; ``keep`` others that wrap when narrow."""
    from rich import box
    from rich.table import Table

    kept = {*right, *(keep if data().width >= WIDE else ())}

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", show_edge=False)
    for name in columns:
        table.add_column(
            name, justify="right" if name in right else "left", no_wrap=name in kept, overflow="fold", vertical="top"
        )
    return table


def pairs(values: Mapping[str, RenderableType]) -> Table:
    """Names and values under each other, without lines."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style=QUIET, no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(name, value)
    return table
