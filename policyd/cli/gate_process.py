"""The process that judges a candidate: ``check``, ``tests`` and ``impact``, on files that it is handed, with an engine
of its own.

    {"settings": …, "trees": …, "kinds": …, "gates": …, "live": …}  ──stdin──►  stdout  ──►  {"results": […]}

Rules: it reads no settings of its own, and the log for ``impact`` alone, which it never writes; the tests run only when
the check is passed; what it cannot judge it
does not answer, and who asked counts that as no result.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import orjson

from policyd.errors import Finding, PolicyInvalid, RevisionError
from policyd.revisions.gates import GateResult

if TYPE_CHECKING:
    from policyd.core.fleet import Fleet
    from policyd.ports import Engine
    from policyd.revisions.tree_files import TreeFiles
    from policyd.services.impact import ImpactReport
    from policyd.settings import EngineSettings, Settings

OF_A_FLEET: Final = ("input", "entitlements", "fleet")
"""The checks that a new fleet can fail beside policies that are live."""
FINDINGS_MAX: Final = 1_000
ROWS_KEPT_MAX: Final = 5
ROW_NAME_MAX_CHARACTERS: Final = 200
NICENESS: Final = 10
"""Of a process that keeps a processor busy for minutes beside those that decide."""


async def judged(
    settings: Settings, trees: TreeFiles, kinds: list[str], gates: list[str], live: tuple[str, str] | None = None
) -> list[GateResult]:
    """What each gate says, up to the first that is not passed."""
    from policyd.bootstrap import make_engine

    results = []
    engine = make_engine(_own(settings))
    try:
        for gate in gates:
            if gate == "impact":
                judging = impact(engine, settings, trees, live)
            else:
                judging = check(engine, trees, kinds) if gate == "check" else tests(engine, settings, trees)
            results.append(await judging)
            if not results[-1].passed:
                break
    finally:
        await engine.close()
    return results


async def check(engine: Engine, trees: TreeFiles, kinds: list[str]) -> GateResult:
    """Every check of the policies beside the fleet; of a fleet alone, those that it can fail."""
    from policyd.bootstrap import make_entitlements
    from policyd.revisions.fleet_files import parse_fleet
    from policyd.services.policy_review import review

    def fleet() -> Fleet:
        return parse_fleet(trees.fleet, trees.fleet_root, trees.fleet_commit)

    today = datetime.now(UTC).date()
    found = await review(trees.policies, trees.policies_commit, fleet, engine, make_entitlements, today)
    errors = [one for one in found.errors if "policy" in kinds or one.check in OF_A_FLEET]
    findings = tuple(Finding(one.where, one.message) for one in errors[:FINDINGS_MAX])
    said = f"{len(errors)} errors, the first of them: {findings[0]}" if findings else "no errors"
    warnings = len(found.remarks) - len(found.errors)
    return GateResult("check", not errors, said, findings, {"errors": len(errors), "warnings": warnings})


async def tests(engine: Engine, settings: Settings, trees: TreeFiles) -> GateResult:
    """The tests of the policies on the chosen engine, beside the fleet."""
    from policyd.bootstrap import make_entitlements
    from policyd.services.policy_tests import Suite

    tree, fleet = trees.revisions()
    entitlements_of = partial(make_entitlements, tree.casbin_model, tree.casbin_rows)
    suite = Suite(tree, trees.policies, fleet, entitlements_of, settings.engine.deadline_ms)
    try:
        outcome = await suite.run(engine)
    except PolicyInvalid as error:
        return GateResult("tests", False, error.detail, tuple(error.findings))
    failed = [one for one in outcome.tried if not one.passed]
    findings = tuple(Finding(one.location, f"{one.name}: {one.detail}") for one in failed[:FINDINGS_MAX])
    details = {"passed": len(outcome.tried) - len(failed), "failed": len(failed)}
    if failed:
        return GateResult("tests", False, f"{len(failed)} of {len(outcome.tried)} tests failed", findings, details)
    said = f"{len(outcome.tried)} tests passed" if outcome.tried else "there are no tests"
    return GateResult("tests", True, said, (), details)


async def impact(engine: Engine, settings: Settings, trees: TreeFiles, live: tuple[str, str] | None) -> GateResult:
    """What the logged decisions of the window would be. Raises ``AuditError`` for a log that gives no answer."""
    from policyd.bootstrap import make_entitlements
    from policyd.services.activation import Candidates
    from policyd.services.clock import now_us
    from policyd.services.impact import Candidate, ImpactLimits, ImpactReport, impact_gate
    from policyd.services.impact_run import impact as replay
    from policyd.services.impact_verdicts import Verdicts
    from policyd.services.log_place import directory_of
    from policyd.services.log_reader import LogReader

    chosen, until_us = settings.activation, now_us()
    reader = await LogReader.open(directory_of(settings), deadline_ms=chosen.impact_deadline_ms)
    try:
        tree, fleet = trees.revisions()
        snapshot = await Candidates(engine, make_entitlements).proved(tree, fleet)
        candidate = Candidate(tree.digest, fleet.digest, tree.commit, fleet.commit)
        report = ImpactReport(candidate, max(0, until_us - chosen.impact_since_ms * 1_000), until_us)
        await replay(reader, Verdicts(engine, snapshot, settings.engine.deadline_ms), report, live=live)
    except RevisionError as error:
        return GateResult("impact", False, error.detail, tuple(error.findings))
    finally:
        await reader.close()
    result = impact_gate(report, ImpactLimits(chosen.max_flips_ppm, chosen.max_not_replayed_ppm))
    return replace(result, details={**result.details, **_report(report)})


def _report(report: ImpactReport) -> dict[str, Any]:
    """What is kept of a report beside its shares: the window, and where most of it flips."""
    from policyd.services.clock import rfc3339
    from policyd.services.impact import sorted_rows

    rows = {
        name: [
            {"value": value[:ROW_NAME_MAX_CHARACTERS], "flips": row.flips, "hard": row.hard}
            for value, row in sorted_rows(table)[:ROWS_KEPT_MAX]
            if row.flips or row.hard
        ]
        for name, table in report.rows.items()
    }
    return {
        "from": rfc3339(report.from_us),
        "to": rfc3339(report.to_us),
        "same": report.same,
        "failed": report.failed,
        "other_revisions": report.other_revisions,
        "cost_before_micro_usd": report.cost_before_micro_usd,
        "cost_after_micro_usd": report.cost_after_micro_usd,
        "rows": rows,
    }


def _own(settings: Settings) -> EngineSettings:
    """An engine for this process alone: an OPA that serves would be made to forget what is live."""
    chosen = settings.engine
    return chosen if chosen.opa_url is None else chosen.model_copy(update={"kind": "embedded", "opa_url": None})


def main() -> None:
    """Read what is asked, judge, answer."""
    from policyd.revisions.tree_files import TreeFiles
    from policyd.settings import Settings

    asked: dict[str, Any] = orjson.loads(sys.stdin.buffer.read())
    settings, trees = Settings.model_validate(asked["settings"]), TreeFiles.from_json(asked["trees"])
    live = None if asked["live"] is None else (str(asked["live"][0]), str(asked["live"][1]))
    if "impact" in asked["gates"]:
        os.nice(NICENESS)
    results = asyncio.run(judged(settings, trees, asked["kinds"], asked["gates"], live))
    sys.stdout.buffer.write(orjson.dumps({"results": [_row(each) for each in results]}))
    sys.stdout.buffer.flush()


def _row(result: GateResult) -> dict[str, Any]:
    findings = [[each.where, each.message] for each in result.findings]
    return {**result.to_json(), "findings": findings}


if __name__ == "__main__":
    main()
