"""``policyd config``: the settings in force, and what may be set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from policyd.cli.options import ConfigFlag, DataDirFlag, EngineFlag, FleetFlag, OutputFlag, PoliciesFlag, settings_of
from policyd.cli.terminal import Output, emit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import Console

app = typer.Typer(name="config", help="Settings: policyd.yaml, POLICYD_* environment, flags.", no_args_is_help=True)


@app.command()
def show(
    output: OutputFlag = Output.TABLE,
    config: ConfigFlag = None,
    data_dir: DataDirFlag = None,
    fleet: FleetFlag = None,
    policies: PoliciesFlag = None,
    engine: EngineFlag = None,
) -> None:
    """Show every setting with its value, after file, environment and flags.

    Example: POLICYD_ENGINE__KIND=opa policyd config show
    """
    from policyd.settings import Settings

    settings = settings_of(config, data_dir=data_dir, fleet=fleet, policies=policies, engine=engine)
    document = settings.model_dump(mode="json")
    standard = Settings().model_dump(mode="json")
    emit(document, output, lambda console: _draw(document, standard, console))


@app.command()
def schema(
    output: Annotated[
        Output, typer.Option("--output", "-o", help="The JSON Schema as json (the default) or yaml; table lists it.")
    ] = Output.JSON,
) -> None:
    """Print the JSON Schema of policyd.yaml, for an editor or a check.

    Example: policyd config schema > policyd.schema.json
    """
    from policyd.settings import Settings

    document = Settings.model_json_schema()
    standard = Settings().model_dump(mode="json")
    emit(document, output, lambda console: _draw(standard, standard, console))


def _draw(document: Mapping[str, Any], standard: Mapping[str, Any], console: Console) -> None:
    from policyd.cli.terminal import grid

    table = grid(("setting", "value", "standard", "meaning"), keep=("setting",))
    usual = dict(_flat(standard))
    meanings = dict(_meanings())
    for name, found in _flat(document):
        changed = found != usual[name]
        table.add_row(
            name,
            _shown(found),
            "" if not changed else _shown(usual[name]),
            meanings[name],
            style="bold" if changed else "",
        )
    console.print(table)


def _shown(found: Any) -> str:
    return "-" if found is None else str(found)


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, found in document.items():
        if isinstance(found, dict):
            yield from _flat(found, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", found


def _meanings(prefix: str = "", section: Any = None) -> Iterator[tuple[str, str]]:
    from pydantic import BaseModel

    from policyd.settings import Settings

    for name, field in (section or Settings).model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _meanings(f"{prefix}{name}.", inner)
        else:
            yield f"{prefix}{name}", field.description or ""
