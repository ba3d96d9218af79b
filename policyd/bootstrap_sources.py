"""Joins the adapters of revision sources to what follows them; the other half is ``policyd.bootstrap``.

Rules: kept revisions and fetched histories lie in the data directory, below ``revisions``; what no source is named for
comes from the folder of the settings, as it is when somebody asks.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from policyd.core.fleet import Fleet
from policyd.errors import ConfigError, PolicydError, RevisionError
from policyd.ports import Engine, Entitlements, PolicyTree, TreeSource
from policyd.revisions import fleet_files, policy_files
from policyd.revisions.kept import KeptTrees
from policyd.revisions.states import Plan
from policyd.revisions.tree_files import TreeFiles
from policyd.revisions.tree_sources import LIMITS, BundleSource, DirectorySource
from policyd.services.activation import Activation, Candidates
from policyd.services.data_directory import DataDirectory
from policyd.services.decisions import WrittenLog
from policyd.services.freshness import FLEET, POLICIES, Freshness
from policyd.services.gate_runs import GateRuns
from policyd.services.impact_gate import IMPACT, ImpactGate
from policyd.services.lifecycle import Gate, Lifecycle
from policyd.services.log_reader import LogReader
from policyd.services.revision_desk import RevisionDesk
from policyd.services.sources import Followed, Sources
from policyd.services.trust import Trust
from policyd.settings import Settings
from policyd.source_settings import SourceSettings

DEFAULT_GATES: Final = ("check", "tests")
"""Of a repository or bundle."""
PARSED_KEPT_MAX: Final = 3
"""What is live, what was before, and what is tried."""
SUFFIXES = {POLICIES: policy_files.SUFFIXES, FLEET: fleet_files.SUFFIXES}


def kept_trees(settings: Settings, kind: str) -> KeptTrees:
    """The revisions of a kind that went live before."""
    return KeptTrees(settings.data_dir / "revisions" / kind)


def make_source(settings: SourceSettings, kind: str, mirror: Path) -> TreeSource:
    """The source that the settings name."""
    suffixes = SUFFIXES[kind]
    if settings.kind == "directory":
        return DirectorySource(Path(settings.location), suffixes)
    if settings.kind == "bundle":
        return BundleSource(Path(settings.location), suffixes, settings.path)
    from connectors.git_source import GitPlace, GitSource

    place = GitPlace(
        **{name: getattr(settings, name) for name in GitPlace.__dataclass_fields__},
    )
    return GitSource(
        place,
        mirror,
        suffixes,
        LIMITS,
        deadline_ms=settings.deadline_ms,
        fetch_max_mib=settings.fetch_max_mib,
        accept_rewritten=settings.rewritten_history == "accept",
    )


def make_sources(
    settings: Settings, policies: Callable[[Settings], Path], fleet: Callable[[Settings], Path]
) -> Sources:
    """Both kinds; with no source named at all, both are read from their folders and nothing is polled."""
    followed, fixed = {}, {}
    for kind, path in ((POLICIES, policies), (FLEET, fleet)):
        named: SourceSettings | None = getattr(settings.sources, kind)
        if named is None:
            fixed[kind] = path(settings)
            continue
        kept = kept_trees(settings, kind)
        source = make_source(named, kind, kept.folder / "git")
        followed[kind] = Followed(kind, source, kept, named.stale_max_ms)
    return Sources(followed, fixed, settings.sources.poll_ms, freshness=Freshness())


def refuse_followed(settings: Settings, kind: str) -> None:
    """Raise ``ConfigError`` where a command needs a folder, and the settings follow a source."""
    if getattr(settings.sources, kind) is not None:
        raise ConfigError(
            f"the {kind} come from sources.{kind}, and this command reads a folder",
            remedy=f"name a folder on the command line, or leave sources.{kind} out of the settings that it is given",
        )


def make_lifecycle(settings: Settings, sources: Sources, desk: RevisionDesk) -> Lifecycle:
    """What stands between the sources and what is live."""
    named = {"policy": settings.sources.policies, "fleet": settings.sources.fleet}
    chosen = settings.activation
    gates_of = {
        kind: chosen.gates if chosen.gates is not None else () if source.kind == "directory" else DEFAULT_GATES
        for kind, source in named.items()
        if source is not None
    }
    command = (sys.executable, "-m", "policyd.cli.gate_process")
    document = settings.model_dump(mode="json")
    # In the order of ``policyd.revisions.gates``; each line speaks for one or several of them.
    gates: list[Gate] = [
        GateRuns(command, document, chosen.gates_deadline_ms),
        ImpactGate(
            GateRuns(command, document, chosen.impact_deadline_ms, (IMPACT,)), approvable=desk.trust is not None
        ),
    ]
    return Lifecycle(desk, sources, gates, gates_of, desk.trust, chosen.converge_ms)


def make_desk(settings: Settings, log: WrittenLog, reader: LogReader) -> RevisionDesk:
    """Where revisions stand, and who must approve what."""
    named = settings.revisions.allowed_signers_file is not None
    chosen = settings.activation
    plan = Plan(chosen.mode == "automatic", chosen.steps, {"canary": chosen.canary_min_ms * 1_000})
    return RevisionDesk(log, reader, plan, Trust(settings.revisions, reader) if named else None)


EntitlementsOf = Callable[[str, str, Fleet], Entitlements]
Read = Callable[[], tuple[PolicyTree, Fleet]]
"""Reads both trees, as they are now."""


@dataclass
class Parsed:
    """The revisions of what the sources give; the last pairs are not parsed again, so that going back costs nothing."""

    sources: Sources
    _last: list[tuple[TreeFiles, tuple[PolicyTree, Fleet]]] = field(default_factory=list)

    def __call__(self) -> tuple[PolicyTree, Fleet]:
        """The pair to try. Raises ``RevisionError`` when the files of no pair that is left can be parsed."""
        while True:
            files = self.sources.read()
            known = next((pair for parsed, pair in self._last if parsed == files), None)
            if known is not None:
                return known
            try:
                pair = files.revisions()
            except RevisionError as error:
                if not self.sources.settled(error):
                    raise
            else:
                self._last = [*self._last[1 - PARSED_KEPT_MAX :], (files, pair)]
                return pair


@dataclass(frozen=True)
class Trees:
    """Where both trees are read, who is told what became of them, and how sure it is that they are the newest."""

    read: Read
    settled: Callable[[PolicydError | None], bool] = lambda fault: False
    freshness: Freshness = field(default_factory=Freshness)


async def following(
    settings: Settings, directory: DataDirectory, log: WrittenLog, sources: Sources, stack: AsyncExitStack
) -> Lifecycle:
    """The lifecycle of what the sources have, begun: there is something to serve. Raises ``RevisionError``."""
    if settings.activation.steps and settings.engine.opa_url is not None:
        raise ConfigError(
            "an OPA at an address holds one revision, and canary needs two",
            remedy="leave out activation.steps, or have policyd start the OPA (engine.opa_binary)",
        )
    reader = await LogReader.open(directory, deadline_ms=settings.audit.search_deadline_ms)
    stack.push_async_callback(reader.close)
    lifecycle = make_lifecycle(settings, sources, make_desk(settings, log, reader))
    stack.push_async_callback(lifecycle.close)
    await lifecycle.begin()
    return lifecycle


async def loaded_ahead(engine: Engine, tree: PolicyTree) -> None:
    """Compile what is activated next; its faults are for whoever activates it."""
    with suppress(RevisionError):
        await engine.load(tree)


async def first_activated(activation: Activation, trees: Trees, tree: PolicyTree, fleet: Fleet) -> Fleet:
    """Activate the pair, or the next one that is left when it is refused; the fleet of the one that went live."""
    while True:
        try:
            await activation.activate(tree, fleet)
        except RevisionError as error:
            if not trees.settled(error):
                raise
            tree, fleet = await asyncio.to_thread(trees.read)
        else:
            trees.settled(None)
            return fleet


async def first_good(engine: Engine, sources: Sources, entitlements_of: EntitlementsOf) -> TreeFiles:
    """The first pair of trees that passes every check, on an engine of its own, before there are processes for it.

    Raises the fault of the last pair when none does.
    """
    candidates = Candidates(engine, entitlements_of)
    try:
        while True:
            files = await asyncio.to_thread(sources.read)
            try:
                await candidates.proved(*files.revisions())
            except RevisionError as error:
                if not sources.settled(error):
                    raise
            else:
                sources.settled(None)
                return files
    finally:
        await engine.close()
