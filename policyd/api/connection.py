"""One HTTP connection, guarded before any request exists: the head has a limit in bytes and in time.

    waiting for a head ──complete──► answering ──answered──► waiting for a head
            │  too late: closed           │
            └─ too long or not HTTP: a problem document, then closed

Rules: the time for a head runs from the first moment that nothing is being answered, so that a byte now and then buys
no more, and it also bounds the rest of a body that nobody reads; bytes that bring neither a whole head nor a piece of a
body (a head without an end, endless trailers) are counted and have the same limit; what the parser refuses gets the
same problem documents as everything else.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from policyd.api.callers import CERTIFICATE_KEY
from policyd.api.problems import problem_headers, problem_json
from policyd.api.tls import certificate_names
from policyd.errors import HeadersTooLarge, PolicydError, RequestError
from policyd.services.clock import now_us, uuid7
from policyd.telemetry import Telemetry

HEAD_MAX_BYTES: Final = 65_536
HEAD_TIMEOUT_S: Final = 10.0
WRITE_BUFFER_BYTES: Final = 1_048_576
_REASONS: Final = {400: "Bad Request", 431: "Request Header Fields Too Large"}


class GuardedConnection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection with limits on the head of a request."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._fruitless_bytes = 0
        self._fruitful = False
        self._in_body = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._refusal: PolicydError | None = None
        self._certificate_names: tuple[str, ...] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Start the time for the first head."""
        super().connection_made(transport)
        # An answer is handed over in pieces: the first must not wait until the kernel has taken it.
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._certificate_names = certificate_names(transport.get_extra_info("ssl_object"))
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; what brings no head and no body counts against the limits of a head."""
        self._fruitful = False
        super().data_received(data)
        # One read may hold the end of a body and the start of a head: its bytes are no head's alone.
        self._fruitless_bytes = 0 if self._fruitful else self._fruitless_bytes + len(data)
        if self.transport.is_closing():
            return
        if self._fruitless_bytes > HEAD_MAX_BYTES:
            self._refusal = _too_long()
            self.send_400_response("")
        elif self._head_timer is None and not self._answering:
            # Runs too while the rest of a request that was answered early is thrown away: not for ever.
            self._expect_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; a trailer says nothing that anybody here asks for."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check the length of the head that has come in one piece, then hand the request over."""
        length = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if length > HEAD_MAX_BYTES:
            self._refusal = _too_long()
            raise ValueError("the head is too long")
        self.scope[CERTIFICATE_KEY] = self._certificate_names  # type: ignore[typeddict-unknown-key]  # ours, for the gate
        super().on_headers_complete()
        self._fruitful = self._in_body = True
        self._stop_timer()

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._fruitful = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next byte begins another head."""
        self._fruitful = True
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What the parser, or this class, does not take: a problem document, and the end of the connection."""
        if self.transport.is_closing():
            return
        if not self._answering:
            error = self._refusal or RequestError("what came is not HTTP/1.1", remedy="speak HTTP/1.1 to this port")
            self.transport.write(_raw_answer(error))
            self._count(error)
        self.transport.close()

    def _count(self, error: PolicydError) -> None:
        """The gate never sees this answer, so it is counted here."""
        telemetry: Telemetry | None = getattr(getattr(self.config.app, "state", None), "telemetry", None)
        if telemetry is not None:
            telemetry.answered(error.http_status, error.code)

    @property
    def _answering(self) -> bool:
        # uvicorn types it as always there, and sets None until the first request.
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    def _expect_head(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._late)

    def _late(self) -> None:
        self._head_timer = None
        if not self._answering and not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _too_long() -> PolicydError:
    return HeadersTooLarge(f"the request line and headers are longer than {HEAD_MAX_BYTES} bytes")


def _raw_answer(error: PolicydError) -> bytes:
    request_id = uuid7(now_us())
    body = orjson.dumps(problem_json(error, request_id))
    headers = {
        **problem_headers(error),
        "Content-Length": str(len(body)),
        "Connection": "close",
        "X-Request-ID": request_id,
        "X-Content-Type-Options": "nosniff",
    }
    head = f"HTTP/1.1 {error.http_status} {_REASONS[error.http_status]}\r\n"
    return (head + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n").encode("ascii") + body
