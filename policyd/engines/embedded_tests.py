"""Runs the ``test_*`` rules of a policy tree on the embedded engine.

Rules: a file's test rules are the entrypoints of one bundle; a test holds when it is exactly ``true``. A test file
that the engine cannot read or compile fails all its tests with the reason; the other files still run, nothing is
skipped.

The engine's compiler dies on most rules that replace the whole input (``with input as document``). What works on both
engines is to replace the parts: ``with input.pool as … with input.workload as … with data.settings as …``, inside
``{ … }`` bodies; a one-line body with ``not … with`` or several ``with`` is no syntax to it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from policyd.engines.capabilities import ARITY
from policyd.engines.children import START_TIMEOUT_S, Worker, WorkerDied
from policyd.engines.compilation import Modules, build_bundle, plan_of
from policyd.engines.compiler import Prepared, prepare
from policyd.engines.plan import plan_findings
from policyd.engines.source import read_source
from policyd.errors import EngineTimeout, Finding, PolicyInvalid
from policyd.ports import PolicyTree, TestResult

TEST_TIMEOUT_S: Final = 10.0
TEST_MEMORY_BYTES: Final = 1024**3
TEST_PREFIX: Final = "test_"
_HINT: Final = (
    "; this engine takes `with` only inside { … } bodies, and only for parts of the input:"
    " write `with input.pool as … with input.workload as …`, or run the tests on the opa engine"
)


@dataclass(frozen=True, slots=True)
class Case:
    """One test rule: package, name, file and line."""

    package: str
    rule: str
    path: str
    line: int

    @property
    def entrypoint(self) -> str:
        """The engine's name of the rule."""
        return f"{self.package.replace('.', '/')}/{self.rule}"

    def result(self, passed: bool, detail: str = "") -> TestResult:
        """This case with its outcome."""
        return TestResult(self.package, self.rule, f"{self.path}:{self.line}", passed, detail)


def cases_of(tree: PolicyTree) -> list[Case]:
    """Every test rule, once per package and name, in the order of files and lines."""
    found: dict[tuple[str, str], Case] = {}
    for path in sorted(tree.tests):
        source = read_source(tree.tests[path])
        for rule in source.rules:
            if rule.name.startswith(TEST_PREFIX):
                key = (source.package, rule.name)
                found.setdefault(key, Case(source.package, rule.name, str(path), rule.line))
    return list(found.values())


async def run_tests(tree: PolicyTree) -> list[TestResult]:
    """Run all test rules, file by file. Raises ``PolicyInvalid`` when the policies themselves have findings."""
    prepared = prepare(tree)
    if prepared.findings:
        raise PolicyInvalid("the policies have findings", findings=prepared.findings)
    cases = cases_of(tree)
    tested = {case.path for case in cases}
    helpers = [(str(path), text) for path, text in sorted(tree.tests.items()) if str(path) not in tested]
    results: list[TestResult] = []
    for path in sorted(tested):
        own = [case for case in cases if case.path == path]
        modules = (*prepared.modules, *helpers, (path, tree.tests[PurePosixPath(path)]))
        with tempfile.TemporaryDirectory(prefix="policyd-test-") as directory:
            place = Path(directory)
            faults = await _build(prepared, modules, path, own, place)
            if faults:
                reason = "; ".join(fault.message if not fault.where else str(fault) for fault in faults) + _HINT
                results.extend(case.result(False, reason) for case in own)
            else:
                results.extend(await _run(own, place))
    return results


async def _build(prepared: Prepared, modules: Modules, path: str, cases: Sequence[Case], place: Path) -> list[Finding]:
    entrypoints = tuple(case.entrypoint for case in cases)
    faults = await build_bundle(modules, prepared.data, entrypoints, place)
    if faults:
        return faults
    plan = plan_of(modules, place)
    return [fault for fault in plan_findings(plan, ARITY) if fault.where.rpartition(":")[0] == path]


async def _run(cases: Sequence[Case], place: Path) -> list[TestResult]:
    results: list[TestResult] = []
    worker: Worker | None = None
    try:
        for case in cases:
            if worker is None or not worker.alive:
                worker = await Worker.start(TEST_MEMORY_BYTES)
                request = {"do": "load", "digest": "test", "bundle": str(place / "bundle")}
                await worker.ask(request, START_TIMEOUT_S)
            try:
                question = {"do": "ask", "digest": "test", "questions": [({"held": case.entrypoint}, "{}")]}
                answer = await worker.ask(question, TEST_TIMEOUT_S)
                exports = answer.get("exports", {})
                passed = exports.get("held") is True
                results.append(case.result(passed, "" if passed else str(answer.get("error", "the test is not true"))))
            except (EngineTimeout, WorkerDied) as fault:
                results.append(case.result(False, fault.detail))
                await worker.kill()
    finally:
        if worker is not None:
            await worker.kill()
    return results
