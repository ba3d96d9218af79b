"""``policyd budget report``: what is spent, held and owed, what paid hardware did not do, a burn-down as a picture.

Rules: the same numbers beside a running server and without one; the picture is of one account; money is micro-USD in
the document and USD in the table.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from policyd.cli.audit_report import ReportOutput, ReportOutputFlag, gather
from policyd.cli.options import (
    Access,
    CaFileFlag,
    ConfigFlag,
    DataDirFlag,
    FleetFlag,
    ServerFlag,
    TokenFileFlag,
    settings_of,
)
from policyd.cli.terminal import Output, emit, say

if TYPE_CHECKING:
    from rich.console import Console

    from policyd.settings import Settings


def report(
    path: Annotated[
        str | None, typer.Argument(metavar="[PATH]", help="Account, with its burn-down; without it, every budget.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="Since when paid hardware counts; the month, in UTC, without it."),
    ] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the burn-down into a file.")] = None,
    output: ReportOutputFlag = ReportOutput.TABLE,
    data_dir: DataDirFlag = None,
    fleet: FleetFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Report spent, held and owed budgets, their burn-down and projected end, and the idle part of paid hardware.

    Example: policyd budget report eu-bank/support-chat --picture burn-down.svg
    """
    import asyncio

    from policyd.errors import ConfigError

    if picture is not None and (path is None or picture.suffix != ".svg"):
        raise ConfigError("a picture is of one account and ends in .svg", remedy="name the account, and FILE.svg")
    begins = since or datetime.now(UTC).strftime("%Y-%m-01T00:00:00Z")
    settings = settings_of(config, data_dir=data_dir, fleet=fleet)
    document = asyncio.run(_document(Access(server, token_file, ca_file), settings, path, begins))
    if picture is not None:
        _draw_picture(picture, document)
    if output is ReportOutput.CSV:
        sys.stdout.write(_csv(document))
        sys.stdout.flush()
    else:
        emit(document, Output(output.value), lambda console: _draw(document, console))


async def _document(access: Access, settings: Settings, path: str | None, begins: str) -> dict[str, Any]:
    """The report, with what was decided on each paid pool in the period."""
    from audit.query import time_us_of
    from policyd.services.budget_report import with_idle
    from policyd.services.clock import now_us
    from policyd.services.log_place import directory_of
    from policyd.services.reports import Report, by_of

    if access.address is None:
        document = await _here(settings, path)
    else:
        from policyd.cli.servers import TIMEOUT_S
        from policyd.client import AsyncClient

        async with AsyncClient(
            access.address, token_file=access.token_file, ca_file=access.ca_file, timeout_s=TIMEOUT_S
        ) as client:
            document = {**await client.budget_report(path)}
    used: dict[str, int] = {}
    if document["committed"] and (access.address is not None or directory_of(settings).store.exists()):
        counted = Report(by_of(["pool"]), {"from": begins, "outcome": "allow"}, settings.audit.report_rows_max)
        await gather(counted, access, settings)
        (table,) = counted.document()["tables"]
        used = {row["pool"]: row["cost_micro_usd"] for row in table["rows"]}
    period_us = max(0, now_us() - time_us_of("from", begins))
    return {**document, "from": begins, "committed": with_idle(document["committed"], used, period_us)}


async def _here(settings: Settings, path: str | None) -> dict[str, Any]:
    from policyd.bootstrap import fleet_path
    from policyd.core.normalise import known
    from policyd.ledger.chart import counting_of
    from policyd.revisions.fleet_files import load_fleet
    from policyd.services.budget_report import budget_report
    from policyd.services.clock import now_us
    from policyd.services.log_place import directory_of
    from policyd.services.log_reader import LogReader

    loaded, directory, reader = load_fleet(fleet_path(settings)), directory_of(settings), None
    if directory.store.exists():
        reader = await LogReader.open(directory, deadline_ms=settings.audit.search_deadline_ms)
    try:
        found = {} if reader is None else (await reader.set_limits())[1]
        chart = dict(sorted(counting_of(loaded, found).items()))
        if path is not None:
            chart = {path: known(chart, path, "budget of", "PATH")}
        return await budget_report(reader, chart, loaded, found, path=path, whole=True, now_us=now_us())
    finally:
        if reader is not None:
            await reader.close()


def _draw_picture(file: Path, document: Mapping[str, Any]) -> None:
    from policyd.errors import ConfigError
    from policyd.services.burn_down_chart import burn_down_picture

    burned = next((each for each in document["burn_down"]), None)
    if burned is None:
        raise ConfigError(
            f"nothing is spent of {document['path']!r} in a window, or no log says how",
            remedy="name an account with a budget in a window, and the log with --data-dir",
        )
    try:
        file.write_text(burn_down_picture(document, burned), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
    say(f"drawn into {file}")


def _csv(document: Mapping[str, Any]) -> str:
    """Budgets and paid pools below one head: ``row`` says which one a row is."""
    from policyd.services.csv_text import csv_text

    rows = [{"row": "budget", **item} for item in document["budgets"]]
    rows += [{"row": "paid pool", **pool} for pool in document["committed"]]
    rows += [
        {"row": "burn-down", "path": document["path"], "unit": each["unit"], "window": each["window"], "time": at}
        | {"spent": spent, "limit": each["limit"]}
        for each in document["burn_down"]
        for at, spent in each["points"]
    ]
    return csv_text(["row", *dict.fromkeys(name for row in rows for name in row if name != "row")], rows)


def _draw(document: Mapping[str, Any], console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.budget import draw_budgets
    from policyd.cli.listing import Column, draw_rows
    from policyd.cli.terminal import QUIET

    draw_budgets(document["budgets"], console)
    if not document["committed"]:
        return
    console.print(f"\nPaid hardware since {document['from'][:10]}", style="bold")
    columns = (
        *(Column("pool"), Column("kind"), Column("GPUs", right=True), Column("an hour", right=True)),
        *(Column("paid", right=True), Column("used", right=True), Column("idle", right=True), Column("%", right=True)),
    )

    def money(value: int | None) -> str:
        return "unknown" if value is None else words.usd(value)

    rows = [
        (
            pool["pool"],
            pool["kind"].replace("_", " "),
            "" if pool["gpus"] is None else str(pool["gpus"]),
            *(money(pool[name]) for name in ("micro_usd_per_hour", "paid_micro_usd", "used_micro_usd")),
            money(pool["idle_micro_usd"]),
            "" if pool["idle_percent"] is None else str(pool["idle_percent"]),
        )
        for pool in document["committed"]
    ]
    draw_rows(console, columns, rows)
    told = "used: what decisions cost, settled, presumed or else expected; idle: paid, and not used by them"
    console.print(told, style=QUIET)
