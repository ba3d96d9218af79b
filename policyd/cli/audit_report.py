"""``policyd audit report``: what was decided in a period, counted, beside a running server or without one.

Rules: a report covers everything that it says it covers, or is an error; the bar on stderr is for a person only;
what cannot be printed is shown by its escapes.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

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
from policyd.cli.terminal import Output, emit

if TYPE_CHECKING:
    from rich.console import Console

    from policyd.services.reports import By, Report
    from policyd.settings import Settings

ROWS_SHOWN: Final = 20
Page = dict[str, Any]
Step = Callable[[str | None], Awaitable[Page]]
"""Gives the page at a cursor."""


class ReportOutput(StrEnum):
    """How a report is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    CSV = "csv"


ReportOutputFlag = Annotated[
    ReportOutput, typer.Option("--output", "-o", help="A table for a person, the document, or rows for a spreadsheet.")
]


class Form(StrEnum):
    """What a report is made into."""

    REVIEW = "review"
    DORA = "dora"


FormFlag = Annotated[
    Form,
    typer.Option("--form", help="The counts, or what they say of a DORA register of information: providers, places."),
]
Filter = str | None
FromFlag = Annotated[Filter, typer.Option("--from", metavar="TIME", help="First moment that counts.")]
ToFlag = Annotated[Filter, typer.Option("--to", metavar="TIME", help="First moment that no longer counts.")]
TenantFlag = Annotated[Filter, typer.Option(help="Only this tenant.")]


def report(
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            metavar="WORDS",
            help="What to count by: `outcome,provider/country` is two tables, the second by pairs. "
            "Without it, what a monthly review asks for.",
        ),
    ] = None,
    since: FromFlag = None,
    until: ToFlag = None,
    tenant: TenantFlag = None,
    project: Annotated[Filter, typer.Option(help="Only this project.")] = None,
    environment: Annotated[Filter, typer.Option(help="experiment, dev, staging or prod.")] = None,
    outcome: Annotated[Filter, typer.Option(help="allow, deny or error.")] = None,
    model: Annotated[Filter, typer.Option(help="Only this model.")] = None,
    provider: Annotated[Filter, typer.Option(help="Provider of the first choice.")] = None,
    classification: Annotated[Filter, typer.Option(help="public, internal, confidential or restricted.")] = None,
    form: FormFlag = Form.REVIEW,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Rows of a printed table.")] = ROWS_SHOWN,
    output: ReportOutputFlag = ReportOutput.TABLE,
    data_dir: DataDirFlag = None,
    fleet: FleetFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Count the decisions of a period and their cost; name the model versions that went into production.

    Example: policyd audit report --from 2026-11-01 --to 2026-12-01 --by outcome,rule,provider/country
    """
    import asyncio

    from policyd.errors import RequestError
    from policyd.services.reports import BY_DEFAULT, Report, by_of

    asked = {
        "tenant": tenant,
        "project": project,
        "environment": environment,
        "outcome": outcome,
        "model": model,
        "provider": provider,
        "classification": classification,
        "from": since,
        "to": until,
    }
    filters = {name: value for name, value in asked.items() if value is not None}
    settings = settings_of(config, data_dir=data_dir, fleet=fleet)
    if form is Form.DORA:
        if by or outcome:
            raise RequestError("--form dora says itself what to count: allowed decisions by pool and project")
        _register(Access(server, token_file, ca_file), settings, filters, output)
        return
    gathered = Report(by_of(by or BY_DEFAULT), filters, settings.audit.report_rows_max)
    asyncio.run(gather(gathered, Access(server, token_file, ca_file), settings))
    document = gathered.document()
    if output is ReportOutput.CSV:
        sys.stdout.write(_csv(document))
        sys.stdout.flush()
    else:
        emit(document, Output(output.value), lambda console: _draw(document, limit, console))


def _register(access: Access, settings: Settings, filters: Mapping[str, str], output: ReportOutput) -> None:
    """Print what log and fleet know of a register of information."""
    import asyncio

    from policyd.services.csv_text import csv_text
    from policyd.services.dora import BY, COLUMNS, register
    from policyd.services.reports import Report, by_of

    counted = Report(by_of([BY]), {**filters, "outcome": "allow"}, settings.audit.report_rows_max)
    asyncio.run(gather(counted, access, settings))
    (table,) = counted.document()["tables"]
    rows = register(table["rows"], _declared(access, settings))
    if output is ReportOutput.CSV:
        sys.stdout.write(csv_text(COLUMNS, rows))
        sys.stdout.flush()
    else:
        emit(rows, Output(output.value), lambda console: _draw_register(rows, console))


def _declared(access: Access, settings: Settings) -> dict[str, dict[str, Any]]:
    """The pools as they are declared now, by id."""
    if access.address is not None:
        from policyd.cli.servers import server_at

        with server_at(access) as server:
            return {pool["id"]: {**pool} for pool in server.pools()}
    from policyd.bootstrap import fleet_path
    from policyd.revisions.fleet_files import load_fleet

    fleet = load_fleet(fleet_path(settings))
    return {pool.id: pool.model_dump(mode="json", exclude_none=True) for pool in fleet.pools.values()}


def _draw_register(rows: list[dict[str, Any]], console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.listing import Column, draw_rows
    from policyd.cli.terminal import QUIET
    from policyd.services.dora import COLUMNS

    shown = [(COLUMNS[0], "provider"), (COLUMNS[1], "seat"), (COLUMNS[3], "function"), (COLUMNS[4], "provided in")]
    shown += [(COLUMNS[5], "at rest in"), (COLUMNS[8], "data"), (COLUMNS[9], "pool"), (COLUMNS[11], "decisions")]

    def cell(value: Any) -> str:
        return printable(", ".join(value) if isinstance(value, list) else "-" if value is None else str(value))

    if rows:
        columns = [Column(label, right=label == "decisions") for _, label in shown]
        draw_rows(console, columns, [tuple(cell(row[name]) for name, _ in shown) for row in rows])
    console.print(f"{words.plural(len(rows), 'row')}; --output csv has every column", style=QUIET)


async def gather(gathered: Report, access: Access, settings: Settings) -> None:
    """Every page of counts, then every page of first uses."""
    async with _steps(gathered, access, settings) as (counts, uses):
        with progress("counting decisions") as shown:
            cursor: str | None = None
            while gathered.by.tables:
                cursor = gathered.take_counts(await counts(cursor))
                shown(gathered.entries, gathered.entries_total)
                if cursor is None:
                    break
        with progress("looking for first uses") as shown:
            while gathered.by.transitions:
                cursor = gathered.take_uses(await uses(cursor))
                shown(None, None)
                if cursor is None:
                    break


@asynccontextmanager
async def _steps(gathered: Report, access: Access, settings: Settings) -> AsyncIterator[tuple[Step, Step]]:
    """How the pages of counts and of first uses are had: from a server when one is named, else from the log."""
    from policyd.services.reports import count_page, first_uses_filters, first_uses_page

    by, filters, rows_max = gathered.by, gathered.filters, gathered.rows_max
    firsts = first_uses_filters(filters)
    if access.address is not None:
        async with _asked(access, by, filters, firsts) as steps:
            yield steps
        return
    from policyd.services.log_place import directory_of
    from policyd.services.log_reader import LogReader

    reader = await LogReader.open(directory_of(settings), deadline_ms=settings.audit.search_deadline_ms)
    try:
        gathered.log = ", ".join(await reader.origins())
        yield (
            lambda cursor: count_page(reader, by, filters, cursor, rows_max=rows_max),
            lambda cursor: first_uses_page(reader, firsts, cursor),
        )
    finally:
        await reader.close()


@asynccontextmanager
async def _asked(
    access: Access, by: By, filters: Mapping[str, str], firsts: Mapping[str, str]
) -> AsyncIterator[tuple[Step, Step]]:
    from policyd.cli.servers import TIMEOUT_S
    from policyd.client import AsyncClient

    async with AsyncClient(
        access.address or "", token_file=access.token_file, ca_file=access.ca_file, timeout_s=TIMEOUT_S
    ) as client:
        words = ",".join("/".join(table) for table in by.tables)
        yield (
            lambda cursor: client.report_page(words, filters, cursor=cursor),
            lambda cursor: client.first_uses_page(firsts, cursor=cursor),
        )


@contextmanager
def progress(title: str) -> Iterator[Callable[[int | None, int | None], None]]:
    """A bar on stderr when a person looks at it, and gone when it is over."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from policyd.cli.terminal import talk

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=talk(), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _csv(document: Mapping[str, Any]) -> str:
    """Every table below one head: ``by`` says of which one a row is."""
    from policyd.services.csv_text import csv_text
    from policyd.services.reports import COUNTS, STAGE_TRANSITION

    transitions = document.get("stage_transitions", [])
    names = [name for table in document["tables"] for name in table["by"]]
    if transitions:
        names += ["tenant", "model", "model_version", "from", "to", "time", "id", "log", "index"]
    rows = [{"by": "/".join(table["by"]), **row} for table in document["tables"] for row in table["rows"]]
    rows += [{"by": STAGE_TRANSITION, **item} for item in transitions]
    return csv_text(["by", *dict.fromkeys(names), *COUNTS], rows)


def printable(text: str) -> str:
    """Text without what moves a cursor or changes a colour."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _draw(document: Mapping[str, Any], limit: int, console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.terminal import QUIET

    span = f"from {document['from'] or 'the beginning'} to {document['to'] or 'now'}"
    only = "".join(f", {name} {value}" for name, value in document["filters"].items())
    read = "" if not document["tables"] else f"{words.plural(document['entries'], 'entry')}, "
    console.print(f"{read}{span}{only}", style="bold")
    for table in document["tables"]:
        _draw_table(table, limit, console)
    if "stage_transitions" in document:
        _draw_transitions(document["stage_transitions"], console)
    told = (
        "cost: settled, or presumed spent when nobody settled in time; else what the first choice was expected to cost",
        "what was released costs nothing",
    )
    console.print("; ".join(told), style=QUIET)


def _draw_table(table: Mapping[str, Any], limit: int, console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.listing import Column, draw_rows
    from policyd.cli.terminal import QUIET
    from policyd.services.dora import COSTS

    names = [name.replace("_", " ") for name in table["by"]]
    columns = [*(Column(name) for name in names)]
    columns += [Column(name, right=True) for name in ("entries", "allow", "deny", "error", "cost")]
    columns += [Column(name, right=True, leaves=1, label=name) for name in ("settled", "presumed", "expected")]
    rows = [
        (
            *("-" if row[name] is None else printable(str(row[name])) for name in table["by"]),
            *(f"{row[name]:,}" for name in ("entries", "allow", "deny", "error")),
            *(words.usd(row[name]) for name in COSTS),
        )
        for row in table["rows"][:limit]
    ]
    console.print()
    if rows:
        draw_rows(console, columns, rows)
    else:
        console.print(f"nothing to count by {' and '.join(names)}", style=QUIET)
    if len(table["rows"]) > limit:
        console.print(f"{len(table['rows']) - limit:,} more: --limit, or --output json or csv", style=QUIET)
    if table["several"]:
        console.print("an entry counts once for each that it has", style=QUIET)


def _draw_transitions(found: list[Mapping[str, Any]], console: Console) -> None:
    from policyd.cli.listing import Column, draw_rows
    from policyd.cli.terminal import CAREFUL, QUIET

    console.print("\nFirst production use of a model version", style="bold")
    if not found:
        console.print("none in this period", style=QUIET)
        return
    straight = "straight into production"
    rows = [
        (
            item["time"][:19].replace("T", " "),
            item["tenant"] or "-",
            f"{item['model']} {item['model_version']}",
            straight if item["from"] is None else f"from {item['from']} since {item['before'][-1]['time'][:10]}",
            item["id"],
        )
        for item in found
    ]
    columns = (Column("time"), Column("tenant"), Column("model"), Column("before", leaves=1), Column("id", leaves=2))
    draw_rows(console, columns, rows, {straight: CAREFUL})
