"""``policyd simulate``: today's decision beside the one on a changed fleet, other policies or another time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from policyd.cli.options import ConfigFlag, EngineFlag, FactsFlag, OutputFlag, settings_of
from policyd.cli.terminal import BAD, CAREFUL, GOOD, QUIET, Output, emit, talk

if TYPE_CHECKING:
    from rich.console import Console

    from policyd.core.facts import Facts
    from policyd.core.fleet import Fleet
    from policyd.core.workload import DecisionRequest
    from policyd.services.simulation import Overrides, Simulated
    from policyd.settings import Settings

_PRICE = re.compile(r"(?P<pool>[^=]+)=(?P<sign>[+-]?)(?P<percent>[0-9]{1,6})%?")
_WEIGHT = re.compile(r"(?P<name>[^=,]+)=(?P<value>[0-9]{1,4})")

SAME: Final = "the same"


@dataclass(frozen=True, slots=True)
class Compared:
    """One workload file: what it gets today and in the simulation."""

    file: str
    today: Simulated
    simulated: Simulated


def simulate(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="Workload files or directories of them; - reads stdin.")
    ],
    without_provider: Annotated[
        list[str] | None, typer.Option("--without-provider", metavar="NAME", help="As if this provider were gone.")
    ] = None,
    without_pool: Annotated[
        list[str] | None, typer.Option("--without-pool", metavar="POOL", help="As if this pool were gone.")
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(
            "--price",
            metavar="POOL=PERCENT",
            help="Price in percent of the declared one: 80, or as a change: -20, +20.",
        ),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight", metavar="NAME=N,…", help="Thousandths of score components; the others share what is left."
        ),
    ] = None,
    fleet: Annotated[
        Path | None, typer.Option("--fleet", metavar="PATH", help="The simulation's fleet; today's is as configured.")
    ] = None,
    policies: Annotated[
        Path | None,
        typer.Option("--policies", metavar="DIR", help="The simulation's policies; today's are as configured."),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="The simulation's time, such as 2026-12-24T20:00:00Z.")
    ] = None,
    output: OutputFlag = Output.TABLE,
    engine: EngineFlag = None,
    facts: FactsFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Decide with something changed, beside today's decision. Nothing is logged or reserved.

    Exit code 3: a workload that has a pool today has none in the simulation.

    Example: policyd simulate examples/workloads --without-provider aws
    """
    import asyncio

    from policyd.cli.workload_files import read_request, request_files
    from policyd.services.simulation import Overrides

    requests = [(file, read_request(file)) for file in request_files(files)]
    overrides = Overrides(
        tuple(without_provider or ()), tuple(without_pool or ()), _prices(price or ()), _weights(weight or ())
    )
    settings = settings_of(config, engine=engine, facts=facts)
    compared = asyncio.run(_compare(settings, requests, overrides, fleet, policies, time_us_of(at)))
    document = [_json(entry) for entry in compared]
    emit(document, output, lambda console: _draw(compared, console))
    if any(entry.today.error or entry.simulated.error for entry in compared):
        raise typer.Exit(1)
    raise typer.Exit(3 if any(_lost(entry) for entry in compared) else 0)


def _prices(written: Sequence[str]) -> dict[str, int]:
    percents = {}
    for text in written:
        found = _PRICE.fullmatch(text)
        if found is None:
            raise typer.BadParameter(
                f"--price {text}: write POOL=PERCENT, for example aws-eu-central-1-h100=80 or aws-eu-central-1-h100=+20"
            )
        percent = int(found["percent"])
        percents[found["pool"]] = {"": percent, "+": 100 + percent, "-": 100 - percent}[found["sign"]]
    return percents


def _weights(written: Sequence[str]) -> dict[str, int]:
    weights = {}
    for text in (part for group in written for part in group.split(",")):
        found = _WEIGHT.fullmatch(text.strip())
        if found is None:
            raise typer.BadParameter(f"--weight {text}: write NAME=N in thousandths, for example price=700,control=100")
        weights[found["name"]] = int(found["value"])
    return weights


def time_us_of(at: str | None) -> int | None:
    """The time that ``--at`` names, in microseconds since 1970."""
    if at is None:
        return None
    from policyd.services.clock import from_rfc3339

    try:
        return from_rfc3339(at)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"--at {at}: {error}; write it like 2026-12-24T20:00:00Z") from None


async def _compare(
    settings: Settings,
    requests: Sequence[tuple[str, DecisionRequest]],
    overrides: Overrides,
    fleet: Path | None,
    policies: Path | None,
    time_us: int | None,
) -> list[Compared]:
    from policyd import bootstrap
    from policyd.core.principal import LOCAL
    from policyd.revisions.fleet_files import load_fleet
    from policyd.revisions.policy_files import load_policy_tree
    from policyd.services.clock import now_us
    from policyd.services.sheets import SheetLimits
    from policyd.services.simulation import Simulator, overridden

    todays_fleet = load_fleet(bootstrap.fleet_path(settings))
    todays_tree = load_policy_tree(bootstrap.policies_path(settings))
    other_fleet = overridden(load_fleet(fleet) if fleet else todays_fleet, overrides)
    other_tree = load_policy_tree(policies) if policies else todays_tree
    # Without a facts file declared capacity counts as free: of each fleet its own, or new pools had no facts.
    facts, other_facts = _facts(settings, todays_fleet), _facts(settings, other_fleet)
    now = now_us()
    engine = bootstrap.make_engine(settings.engine)
    try:
        simulator = Simulator(engine, bootstrap.make_entitlements, SheetLimits(deadline_ms=settings.engine.deadline_ms))
        with talk().status("evaluating policies"):
            today = await simulator.build(todays_tree, todays_fleet)
            other = await simulator.build(other_tree, other_fleet)
            return [
                Compared(
                    file,
                    await simulator.decide(today, request, LOCAL, facts, now),
                    await simulator.decide(other, request, LOCAL, other_facts, time_us or now),
                )
                for file, request in requests
            ]
    finally:
        await engine.close()


def _facts(settings: Settings, fleet: Fleet) -> Facts:
    from policyd.bootstrap import make_facts

    holder = make_facts(settings, fleet)
    holder.refresh()
    return holder.current()[0]


def _lost(entry: Compared) -> bool:
    return _outcome(entry.today) == "allow" and _outcome(entry.simulated) != "allow"


def _outcome(simulated: Simulated) -> str:
    return simulated.made.decision.outcome if simulated.made else "error"


def _json(entry: Compared) -> dict[str, Any]:
    return {"file": entry.file, "today": _side_json(entry.today), "simulated": _side_json(entry.simulated)}


def _side_json(side: Simulated) -> dict[str, Any]:
    import orjson

    from policyd.services.answers import answer

    if side.made is not None:
        document: dict[str, Any] = orjson.loads(answer(side.made, None))
        return document
    error = side.error
    return {"outcome": "error", "code": error.code if error else "internal", "detail": error.detail if error else ""}


def _draw(compared: Sequence[Compared], console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.listing import Column, draw_rows

    columns = (
        Column("workload"),
        Column("today", leaves=1, label="today"),
        Column("cost", right=True),
        Column("simulated", leaves=1, label="simulated", starts=True),
        Column("cost", right=True),
        Column("change", right=True),
        Column("pools", leaves=2, label="pools"),
    )
    draw_rows(console, columns, [_row(entry) for entry in compared], {SAME: QUIET, **_styles(compared)})
    console.print()
    for entry in compared:
        for when, side in (("today", entry.today), ("simulated", entry.simulated)):
            if side.error is not None:
                console.print(f"{_label(entry)} ({when}): {side.error.code}: {side.error.detail}", style=BAD)
    lost = [_label(entry) for entry in compared if _lost(entry)]
    if lost:
        console.print(f"No pool left for {words.plural(len(lost), 'workload')}: {', '.join(lost)}", style=BAD)
    else:
        console.print("Every workload that has a pool today has one in the simulation.", style=GOOD)
    console.print("Nothing was logged or reserved.", style=QUIET)


def _row(entry: Compared) -> tuple[str, ...]:
    from policyd.cli import words

    (was, was_cost, was_pools), (now, now_cost, now_pools) = _side(entry.today), _side(entry.simulated)
    return (
        _label(entry),
        was,
        words.usd(was_cost) if was_cost is not None else "-",
        SAME if now == was else now,
        words.usd(now_cost) if now_cost is not None else "-",
        _change(was_cost, now_cost),
        f"{was_pools} → {now_pools}",
    )


def _styles(compared: Sequence[Compared]) -> dict[str, str]:
    return {_side(side)[0]: _style(side) for entry in compared for side in (entry.today, entry.simulated)}


def _label(entry: Compared) -> str:
    return Path(entry.file).stem if entry.file != "-" else "stdin"


def _style(side: Simulated) -> str:
    return {"allow": GOOD, "deny": CAREFUL}.get(_outcome(side), BAD)


def _side(side: Simulated) -> tuple[str, int | None, int]:
    """First choice or outcome, its cost, and how many pools are ranked."""
    if side.made is None:
        return "error", None, 0
    decision = side.made.decision
    if not decision.ranked:
        return f"deny ({decision.denied_by})", None, 0
    return decision.ranked[0].row.pool, decision.ranked[0].cost_micro_usd, len(decision.ranked)


def _change(before: int | None, after: int | None) -> str:
    if before is None or after is None or before == 0:
        return "-"
    percent = (200 * (after - before) + before) // (2 * before)
    return "0 %" if percent == 0 else f"{percent:+d} %"
