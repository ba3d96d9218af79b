"""Webhooks: events of the log, delivered to whoever asked for them, in the background and at least once.

    log ──from the position on──► event ──POST──► 2xx: the position moves on, durably
                                            └───► anything else: again, after a pause that doubles up to a limit

Rules: nothing of a decision waits for a receiver; each receiver has its own position and its own task, so that one that
hangs delays nobody else; the position is kept beside the log and moves only behind what was delivered or given up, so
that a crash repeats an event and loses none; events come in the order of the log; a receiver begins with what happens
after it was named. What a receiver refuses by a 4xx is given up after some tries, anything else after ``give_up_ms``:
both are counted, logged, and kept where ``policyd doctor`` looks.
It refuses: to follow a redirect, to read an answer, and to wait without a bound.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import orjson
from sqlalchemy import Connection

from audit.entries import Picked, of_kinds
from audit.signer import write_durably
from policyd.errors import AuditError, PolicydError
from policyd.services.clock import Now, now_us, rfc3339
from policyd.services.events import KINDS_HEARD, Event, event_of
from policyd.services.webhook_forms import Form, body_of, headers_of
from policyd.telemetry import Sample

T = TypeVar("T")
FILE: Final = "webhooks.json"
STEP_ENTRIES: Final = 20_000
LOOK_S: Final = 1.0
REFUSED_TRIES_MAX: Final = 3
RETRIED_STATUSES: Final = frozenset({408, 425, 429})
_logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Receiver:
    """Who is told: where, of what, in which form, signed with which key; and how patient policyd is."""

    name: str
    url: str
    events: frozenset[str]
    form: Form = "json"
    key: bytes | None = None
    timeout_ms: int = 5_000
    retry_first_ms: int = 1_000
    retry_max_ms: int = 300_000
    give_up_ms: int = 86_400_000


class Post(Protocol):
    """Sends one request, and answers the status. Raises ``PolicydError`` when there is none in time."""

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes, timeout_ms: int) -> int: ...


class Reader(Protocol):
    """The reading side of the log."""

    async def logs(self) -> dict[int, str]: ...

    async def size(self, log: int) -> int: ...

    async def read(self, read: Callable[[Connection], T]) -> T: ...


@dataclass
class _State:
    """How far a receiver has heard, and since when it fails."""

    next_index: int
    failing_since_us: int | None = None
    error: str | None = None
    given_up: int = 0

    def to_json(self) -> dict[str, Any]:
        since = None if self.failing_since_us is None else rfc3339(self.failing_since_us)
        told = {"next_index": self.next_index, "failing_since": since, "error": self.error}
        return {**told, "failing_since_us": self.failing_since_us, "given_up": self.given_up}


@dataclass
class Webhooks:
    """Tells the receivers what the log with this name holds: ``begin``, then ``run`` until cancelled."""

    receivers: Sequence[Receiver]
    reader: Reader
    origin: str
    directory: Path
    post: Post
    now: Now = now_us
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    results: Counter[tuple[str, str]] = field(default_factory=Counter)
    _log: int = 0
    _states: dict[str, _State] = field(default_factory=dict)
    _keeping: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def begin(self) -> None:
        """Know and keep where each receiver begins. Raises ``PolicydError`` when that cannot be read."""
        self._log = log = next(number for number, origin in (await self.reader.logs()).items() if origin == self.origin)
        size = await self.reader.size(log)
        kept = await asyncio.to_thread(read_states, self.directory)
        known = kept.get("receivers", {}) if kept.get("log") == self.origin else {}
        for receiver in self.receivers:
            self._states[receiver.name] = _state(known.get(receiver.name), size)
        await self._keep()

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for receiver in self.receivers:
                tasks.create_task(self._serve(receiver, self._states[receiver.name]))

    def counted(self) -> list[Sample]:
        """Attempts, by receiver and result."""
        return [(labels, count) for labels, count in list(self.results.items())]

    def failing_s(self) -> list[Sample]:
        """How long each receiver has been failing; zero when it is not."""
        now = self.now()
        return [
            ((name,), 0 if state.failing_since_us is None else max(0, now - state.failing_since_us) / 1_000_000)
            for name, state in list(self._states.items())
        ]

    async def _serve(self, receiver: Receiver, state: _State) -> None:
        while True:
            try:
                await self._catch_up(receiver, state, self._log)
            except PolicydError as error:
                _logger.warning("webhook %s waits for the log: %s", receiver.name, error.detail)
            except Exception as error:  # noqa: BLE001 - an entry that cannot be told must be seen, and stop nobody else
                state.failing_since_us = state.failing_since_us or self.now()
                state.error = f"entry {state.next_index} or one behind it cannot be told: {error!r}"
                _logger.error("webhook %s: %s", receiver.name, state.error)
                await self._keep()
            await asyncio.sleep(LOOK_S)

    async def _catch_up(self, receiver: Receiver, state: _State, log: int) -> None:
        size = await self.reader.size(log)
        while state.next_index < size:
            start, end = state.next_index, min(size, state.next_index + STEP_ENTRIES)
            for picked in await self.reader.read(partial(_heard, start=start, end=end, log=log)):
                event = event_of(picked)
                if event is not None and event.name in receiver.events:
                    await self._deliver(receiver, state, event)
                    state.next_index = event.index + 1
                    await self._keep()
            # Not kept: whoever starts from an older position finds no event in between.
            state.next_index = end

    async def _deliver(self, receiver: Receiver, state: _State, event: Event) -> None:
        body = body_of(event, receiver.form, self.origin)
        began_us, pause_ms, refused = self.now(), receiver.retry_first_ms, 0
        while True:
            result, error = await self._attempt(receiver, event, body)
            self.results[receiver.name, result] += 1
            if error is None:
                if state.failing_since_us is not None:
                    _logger.warning("webhook %s is heard again", receiver.name)
                state.failing_since_us = state.error = None
                return
            refused += result == "refused"
            if state.failing_since_us is None:
                state.failing_since_us = self.now()
                _logger.warning("webhook %s is not heard: %s", receiver.name, error)
            if state.error != error:
                state.error = error
                await self._keep()
            if refused >= REFUSED_TRIES_MAX or self.now() - began_us >= receiver.give_up_ms * 1_000:
                self.results[receiver.name, "given_up"] += 1
                state.given_up += 1
                _logger.error("webhook %s: event %s is given up: %s", receiver.name, event.id, error)
                return
            await self.pause(pause_ms / 1_000)
            pause_ms = min(pause_ms * 2, receiver.retry_max_ms)

    async def _attempt(self, receiver: Receiver, event: Event, body: bytes) -> tuple[str, str | None]:
        """What became of one attempt, and what was wrong with it."""
        headers = headers_of(event, body, receiver.key, self.now() // 1_000_000)
        try:
            status = await self.post(receiver.url, headers, body, receiver.timeout_ms)
        except PolicydError as error:
            return "failed", error.detail
        if 200 <= status < 300:
            return "delivered", None
        refused = 400 <= status < 500 and status not in RETRIED_STATUSES
        return "refused" if refused else "failed", f"it answered {status}"

    async def _keep(self) -> None:
        """Write down how far everybody is."""
        async with self._keeping:
            states = {name: state.to_json() for name, state in self._states.items()}
            content = orjson.dumps({"log": self.origin, "receivers": states}, option=orjson.OPT_INDENT_2)
            try:
                await asyncio.to_thread(write_durably, self.directory / FILE, content)
            except OSError as error:
                # The event may come twice then, which a receiver knows by its id.
                _logger.error("the positions of webhooks cannot be kept: %s", error.strerror)


def _heard(connection: Connection, *, start: int, end: int, log: int) -> list[Picked]:
    return of_kinds(connection, KINDS_HEARD, start, end, log=log)


def read_states(directory: Path) -> dict[str, Any]:
    """How far the receivers were when that was last kept; empty when it never was. Raises ``AuditError``."""
    path = directory / FILE
    try:
        found = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise AuditError(f"{path} cannot be read: {error}", remedy=_UNREADABLE) from None
    if not isinstance(found, dict) or not isinstance(found.get("receivers"), dict):
        raise AuditError(f"{path} does not hold the positions of webhooks", remedy=_UNREADABLE)
    return found


_UNREADABLE: Final = "restore the file, or remove it: receivers then begin with what happens from now on"


def _state(known: Any, size: int) -> _State:
    """What was kept of a receiver; a new one begins with what happens from now on."""
    try:
        next_index, since_us = int(known["next_index"]), known["failing_since_us"]
        error, given_up = known["error"], int(known["given_up"])
    except (TypeError, KeyError, ValueError):
        return _State(size)
    # A log that was restored from a backup may be shorter than it was.
    return _State(min(next_index, size), since_us, error, given_up)
