"""What persons do and undo while policyd runs: proposals, budgets, waivers; and what is heard of it from the database.

Rules: as in ``policyd.bootstrap``, which this is part of: what was started is stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from policyd.bootstrap_webhooks import cancel
from policyd.core.budgets import SCALE
from policyd.ledger.chart import UNITS
from policyd.services.activation import Activation
from policyd.services.budget_changes import BudgetChanges
from policyd.services.crossed import Crossed
from policyd.services.decisions import WrittenLog
from policyd.services.log_reader import LogReader
from policyd.services.two_persons import TwoPersons
from policyd.services.waivers import Waivers
from policyd.services.waivers_in_force import WaiversInForce
from policyd.settings import Settings

Heard = TypeVar("Heard", Crossed, WaiversInForce)


def beside(work: Coroutine[Any, Any, None], stack: AsyncExitStack) -> asyncio.Task[None]:
    """Goes on beside everything else, until the end."""
    task = asyncio.create_task(work)
    stack.push_async_callback(cancel, task)
    return task


async def heard(reader: LogReader, activation: Activation, stack: AsyncExitStack) -> tuple[Crossed, WaiversInForce]:
    """What the database says of budgets and waivers, known and kept so."""
    crossed = Crossed(reader, activation, beside=activation.kept)
    return await _kept(crossed, stack), await _kept(WaiversInForce(reader), stack)


async def _kept(read: Heard, stack: AsyncExitStack) -> Heard:
    await read.refresh()
    beside(read.keep_fresh(), stack)
    return read


def by_persons(
    settings: Settings,
    log: WrittenLog,
    reader: LogReader,
    activation: Activation,
    found: tuple[Crossed, WaiversInForce],
) -> tuple[TwoPersons, BudgetChanges, Waivers]:
    """What takes two persons, or one who may."""
    proposals, (crossed, in_force) = settings.proposals, found
    two = TwoPersons(log, reader, activation, log.origin, proposals.ttl_ms, proposals.open_max)
    # Up to which amount of the ledger's units one person may raise.
    alone: dict[str, int] = {
        UNITS[unit]: limit * SCALE[unit] for unit, limit in settings.budgets.raise_alone_max.items()
    }
    budgets = BudgetChanges(log, activation, crossed, log.origin, alone)
    return two, budgets, Waivers(log, reader, activation, two, in_force, log.origin, settings.waivers)
