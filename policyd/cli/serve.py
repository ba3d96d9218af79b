"""``policyd serve``: the HTTP service, until it is told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from policyd.cli.options import (
    ConfigFlag,
    DataDirFlag,
    EngineFlag,
    FactsFlag,
    FleetFlag,
    PoliciesFlag,
    settings_of,
)
from policyd.cli.terminal import say

if TYPE_CHECKING:
    from policyd.settings import Settings

LOADED_OBJECTS_MAX: Final = 10_000_000
"""Objects that a start may make before the interpreter looks for cycles among them."""


def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address; loopback only without authentication.")] = None,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65_535, help="Port; 0 takes a free one.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="API processes.")] = None,
    data_dir: DataDirFlag = None,
    fleet: FleetFlag = None,
    policies: PoliciesFlag = None,
    engine: EngineFlag = None,
    facts: FactsFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Serve decisions over HTTP. Prints one line with the address when it is ready; ends in order on SIGTERM.

    Example: policyd serve --port 8470 --data-dir /var/lib/policyd
    """
    import asyncio
    import gc

    # What is loaded now stays, so there are no cycles to find until the server is at work.
    gc.set_threshold(LOADED_OBJECTS_MAX)

    from policyd.api.server import loop_factory

    settings = settings_of(
        config,
        host=host,
        port=port,
        workers=workers,
        data_dir=data_dir,
        fleet=fleet,
        policies=policies,
        engine=engine,
        facts=facts,
    )
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(settings) if settings.workers == 1 else _supervise(settings))


async def _serve(settings: Settings) -> None:
    from policyd.api import server
    from policyd.bootstrap import running
    from policyd.bootstrap_webhooks import telling
    from policyd.cli.logs import start_logs

    start_logs(settings.telemetry)
    async with running(settings) as parts:
        say(
            f"policyd on {settings.data_dir}: policies {parts.snapshot.policies.digest[:19]}, "
            f"fleet {parts.snapshot.fleet.digest[:19]}, {parts.engine.name}",
            _who(settings, parts.principal.name),
        )
        async with telling(settings, parts.directory, parts.committer.origin, parts.telemetry):
            await server.serve(parts, settings, _ready)


async def _supervise(settings: Settings) -> None:
    import asyncio
    import sys
    from contextlib import AsyncExitStack

    from policyd.api.supervisor import Supervisor, supervise
    from policyd.bootstrap import make_engine, make_entitlements, sources_of, tree_files, writing
    from policyd.bootstrap_sources import first_good, following
    from policyd.bootstrap_webhooks import telling
    from policyd.cli.logs import start_logs
    from policyd.core.principal import LOCAL
    from policyd.services.figures import ServerFigures

    start_logs(settings.telemetry)
    command = [sys.executable, "-m", "policyd.cli.api_process"]
    async with writing(settings) as (directory, committer, telemetry), AsyncExitStack() as stack:
        say(f"policyd on {settings.data_dir}: {settings.workers} API processes", _who(settings, LOCAL.name))
        figures = ServerFigures(telemetry)
        sources = sources_of(settings)
        followed = bool(sources.followed)
        lifecycle = await following(settings, directory, committer, sources, stack) if followed else None
        if followed:
            await first_good(make_engine(settings.engine), sources, make_entitlements)
        supervisor = Supervisor(
            settings,
            directory,
            committer,
            sources.read if followed else lambda: tree_files(settings),
            command,
            figures,
            sources.settled,
            sources.freshness,
        )
        if lifecycle is not None:
            lifecycle.try_out, supervisor.spoilt = supervisor.try_out, lifecycle.spoilt
        turning = asyncio.create_task(lifecycle.keep_turning(supervisor.reload)) if lifecycle is not None else None
        try:
            async with telling(settings, directory, committer.origin, telemetry):
                await supervise(supervisor, _ready)
        finally:
            if turning is not None:
                turning.cancel()


def _who(settings: Settings, name: str) -> str:
    """What a banner says of who may ask."""
    auth = settings.auth
    if not auth.configured:
        return (
            f"no authentication is configured: whoever reaches this loopback address is {name!r}, who decides, "
            "simulates and reads for every tenant, and never approves, activates or erases"
        )
    kinds = {"tokens": auth.tokens_file, "signed claims": auth.oidc, "client certificates": auth.certificates}
    plain = "" if settings.tls.certificate_file else "; without TLS, so let a proxy add it outside this machine"
    return f"callers prove who they are by {', '.join(kind for kind, given in kinds.items() if given)}{plain}"


def _ready(address: str) -> None:
    """One line on stdout, when requests are answered: what a script waits for."""
    print(f"policyd is ready at {address}", flush=True)
