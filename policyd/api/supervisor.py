"""Several API processes on one port, and the one process that writes the log for them.

    started ──all ready──► serving ──SIGTERM or SIGINT──► ending: the processes finish, then the log is closed
                              ├─ an API process ends: another takes its socket, after a pause that grows
                              └─ SIGHUP: both trees are read once here, and handed to every process

Rules: the supervisor answers no request and holds every listening socket, so that what waits on a socket outlives the
process behind it; the address is announced when all are ready; a process that cannot start at all ends the start, one
that ends later is replaced; every process is handed the same files, also the one that replaces another; the figures of
all processes are gathered for whichever of them is asked; when this process ends, however it ends, the links end, and
with them the API processes.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from policyd.api.server import address_of, listen
from policyd.errors import ConfigError, PolicydError
from policyd.revisions.tree_files import TreeFiles
from policyd.services.canary import Key, Trial
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.figures import ServerFigures, figures_from_json, figures_json
from policyd.services.freshness import Freshness
from policyd.services.remote_log import WriterLink
from policyd.settings import Settings

BACKLOG: Final = 1_024
PAUSE_FIRST_S: Final = 0.2
PAUSE_MAX_S: Final = 10.0
STEADY_S: Final = 30.0
"""A process that served for so long has earned the first pause again."""
STATUS_S: Final = 0.25
START_WAIT_S: Final = 120.0
RELOAD_WAIT_S: Final = 60.0
RELOAD_TRIES: Final = 3
END_GRACE_S: Final = 5.0
FIGURES_WAIT_S: Final = 1.0
_log: Final = logging.getLogger(__name__)


@dataclass
class _Slot:
    """The place of one API process."""

    number: int
    listener: socket.socket
    link: WriterLink | None = None
    process: asyncio.subprocess.Process | None = None
    ready: bool = False
    revisions: tuple[str, str] | None = None
    reload_fault: str | None = None
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    told: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Supervisor:
    """Keeps ``settings.workers`` API processes; ``command`` starts one, with two file descriptors as arguments."""

    settings: Settings
    directory: DataDirectory
    committer: Committer
    read: Callable[[], TreeFiles]
    command: Sequence[str]
    figures: ServerFigures
    settled: Callable[[str | None], bool] = lambda fault: False
    """Told what became of the trees that were handed over; says whether others are to be tried."""
    freshness: Freshness = field(default_factory=Freshness)
    spoilt: Callable[[Key, str], None] = lambda key, said: None
    """Told of a pair in canary that a process cannot build, or that spoils decisions."""
    _trial: Trial | None = None
    _slots: list[_Slot] = field(default_factory=list)
    _failed: str | None = None
    _ending: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _reloading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _gathering: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, ready: Callable[[str], None], stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set. Raises ``ConfigError`` when the processes do not start."""
        self._trees = await asyncio.to_thread(self.read)
        with ExitStack() as stack:
            port = self.settings.port
            for number in range(self.settings.workers):
                listener = stack.enter_context(listen(self.settings.host, port, shared=True))
                listener.listen(BACKLOG)
                port = listener.getsockname()[1]
                self._slots.append(_Slot(number, listener))
            keeping = [asyncio.create_task(self._keep(slot)) for slot in self._slots]
            status = asyncio.create_task(self._tell_status())
            try:
                await self._all_ready(stop)
                address = address_of(self._slots[0].listener, secure=self.settings.tls.certificate_file is not None)
                if not stop.is_set():
                    self.directory.announce(address)
                    ready(address)
                await stop.wait()
            finally:
                await self._end(keeping)
                status.cancel()

    def reload(self) -> None:
        """Read the trees again and have every process take them; soon, in a task."""
        self._start(self._reload())

    def try_out(self, trial: Trial | None) -> None:
        """Have every process try this from now on, also one that starts later."""
        if trial == self._trial:
            return
        self._trial = trial
        for slot in self._slots:
            if slot.link is not None:
                slot.link.tell({"do": "try", "trial": _trial_json(trial)})

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _all_ready(self, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        ends = loop.time() + START_WAIT_S
        while not all(slot.ready for slot in self._slots) and not stop.is_set():
            if self._failed is not None:
                raise ConfigError(self._failed, remedy="mend what is named and start again")
            if loop.time() > ends:
                raise ConfigError(f"the API processes were not ready within {START_WAIT_S:.0f} s")
            with suppress(TimeoutError):
                async with asyncio.timeout(STATUS_S):
                    await self._changed.wait()
            self._changed.clear()

    async def _keep(self, slot: _Slot) -> None:
        """A process in this place, and after it another."""
        loop = asyncio.get_running_loop()
        pause_s, served_before = PAUSE_FIRST_S, False
        while True:
            began = loop.time()
            code = await self._one(slot)
            served_before = served_before or slot.ready
            slot.ready, slot.link, slot.revisions = False, None, None
            slot.heard.set()
            slot.told.set()
            self.figures.ended(slot.number)
            if self._ending.is_set():
                return
            if not served_before:
                self._failed = self._failed or f"an API process ended with {code} before it was ready"
                self._changed.set()
                return
            pause_s = PAUSE_FIRST_S if loop.time() - began > STEADY_S else min(pause_s * 2, PAUSE_MAX_S)
            _log.error("API process %d ended with %s; another starts in %.1f s", slot.number, code, pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._ending.wait()
                    return

    async def _one(self, slot: _Slot) -> int:
        """Start a process, serve its link, and wait for its end."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            files = (theirs.fileno(), slot.listener.fileno())
            process = await asyncio.create_subprocess_exec(
                *self.command,
                *map(str, files),
                pass_fds=files,
                start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL,
            )
        slot.process = process
        lost = asyncio.Event()
        slot.link = await WriterLink.connect(ours, self.committer, lambda said: self._heard(slot, said), lost.set)
        slot.link.tell(
            {
                "do": "start",
                "settings": self._settings_of(slot).model_dump(mode="json"),
                "trees": self._trees.to_json(),
                "origin": self.committer.origin,
                "trial": _trial_json(self._trial),
            }
        )
        watching = asyncio.create_task(self._watch(process, lost))
        try:
            return await process.wait()
        finally:
            watching.cancel()
            slot.link.drop()

    async def _watch(self, process: asyncio.subprocess.Process, lost: asyncio.Event) -> None:
        """A process without a link can answer nothing; it gets the time to say so to whom it has taken."""
        await lost.wait()
        await asyncio.sleep(END_GRACE_S)
        _kill(process)

    def _settings_of(self, slot: _Slot) -> Settings:
        """Those of one process: what is done once for all of them, the first one does."""
        if slot.number == 0:
            return self.settings
        idle = self.settings.compliance.model_copy(update={"interval_ms": None})
        return self.settings.model_copy(update={"compliance": idle})

    def _heard(self, slot: _Slot, said: dict[str, Any]) -> None:
        if "figures" in said:
            self.figures.told(slot.number, figures_from_json(said["figures"]))
            slot.told.set()
            return
        if said.get("ask") == "look":
            self.reload()
            return
        if "spoilt" in said:
            key, why = said["spoilt"]
            self.spoilt(tuple(key), str(why))
            return
        if "ask" in said:
            self._start(self._gather(slot))
            return
        if "failed" in said:
            self._failed = str(said["failed"])
        elif "revisions" in said:
            policies, fleet = said["revisions"]
            slot.revisions, slot.reload_fault, slot.ready = (policies, fleet), said["fault"], True
        slot.heard.set()
        self._changed.set()

    async def _gather(self, asker: _Slot) -> None:
        """Have every process tell its figures, and tell all of them to the one that asked. Who does not answer in time
        counts with what it told last."""
        async with self._gathering:
            asked = [slot for slot in self._slots if slot.ready and slot.link is not None]
            for slot in asked:
                slot.told.clear()
                assert slot.link is not None
                slot.link.tell({"do": "figures"})
            with suppress(TimeoutError):
                async with asyncio.timeout(FIGURES_WAIT_S):
                    for slot in asked:
                        await slot.told.wait()
        if asker.link is not None:
            asker.link.tell({"do": "whole", "figures": figures_json(self.figures.whole())})

    def _workers_fault(self) -> str | None:
        ready = [slot for slot in self._slots if slot.ready]
        if len(ready) < len(self._slots):
            return f"{len(ready)} of {len(self._slots)} API processes are ready"
        if len({slot.revisions for slot in ready}) > 1:
            return "the API processes serve different revisions"
        return None

    async def _tell_status(self) -> None:
        """What every process says in ``/readyz``: the log, and the other processes."""
        told: dict[WriterLink, dict[str, Any]] = {}
        while True:
            status = {
                "do": "status",
                "fault": self.committer.fault,
                "workers": self._workers_fault(),
                "sources": self.freshness.to_json(),
            }
            links = [slot.link for slot in self._slots if slot.link is not None]
            for link in links:
                if told.get(link) != status:
                    link.tell(status)
            told = dict.fromkeys(links, status)
            await asyncio.sleep(STATUS_S)

    async def _reload(self) -> None:
        async with self._reloading:
            try:
                trees = await asyncio.to_thread(self.read)
            except PolicydError as error:
                _log.error("reload: %s; the last good revisions go on", error.detail)
                for slot in self._slots:
                    if slot.link is not None:
                        slot.link.tell({"do": "refused", "detail": error.detail})
                return
            if trees is self._trees:
                return
            faults: list[str | None] = []
            for _ in range(RELOAD_TRIES):
                faults = await self._hand_over(trees)
                if not any(faults):
                    self._trees = trees
                if not any(faults) or all(faults):
                    break
            if self.settled(next(filter(None, faults), None)):
                self.reload()
            if self._workers_fault() is not None:
                _log.error("reload: %s", self._workers_fault())

    async def _hand_over(self, trees: TreeFiles) -> list[str | None]:
        """Give the files to every process that is ready, and hear what each made of them."""
        asked = [slot for slot in self._slots if slot.ready and slot.link is not None]
        for slot in asked:
            slot.heard.clear()
            assert slot.link is not None
            slot.link.tell({"do": "reload", "trees": trees.to_json()})
        with suppress(TimeoutError):
            async with asyncio.timeout(RELOAD_WAIT_S):
                for slot in asked:
                    await slot.heard.wait()
        return [slot.reload_fault for slot in asked if slot.ready]

    async def _end(self, keeping: list[asyncio.Task[None]]) -> None:
        """Have the processes finish what they took, then see them gone."""
        self._ending.set()
        for slot in self._slots:
            if slot.link is not None:
                slot.link.tell({"do": "end"})
        await asyncio.wait(keeping, timeout=self.settings.api.request_timeout_ms / 1_000 + END_GRACE_S)
        for slot in self._slots:
            if slot.process is not None:
                _kill(slot.process)
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)


def _trial_json(trial: Trial | None) -> dict[str, Any] | None:
    return None if trial is None else trial.to_json()


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()


async def supervise(supervisor: Supervisor, ready: Callable[[str], None]) -> None:
    """Run until a signal says to end; SIGHUP reloads."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
    await supervisor.run(ready, stop)
