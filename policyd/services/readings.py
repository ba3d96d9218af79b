"""Where the numbers of ``policyd.telemetry`` are read that a running policyd has anyway.

Rules: a reading changes nothing, waits for nothing and may be taken from another thread; what is not known gives no
value rather than a guess.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Protocol

from policyd.core.snapshot import Snapshot
from policyd.errors import PolicydError
from policyd.ports import Engine
from policyd.services.decisions import WrittenLog
from policyd.services.facts_holder import FactsHolder
from policyd.services.sheets import SheetBook
from policyd.telemetry import Sample, Telemetry

_PROC: Final = Path("/proc/self")


class SnapshotNow(Protocol):
    """The live snapshot."""

    def current(self) -> Snapshot: ...


def observe_parts(
    telemetry: Telemetry,
    *,
    engine: Engine,
    book: SheetBook,
    committer: WrittenLog,
    facts: FactsHolder,
    snapshots: SnapshotNow,
) -> None:
    """Tell the telemetry where to read."""
    _observe_sheets(telemetry, book)
    _observe_engine(telemetry, engine)
    _observe_log(telemetry, committer)
    telemetry.observe("policyd.snapshot.info", lambda: _snapshot(snapshots))
    telemetry.observe("policyd.facts.age", lambda: _known(facts.read_age_s))
    telemetry.observe("policyd.facts.observed.age", lambda: _known(facts.observed_age_s))
    build = (_version(), platform.python_version())
    telemetry.observe("policyd.build.info", lambda: [((*build, engine.name), 1)])
    observe_process(telemetry)


def _observe_sheets(telemetry: Telemetry, book: SheetBook) -> None:
    counts = book.counts

    def results() -> list[Sample]:
        return [
            (("found",), counts.hits),
            (("made",), counts.computed),
            (("joined",), counts.joined),
            (("refused",), counts.refused),
        ]

    def questions() -> list[Sample]:
        return [(("engine",), counts.questions - counts.questions_known), (("memory",), counts.questions_known)]

    telemetry.observe("policyd.sheets", results)
    telemetry.observe("policyd.sheets.failed", lambda: [((), counts.failed)])
    telemetry.observe("policyd.sheets.held", lambda: [((), book.held)])
    telemetry.observe("policyd.sheets.in_progress", lambda: [((), book.in_progress)])
    telemetry.observe("policyd.sheet.questions", questions)


def _observe_engine(telemetry: Telemetry, engine: Engine) -> None:
    counts = engine.counts

    def ends() -> list[Sample]:
        return [(("timeout",), counts.killed), (("crash",), counts.crashed), (("recycled",), counts.recycled)]

    telemetry.observe("policyd.engine.timeouts", lambda: [((), counts.timeouts)])
    telemetry.observe("policyd.engine.worker.ends", ends)
    telemetry.observe("policyd.engine.workers", lambda: [((), len(engine.worker_pids))])


def _observe_log(telemetry: Telemetry, committer: WrittenLog) -> None:
    telemetry.observe("policyd.commit.queue", lambda: [((), committer.queued_entries)])
    telemetry.observe("policyd.log.entries", lambda: [((), committer.entries_total)])
    telemetry.observe("policyd.log.healthy", lambda: [((), int(committer.healthy))])


def observe_process(telemetry: Telemetry) -> None:
    """What the machine says of this process."""
    started = _started_s()
    telemetry.observe("process.resident_memory", lambda: _known(_resident_bytes()))
    telemetry.observe("process.open_fds", lambda: _known(_open_fds()))
    telemetry.observe("process.max_fds", lambda: [((), resource.getrlimit(resource.RLIMIT_NOFILE)[0])])
    telemetry.observe("process.cpu", lambda: [((), time.process_time())])
    telemetry.observe("process.start_time", lambda: _known(started))


def _known(value: float | None) -> Iterable[Sample]:
    return [] if value is None else [((), value)]


def _snapshot(snapshots: SnapshotNow) -> list[Sample]:
    try:
        live = snapshots.current()
    except PolicydError:
        return []
    policies, fleet = live.policies, live.fleet
    return [((policies.digest, policies.commit or "", fleet.digest, fleet.commit or ""), 1)]


def _resident_bytes() -> int | None:
    try:
        return int((_PROC / "statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return None


def _open_fds() -> int | None:
    try:
        return len(os.listdir(_PROC / "fd"))
    except OSError:
        return None


def _started_s() -> float | None:
    """The kernel's word, in ticks since it booted; None where there is none."""
    try:
        ticks = int((_PROC / "stat").read_text().rpartition(")")[2].split()[19])
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except (OSError, StopIteration):
        return None
    return int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


def _version() -> str:
    try:
        return version("policyd")
    except PackageNotFoundError:
        return "0"
