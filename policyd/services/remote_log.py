"""Both ends of the link between API processes and the one writer: ``RemoteLog`` here, ``WriterLink`` there.

    API process: submit ──frame a turn of the loop──► supervisor: Committer ──frame a batch──► API process: position

Rules: a position is given only after the committer has given it; a link that ends or is garbled fails every waiter with
``AuditError``, and whatever the writer has of theirs may still go in: an error is never an allow, and a record without
an answer harms nobody; what one turn of the event loop brings travels as one frame. The writing end trusts nothing that
it reads: an entry that breaks a rule ends the link.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from audit.record import Blob, Entry
from audit.store import Position
from policyd.errors import AuditError, Overloaded, PolicydError
from policyd.ledger.store import Operation
from policyd.services.commit import Outcome, Submission
from policyd.services.committer import Committer
from policyd.services.forecast import WEIGHT
from policyd.services.idempotency import Claim
from policyd.services.link import (
    Answered,
    Appended,
    FrameReader,
    Ticketed,
    Told,
    answers_frame,
    append_frames,
    told_frame,
)
from policyd.services.proposals import Deed

CLOSE_WAIT_S: Final = 5.0
_log: Final = logging.getLogger(__name__)

Heard = Callable[[dict[str, Any]], None]


class _End(asyncio.Protocol):
    """One end: frames in, frames out, and the end of it."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is one for a socket
        """Keep the way out."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Read; what is garbled ends the link."""
        try:
            for message in self._reader.feed(data):
                self._take(message)
        except AuditError as error:
            _log.error("%s", error.detail)
            self.drop()

    def drop(self) -> None:
        """End the link now."""
        if self._transport is not None:
            self._transport.abort()

    def tell(self, document: dict[str, Any]) -> None:
        """Send an object to the other end; nowhere when the link has ended."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(told_frame(document))

    def _take(self, message: Appended | Answered | Told) -> None:
        raise NotImplementedError


class RemoteLog(_End):
    """The log as an API process sees it: what ``Committer`` offers, written by another process."""

    def __init__(self, heard: Heard, lost: Callable[[], None], queue_max_entries: int = 4_096) -> None:
        super().__init__()
        self._heard = heard
        self._lost = lost
        self._queue_max_entries = queue_max_entries
        self._loop = asyncio.get_running_loop()
        self._tickets: dict[int, asyncio.Future[Position]] = {}
        self._since_s: dict[int, float] = {}
        self._usual_s = 0.0
        self._next_ticket = 0
        self._waiting: list[Ticketed] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended: str | None = None
        self._origin = ""
        self._writer_fault: str | None = None
        self._entries_total = 0

    @classmethod
    async def connect(cls, end: socket.socket, heard: Heard, lost: Callable[[], None]) -> RemoteLog:
        """Over one end of a socket pair."""
        loop = asyncio.get_running_loop()
        _, log = await loop.create_unix_connection(lambda: cls(heard, lost), sock=end)
        return log

    @property
    def healthy(self) -> bool:
        """Whether the next submission has a chance."""
        return self.fault is None

    @property
    def fault(self) -> str | None:
        """What broke the link or the log, for a person."""
        return self._ended or self._writer_fault

    @property
    def origin(self) -> str:
        """The name of the log."""
        return self._origin

    @property
    def queued_entries(self) -> int:
        """Entries of this process that wait for their answer."""
        return len(self._tickets)

    @property
    def wait_ms(self) -> float:
        """How long an entry that is submitted now is likely to wait: as long as the oldest, or as is usual."""
        oldest = next(iter(self._since_s.values()), None)
        return 0.0 if oldest is None else 1_000 * max(time.monotonic() - oldest, self._usual_s)

    @property
    def entries_total(self) -> int:
        """Entries of the whole log, as far as the answers to this process tell."""
        return self._entries_total

    async def submit(
        self,
        entry: Entry,
        blobs: Iterable[Blob] = (),
        claim: Claim | None = None,
        operation: Operation | None = None,
        deed: Deed | None = None,
    ) -> Position:
        """As ``Committer.submit``: answers when the entry is durable."""
        if self.fault is not None:
            raise AuditError(self.fault)
        if self.queued_entries >= self._queue_max_entries:
            raise Overloaded(f"{self.queued_entries} entries wait to be written")
        ticket = self._next_ticket
        self._next_ticket += 1
        answer: asyncio.Future[Position] = self._loop.create_future()
        self._tickets[ticket] = answer
        self._since_s[ticket] = time.monotonic()
        self._idle.clear()
        if not self._waiting:
            self._loop.call_soon(self._send)
        self._waiting.append(Ticketed(ticket, Submission(entry, tuple(blobs), claim, operation, deed)))
        return await answer

    async def close(self) -> None:
        """Wait for what was submitted, for a while, then end the link."""
        try:
            async with asyncio.timeout(CLOSE_WAIT_S):
                await self._idle.wait()
        except TimeoutError:
            _log.error("%d entries had no answer when the link was closed", self.queued_entries)
        self._end("the log is closed")
        if self._transport is not None:
            self._transport.close()

    def writer_is(self, *, origin: str | None = None, fault: str | None = None) -> None:
        """What the writer says of itself."""
        self._origin = origin or self._origin
        self._writer_fault = fault

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits hears that it cannot be said what became of its entry."""
        self._end("the link to the writer of the log has ended")
        self._lost()

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        if self._transport is None or self._transport.is_closing():
            return  # connection_lost answers them
        try:
            self._transport.writelines(list(append_frames(waiting)))
        except AuditError as error:
            # One entry is longer than any frame: nobody may wait for ever, and nothing else is sent out of order.
            self._end(error.detail)
            self.drop()

    def _take(self, message: Appended | Answered | Told) -> None:
        if isinstance(message, Answered):
            for ticket, outcome in message.outcomes:
                self._answer(ticket, outcome)
        elif isinstance(message, Told):
            self._heard(message.document)
        else:
            raise AuditError("the writer sent entries to an API process")

    def _answer(self, ticket: int, outcome: Outcome) -> None:
        answer = self._tickets.pop(ticket, None)
        if answer is None:
            raise AuditError(f"the writer answered ticket {ticket}, which nobody holds")
        self._usual_s += WEIGHT * (time.monotonic() - self._since_s.pop(ticket) - self._usual_s)
        if not self._tickets:
            self._idle.set()
        if isinstance(outcome, Position):
            self._entries_total = max(self._entries_total, outcome.index + 1)
        if answer.done():
            return  # its caller went away
        if isinstance(outcome, Position):
            answer.set_result(outcome)
        else:
            answer.set_exception(outcome)

    def _end(self, why: str) -> None:
        self._ended = self._ended or why
        waiting, self._tickets, self._since_s, self._waiting = self._tickets, {}, {}, []
        self._idle.set()
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(AuditError(why))


class WriterLink(_End):
    """The supervisor's end for one API process."""

    def __init__(self, committer: Committer, heard: Heard, lost: Callable[[], None]) -> None:
        super().__init__()
        self._committer = committer
        self._heard = heard
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._done: list[tuple[int, Outcome]] = []

    @classmethod
    async def connect(
        cls, end: socket.socket, committer: Committer, heard: Heard, lost: Callable[[], None]
    ) -> WriterLink:
        """Over one end of a socket pair."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(lambda: cls(committer, heard, lost), sock=end)
        return link

    def connection_lost(self, exc: Exception | None) -> None:
        """What was submitted goes in all the same; nobody waits for it any more."""
        self._lost()

    def _take(self, message: Appended | Answered | Told) -> None:
        if isinstance(message, Told):
            self._heard(message.document)
            return
        if isinstance(message, Answered):
            raise AuditError("an API process sent answers to the writer")
        for ticketed in message.submissions:
            try:
                answer = self._committer.enqueue(ticketed.submission)
            except PolicydError as error:
                self._collect(ticketed.ticket, error)
            else:
                answer.add_done_callback(partial(self._written, ticketed.ticket))

    def _written(self, ticket: int, answer: asyncio.Future[Position]) -> None:
        error = answer.exception()
        if error is None:
            self._collect(ticket, answer.result())
        else:
            self._collect(ticket, error if isinstance(error, PolicydError) else AuditError(str(error)))

    def _collect(self, ticket: int, outcome: Outcome) -> None:
        if not self._done:
            self._loop.call_soon(self._send)
        self._done.append((ticket, outcome))

    def _send(self) -> None:
        done, self._done = self._done, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answers_frame(done))
