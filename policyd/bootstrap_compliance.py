"""Puts together what judges placements that are in force; the other half is ``policyd.bootstrap``.

Rules: it has sheets of its own, so that judging evicts none that decisions stand on.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from policyd.bootstrap_webhooks import cancel
from policyd.ports import Engine
from policyd.services.activation import Activation
from policyd.services.compliance import Compliance, keep_judging
from policyd.services.decisions import Log, SnapshotNow
from policyd.services.log_reader import LogReader
from policyd.services.sheets import SheetBook, SheetLimits
from policyd.settings import EngineSettings, Settings


def make_compliance(settings: EngineSettings, reader: LogReader, snapshots: SnapshotNow, engine: Engine) -> Compliance:
    """What judges placements, with sheets of its own."""
    limits = SheetLimits(
        sheets_max=256, cold_per_tenant_per_s=100_000, cold_per_tenant_burst=100_000, deadline_ms=settings.deadline_ms
    )
    return Compliance(reader, snapshots, SheetBook(engine, limits))


def start_compliance(
    settings: Settings, reader: LogReader, activation: Activation, log: Log, stack: AsyncExitStack
) -> None:
    """Judge what is in force, again and again, where the settings ask for it."""
    chosen = settings.compliance
    if chosen.interval_ms is None:
        return
    compliance = make_compliance(settings.engine, reader, activation, activation.engine)
    judging = asyncio.create_task(keep_judging(compliance, log, chosen.within_days, chosen.interval_ms))
    stack.push_async_callback(cancel, judging)
