"""``policyd compliance``: which placements in force would today's revisions refuse.

Rules: reads the log and writes nothing, beside a running server or without one; a server that does this by itself
records what it finds, which is what ``--server`` shows. Exit code 3: something would be refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from policyd.cli.listing import Column, draw_rows
from policyd.cli.options import (
    Access,
    CaFileFlag,
    ConfigFlag,
    DataDirFlag,
    EngineFlag,
    FleetFlag,
    OutputFlag,
    PoliciesFlag,
    ServerFlag,
    TokenFileFlag,
    settings_of,
)
from policyd.cli.terminal import BAD, CAREFUL, GOOD, QUIET, Output, emit, talk

if TYPE_CHECKING:
    from rich.console import Console

    from policyd.core.snapshot import Snapshot
    from policyd.settings import Settings

COLUMNS: Final = (
    Column("urgency"),
    Column("placement"),
    Column("pool"),
    Column("model", leaves=2),
    Column("decisions", right=True),
    Column("running", right=True),
    Column("until", leaves=1, label="until"),
    Column("open", leaves=1, label="open", starts=True),
    Column("refused by", leaves=1, label="refused by", starts=True),
)
COLOURS: Final = {"now": BAD, "soon": CAREFUL, "review": QUIET}
SHOWN_MAX: Final = 100


def compliance(
    within_days: Annotated[
        int | None,
        typer.Option("--within-days", metavar="DAYS", min=1, max=3_650, help="What counts as in force; 30 without it."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME", help="Judge as if it were then: what will lapse."),
    ] = None,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    fleet: FleetFlag = None,
    policies: PoliciesFlag = None,
    engine: EngineFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """List the placements in force that today's policies and fleet would refuse, most urgent first.

    Exit code 3: something would be refused.

    Example: policyd compliance --at 2027-01-31T00:00:00Z
    """
    import asyncio

    from policyd.cli.simulate import time_us_of

    if server is not None:
        if at is not None or within_days is not None:
            raise typer.BadParameter("--server shows what the server judged; --at and --within-days judge here")
        document: Mapping[str, Any] = _recorded(Access(server, token_file, ca_file))
    else:
        settings = settings_of(config, data_dir=data_dir, fleet=fleet, policies=policies, engine=engine)
        days = settings.compliance.within_days if within_days is None else within_days
        document = asyncio.run(_judged(settings, days, time_us_of(at)))
    emit(document, output, lambda console: _draw(document, console))
    raise typer.Exit(3 if document["items"] else 0)


def _recorded(access: Access) -> Mapping[str, Any]:
    from policyd.cli.servers import server_at
    from policyd.client import calls

    with server_at(access) as client:
        return client.send(calls.compliance())


class _Fixed:
    """One snapshot, for whoever asks for the live one."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def current(self) -> Snapshot:
        return self._snapshot


async def _judged(settings: Settings, within_days: int, at_us: int | None) -> dict[str, Any]:
    from policyd import bootstrap
    from policyd.bootstrap_compliance import make_compliance
    from policyd.revisions.fleet_files import load_fleet
    from policyd.revisions.policy_files import load_policy_tree
    from policyd.services.activation import Candidates
    from policyd.services.log_place import directory_of
    from policyd.services.log_reader import LogReader

    fleet = load_fleet(bootstrap.fleet_path(settings))
    tree = load_policy_tree(bootstrap.policies_path(settings))
    reader = await LogReader.open(directory_of(settings), deadline_ms=settings.audit.search_deadline_ms)
    engine = bootstrap.make_engine(settings.engine)
    try:
        with talk().status("reading the log") as status:
            snapshot = await Candidates(engine, bootstrap.make_entitlements).build(tree, fleet)
            compliance = make_compliance(settings.engine, reader, _Fixed(snapshot), engine)
            read = 0

            def progress(entries: int) -> None:
                nonlocal read
                read += entries
                status.update(f"reading the log: {read:,} entries")

            def judged(done: int, total: int) -> None:
                status.update(f"judging placements: {done:,} of {total:,}")

            return (await compliance.judge(within_days, at_us, progress, judged)).to_json()
    finally:
        await engine.close()
        await reader.close()


def _draw(document: Mapping[str, Any], console: Console) -> None:
    from rich.text import Text

    items = document["items"]
    total = document.get("items_total", len(items))
    counted = f"{document['placements']:,} placements in force ({document['decisions']:,} decisions)"
    if not items:
        console.print(Text(f"{counted}: all of them would be let in again at {document['time'][:16]}Z", GOOD))
    else:
        shown = items[:SHOWN_MAX]
        console.print()
        draw_rows(console, COLUMNS, [_row(item) for item in shown], COLOURS)
        console.print()
        console.print(f"{total:,} of {counted} would be refused at {document['time'][:16]}Z", style=BAD)
        if total > len(shown):
            console.print(f"the first {len(shown)} are shown; --output json has what there is", style=QUIET)
        console.print("open one with: policyd explain ID", style=QUIET)
    if document["unread"]:
        console.print(f"{document['unread']:,} decisions could not be read, and were not judged", style=CAREFUL)


def _row(item: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        item["urgency"],
        "/".join(item[name] for name in ("tenant", "project", "environment")),
        item["pool"],
        item["model"],
        f"{item['placements']:,}",
        f"{item['running']:,}",
        "" if item["until"] is None else f"{item['until'][:16]}Z",
        item["example"],
        "; ".join(_reasons(item)),
    )


def _reasons(item: Mapping[str, Any]) -> list[str]:
    """What refuses it: with words when it was judged here, names of rules when a server recorded it."""
    if "violations" not in item:
        return list(item["rules"])
    words = "{policy}.{rule} ({enforcement}): {message}"
    return [words.format_map(violation) for violation in item["violations"]]
