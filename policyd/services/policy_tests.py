"""Runs the tests of a policy tree on one engine: Rego tests and golden cases, and says which rules they try.

Rules: Rego tests and cases run beside each other, cases at most ``jobs`` at a time; every selected test runs, whatever
fails before it; a rule counts as tried when it spoke in a golden case that held, or when a Rego test that held stands
in a file that names the rule's id. A tree that does not compile raises its findings: nothing of it could be tried.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from policyd.core.fleet import Fleet
from policyd.core.snapshot import Permits
from policyd.core.verdict import PolicySet
from policyd.engines.source import read_source
from policyd.ports import Engine, PolicyTree
from policyd.services.cases import Case, CaseRunner, read_cases
from policyd.services.policy_review import cases_in
from policyd.services.sheets import SheetBook, SheetLimits

JOBS_MAX: Final = 64
_BURST: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Tried:
    """One test that ran: on which engine, ``rego`` or ``case``, where it stands, and what was wrong."""

    engine: str
    kind: str
    name: str
    location: str
    passed: bool
    detail: str = ""
    time_s: float = 0.0


@dataclass
class Outcome:
    """What one engine said: every test, and for each rule of the policies whether one of them tried it."""

    tried: list[Tried] = field(default_factory=list)
    rules: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """The tests of one tree beside one fleet. ``wanted`` chooses by name; ``progress`` is told of each that ended."""

    tree: PolicyTree
    files: Mapping[PurePosixPath, bytes]
    fleet: Fleet
    entitlements_of: Callable[[Fleet], Permits]
    deadline_ms: int
    jobs: int = 2
    wanted: Callable[[str], bool] = lambda name: True
    progress: Callable[[], None] = lambda: None

    def cases(self) -> list[Case]:
        """The golden cases that are wanted. Raises ``PolicyInvalid`` when some are none."""
        return [case for case in read_cases(cases_in(self.files)) if self.wanted(case.name)]

    async def run(self, engine: Engine) -> Outcome:
        """Run everything on that engine. Raises ``PolicyInvalid`` when the tree does not compile there."""
        cases = self.cases()
        policies = await engine.load(self.tree)
        outcome = Outcome(rules=dict.fromkeys(rule_names(policies), False))
        rego, golden = await asyncio.gather(self._rego(engine), self._golden(engine, policies, cases, outcome.rules))
        outcome.tried = [*rego, *golden]
        self._mark_named(rego, outcome.rules)
        return outcome

    async def _rego(self, engine: Engine) -> list[Tried]:
        results = await engine.test(self.tree)
        tried = [
            Tried(engine.name, "rego", f"{one.package}.{one.rule}", one.location, one.passed, one.detail)
            for one in results
            if self.wanted(f"{one.package}.{one.rule}")
        ]
        for _ in tried:
            self.progress()
        return tried

    async def _golden(
        self, engine: Engine, policies: PolicySet, cases: Sequence[Case], rules: dict[str, bool]
    ) -> list[Tried]:
        limits = SheetLimits(
            deadline_ms=self.deadline_ms,
            cold_in_progress_max=JOBS_MAX,
            cold_per_tenant_max=JOBS_MAX,
            cold_per_tenant_per_s=_BURST,
            cold_per_tenant_burst=_BURST,
        )
        runner = CaseRunner(SheetBook(engine, limits), policies, self.entitlements_of, self.fleet)
        free = asyncio.Semaphore(self.jobs)

        async def one(case: Case) -> Tried:
            async with free:
                began = time.perf_counter()
                result = await runner.run(case)
                taken_s = time.perf_counter() - began
            if result.passed:
                rules.update({name: True for name in result.fired if name in rules})
            self.progress()
            detail = "; ".join(result.differences)
            return Tried(engine.name, "case", case.name, case.file, result.passed, detail, taken_s)

        return list(await asyncio.gather(*(one(case) for case in cases)))

    def _mark_named(self, rego: Sequence[Tried], rules: dict[str, bool]) -> None:
        """Rules whose id stands in a test file where a test of their package held."""
        held = {one.location.rpartition(":")[0] for one in rego if one.passed}
        for path, text in self.tree.tests.items():
            if str(path) not in held:
                continue
            source = read_source(text)
            package = source.package.removeprefix("placement.").removesuffix("_test")
            for rule in source.rules:
                for token in rule.tokens:
                    name = f"{package}.{token.text[1:-1]}"
                    if token.kind == "string" and name in rules:
                        rules[name] = True


def rule_names(policies: PolicySet) -> list[str]:
    """Every ``deny`` and ``warn`` rule, as ``package.rule``."""
    return [f"{name}.{rule}" for name in sorted(policies.packages) for rule in sorted(policies.packages[name].rules)]
