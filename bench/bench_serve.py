"""How many decisions a served policyd answers, beside a real OPA server that evaluates the same rules.

    python bench/bench_serve.py [--opa PATH] [--seconds 6] [--workers 2]

``policyd serve`` runs as a process of its own on loopback, every decision durable before it is answered; so does
``opa run --server`` with its decision log on the console. Both have the same 60 pools of the example fleet and the same
policies, and are asked for the same workloads by the same load generator (``bench/load.py``), in turns; policyd for
plain answers and for gzip, which is how a client that accepts it gets them (the generator does not unpack them). OPA
evaluates all 60 pools in one query and holds them as data, so that its requests carry the workload only; it neither
ranks nor stores. It is asked with 4 in flight, which keeps both processors busy: with 64 it is no faster, and each of
its answers takes ten seconds. Every figure of a comparison comes from this one run; on a busy machine trust the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import orjson
from rich.console import Console
from rich.table import Table

from policyd.bootstrap import make_entitlements, shipped, shipped_facts
from policyd.core.facts import Facts
from policyd.core.fleet import Fleet
from policyd.core.inputs import pool_side
from policyd.core.principal import LOCAL
from policyd.core.snapshot import Snapshot
from policyd.core.workload import DecisionRequest
from policyd.engines.embedded import EmbeddedEngine
from policyd.revisions.fleet_files import load_fleet
from policyd.revisions.policy_files import load_policy_tree
from policyd.services.clock import now_us
from policyd.services.frames import Frames

POOLS = 60
BATCH_ITEMS = 100
MODEL = "llama-3.1-70b-instruct"
ROOT = Path(__file__).resolve().parent.parent
TOKENS = (150, 500, 900, 1_200, 2_500, 6_000)
DRIVER = """package driver

results := [verdicts |
	some side in data.sides
	verdicts := data.placement with input as object.union(input, side)
]
"""


def sixty() -> bytes:
    """A fleet file with exactly 60 pools of the example: one of every group, then those that serve the model."""
    base = load_fleet(shipped("fleet"))
    groups: dict[str, str] = {}
    for pool in base.pools.values():
        groups.setdefault(pool.group, pool.id)
    chosen = set(groups.values())
    # From the end: the shipped fleet lists the pools of the large clouds first, which a bank may hardly use.
    for pool in reversed(list(base.pools.values())):
        if len(chosen) < POOLS and any(offering.model == MODEL for offering in pool.offerings):
            chosen.add(pool.id)
    assert len(chosen) == POOLS
    document = base.document.model_dump(mode="json", exclude_none=True)
    document["pools"] = [pool for pool in document["pools"] if pool["id"] in chosen]
    return orjson.dumps(document)


def bodies() -> list[dict[str, Any]]:
    """Workloads of two tenants that differ in their token counts, as those of applications do."""
    found: list[dict[str, Any]] = []
    for number in range(96):
        demand = {"input_tokens": TOKENS[number % len(TOKENS)] + number, "max_output_tokens": 400}
        workload: dict[str, Any] = {"tenant": "eu-bank", "project": "support-chat", "model": MODEL, "demand": demand}
        if number % 4 == 3:
            workload = {"tenant": "spark-startup", "model": MODEL, "demand": demand}
        found.append({"workload": workload})
    return found


def batches(asked: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The same workloads a hundred at a time, in other orders."""
    for start in range(0, len(asked), 16):
        yield [asked[(start + place) % len(asked)] for place in range(BATCH_ITEMS)]


@contextlib.contextmanager
def policyd(scratch: Path, fleet: Path, workers: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A served policyd and its address."""
    command = [sys.executable, "-m", "policyd.cli.main", "serve", "--port", "0", "--fleet", str(fleet)]
    command += ["--facts", str(shipped_facts())]
    command += ["--workers", str(workers), "--data-dir", str(scratch / f"data-{workers}")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POLICYD_")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=scratch,
        env={**environment, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield process, line.rpartition(" ")[2].strip()
        finally:
            process.terminate()


@contextlib.contextmanager
def opa(binary: str, scratch: Path, sides: list[dict[str, Any]]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """An OPA server with the shipped policies, a driver over the pools, and its decision log on the console."""
    (scratch / "driver.rego").write_text(DRIVER)
    (scratch / "sides.json").write_bytes(orjson.dumps({"sides": sides}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [binary, "run", "--server", "--addr", address, "--log-level", "error", "--ignore", "*_test.rego"]
    command += ["--set", "decision_logs.console=true", str(shipped("policies"))]
    command += [str(scratch / "driver.rego"), str(scratch / "sides.json")]
    with (scratch / "opa.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            with httpx.Client(transport=httpx.HTTPTransport(retries=30)) as client:
                for _ in range(100):
                    with contextlib.suppress(httpx.TransportError):
                        if client.get(f"http://{address}/health").status_code == 200:
                            break
                    time.sleep(0.1)
            yield process, f"http://{address}"
        finally:
            process.terminate()


def opa_inputs(fleet: Fleet, asked: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The pools and the workloads as the policies read them: what policyd would ask its own engine."""
    tree = load_policy_tree(shipped("policies"))
    engine = EmbeddedEngine(1)

    async def made() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        try:
            policies = await engine.load(tree)
        finally:
            await engine.close()
        snapshot = Snapshot(policies, fleet, make_entitlements(tree.casbin_model, tree.casbin_rows, fleet))
        frames, facts = Frames(), Facts({}, {}, "sha256:bench")
        inputs = []
        for body in asked:
            request = DecisionRequest.model_validate(body).workload
            framed = frames.place(snapshot, request, LOCAL, facts, now_us())
            inputs.append({"input": dict(framed.document(snapshot))})
        return [dict(pool_side(pool, MODEL, fleet)) for pool in fleet.pools.values()], inputs

    return asyncio.run(made())


def cpu_s(pid: int) -> float:
    """Processor seconds of a process and the ended children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree_cpu_s(pid: int) -> float:
    """Processor seconds of a process and all that it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_s(pid) + sum(tree_cpu_s(int(child)) for child in children)


@dataclass
class Contestant:
    """A server that is asked, and what came of it."""

    name: str
    pid: int
    address: str
    path: str
    bodies: Path
    decisions: int = 1
    encoding: str = "identity"

    def load(self, in_flight: int, seconds: float, count: int = 1_000_000) -> dict[str, float]:
        """One turn of the load generator; ``rate`` is decisions a second, ``cpu_us`` the server's own time for one."""
        command = [sys.executable, str(ROOT / "bench" / "load.py"), self.address, self.path, str(self.bodies)]
        command += ["--in-flight", str(in_flight), "--seconds", str(seconds), "--count", str(count)]
        command += ["--encoding", self.encoding]
        before = tree_cpu_s(self.pid)
        done = subprocess.run(command, capture_output=True, check=True, timeout=seconds + 120)
        spent = tree_cpu_s(self.pid) - before
        found: dict[str, Any] = orjson.loads(done.stdout)
        if found["failed"]:
            raise SystemExit(
                f"{self.name}: {found['failed']} of {found['answers']} were not answered with 200: "
                f"{found['first_failure']}"
            )
        decisions = found["answers"] * self.decisions
        del found["first_failure"]
        return {**found, "rate": decisions / found["seconds"], "cpu_us": spent * 1e6 / max(1, decisions)}


TURNS = 3


def contest(contestants: list[tuple[Contestant, int]], seconds: float) -> list[dict[str, float]]:
    """Each contestant with its number in flight, in turns; the median of every figure."""
    share = seconds / TURNS
    rows: list[list[dict[str, float]]] = [[] for _ in contestants]
    for contestant, in_flight in contestants:
        contestant.load(in_flight, 1, 400)
    for _ in range(TURNS):
        for row, (contestant, in_flight) in zip(rows, contestants, strict=True):
            row.append(contestant.load(in_flight, share))
    return [{name: median(turn[name] for turn in row) for name in row[0]} for row in rows]


def run(options: argparse.Namespace, scratch: Path, table: Table) -> None:
    """Start the servers, let them take turns, fill the table."""
    fleet_file, body_file = scratch / "fleet.yaml", scratch / "bodies"
    fleet_file.write_bytes(sixty())
    asked = bodies()
    body_file.write_bytes(b"\n".join(orjson.dumps(body) for body in asked))
    with contextlib.ExitStack() as stack:
        process, address = stack.enter_context(policyd(scratch, fleet_file, 1))
        answer = httpx.post(f"{address}/v1/decisions", json=asked[0], timeout=30)
        answer.raise_for_status()
        told = answer.json()
        assert len(told["rejected"]) + told["ranked_total"] + told["hidden_total"] == POOLS
        assert told["outcome"] == "allow"
        one = Contestant("policyd", process.pid, address, "/v1/decisions", body_file)
        (scratch / "unreserved").write_bytes(
            b"\n".join(
                orjson.dumps({**body, "options": {**body.get("options", {}), "reserve": False}}) for body in asked
            )
        )
        free = replace(one, bodies=scratch / "unreserved")
        zipped = replace(one, encoding="gzip")
        (scratch / "batches").write_bytes(b"\n".join(orjson.dumps({"requests": batch}) for batch in batches(asked)))
        hundred = replace(zipped, path="/v1/decisions/batch", bodies=scratch / "batches", decisions=BATCH_ITEMS)
        contestants: list[tuple[str, Contestant, int, str]] = [
            ("policyd, 64 in flight", one, 64, ">= 2500/s, p99 <= 60 ms"),
            ("policyd, 64 in flight, nothing reserved", free, 64, "<= 1.33 x one"),
            ("policyd, 64 in flight, gzip", zipped, 64, ">= 2500/s, p99 <= 60 ms"),
            ("policyd, 4 in flight", one, 4, "p50 <= 2 ms, p99 <= 10 ms"),
            ("policyd, 4 in flight, gzip", zipped, 4, "p50 <= 2 ms, p99 <= 10 ms"),
            (f"policyd, batches of {BATCH_ITEMS}, 2 in flight", replace(hundred, encoding="identity"), 2, ">= 3 x one"),
            (f"policyd, batches of {BATCH_ITEMS}, 2 in flight, gzip", hundred, 2, ">= 3 x one"),
        ]
        if options.workers > 1:
            more, at = stack.enter_context(policyd(scratch, fleet_file, options.workers))
            many = Contestant("workers", more.pid, at, "/v1/decisions", body_file)
            contestants.append((f"policyd, {options.workers} workers, 64 in flight", many, 64, ">= 1.2 x one"))
        if options.opa:
            sides, inputs = opa_inputs(load_fleet(fleet_file), asked)
            (scratch / "inputs").write_bytes(b"\n".join(orjson.dumps(document) for document in inputs))
            server, at = stack.enter_context(opa(options.opa, scratch, sides))
            path = "/v1/data/driver/results?strict-builtin-errors=true"
            verdicts = httpx.post(f"{at}{path}", json=inputs[0], timeout=30).json()["result"]
            assert len(verdicts) == POOLS
            theirs = Contestant("opa", server.pid, at, path, scratch / "inputs")
            contestants.append(("OPA server, 60 pools a query, 4 in flight", theirs, 4, "<= 1/5 of policyd"))
        figures = contest([(contestant, count) for _, contestant, count, _ in contestants], options.seconds)
        for (name, _, _, wanted), found in zip(contestants, figures, strict=True):
            ratio = f"{found['rate'] / figures[0]['rate']:.2f}"
            times = f"{found['p50'] / 1000:.1f} / {found['p99'] / 1000:.1f}"
            table.add_row(name, f"{found['rate']:.0f}", ratio, times, f"{found['cpu_us']:.0f}", wanted)
        print(f"an answer has {len(answer.content)} bytes", file=sys.stderr)


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description="Bench of the served surface.")
    parser.add_argument("--opa", default=os.environ.get("POLICYD_OPA_BINARY") or shutil.which("opa"))
    parser.add_argument("--seconds", type=float, default=6, help="load on each contestant, over three turns")
    parser.add_argument("--workers", type=int, default=1, help="also serve with that many API processes")
    options = parser.parse_args()
    table = Table(
        "what", "decisions/s", "x one worker", "p50 / p99 ms", "server CPU us", "wanted", title="served decisions"
    )
    with tempfile.TemporaryDirectory() as scratch:
        run(options, Path(scratch), table)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
