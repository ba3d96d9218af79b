"""Runs an impact on all processors: processes of their own for parts of the window, a bar, and a state to go on from.

Rules: the state is written aside and renamed, so it is whole; it belongs to one question (revisions, window, shard), so
another question begins anew; one process that fails stops the others, and what all had counted is kept. The first
interrupt stops between two pages and keeps the state; the second one ends at once, with the state as it was.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from audit import scan
from policyd.cli.terminal import talk
from policyd.errors import AuditError, Finding, PolicydError
from policyd.services.impact import Candidate, ImpactReport

if TYPE_CHECKING:
    from audit.scan import Range
    from policyd.cli.named_revisions import NamedRevision
    from policyd.services.log_reader import LogReader
    from policyd.settings import Settings

LINE_MAX_BYTES: Final = 64 * 1024 * 1024
STATES_MAX: Final = 16
STATE_EVERY_S: Final = 5.0
READ_DEADLINE_MS: Final = 120_000
"""A page is read beside other processes that read, so the deadline of a person's search would be too short."""


PLACES_PER_PROCESS_MIN: Final = 20_000
"""Fewer are not worth another process, which has to build the candidate too."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: two revisions, a window as it was given, a shard."""

    policies: NamedRevision
    fleet: NamedRevision
    live: tuple[str, str]
    since: str
    until: str | None
    window: tuple[int, int]
    shard: tuple[int, int]
    label: str

    @property
    def name(self) -> str:
        """The same for the same question, whenever it is asked."""
        parts = (self.policies.digest, self.fleet.digest, *self.live, self.since, self.until or "", *self.shard)
        return sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


@dataclass
class Part:
    """What one process does: ranges that are left, and the report so far."""

    left: list[Range]
    total: int
    report: ImpactReport
    done: int = 0
    """Places that are behind, those that are not in the report yet too."""


@dataclass
class Parts:
    """All parts of a run, and where their state is kept."""

    question: Question
    window: tuple[int, int]
    parts: list[Part]
    path: Path
    resumed: bool = False
    interrupted: bool = False
    _written_s: float = 0.0
    _processes: list[asyncio.subprocess.Process] = field(default_factory=list)

    def report(self) -> ImpactReport:
        """Everything that was counted."""
        whole = _empty(self.question, self.window)
        for part in self.parts:
            whole.take(part.report)
        whole.complete = not any(part.left for part in self.parts)
        return whole

    def keep(self) -> None:
        """Write the state. Raises ``AuditError`` when the disk does not take it."""
        document = {
            "window": self.window,
            "parts": [{"left": part.left, "total": part.total, "report": part.report.to_json()} for part in self.parts],
        }
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft.write_bytes(orjson.dumps(document))
            draft.replace(self.path)
            states = sorted(self.path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
            for old in states[:-STATES_MAX]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise AuditError(f"the state of this run cannot be kept in {self.path.parent}: {error.strerror}") from error

    def forget(self) -> None:
        """Remove the state of a run that is over."""
        self.path.unlink(missing_ok=True)

    async def run(self, settings: Settings) -> ImpactReport:
        """Do what is left, on a process for each part. Raises what one of them met."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        try:
            with _bar(sum(part.total for part in self.parts)) as show:
                show(self._done())
                work = [self._one(part, settings, show) for part in self.parts if part.left]
                ended = await asyncio.gather(*work, return_exceptions=True)
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        faults = [fault for fault in ended if isinstance(fault, BaseException)]
        if any(part.left for part in self.parts):
            self.keep()
        if faults:
            raise faults[0]
        return self.report()

    def _done(self) -> int:
        return sum(part.done for part in self.parts)

    def _interrupt(self) -> None:
        if self.interrupted:
            for process in self._processes:
                _kill(process)
            raise KeyboardInterrupt
        self.interrupted = True
        self._stop()

    def _stop(self) -> None:
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()

    async def _one(self, part: Part, settings: Settings, show: Callable[[int], None]) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "policyd.cli.impact_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=LINE_MAX_BYTES,
        )
        self._processes.append(process)
        assert process.stdin is not None  # asked for above
        assert process.stdout is not None
        try:
            process.stdin.write(orjson.dumps(self._job(part, settings)) + b"\n")
            if self.interrupted:
                process.stdin.close()
            whole = False
            async for line in process.stdout:
                whole = self._heard(part, orjson.loads(line))
                show(self._done())
            await process.wait()
            if not whole:
                raise AuditError("a process of this run ended before it had told what it counted")
        except PolicydError:
            self._stop()
            raise
        finally:
            _kill(process)

    def _heard(self, part: Part, said: dict[str, Any]) -> bool:
        """Take what a process told; whether everything that it did is counted in it."""
        if "failed" in said:
            raise _fault(said["failed"])
        part.done = said["done"]
        if "report" not in said:
            return False
        part.left = [(begin, end) for begin, end in said["left"]]
        part.report = ImpactReport.from_json(said["report"])
        now_s = asyncio.get_running_loop().time()
        if now_s - self._written_s >= STATE_EVERY_S and part.left:
            self._written_s = now_s
            self.keep()
        return True

    def _job(self, part: Part, settings: Settings) -> dict[str, Any]:
        chosen = settings.model_dump(mode="json")
        # The processes share the processors already.
        chosen["engine"]["workers"] = 1
        return {
            "settings": chosen,
            "search_deadline_ms": READ_DEADLINE_MS,
            "policies": self.question.policies.to_json(),
            "fleet": self.question.fleet.to_json(),
            "live": self.question.live,
            "left": part.left,
            "total": part.total,
            "report": part.report.to_json(),
        }


async def planned(settings: Settings, reader: LogReader, question: Question, processes: int, *, anew: bool) -> Parts:
    """The parts of a run: those of one that was interrupted, unless it is to begin ``anew``."""
    path = settings.data_dir / "impact" / f"{question.name}.json"
    if anew:
        path.unlink(missing_ok=True)
    kept = None if anew else _kept(path, question)
    if kept is not None:
        return kept
    ranges = await reader.read(lambda connection: scan.ranges(connection, *question.window))
    mine = scan.divided(ranges, *question.shard)
    places = sum(end - begin for begin, end in mine)
    count = max(1, min(processes, places // PLACES_PER_PROCESS_MIN))
    parts = []
    for number in range(1, count + 1):
        left = scan.divided(mine, number, count)
        parts.append(Part(left, sum(end - begin for begin, end in left), _empty(question, question.window)))
    return Parts(question, question.window, parts, path)


def _kept(path: Path, question: Question) -> Parts | None:
    """The state of this question, when there is one that can be read."""
    try:
        found = orjson.loads(path.read_bytes())
        begin, end = found["window"]
        parts = []
        for each in found["parts"]:
            left = [(int(first), int(last)) for first, last in each["left"]]
            total = int(each["total"])
            done = total - sum(last - first for first, last in left)
            parts.append(Part(left, total, ImpactReport.from_json(each["report"]), done))
    except (OSError, ValueError, KeyError, TypeError, PolicydError):
        return None
    return Parts(question, (int(begin), int(end)), parts, path, resumed=True)


def _empty(question: Question, window: tuple[int, int]) -> ImpactReport:
    policies, fleet = question.policies, question.fleet
    candidate = Candidate(policies.digest, fleet.digest, policies.commit, fleet.commit, question.label)
    return ImpactReport(candidate, *window, (question.shard,))


@contextmanager
def _bar(total: int) -> Generator[Callable[[int], None], None, None]:
    """A bar on stderr, where a person is looking."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("replaying"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=talk(), transient=True) as progress:
        task = progress.add_task("replaying", total=total)
        yield lambda done: progress.update(task, completed=done)


def _fault(said: dict[str, Any]) -> PolicydError:
    """The error that a process met, as its class."""
    kinds: list[type[PolicydError]] = [PolicydError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    found = next((kind for kind in kinds if kind.code == said["code"]), PolicydError)
    findings = [Finding(where, message) for where, message in said["findings"]]
    return found(said["detail"], findings=findings, remedy=said["remedy"])


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
