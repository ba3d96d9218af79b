"""``policyd audit``: search the decision log and read single entries, beside a running server or without one.

Rules: reading takes no lock and changes nothing; what is printed was checked against its hash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from policyd.cli import evidence, log_keys, restore, retain
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
from policyd.cli.terminal import Output, emit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from audit.query import Record
    from policyd.client import Filters
    from policyd.settings import Settings

app = typer.Typer(name="audit", help="The decision log: every allow, deny and error.", no_args_is_help=True)

for _command in (
    evidence.verify,
    evidence.export,
    evidence.receipt,
    log_keys.rotate_key,
    log_keys.cosign,
    restore.backup,
    restore.restore,
    retain.retain,
):
    app.command()(_command)

Filter = str | None


@app.command()
def search(
    tenant: Annotated[Filter, typer.Option(help="Tenant.")] = None,
    project: Annotated[Filter, typer.Option(help="Project.")] = None,
    environment: Annotated[Filter, typer.Option(help="experiment, dev, staging or prod.")] = None,
    principal: Annotated[Filter, typer.Option(help="Who asked.")] = None,
    outcome: Annotated[Filter, typer.Option(help="allow, deny or error.")] = None,
    denied_by: Annotated[Filter, typer.Option(help="eligibility, capacity or budget; for an error, its code.")] = None,
    pool: Annotated[Filter, typer.Option(help="First choice.")] = None,
    provider: Annotated[Filter, typer.Option(help="Provider of the first choice.")] = None,
    country: Annotated[Filter, typer.Option(help="Country where the first choice processes.")] = None,
    rejected_pool: Annotated[Filter, typer.Option(help="A pool that was refused.")] = None,
    rule: Annotated[Filter, typer.Option(help="A rule that refused some pool.")] = None,
    model: Annotated[Filter, typer.Option(help="Model.")] = None,
    model_version: Annotated[Filter, typer.Option(help="Version of the model.")] = None,
    classification: Annotated[Filter, typer.Option(help="public, internal, confidential or restricted.")] = None,
    data_source: Annotated[Filter, typer.Option(help="A data source in use.")] = None,
    sla_class: Annotated[Filter, typer.Option(help="SLA class.")] = None,
    mode: Annotated[Filter, typer.Option(help="enforce.")] = None,
    waiver: Annotated[Filter, typer.Option(help="A waiver that was used.")] = None,
    approver: Annotated[Filter, typer.Option(help="Who approved it.")] = None,
    policy_commit: Annotated[Filter, typer.Option(help="Commit of the policies.")] = None,
    fleet_commit: Annotated[Filter, typer.Option(help="Commit of the fleet.")] = None,
    request_id: Annotated[Filter, typer.Option(help="Id of the request.")] = None,
    since: Annotated[Filter, typer.Option("--from", metavar="TIME", help="First moment that counts.")] = None,
    until: Annotated[Filter, typer.Option("--to", metavar="TIME", help="First moment that no longer counts.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Entries on a page.")] = 100,
    cursor: Annotated[Filter, typer.Option(help="Continue where a page ended.")] = None,
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Search decisions, newest first; all given filters must hold. Times are ISO 8601 in UTC.

    Example: policyd audit search --tenant eu-bank --outcome deny --from 2026-11-01
    """
    asked = {
        "tenant": tenant,
        "project": project,
        "environment": environment,
        "principal": principal,
        "outcome": outcome,
        "denied_by": denied_by,
        "pool": pool,
        "provider": provider,
        "country": country,
        "rejected_pool": rejected_pool,
        "rule": rule,
        "model": model,
        "model_version": model_version,
        "classification": classification,
        "data_source": data_source,
        "sla_class": sla_class,
        "mode": mode,
        "waiver": waiver,
        "approver": approver,
        "policy_commit": policy_commit,
        "fleet_commit": fleet_commit,
        "request_id": request_id,
        "from": since,
        "to": until,
    }
    filters = {name: value for name, value in asked.items() if value is not None}
    document = _page(Access(server, token_file, ca_file), config, data_dir, filters, cursor, limit)
    emit(document, output, lambda console: _draw_page(document, console))


@app.command()
def show(
    entry_id: Annotated[str, typer.Argument(metavar="ID", help="Id of an entry.")],
    output: OutputFlag = Output.TABLE,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Show one entry of the log as it was recorded, with its place and hash.

    Example: policyd audit show 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b
    """
    import asyncio

    import orjson

    from policyd.cli.explain import replay_from_log
    from policyd.cli.servers import server_at

    if server is not None:
        with server_at(Access(server, token_file, ca_file)) as client:
            document = client.record(entry_id)
    else:
        replayed = asyncio.run(replay_from_log(settings_of(config, data_dir=data_dir), entry_id))
        told = {name: replayed.body[name] for name in ("principal", "request_id")}
        document = orjson.loads(orjson.dumps({"kind": replayed.record.kind, **replayed.to_json(), **told}))
    emit(document, output, lambda console: _draw_entry(document, console))


def _page(
    access: Access, config: Any, data_dir: Any, filters: Mapping[str, str], cursor: str | None, limit: int
) -> dict[str, Any]:
    import asyncio

    from policyd.cli.servers import server_at

    if access.address is None:
        return asyncio.run(_search(settings_of(config, data_dir=data_dir), filters, cursor, limit))
    with server_at(access) as server:
        return {**server.search_page(cast("Filters", filters), cursor=cursor, limit=limit)}


async def _search(settings: Settings, filters: Mapping[str, str], cursor: str | None, limit: int) -> dict[str, Any]:
    from policyd.services.log_place import directory_of
    from policyd.services.log_reader import LogReader

    reader = await LogReader.open(directory_of(settings), deadline_ms=settings.audit.search_deadline_ms)
    try:
        found = await reader.search(filters, cursor, limit)
    finally:
        await reader.close()
    return {"items": [entry_json(record) for record in found.items], "next": found.next}


def entry_json(record: Record) -> dict[str, Any]:
    """An entry as a search lists it: as recorded, with its place in the log, without the salt of its hash."""
    from policyd.services.admission import listed

    return {
        **listed(record.document()),
        "audit": {"log": record.origin, "index": record.index, "leaf_hash": record.leaf_hash.hex()},
    }


def _draw_page(document: Mapping[str, Any], console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.listing import Column, draw_rows
    from policyd.cli.terminal import BAD, CAREFUL, GOOD, QUIET

    columns = (
        Column("time"),
        Column("outcome"),
        Column("tenant / project / environment", leaves=1),
        Column("model", leaves=1),
        Column("first choice", leaves=1),
        Column("cost", right=True, leaves=1),
        Column("id", leaves=2),
    )
    rows = [_row(entry) for entry in document["items"]]
    colours = {"allow": GOOD, "deny": CAREFUL}
    styles = {row[1]: colours.get(entry["outcome"], BAD) for entry, row in zip(document["items"], rows, strict=True)}
    if rows:  # a head without rows says nothing
        draw_rows(console, columns, rows, styles)
    more = f"; more with --cursor {document['next']}" if document["next"] else ""
    console.print(f"{words.plural(len(document['items']), 'entry')}{more}", style=QUIET)


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    from policyd.cli import words

    outcome = entry["outcome"]
    workload = entry.get("workload") or entry.get("asked", {}).get("workload", {})
    pool, cost = _first(entry)
    return (
        entry["time"][:19].replace("T", " "),
        outcome if outcome == "allow" else f"{outcome} ({entry.get('denied_by') or entry.get('code')})",
        " / ".join(str(workload.get(name) or "?") for name in ("tenant", "project", "environment")),
        str(workload.get("model", "?")),
        pool,
        words.usd(cost) if cost is not None else "-",
        entry["id"],
    )


def _first(entry: Mapping[str, Any]) -> tuple[str, int | None]:
    """First choice and its cost, from a record (a list) or from an answer (an object)."""
    ranked = entry.get("ranked") or ()
    if not ranked:
        return "-", None
    first = ranked[0]
    if isinstance(first, list):
        return str(first[0]), first[2]
    return str(first["pool"]), first["cost"]["micro_usd"]


def _draw_entry(document: Mapping[str, Any], console: Console) -> None:
    """The evidence of one entry: who, what, on which revisions, and where it stands in the log."""
    from policyd.cli import words
    from policyd.cli.decision_tables import draw_error
    from policyd.cli.terminal import pairs

    if document["kind"] != "decision":
        draw_error(document, console)
        return
    workload, place = document["workload"], document["audit"]
    ranked = [f"{entry['rank']}. {entry['pool']} ({entry['score']})" for entry in document["ranked"]]
    because = f", denied by {document['denied_by']}" if "denied_by" in document else ""
    console.print(
        pairs(
            {
                "decision": document["id"],
                "outcome": document["outcome"] + because,
                "time": f"{document['time']}, holds until {document['valid_until']}",
                "asked by": f"{document['principal']}, request {document['request_id']}",
                "for": " / ".join(workload[name] for name in ("tenant", "project", "environment")),
                "model": f"{workload['model']} {workload['model_version']}",
                "data": f"{workload['data']['classification']} in {words.places(workload['data']['residency'])}",
                "ranked": ", ".join(ranked) or "nothing",
                "refused": f"{len(document['rejected'])}, and {document['hidden_total']} hidden from the tenant",
                "obligations": words.value({found["name"]: found.get("value") for found in document["obligations"]}),
                "policies": f"{words.revision_whole(document['policy'])} on {document['policy']['engine']}",
                "fleet": words.revision_whole(document["fleet"]),
                "facts": document["facts"]["digest"],
                "sheet": document["sheet"],
                "log": f"entry {place['index']} of {place['log']}",
                "leaf hash": place["leaf_hash"],
            }
        )
    )
    console.print()
    console.print(f"policyd explain {document['id']} gives every reason", style="dim")
