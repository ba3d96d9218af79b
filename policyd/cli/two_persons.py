"""``policyd approve``, ``audit erase`` and ``audit hold``: what one person proposes and another approves, by a server.

Rules: both persons are proved by the server, so there is no way without one; what is approved is shown first, and its
digest goes with the approval, so that nothing else is approved.
"""

from __future__ import annotations

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
    settings_of,
)
from policyd.cli.terminal import Output, emit, say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from policyd.client import Client

hold = typer.Typer(name="hold", help="Legal holds: what must be kept, by two persons.", no_args_is_help=True)

TenantFlag = Annotated[str, typer.Option(help="Tenant.")]
ReasonFlag = Annotated[str, typer.Option(help="Why; it stays in the log, so name a case and not a person.")]


def approve(
    proposal_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Id of a proposal; without it, what waits is listed.")
    ] = None,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Approve what another person has proposed, and have it done; without an id, list what waits for that.

    Example: policyd approve 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b --server https://policyd.example
    """
    from policyd.errors import NotFound

    with client_of(Access(server, token_file, ca_file), config, data_dir) as client:
        items = client.proposals()["items"]
        if proposal_id is None:
            listed = {"items": items, "next": None}
            emit(listed, output, lambda console: _draw_proposals(items, console))
            return
        found = [item for item in items if item["id"] == proposal_id]
        if not found:
            raise NotFound(f"no open proposal has the id {proposal_id!r}", remedy="list them with `policyd approve`")
        say(f"approving {found[0]['action']} for {found[0]['tenant'] or 'all tenants'}: {found[0]['document']}")
        done = client.approve(proposal_id, digest=found[0]["digest"])
    emit({**done}, output, lambda console: _draw_done(done, console))


def erase(
    subject: Annotated[str, typer.Option(metavar="PRINCIPAL", help="Whom, as the log names them: oidc:4711.")],
    reason: ReasonFlag,
    tenant: Annotated[str | None, typer.Option(help="Only in this tenant; without it, everywhere.")] = None,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Propose to erase a person: once another approves it, their personal fields cannot be read any more.

    Example: policyd audit erase --tenant eu-bank --subject oidc:4711 --reason "request 2026-31"
    """
    with client_of(Access(server, token_file, ca_file), config, data_dir) as client:
        proposed = client.propose_erasure(tenant, subject, reason)
    emit_proposed(proposed, output)


@hold.command("place")
def place(
    tenant: TenantFlag,
    reason: ReasonFlag,
    subject: Annotated[
        str | None, typer.Option(metavar="PRINCIPAL", help="Only what concerns this principal, such as oidc:4711.")
    ] = None,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Propose a legal hold: once another person approves it, nothing that it covers is erased or removed.

    Example: policyd audit hold place --tenant eu-bank --subject oidc:4711 --reason "case 2026-17"
    """
    with client_of(Access(server, token_file, ca_file), config, data_dir) as client:
        proposed = client.propose_hold(tenant, reason, subject=subject)
    emit_proposed(proposed, output)


@hold.command("lift")
def lift(
    hold_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the hold.")],
    reason: ReasonFlag,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Propose to lift a legal hold; it is over once another person approves that.

    Example: policyd audit hold lift 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b --reason "case 2026-17 is closed"
    """
    with client_of(Access(server, token_file, ca_file), config, data_dir) as client:
        proposed = client.propose_lifting(hold_id, reason)
    emit_proposed(proposed, output)


@hold.command("list")
def list_holds(
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """List the legal holds in force.

    Example: policyd audit hold list --server https://policyd.example
    """
    with client_of(Access(server, token_file, ca_file), config, data_dir) as client:
        page = client.holds()
    emit({**page}, output, lambda console: _draw_holds(page["items"], console))


def client_of(access: Access, config: Path | None, data_dir: Path | None) -> Client:
    """A client of the server that is named, or of the one beside the data directory. Raises ``RequestError``."""
    from policyd.cli.servers import server_at
    from policyd.errors import RequestError
    from policyd.services.data_directory import DataDirectory

    if access.address is None:
        settings = settings_of(config, data_dir=data_dir)
        address = DataDirectory(settings.data_dir).announced()
        if address is None:
            raise RequestError(
                f"no server runs on {settings.data_dir}, and without one nobody proves who they are",
                remedy="start `policyd serve` with authentication, or name a server with --server",
            )
        say(f"asking the server at {address}, which runs on {settings.data_dir}")
        access = access._replace(address=address)
    return server_at(access)


def emit_proposed(proposed: Mapping[str, Any], output: Output) -> None:
    """Print what was proposed, and what is to be done with it."""
    emit({**proposed}, output, lambda console: _draw_proposals([proposed], console))
    say(f"another person approves it with: policyd approve {proposed['id']}")


def _draw_proposals(items: Sequence[Mapping[str, Any]], console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.listing import Column, draw_rows

    columns = (Column("id"), Column("action"), Column("tenant"), Column("about"), Column("by"), Column("until"))
    rows = [
        (
            item["id"],
            item["action"],
            item["tenant"] or "all",
            words.value(item["document"]),
            item["proposed_by"],
            item["expires_at"][:16].replace("T", " "),
        )
        for item in items
    ]
    if rows:  # a head without rows says nothing
        draw_rows(console, columns, rows, {})
    else:
        console.print("nothing waits for approval")


def _draw_done(done: Mapping[str, Any], console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.terminal import pairs

    place = done["audit"]
    told = {"approved": done["action"], "tenant": done["tenant"] or "all", "result": words.value(done["result"])}
    console.print(pairs({**told, "log": f"entry {place['index']} of {place['log']}"}))


def _draw_holds(items: Sequence[Mapping[str, Any]], console: Console) -> None:
    from policyd.cli.listing import Column, draw_rows

    columns = (Column("id"), Column("tenant"), Column("subject"), Column("reason"), Column("since"))
    rows = [
        (item["id"], item["tenant"], item["subject"] or "all", item["reason"], item["placed_at"][:16].replace("T", " "))
        for item in items
    ]
    if rows:
        draw_rows(console, columns, rows, {})
    else:
        console.print("no hold is in force")
