"""Is the time of the ledger that of the clock? For the doctor: what a start had to take the clock's word for.

Rules: it reads the log and changes nothing; ledger time never goes back, so one that is ahead of the clock stays there
until the clock has caught up, and nothing but that mends it.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import orjson
from sqlalchemy import Engine, func, select

from audit import query
from audit.errors import AuditFailure
from policyd.ledger.tables import TIME
from policyd.services.clock import Now, now_us, rfc3339
from policyd.services.data_directory import DataDirectory
from policyd.services.doctor import Check, Health

AHEAD_MAX_US: Final = 60_000_000
"""Ledger time may be this far ahead: clocks of replicas differ, and are set by small steps."""
ENTRIES_READ_MAX: Final = 1_000
"""So many of the newest entries on budgets are looked at for a jump."""


async def check_ledger_time(directory: DataDirectory, now: Now = now_us) -> Check:
    """Ledger time against the clock, and the newest jump that a start recorded."""
    if not directory.store.exists():
        return Check("ledger", Health.OK, "no log yet")
    try:
        last_us, jump = await asyncio.to_thread(_read, directory)
    except AuditFailure as error:
        return Check("ledger", Health.WARN, f"ledger time cannot be read: {error}", "see the checks of the log")
    if last_us > now() + AHEAD_MAX_US:
        remedy = "if the clock is right now, budgets count in the windows of that time until the clock gets there"
        return Check("ledger", Health.FAIL, f"ledger time {rfc3339(last_us)} is ahead of the clock", remedy)
    if jump is not None:
        remedy = "see that the clock was right then: new windows of the budgets have begun"
        return Check("ledger", Health.WARN, f"a start jumped from {jump['from']} to {jump['to']}", remedy)
    return Check("ledger", Health.OK, f"last changed {rfc3339(last_us)[:19]}Z" if last_us else "nothing reserved yet")


def _read(directory: DataDirectory) -> tuple[int, dict[str, Any] | None]:
    engine = directory.store.open_reader()
    try:
        return _last_us(engine), _jump(engine)
    finally:
        engine.dispose()


def _last_us(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(select(func.max(TIME.c.last_us))).scalar() or 0)


def _jump(engine: Engine) -> dict[str, Any] | None:
    with engine.connect() as connection:
        page = query.search(connection, {}, None, ENTRIES_READ_MAX, kinds=("budget",))
    bodies = (orjson.loads(record.body) for record in page.items)
    return next((body for body in bodies if body.get("event") == "clock_jump"), None)
