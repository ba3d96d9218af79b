"""What a second replica on one PostgreSQL adds, with database and replicas on this machine.

    python bench/bench_replicas.py [--entries 10000] [--replicas 2] [--directory DIR]

Each replica is a process with 64 in flight. In turns, one of them writes alone and all of them write at once.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from bench_commit import CLASSES, decision, load, sheet
from places import places

from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory

TURNS = 3
IN_FLIGHT = 64


async def _serve(directory: DataDirectory, entries_max: int, orders: Connection) -> None:
    sheets = [sheet(nth) for nth in range(CLASSES)]
    with directory:
        committer = await Committer.open(directory)
        for used in sheets:
            await committer.submit(decision(0, used.digest), (used,))
        while True:
            made = [
                (decision(nth, used.digest), used) for nth in range(entries_max) for used in (sheets[nth % CLASSES],)
            ]
            orders.send("ready")
            if await asyncio.to_thread(orders.recv) == "end":
                break
            orders.send(await load(committer, made, IN_FLIGHT))
        await committer.close()


def replica(directory: DataDirectory, entries_max: int, orders: Connection) -> None:
    """One process: waits for its turn, writes, tells its rate and latencies."""
    asyncio.run(_serve(directory, entries_max, orders))


def turn(ends: list[Connection]) -> tuple[float, list[float]]:
    """These replicas at once: entries a second of all, and every latency."""
    for end in ends:
        assert end.recv() == "ready"
    for end in ends:
        end.send("go")
    told = [end.recv() for end in ends]
    return sum(rate for rate, _ in told), [each for _, latencies in told for each in latencies]


def run(path: Path, entries_max: int, replicas: int) -> None:
    """Print the rates and their ratio."""
    with places(path, "postgresql", replicas) as place:
        pairs = [multiprocessing.Pipe() for _ in place.directories]
        processes = [
            multiprocessing.Process(target=replica, args=(directory, entries_max, child))
            for directory, (_, child) in zip(place.directories, pairs, strict=True)
        ]
        for process in processes:
            process.start()
        ends = [end for end, _ in pairs]
        alone, together, latencies = [], [], []
        for _ in range(TURNS):
            alone.append(turn(ends[:1])[0])
            rate, found = turn(ends)
            together.append(rate)
            latencies += found
        for end in ends:
            end.recv()
            end.send("end")
        for process in processes:
            process.join(60)
    latencies.sort()
    p50, p99 = latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100]
    print(f"one replica: {median(alone):,.0f} entries/s; {replicas} at once: {median(together):,.0f}")
    print(f"at once / one: {median(together) / median(alone):.2f} x; p50 {p50:.1f} ms, p99 {p99:.1f} ms of all")


def main() -> None:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--directory", type=Path, default=None)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=flags.directory or Path.cwd(), prefix=".bench-replicas-") as scratch:
        run(Path(scratch), flags.entries, flags.replicas)


if __name__ == "__main__":
    main()
