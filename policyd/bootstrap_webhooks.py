"""Webhooks of a server, from settings to a task that delivers, and back down again.

Rules: secrets are read from files, once; what was started is stopped, also when a later part fails to start.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from policyd.errors import ConfigError
from policyd.services.data_directory import DataDirectory
from policyd.services.log_reader import LogReader
from policyd.services.webhook_forms import secret_of
from policyd.services.webhooks import Receiver, Webhooks
from policyd.settings import Settings
from policyd.telemetry import Telemetry


@asynccontextmanager
async def telling(
    settings: Settings, directory: DataDirectory, origin: str, telemetry: Telemetry
) -> AsyncIterator[None]:
    """Webhooks for what is in the log with this name, delivered beside its writer. Raises ``ConfigError``."""
    if not settings.webhooks:
        yield
        return
    # Imported here because its HTTP client takes a quarter of a second that servers without webhooks do without.
    from connectors.webhook_http import WebhookHttp

    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(WebhookHttp())
        reader = await LogReader.open(directory, deadline_ms=settings.audit.search_deadline_ms)
        stack.push_async_callback(reader.close)
        webhooks = Webhooks(receivers_of(settings), reader, origin, directory.path, http.post)
        telemetry.observe("policyd.webhook.attempts", webhooks.counted)
        telemetry.observe("policyd.webhook.failing", webhooks.failing_s)
        await webhooks.begin()
        delivering = asyncio.create_task(webhooks.run())
        stack.push_async_callback(cancel, delivering)
        yield


def receivers_of(settings: Settings) -> list[Receiver]:
    """Who is told of what. Raises ``ConfigError`` when a secret cannot be read."""
    found = []
    for name, chosen in settings.webhooks.items():
        written = read_secret(chosen.secret_file)
        key = None if written is None else secret_of(written)
        kept = {each: getattr(chosen, each) for each in ("timeout_ms", "retry_first_ms", "retry_max_ms", "give_up_ms")}
        found.append(Receiver(name, chosen.url, frozenset(chosen.events), chosen.form, key, **kept))
    return found


def read_secret(path: Path | None) -> str | None:
    """What is in a file with a secret, or None without one. Raises ``ConfigError``."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file {path} with a secret cannot be read: {error}") from None


async def cancel(task: asyncio.Task[object]) -> None:
    """End a task, and wait until it has ended."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
