"""``policyd policy``: check policies before they go live, run their tests on every engine, approve them."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from policyd.cli import revisions
from policyd.cli.options import CheckOutput, ConfigFlag, DataDirFlag, EngineFlag, FleetFlag, settings_of
from policyd.cli.policy_approve import approve
from policyd.cli.terminal import data, say, talk

if TYPE_CHECKING:
    from policyd.revisions.named_trees import NamedTree
    from policyd.services.policy_review import Review
    from policyd.settings import Settings

app = typer.Typer(name="policy", help="Policies: Rego packages, Casbin rows, golden cases.", no_args_is_help=True)
app.command()(revisions.activate)
app.command()(revisions.rollback)
app.command()(revisions.log)

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


app.command()(approve)


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
    revision: RevisionArgument = None,
    engine: Annotated[
        Engines | None, typer.Option("--engine", help="Engine to run on; without it the configured one.")
    ] = None,
    output: Annotated[
        CheckOutput, typer.Option("--output", "-o", help="How to print: for a person, as data, or as JUnit for CI.")
    ] = CheckOutput.TABLE,
    only: Annotated[
        str | None, typer.Option("--filter", metavar="TEXT", help="Only tests whose name holds this text, or pattern.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=64, help="Golden cases at a time.")] = 2,
    coverage: Annotated[
        int | None,
        typer.Option("--coverage", metavar="PERCENT", min=0, max=100, help="Fewest rules that tests must try."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Run again after every change, until interrupted.")] = False,
    fleet: FleetFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Run the policies' own tests and the golden cases, and tell which rules none of them tries.

    A test that fails, or fewer rules tried than --coverage says, ends with exit code 3.

    Example: policyd policy test policies --engine all
    """
    from policyd.cli import failures
    from policyd.cli.policy_test import Chosen, run_once, watched

    settings = settings_of(config, fleet=fleet)
    if output in (CheckOutput.SARIF, CheckOutput.GITHUB):
        raise typer.BadParameter(f"tests are not printed as {output.value}; take junit", param_hint="--output")
    kinds = ["embedded", "opa"] if engine is Engines.ALL else [engine.value if engine else settings.engine.kind]
    chosen = Chosen(settings, kinds, jobs, only, coverage, output)
    passed = (
        watched(chosen, lambda: _named(settings, revision)) if watch else run_once(chosen, _named(settings, revision))
    )
    raise typer.Exit(failures.DONE if passed else failures.FOUND)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; it must not hold anything yet.")],
) -> None:
    """Make a policy tree to start from: one package with its test, a golden case, entitlements, settings.

    Example: policyd policy init my-policies
    """
    from policyd.cli.policy_starter import write_starter

    for path in write_starter(directory):
        print(path)
    say(f"try: policyd policy check {directory} && policyd policy test {directory}")


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
