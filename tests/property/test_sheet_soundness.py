"""A sheet equals a fresh evaluation, and nothing that goes missing lets a pool in.

The engines are real; workloads, pools and losses are drawn at random from the example fleet. What a loss is held
against must be a sheet that the engine answered in full: on a machine that is too busy, a worker misses its deadline,
its pools are refused, and the pool that the next evaluation rightly admits would look as if the loss had let it in.
"""

from __future__ import annotations

import asyncio
import copy
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from audit.record import digest
from policyd.core.assemble import assemble
from policyd.core.classes import class_key, view_class
from policyd.core.decide import decide
from policyd.core.facts import Facts, PoolFacts, budget_limits, crossed_percent
from policyd.core.fleet import Fleet, FleetDocument
from policyd.core.inputs import class_side, missing_facts, pool_side
from policyd.core.normalise import normalise
from policyd.core.principal import LOCAL
from policyd.core.sheet import Sheet, sheet_from_content
from policyd.core.snapshot import Snapshot
from policyd.core.verdict import Enforcement, Question
from policyd.core.violations import violations_of
from policyd.core.workload import WorkloadRequest
from policyd.engines.embedded import EmbeddedEngine
from policyd.engines.entitlements import CasbinEntitlements
from policyd.engines.opa import OpaEngine
from policyd.errors import EngineError, RequestError
from policyd.ports import Engine, PolicyTree
from policyd.revisions.fleet_files import load_fleet
from policyd.revisions.policy_files import load_policy_tree
from policyd.services.clock import day, hour_of_week
from policyd.services.frames import Frames
from policyd.services.sheets import SheetBook, SheetLimits, basis_of

ROOT = Path(__file__).resolve().parents[2]
NOW_US = 1_795_341_600_000_000  # 2026-11-22T10:00:00Z
FREE = PoolFacts(available_gpus=10_000, queue_ms=0, healthy=True)
WHOLE_TRIES = 5
LIMITS = SheetLimits(cold_per_tenant_burst=100_000, cold_per_tenant_per_s=100_000, deadline_ms=10_000, quarantine_ms=0)
"""Nothing failed is kept, so that a second try asks the engine again."""

FLEET = load_fleet(ROOT / "examples" / "fleet")
TREE = load_policy_tree(ROOT / "policies")
POOLS = [pool.model_dump(mode="json", exclude_none=True) for pool in FLEET.pools.values()]


@dataclass
class Bench:
    """An engine with the shipped policies, on a loop of its own."""

    runner: asyncio.Runner
    engine: Engine
    book: SheetBook
    tree: PolicyTree

    def snapshot(self, fleet: Fleet) -> Snapshot:
        policies = self.runner.run(self.engine.load(self.tree))
        return Snapshot(
            policies, fleet, CasbinEntitlements.build(TREE.casbin_model, TREE.casbin_rows, domains=fleet.tenants)
        )


@pytest.fixture(scope="module", params=["embedded", "opa"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with asyncio.Runner() as runner:
        if request.param == "embedded":
            engine: Engine = EmbeddedEngine(2)
        else:
            engine = OpaEngine.child(str(request.getfixturevalue("opa_binary")))
        yield Bench(runner, engine, SheetBook(engine, LIMITS), TREE)
        runner.run(engine.close())


def fleet_of(pools: list[dict[str, Any]]) -> Fleet:
    document = FLEET.document.model_dump(mode="json", exclude_none=True)
    document["pools"] = pools
    encoded = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    return Fleet(FleetDocument.model_validate_json(encoded), digest(encoded), groups=FLEET.groups)


def facts_of(fleet: Fleet) -> Facts:
    spent = {
        path: 0
        for tenant in fleet.tenants.values()
        for path in (tenant.name, *(f"{tenant.name}/{p.name}" for p in tenant.projects))
    }
    return Facts(dict.fromkeys(fleet.pools, FREE), spent, "sha256:facts")


@st.composite
def requests(draw: st.DrawFn) -> WorkloadRequest:
    """Requests that mostly normalise: real tenants and projects, any profile, sizes across the classes."""
    tenant = draw(st.sampled_from(sorted(FLEET.tenants)))
    project = draw(st.sampled_from(FLEET.tenants[tenant].projects))
    document: dict[str, Any] = {
        "tenant": tenant,
        "project": project.name,
        "environment": draw(st.sampled_from(project.environments)),
        "model": draw(st.sampled_from(["llama-3.1-70b-instruct", "llama-3.1-8b-instruct", "mistral-small-3.2-24b"])),
        "scope": draw(st.sampled_from(["request", "deployment"])),
        "sla_class": draw(st.sampled_from(FLEET.tenants[tenant].sla_classes)),
        "profile": draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "urgency": st.sampled_from(["interactive", "standard", "batch"]),
                    "traffic": st.sampled_from(["steady", "bursty", "intermittent", "scheduled"]),
                    "task": st.sampled_from(["chat", "completion", "rag", "other"]),
                    "memory_bound": st.booleans(),
                },
            )
        ),
        "demand": draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "input_tokens": st.integers(0, 200_000),
                    "max_output_tokens": st.integers(0, 8_000),
                    "requests_per_hour": st.integers(0, 100_000),
                },
            )
        ),
    }
    return WorkloadRequest.model_validate(document)


def some_pools() -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(st.sampled_from(POOLS), min_size=1, max_size=6, unique_by=lambda pool: pool["id"]).map(
        copy.deepcopy
    )


def sheet_of(bench: Bench, fleet: Fleet, request: WorkloadRequest) -> tuple[Snapshot, Any, Sheet]:
    """The sheet for a request, every question answered."""
    snapshot = bench.snapshot(fleet)
    framed = Frames().place(snapshot, request, LOCAL, facts_of(fleet), NOW_US)
    document = framed.document(snapshot)
    for _ in range(WHOLE_TRIES):
        sheet = bench.runner.run(bench.book.make(snapshot, framed.key, framed.normalised, document))
        if not sheet.failed:
            return snapshot, framed, sheet
    pytest.fail(f"the engine left questions unanswered {WHOLE_TRIES} times: this machine is too busy to tell anything")


def normalises(request: WorkloadRequest) -> bool:
    try:
        normalise(request, LOCAL, FLEET)
    except RequestError:
        return False
    return True


def allowed(bench: Bench, fleet: Fleet, request: WorkloadRequest) -> set[str]:
    _, framed, sheet = sheet_of(bench, fleet, request)
    decision = decide(framed.normalised.workload, sheet, facts_of(fleet))
    return {scored.row.pool for scored in decision.ranked}


def fresh_verdicts(bench: Bench, snapshot: Snapshot, framed: Any) -> dict[str, set[tuple[str, str, bytes]]]:
    """Every package asked about every pool, one by one, with the whole input and no cache."""
    document = framed.document(snapshot)
    pairs, questions, missing = [], [], []
    for pool in snapshot.fleet.pools.values():
        whole = {**document, **pool_side(pool, framed.normalised.workload.model, snapshot.fleet)}
        for package in snapshot.policies.packages.values():
            if "serving" not in whole and any(path[:1] == ("serving",) for path in package.reads):
                continue
            absent = [path for read in package.reads for path in missing_facts(whole, read, package.optional)]
            if absent:
                missing.append((pool.id, package.name))
                continue
            pairs.append((pool.id, package))
            questions.append(Question(package.name, orjson.dumps(whole)))
    answers = bench.runner.run(bench.engine.evaluate(snapshot.policies.digest, questions, 10_000))
    verdicts: dict[str, set[tuple[str, str, bytes]]] = {pool: set() for pool in snapshot.fleet.pools}
    for pool_id, package_name in missing:
        verdicts[pool_id].add((package_name, "fact_missing", b""))
    for (pool_id, package), answer in zip(pairs, answers, strict=True):
        assert answer.error is None
        for violation in violations_of(package, answer.deny):
            if violation.enforcement is not Enforcement.ADVISORY:
                observed = orjson.dumps(violation.observed, option=orjson.OPT_SORT_KEYS)
                verdicts[pool_id].add((package.name, violation.rule, observed))
    return verdicts


@settings(max_examples=25)
@given(request_=requests().filter(normalises), pools=some_pools())
def test_a_sheet_equals_a_fresh_evaluation(
    bench: Bench, request_: WorkloadRequest, pools: list[dict[str, Any]]
) -> None:
    snapshot, framed, sheet = sheet_of(bench, fleet_of(pools), request_)
    fresh = fresh_verdicts(bench, snapshot, framed)
    held = {row.pool: set() for row in sheet.rows} | {
        entry.pool: {
            (
                v["policy"],
                v["rule"],
                b"" if v["rule"] == "fact_missing" else orjson.dumps(v["observed"], option=orjson.OPT_SORT_KEYS),
            )
            for v in entry.violations
            if v["policy"] != "core"
        }
        for entry in sheet.refused
    }
    assert held == fresh


def leaf_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from leaf_paths(below, (*path, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from leaf_paths(below, (*path, index))


def lose(document: dict[str, Any], path: tuple[Any, ...], *, null: bool) -> None:
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    if null or isinstance(place, list):
        place[path[-1]] = None
    else:
        del place[path[-1]]


STRUCTURE = {("id",), ("kind",), ("group",), ("provider",), ("region",)}


@given(request_=requests().filter(normalises), pools=some_pools(), data=st.data())
def test_a_lost_pool_fact_lets_no_pool_in(
    bench: Bench, request_: WorkloadRequest, pools: list[dict[str, Any]], data: st.DataObject
) -> None:
    before = allowed(bench, fleet_of(pools), request_)
    pool = data.draw(st.sampled_from(pools))
    path = data.draw(st.sampled_from([path for path in leaf_paths(pool) if path not in STRUCTURE]))
    lose(pool, path, null=data.draw(st.booleans()))
    try:
        fleet = fleet_of(pools)
    except ValidationError:
        return  # a fleet that does not load places nothing
    assert allowed(bench, fleet, request_) <= before, path


@given(request_=requests().filter(normalises), pools=some_pools(), data=st.data())
def test_a_lost_workload_fact_lets_no_pool_in(
    bench: Bench, request_: WorkloadRequest, pools: list[dict[str, Any]], data: st.DataObject
) -> None:
    fleet = fleet_of(pools)
    snapshot, framed, sheet = sheet_of(bench, fleet, request_)
    document = orjson.loads(orjson.dumps(framed.document(snapshot)))
    path = data.draw(st.sampled_from(list(leaf_paths(document))).filter(lambda p: p != ("clock", "date")))
    if path == ("clock",):
        path = ("clock", "hour_of_week")
    lose(document, path, null=data.draw(st.booleans()))
    key = class_key(framed.normalised.workload, document, snapshot.reads)
    lossy = bench.runner.run(bench.book.make(snapshot, key, framed.normalised, document))
    assert {row.pool for row in lossy.rows} <= {row.pool for row in sheet.rows}, path


@given(request_=requests().filter(normalises), pools=some_pools())
def test_an_unanswered_question_lets_no_pool_in(
    bench: Bench, request_: WorkloadRequest, pools: list[dict[str, Any]]
) -> None:
    """With no answers at all, every pool is refused; the sheet says that it failed."""
    fleet = fleet_of(pools)
    snapshot = bench.snapshot(fleet)
    framed = Frames().place(snapshot, request_, LOCAL, facts_of(fleet), NOW_US)
    view = view_class(framed.key, framed.document(snapshot), snapshot.reads)
    basis = basis_of(snapshot, framed.normalised, framed.document(snapshot))
    sheet = assemble(basis, view, {}, snapshot.reads.clock)
    assert not sheet.rows
    assert sheet.failed or all(entry.violations for entry in sheet.refused)


@settings(max_examples=5)
@given(
    request_=requests().filter(normalises),
    pools=some_pools(),
    deadline_ms=st.sampled_from([1, 2, 4, 8, 16, 10_000]),
    kill_after_ms=st.lists(st.integers(0, 40), max_size=3),
)
def test_an_engine_that_is_late_or_dies_lets_no_pool_in(
    bench: Bench,
    request_: WorkloadRequest,
    pools: list[dict[str, Any]],
    deadline_ms: int,
    kill_after_ms: list[int],
) -> None:
    """Deadlines too short for the machine, and workers killed in the middle: a sheet is whole, or says that it failed
    and holds fewer pools; the answers that it has kept make the next sheet the whole one."""
    snapshot, framed, whole = sheet_of(bench, fleet_of(pools), request_)
    document = framed.document(snapshot)
    book = SheetBook(bench.engine, replace(LIMITS, deadline_ms=deadline_ms))

    async def kill() -> None:
        for pause_ms in kill_after_ms:
            await asyncio.sleep(pause_ms / 1_000)
            for pid in bench.engine.worker_pids if isinstance(bench.engine, EmbeddedEngine) else ():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    async def made_meanwhile() -> Sheet:
        killing = asyncio.create_task(kill())
        try:
            return await book.make(snapshot, framed.key, framed.normalised, document)
        finally:
            await killing

    for _ in range(2):
        try:
            sheet = bench.runner.run(made_meanwhile())
        except EngineError:
            continue  # no worker came up: no sheet, so nothing is allowed
        pools_in = {row.pool for row in sheet.rows}
        assert pools_in <= {row.pool for row in whole.rows}
        assert sheet.failed or sheet.content == whole.content
    book.limits = LIMITS
    for _ in range(WHOLE_TRIES):
        sheet = bench.runner.run(book.make(snapshot, framed.key, framed.normalised, document))
        if not sheet.failed:
            break
    assert sheet.content == whole.content


@given(request_=requests().filter(normalises), pools=some_pools())
def test_a_sheet_comes_back_from_its_content(
    bench: Bench, request_: WorkloadRequest, pools: list[dict[str, Any]]
) -> None:
    fleet = fleet_of(pools)
    _, framed, sheet = sheet_of(bench, fleet, request_)
    again = sheet_from_content(sheet.content)
    assert (again.digest, again.content) == (sheet.digest, sheet.content)
    workload, facts = framed.normalised.workload, facts_of(fleet)
    first, second = decide(workload, sheet, facts), decide(workload, again, facts)
    assert [(s.row.pool, s.score_x1000, s.cost_micro_usd) for s in first.ranked] == [
        (s.row.pool, s.score_x1000, s.cost_micro_usd) for s in second.ranked
    ]


@given(first=requests().filter(normalises), second=requests().filter(normalises))
def test_a_frame_changes_no_key(bench: Bench, first: WorkloadRequest, second: WorkloadRequest) -> None:
    """Whatever was placed before, a request gets the workload and key that it gets alone."""
    snapshot = bench.snapshot(FLEET)
    facts = facts_of(FLEET)
    frames = Frames()
    mixed = first.model_copy(update={"demand": second.demand})
    for request in (first, second, mixed, first):
        framed = frames.place(snapshot, request, LOCAL, facts, NOW_US)
        plain = normalise(request, LOCAL, FLEET)
        tenant = FLEET.tenants[plain.workload.tenant]
        crossed = crossed_percent(budget_limits(tenant, plain.workload.project), facts)
        document = class_side(
            plain.workload, plain.terms, FLEET, crossed, hour_of_week(tenant.zone, NOW_US), day(NOW_US)
        )
        assert framed.normalised.workload == plain.workload
        assert framed.key == class_key(plain.workload, document, snapshot.reads)


SPOILT = [
    (("locations", "support_access"), ["DE", "IN"]),
    (("locations", "processing"), ["US"]),
    (("evidence", "expires"), "2026-01-01"),
    (("operator", "seat"), "US"),
    (("operator", "parent_seat"), "US"),
    (("region_binding",), "preferred"),
    (("sub_processors",), [{"name": "Helpdesk Ltd", "seat": "IN", "countries": ["IN"]}]),
    (("tenancy",), "shared"),
    (("dedicated_to",), ["st-anna-hospital"]),
    (("account",), "provider"),
    (("network",), "public"),
    (("certifications",), []),
    (("retention_days",), 30),
    (("trains_on_data",), True),
    (("accelerator", "memory_gib"), 8),
    (("cold_start_ms",), 90_000),
    (("contended",), True),
    (("interruption_per_hour_ppm",), 500_000),
    (("availability_ppm",), 500_000),
]


@pytest.mark.parametrize(("path", "value"), SPOILT, ids=lambda part: ".".join(part) if isinstance(part, tuple) else "")
def test_hiding_what_refuses_a_pool_does_not_let_it_in(bench: Bench, path: tuple[str, ...], value: Any) -> None:
    """A pool that one bad fact refuses stays refused when that fact, or anything around it, is deleted or nulled."""
    request = WorkloadRequest.model_validate(
        {
            "tenant": "eu-bank",
            "project": "support-chat",
            "environment": "prod",
            "model": "llama-3.1-70b-instruct",
            "sla_class": "realtime",
        }
    )
    good = copy.deepcopy(next(pool for pool in POOLS if pool["id"] == "onprem-fra-h100"))
    assert allowed(bench, fleet_of([good]), request) == {"onprem-fra-h100"}
    bad = copy.deepcopy(good)
    place = bad
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    if path == ("cold_start_ms",):
        bad["scale_to_zero"] = True
    spoils = allowed(bench, fleet_of([bad]), request) == set()
    assert spoils
    for depth in range(1, len(path) + 1):
        for null in (True, False):
            lossy = copy.deepcopy(bad)
            lose(lossy, path[:depth], null=null)
            try:
                fleet = fleet_of([lossy])
            except ValidationError:
                continue
            assert allowed(bench, fleet, request) == set(), (path[:depth], null)
