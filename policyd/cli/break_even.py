"""``policyd break-even``: from which rate of requests owned, provisioned, serverless and token-priced pools win.

Rules: nothing is decided and nothing is recorded, it only compares costs; with a workload file only the pools that the
policies permit to it count; a pool without a price is named with the fact that is missing, never left out in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from policyd.cli.options import ConfigFlag, EngineFlag, FactsFlag, FleetFlag, OutputFlag, PoliciesFlag, settings_of
from policyd.cli.terminal import Output, emit, say

if TYPE_CHECKING:
    from rich.console import Console

    from policyd.core.break_even import Report, Standing
    from policyd.core.fleet import Fleet
    from policyd.core.workload import DecisionRequest
    from policyd.services.break_even import Permitted
    from policyd.settings import Settings

PAID_SHOWN: Final = 5
"""Rows of the second table, whose figures repeat much of the first."""
HOURLY_MAX_BYTES: Final = 65_536


def break_even(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Model; not needed with --workload.")] = None,
    requests_per_hour: Annotated[
        int | None, typer.Option(min=0, max=1_000_000_000, help="The same rate in every hour.")
    ] = None,
    hourly: Annotated[
        Path | None, typer.Option(metavar="FILE", help="168 rates, Monday 00:00 first, with blanks, commas or lines.")
    ] = None,
    input_tokens: Annotated[int | None, typer.Option(min=0, max=16_777_216, help="Input of one request.")] = None,
    output_tokens: Annotated[int | None, typer.Option(min=0, max=16_777_216, help="Output of one request.")] = None,
    pool: Annotated[
        list[str] | None, typer.Option("--pool", metavar="PATTERN", help="Only pools like this; * stands for anything.")
    ] = None,
    workload: Annotated[
        str | None, typer.Option(metavar="FILE", help="Only pools that the policies permit to this workload.")
    ] = None,
    elastic: Annotated[bool, typer.Option("--elastic", help="On-demand capacity follows the hours.")] = False,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the comparison into a file.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Pools in the table; the others are in the JSON.")] = 20,
    output: OutputFlag = Output.TABLE,
    fleet: FleetFlag = None,
    policies: PoliciesFlag = None,
    engine: EngineFlag = None,
    facts: FactsFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Compare what a month costs on owned, provisioned, serverless and token-priced pools, and where they cross.

    Example: policyd break-even llama-3.1-70b-instruct --requests-per-hour 3000 --input-tokens 1000 --output-tokens 300
    """
    from policyd.bootstrap import fleet_path
    from policyd.revisions.fleet_files import load_fleet
    from policyd.services.break_even import Asked, compare, document

    _check(model, requests_per_hour, hourly, workload, picture)
    settings = settings_of(config, fleet=fleet, policies=policies, engine=engine, facts=facts)
    loaded = load_fleet(fleet_path(settings))
    request = permitted = None
    if workload is not None:
        from policyd.cli.workload_files import read_request

        request = read_request(workload)
        permitted = _permitted(settings, request)
    asked = Asked(
        model,
        _figures(requests_per_hour, hourly, request),
        input_tokens,
        output_tokens,
        tuple(pool or ()),
        elastic=elastic,
    )
    report = compare(loaded, asked, permitted)
    if picture is not None:
        _draw_picture(picture, report, loaded)
    emit(document(report, loaded), output, lambda console: _draw(report, loaded, limit, console))


def _check(
    model: str | None, requests_per_hour: int | None, hourly: Path | None, workload: str | None, picture: Path | None
) -> None:
    """What can be said without reading anything."""
    if model is None and workload is None:
        raise typer.BadParameter(
            "name a model, or give --workload FILE; `policyd pool list --model NAME` shows who has it"
        )
    if requests_per_hour is not None and hourly is not None:
        raise typer.BadParameter("give --requests-per-hour or --hourly, not both")
    if requests_per_hour is None and hourly is None and workload is None:
        raise typer.BadParameter("how much is asked for? give --requests-per-hour N, --hourly FILE or --workload FILE")
    if picture is not None and picture.suffix != ".svg":
        raise typer.BadParameter(
            f"{picture} does not end in .svg, the one format that is drawn; `rsvg-convert x.svg -o x.png` converts it"
        )


def _figures(rate: int | None, hourly: Path | None, request: DecisionRequest | None) -> list[int] | None:
    """The rates: the flag's, the file's, or those of the workload; None: its mean rate."""
    if rate is not None:
        return [rate]
    if hourly is not None:
        return _read_hourly(hourly)
    if request is not None and request.workload.demand.hourly is not None:
        return list(request.workload.demand.hourly)
    return None


def _read_hourly(path: Path) -> list[int]:
    """168 whole numbers. Raises ``RequestError`` with the line of what is none."""
    from policyd.errors import Finding, RequestError

    try:
        with path.open("rb") as file:
            content = file.read(HOURLY_MAX_BYTES + 1)
        text = content.decode("ascii")
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}", remedy="name a file that can be read") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path} holds something else than numbers") from None
    if len(content) > HOURLY_MAX_BYTES:
        raise RequestError(f"{path} is larger than {HOURLY_MAX_BYTES} bytes")
    words = [
        (number, word) for number, line in enumerate(text.splitlines(), 1) for word in line.replace(",", " ").split()
    ]
    findings = [
        Finding(f"{path}:{number}", f"{word[:40]!r} is no whole number of requests")
        for number, word in words
        if not (word.isdigit() and len(word) <= 10)
    ]
    if not findings and len(words) != 168:
        findings = [Finding(str(path), f"{len(words)} figures: a week has 168 hours, Monday 00:00 first")]
    if findings:
        raise RequestError(f"{path} is no hourly profile", findings=findings[:20])
    return [int(word) for _, word in words]


def _permitted(settings: Settings, request: DecisionRequest) -> Permitted:
    """The workload as normalised, and the pools that policies and entitlements permit to it. Nothing is recorded."""
    import asyncio
    from tempfile import TemporaryDirectory

    from policyd.bootstrap import running
    from policyd.services.break_even import Permitted
    from policyd.services.clock import now_us
    from policyd.services.frames import Frames

    async def asked(scratch: str) -> Permitted:
        async with running(settings.model_copy(update={"data_dir": Path(scratch)})) as parts:
            snapshot, (facts, _) = parts.snapshot, parts.facts.current()
            framed = Frames().place(snapshot, request.workload, parts.principal, facts, now_us())
            sheet = await parts.book.make(snapshot, framed.key, framed.normalised, framed.document(snapshot))
        return Permitted.by(framed.normalised.workload, sheet)

    with TemporaryDirectory(prefix="policyd-break-even-") as scratch:
        return asyncio.run(asked(scratch))


def _draw_picture(path: Path, report: Report, fleet: Fleet) -> None:
    from policyd.cli import words
    from policyd.errors import RequestError
    from policyd.services.chart import picture

    try:
        path.write_text(picture(report, words.revision(fleet.commit, fleet.digest)), encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}", remedy="name another file") from None
    say(f"drew {path}")


def _draw(report: Report, fleet: Fleet, limit: int, console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.terminal import CAREFUL, QUIET, grid

    traffic = report.traffic
    rate = f"{traffic.week_requests // 168:,} requests an hour"
    shape = rate if len(traffic.hours) == 1 else f"{rate} on average, {traffic.peak:,} in the busiest hour"
    console.print(report.model, style="bold")
    console.print(
        f"{shape}; {traffic.input_tokens:,} tokens in, {traffic.output_tokens:,} out; a month has 730 hours\n"
    )
    loaded = [entry for entry in report.standings if entry.line.basis != "marginal"]
    paid = [entry for entry in report.standings if entry.line.basis == "marginal"]
    _draw_standings(loaded, limit, console)
    if paid:
        console.print("\nWhen the hardware is already paid: what its hours cost on top", style="bold")
        _draw_standings(paid, min(limit, PAID_SHOWN), console)
    for gap in report.unpriced:
        console.print(f"{gap.pool} ({gap.kind}) has no cost: {gap.missing} is not known", style=CAREFUL)
    console.print("\nWhere the best of each kind cross", style="bold")
    _draw_crossings(report, console)
    for title, ranges in (
        ("\nCheapest, everything fully loaded", report.ranges),
        ("\nCheapest, when the hardware is already paid", report.ranges_paid),
    ):
        console.print(title, style="bold")
        table = grid(("requests/hour", "pool", "kind"), right=("requests/hour",), keep=("requests/hour",))
        for found in ranges:
            name, kind = (found.line.name, found.line.kind) if found.line else ("no pool has so many GPUs", "")
            table.add_row(f"{found.from_rate:,} to {found.to_rate:,}", name, kind)
        console.print(table)
    console.print(f"fleet {words.revision(fleet.commit, fleet.digest)}; costs round up; * assumed price", style=QUIET)


def _draw_standings(standings: Sequence[Standing], limit: int, console: Console) -> None:
    from policyd.cli.listing import Column, draw_rows
    from policyd.cli.terminal import QUIET

    columns = (
        Column("pool"),
        Column("kind", leaves=2),
        Column("month", right=True),
        Column("per request", right=True),
        Column("per M tokens", right=True, leaves=2, label="per M tokens"),
        Column("busy", right=True, leaves=1, label="busy"),
        Column("GPUs", right=True, leaves=1, label="GPUs"),
        Column("up to req/h", right=True, leaves=1, label="up to req/h"),
        Column("price", leaves=1, label="price"),
    )
    draw_rows(console, columns, [_row(entry) for entry in standings[:limit]])
    if len(standings) > limit:
        console.print(f"{len(standings) - limit} more: --limit, or --output json", style=QUIET)


def _row(entry: Standing) -> tuple[str, ...]:
    from policyd.cli import words
    from policyd.services.chart import percent

    line = entry.line
    fits = entry.month_micro_usd is not None
    mark = "*" if line.pricing.status == "assumed" else ""
    return (
        line.pool,
        line.kind,
        words.usd(entry.month_micro_usd) if fits else "too few GPUs",
        words.usd(entry.request_micro_usd) if fits else "",
        words.usd(entry.micro_usd_per_million_tokens) if fits else "",
        "" if entry.utilisation_ppm is None else percent(entry.utilisation_ppm),
        "" if line.pricing.form == "tokens" else f"{entry.gpus:,}",
        "" if entry.rate_max is None else f"{entry.rate_max:,}",
        f"{line.pricing.status}{mark} {line.pricing.checked}",
    )


def _draw_crossings(report: Report, console: Console) -> None:
    from policyd.services.chart import told

    if not report.crossings:
        console.print("None: the cheaper one is so at every rate that both can carry.")
    for crossing in report.crossings:
        console.print(told(crossing), soft_wrap=True)
