"""``policyd policy diff``: what changed between two revisions of the policies or of the fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from policyd.cli.named_revisions import Kind
from policyd.cli.options import ConfigFlag, DataDirFlag, OutputFlag, settings_of
from policyd.cli.terminal import BAD, CAREFUL, GOOD, Output, emit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from policyd.cli.named_revisions import NamedRevision
    from policyd.services.revision_diff import Change
    from policyd.settings import Settings

_SIGNS: Final = {"added": "+", "removed": "-", "changed": "~"}
_STYLES: Final = {"+": GOOD, "-": BAD, "~": CAREFUL}


def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="The revision before: folder, bundle, digest or commit.")],
    after: Annotated[
        str | None, typer.Argument(metavar="[B]", help="The revision after; without it the one in use.")
    ] = None,
    kind: Annotated[Kind, typer.Option("--kind", help="What they are revisions of.")] = Kind.POLICY,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Tell what changed from A to B: rules, enforcement, data and Casbin rows, or what a fleet declares.

    Digests are those of kept revisions, on disk or in the log. What decisions would change is told by impact.

    Example: policyd policy diff main:policies policies
    """
    import asyncio

    settings = settings_of(config, data_dir=data_dir)
    pair, changes = asyncio.run(_changes(settings, kind, (before, after)))
    document = {
        "kind": kind.value,
        "before": {"name": pair[0].label, "digest": pair[0].digest, "commit": pair[0].commit},
        "after": {"name": pair[1].label, "digest": pair[1].digest, "commit": pair[1].commit},
        "changes": [change.to_json() for change in changes],
    }
    emit(document, output, lambda console: _draw(pair, changes, console))


async def _changes(
    settings: Settings, kind: Kind, names: tuple[str, str | None]
) -> tuple[tuple[NamedRevision, NamedRevision], list[Change]]:
    from policyd.cli.named_revisions import named_revision
    from policyd.services.log_place import directory_of
    from policyd.services.log_reader import LogReader
    from policyd.services.revision_diff import fleet_changes, policy_changes

    before, after = (named_revision(settings, kind, name) for name in names)
    needs_log = before.files is None or after.files is None
    reader = await LogReader.open(directory_of(settings)) if needs_log else None
    try:
        if kind is Kind.POLICY:
            found = policy_changes(await before.policies(reader), await after.policies(reader))
        else:
            found = fleet_changes(await before.fleet(reader), await after.fleet(reader))
    finally:
        if reader is not None:
            await reader.close()
    return (before, after), found


def _draw(pair: tuple[NamedRevision, NamedRevision], changes: Sequence[Change], console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.listing import Column, draw_rows

    named = [f"{each.label} ({words.revision(each.commit, each.digest)})" for each in pair]
    console.print(f"{named[0]} → {named[1]}", style="bold")
    if not changes:
        same = pair[0].digest == pair[1].digest
        console.print("The same revision." if same else "Nothing that decides has changed.", style=GOOD)
        return
    columns = (
        Column(""),
        Column("what"),
        Column("name"),
        Column("field", leaves=2),
        Column("before → after", leaves=1, starts=True),
        Column("where", leaves=2, starts=True),
    )
    draw_rows(console, columns, [_row(change) for change in changes], _STYLES)
    console.print()
    console.print(words.plural(len(changes), "change"))


def _row(change: Change) -> tuple[str, ...]:
    moved = f"{change.before or '-'} → {change.after or '-'}" if change.before or change.after else ""
    return (_SIGNS[change.how], change.what, change.name, change.field, moved, change.where)
