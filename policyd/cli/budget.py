"""``policyd budget``: what accounts may spend, have spent and hold, beside a running server or without one; setting it.

Rules: reading takes no lock and changes nothing; amounts of money are micro-USD in the document and USD in the table.
Setting without a server is done by `local`, who raises nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from policyd.cli.budget_report import report
from policyd.cli.options import (
    Access,
    CaFileFlag,
    ConfigFlag,
    DataDirFlag,
    FleetFlag,
    OutputFlag,
    ServerFlag,
    TokenFileFlag,
    settings_of,
)
from policyd.cli.terminal import Output, emit, say

if TYPE_CHECKING:
    from rich.console import Console

    from policyd.settings import Settings

app = typer.Typer(name="budget", help="Budgets: limits, what is spent and what is held.", no_args_is_help=True)
app.command("report")(report)


@app.command("list")
def list_budgets(
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    fleet: FleetFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """List every budget in its present window.

    Example: policyd budget list --server http://127.0.0.1:8470
    """
    items = _items(Access(server, token_file, ca_file), config, data_dir, fleet, None)
    emit(items, output, lambda console: draw_budgets(items, console))


@app.command("show")
def show(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Account, such as acme/support-chat; * is all of them.")],
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    fleet: FleetFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Show the budgets of one account.

    Example: policyd budget show eu-bank/support-chat
    """
    items = _items(Access(server, token_file, ca_file), config, data_dir, fleet, path)
    emit(items, output, lambda console: draw_budgets(items, console))


UnitFlag = Annotated[str, typer.Option("--unit", help="usd, tokens, gpu_hours, requests, gpus or in_flight.")]
WindowFlag = Annotated[
    str | None, typer.Option("--window", help="hour, day, week, month or total; none for gpus and in_flight.")
]


@app.command("set")
def set_budget(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Account, such as acme/support-chat; * is all of them.")],
    limit: Annotated[str, typer.Option("--limit", help="The new limit; `fleet` gives it back to the fleet.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for the log.")],
    unit: UnitFlag = "usd",
    window: WindowFlag = None,
    pools: Annotated[str | None, typer.Option("--pools", help="Group of pools, for gpus and in_flight.")] = None,
    zone: Annotated[str | None, typer.Option("--zone", help="Where windows begin, if the fleet does not say.")] = None,
    threshold: Annotated[
        list[int] | None, typer.Option("--threshold", help="Percent to tell; may be repeated.")
    ] = None,
    propose: Annotated[bool, typer.Option("--propose", help="Have another person approve it: for a raise.")] = False,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    fleet: FleetFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Set a limit of an account, at most the fleet's.

    Example: policyd budget set eu-bank --window month --limit 9000 --reason "less is needed" --server http://127.0.0.1:8470
    """
    import asyncio

    from policyd.cli.servers import server_at
    from policyd.errors import RequestError

    wished: dict[str, Any] = {"limit": limit, "unit": unit, "window": window, "pools": pools, "zone": zone}
    asked = {name: value for name, value in {**wished, "thresholds": threshold or None}.items() if value is not None}
    access = Access(server, token_file, ca_file)
    if access.address is None:
        if propose:
            raise RequestError("a proposal takes persons whom a server has proved", remedy="name one with --server")
        items = asyncio.run(_set_here(settings_of(config, data_dir=data_dir, fleet=fleet), path, asked, reason))
    else:
        with server_at(access) as reached:
            answer = reached.set_budget(path, [asked], reason, propose=propose)
        items = [{**item} for item in answer["items"]]
        if "proposal" in answer:
            proposal = answer["proposal"]
            say(f"proposed as {proposal['id']}: another person runs `policyd approve {proposal['id']}`")
            emit(proposal, output, lambda console: draw_budgets(items, console))
            return
    emit(items, output, lambda console: draw_budgets(items, console))


async def _set_here(settings: Settings, path: str, asked: Mapping[str, Any], reason: str) -> list[dict[str, Any]]:
    """By this process, which writes the log itself."""
    from uuid import uuid4

    import orjson

    from policyd.api.bodies import parse_json
    from policyd.api.budgets import BudgetRequest
    from policyd.bootstrap import running

    body = parse_json(orjson.dumps({"limits": [asked], "reason": reason}), BudgetRequest)
    async with running(settings) as parts:
        wishes = [each.wish() for each in body.limits]
        await parts.budgets.change(path, wishes, reason, parts.principal, str(uuid4()))
    return await _local(settings, path)


def _items(access: Access, config: Any, data_dir: Any, fleet: Any, path: str | None) -> list[dict[str, Any]]:
    import asyncio

    from policyd.cli.servers import server_at

    if access.address is None:
        return asyncio.run(_local(settings_of(config, data_dir=data_dir, fleet=fleet), path))
    with server_at(access) as server:
        page = server.budgets() if path is None else server.budget(path)
        return [{**item} for item in page["items"]]


async def _local(settings: Settings, path: str | None) -> list[dict[str, Any]]:
    """From the fleet files and the log's database; without a log nothing has been spent yet."""
    from policyd.bootstrap import fleet_path
    from policyd.core.normalise import known
    from policyd.ledger.chart import counting_of
    from policyd.revisions.fleet_files import load_fleet
    from policyd.services.budgets import budget_items
    from policyd.services.clock import now_us
    from policyd.services.log_place import directory_of
    from policyd.services.log_reader import LogReader

    fleet = load_fleet(fleet_path(settings))
    directory, time_us = directory_of(settings), now_us()
    reader = None
    if directory.store.exists():
        reader = await LogReader.open(directory, deadline_ms=settings.audit.search_deadline_ms)
    try:
        found = {} if reader is None else (await reader.set_limits())[1]
        chart = dict(sorted(counting_of(fleet, found).items()))
        if path is not None:
            chart = {path: known(chart, path, "budget of", "PATH")}
        accounts = () if reader is None else await reader.accounts(list(chart), time_us)
        return budget_items(chart, accounts, time_us, fleet, found)
    finally:
        if reader is not None:
            await reader.close()


def draw_budgets(items: list[dict[str, Any]], console: Console) -> None:
    """A table of budgets."""
    from policyd.cli import words
    from policyd.cli.listing import Column, draw_rows
    from policyd.cli.terminal import QUIET

    columns = (
        Column("account"),
        Column("window"),
        Column("limit", right=True),
        Column("spent", right=True, leaves=1, label="spent"),
        Column("held", right=True, leaves=1, label="held"),
        Column("left", right=True),
        Column("debt", right=True, leaves=2, label="debt"),
        Column("resets", leaves=2, label="resets"),
        Column("runs out", leaves=2, label="runs out"),
    )
    if items:
        draw_rows(console, columns, [_row(item) for item in items])
    console.print(words.plural(len(items), "budget"), style=QUIET)


def _row(item: Mapping[str, Any]) -> tuple[str, ...]:
    amounts = {name: _amount(item, name) for name in ("limit", "spent", "reserved", "remaining", "debt")}
    return (
        item["path"] if item["pools"] is None else f"{item['path']} on {item['pools']}",
        item["window"] or "in flight",
        amounts["limit"],
        amounts["spent"],
        amounts["reserved"],
        amounts["remaining"],
        amounts["debt"] if item["debt"] else "",
        (item["resets_at"] or "")[:16].replace("T", " "),
        (item["projected_exhaustion"] or "")[:16].replace("T", " "),
    )


def _amount(item: Mapping[str, Any], name: str) -> str:
    from policyd.cli import words

    if item["unit"] == "micro_usd":
        return words.usd(item[name])
    return f"{item[name]:,} {item['unit'].replace('_', ' ')}"
