"""Is this installation fit to decide? One check for each part, each with what to do when it is not.

| check      | fails when                                                                                  |
|------------|---------------------------------------------------------------------------------------------|
| python     | the interpreter is older than 3.11                                                          |
| clock      | the time is before what the fleet or the log have seen already: validity would be wrong     |
| fleet      | the files do not hold together                                                              |
| policies   | the tree cannot be read or does not compile, or a package reads what no input has           |
| engine     | it does not start, or does not answer                                                       |
| opa        | it is the configured engine and cannot be started; else only a note                         |
| data       | the directory cannot be written, or its disk is nearly full; a running writer is a note     |
| database   | it holds the log, and cannot be opened; one without a log is a warning                       |
| ledger     | its time is ahead of the clock; a jump that a start recorded is a warning                   |
| revisions  | of a followed source nothing is live; one that is refused or not approved is a warning      |
| facts      | they cannot be read; old ones are a warning                                                 |

Rules: a check never raises and never changes what it looks at; one broken part does not keep the others unchecked.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from audit.errors import AuditFailure, SchemaUnknown
from policyd.core.facts import Facts
from policyd.core.fleet import Fleet
from policyd.errors import PolicydError
from policyd.ports import Engine
from policyd.services.clock import Now, day, from_rfc3339, now_us, rfc3339
from policyd.services.data_directory import DataDirectory
from policyd.services.log_reader import LogReader

PYTHON_MIN: Final = (3, 11)
DISK_FREE_MIN_BYTES: Final = 256 * 1024**2
FACTS_OLD_AFTER_MS: Final = 15 * 60_000
"""Facts older than this are worth a look: headroom and queues change by the minute."""


class Health(StrEnum):
    """How a part is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One part, how it is, what was seen, and what to do about it."""

    part: str
    health: Health
    detail: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        """As JSON values."""
        return {"part": self.part, "health": self.health.value, "detail": self.detail, "remedy": self.remedy}


def failed(part: str, error: PolicydError) -> Check:
    """A part that raised."""
    more = f" (and {len(error.findings) - 1} more)" if len(error.findings) > 1 else ""
    return Check(part, Health.FAIL, error.detail + more, error.remedy_text)


def check_python(version: tuple[int, ...] | None = None) -> Check:
    """The interpreter."""
    found = version or tuple(sys.version_info[:3])
    shown = ".".join(str(number) for number in found)
    if found[:2] < PYTHON_MIN:
        return Check("python", Health.FAIL, shown, "use Python 3.11 or newer")
    return Check("python", Health.OK, shown)


def check_clock(fleet: Fleet | None, newest_entry_us: int | None, now: Now = now_us) -> Check:
    """The time, against the newest day in the fleet and the newest entry of the log."""
    time_us = now()
    today = day(time_us)
    newest_day = max(_checked_days(fleet), default="") if fleet else ""
    remedy = "set the clock (NTP): expiry of certificates, waivers and answers depends on it"
    if newest_entry_us is not None and newest_entry_us > time_us:
        return Check("clock", Health.FAIL, f"{rfc3339(time_us)} is before the newest entry of the log", remedy)
    if newest_day > today:
        return Check("clock", Health.FAIL, f"{today} is before {newest_day}, when a fact was checked", remedy)
    return Check("clock", Health.OK, rfc3339(time_us)[:19] + "Z")


def _checked_days(fleet: Fleet) -> Iterator[str]:
    for pool in fleet.pools.values():
        if pool.evidence.checked is not None:
            yield pool.evidence.checked.isoformat()
        if pool.price is not None:
            yield pool.price.checked.isoformat()


async def newest_entry_us(directory: DataDirectory) -> int | None:
    """The time of the newest entry of the log of this data directory; None when there is no log that can be read."""
    if not directory.store.exists():
        return None
    try:
        reader = await LogReader.open(directory)
    except PolicydError:
        return None
    try:
        page = await reader.search({}, limit=1)
    except PolicydError:
        return None
    finally:
        await reader.close()
    return page.items[0].time_us if page.items else None


def check_data(path: Path) -> Check:
    """The data directory: there or makeable, writable, room on its disk, and who writes it."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            "data", Health.FAIL, f"{existing} cannot be written", "give this user the directory, or --data-dir"
        )
    free = shutil.disk_usage(existing).free
    shown = f"{free // 1024**2:,} MiB free"
    if free < DISK_FREE_MIN_BYTES:
        return Check("data", Health.FAIL, f"{path}: {shown}", "free the disk: without a log nothing is allowed")
    if existing != path.absolute():
        return Check("data", Health.OK, f"{path} will be made on first use, {shown}")
    try:
        address = DataDirectory(path).announced()
    except PolicydError as error:
        return failed("data", error)
    if address is not None:
        return Check("data", Health.OK, f"{path}: a server at {address} writes it, {shown}")
    return Check("data", Health.OK, f"{path}: nobody writes it now, {shown}")


async def check_database(directory: DataDirectory) -> Check:
    """The database of the log: it answers, and what it holds is a log that this program knows."""
    store = directory.store
    try:
        engine = await asyncio.to_thread(store.open_reader)
    except SchemaUnknown as error:
        remedy = "an empty database gets its tables from policyd serve; any other is not the one that is meant"
        return Check("database", Health.WARN, f"{store.name}: {error}", remedy)
    except AuditFailure as error:
        return Check("database", Health.FAIL, str(error), "start it, or mend the address in audit.database_url_file")
    await asyncio.to_thread(engine.dispose)
    return Check("database", Health.OK, f"{store.name} answers")


async def check_engine(engine: Engine, answer: Callable[[], Awaitable[str]] | None = None) -> Check:
    """The engine: it starts and answers; ``answer`` decides something and says what."""
    try:
        await engine.health()
        said = await answer() if answer is not None else ""
    except PolicydError as error:
        return failed("engine", error)
    return Check("engine", Health.OK, f"{engine.name} answers{': ' if said else ''}{said}")


def check_opa(binary: str, *, configured: bool) -> Check:
    """Whether an OPA is found; only needed when it is the configured engine."""
    found = shutil.which(binary)
    if found:
        return Check("opa", Health.OK, found)
    remedy = "install OPA, or name it: engine.opa_binary"
    if configured:
        return Check("opa", Health.FAIL, f"{binary!r} is not on the path", remedy)
    return Check("opa", Health.OK, "not found, and not needed: the embedded engine is configured")


def check_facts(facts: Facts, fleet: Fleet, now: Now = now_us) -> Check:
    """How old the facts are, and whether they speak of every pool of the fleet."""
    silent = [name for name in fleet.pools if name not in facts.pools]
    if silent:
        shown = ", ".join(silent[:3]) + (" …" if len(silent) > 3 else "")
        remedy = "a pool without facts is refused: have its headroom and health reported"
        return Check("facts", Health.WARN, f"nothing is known of {len(silent)} pools: {shown}", remedy)
    if facts.observed_at is None:
        remedy = "connect a source of facts (facts.path) before you rely on headroom"
        return Check("facts", Health.WARN, "none: declared capacity counts as free", remedy)
    age_ms = (now() - from_rfc3339(facts.observed_at)) // 1_000
    seen = datetime.fromisoformat(facts.observed_at).astimezone(UTC)
    if age_ms > FACTS_OLD_AFTER_MS:
        remedy = "see that whatever writes the facts file still runs"
        return Check("facts", Health.WARN, f"{len(facts.pools)} pools as of {seen:%Y-%m-%d %H:%M} UTC", remedy)
    return Check("facts", Health.OK, f"{len(facts.pools)} pools, {age_ms // 1_000} s old")
