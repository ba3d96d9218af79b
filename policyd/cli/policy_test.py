"""Runs and prints what ``policyd policy test`` is asked for: once, or again after every change.

Rules: all engines run all tests, whatever fails; a run without any test is no success; while watching, a tree that does
not even compile is told and waited for, like a test that fails.
"""

from __future__ import annotations

import asyncio
import fnmatch
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from policyd.cli import failures
from policyd.cli.finding_formats import TestCase, junit
from policyd.cli.options import CheckOutput
from policyd.cli.terminal import Output, data, encoded, say, talk
from policyd.errors import PolicydError

if TYPE_CHECKING:
    from rich.console import Console

    from policyd.revisions.named_trees import NamedTree
    from policyd.services.policy_tests import Outcome, Tried
    from policyd.settings import Settings

LOOK_S: Final = 0.5


@dataclass(frozen=True)
class Chosen:
    """What the flags say."""

    settings: Settings
    engines: list[str]
    jobs: int
    only: str | None
    coverage: int | None
    output: CheckOutput

    def wants(self, name: str) -> bool:
        """Whether a test is to run: its name holds the text, or matches it as a pattern."""
        return self.only is None or self.only in name or fnmatch.fnmatchcase(name, self.only)


def watched(chosen: Chosen, named: Callable[[], NamedTree]) -> bool:
    """Run, and again whenever the tree has changed; ends by an interrupt only."""
    before: str | None = None
    while True:
        try:
            found = named()
            if found.tree.digest != before:
                before = found.tree.digest
                run_once(chosen, found)
                say("watching; interrupt to end")
        except PolicydError as error:
            failures.tell(error)
        time.sleep(LOOK_S)


def run_once(chosen: Chosen, named: NamedTree) -> bool:
    """Run and print; whether everything held and enough was tried."""
    outcomes = asyncio.run(_outcomes(chosen, named))
    found = _document(chosen, outcomes)
    tried = [one for outcome in outcomes for one in outcome.tried]
    if chosen.output is CheckOutput.TABLE:
        _draw(found, chosen, data())
    elif chosen.output is CheckOutput.JUNIT:
        sys.stdout.write(junit([*map(_junit_case, tried), *_coverage_case(found)]))
    else:
        sys.stdout.write(encoded(found, Output(chosen.output.value)))
    sys.stdout.flush()
    return bool(tried) and not found["failed"] and found["coverage"]["enough"] is not False


async def _outcomes(chosen: Chosen, named: NamedTree) -> list[Outcome]:
    from rich.progress import BarColumn, Progress, TextColumn

    from policyd.bootstrap import fleet_path, make_engine, make_entitlements
    from policyd.core.fleet import Fleet
    from policyd.revisions.fleet_files import load_fleet
    from policyd.revisions.policy_files import policy_tree
    from policyd.services.policy_tests import Suite

    settings = chosen.settings
    tree = policy_tree(dict(named.tree.files), named.tree.commit, named.root)

    def entitlements(fleet: Fleet) -> Any:
        return make_entitlements(tree.casbin_model, tree.casbin_rows, fleet)

    outcomes = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"))
    with Progress(*columns, console=talk(), transient=True) as progress:
        for kind in chosen.engines:
            engine = make_engine(settings.engine.model_copy(update={"kind": kind, "workers": chosen.jobs}))
            task = progress.add_task(f"{engine.name}: tests", total=None)
            suite = Suite(
                tree,
                named.tree.files,
                load_fleet(fleet_path(settings)),
                entitlements,
                settings.engine.deadline_ms,
                chosen.jobs,
                chosen.wants,
                partial(progress.advance, task),
            )
            try:
                outcomes.append(await suite.run(engine))
            finally:
                await engine.close()
    return outcomes


def _document(chosen: Chosen, outcomes: list[Outcome]) -> dict[str, Any]:
    tried = [one for outcome in outcomes for one in outcome.tried]
    # A rule is tried when a test of any engine did: all engines run the same tests.
    rules: dict[str, bool] = {}
    for outcome in outcomes:
        for name, done in outcome.rules.items():
            rules[name] = rules.get(name, False) or done
    count = sum(rules.values())
    percent = 100 * count // len(rules) if rules else 100
    return {
        "passed": sum(one.passed for one in tried),
        "failed": sum(not one.passed for one in tried),
        "coverage": {
            "rules": len(rules),
            "tried": count,
            "percent": percent,
            "required_percent": chosen.coverage,
            "enough": None if chosen.coverage is None else percent >= chosen.coverage,
            "untried": sorted(name for name, done in rules.items() if not done),
        },
        "results": [_result(one) for one in tried],
    }


def _result(one: Tried) -> dict[str, Any]:
    return {
        "engine": one.engine,
        "kind": one.kind,
        "name": one.name,
        "location": one.location,
        "passed": one.passed,
        "detail": one.detail,
        "time_ms": round(one.time_s * 1_000),
    }


def _junit_case(one: Tried) -> TestCase:
    failure = None if one.passed else one.detail or "failed"
    return TestCase(f"{one.engine}: {_KINDS[one.kind]}", one.name, one.location, failure, one.time_s)


def _coverage_case(found: dict[str, Any]) -> list[TestCase]:
    covered = found["coverage"]
    if covered["enough"] is None:
        return []
    failure = None if covered["enough"] else f"{_covered(covered)}; untried: {', '.join(covered['untried'])}"
    return [TestCase("coverage", f"at least {covered['required_percent']} % of the rules", "", failure)]


_KINDS: Final = {"rego": "Rego tests", "case": "golden cases"}


def _covered(covered: dict[str, Any]) -> str:
    return f"{covered['tried']} of {covered['rules']} rules tried, {covered['percent']} %"


def _draw(found: dict[str, Any], chosen: Chosen, console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.terminal import BAD, CAREFUL, GOOD, grid

    table = grid(("engine", "tests", "passed", "failed"), right=("passed", "failed"))
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in found["results"]:
        groups.setdefault((result["engine"], result["kind"]), []).append(result)
    for (engine, kind), results in groups.items():
        passed = sum(result["passed"] for result in results)
        table.add_row(engine, _KINDS[kind], str(passed), str(len(results) - passed))
    for result in found["results"]:
        if not result["passed"]:
            console.print(f"{result['location']}: {result['name']} failed on {result['engine']}", style=BAD)
            if result["detail"]:
                console.print(f"  {result['detail']}")
    console.print(table)
    covered = found["coverage"]
    if chosen.only is None:
        for name in covered["untried"]:
            console.print(f"no test tries {name}", style=CAREFUL)
    if found["results"]:
        summary = f"{found['passed']} passed, {found['failed']} failed on {words.plural(len(chosen.engines), 'engine')}"
        console.print(summary, style=BAD if found["failed"] else GOOD)
    else:
        console.print("no tests were found", style=BAD)
    console.print(_covered(covered), style=BAD if covered["enough"] is False else GOOD)
