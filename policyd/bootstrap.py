"""The only place that names adapters: from settings to a running policyd, and back down again.

Rules: what was started is stopped, in reverse order, also when a later part fails to start; the data directory is
locked before anything is written; nothing is served before both revisions are in the log.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from connectors.otel_signals import exported_signals, switched_off
from connectors.static import DeclaredFacts, StaticFacts
from policyd.api.callers import Callers
from policyd.bootstrap_compliance import start_compliance
from policyd.bootstrap_identity import make_authenticator
from policyd.bootstrap_persons import beside, by_persons, heard
from policyd.bootstrap_sources import (
    Parsed,
    Read,
    Trees,
    first_activated,
    following,
    loaded_ahead,
    make_desk,
    make_sources,
    refuse_followed,
)
from policyd.bootstrap_webhooks import read_secret
from policyd.core.fleet import Fleet
from policyd.core.principal import LOCAL, Principal
from policyd.core.snapshot import Snapshot
from policyd.engines.embedded import EmbeddedEngine
from policyd.engines.entitlements import CasbinEntitlements
from policyd.engines.opa_bundle import BundleKey
from policyd.errors import ConfigError
from policyd.identity.limits import Limiter
from policyd.ports import Engine, Entitlements, FactSource, PolicyTree
from policyd.revisions.fleet_files import load_fleet
from policyd.revisions.policy_files import load_policy_tree
from policyd.revisions.pushes import Pushes
from policyd.revisions.tree_files import TreeFiles, read_tree_files
from policyd.services.activation import Activation
from policyd.services.budget_changes import BudgetChanges
from policyd.services.bundles import PolicyBundles
from policyd.services.canary import Canary
from policyd.services.committer import Committer
from policyd.services.crossed import Crossed
from policyd.services.data_directory import DataDirectory
from policyd.services.decisions import DecisionService, WrittenLog
from policyd.services.evidence_work import evidence_work
from policyd.services.facts_holder import FactsHolder
from policyd.services.figures import Figures, Shown
from policyd.services.frames import Frames
from policyd.services.freshness import Freshness
from policyd.services.log_place import directory_of
from policyd.services.log_reader import LogReader
from policyd.services.readings import observe_parts, observe_process
from policyd.services.refusals import Refusals, ended
from policyd.services.reload import Reload
from policyd.services.repeats import Repeats
from policyd.services.revision_approvals import RevisionApprovals
from policyd.services.revision_desk import RevisionDesk
from policyd.services.settlements import Settlements
from policyd.services.sheets import SheetBook, SheetLimits
from policyd.services.simulations import SimulationLimits, Simulations
from policyd.services.sources import Sources
from policyd.services.trials import Trials
from policyd.services.two_persons import TwoPersons
from policyd.services.waivers import Waivers
from policyd.services.waivers_in_force import WaiversInForce
from policyd.services.webhook_forms import secret_of
from policyd.services.writer import CommitLimits
from policyd.settings import BundleSettings, EngineSettings, Settings
from policyd.source_settings import SourcesSettings
from policyd.telemetry import Exposition, Telemetry

if TYPE_CHECKING:
    pass

_log: Final = logging.getLogger(__name__)
_PACKAGE: Final = Path(__file__).resolve().parent


async def nothing_to_gather() -> None:
    """One process has its figures at hand."""


@dataclass
class Running:
    """A policyd that can decide, with the parts that the HTTP and command-line surfaces use."""

    settings: Settings
    directory: DataDirectory
    engine: Engine
    activation: Activation
    book: SheetBook
    facts: FactsHolder
    committer: WrittenLog
    reader: LogReader
    decisions: DecisionService
    telemetry: Telemetry
    simulations: Simulations
    callers: Callers
    reload: Reload
    repeats: Repeats
    settlements: Settlements
    two_persons: TwoPersons
    budgets: BudgetChanges
    waivers: Waivers
    bundles: PolicyBundles
    pushes: Pushes | None
    look: Callable[[], None]
    desk: RevisionDesk
    canary: Canary
    principal: Principal = LOCAL
    """Who acts on the command line, beside no server."""
    workers_fault: Callable[[], str | None] = lambda: None
    """Why not all API processes of this server are ready, or None."""
    whole: Shown | None = None
    gather: Callable[[], Awaitable[None]] = nothing_to_gather
    """Brings the figures of all processes into ``whole``."""

    @property
    def snapshot(self) -> Snapshot:
        """The live snapshot."""
        return self.activation.current()

    @property
    def approvals(self) -> RevisionApprovals:
        """Approvals of revisions; they hold nothing of their own."""
        log = self.committer
        return RevisionApprovals(log, self.reader, self.activation, self.settings.revisions, log.origin)

    def exposition(self) -> Exposition:
        """What answers ``GET /metrics``, made now."""
        return make_exposition(self.telemetry if self.whole is None else self.whole.telemetry)


def make_exposition(telemetry: Telemetry) -> Exposition:
    """What answers ``GET /metrics``: OpenTelemetry's exporter for Prometheus."""
    # Imported here because it takes a sixth of a second, which commands that serve nothing do without.
    from connectors.otel_metrics import PrometheusText

    return PrometheusText(telemetry)


def shipped(name: str) -> Path:
    """A directory that comes with policyd: ``policies``, ``fleet`` or ``workloads``; installed, or of the checkout."""
    installed = _PACKAGE / "_shipped" / name
    checkout = _PACKAGE.parent / ("policies" if name == "policies" else f"examples/{name}")
    for path in (installed, checkout):
        if path.is_dir():
            return path
    raise ConfigError(f"the shipped {name} are not installed: looked at {installed} and {checkout}")


def shipped_facts() -> Path | None:
    """The facts that go with the shipped fleet, when they are there."""
    for path in (_PACKAGE / "_shipped" / "facts.yaml", _PACKAGE.parent / "examples" / "facts.yaml"):
        if path.is_file():
            return path
    return None


def fleet_path(settings: Settings) -> Path:
    """The folder that the fleet is read from. Raises ``ConfigError`` when it is followed from elsewhere."""
    refuse_followed(settings, "fleet")
    return settings.fleet or shipped("fleet")


def policies_path(settings: Settings) -> Path:
    """The folder that the policies are read from. Raises ``ConfigError`` when they are followed from elsewhere."""
    refuse_followed(settings, "policies")
    return settings.policies or shipped("policies")


def make_engine(settings: EngineSettings) -> Engine:
    """The engine that the settings name; not started yet. Raises ``ConfigError`` when a secret file cannot be read."""
    if settings.kind == "embedded":
        return EmbeddedEngine(settings.workers)
    # Imported here because its HTTP client takes a quarter of a second and 15 MB that the embedded engine does without.
    from policyd.engines.opa import OpaEngine

    if settings.opa_url is not None:
        return OpaEngine.at_url(settings.opa_url, token=read_secret(settings.opa_token_file))
    return OpaEngine.child(os.environ.get("POLICYD_OPA_BINARY", settings.opa_binary))


def make_bundle_key(settings: BundleSettings) -> BundleKey | None:
    """The key that signs bundles, when there is one. Raises ``ConfigError``."""
    pem = read_secret(settings.signing_key_file)
    return None if pem is None else BundleKey.read(pem.encode(), settings.key_id)


def make_pushes(settings: SourcesSettings) -> Pushes | None:
    """What judges the pushes that git servers tell of; None when nobody is to tell. Raises ``ConfigError``."""
    if settings.webhook is None:
        return None
    secret = read_secret(settings.webhook.secret_file)
    assert secret is not None
    followed = [source for source in (settings.policies, settings.fleet) if source is not None]
    refs = {f"refs/tags/{each.tag}" if each.tag else f"refs/heads/{each.branch}" for each in followed}
    return Pushes(settings.webhook.form, secret_of(secret), frozenset(refs))


def make_entitlements(model: str, rows: str, fleet: Fleet) -> Entitlements:
    """Casbin, built aside; the domain ``*`` stands for every tenant of the fleet."""
    return CasbinEntitlements.build(model, rows, domains=fleet.tenants)


def make_facts(settings: Settings, fleet: Fleet) -> FactsHolder:
    """The source of facts: the named file, the shipped one beside the shipped fleet, else declared capacity."""
    path = settings.facts.path or (
        shipped_facts() if settings.fleet is None and settings.sources.fleet is None else None
    )
    source: FactSource = StaticFacts(path) if path is not None else DeclaredFacts(fleet)
    return FactsHolder(source, refresh_ms=settings.facts.refresh_ms, max_age_ms=settings.facts.max_age_ms)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """A policyd from first file to open log; closed again on the way out.

    Raises ``AuditLocked`` when another process writes the data directory, and whatever a part raises on its way up.
    """
    async with AsyncExitStack() as stack:
        telemetry = await _start_telemetry(settings, stack)
        directory = directory_of(settings)
        directory.acquire()
        stack.callback(directory.release)
        opening = partial(_open_log, settings, directory, telemetry, stack)
        sources = sources_of(settings)
        if not sources.followed:
            yield await _assembled(
                settings, directory, telemetry, opening, Trees(partial(_read_trees, settings)), stack
            )
            return
        log = await opening()

        async def opened() -> WrittenLog:
            return log

        lifecycle = await following(settings, directory, log, sources, stack)
        trees = Trees(Parsed(sources), sources.settled, sources.freshness)
        parts = await _assembled(settings, directory, telemetry, opened, trees, stack)
        lifecycle.try_out, parts.canary.failed = parts.canary.take, lifecycle.spoilt
        beside(lifecycle.keep_turning(parts.reload.ask), stack)
        yield parts


@asynccontextmanager
async def writing(settings: Settings) -> AsyncIterator[tuple[DataDirectory, Committer, Telemetry]]:
    """Only the writer of the log, for API processes that are other processes. Raises as ``running``."""
    async with AsyncExitStack() as stack:
        telemetry = await _start_telemetry(settings, stack)
        directory = directory_of(settings)
        directory.acquire()
        stack.callback(directory.release)
        observe_process(telemetry)
        yield directory, await _open_log(settings, directory, telemetry, stack), telemetry


@asynccontextmanager
async def running_beside(
    settings: Settings,
    log: WrittenLog,
    read: Read,
    workers_fault: Callable[[], str | None],
    figures: Callable[[], Awaitable[Figures]],
    freshness: Freshness,
    look: Callable[[], None],
) -> AsyncIterator[Running]:
    """A policyd whose log is written by another process; ``read`` gives the trees that this process is to serve."""
    async with AsyncExitStack() as stack:
        telemetry = await _start_telemetry(settings, stack)

        async def linked() -> WrittenLog:
            return log

        parts = await _assembled(
            settings, directory_of(settings), telemetry, linked, Trees(read, freshness=freshness), stack
        )
        parts.workers_fault, parts.look = workers_fault, look
        whole = parts.whole = Shown(parts.telemetry)

        async def gather() -> None:
            whole.show(await figures())

        parts.gather = gather
        yield parts


def sources_of(settings: Settings) -> Sources:
    """Where both trees come from, followed or as folders."""
    return make_sources(settings, policies_path, fleet_path)


def tree_files(settings: Settings) -> TreeFiles:
    """The files of both trees as they are now. Raises ``PolicyInvalid`` or ``FleetInvalid``."""
    policies, fleet = policies_path(settings), fleet_path(settings)
    return read_tree_files(policies, fleet)


async def _assembled(
    settings: Settings,
    directory: DataDirectory,
    telemetry: Telemetry,
    open_log: Callable[[], Awaitable[WrittenLog]],
    trees: Trees,
    stack: AsyncExitStack,
) -> Running:
    """Every part, joined; the log is opened when the trees are known to be readable, while the engine compiles."""
    tree, fleet = await asyncio.to_thread(trees.read)
    facts = make_facts(settings, fleet)
    facts.refresh()
    engine = make_engine(settings.engine)
    stack.push_async_callback(engine.close)
    loading = beside(loaded_ahead(engine, tree), stack)
    log = await open_log()
    await loading
    activation = Activation(engine, make_entitlements, log)
    _declare(facts, await first_activated(activation, trees, tree, fleet))
    reader = await LogReader.open(directory, deadline_ms=settings.audit.search_deadline_ms)
    stack.push_async_callback(reader.close)
    found = await heard(reader, activation, stack)
    book = SheetBook(engine, _sheet_limits(settings.engine), telemetry=telemetry)
    decisions = _decisions(settings, activation, facts, book, log, telemetry, found, trees.freshness)
    observe_parts(telemetry, engine=engine, book=book, committer=log, facts=facts, snapshots=activation)
    simulations = Simulations(activation, facts, book, settings.simulation.trees, _simulation_limits(settings))
    repeats = Repeats(decisions, reader, settings.api.idempotency_ttl_ms)
    warmed = (settings.engine.warm_classes_max, settings.engine.warm_wait_ms)
    reload = Reload(activation, decisions, trees.read, lambda fleet: _declare(facts, fleet), trees.settled, *warmed)
    canary = Canary(reload, settings.activation.canary_ppm)
    stack.push_async_callback(canary.close)
    beside(facts.keep_fresh(), stack)
    start_compliance(settings, reader, activation, log, stack)
    callers = _start_callers(settings, log, stack)
    return Running(
        settings,
        directory,
        engine,
        activation,
        book,
        facts,
        log,
        reader,
        decisions,
        telemetry,
        simulations,
        callers,
        reload,
        repeats,
        Settlements(log, reader, log.origin),
        *by_persons(settings, log, reader, activation, found),
        PolicyBundles(activation, make_bundle_key(settings.bundles)),
        make_pushes(settings.sources),
        reload.look,
        make_desk(settings, log, reader),
        canary,
    )


def _read_trees(settings: Settings) -> tuple[PolicyTree, Fleet]:
    fleet = load_fleet(fleet_path(settings))
    return load_policy_tree(policies_path(settings)), fleet


def _decisions(
    settings: Settings,
    activation: Activation,
    facts: FactsHolder,
    book: SheetBook,
    log: WrittenLog,
    telemetry: Telemetry,
    found: tuple[Crossed, WaiversInForce],
    freshness: Freshness,
) -> DecisionService:
    crossed, in_force = found
    return DecisionService(
        activation,
        facts,
        book,
        log,
        log.origin,
        ttl_ms=settings.decision_ttl_ms,
        sheet_wait_ms=settings.engine.sheet_wait_ms,
        queue_max_ms=settings.api.queue_max_ms,
        hold_ms=settings.budgets.hold_ms,
        queue_ms=lambda: log.wait_ms,
        telemetry=telemetry,
        frames=Frames(crossed.percent, crossed.limits),
        freshness=freshness,
        waivers=in_force,
        trials=Trials(settings.activation.canary_failures_max),
    )


async def _open_log(
    settings: Settings, directory: DataDirectory, telemetry: Telemetry, stack: AsyncExitStack
) -> Committer:
    audit = settings.audit
    limits = CommitLimits(
        batch_max_entries=audit.batch_max_entries,
        queue_max_entries=audit.queue_max_entries,
        keys_max=settings.api.idempotency_keys_max,
        clock_jump_ms=settings.budgets.clock_jump_ms,
    )
    committer = await Committer.open(directory, durability=audit.durability, limits=limits, telemetry=telemetry)
    stack.push_async_callback(committer.close)
    for work in await evidence_work(settings, directory, committer, telemetry, stack):
        beside(work, stack)
    return committer


def _start_callers(settings: Settings, log: WrittenLog, stack: AsyncExitStack) -> Callers:
    """Who may ask, how much, and what is recorded of whom it is refused."""
    limits = settings.limits
    refusals = Refusals(log, limits.refusals_interval_ms)
    flushing = asyncio.create_task(refusals.keep_flushing())
    stack.push_async_callback(ended, flushing, refusals)
    authenticator, tokens = make_authenticator(settings.auth)
    if tokens is not None:
        beside(tokens.keep_fresh(settings.auth.refresh_ms), stack)
    part_of = settings.part_of
    limiter = Limiter(part_of(limits.in_flight_max), part_of(limits.requests_per_s), part_of(limits.requests_burst))
    return Callers(authenticator, limiter, refusals)


async def _start_telemetry(settings: Settings, stack: AsyncExitStack) -> Telemetry:
    """The tallies, and the exports that the ``OTEL_*`` variables ask for; closed last, so that the end is told too."""
    chosen = settings.telemetry
    counted = chosen.metrics and not switched_off(os.environ)
    telemetry = Telemetry(metrics=counted, tenant_label=chosen.tenant_label)
    signals = exported_signals(os.environ) - (set() if counted else {"metrics"})
    if signals:
        # Imported here because it takes a third of a second, and most commands export nothing.
        from connectors.otel_export import Exports

        exports = Exports(telemetry, signals)
        stack.push_async_callback(asyncio.to_thread, exports.close)
    return telemetry


def _declare(facts: FactsHolder, fleet: Fleet) -> None:
    """Where the declared capacity counts as free, that of the fleet which is live now."""
    if isinstance(facts.source, DeclaredFacts):
        facts.source = DeclaredFacts(fleet)
        facts.refresh()


def _sheet_limits(settings: EngineSettings) -> SheetLimits:
    return SheetLimits(**{name: getattr(settings, name) for name in SheetLimits.__dataclass_fields__})


def _simulation_limits(settings: Settings) -> SimulationLimits:
    kept = {
        name: getattr(settings.simulation, name)
        for name in ("in_progress_max", "per_caller_max", "sheets_max", "sheets_max_mib", "answers_max")
    }
    return SimulationLimits(**kept, deadline_ms=settings.engine.deadline_ms)
