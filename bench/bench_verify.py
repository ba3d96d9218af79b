"""How fast a log is verified offline, and that memory does not grow with it.

    python bench/bench_verify.py [--entries 100000] [--directory DIR]

An export of two lengths, with bodies of about 1.2 KB and a checkpoint after each 4,096 entries, is verified in a
process of its own each. Times are of the processor, so that a busy machine disturbs them less, and of the clock.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from audit.checkpoint import Checkpoint
from audit.export import Row, export_lines
from audit.note import SeedSigner
from audit.tree import Edge, leaf_hash
from audit.verify import BUFFER_BYTES, verify_export

ORIGIN = "bench.example/log"
SIGNER = SeedSigner(ORIGIN, bytes(range(32)))
CHECKPOINT_ENTRIES = 4_096
PADDING = b"x" * 1_130
TRIES = 3


class Made:
    """A log that is made as it is read."""

    origin = ORIGIN

    def __init__(self, entries: int) -> None:
        self.entries = entries

    def checkpoints(self, after: int) -> Iterator[tuple[int, bytes]]:
        """One after each so many entries."""
        edge = Edge()
        for size in range(CHECKPOINT_ENTRIES, self.entries + 1, CHECKPOINT_ENTRIES):
            edge.extend([row.leaf_hash for row in self.rows(edge.size, size)])
            if size > after:
                yield size, Checkpoint(ORIGIN, size, edge.root()).sign(SIGNER)

    def rows(self, start: int, end: int) -> Iterator[Row]:
        """Entries of about the length that decisions have."""
        for index in range(start, end):
            name = str(UUID(int=(0x0199 << 112) | (7 << 76) | (2 << 62) | index)).encode()
            body = b'{"id":"%b","outcome":"allow","padding":"%b"}' % (name, PADDING)
            yield Row(index, leaf_hash(body), body)


def measured(path: Path) -> None:
    """In a process of its own: the best of some tries, and the most memory that was ever in use."""
    best_cpu, best_clock, entries = 1e9, 1e9, 0
    for _ in range(TRIES):
        clock, cpu = time.perf_counter(), time.process_time()
        with path.open("rb", buffering=BUFFER_BYTES) as file:
            verdict = verify_export(file, keys=[SIGNER.key])
        best_cpu, best_clock = (
            min(best_cpu, time.process_time() - cpu),
            min(best_clock, time.perf_counter() - clock),
        )
        assert verdict.fault is None
        entries = verdict.entries
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{entries:>10,} {entries / best_cpu:>14,.0f} {entries / best_clock:>14,.0f} {peak_kib:>12,}")


def main() -> None:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--directory", type=Path, default=None)
    parser.add_argument("--measure", type=Path, default=None, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure is not None:
        measured(flags.measure)
        return
    print(f"{'entries':>10} {'entries/cpu-s':>14} {'entries/s':>14} {'peak KiB':>12}", flush=True)
    with tempfile.TemporaryDirectory(dir=flags.directory or Path.cwd(), prefix=".bench-verify-") as scratch:
        for entries in (flags.entries // 10, flags.entries):
            path = Path(scratch) / "export.jsonl"
            whole = max(1, entries // CHECKPOINT_ENTRIES) * CHECKPOINT_ENTRIES
            with path.open("wb") as file:
                file.writelines(export_lines(Made(whole), SIGNER.key, Edge()))
            subprocess.run([sys.executable, __file__, "--measure", str(path)], check=True)


if __name__ == "__main__":
    main()
