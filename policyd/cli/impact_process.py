"""One process of ``policyd policy impact``: replays its part of the window, and says how far it is.

    python -m policyd.cli.impact_process        a job on the first line of stdin, then what it tells on stdout

    it tells   {"done": 4096, "total": 250000, "left": [[4096, 250000]]}    after each page
               … with "report"                                              now and then, at the end and when stopped
               {"failed": {"code": …, "detail": …, "remedy": …, …}}         instead, when it cannot

Rules: what is told of a page includes the page or is not told; a closed stdin is the word to stop, so that nothing is
left running when the command is gone; it writes nothing but what it tells.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from typing import Any, Final

import orjson

from policyd.bootstrap import make_engine, make_entitlements
from policyd.cli.named_revisions import NamedRevision
from policyd.errors import PolicydError
from policyd.services.activation import Candidates
from policyd.services.impact import ImpactReport
from policyd.services.impact_run import ImpactRun, Progress
from policyd.services.impact_verdicts import Verdicts
from policyd.services.log_place import directory_of
from policyd.services.log_reader import LogReader
from policyd.settings import Settings

REPORT_EVERY_S: Final = 5.0
READ_BYTES: Final = 4_096


class _Teller:
    """Writes lines to the command."""

    def __init__(self) -> None:
        self._reported_s = time.monotonic()

    def page(self, run: ImpactRun) -> None:
        """Say how far it is."""
        due = time.monotonic() - self._reported_s >= REPORT_EVERY_S
        if due:
            self._reported_s = time.monotonic()
        self.tell(run, report=due)

    @staticmethod
    def tell(run: ImpactRun, *, report: bool) -> None:
        """Say how far it is, with everything that was counted when that is due."""
        progress = run.progress
        said: dict[str, Any] = {"done": progress.done, "total": progress.total, "left": progress.left}
        if report:
            said["report"] = run.report.to_json()
        _write(said)


def _write(said: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(said) + b"\n")
    sys.stdout.buffer.flush()


async def _replay(job: dict[str, Any], stopped: threading.Event) -> None:
    settings = Settings.model_validate(job["settings"])
    engine = make_engine(settings.engine)
    reader = await LogReader.open(directory_of(settings), deadline_ms=job["search_deadline_ms"])
    try:
        policies = await NamedRevision.from_json(job["policies"]).policies(reader)
        fleet = await NamedRevision.from_json(job["fleet"]).fleet(reader)
        snapshot = await Candidates(engine, make_entitlements).proved(policies, fleet)
        verdicts = Verdicts(engine, snapshot, settings.engine.deadline_ms)
        progress = Progress([(begin, end) for begin, end in job["left"]], job["total"])
        live = tuple(job["live"])
        run = ImpactRun(reader, verdicts, ImpactReport.from_json(job["report"]), progress, live)
        teller = _Teller()
        await run.run(teller.page, stopped.is_set)
        teller.tell(run, report=True)
    finally:
        await reader.close()
        await engine.close()


def main() -> int:
    """Do one job."""
    job = orjson.loads(sys.stdin.buffer.readline())
    stopped = threading.Event()

    def wait_for_the_end() -> None:
        # Not by the buffered reader, whose lock this thread would still hold when the process ends.
        while os.read(sys.stdin.fileno(), READ_BYTES):
            pass
        stopped.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    try:
        asyncio.run(_replay(job, stopped))
    except PolicydError as error:
        findings = [[finding.where, finding.message] for finding in error.findings]
        said = {"code": error.code, "detail": error.detail, "remedy": error.remedy_text, "findings": findings}
        _write({"failed": said})
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.exit(code)
