"""How long a million logged decisions take to be replayed on a candidate, and what becomes of them.

    python bench/bench_impact.py [--decisions 1000000] [--made 2000] [--processes 2]

Makes a log of real decisions of the trace's requests, and copies its rows, a second earlier each time, until there are
enough: bodies, sheets and facts are those that a server wrote. Classes and requests come back, as they do within a day;
with ``--made`` more of them are different. Then runs ``policyd policy impact`` on it; prints decisions a second, and
how many come out as they were, which must be all. Wanted: 1,000,000 in 60 s on two processors.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from replay_trace import EXCERPT, requests
from sqlalchemy import Connection

from audit import store
from audit.tables import ENTRY
from policyd.bootstrap import LOCAL, running
from policyd.services.data_directory import LOG_FILE
from policyd.settings import load_settings

EARLIER_US = 1_000_000
IN_FLIGHT = 32


async def decide(folder: Path, count: int) -> None:
    """Real decisions in a new log."""
    settings = load_settings(flags={"data_dir": str(folder), "engine": {"deadline_ms": 10_000}})
    asked = itertools.islice(itertools.cycle(requests(EXCERPT)), count)
    async with running(settings) as up:

        async def caller() -> None:
            for _, request in asked:
                await up.decisions.decide(request, LOCAL, "bench")

        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))


def copy(connection: Connection, made: int, number: int) -> None:
    """The decisions once more, in a row behind the log and a little earlier in time."""
    first, start = made + 100, (made + 100) * number
    columns = {name: f'"{name}"' for name in ENTRY.c.keys()}  # noqa: SIM118 - it iterates over columns
    columns |= {
        "index": f'"index" + {start}',
        "id": f"""CAST(printf('%016d', "index" + {start}) AS BLOB)""",
        "time_us": f"time_us - {number * EARLIER_US}",
        "request_id": "NULL",
    }
    names, chosen = ", ".join(f'"{name}"' for name in columns), f'"index" < {first} AND kind = 0'
    with connection.begin():
        connection.exec_driver_sql(
            f"INSERT INTO entry ({names}) SELECT {', '.join(columns.values())} FROM entry WHERE {chosen}"
        )
        connection.exec_driver_sql(
            f'INSERT INTO body SELECT body."index" + {start}, body FROM body JOIN entry USING ("index") '
            f'WHERE "index" < {first} AND kind = 0'
        )


def fill(folder: Path, decisions: int, made: int) -> None:
    """A log with so many decisions."""
    asyncio.run(decide(folder, made))
    engine = store.open_sqlite(folder / LOG_FILE, "process_safe", origin=None)
    with engine.connect() as connection:
        for number in range(1, decisions // made):
            copy(connection, made, number)
    engine.dispose()


def main() -> None:
    """Fill, replay, print."""
    parser = argparse.ArgumentParser(description="Bench of policyd policy impact.")
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--made", type=int, default=2_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a data directory that is filled once and asked again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch) / "data"
        if not folder.exists():
            fill(folder, options.decisions, options.made)
        begun = time.perf_counter()
        command = (sys.executable, "-m", "policyd.cli.main", "policy", "impact", "--data-dir", str(folder))
        asked = ("--since", "8d", "--anew", "-o", "json", "--processes", str(options.processes))
        done = subprocess.run((*command, *asked), check=True, capture_output=True)
        seconds = time.perf_counter() - begun
    report = json.loads(done.stdout)
    print(
        f"{report['replayed']:,} decisions in {seconds:.1f} s on {options.processes} processes: "
        f"{report['replayed'] / seconds:,.0f}/s; {report['same']:,} as recorded, {report['flips']:,} flips, "
        f"{sum(report['not_replayed'].values()):,} not replayed"
    )


if __name__ == "__main__":
    main()
