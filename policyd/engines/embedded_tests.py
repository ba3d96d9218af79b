"""Runs the ``test_*`` rules of a policy tree on the embedded engine.

Rules: each test rule is an entrypoint of one bundle; a test holds when it is exactly ``true``. A test file that the
engine cannot read fails all its tests with the engine's reason, and the other files still run; nothing is skipped.
The engine reads ``with`` inside ``{ … }`` bodies; a one-line body with ``not … with`` or several ``with`` it refuses.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from policyd.engines.capabilities import ARITY
from policyd.engines.children import START_TIMEOUT_S, Worker, WorkerDied
from policyd.engines.compilation import build_bundle
from policyd.engines.compiler import Prepared, prepare
from policyd.engines.plan import plan_findings, read_plan
from policyd.engines.source import read_source
from policyd.errors import EngineTimeout, Finding, PolicyInvalid
from policyd.ports import PolicyTree, TestResult

TEST_TIMEOUT_S: Final = 10.0
TEST_MEMORY_BYTES: Final = 1024**3
TEST_PREFIX: Final = "test_"
_HINT: Final = "; put rule bodies that use `with` into { … }"


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
    """Run all test rules. Raises ``PolicyInvalid`` when the policies themselves have findings."""
    prepared = prepare(tree)
    if prepared.findings:
        raise PolicyInvalid("the policies have findings", findings=prepared.findings)
    cases = cases_of(tree)
    texts = {str(path): tree.tests[path] for path in sorted(tree.tests)}
    failed: dict[Case, str] = {}
    for _ in range(len(texts) + 1):
        running = [case for case in cases if case not in failed]
        if not running:
            break
        with tempfile.TemporaryDirectory(prefix="policyd-test-") as directory:
            place = Path(directory)
            faults = await _build(prepared, texts, running, place)
            bad = _fail_files(faults, running, texts, failed)
            if faults and not bad:
                return [case.result(False, "; ".join(map(str, faults))) for case in cases]
            if bad:
                continue
            results = await _run(prepared, running, place)
            return [results.get(case) or case.result(False, failed[case]) for case in cases]
    return [case.result(False, failed.get(case, "")) for case in cases]


async def _build(
    prepared: Prepared, texts: Mapping[str, str], cases: Sequence[Case], place: Path
) -> list[Finding]:
    modules = (*prepared.modules, *texts.items())
    entrypoints = tuple(case.entrypoint for case in cases)
    faults = await build_bundle(modules, prepared.data, entrypoints, dict(modules), place)
    if faults:
        return faults
    plan = read_plan(json.loads((place / "plan" / "plan.json").read_bytes()))
    return [fault for fault in plan_findings(plan, ARITY) if fault.where.rpartition(":")[0] in texts]


def _fail_files(
    faults: Sequence[Finding], cases: Sequence[Case], texts: dict[str, str], failed: dict[Case, str]
) -> bool:
    """Take the test files that have faults out, and fail their tests with the reasons. False when no file is named."""
    reasons: dict[str, list[str]] = {}
    for fault in faults:
        path = fault.where.rpartition(":")[0]
        if path in texts:
            reasons.setdefault(path, []).append(str(fault))
    for path, words in reasons.items():
        del texts[path]
        failed.update({case: "; ".join(words) + _HINT for case in cases if case.path == path})
    return bool(reasons)


async def _run(prepared: Prepared, cases: Sequence[Case], place: Path) -> dict[Case, TestResult]:
    results: dict[Case, TestResult] = {}
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
                results[case] = case.result(passed, "" if passed else str(answer.get("error", "the test is not true")))
            except (EngineTimeout, WorkerDied) as fault:
                results[case] = case.result(False, fault.detail)
                await worker.kill()
    finally:
        if worker is not None:
            await worker.kill()
    return results
