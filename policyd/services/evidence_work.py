"""What goes on beside a log that is open for writing: others are shown what it is, it records what others are, and
what is older than its class keeps goes.

Rules: nothing of it runs where there is nobody to show anything to; it reads by connections of its own.
"""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import AsyncExitStack
from functools import partial

from policyd.services.checkpoints import LogFiles, public_keys
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.log_reader import LogReader
from policyd.services.neighbours import Neighbours
from policyd.services.retention_run import Retention, policy_of
from policyd.services.witnessing import Witnesses, witnesses_of
from policyd.settings import Settings
from policyd.telemetry import Telemetry


async def evidence_work(
    settings: Settings, directory: DataDirectory, committer: Committer, telemetry: Telemetry, stack: AsyncExitStack
) -> list[Coroutine[None, None, None]]:
    """What is to run until the log is closed. Raises ``ConfigError`` for a witness that is none, and for a
    retention of nothing."""
    audit, retention = settings.audit, settings.retention
    witnesses, shared = witnesses_of(audit), audit.database_url_file is not None
    if not witnesses and not shared and retention.interval_ms is None:
        return []
    reader = await LogReader.open(directory, deadline_ms=audit.search_deadline_ms)
    stack.push_async_callback(reader.close)
    work: list[Coroutine[None, None, None]] = []
    if shared:
        work.append(Neighbours(reader, committer).keep_looking(audit.seen_interval_ms))
    if retention.interval_ms is not None:
        policy_of(retention)
        work.append(Retention(reader, committer, retention).keep_removing(retention.interval_ms))
    if witnesses:
        # Imported here because an HTTP client takes time that most starts do without.
        from connectors.witness import post_checkpoint

        keys = partial(public_keys, LogFiles.within(directory.path))
        asked = Witnesses(reader, committer.origin, directory.path, witnesses, keys, post_checkpoint, telemetry)
        work.append(asked.keep_asking(audit.witness_interval_ms))
    return work
