"""``policyd audit retain``: remove the bodies of entries that are older than the settings keep them.

Rules: the settings say what goes, and ``--dry-run`` prints it without a lock and without changing anything; a run takes
the lock of the log, so that no server runs: a server does it by itself, by ``retention.interval_ms``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from policyd.cli.options import ConfigFlag, DataDirFlag, OutputFlag, settings_of
from policyd.cli.terminal import Output, emit, grid, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from policyd.settings import Settings

BESIDE_SERVER = (
    "a server removes by itself every retention.interval_ms; to do it now by this command, end the server first "
    "(--dry-run works beside it)"
)
COLUMNS = ("kind", "tenant", "kept for", "goes", "held", "oldest", "newest")


def retain(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would go, and remove nothing.")] = False,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Remove the bodies of entries that are older than retention.keep_days says; their hashes and proofs stay.

    Example: policyd audit retain --dry-run --config policyd.yaml
    """
    import asyncio

    from policyd.cli.terminal import pairs
    from policyd.errors import AuditLocked
    from policyd.services.log_place import directory_of
    from policyd.services.retention_run import retain as run

    settings = settings_of(config, data_dir=data_dir)
    if dry_run:
        rows = asyncio.run(_planned(settings))
        emit({"items": rows}, output, lambda console: console.print(_table(rows)))
        say("nothing was removed")
        return
    directory = directory_of(settings)
    try:
        directory.acquire()
    except AuditLocked as error:
        raise AuditLocked(error.detail, remedy=BESIDE_SERVER) from error
    with directory:
        document = asyncio.run(run(directory, settings.retention, settings.audit))
    warrants = document["warrants"]
    words = {
        "bodies removed": str(document["removed"]),
        "held": str(document["held"]),
        "warrants": f"{len(warrants)}, the last is entry {warrants[-1]}" if warrants else "none",
    }
    emit(document, output, lambda console: console.print(pairs(words)))


async def _planned(settings: Settings) -> list[dict[str, Any]]:
    from policyd.services.checkpoints import LogFiles, public_keys
    from policyd.services.log_place import directory_of
    from policyd.services.log_reader import LogReader
    from policyd.services.retention_run import planned

    directory = directory_of(settings)
    reader = await LogReader.open(directory, deadline_ms=settings.audit.search_deadline_ms)
    try:
        # Every key of a log carries its name.
        origin = public_keys(LogFiles.within(directory.path))[-1].name
        return await planned(reader, origin, settings.retention)
    finally:
        await reader.close()


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = grid(COLUMNS, right=("kept for", "goes", "held"), keep=("oldest", "newest"))
    for row in rows:
        days, counts = f"{row['keep_days']} days", (str(row["removed"]), str(row["held"]))
        table.add_row(row["kind"], row["tenant"] or "none", days, *counts, row["oldest"][:10], row["newest"][:10])
    return table
