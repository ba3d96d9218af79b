"""Replay a trace of real LLM requests as decisions, and count what comes of them.

    python bench/replay_trace.py [--trace FILE] [--in-flight 64] [--engine embedded|opa]

The trace gives token counts (columns ContextTokens and GeneratedTokens); who asks is taken from the example workloads
in turn, so that a bank, a hospital, a start-up and the others send the same traffic. Every decision is durable.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import itertools
import tempfile
import time
from collections import Counter
from pathlib import Path

import orjson
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from policyd.bootstrap import LOCAL, Running, running, shipped
from policyd.core.sheet import Sheet
from policyd.core.workload import DecisionRequest
from policyd.documents import read_yaml
from policyd.errors import PolicydError
from policyd.services.answers import Made
from policyd.settings import load_settings

ROOT = Path(__file__).resolve().parent.parent
EXCERPT = ROOT / "examples" / "traces" / "azure-llm-2023-conversation-excerpt.csv"


def workloads() -> list[tuple[str, DecisionRequest]]:
    """The example workloads that ask for single requests, by name."""
    found = []
    for path in sorted(shipped("workloads").glob("*.yaml")):
        request = DecisionRequest.model_validate_json(orjson.dumps(read_yaml(path.read_bytes(), str(path)).value))
        if request.workload.scope != "deployment":
            found.append((path.stem, request))
    return found


def requests(trace: Path) -> list[tuple[str, DecisionRequest]]:
    """Each row of the trace as a request of the next workload."""
    with trace.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    made = []
    for row, (name, base) in zip(rows, itertools.cycle(workloads()), strict=False):
        tokens = {"input_tokens": int(row["ContextTokens"]), "max_output_tokens": int(row["GeneratedTokens"])}
        demand = base.workload.demand.model_copy(update=tokens)
        made.append((name, base.model_copy(update={"workload": base.workload.model_copy(update={"demand": demand})})))
    return made


class Tally:
    """What the decisions came to."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.pools: Counter[str] = Counter()
        self.rules: Counter[str] = Counter()

    def add(self, name: str, made: Made) -> None:
        """Count one decision."""
        decision = made.decision
        self.outcomes[name, decision.denied_by or decision.outcome] += 1
        if decision.ranked:
            self.pools[decision.ranked[0].row.pool] += 1
        self.rules.update(rules_of(made.sheet) | {"core." + violation["rule"] for _, violation in decision.refused})


RULES: dict[str, frozenset[str]] = {}


def rules_of(sheet: Sheet) -> frozenset[str]:
    """The rules by which a sheet refuses some pool; worked out once a sheet."""
    if sheet.digest not in RULES:
        refusals = (violation for entry in sheet.refused for violation in entry.violations)
        RULES[sheet.digest] = frozenset(f"{violation['policy']}.{violation['rule']}" for violation in refusals)
    return RULES[sheet.digest]


async def replay(up: Running, asked: list[tuple[str, DecisionRequest]], in_flight: int) -> tuple[Tally, float]:
    """Decide everything with so many callers; the tally, and the seconds that took."""
    tally, waiting = Tally(), iter(enumerate(asked))
    with Progress(transient=True) as progress:
        task = progress.add_task("deciding", total=len(asked))

        async def caller() -> None:
            for number, (name, request) in waiting:
                try:
                    answered = await up.decisions.decide(request, LOCAL, f"trace-{number}")
                    tally.add(name, answered.made)
                except PolicydError as error:
                    tally.outcomes[name, error.code] += 1
                if number % 256 == 0:
                    progress.update(task, completed=number)

        begin = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(in_flight)))
        seconds = time.perf_counter() - begin
    return tally, seconds


def report(console: Console, tally: Tally, up: Running, decided: int, seconds: float) -> None:
    """The counts as tables."""
    for title, rows in (
        (
            "by workload and outcome",
            [(f"{name}: {outcome}", n) for (name, outcome), n in sorted(tally.outcomes.items())],
        ),
        ("by first choice", tally.pools.most_common(15)),
        ("refused by (decisions in which the rule refused some pool)", tally.rules.most_common(15)),
    ):
        table = Table("", "decisions", title=title, title_justify="left")
        for name, count in rows:
            table.add_row(str(name), f"{count:,}")
        console.print(table)
    counts = up.book.counts
    console.print(
        f"{decided:,} decisions in {seconds:.1f} s: {decided / seconds:,.0f}/s, all durable; {counts.computed} sheets "
        f"computed, {counts.joined} awaited, {counts.hits:,} found; {counts.questions} questions asked"
    )


async def main() -> None:
    """Replay and report."""
    parser = argparse.ArgumentParser(description="Replay a trace as decisions.")
    parser.add_argument("--trace", type=Path, default=EXCERPT)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--engine", choices=["embedded", "opa"], default="embedded")
    options = parser.parse_args()
    asked = requests(options.trace)
    with tempfile.TemporaryDirectory() as scratch:
        settings = load_settings(flags={"data_dir": scratch, "engine": {"kind": options.engine, "deadline_ms": 10_000}})
        async with running(settings) as up:
            tally, seconds = await replay(up, asked, options.in_flight)
            report(Console(), tally, up, len(asked), seconds)


if __name__ == "__main__":
    asyncio.run(main())
