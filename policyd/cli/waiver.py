"""``policyd waiver``: lifting a rule for a while, by two persons; and breaking the glass.

Rules: persons are proved by the server, so there is no way without one; what is approved is shown first, and its digest
goes with the approval, so that nothing else is approved.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from policyd.cli.options import Access, CaFileFlag, ConfigFlag, DataDirFlag, OutputFlag, ServerFlag, TokenFileFlag
from policyd.cli.terminal import Output, emit, say
from policyd.cli.two_persons import client_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

app = typer.Typer(name="waiver", help="Waivers: a soft rule lifted for a while, by two persons.", no_args_is_help=True)

TenantFlag = Annotated[str, typer.Option(help="Tenant.")]
RuleFlag = Annotated[str, typer.Option(metavar="POLICY.RULE", help="The rule, such as sla.stream_too_slow.")]
SomeRuleFlag = Annotated[
    str | None, typer.Option(metavar="POLICY.RULE", help="Only this soft rule; without it, every one.")
]
ReasonFlag = Annotated[str, typer.Option(help="Why; it stays in the log, so name a case and not a person.")]
ForFlag = Annotated[
    str | None, typer.Option("--for", metavar="DURATION", help="How long from now: 30m, 8h or 14d; or name --until.")
]
UntilFlag = Annotated[str | None, typer.Option(metavar="TIME", help="The end, with its zone: 2026-12-01T12:00:00Z.")]
ProjectFlag = Annotated[str | None, typer.Option(help="Only this project.")]
PoolFlag = Annotated[str | None, typer.Option(help="Only this pool.")]
ModelFlag = Annotated[str | None, typer.Option(help="Only this model.")]
_DURATION = re.compile(r"([1-9][0-9]{0,4})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@app.command("request")
def request(
    tenant: TenantFlag,
    rule: RuleFlag,
    reason: ReasonFlag,
    lasts: ForFlag = None,
    until: UntilFlag = None,
    project: ProjectFlag = None,
    pool: PoolFlag = None,
    model: ModelFlag = None,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Request that a soft or approval rule refuses nothing in a scope; in force once another person approves it.

    Example: policyd waiver request --tenant eu-bank --rule sla.stream_too_slow --for 8h --reason "change 4711"
    """
    scope = {"project": project, "pool": pool, "model": model}
    with client_of(Access(server, token_file, ca_file), config, data_dir) as client:
        proposed = client.request_waiver(tenant, rule, reason, end_of(lasts, until), **scope)
    emit({**proposed}, output, lambda console: _draw_requested(proposed, console))
    say(f"another person approves it with: policyd waiver approve {proposed['id']}")


@app.command("approve")
def approve(
    waiver_id: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the waiver, as `policyd waiver list` shows it.")
    ],
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Approve a waiver that another person has requested; it is in force from then on.

    Example: policyd waiver approve 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b --server https://policyd.example
    """
    from policyd.errors import NotFound

    with client_of(Access(server, token_file, ca_file), config, data_dir) as client:
        found = [item for item in client.waivers()["items"] if item["id"] == waiver_id]
        if not found:
            raise NotFound(f"no waiver has the id {waiver_id!r}", remedy="list them with `policyd waiver list`")
        say(f"approving that {_lifts(found[0])}, until {found[0]['expires_at']}: {found[0]['reason']}")
        done = client.approve_waiver(waiver_id, digest=found[0]["digest"])
    emit({**done}, output, lambda console: _draw_done(done, console))


@app.command("list")
def list_waivers(
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """List waivers and approvals: what waits, is in force, or was lately.

    Example: policyd waiver list --server https://policyd.example
    """
    with client_of(Access(server, token_file, ca_file), config, data_dir) as client:
        page = client.waivers()
    emit({**page}, output, lambda console: _draw_waivers(page["items"], console))


@app.command("break-glass")
def break_glass(
    tenant: TenantFlag,
    reason: ReasonFlag,
    lasts: ForFlag = None,
    until: UntilFlag = None,
    rule: SomeRuleFlag = None,
    project: ProjectFlag = None,
    pool: PoolFlag = None,
    model: ModelFlag = None,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Lift soft rules alone and at once, for minutes, where waivers.break_glass_max_ms admits it. Hard rules stay.

    Example: policyd waiver break-glass --tenant eu-bank --for 15m --reason "incident 99"
    """
    scope = {"rule": rule, "project": project, "pool": pool, "model": model}
    with client_of(Access(server, token_file, ca_file), config, data_dir) as client:
        broken = client.break_glass(tenant, reason, end_of(lasts, until), **scope)
    emit({**broken}, output, lambda console: _draw_waivers([broken], console))


def end_of(lasts: str | None, until: str | None) -> str:
    """The end that two flags name between them. Raises ``RequestError``."""
    from policyd.errors import RequestError
    from policyd.services.clock import now_us, rfc3339

    if (lasts is None) == (until is None):
        raise RequestError("name how long with --for, or the end with --until", remedy="such as --for 8h")
    if lasts is None:
        return str(until)
    found = _DURATION.fullmatch(lasts)
    if found is None:
        raise RequestError(f"--for {lasts!r} is no duration", remedy="write a whole number and s, m, h or d: 8h")
    return rfc3339(now_us() + int(found[1]) * _SECONDS[found[2]] * 1_000_000)


def _lifts(item: Mapping[str, Any]) -> str:
    scope = [f"{name} {item[name]}" for name in ("project", "pool", "model") if item[name] is not None]
    where = f", {', '.join(scope)}" if scope else ""
    return f"{item['rule'] or 'every soft rule'} is lifted for {item['tenant']}{where}"


def _draw_requested(proposed: Mapping[str, Any], console: Console) -> None:
    from policyd.cli.terminal import pairs

    document = proposed["document"]
    names = ("kind", "rule", "title", "project", "pool", "model", "reason", "expires_at")
    told = {name: document[name] for name in names if name in document}
    console.print(pairs({"id": proposed["id"], "tenant": proposed["tenant"], **told}))


def _draw_done(done: Mapping[str, Any], console: Console) -> None:
    from policyd.cli.terminal import pairs

    place = done["audit"]
    told = {"in force": done["id"], "tenant": done["tenant"], "until": done["result"]["expires_at"]}
    console.print(pairs({**told, "log": f"entry {place['index']} of {place['log']}"}))


def _draw_waivers(items: Sequence[Mapping[str, Any]], console: Console) -> None:
    from policyd.cli.listing import Column, draw_rows

    names = ("id", "state", "kind", "what", "until", "requested by", "approved by", "reason")
    rows = [
        (
            item["id"],
            item["state"] if item["void_because"] is None else f"{item['state']}: {item['void_because']}",
            item["kind"].replace("_", " "),
            _lifts(item),
            item["expires_at"][:16].replace("T", " "),
            item["requested_by"] or "",
            item["approved_by"] or "",
            item["reason"] or "",
        )
        for item in items
    ]
    if rows:
        draw_rows(console, [Column(name) for name in names], rows, {})
    else:
        console.print("nothing is lifted")
