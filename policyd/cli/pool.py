"""``policyd pool``: the pools of the fleet as decisions see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from policyd.cli.options import ConfigFlag, FleetFlag, OutputFlag, settings_of
from policyd.cli.terminal import Output, emit

if TYPE_CHECKING:
    from rich.console import Console

    from policyd.core.fleet import Fleet
    from policyd.core.pool import Offering, Pool, Price

app = typer.Typer(name="pool", help="The pools of the fleet.", no_args_is_help=True)

KindFlag = Annotated[
    str | None, typer.Option("--kind", help="on_prem, committed, on_demand, spot, serverless or api only.")
]


@app.command("list")
def list_pools(
    output: OutputFlag = Output.TABLE,
    kind: KindFlag = None,
    provider: Annotated[str | None, typer.Option("--provider", help="Pools of this provider only.")] = None,
    country: Annotated[str | None, typer.Option("--country", help="Pools that process in this country only.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Pools that serve this model only.")] = None,
    fleet: FleetFlag = None,
    config: ConfigFlag = None,
) -> None:
    """List the pools with place, operator, hardware and price.

    Example: policyd pool list --kind spot --country FI
    """
    loaded = _fleet(config, fleet)
    _check_filters(loaded, kind, provider, country, model)
    pools = [
        pool
        for pool in loaded.pools.values()
        if (kind is None or pool.kind == kind)
        and (provider is None or pool.provider == provider)
        and (country is None or country in (pool.locations.processing or ()))
        and (model is None or pool.offering(model) is not None)
    ]
    emit([pool_json(pool) for pool in pools], output, lambda console: _draw_list(pools, loaded, console))


@app.command("show")
def show(
    pool_id: Annotated[str, typer.Argument(metavar="POOL", help="Id of the pool.")],
    output: OutputFlag = Output.TABLE,
    fleet: FleetFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Show everything that is declared of one pool, with its source.

    Example: policyd pool show onprem-fra-h100
    """
    from policyd.core.normalise import known

    loaded = _fleet(config, fleet)
    pool = known(loaded.pools, pool_id, "pool", "")
    emit(pool_json(pool), output, lambda console: _draw_pool(pool, console))


def pool_json(pool: Pool) -> dict[str, Any]:
    """A pool as JSON values: what is declared, nothing that is not."""
    document: dict[str, Any] = pool.model_dump(mode="json", exclude_none=True)
    return document


def _fleet(config: Any, fleet: Any) -> Fleet:
    from policyd.bootstrap import fleet_path
    from policyd.revisions.fleet_files import load_fleet

    return load_fleet(fleet_path(settings_of(config, fleet=fleet)))


def _check_filters(
    fleet: Fleet, kind: str | None, provider: str | None, country: str | None, model: str | None
) -> None:
    """A filter that names nothing is a mistake, not an empty list."""
    from typing import get_args

    from policyd.core.normalise import known
    from policyd.core.places import COMMON_MISTAKES, COUNTRIES
    from policyd.core.pool import Kind
    from policyd.errors import UnknownName

    providers = {pool.provider: pool for pool in fleet.pools.values()}
    asked: list[tuple[str, str | None, Any]] = [
        ("kind", kind, dict.fromkeys(get_args(Kind), True)),
        ("provider", provider, providers),
        ("country", country, dict.fromkeys(COUNTRIES, True)),
        ("model", model, fleet.models),
    ]
    for noun, name, names in asked:
        if name is not None:
            if noun == "country" and name in COMMON_MISTAKES:
                raise UnknownName(f"unknown country {name!r}; did you mean {COMMON_MISTAKES[name]!r}?")
            known(names, name, noun, f"--{noun}")


def _draw_list(pools: list[Pool], fleet: Fleet, console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.listing import Column, draw_rows
    from policyd.cli.terminal import QUIET

    columns = (
        Column("pool"),
        Column("kind"),
        Column("provider and region", leaves=1),
        Column("where", leaves=1),
        Column("operator", leaves=1, label="operator"),
        Column("tenancy", leaves=1),
        Column("GPUs", right=True, leaves=2),
        Column("price", leaves=2),
    )
    draw_rows(console, columns, [_row(pool) for pool in pools])
    total = words.plural(len(fleet.pools), "pool")
    console.print(
        f"{len(pools)} of {total}; fleet {words.revision(fleet.commit, fleet.digest)}; * assumed price", style=QUIET
    )


def _row(pool: Pool) -> tuple[str, ...]:
    from policyd.cli import words

    return (
        pool.id,
        pool.kind,
        f"{pool.provider} {pool.region}",
        words.where(pool.locations.model_dump()),
        words.operator(pool.operator.model_dump()),
        (pool.tenancy or "unknown").replace("_", " "),
        "" if not pool.gpu_count else f"{pool.gpu_count} x {pool.accelerator.name or 'unknown'}",
        _price(pool),
    )


def _price(pool: Pool) -> str:
    if pool.price is not None:
        return _amount(pool.price)
    own = [offering.price for offering in pool.offerings if offering.price is not None]
    if not own:
        return "unknown"
    return _amount(own[0]) if len(own) == 1 else f"by model ({len(own)})"


def _amount(price: Price) -> str:
    mark = "*" if price.status == "assumed" else ""
    if price.unit == "million_tokens":
        return f"{price.input} in, {price.output} out {price.currency} per M tok{mark}"
    unit = price.unit.replace("_", " ").replace("gpu", "GPU")
    return f"{price.amount} {price.currency} per {unit}{mark}"


def _draw_pool(pool: Pool, console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.terminal import grid, pairs

    console.print(pool.id, style="bold")
    plain = pool.model_dump(mode="json", exclude={"id", "offerings", "price", "locations"}, exclude_none=True)
    places = {name: words.places(found) for name, found in pool.locations.model_dump().items() if found}
    facts = {name.replace("_", " "): words.value(found) for name, found in plain.items() if found != {}}
    console.print(pairs({**{f"where: {name.replace('_', ' ')}": found for name, found in places.items()}, **facts}))
    if pool.price is not None:
        console.print(pairs({"price": f"{_amount(pool.price)}  {_provenance(pool.price)}"}))
    console.print()
    table = grid(("model", "version", "GPUs", "context", "own price", "weights verified by"), right=("GPUs", "context"))
    for offering in pool.offerings:
        table.add_row(*_offering(offering))
    console.print(table)


def _offering(offering: Offering) -> tuple[str, ...]:
    from policyd.cli import words

    return (
        offering.model,
        offering.version or "unknown",
        words.value(offering.gpus) if offering.gpus is not None else "unknown",
        words.value(offering.max_context_tokens) if offering.max_context_tokens is not None else "unknown",
        f"{_amount(offering.price)}  {_provenance(offering.price)}" if offering.price else "as the pool",
        offering.verified_by or "nobody",
    )


def _provenance(price: Price) -> str:
    return f"{price.status}: {price.source}, checked {price.checked.isoformat()}"
