"""The sheet book with a real engine: one evaluation a class, limits that hold, failures that do not last."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from policyd.core.decide import decide
from policyd.core.facts import Facts, PoolFacts
from policyd.core.principal import LOCAL
from policyd.core.sheet import Sheet
from policyd.core.snapshot import Snapshot
from policyd.core.workload import WorkloadRequest
from policyd.engines.embedded import EmbeddedEngine
from policyd.engines.entitlements import CasbinEntitlements
from policyd.errors import EngineError, Overloaded
from policyd.ports import PolicyTree
from policyd.revisions.fleet_files import load_fleet
from policyd.revisions.policy_files import load_policy_tree
from policyd.services.frames import Framed, Frames
from policyd.services.sheets import SheetBook, SheetLimits

ROOT = Path(__file__).resolve().parents[2]
FLEET = load_fleet(ROOT / "examples" / "fleet")
TREE = load_policy_tree(ROOT / "policies")
FACTS = Facts(
    dict.fromkeys(FLEET.pools, PoolFacts(10_000, 0, True)),
    {path: 0 for t in FLEET.tenants.values() for path in (t.name, *(f"{t.name}/{p.name}" for p in t.projects))},
    "sha256:facts",
)
WIDE = SheetLimits(deadline_ms=10_000)
ENDLESS = """# METADATA
# title: A rule that takes for ever for some workloads
# custom:
#   enforcement: hard
#   owner: tests
#   remedy: none
package placement.endless

deny contains violation if {
	input.workload.resources.gpu_count == 7
	some x in numbers.range(1, 20000000)
	x == -1
	violation := {"rule": "never", "observed": x, "required": 0}
}
"""


def tree(**modules: str) -> PolicyTree:
    added = {PurePosixPath(f"{name}/{name}.rego"): text for name, text in modules.items()}
    digest = "sha256:" + "".join(sorted(modules)).encode().hex().ljust(64, "0")[:64] if modules else TREE.digest
    return replace(TREE, digest=digest, modules={**TREE.modules, **added})


@asynccontextmanager
async def book_on(limits: SheetLimits, policies: PolicyTree = TREE) -> AsyncIterator[tuple[SheetBook, Snapshot]]:
    engine = EmbeddedEngine(2)
    try:
        compiled = await engine.load(policies)
        entitlements = CasbinEntitlements.build(TREE.casbin_model, TREE.casbin_rows, domains=FLEET.tenants)
        yield SheetBook(engine, limits), Snapshot(compiled, FLEET, entitlements)
    finally:
        await engine.close()


def place(snapshot: Snapshot, tenant: str = "spark-startup", **resources: int) -> Framed:
    request = WorkloadRequest.model_validate(
        {"tenant": tenant, "model": "llama-3.1-8b-instruct", "resources": resources}
    )
    return Frames().place(snapshot, request, LOCAL, FACTS, 1_795_341_600_000_000)


async def make(book: SheetBook, snapshot: Snapshot, framed: Framed) -> Sheet:
    return await book.make(snapshot, framed.key, framed.normalised, framed.document(snapshot))


def test_many_waiters_one_evaluation() -> None:
    async def run() -> None:
        async with book_on(WIDE) as (book, snapshot):
            framed = place(snapshot)
            sheets = await asyncio.gather(*(make(book, snapshot, framed) for _ in range(100)))
            assert len({sheet.digest for sheet in sheets}) == 1
            assert (book.counts.computed, book.counts.joined) == (1, 99)
            assert book.find(snapshot, framed.key) is sheets[0]

    asyncio.run(run())


def test_a_waiter_that_leaves_does_not_take_the_evaluation_along() -> None:
    async def run() -> None:
        async with book_on(WIDE) as (book, snapshot):
            framed = place(snapshot)
            leaving = asyncio.create_task(make(book, snapshot, framed))
            await asyncio.sleep(0)
            staying = asyncio.create_task(make(book, snapshot, framed))
            await asyncio.sleep(0)
            leaving.cancel()
            assert (await staying).rows

    asyncio.run(run())


def test_a_new_class_asks_only_what_is_new() -> None:
    async def run() -> None:
        async with book_on(WIDE) as (book, snapshot):
            await make(book, snapshot, place(snapshot))
            asked = book.counts.questions - book.counts.questions_known
            await make(book, snapshot, place(snapshot, gpu_count=2))
            asked_again = book.counts.questions - book.counts.questions_known - asked
            assert 0 < asked_again < asked / 2

    asyncio.run(run())


@pytest.mark.parametrize(
    "limits",
    [
        SheetLimits(cold_per_tenant_max=2, deadline_ms=10_000),
        SheetLimits(cold_in_progress_max=2, deadline_ms=10_000),
        SheetLimits(cold_per_tenant_burst=2, cold_per_tenant_per_s=1, deadline_ms=10_000),
    ],
)
def test_a_flood_of_new_classes_is_refused_and_known_ones_are_not(limits: SheetLimits) -> None:
    async def run() -> None:
        async with book_on(limits) as (book, snapshot):
            known = place(snapshot, tenant="eu-bank")
            await make(book, snapshot, known)
            flood = [make(book, snapshot, place(snapshot, gpu_count=n)) for n in range(1, 30)]
            outcomes = await asyncio.gather(*flood, return_exceptions=True)
            refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
            assert len(refused) == 27
            assert all(isinstance(outcome, Sheet | Overloaded) for outcome in outcomes)
            assert book.find(snapshot, known.key) is not None

    asyncio.run(run())


def test_the_caches_are_bounded() -> None:
    async def run() -> None:
        limits = SheetLimits(sheets_max=3, answers_max=50, cold_per_tenant_max=64, deadline_ms=10_000)
        async with book_on(limits) as (book, snapshot):
            framed = [place(snapshot, gpu_count=n) for n in range(1, 9)]
            for one in framed:
                await make(book, snapshot, one)
            assert [book.find(snapshot, one.key) is not None for one in framed] == [False] * 5 + [True] * 3
            assert len(book._answers) <= 50

    asyncio.run(run())


def test_the_memory_of_sheets_is_bounded() -> None:
    """By what they are taken to need, which is near to what they do need."""

    async def run() -> None:
        limits = replace(WIDE, sheets_max_mib=2, cold_per_tenant_max=64)
        async with book_on(limits) as (book, snapshot):
            framed = [place(snapshot, gpu_count=n) for n in range(1, 9)]
            await make(book, snapshot, framed[0])
            tracemalloc.start()
            before = book.held_bytes
            await make(book, snapshot, framed[1])
            needed, counted = tracemalloc.get_traced_memory()[0], book.held_bytes - before
            tracemalloc.stop()
            assert counted / 2 < needed < counted * 2, (needed, counted)
            for one in framed[2:]:
                await make(book, snapshot, one)
            assert 1 < book.held < len(framed)
            assert book.held_bytes <= 2 * 1024**2
            assert book.find(snapshot, framed[-1].key) is not None
            book.keep()
            assert (book.held, book.held_bytes) == (0, 0)
            book.limits = replace(limits, sheets_max_mib=0)
            assert (await make(book, snapshot, framed[0])).rows
            assert book.held == 1, "the newest stays"

    asyncio.run(run())


def test_a_class_that_never_ends_is_refused_quarantined_and_tried_again() -> None:
    async def run() -> None:
        limits = SheetLimits(deadline_ms=300, quarantine_ms=600)
        async with book_on(limits, tree(endless=ENDLESS)) as (book, snapshot):
            healthy, endless = place(snapshot), place(snapshot, gpu_count=7)
            begin = time.monotonic()
            sheet = await make(book, snapshot, endless)
            assert time.monotonic() - begin < 10
            assert sheet.failed
            assert not sheet.rows
            rules = {v["rule"] for entry in sheet.refused for v in entry.violations if v["policy"] == "endless"}
            assert rules == {"evaluation_failed"}
            assert decide(endless.normalised.workload, sheet, FACTS).outcome == "deny"
            assert book.find(snapshot, endless.key) is sheet
            assert (await make(book, snapshot, healthy)).rows
            await asyncio.sleep(0.7)
            assert book.find(snapshot, endless.key) is None
            assert (await make(book, snapshot, endless)).failed

    asyncio.run(run())


def test_an_engine_that_cannot_answer_is_an_error_and_not_a_sheet() -> None:
    async def run() -> None:
        async with book_on(WIDE) as (book, snapshot):
            await book.engine.unload(snapshot.policies.digest)
            framed = place(snapshot)
            with pytest.raises(EngineError):
                await make(book, snapshot, framed)
            assert book.find(snapshot, framed.key) is None
            assert not book._pending

    asyncio.run(run())


def test_another_snapshot_has_other_sheets() -> None:
    async def run() -> None:
        async with book_on(WIDE) as (book, snapshot):
            framed = place(snapshot)
            await make(book, snapshot, framed)
            other: Any = replace(snapshot, fleet=replace(FLEET, digest="sha256:other"))
            assert other.digest != snapshot.digest
            assert book.find(other, framed.key) is None

    asyncio.run(run())
