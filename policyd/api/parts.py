"""What the HTTP surface needs of a running policyd. ``policyd.bootstrap`` makes one; the surface names no adapter.

Rules: the surface reads these parts and owns none of them; whoever made them closes them after the server has ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from policyd.api.callers import Callers
from policyd.core.snapshot import Snapshot
from policyd.ports import Engine
from policyd.revisions.pushes import Pushes
from policyd.services.budget_changes import BudgetChanges
from policyd.services.bundles import PolicyBundles
from policyd.services.data_directory import DataDirectory
from policyd.services.decisions import DecisionService, WrittenLog
from policyd.services.facts_holder import FactsHolder
from policyd.services.log_reader import LogReader
from policyd.services.reload import Reload
from policyd.services.repeats import Repeats
from policyd.services.revision_approvals import RevisionApprovals
from policyd.services.revision_desk import RevisionDesk
from policyd.services.settlements import Settlements
from policyd.services.simulations import Simulations
from policyd.services.two_persons import TwoPersons
from policyd.services.waivers import Waivers
from policyd.settings import Settings
from policyd.telemetry import Exposition, Telemetry


class Parts(Protocol):
    """A policyd that can decide."""

    @property
    def settings(self) -> Settings: ...

    @property
    def directory(self) -> DataDirectory: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def facts(self) -> FactsHolder: ...

    @property
    def committer(self) -> WrittenLog: ...

    @property
    def reader(self) -> LogReader: ...

    @property
    def decisions(self) -> DecisionService: ...

    @property
    def settlements(self) -> Settlements: ...

    @property
    def two_persons(self) -> TwoPersons: ...

    @property
    def approvals(self) -> RevisionApprovals: ...

    @property
    def budgets(self) -> BudgetChanges: ...

    @property
    def bundles(self) -> PolicyBundles: ...

    @property
    def pushes(self) -> Pushes | None:
        """Judges what git servers say of pushes, when somebody is to say it."""

    @property
    def look(self) -> Callable[[], None]:
        """Has the sources looked at soon."""

    @property
    def waivers(self) -> Waivers: ...

    @property
    def desk(self) -> RevisionDesk: ...

    @property
    def telemetry(self) -> Telemetry: ...

    def exposition(self) -> Exposition:
        """What answers ``GET /metrics``; made anew, for whoever serves."""

    @property
    def repeats(self) -> Repeats: ...

    @property
    def simulations(self) -> Simulations: ...

    @property
    def callers(self) -> Callers: ...

    @property
    def reload(self) -> Reload: ...

    @property
    def gather(self) -> Callable[[], Awaitable[None]]:
        """Brings the figures of all processes to what answers ``GET /metrics``."""

    @property
    def workers_fault(self) -> Callable[[], str | None]: ...

    @property
    def snapshot(self) -> Snapshot:
        """The live snapshot. Raises ``EngineUnavailable`` before there is one."""
