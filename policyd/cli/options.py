"""The flags that several commands share, and the settings that they make."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from policyd.cli.terminal import Output

if TYPE_CHECKING:
    from policyd.settings import Settings

OutputFlag = Annotated[
    Output, typer.Option("--output", "-o", help="How to print the result: a table for a person, or the document.")
]
ConfigFlag = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar="POLICYD_CONFIG",
        help="Settings file; without it `policyd.yaml` of the working directory, when there is one.",
    ),
]


class CheckOutput(StrEnum):
    """How findings are printed: for a person, as the document, or in a form that CI reads."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    JUNIT = "junit"
    SARIF = "sarif"
    GITHUB = "github"


DataDirFlag = Annotated[Path | None, typer.Option("--data-dir", metavar="DIR", help="Directory of the decision log.")]
FleetFlag = Annotated[
    Path | None, typer.Option("--fleet", metavar="PATH", help="Fleet directory or file; without it the example fleet.")
]
PoliciesFlag = Annotated[
    Path | None, typer.Option("--policies", metavar="DIR", help="Policy directory; without it the shipped policies.")
]


class EngineKind(StrEnum):
    """What evaluates the policies."""

    EMBEDDED = "embedded"
    OPA = "opa"


EngineFlag = Annotated[EngineKind | None, typer.Option("--engine", help="What evaluates the policies.")]
FactsFlag = Annotated[
    Path | None,
    typer.Option("--facts", metavar="FILE", help="Facts of this minute: headroom, queue, health, spot price."),
]
ServerFlag = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="Ask this policyd server instead of working here.")
]
TokenFileFlag = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        envvar="POLICYD_TOKEN_FILE",
        help="File with the bearer token for the server.",
    ),
]
CaFileFlag = Annotated[
    Path | None,
    typer.Option("--ca-file", metavar="FILE", help="Authorities (PEM) that vouch for the server, and no others."),
]


class Access(NamedTuple):
    """The server that a person names, if any, and what it is shown."""

    address: str | None
    token_file: Path | None
    ca_file: Path | None


def settings_of(config: Path | None, **flags: Any) -> Settings:
    """Settings from file, environment and the flags of a command. ``engine`` and ``facts`` name parts of sections."""
    from policyd.settings import load_settings

    named: dict[str, Any] = {name: flag for name, flag in flags.items() if flag is not None}
    for name, key in (("engine", "kind"), ("facts", "path")):
        if name in named:
            named[name] = {key: str(named[name])}
    return load_settings(config, flags=named)
