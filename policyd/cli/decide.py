"""``policyd decide``: one decision, here or by a running server; either way it is in the log before it is printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from policyd.cli.options import (
    Access,
    CaFileFlag,
    ConfigFlag,
    DataDirFlag,
    EngineFlag,
    FactsFlag,
    FleetFlag,
    OutputFlag,
    PoliciesFlag,
    ServerFlag,
    TokenFileFlag,
    settings_of,
)
from policyd.cli.terminal import Output, emit_bytes, say

if TYPE_CHECKING:
    from policyd.cli.decision_tables import Told
    from policyd.core.workload import DecisionRequest
    from policyd.settings import Settings

Flags = dict[str, Path | str | None]


WAIT_FOR_WRITER_S: Final = 10
WAIT_STEP_S: Final = 0.2


def decide(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="Workload file, YAML or JSON; - reads stdin.")],
    output: OutputFlag = Output.TABLE,
    limit: Annotated[int | None, typer.Option(min=1, max=1_000, help="Ranked pools to return.")] = None,
    server: ServerFlag = None,
    token_file: TokenFileFlag = None,
    ca_file: CaFileFlag = None,
    data_dir: DataDirFlag = None,
    fleet: FleetFlag = None,
    policies: PoliciesFlag = None,
    engine: EngineFlag = None,
    facts: FactsFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Decide where a workload may run: ranked pools, refused pools, and why. Exit code 3 is a deny.

    Without a server it decides here and writes the log of --data-dir; beside a running one it asks that.

    Example: policyd decide examples/workloads/eu-bank-chat.yaml
    """
    from policyd.cli.workload_files import read_request

    request = read_request(file)
    if limit is not None:
        request = request.model_copy(update={"options": request.options.model_copy(update={"limit": limit})})
    flags: Flags = {"fleet": fleet, "policies": policies, "engine": engine, "facts": facts}
    settings = settings_of(config, data_dir=data_dir, **flags)
    body, told = _decided(settings, request, Access(server, token_file, ca_file), flags)
    _show(body, told, output)
    raise typer.Exit(0 if told.answer["outcome"] == "allow" else 3)


def _decided(settings: Settings, request: DecisionRequest, access: Access, flags: Flags) -> tuple[bytes, Told]:
    """Ask the named server or the one on the data directory, else decide here; another command there is waited for."""
    import time

    from policyd.errors import AuditLocked

    ends = time.monotonic() + WAIT_FOR_WRITER_S
    while True:
        address = access.address or _running_beside(settings)
        if address is not None:
            _refuse_flags(address, flags)
            return _ask(address, access, request)
        try:
            return _decide_here(settings, request)
        except AuditLocked:
            # A command that decides holds the directory for seconds, and a server announces itself when it is ready.
            if time.monotonic() > ends:
                raise
            time.sleep(WAIT_STEP_S)


def _running_beside(settings: Settings) -> str | None:
    from policyd.services.data_directory import DataDirectory

    address = DataDirectory(settings.data_dir).announced()
    if address is not None:
        say(f"asking the server at {address}, which runs on {settings.data_dir}")
    return address


def _refuse_flags(address: str, flags: Flags) -> None:
    given = [f"--{name}" for name, flag in flags.items() if flag is not None]
    if given:
        raise typer.BadParameter(
            f"{', '.join(given)}: the server at {address} decides on its own; `policyd simulate` tries another, "
            "or name another --data-dir"
        )


def _decide_here(settings: Settings, request: DecisionRequest) -> tuple[bytes, Told]:
    import asyncio

    import orjson

    from policyd.bootstrap import running
    from policyd.cli.decision_tables import told_of
    from policyd.services.clock import now_us, uuid7

    async def once() -> tuple[bytes, Told]:
        new = not settings.data_dir.exists()
        async with running(settings) as parts:
            answered = await parts.decisions.decide(request, parts.principal, uuid7(now_us()))
        if new:
            say(f"the log of decisions begins in {settings.data_dir}; --data-dir names another place")
        return answered.body, told_of(answered.made, orjson.loads(answered.body))

    return asyncio.run(once())


def _ask(address: str, access: Access, request: DecisionRequest) -> tuple[bytes, Told]:
    import orjson

    from policyd.cli.servers import decided_by, server_at

    with server_at(access._replace(address=address)) as server:
        answer, told = decided_by(server, request)
    return orjson.dumps(answer), told


def _show(body: bytes, told: Told, output: Output) -> None:
    from policyd.cli.decision_tables import draw

    emit_bytes(body, output, lambda console: draw(told, console))
