"""How fast a decision is, with the sheet known and unknown, and what a running policyd weighs.

    python bench/bench_decide.py [--opa PATH]

Every figure of a comparison comes from this one run; on a busy machine trust the ratios, not the times. The pools are
those of the example fleet, repeated under other ids where more are asked for; the policies are the shipped ones.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import contextlib
import copy
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import orjson
from rich.console import Console
from rich.table import Table

from audit.record import digest
from policyd.bootstrap import make_entitlements, running, shipped
from policyd.core.decide import decide
from policyd.core.facts import Facts, PoolFacts
from policyd.core.fleet import Fleet, FleetDocument
from policyd.core.inputs import pool_side
from policyd.core.principal import LOCAL
from policyd.core.snapshot import Snapshot
from policyd.core.workload import DecisionRequest, WorkloadRequest
from policyd.engines.embedded import EmbeddedEngine
from policyd.engines.entitlements import CasbinEntitlements
from policyd.engines.opa import OpaEngine
from policyd.ports import Engine, PolicyTree
from policyd.revisions.fleet_files import load_fleet
from policyd.revisions.policy_files import load_policy_tree
from policyd.services.clock import now_us
from policyd.services.frames import Framed, Frames
from policyd.services.sheets import SheetBook, SheetLimits
from policyd.settings import load_settings

MODEL = "llama-3.1-70b-instruct"
LARGE = "embedded, 1,000 pools"
LIMITS = SheetLimits(
    cold_per_tenant_burst=10**6, cold_per_tenant_per_s=10**6, cold_per_tenant_max=64, deadline_ms=30_000
)
ROWS: list[tuple[str, str, str]] = []


def say(what: str, figure: str, wanted: str = "") -> None:
    """Keep a row, and show that something happens."""
    ROWS.append((what, figure, wanted))
    print(f"  {what}: {figure}", file=sys.stderr)


def fleet_of(base: Fleet, count: int, accept: Callable[[dict[str, Any]], bool]) -> Fleet:
    """A fleet of ``count`` pools: the accepted ones of the example, again and again under other ids."""
    document = base.document.model_dump(mode="json", exclude_none=True)
    accepted = [pool for pool in document["pools"] if accept(pool)]
    document["pools"] = []
    for number, pool in enumerate(itertools.islice(itertools.cycle(accepted), count)):
        clone = copy.deepcopy(pool)
        clone["id"] = f"{pool['id']}-{number // len(accepted)}" if number >= len(accepted) else pool["id"]
        document["pools"].append(clone)
    encoded = orjson.dumps(document)
    return Fleet(FleetDocument.model_validate_json(encoded), digest(encoded), groups=base.groups)


def offers(pool: dict[str, Any]) -> bool:
    """Whether a pool serves the model of the bench."""
    return any(offering["model"] == MODEL for offering in pool.get("offerings", []))


def facts_of(fleet: Fleet) -> Facts:
    """Free pools, nothing spent."""
    spent = {
        path: 0
        for tenant in fleet.tenants.values()
        for path in (tenant.name, *(f"{tenant.name}/{project.name}" for project in tenant.projects))
    }
    return Facts(dict.fromkeys(fleet.pools, PoolFacts(10_000, 0, True)), spent, "sha256:bench")


def request(tenant: str, **demand: int) -> WorkloadRequest:
    """A request of a tenant for the model of the bench."""
    return WorkloadRequest.model_validate({"tenant": tenant, "model": MODEL, "demand": demand})


def micros(run: Callable[[], object], rounds: int) -> float:
    """Median microseconds of a call."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - begin)
    return median(times) / 1_000


class Bench:
    """One engine and the tree that it serves."""

    def __init__(self, engine: Engine, tree: PolicyTree) -> None:
        self.engine, self.tree, self.book = engine, tree, SheetBook(engine, LIMITS)

    async def snapshot(self, fleet: Fleet) -> Snapshot:
        """The shipped policies over a fleet."""
        policies = await self.engine.load(self.tree)
        entitlements = make_entitlements(self.tree.casbin_model, self.tree.casbin_rows, fleet)
        return Snapshot(policies, fleet, entitlements)

    async def cold(self, snapshot: Snapshot, framed: Framed) -> object:
        """Make a sheet with nothing known before."""
        self.book.clear()
        return await self.book.make(snapshot, framed.key, framed.normalised, framed.document(snapshot))


async def known(bench: Bench, base: Fleet) -> None:
    """Decide with the sheet known: every pool eligible, the worst case for ranking."""
    for count, wanted in ((20, "<= 100 us"), (200, "<= 500 us")):
        eligible = await eligible_pools(bench, base)
        fleet = fleet_of(base, count, lambda pool, ids=eligible: pool["id"] in ids)  # type: ignore[misc]
        snapshot, facts, frames = await bench.snapshot(fleet), facts_of(fleet), Frames()
        asked = request("spark-startup", input_tokens=500)
        framed = frames.place(snapshot, asked, LOCAL, facts, now_us())
        sheet = await bench.book.make(snapshot, framed.key, framed.normalised, framed.document(snapshot))

        def whole(snapshot: Any = snapshot, asked: Any = asked, facts: Any = facts, frames: Any = frames) -> object:
            placed = frames.place(snapshot, asked, LOCAL, facts, now_us())
            found = bench.book.find(snapshot, placed.key)
            assert found is not None
            return decide(placed.normalised.workload, found, facts)

        p50 = micros(whole, 2_000)
        say(f"decide, sheet known, {count} pools ({len(sheet.rows)} eligible), p50", f"{p50:.0f} us", wanted)


async def eligible_pools(bench: Bench, base: Fleet) -> set[str]:
    """The pools of the example fleet that the start-up may use."""
    snapshot, facts = await bench.snapshot(base), facts_of(base)
    framed = Frames().place(snapshot, request("spark-startup"), LOCAL, facts, now_us())
    sheet = await bench.book.make(snapshot, framed.key, framed.normalised, framed.document(snapshot))
    return {row.pool for row in sheet.rows}


async def unknown(embedded: Bench, opa: Bench | None, base: Fleet, binary: str | None) -> None:
    """Make sheets with nothing known, on both engines, beside OPA evaluating every pool for itself.

    The contestants take turns, so that a slow moment of the machine falls on all of them.
    """
    sixty, thousand = fleet_of(base, 60, offers), fleet_of(base, 1_000, offers)
    contestants: dict[str, Callable[[], Awaitable[object]]] = {}
    for name, bench, fleet in (
        ("embedded", embedded, sixty),
        ("opa", opa, sixty),
        ("embedded 1,000", embedded, thousand),
    ):
        if bench is not None:
            snapshot = await bench.snapshot(fleet)
            snapshot.grouping(MODEL)
            framed = Frames().place(snapshot, request("eu-bank"), LOCAL, facts_of(fleet), now_us())
            contestants[name] = lambda bench=bench, snapshot=snapshot, framed=framed: bench.cold(snapshot, framed)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    alone: list[float] = []
    with contextlib.ExitStack() as stack:
        snapshot = await embedded.snapshot(sixty)
        framed = Frames().place(snapshot, request("eu-bank"), LOCAL, facts_of(sixty), now_us())
        ask = stack.enter_context(opa_unshared(binary, snapshot, framed)) if binary is not None else None
        for turn in range(13):
            for name, run in contestants.items():
                begin = time.perf_counter_ns()
                await run()
                if turn > 1:
                    times[name].append((time.perf_counter_ns() - begin) / 1e6)
            if ask is not None and (eval_ms := ask()) and turn > 1:
                alone.append(eval_ms)
    middle = {name: median(values) for name, values in times.items()}
    own = median(alone) if alone else None
    if own is not None:
        say("OPA's own evaluation, 60 pools x all packages, eval timer", f"{own:.1f} ms")
    for name, wanted in (("embedded", "<= 1 x OPA"), ("opa", "")):
        if name in middle:
            ratio = "" if own is None else f" = {middle[name] / own:.2f} x OPA"
            say(f"sheet unknown, {name} engine, 60 pools", f"{middle[name]:.1f} ms{ratio}", wanted)
    ratio = middle["embedded 1,000"] / middle["embedded"]
    say(
        "sheet unknown, embedded engine, 1,000 pools",
        f"{middle['embedded 1,000']:.1f} ms = {ratio:.2f} x of 60",
        "<= 4 x",
    )


@contextlib.contextmanager
def opa_unshared(binary: str, snapshot: Snapshot, framed: Framed) -> Iterator[Callable[[], float]]:
    """A question that evaluates every package over every pool in one query, and gives OPA's own timer in ms."""
    driver = """package driver

results := [verdicts |
	some side in input.pools
	verdicts := data.placement with input as object.union(input.class, side)
]
"""
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "driver.rego").write_text(driver)
        address = "127.0.0.1:18282"
        command = [binary, "run", "--server", "--addr", address, "--log-level", "error", "--ignore", "*_test.rego"]
        with subprocess.Popen([*command, str(shipped("policies")), scratch], stderr=subprocess.DEVNULL) as server:
            pools = [pool_side(pool, MODEL, snapshot.fleet) for pool in snapshot.fleet.pools.values()]
            asked = {"input": {"class": framed.document(snapshot), "pools": pools}}
            url = f"http://{address}/v1/data/driver/results?metrics=true&strict-builtin-errors=true"
            with httpx.Client(transport=httpx.HTTPTransport(retries=30), timeout=30) as client:

                def ask() -> float:
                    answer = client.post(url, json=asked)
                    answer.raise_for_status()
                    assert len(answer.json()["result"]) == len(pools)
                    return float(answer.json()["metrics"]["timer_rego_query_eval_ns"]) / 1e6

                try:
                    yield ask
                finally:
                    server.terminate()


async def distinct_stream(bench: Bench, base: Fleet) -> None:
    """Known classes beside a stream in which every class is new."""
    snapshot, facts, frames = await bench.snapshot(base), facts_of(base), Frames()
    asked = request("spark-startup", input_tokens=500)
    framed = frames.place(snapshot, asked, LOCAL, facts, now_us())
    await bench.book.make(snapshot, framed.key, framed.normalised, framed.document(snapshot))

    async def known_once() -> float:
        begin = time.perf_counter_ns()
        for _ in range(20):
            placed = frames.place(snapshot, asked, LOCAL, facts, now_us())
            sheet = bench.book.find(snapshot, placed.key)
            assert sheet is not None
            decide(placed.normalised.workload, sheet, facts)
        await asyncio.sleep(0)
        return (time.perf_counter_ns() - begin) / 20_000

    alone = median([await known_once() for _ in range(200)])
    made = 0
    stop = asyncio.Event()

    async def stream() -> None:
        nonlocal made
        while not stop.is_set():
            made += 1
            labels = {"gpu_memory_gib": made % 60 + 1, "gpu_count": made // 60 % 64 + 1}
            new = WorkloadRequest.model_validate({"tenant": "eu-bank", "model": MODEL, "resources": labels})
            placed = Frames().place(snapshot, new, LOCAL, facts, now_us())
            await bench.book.make(snapshot, placed.key, placed.normalised, placed.document(snapshot))

    task = asyncio.create_task(stream())
    begin = time.perf_counter()
    beside = []
    while time.perf_counter() - begin < 4:
        beside.append(await known_once())
        await asyncio.sleep(0.002)
    stop.set()
    await task
    rate = made / (time.perf_counter() - begin)
    slower = median(beside) / alone
    say("all-distinct stream of classes, one caller", f"{rate:.0f} sheets/s", "")
    say("known classes beside it", f"{slower:.2f} x their time alone", "<= 2 x")


def casbin() -> None:
    """Entitlements over 10,000 rules, every answer asked for the first time."""
    model = shipped("policies").joinpath("casbin/model.conf").read_text()
    lines = [f"p, role{i % 20}, t{i % 250}, group{i // 250}, place, allow" for i in range(10_000)]
    lines += [f"g, tenant:t{i}, role{i % 20}, t{i}" for i in range(250)]
    entitlements = CasbinEntitlements.build(model, "\n".join(lines), domains=[])
    asked = iter(itertools.product(range(250), range(40)))

    def once() -> object:
        tenant, group = next(asked)
        return entitlements.permits(f"tenant:t{tenant}", f"t{tenant}", f"group{group}", "place")

    say("Casbin, 10,000 rules, first answer, p50", f"{micros(once, 2_000):.0f} us", "<= 100 us")


async def weight(scratch: Path) -> None:
    """Bytes stored for each decision, with 60 pools, and decisions a second through the whole service."""
    settings = load_settings(
        environment={}, flags={"data_dir": scratch / "data", "audit": {"durability": "power_safe"}}
    )
    async with running(settings) as up:
        asked = DecisionRequest(workload=request("eu-bank", input_tokens=500))
        await up.decisions.decide(asked, LOCAL, "warm")
        database = up.directory.log_path
        before, count = size_of(database), 20_000  # the write-ahead log is folded in when the service closes

        async def caller(number: int) -> None:
            for turn in range(count // 64):
                await up.decisions.decide(asked, LOCAL, f"bench-{number}-{turn}")

        begin = time.perf_counter()
        await asyncio.gather(*(caller(number) for number in range(64)))
        rate = count / (time.perf_counter() - begin)
    stored = (size_of(database) - before) / count
    say("decisions, whole service in process, 64 in flight, durable", f"{rate:.0f}/s", "")
    say("bytes stored per decision", f"{stored:.0f}", "<= 2048")


def size_of(database: Path) -> int:
    """Bytes of a SQLite file and its write-ahead log."""
    return sum(path.stat().st_size for path in database.parent.glob(database.name + "*"))


def server(scratch: Path) -> None:
    """Start to ready, and resident memory of the server and its workers; compiled, as pip leaves what it installs."""
    root = Path(__file__).resolve().parent.parent
    for package in ("audit", "connectors", "policyd"):
        compileall.compile_dir(root / package, quiet=1)
    policyd = shutil.which("policyd", path=str(Path(sys.executable).parent))
    command = [policyd] if policyd else [sys.executable, "-m", "policyd.cli.main"]
    begin = time.perf_counter()
    with subprocess.Popen(
        [*command, "serve", "--port", "0", "--data-dir", str(scratch / "served")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            say("start to ready", f"{time.perf_counter() - begin:.2f} s", "<= 3 s")
            time.sleep(1)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            say("server process, idle", f"{resident_mb(process.pid):.0f} MB", "<= 150 MB")
            say("largest worker", f"{max(resident_mb(int(pid)) for pid in children):.0f} MB", "<= 80 MB")
        finally:
            process.terminate()


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


async def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description="Bench of decisions.")
    parser.add_argument("--opa", default=os.environ.get("POLICYD_OPA_BINARY") or shutil.which("opa"))
    binary = parser.parse_args().opa
    tree, base = load_policy_tree(shipped("policies")), load_fleet(shipped("fleet"))
    embedded = Bench(EmbeddedEngine(2), tree)
    opa = Bench(OpaEngine.child(binary), tree) if binary else None
    try:
        await known(embedded, base)
        await unknown(embedded, opa, base, binary)
        await distinct_stream(embedded, base)
    finally:
        await embedded.engine.close()
        if opa is not None:
            await opa.engine.close()
    casbin()
    with tempfile.TemporaryDirectory() as scratch:
        await weight(Path(scratch))
        server(Path(scratch))
    table = Table("what", "measured", "wanted", title="decisions")
    for row in ROWS:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())
