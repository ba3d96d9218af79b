"""How fast the log takes decisions, and how much room one needs.

    python bench/bench_commit.py [--entries 20000] [--directory DIR] [--durability power_safe] [--reserve 4]
        [--store postgresql]

``--reserve 4`` also measures decisions that hold budget on accounts of four levels, in turns with such that do not. On
PostgreSQL it measures the naive way beside them: as many connections, and each decision is a transaction of its own
with one guarded UPDATE of the one account that all share, and no record.

Entries are what a decision over 60 pools leaves: a body of about 1.2 KB, a sheet shared by a workload class, a random
request id. The directory must be on the disk that is asked about; a temporary directory in memory says nothing.
With ``--store postgresql`` a server is started in it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from places import Place, places

from audit.record import Blob, Entry, Search, encode
from audit.store import Durability
from policyd.api.server import at_work
from policyd.ledger.rules import Charge, Limit, Reservation
from policyd.services.clock import uuid7
from policyd.services.committer import Committer

POOLS = 60
CLASSES = 200
FLIGHTS = (1, 16, 64, 256)


def sheet(nth: int) -> Blob:
    """A sheet of 60 pools, 40 of them refused, of about 40 KB."""
    verdicts = [
        {
            "pool": f"provider-{pool % 9}-region-{pool}-h100",
            "violations": [
                {
                    "policy": "residency",
                    "rule": f"rule_{pool % 15}",
                    "enforcement": "hard",
                    "location": "policies/residency/residency.rego:10",
                    "message": f"class {nth}: a location of pool {pool} is outside the permitted countries " * 4,
                    "observed": {"processing": "US"},
                    "required": ["DE", "FR", "IE", "NL"],
                    "remedy": "choose a pool whose every location is permitted",
                }
            ],
        }
        for pool in range(POOLS)
    ]
    terms = [("rejected_pool", f"provider-{pool % 9}-region-{pool}-h100") for pool in range(20, POOLS)]
    terms += [("rule", f"rule_{rule}") for rule in range(15)]
    return Blob.of("sheet", encode({"verdicts": verdicts, "class": nth}, bytes(16)), tuple(terms))


def decision(nth: int, sheet_digest: str) -> Entry:
    """One allow: three ranked pools with components and cost."""
    now_us = time.time_ns() // 1_000
    entry_id, request_id = uuid7(now_us), str(uuid4())
    commit = "9f2c" * 10
    search = Search(
        tenant=f"tenant-{nth % 8}",
        project=f"tenant-{nth % 8}-support-chat-{nth % 3}",
        environment="prod",
        principal=f"service:gateway-{nth % 20}",
        outcome="allow",
        pool=f"onprem-fra-h100-{nth % 20}",
        provider="onprem",
        country="DE",
        model="llama-3.1-70b-instruct",
        model_version="2026-01-15",
        classification="restricted",
        sla_class="realtime",
        mode="enforce",
        policy_commit=commit,
        fleet_commit=commit,
        request_id=request_id,
        sheet=sheet_digest,
    )
    ranked = [
        {
            "pool": f"onprem-fra-h100-{rank}",
            "score": 871 - rank,
            "scores": [1000, 800, 640, 720, 500],
            "micro_usd": 5120,
        }
        for rank in range(3)
    ]
    body = {
        "id": entry_id,
        "kind": "decision",
        "time": now_us,
        "principal": search.principal,
        "request_id": request_id,
        "outcome": "allow",
        "workload": {
            "tenant": search.tenant,
            "project": search.project,
            "environment": "prod",
            "model": search.model,
            "model_version": search.model_version,
            "data": {"classification": "restricted", "categories": ["personal"], "sources": ["crm-eu"]},
            "demand": {"input_tokens": 1200 + nth % 4_000, "max_output_tokens": 400, "requests_per_hour": 3600},
            "sla_class": "realtime",
        },
        "ranked": ranked,
        "sheet": sheet_digest,
        "facts": sheet_digest,
        "policy": {"commit": commit, "digest": sheet_digest},
        "fleet": {"commit": commit, "digest": sheet_digest},
        "obligations": [{"name": "max_output_tokens", "value": 400}],
    }
    return Entry("decision", entry_id, now_us, encode(body, os.urandom(16)), search, (("data_source", "crm-eu"),))


def charges(levels: int) -> list[tuple[Charge, ...]]:
    """What decisions hold, for each of the tenants and projects of ``decision``, from the organisation down."""
    limits = []
    for nth in range(24):
        tenant = f"tenant-{nth % 8}"
        project = f"{tenant}/support-chat-{nth % 3}"
        paths = ("*", tenant, project, f"{project}/prod")[:levels]
        limits.append(tuple(Charge(Limit(path, "micro_usd", "month", 2**50, "Europe/Berlin"), 5120) for path in paths))
    return limits


async def load(
    committer: Committer, entries: list[tuple[Entry, Blob]], in_flight: int, levels: int = 0
) -> tuple[float, list[float]]:
    """Entries per second and latencies in ms of a closed loop with this many callers."""
    held = charges(levels) if levels else []
    latencies: list[float] = []
    waiting = enumerate(entries)

    async def caller() -> None:
        for nth, (entry, used) in waiting:
            started = time.perf_counter()
            reservation = Reservation(entry.id, held[nth % 24], 900_000_000) if held else None
            await committer.submit(entry, (used,), None, reservation)
            latencies.append((time.perf_counter() - started) * 1_000)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return len(entries) / (time.perf_counter() - started), sorted(latencies)


async def run(place: Place, entries_max: int, durability: Durability, levels: int) -> None:
    """Print the table. Entries are made before the clock starts: this measures the log, not the decision."""
    sheets = [sheet(nth) for nth in range(CLASSES)]
    rates: dict[int, float] = {}
    recorded = 0
    with place.directories[0] as directory:
        committer = await Committer.open(directory, durability=durability)
        for used in sheets:
            await committer.submit(decision(0, used.digest), (used,))
        await committer.close()
        before_bytes = place.size_bytes()
        committer = await Committer.open(directory, durability=durability)
        print(f"{'in flight':>10} {'entries/s':>10} {'p50 ms':>8} {'p99 ms':>8}")
        for in_flight in FLIGHTS:
            count = max(in_flight, entries_max * in_flight // max(FLIGHTS[-2], in_flight))
            entries = [(decision(nth, used.digest), used) for nth in range(count) for used in (sheets[nth % CLASSES],)]
            rates[in_flight], latencies = await load(committer, entries, in_flight)
            recorded += count
            p50, p99 = latencies[count // 2], latencies[count * 99 // 100]
            print(f"{in_flight:>10} {rates[in_flight]:>10,.0f} {p50:>8.2f} {p99:>8.2f}")
        if levels:
            await compare(committer, sheets, entries_max, levels, place.address)
        await committer.close()
        grown_bytes = place.size_bytes() - before_bytes
    print(f"grouped (64 in flight) / one by one: {rates[64] / rates[1]:.1f} x")
    body_bytes = len(decision(0, sheets[0].digest).body)
    print(f"bytes per decision: {grown_bytes / recorded:,.0f} (body {body_bytes:,}, {recorded:,} decisions)")
    print(f"bytes per sheet of {POOLS} pools: {before_bytes / CLASSES:,.0f} (content {len(sheets[0].content):,})")


async def naive(address: str, count: int, in_flight: int) -> float:
    """Decisions per second when each one updates the account of all by itself."""
    import psycopg

    make = (
        "CREATE TABLE IF NOT EXISTS naive_account "
        '(path text PRIMARY KEY, reserved bigint NOT NULL, spent bigint NOT NULL, "limit" bigint NOT NULL)'
    )
    hold = (
        "UPDATE naive_account SET reserved = reserved + %(cost)s "
        'WHERE path = %(path)s AND reserved + spent + %(cost)s <= "limit"'
    )
    first = await psycopg.AsyncConnection.connect(address, autocommit=True)
    connections = [first] + [
        await psycopg.AsyncConnection.connect(address, autocommit=True) for _ in range(in_flight - 1)
    ]
    await first.execute(make)
    await first.execute("INSERT INTO naive_account VALUES ('*', 0, 0, %s) ON CONFLICT DO NOTHING", (2**50,))
    turns = iter(range(count))

    async def caller(connection: psycopg.AsyncConnection) -> None:
        for _ in turns:
            done = await connection.execute(hold, {"cost": 5120, "path": "*"}, prepare=True)
            assert done.rowcount == 1

    started = time.perf_counter()
    await asyncio.gather(*(caller(connection) for connection in connections))
    rate = count / (time.perf_counter() - started)
    for connection in connections:
        await connection.close()
    return rate


async def compare(committer: Committer, sheets: list[Blob], entries_max: int, levels: int, address: str | None) -> None:
    """Print the rates without and with reservations at 64 in flight, in turns, so that a busy machine disturbs both."""
    plain, reserved, alone, latencies = [], [], [], []
    for nth in range(3):
        for rates, of in ((plain, 0), (reserved, levels)):
            used = [sheets[(nth + place) % CLASSES] for place in range(entries_max // 2)]
            entries = [(decision(place, blob.digest), blob) for place, blob in enumerate(used)]
            rate, found = await load(committer, entries, 64, of)
            rates.append(rate)
            if of:
                latencies += found
        if address is not None:
            alone.append(await naive(address, max(64, entries_max // 10), 64))
    p99 = sorted(latencies)[len(latencies) * 99 // 100]
    with_, without = sorted(reserved)[1], sorted(plain)[1]
    print(f"reserved over {levels} levels, 64 in flight: {with_:,.0f}/s, p99 {p99:.2f} ms")
    print(f"reserved / plain: {with_ / without:.2f} ({without:,.0f}/s plain)")
    if alone:
        print(f"reserved / naive guarded UPDATE: {with_ / sorted(alone)[1]:.1f} x ({sorted(alone)[1]:,.0f}/s naive)")


def main() -> None:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument("--directory", type=Path, default=None)
    parser.add_argument("--durability", choices=("power_safe", "process_safe"), default="power_safe")
    parser.add_argument("--reserve", type=int, default=0, choices=range(5))
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    flags = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=flags.directory or Path.cwd(), prefix=".bench-commit-") as scratch,
        places(Path(scratch), flags.store) as place,
        at_work(),  # as in the process that serves
    ):
        asyncio.run(run(place, flags.entries, flags.durability, flags.reserve))


if __name__ == "__main__":
    main()
