"""One API process of ``policyd serve --workers N``: started by the supervisor, with a link to it and a socket.

    python -m policyd.cli.api_process LINK LISTENER

Rules: it writes no log and reads no settings of its own: what it serves is handed to it; without its link it finishes
what it has taken, with errors where a record would be needed, and ends; it prints nothing.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from dataclasses import dataclass, field
from typing import Any, Final

from policyd.api import server
from policyd.bootstrap import Running, running_beside
from policyd.cli.logs import start_logs
from policyd.errors import PolicydError, TimedOut
from policyd.revisions.tree_files import TreeFiles
from policyd.services.canary import Key, Trial
from policyd.services.figures import Figures, figures_from_json, figures_json, figures_of
from policyd.services.freshness import Freshness
from policyd.services.remote_log import RemoteLog
from policyd.settings import Settings

FIGURES_WAIT_S: Final = 5.0


@dataclass
class _Process:
    """What the supervisor has said so far."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    settings: Settings = field(default_factory=Settings)
    trees: TreeFiles | None = None
    trial: Trial | None = None
    workers_fault: str | None = "the API processes are starting"
    freshness: Freshness = field(default_factory=Freshness)
    log: RemoteLog | None = None
    parts: Running | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    asked: list[asyncio.Future[Figures]] = field(default_factory=list)

    def heard(self, said: dict[str, Any]) -> None:
        """Do what the supervisor says."""
        assert self.log is not None
        match said.get("do"):
            case "start":
                self.settings = Settings.model_validate(said["settings"])
                self.trees = TreeFiles.from_json(said["trees"])
                self.trial = Trial.from_json(said["trial"])
                self.log.writer_is(origin=said["origin"])
                self.started.set()
            case "reload":
                self.trees = TreeFiles.from_json(said["trees"])
                task = asyncio.create_task(self._reload())
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            case "try":
                self.trial = Trial.from_json(said["trial"])
                self._try_out()
            case "refused" if self.parts is not None:
                self.parts.reload.fault = f"the last reload changed nothing: {said['detail']}"
            case "status":
                self.log.writer_is(fault=said["fault"])
                self.workers_fault = said["workers"]
                self.freshness.take(said["sources"])
            case "figures" if self.parts is not None:
                self.log.tell({"figures": figures_json(figures_of(self.parts.telemetry))})
            case "whole":
                self._whole(figures_from_json(said["figures"]))
            case "end":
                self.stop.set()

    def _whole(self, figures: Figures) -> None:
        waiting, self.asked = self.asked, []
        for answer in waiting:
            if not answer.done():
                answer.set_result(figures)

    async def figures(self) -> Figures:
        """Those of the whole server. Raises ``TimedOut``: a part of them would pass for all."""
        assert self.log is not None
        answer: asyncio.Future[Figures] = asyncio.get_running_loop().create_future()
        self.asked.append(answer)
        self.log.tell({"ask": "figures"})
        try:
            async with asyncio.timeout(FIGURES_WAIT_S):
                return await answer
        except TimeoutError:
            raise TimedOut("the other processes of this server did not tell their figures in time") from None

    def look(self) -> None:
        """Have the supervisor look at the sources."""
        assert self.log is not None
        self.log.tell({"ask": "look"})

    async def _reload(self) -> None:
        if self.parts is not None:
            await self.parts.reload.ask()
            self.tell_revisions()

    def _try_out(self) -> None:
        if self.parts is not None:
            self.parts.canary.take(self.trial)

    def _spoilt(self, key: Key, said: str) -> None:
        assert self.log is not None
        self.log.tell({"spoilt": [list(key), said]})

    def tell_revisions(self, _: str = "") -> None:
        """Say to the supervisor what is live here."""
        assert self.parts is not None
        assert self.log is not None
        live = self.parts.snapshot
        revisions = [live.policies.digest, live.fleet.digest]
        self.log.tell({"revisions": revisions, "fault": self.parts.reload.fault})

    async def run(self, link: socket.socket, listener: socket.socket) -> None:
        """Serve until the supervisor says to end, or is gone."""
        self.log = await RemoteLog.connect(link, self.heard, self._lost)
        await self.started.wait()
        if self.trees is None:
            return
        trees = self.trees
        start_logs(self.settings.telemetry)

        def read() -> Any:
            return (self.trees or trees).revisions()

        try:
            async with running_beside(
                self.settings, self.log, read, lambda: self.workers_fault, self.figures, self.freshness, self.look
            ) as self.parts:
                self.parts.canary.failed = self._spoilt
                self._try_out()
                await server.serve(self.parts, self.settings, self.tell_revisions, self.stop, listener)
        except PolicydError as error:
            self.log.tell({"failed": error.detail})
        finally:
            await self.log.close()

    def _lost(self) -> None:
        self.stop.set()
        self.started.set()


def main() -> None:
    """Take the file descriptors and serve."""
    link, listener = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    link.setblocking(False)
    listener.setblocking(False)

    async def run() -> None:
        await _Process().run(link, listener)

    with asyncio.Runner(loop_factory=server.loop_factory()) as runner:
        runner.run(run())


if __name__ == "__main__":
    main()
