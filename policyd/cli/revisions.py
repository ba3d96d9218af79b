"""``policyd policy activate|rollback|log``: where revisions stand, and the steps that a person takes, by a server.

Rules: who takes a step is proved by the server, so there is no way without one; what stands is a table on one screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from policyd.cli.options import (
    Access,
    CaFileFlag,
    ConfigFlag,
    DataDirFlag,
    OutputFlag,
    ServerFlag,
    TokenFileFlag,
)
from policyd.cli.terminal import Output, emit, say
from policyd.cli.two_persons import client_of

if TYPE_CHECKING:
    from rich.console import Console


class Kind(StrEnum):
    """The kinds of revisions."""

    POLICY = "policy"
    FLEET = "fleet"


KindFlag = Annotated[Kind, typer.Option("--kind", help="Which kind of revision.")]


def activate(
    digest: Annotated[
        str, typer.Argument(metavar="DIGEST|COMMIT", help="As `policyd policy log` has it, or how it begins.")
    ],
    pause: Annotated[bool, typer.Option("--pause", help="Hold it where it is on its way.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Have it go on after a pause.")] = False,
    kind: KindFlag = Kind.POLICY,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Have a revision that has passed its gates take its next step.

    Example: policyd policy activate 4f1c2a9e6d0b --server https://policyd.example
    """
    if pause and resume:
        raise typer.BadParameter("pause and resume are two things", param_hint="--pause")
    step = "pause" if pause else "resume" if resume else "next"
    with client_of(Access(server, token_file, ca_file), config, data_dir) as client:
        found = client.activate_revision(whole(client.revisions(kind.value)["items"], digest), step=step)
    emit({**found}, output, lambda console: _draw([found], console))


def rollback(
    digest: Annotated[
        str | None, typer.Argument(metavar="[DIGEST|COMMIT]", help="Where to; without it, what was live before.")
    ] = None,
    kind: KindFlag = Kind.POLICY,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Go back to what was live before, or take back what is on its way. What was left stays away until it is activated.

    Example: policyd policy rollback --server https://policyd.example
    """
    with client_of(Access(server, token_file, ca_file), config, data_dir) as client:
        named = None if digest is None else whole(client.revisions(kind.value)["items"], digest)
        found = client.roll_back(kind.value, digest=named)
    emit({**found}, output, lambda console: _draw([found], console))


def log(
    kind: Annotated[Kind | None, typer.Option("--kind", help="Only this kind of revision.")] = None,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """List where revisions stand, since when, and why.

    Example: policyd policy log --server https://policyd.example
    """
    with client_of(Access(server, token_file, ca_file), config, data_dir) as client:
        page = client.revisions(None if kind is None else kind.value)
    emit({**page}, output, lambda console: _draw(page["items"], console))
    if not page["items"]:
        say("no source is followed there: what lies in its folders is live as it is")


def whole(items: Sequence[Mapping[str, Any]], name: str) -> str:
    """The digest of the revision whose digest or commit begins like this; what is not there is left to the server."""
    short = name.removeprefix("sha256:")
    found = {
        item["digest"]
        for item in items
        if item["digest"].removeprefix("sha256:").startswith(short) or (item["commit"] or "").startswith(short)
    }
    if len(found) > 1:
        raise typer.BadParameter(f"{name} begins {len(found)} of the revisions", param_hint="DIGEST")
    return found.pop() if found else name


def _draw(items: Sequence[Mapping[str, Any]], console: Console) -> None:
    from policyd.cli.listing import Column, draw_rows

    names = ("kind", "commit", "digest", "state", "since", "gates", "why")
    columns = tuple(Column(name) for name in names)
    rows = [
        (
            item["kind"],
            (item["commit"] or "-")[:12],
            item["digest"].removeprefix("sha256:")[:12],
            f"{item['state']}, paused" if item["paused"] else item["state"],
            item["since"][:19].replace("T", " "),
            " ".join(f"{gate['gate']}:{'passed' if gate['passed'] else 'FAILED'}" for gate in item["gates"]) or "-",
            item["said"],
        )
        for item in items
    ]
    if rows:
        draw_rows(console, columns, rows, {})
    else:
        console.print("no revision is remembered")
