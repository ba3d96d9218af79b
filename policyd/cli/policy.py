"""``policyd policy``: check policies before they go live, and run their tests on every engine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from policyd.cli.options import ConfigFlag, EngineFlag, FleetFlag, OutputFlag, settings_of
from policyd.cli.terminal import Output, emit, talk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.progress import Progress

    from policyd.core.fleet import Fleet
    from policyd.core.verdict import PolicySet
    from policyd.errors import Finding
    from policyd.ports import Engine, PolicyTree
    from policyd.settings import Settings

app = typer.Typer(name="policy", help="Policies: Rego packages, Casbin rows, golden cases.", no_args_is_help=True)

DirectoryArgument = Annotated[
    Path | None, typer.Argument(metavar="DIR", help="Policy directory; without it the one in use.")
]


class Engines(StrEnum):
    """The engines that tests run on."""

    EMBEDDED = "embedded"
    OPA = "opa"
    ALL = "all"


@app.command()
def check(
    directory: DirectoryArgument = None,
    output: OutputFlag = Output.TABLE,
    fleet: FleetFlag = None,
    engine: EngineFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Check policies: syntax, METADATA, built-ins, what packages read, entitlements. Findings end with exit code 3.

    Example: policyd policy check policies
    """
    import asyncio

    from policyd.cli import failures
    from policyd.cli.fleet import findings_json

    settings = settings_of(config, policies=directory, fleet=fleet, engine=engine)
    policies, findings = asyncio.run(_check(settings))
    packages = [] if policies is None else [_package_json(policies, name) for name in sorted(policies.packages)]
    document = {
        "policies": str(_directory(settings)),
        "digest": None if policies is None else policies.digest,
        "commit": None if policies is None else policies.commit,
        "engine": None if policies is None else policies.engine,
        "packages": packages,
        "findings": findings_json(findings),
    }
    emit(document, output, lambda console: _draw_check(document, console))
    raise typer.Exit(failures.FOUND if findings else failures.DONE)


@app.command("test")
def run_tests(
    directory: DirectoryArgument = None,
    engine: Annotated[
        Engines | None, typer.Option("--engine", help="Engine to run on; without it the configured one.")
    ] = None,
    output: OutputFlag = Output.TABLE,
    fleet: FleetFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Run the policies' own tests and the golden cases. A failed one ends with exit code 3.

    Example: policyd policy test policies --engine all
    """
    import asyncio

    from policyd.cli import failures

    settings = settings_of(config, policies=directory, fleet=fleet)
    kinds = ["embedded", "opa"] if engine is Engines.ALL else [engine.value if engine else settings.engine.kind]
    results = asyncio.run(_test(settings, kinds))
    failed = [result for result in results if not result["passed"]]
    document = {"passed": len(results) - len(failed), "failed": len(failed), "results": results}
    emit(document, output, lambda console: _draw_test(document, kinds, console))
    raise typer.Exit(failures.FOUND if failed or not results else failures.DONE)


def _directory(settings: Settings) -> Path:
    from policyd.bootstrap import policies_path

    return policies_path(settings)


def _load(settings: Settings) -> tuple[PolicyTree, Fleet]:
    from policyd.bootstrap import fleet_path
    from policyd.revisions.fleet_files import load_fleet
    from policyd.revisions.policy_files import load_policy_tree

    return load_policy_tree(_directory(settings)), load_fleet(fleet_path(settings))


async def _check(settings: Settings) -> tuple[PolicySet | None, list[Finding]]:
    """The compiled policies, or None, and every finding of every check."""
    from policyd.bootstrap import make_engine, make_entitlements
    from policyd.errors import PolicyInvalid
    from policyd.services.activation import dead_denials, unreadable_paths

    findings: list[Finding] = []
    try:
        tree, fleet = _load(settings)
    except PolicyInvalid as error:
        return None, list(error.findings)
    engine = make_engine(settings.engine)
    policies: PolicySet | None = None
    try:
        with talk().status(f"compiling on {engine.name}"):
            policies = await engine.load(tree)
        findings += unreadable_paths(policies)
    except PolicyInvalid as error:
        findings += error.findings
    finally:
        await engine.close()
    try:
        findings += dead_denials(make_entitlements(tree.casbin_model, tree.casbin_rows, fleet), fleet)
    except PolicyInvalid as error:
        findings += error.findings
    return policies, findings


def _package_json(policies: PolicySet, name: str) -> dict[str, Any]:
    package = policies.packages[name]
    return {
        "package": name,
        "title": package.title,
        "enforcement": package.enforcement.value,
        "owner": package.owner,
        "location": package.location,
        "exports": sorted(package.exports),
        "rules": sorted(package.rules),
        "reads": [".".join(path) for path in package.reads],
    }


def _draw_check(document: dict[str, Any], console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.terminal import BAD, GOOD, grid

    if document["packages"]:
        table = grid(("package", "enforcement", "owner", "rules", "reads", "title"), right=("rules", "reads"))
        for package in document["packages"]:
            counts = (str(len(package["rules"])), words.plural(len(package["reads"]), "path"))
            table.add_row(package["package"], package["enforcement"], package["owner"], *counts, package["title"])
        console.print(table)
        console.print()
    for finding in document["findings"]:
        console.print(f"{finding['where']}: {finding['message']}", style=BAD, soft_wrap=True)
    if document["findings"]:
        console.print(f"{words.plural(len(document['findings']), 'finding')} in {document['policies']}", style=BAD)
        return
    revision = words.revision(document["commit"], document["digest"])
    count = words.plural(len(document["packages"]), "package")
    console.print(f"{document['policies']} holds together: {count}, {revision}, on {document['engine']}", style=GOOD)


async def _test(settings: Settings, kinds: Sequence[str]) -> list[dict[str, Any]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from policyd.bootstrap import make_engine

    tree, fleet = _load(settings)
    results: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=talk(), transient=True) as progress:
        for kind in kinds:
            engine = make_engine(settings.engine.model_copy(update={"kind": kind}))
            try:
                await engine.load(tree)
                results += await _rego_tests(engine, tree, progress)
                results += await _golden_cases(engine, tree, fleet, settings, progress)
            finally:
                await engine.close()
    return results


async def _rego_tests(engine: Engine, tree: PolicyTree, progress: Progress) -> list[dict[str, Any]]:
    task = progress.add_task(f"{engine.name}: Rego tests", total=None)
    results = await engine.test(tree)
    progress.update(task, total=max(1, len(results)), completed=max(1, len(results)))
    return [
        {
            "engine": engine.name,
            "kind": "rego",
            "name": f"{result.package}.{result.rule}",
            "location": result.location,
            "passed": result.passed,
            "detail": result.detail,
        }
        for result in results
    ]


async def _golden_cases(
    engine: Engine, tree: PolicyTree, fleet: Fleet, settings: Settings, progress: Progress
) -> list[dict[str, Any]]:
    from policyd.bootstrap import make_entitlements
    from policyd.services.cases import CaseRunner, load_cases
    from policyd.services.sheets import SheetBook, SheetLimits

    cases = load_cases(_directory(settings) / "cases")
    policies = await engine.load(tree)
    book = SheetBook(engine, SheetLimits(deadline_ms=settings.engine.deadline_ms))
    runner = CaseRunner(
        book, policies, lambda changed: make_entitlements(tree.casbin_model, tree.casbin_rows, changed), fleet
    )
    results = []
    for case in progress.track(cases, description=f"{engine.name}: golden cases"):
        result = await runner.run(case)
        results.append(
            {
                "engine": engine.name,
                "kind": "case",
                "name": case.name,
                "location": case.file,
                "passed": result.passed,
                "detail": "; ".join(result.differences),
            }
        )
    return results


def _draw_test(document: dict[str, Any], kinds: Sequence[str], console: Console) -> None:
    from policyd.cli import words
    from policyd.cli.terminal import BAD, GOOD, grid

    table = grid(("engine", "tests", "passed", "failed"), right=("passed", "failed"))
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in document["results"]:
        groups.setdefault((result["engine"], result["kind"]), []).append(result)
    for (engine, kind), results in groups.items():
        passed = sum(result["passed"] for result in results)
        what = {"rego": "Rego tests", "case": "golden cases"}[kind]
        table.add_row(engine, what, str(passed), str(len(results) - passed))
    for result in document["results"]:
        if not result["passed"]:
            console.print(f"{result['location']}: {result['name']} failed on {result['engine']}", style=BAD)
            if result["detail"]:
                console.print(f"  {result['detail']}")
    console.print(table)
    summary = f"{document['passed']} passed, {document['failed']} failed on {words.plural(len(kinds), 'engine')}"
    console.print(summary if document["results"] else "no tests were found", style=BAD if document["failed"] else GOOD)
