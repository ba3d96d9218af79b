"""Removing what is older than its class keeps, run by run: a batch of bodies a transaction, each under its warrant.

    look ──a batch of entries that are due──► warrant ──the writer: judged again, removed, appended──► look on

Rules: between two batches the writer takes whatever else waits; a run that ends early has removed what its warrants
say; the settings say what goes, so that whoever starts a run decides nothing; a run that a hold comes in between looks
again.
It refuses: to run when the settings name no class.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from audit.record import Entry, encode
from audit.retention import ranges
from policyd.errors import ConfigError, OnHold, PolicydError
from policyd.retention_settings import RetentionSettings
from policyd.services.clock import Now, now_us, rfc3339, uuid7
from policyd.services.commit import Submission
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.log_reader import LogReader
from policyd.services.proofs import log_number
from policyd.services.retention import Judged, Looked, Policy, Removal, look
from policyd.settings import AuditSettings

TRIES: Final = 3
"""How often a batch is looked for again that a hold came in between of."""
RECORD_VERSION: Final = 1
_log: Final = logging.getLogger(__name__)


@dataclass
class Retention:
    """Runs for one writer."""

    reader: LogReader
    committer: Committer
    settings: RetentionSettings
    now: Now = now_us

    async def keep_removing(self, interval_ms: int) -> None:
        """A run each interval, until it is cancelled."""
        while True:
            try:
                ran = await self.run()
            except PolicydError as error:
                _log.warning("retention stopped: %s", error.detail)
            else:
                if ran["removed"]:
                    _log.info("retention removed %d bodies under %d warrants", ran["removed"], len(ran["warrants"]))
            await asyncio.sleep(interval_ms / 1_000)

    async def run(self) -> dict[str, Any]:
        """Remove all that is due now. Answers how many, how many are held, and the indexes of the warrants."""
        policy, time_us = policy_of(self.settings), self.now()
        log = await self.reader.read(lambda connection: log_number(connection, self.committer.origin))
        warrants: list[int] = []
        removed, held, after, tries, more = 0, 0, -1, 0, True
        while more:
            looked = await _looked(self.reader, log, policy, time_us, after)
            due = [each for each in looked.entries if each.judgement == "due"]
            skipped = sum(each.judgement == "held" for each in looked.entries)
            try:
                for batch in _batches(due, self.settings.batch_max_entries):
                    warrants.append(await self._remove(policy, batch, skipped, time_us))
                    removed += len(batch)
            except OnHold:
                tries += 1
                if tries == TRIES:
                    raise
                continue  # what has gone is not found again
            held, after, tries, more = held + skipped, looked.after, 0, looked.more
        return {"removed": removed, "held": held, "warrants": warrants}

    async def _remove(self, policy: Policy, batch: Sequence[Judged], skipped: int, time_us: int) -> int:
        removal = Removal(policy, tuple(each.index for each in batch), time_us)
        position = await self.committer.enqueue(Submission(_warrant(policy, batch, skipped, time_us), removal=removal))
        return position.index


async def retain(directory: DataDirectory, settings: RetentionSettings, audit: AuditSettings) -> dict[str, Any]:
    """One run on a log that this process has locked."""
    policy_of(settings)
    committer = await Committer.open(directory, durability=audit.durability)
    try:
        reader = await LogReader.open(directory, deadline_ms=audit.search_deadline_ms)
        try:
            return await Retention(reader, committer, settings).run()
        finally:
            await reader.close()
    finally:
        await committer.close()


async def planned(
    reader: LogReader, origin: str, settings: RetentionSettings, now: Now = now_us
) -> list[dict[str, Any]]:
    """What a run would remove now, by kind and tenant; nothing is removed."""
    policy, time_us = policy_of(settings), now()
    log = await reader.read(lambda connection: log_number(connection, origin))
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    after, more = -1, True
    while more:
        looked = await _looked(reader, log, policy, time_us, after)
        for each in looked.entries:
            _count(rows, policy, each)
        after, more = looked.after, looked.more
    return [rows[key] for key in sorted(rows)]


async def _looked(reader: LogReader, log: int, policy: Policy, time_us: int, after: int) -> Looked:
    return await reader.read(lambda connection: look(connection, log, policy, time_us, after))


def _count(rows: dict[tuple[str, str], dict[str, Any]], policy: Policy, each: Judged) -> None:
    if each.judgement == "kept":
        return
    nothing = {
        "kind": each.kind,
        "tenant": each.tenant,
        "keep_days": policy.days(each.kind, each.tenant),
        "removed": 0,
        "held": 0,
        "oldest": rfc3339(each.time_us),
    }
    row = rows.setdefault((each.kind, each.tenant or ""), nothing)
    row["removed" if each.judgement == "due" else "held"] += 1
    row["newest"] = rfc3339(each.time_us)


def policy_of(settings: RetentionSettings) -> Policy:
    """What the settings say. Raises ``ConfigError`` when they name no class."""
    policy = Policy.of(settings)
    if not policy.shortest:
        raise ConfigError(
            "nothing is to be removed: retention.keep_days and retention.tenants name no kind",
            remedy="name a kind of entry and for how many days it is kept, such as retention.keep_days.decision: 400",
        )
    return policy


def _batches(due: Sequence[Judged], size: int) -> Iterable[Sequence[Judged]]:
    for start in range(0, len(due), size):
        yield due[start : start + size]


def _warrant(policy: Policy, batch: Sequence[Judged], skipped: int, time_us: int) -> Entry:
    entry_id, times_us = uuid7(time_us), [each.time_us for each in batch]
    told = {
        "newest": rfc3339(max(times_us)),
        "oldest": rfc3339(min(times_us)),
        "removed": ranges([each.index for each in batch]),
        "rules": policy.rules(),
        "skipped": skipped,
        "time": rfc3339(time_us),
        "v": RECORD_VERSION,
    }
    # Verification looks for the kind right behind the id, so that no field comes before or between them.
    body = encode({"id": entry_id, "kind": "retention", **told}, os.urandom(16))
    return Entry("retention", entry_id, time_us, body)
