"""Every golden case holds on every engine, and a case that is wrong fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from policyd.core.snapshot import Permits
from policyd.engines.embedded import EmbeddedEngine
from policyd.engines.entitlements import CasbinEntitlements
from policyd.engines.opa import OpaEngine
from policyd.errors import PolicyInvalid
from policyd.ports import Engine
from policyd.revisions.fleet_files import load_fleet
from policyd.revisions.policy_files import load_policy_tree
from policyd.services.cases import Case, CaseRunner, load_cases
from policyd.services.sheets import SheetBook, SheetLimits

ROOT = Path(__file__).resolve().parents[2]
CASES = load_cases(ROOT / "policies" / "cases")
CHAT = next(case for case in CASES if case.name == "live chat stays with EU operators")
LIMITS = SheetLimits(cold_per_tenant_burst=100_000, deadline_ms=10_000)


@dataclass
class Bench:
    runner: asyncio.Runner
    cases: CaseRunner


@pytest.fixture(scope="module", params=["embedded", "opa"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    tree = load_policy_tree(ROOT / "policies")
    with asyncio.Runner() as runner:
        if request.param == "embedded":
            engine: Engine = EmbeddedEngine(2)
        else:
            engine = OpaEngine.child(str(request.getfixturevalue("opa_binary")))

        def entitlements(fleet: object) -> Permits:
            tenants = list(fleet.tenants)  # type: ignore[attr-defined]
            return CasbinEntitlements.build(tree.casbin_model, tree.casbin_rows, domains=tenants)

        policies = runner.run(engine.load(tree))
        yield Bench(
            runner,
            CaseRunner(SheetBook(engine, LIMITS), policies, entitlements, load_fleet(ROOT / "examples" / "fleet")),
        )
        runner.run(engine.close())


def test_there_are_cases_enough() -> None:
    assert len(CASES) >= 25
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(bench: Bench, case: Case) -> None:
    result = bench.runner.run(bench.cases.run(case))
    assert result.differences == ()


WRONG = [
    ({"outcome": "deny"}, "outcome"),
    ({"outcome": "allow", "ranked": ["aws-us-east-1-h100"]}, "ranked"),
    ({"outcome": "allow", "allowed": []}, "allowed"),
    ({"outcome": "allow", "rejected": {"aws-us-east-1-h100": []}}, "rejected"),
    ({"outcome": "allow", "obligations": ["sing"]}, "obligations"),
    ({"outcome": "allow", "rnaked": []}, "unknown keys"),
]


@pytest.mark.parametrize(("expect", "said"), WRONG)
def test_a_wrong_expectation_fails(bench: Bench, expect: dict[str, object], said: str) -> None:
    case = Case(CHAT.file, "wrong", {**CHAT.content, "expect": expect})
    result = bench.runner.run(bench.cases.run(case))
    assert len(result.differences) == 1
    assert said in result.differences[0]


def test_a_case_that_names_an_unknown_pool_fails(bench: Bench) -> None:
    case = Case(CASES[0].file, "wrong", {**CASES[0].content, "pools": ["no-such-pool"]})
    assert "no-such-pool" in bench.runner.run(bench.cases.run(case)).differences[0]


def test_cases_that_cannot_be_read_are_findings(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "scalar.yaml").write_text("42")
    with pytest.raises(PolicyInvalid) as raised:
        load_cases(tmp_path)
    assert len(raised.value.findings) == 2
