"""How long the engines take for one class that nobody has asked about: the shipped packages for many pools, cold.

    python bench/bench_engines.py [--opa PATH] [--pools 60]

"Shared" asks each package once for every distinct projection, as the sheet does; "unshared" asks every package for
every pool. "OPA alone" is an OPA that gets the class and the pools in one request and evaluates every rule for every
pool by itself, without policyd. All figures are of this one run; on a busy machine trust the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from policyd.bootstrap import make_entitlements, shipped
from policyd.core.facts import Facts, PoolFacts
from policyd.core.fleet import Fleet
from policyd.core.inputs import pool_side
from policyd.core.principal import LOCAL
from policyd.core.projection import project
from policyd.core.snapshot import Snapshot
from policyd.core.verdict import Package, PolicySet, Question
from policyd.core.workload import WorkloadRequest
from policyd.engines.answers import canonical_json
from policyd.engines.embedded import EmbeddedEngine
from policyd.engines.opa import OpaEngine
from policyd.engines.opa_process import OpaChild
from policyd.ports import Engine, PolicyTree
from policyd.revisions.fleet_files import load_fleet
from policyd.revisions.policy_files import load_policy_tree
from policyd.services.clock import now_us
from policyd.services.frames import Frames

MODEL = "llama-3.1-70b-instruct"
TENANT = "eu-bank"
ROUNDS = 9
DEADLINE_MS = 30_000


def documents(policies: PolicySet, tree: PolicyTree, fleet: Fleet, count: int) -> list[dict[str, Any]]:
    """The input documents of one class and ``count`` pools; the example's pools again where more are asked for."""
    facts = Facts(
        dict.fromkeys(fleet.pools, PoolFacts(10_000, 0, True)),
        {path: 0 for name in fleet.tenants for path in (name, *_projects(fleet, name))},
        "sha256:bench",
    )
    snapshot = Snapshot(policies, fleet, make_entitlements(tree.casbin_model, tree.casbin_rows, fleet))
    asked = WorkloadRequest.model_validate({"tenant": TENANT, "model": MODEL, "demand": {"input_tokens": 500}})
    class_part = Frames().place(snapshot, asked, LOCAL, facts, now_us()).document(snapshot)
    pools = itertools.islice(itertools.cycle(fleet.pools.values()), count)
    return [{**class_part, **pool_side(pool, MODEL, fleet)} for pool in pools]


def _projects(fleet: Fleet, tenant: str) -> list[str]:
    return [f"{tenant}/{project.name}" for project in fleet.tenants[tenant].projects]


def questions(packages: Mapping[str, Package], inputs: Sequence[dict[str, Any]], *, shared: bool) -> list[Question]:
    """What is asked of an engine: every package for every pool, or every distinct projection once."""
    asked = [
        Question(name, canonical_json(project(document, package.reads)).encode())
        for name, package in packages.items()
        for document in inputs
    ]
    return list(dict.fromkeys(asked)) if shared else asked


def whole_driver(packages: Mapping[str, Package]) -> str:
    """A module by which OPA evaluates every package for every pool on its own."""
    members = ", ".join(
        f"{json.dumps(f'{name}/{export}')}: [v | v := data.placement.{name}.{export} with input as document]"
        for name, package in packages.items()
        for export in sorted(package.exports)
    )
    return (
        "package policyd_driver\n\n"
        "reply := [verdict |\n\tsome pool in input.pools\n\tdocument := object.union(input.class, pool)\n"
        f"\tverdict := {{{members}}}\n]\n"
    )


async def millis(run: Callable[[], Awaitable[object]]) -> float:
    """Median milliseconds, after one round that does not count."""
    await run()
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter_ns()
        await run()
        times.append(time.perf_counter_ns() - begin)
    return median(times) / 1_000_000


async def engine_rows(
    engine: Engine, policies: PolicySet, inputs: list[dict[str, Any]]
) -> list[tuple[str, int, float]]:
    """Shared and unshared, on one engine."""
    rows = []
    for shared in (True, False):
        asked = questions(policies.packages, inputs, shared=shared)

        async def run(asked: list[Question] = asked) -> None:
            answers = await engine.evaluate(policies.digest, asked, DEADLINE_MS)
            assert not any(answer.error for answer in answers), next(a.error for a in answers if a.error)

        what = f"{engine.name.split()[0]}, {'shared' if shared else 'unshared'}"
        rows.append((what, len(asked), await millis(run)))
    return rows


async def whole_row(binary: str, tree: PolicyTree, policies: PolicySet, inputs: list[dict[str, Any]]) -> float:
    """OPA alone: one request, no policyd."""
    modules = {str(path): text for path, text in tree.modules.items()}
    child = OpaChild(binary, modules, policies.settings, whole_driver(policies.packages))
    try:
        await child.ensure()
        class_part = {key: value for key, value in inputs[0].items() if key not in ("pool", "serving")}
        pools = [{key: document[key] for key in ("pool", "serving") if key in document} for document in inputs]
        body = canonical_json({"class": class_part, "pools": pools}).encode()

        async def run() -> None:
            reply = await child.connection.ask("policyd_driver/reply", body, DEADLINE_MS / 1000)
            assert len(reply) == len(pools)

        return await millis(run)
    finally:
        await child.close()


async def bench(binary: str | None, counts: Sequence[int]) -> None:
    """Print the table."""
    tree = load_policy_tree(shipped("policies"))
    fleet = load_fleet(shipped("fleet"))
    table = Table("pools", "engine", "questions", "ms", "against OPA alone", title="One class, cold")
    for count in counts:
        rows: list[tuple[str, int, float]] = []
        engines: list[Engine] = [EmbeddedEngine(2)]
        if binary:
            engines.append(OpaEngine.child(binary))
        for engine in engines:
            try:
                policies = await engine.load(tree)
                inputs = documents(policies, tree, fleet, count)
                rows += await engine_rows(engine, policies, inputs)
                if isinstance(engine, OpaEngine) and binary:
                    alone = await whole_row(binary, tree, policies, inputs)
                    rows.append(("OPA alone", len(policies.packages) * count, alone))
            finally:
                await engine.close()
        against = rows[-1][2] if binary else None
        for what, asked, took in rows:
            table.add_row(str(count), what, str(asked), f"{took:.1f}", f"{took / against:.2f} x" if against else "-")
    Console().print(table)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--opa", default=os.environ.get("POLICYD_OPA_BINARY") or shutil.which("opa"))
    parser.add_argument("--pools", type=int, nargs="+", default=[60, 1000])
    given = parser.parse_args()
    if given.opa is None:
        print("no OPA: set POLICYD_OPA_BINARY to compare with it", file=sys.stderr)
    asyncio.run(bench(given.opa and str(Path(given.opa).resolve()), given.pools))


if __name__ == "__main__":
    main()
