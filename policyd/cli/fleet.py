"""``policyd fleet``: check fleet files, and make them from price lists."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from policyd.cli.options import ConfigFlag, OutputFlag, settings_of
from policyd.cli.terminal import Output, emit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date
    from decimal import Decimal

    from rich.console import Console

    from policyd.errors import Finding

_RATE: Final = re.compile(r"(?P<currency>[A-Z]{3})=(?P<usd>[0-9]{1,6}(\.[0-9]{1,12})?)")

app = typer.Typer(name="fleet", help="Fleet files: pools, models, tenants, prices.", no_args_is_help=True)


@app.command()
def check(
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="Fleet directory or file; without it the one in use.")
    ] = None,
    output: OutputFlag = Output.TABLE,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only, no warnings.")] = False,
    config: ConfigFlag = None,
) -> None:
    """Check a fleet: files, names, places, dates. Errors end with exit code 3, warnings do not.

    Example: policyd fleet check examples/fleet
    """
    from datetime import UTC, datetime

    from policyd.bootstrap import fleet_path
    from policyd.cli import failures
    from policyd.errors import FleetInvalid
    from policyd.revisions.fleet_files import load_fleet
    from policyd.revisions.fleet_review import review

    root = path or fleet_path(settings_of(config))
    errors: Sequence[Finding] = ()
    warnings: list[Finding] = []
    summary: dict[str, Any] = {"fleet": str(root)}
    try:
        loaded = load_fleet(root)
    except FleetInvalid as error:
        errors = error.findings
    else:
        warnings = [] if quiet else review(loaded, datetime.now(UTC).date())
        summary |= {"digest": loaded.digest, "commit": loaded.commit, "pools": len(loaded.pools)}
        summary |= {"models": len(loaded.models), "tenants": len(loaded.tenants)}
    document = {**summary, "errors": findings_json(errors), "warnings": findings_json(warnings)}
    emit(document, output, lambda console: _draw(document, console))
    raise typer.Exit(failures.FOUND if errors else failures.DONE)


def findings_json(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Findings as JSON values."""
    return [{"where": finding.where, "message": finding.message} for finding in findings]


def _draw(document: dict[str, Any], console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.terminal import BAD, CAREFUL, GOOD

    for noun, style in (("error", BAD), ("warning", CAREFUL)):
        for finding in document[f"{noun}s"]:
            console.print(f"{finding['where']}: {finding['message']}", style=style, soft_wrap=True)
    counts = ", ".join(words.plural(len(document[f"{noun}s"]), noun) for noun in ("error", "warning"))
    if document["errors"]:
        console.print(f"{document['fleet']} is no fleet: {counts}", style=BAD)
        return
    holds = ", ".join(words.plural(document[f"{noun}s"], noun) for noun in ("pool", "model", "tenant"))
    revision = words.revision(document["commit"], document["digest"])
    console.print(f"{document['fleet']} holds together: {holds}; {revision}; {counts}", style=GOOD)


class Format(StrEnum):
    """The price lists that can be read."""

    PRICES = "prices"
    OFFERS = "offers"
    TOKENS = "tokens"
    SKYPILOT = "skypilot"
    FOCUS = "focus"


@app.command("import")
def import_(
    kind: Annotated[Format, typer.Argument(metavar="KIND", help="prices, offers, tokens, skypilot or focus.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The list, as CSV.")],
    checked: Annotated[
        str | None, typer.Option("--checked", metavar="DATE", help="Day of the prices; without it today.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="Where the list comes from; without it the file's name.")
    ] = None,
    provider: Annotated[str, typer.Option("--provider", help="Provider, when the list names none (skypilot).")] = "",
    rate: Annotated[
        list[str] | None,
        typer.Option("--rate", metavar="CURRENCY=USD", help="What one unit of a currency is worth in USD (focus)."),
    ] = None,
    group: Annotated[str, typer.Option("--group", help="Pool group of the entitlements.")] = "imported",
    output: Annotated[
        Output, typer.Option("--output", "-o", help="A fleet file as yaml (the default), or json; table sums up.")
    ] = Output.YAML,
) -> None:
    """Make pools from a price list, as a fleet file on stdout. A person completes them: unknown facts refuse.

    Rows that cannot be used are named on stderr and end with exit code 3; the others are printed.

    Example: policyd fleet import prices prices.csv --checked 2026-11-01 > pools-new.yaml
    """
    import sys

    from connectors.prices import country_of, hardware_of
    from policyd.cli import failures, words
    from policyd.cli.terminal import say
    from policyd.errors import RequestError
    from policyd.revisions.fleet_import import Catalogue, Origin, import_list
    from policyd.revisions.fleet_import_focus import import_focus

    _refuse_unread(kind, {"--checked": checked, "--provider": provider}, {"--rate": rate})
    try:
        content = file.read_bytes()
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}", remedy="name a file that can be read") from None
    origin = Origin(source or file.name, _day(checked), group, provider)
    catalogue = Catalogue(country_of, hardware_of)
    if kind is Format.FOCUS:
        imported = import_focus(content, str(file), catalogue, origin, _rates(rate or ()))
    else:
        imported = import_list(content, str(file), kind.value, catalogue, origin)
    if output is Output.YAML:
        prices = "each price with its day" if kind is Format.FOCUS else f"prices of {origin.checked}"
        sys.stdout.write(imported.to_yaml(f"Imported from {origin.source}, {prices}."))
    else:
        emit({"pools": list(imported.pools)}, output, lambda console: _draw_imported(imported.pools, console))
    say(*(str(finding) for finding in imported.findings))
    passed_over = f", {words.plural(imported.passed_over, 'row')} passed over" if imported.passed_over else ""
    unusable = words.plural(len(imported.findings), "unusable row")
    say(f"{words.plural(len(imported.pools), 'pool')}, {unusable}{passed_over}")
    raise typer.Exit(failures.FOUND if imported.findings else failures.DONE)


def _refuse_unread(kind: Format, of_lists: Mapping[str, object], of_exports: Mapping[str, object]) -> None:
    """A flag that would not be read is a mistake: an export has its days and providers, a list is in USD."""
    unread = of_lists if kind is Format.FOCUS else of_exports
    given = [flag for flag, value in unread.items() if value]
    if given:
        raise typer.BadParameter(f"{', '.join(given)}: not read for {kind.value}")


def _rates(written: Sequence[str]) -> dict[str, Decimal]:
    from decimal import Decimal

    rates = {}
    for text in written:
        found = _RATE.fullmatch(text)
        if found is None or Decimal(found["usd"]) == 0:
            raise typer.BadParameter(f"--rate {text}: write CURRENCY=USD, for example EUR=1.10")
        rates[found["currency"]] = Decimal(found["usd"])
    return rates


def _day(checked: str | None) -> date:
    from datetime import UTC, date, datetime

    if checked is None:
        return datetime.now(UTC).date()
    try:
        return date.fromisoformat(checked)
    except ValueError as error:
        raise typer.BadParameter(f"--checked {checked}: {error}; write it like 2026-11-01") from None


def _draw_imported(pools: Sequence[dict[str, Any]], console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.terminal import grid

    table = grid(("pool", "kind", "region", "price"))
    for pool in pools:
        table.add_row(pool["id"], pool["kind"], pool["region"], words.value(pool.get("price")))
    console.print(table)
