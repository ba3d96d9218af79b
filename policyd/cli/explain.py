"""``policyd explain``: a recorded decision in full, made again from the log, beside a running server or without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
from policyd.cli.terminal import Output, data

if TYPE_CHECKING:
    from policyd.client import Client
    from policyd.services.replay import Replayed
    from policyd.settings import Settings


def explain(
    decision_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a decision, as `decide` printed it.")],
    output: OutputFlag = Output.TABLE,
    pool: Annotated[
        list[str] | None, typer.Option("--pool", metavar="POOL", help="Details of this pool only; repeat for several.")
    ] = None,
    data_dir: DataDirFlag = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Explain a recorded decision: every component of every score, every reason of every refusal.

    Example: policyd explain 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b --pool aws-eu-central-1-h100
    """
    if server is not None:
        from policyd.cli.servers import server_at

        _by_server(server_at(Access(server, token_file, ca_file)), decision_id, output, pool or [])
        return
    import asyncio

    settings = settings_of(config, data_dir=data_dir)
    replayed = asyncio.run(replay_from_log(settings, decision_id))
    _show(replayed, output, pool or [])


async def replay_from_log(settings: Settings, decision_id: str) -> Replayed:
    """The decision of that id, made again from the log of the settings' data directory."""
    from policyd.services.log_place import directory_of
    from policyd.services.log_reader import LogReader
    from policyd.services.replay import replay

    reader = await LogReader.open(directory_of(settings), deadline_ms=settings.audit.search_deadline_ms)
    try:
        return await replay(reader, decision_id)
    finally:
        await reader.close()


def _show(replayed: Replayed, output: Output, pools: list[str]) -> None:
    import sys

    import orjson

    from policyd.cli.decision_tables import check_pools, draw_error, draw_full, told_of
    from policyd.cli.terminal import encoded
    from policyd.services.explanation import explanation_json

    document = orjson.loads(orjson.dumps(explanation_json(replayed)))
    if output is not Output.TABLE:
        sys.stdout.write(encoded(document, output))
    elif replayed.made is None:
        draw_error(document, data())
    else:
        told = told_of(replayed.made, orjson.loads(orjson.dumps(replayed.to_json())))
        check_pools(told, pools)
        draw_full(told, data(), pools)


def _by_server(server: Client, decision_id: str, output: Output, pools: list[str]) -> None:
    import orjson

    from policyd.cli.decision_tables import check_pools, draw_error, draw_full, told_from
    from policyd.cli.terminal import emit_bytes

    with server:
        explanation = server.explanation(decision_id)
    if output is not Output.TABLE:
        emit_bytes(orjson.dumps(explanation), output, lambda _: None)
        return
    if explanation["kind"] != "decision":
        draw_error(explanation, data())
        return
    told = told_from(explanation)
    check_pools(told, pools)
    draw_full(told, data(), pools)
