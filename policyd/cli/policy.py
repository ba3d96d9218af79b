"""``policyd policy``: check policies before they go live, and run their tests on every engine."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from policyd.cli.options import CheckOutput, ConfigFlag, DataDirFlag, EngineFlag, FleetFlag, OutputFlag, settings_of
from policyd.cli.terminal import Output, data, emit, talk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.progress import Progress

    from policyd.core.fleet import Fleet
    from policyd.ports import Engine, PolicyTree
    from policyd.revisions.named_trees import NamedTree
    from policyd.services.policy_review import Review
    from policyd.settings import Settings

app = typer.Typer(name="policy", help="Policies: Rego packages, Casbin rows, golden cases.", no_args_is_help=True)

RevisionArgument = Annotated[
    str | None,
    typer.Argument(metavar="PATH|REV", help="Folder, bundle, digest or commit; without it the policies in use."),
]
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
    revision: RevisionArgument = None,
    output: Annotated[
        CheckOutput, typer.Option("--output", "-o", help="How to print: for a person, as data, or as CI reads it.")
    ] = CheckOutput.TABLE,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings end with exit code 3 too.")] = False,
    fleet: FleetFlag = None,
    data_dir: DataDirFlag = None,
    engine: EngineFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Check policies beside a fleet: all that keeps them from going live. Findings end with exit code 3.

    A revision is a folder, a bundle (.tar.gz), the digest of one that was live here, or a commit of the repository
    here, with the folder in it: main:policies.

    Example: policyd policy check policies
    """
    import asyncio

    from policyd.cli import failures
    from policyd.cli.policy_check import draw, shown

    settings = settings_of(config, policies=None, fleet=fleet, data_dir=data_dir, engine=engine)
    review, root = asyncio.run(_check(settings, revision))
    text = shown(review, root, output)
    if text is None:
        draw(review, root, data())
    else:
        sys.stdout.write(text)
        sys.stdout.flush()
    bad = review.remarks if strict else review.errors
    raise typer.Exit(failures.FOUND if bad else failures.DONE)


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


async def _check(settings: Settings, revision: str | None) -> tuple[Review, Path]:
    """The review, and what its paths are below."""
    from datetime import UTC, datetime

    from policyd.bootstrap import fleet_path, make_engine, make_entitlements
    from policyd.revisions.fleet_files import load_fleet
    from policyd.services.policy_review import review

    named = _named(settings, revision)
    engine = make_engine(settings.engine)
    try:
        with talk().status(f"compiling on {engine.name}"):
            found = await review(
                named.tree.files,
                named.tree.commit,
                lambda: load_fleet(fleet_path(settings)),
                engine,
                make_entitlements,
                datetime.now(UTC).date(),
            )
    finally:
        await engine.close()
    return found, named.root


def _named(settings: Settings, revision: str | None) -> NamedTree:
    """The tree that is meant: the named one, else the one in use."""
    from policyd.bootstrap import policies_path
    from policyd.bootstrap_sources import kept_trees
    from policyd.revisions.named_trees import named_tree
    from policyd.revisions.policy_files import SUFFIXES

    source = settings.sources.policies
    folder = source.path if source is not None else str(settings.policies or "policies")
    name = revision if revision is not None else str(policies_path(settings))
    return named_tree(name, SUFFIXES, kept_trees(settings, "policies"), folder)


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
