"""``policyd demo``: a whole policyd in a scratch directory, at work on the example fleet. It needs nothing else.

It serves on a free loopback port, decides the example workloads over HTTP as any caller would, explains one of them in
full, says which share of the prices is assumed, and takes everything away again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from policyd.cli.options import EngineFlag
from policyd.cli.terminal import CAREFUL, GOOD, QUIET, data, talk

if TYPE_CHECKING:
    from rich.console import Console

    from policyd.bootstrap import Running
    from policyd.cli.decision_tables import Told
    from policyd.core.fleet import Fleet
    from policyd.settings import Settings

EXPLAINED = "eu-bank-chat"
"""The example that is explained in full."""


def demo(
    full: Annotated[
        bool, typer.Option("--full", help="Every refused pool of the explained workload, one by one.")
    ] = False,
    engine: EngineFlag = None,
) -> None:
    """Show policyd at work: serve the example fleet, decide the example workloads, explain one.

    Example: policyd demo
    """
    import asyncio
    import tempfile

    from policyd.bootstrap import shipped
    from policyd.cli.workload_files import request_files
    from policyd.settings import load_settings

    files = list(request_files([str(shipped("workloads"))]))
    with tempfile.TemporaryDirectory(prefix="policyd-demo-") as scratch:
        flags: dict[str, Any] = {
            "data_dir": scratch,
            "port": 0,
            "fleet": None,
            "engine": {"kind": engine or "embedded"},
        }
        # The demo shows the shipped examples, so settings of the surroundings do not count here.
        settings = load_settings(_nothing(Path(scratch)), environment={}, flags=flags)
        asyncio.run(_show(settings, files, full))
    _next(data())


def _nothing(scratch: Path) -> Path:
    """An empty settings file, so that a ``policyd.yaml`` of the working directory is not read."""
    path = scratch / "policyd.yaml"
    path.write_text("{}\n", encoding="utf-8")
    return path


async def _show(settings: Settings, files: list[str], full: bool) -> None:
    import asyncio
    from contextlib import suppress

    from policyd.api import server
    from policyd.bootstrap import running

    console = data()
    with talk().status("starting: compiling policies, loading the fleet, opening the log"):
        stack = running(settings)
        parts = await stack.__aenter__()
    try:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(server.serve(parts, settings, ready.set_result))
        try:
            first: list[asyncio.Future[Any]] = [ready, serving]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            await _tell(parts, await ready, files, full, console)
        finally:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
    finally:
        await stack.__aexit__(None, None, None)


async def _tell(parts: Running, address: str, files: list[str], full: bool, console: Console) -> None:
    import asyncio

    from policyd.cli import words
    from policyd.cli.decision_tables import draw_full, draw_guided

    fleet = parts.snapshot.fleet
    packages = len(parts.snapshot.policies.packages)
    console.print(f"A policyd at {address}", style="bold")
    console.print(
        f"{words.plural(len(fleet.pools), 'pool')}, {words.plural(len(fleet.models), 'model')}, "
        f"{words.plural(len(fleet.tenants), 'tenant')}, {words.plural(packages, 'policy package')} on "
        f"{parts.engine.name}; log in {parts.settings.data_dir}"
    )
    console.print(_assumed(fleet), style=CAREFUL)
    told: dict[str, Told] = {}
    for file in files:
        name = Path(file).stem
        told[name] = await asyncio.to_thread(_decide, address, file)
        _heading(f"policyd decide {_shown(file)}", console)
        _brief(told[name], console)
    explained = told.get(EXPLAINED) or next(iter(told.values()))
    _heading(f"policyd explain {explained.answer['id']}", console)
    if full:
        draw_full(explained, console)
    else:
        draw_guided(explained, console)


def _decide(address: str, file: str) -> Told:
    """Decide a workload file over HTTP."""
    from policyd.cli.options import Access
    from policyd.cli.servers import decided_by, server_at
    from policyd.cli.workload_files import read_request

    with server_at(Access(address, None, None)) as server:
        return decided_by(server, read_request(file))[1]


def _heading(command: str, console: Console) -> None:
    console.print()
    console.rule(style=QUIET)
    console.print(f"$ {command}", style="bold")
    console.print()


def _shown(file: str) -> str:
    return f"examples/workloads/{Path(file).name}"


def _brief(told: Told, console: Console) -> None:
    """One example: the ranked table, the reasons counted, and what they cost."""
    from policyd.cli.decision_tables import draw_brief

    draw_brief(told, console)


def _assumed(fleet: Fleet) -> str:
    """Which share of the fleet's prices nobody has quoted."""
    from policyd.cli import words

    statuses = [price.status for pool in fleet.pools.values() for price in _prices(pool)]
    assumed = statuses.count("assumed")
    percent = (200 * assumed + len(statuses)) // (2 * len(statuses)) if statuses else 0
    return (
        f"{assumed} of {words.plural(len(statuses), 'price')} ({percent} %) are assumed, the others list or contract "
        "prices with source and date; * marks the assumed ones"
    )


def _prices(pool: Any) -> list[Any]:
    return [price for price in (pool.price, *(offering.price for offering in pool.offerings)) if price is not None]


def _next(console: Console) -> None:
    from policyd.cli.terminal import pairs

    console.print()
    console.rule(style=QUIET)
    console.print("The scratch directory is gone; nothing is left running. Try next:", style=GOOD)
    console.print(
        pairs(
            {
                "policyd decide FILE": "decide here, and keep the log in ./policyd-data",
                "policyd explain ID": "every component of every score, every reason of every refusal",
                "policyd simulate examples/workloads --without-provider aws": "what would be left",
                "policyd serve": "the same over HTTP, on http://127.0.0.1:8470",
                "policyd pool list": "the fleet",
                "policyd policy test --engine all": "the policies' tests on both engines",
                "policyd audit search --outcome deny": "what was refused, and why",
            }
        )
    )
