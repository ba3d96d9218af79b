"""How a server is reached: address, credentials, limits, and what counts as an answer at all.

Rules: the environment is not asked (no proxy, no ``.netrc``); no redirect is followed; every wait and every body has a
limit, a compressed one before and after it is unpacked; a token file is read for each request, so that a renewed token
is used; a token is in no message. httpx is loaded when a client is made, since it takes longer than everything else
here.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict

from policyd.client.calls import Call, Reply
from policyd.errors import (
    ConfigError,
    KeyInProgress,
    LimitReached,
    Overloaded,
    PolicydError,
    ServerUnreachable,
    TimedOut,
)

if TYPE_CHECKING:
    import ssl

    import httpx

TOKEN_MAX_CHARS: Final = 16_384
GZIP_BITS: Final = 31
"""What ``zlib`` calls gzip with a window of 32 KiB."""
PAUSE_FIRST_S: Final = 0.1
PAUSE_MAX_S: Final = 5.0
_PASSING: Final = (ServerUnreachable, Overloaded, TimedOut, LimitReached, KeyInProgress)
"""What may be over a moment later."""


class Given(TypedDict, total=False):
    """What a client may be given beside the address: the fields of ``Connection``."""

    token: str | None
    token_file: Path | None
    ca_file: Path | None
    certificate_file: Path | None
    key_file: Path | None
    connect_timeout_s: float
    timeout_s: float
    answer_max_bytes: int
    connections_max: int
    attempts_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What a client needs to reach a server; both clients take these by name.

    ``token`` or ``token_file`` authenticates, or ``certificate_file`` with ``key_file`` (mutual TLS). ``ca_file`` holds
    the only authorities that are trusted. ``timeout_s`` limits the whole answer, ``connect_timeout_s`` its beginning.
    ``attempts_max`` above 1 repeats what may be repeated: what reads, and what has an idempotency key.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    connect_timeout_s: float = 5.0
    timeout_s: float = 30.0
    answer_max_bytes: int = 67_108_864
    connections_max: int = 100
    attempts_max: int = 1

    def __post_init__(self) -> None:
        if self.token is not None and self.token_file is not None:
            raise ConfigError("a token and a token file are given; leave one out")
        if self.key_file is not None and self.certificate_file is None:
            raise ConfigError("a key is given without its certificate")
        if self.connect_timeout_s <= 0 or self.timeout_s <= 0 or self.attempts_max < 1 or self.connections_max < 1:
            raise ConfigError("timeouts, attempts and connections of a client are above zero")
        object.__setattr__(self, "address", self.address.rstrip("/"))

    def httpx_settings(self) -> dict[str, Any]:
        """The arguments of ``httpx.Client`` and ``httpx.AsyncClient``."""
        import httpx

        return {
            "verify": self._tls(),
            "timeout": httpx.Timeout(self.timeout_s, connect=self.connect_timeout_s),
            "limits": httpx.Limits(max_connections=self.connections_max),
            "follow_redirects": False,
            "trust_env": False,
        }

    def _tls(self) -> ssl.SSLContext:
        import ssl

        import httpx

        if not self.address.lower().startswith("https:"):
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, and costs no reading of authorities
        try:
            if self.ca_file is not None:
                context = ssl.create_default_context(cafile=self.ca_file)
            else:
                context = httpx.create_ssl_context(trust_env=False)
            if self.certificate_file is not None:
                context.load_cert_chain(self.certificate_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            files = [str(file) for file in (self.ca_file, self.certificate_file, self.key_file) if file is not None]
            raise ConfigError(f"{', '.join(files)}: no usable certificates: {error}") from None
        return context

    def request(self, call: Call[Any]) -> dict[str, Any]:
        """The arguments of ``stream`` for a call."""
        headers = {"Accept": call.media_type, "Accept-Encoding": "gzip", "User-Agent": "policyd", **call.headers}
        if call.content is not None:
            headers["Content-Type"] = "application/json"
        token = self._bearer()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return {
            "method": call.method,
            "url": self.address + call.path,
            "params": dict(call.parameters),
            "content": call.content,
            "headers": headers,
        }

    def _bearer(self) -> str | None:
        where, token = "the token", self.token
        if self.token_file is not None:
            where = str(self.token_file)
            try:
                with self.token_file.open(encoding="utf-8") as file:
                    token = file.read(TOKEN_MAX_CHARS + 1).strip()
            except (OSError, UnicodeDecodeError) as error:
                told = getattr(error, "strerror", None) or "it is not text"
                raise ConfigError(f"{where} cannot be read: {told}") from None
        if token is None:
            return None
        if not token or len(token) > TOKEN_MAX_CHARS or not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(f"{where} holds no bearer token: one line of printable ASCII without blanks")
        return token

    def unreached(self, error: Exception) -> ServerUnreachable:
        """The error of a server that gave no whole answer."""
        told = str(error) or type(error).__name__
        if "://" not in self.address:
            told = f"an address begins with http://, so write http://{self.address}"
        return ServerUnreachable(f"the server at {self.address} does not answer: {told}")


def broken_off() -> tuple[type[Exception], ...]:
    """What is raised when no whole answer came: httpx's own, and what its transports let through.

    With TLS 1.3 a server refuses a missing certificate after the handshake, and the asynchronous transport passes
    that ``ssl.SSLError``, an ``OSError``, on as it is.
    """
    import httpx

    return (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError)


class Body:
    """The body of one answer as it arrives, inside its limits."""

    def __init__(self, connection: Connection, answer: httpx.Response) -> None:
        self._connection = connection
        self._answer = answer
        self._parts: list[bytes] = []
        self._length = 0
        self._ends = time.monotonic() + connection.timeout_s
        self._arrived = 0
        encoding = answer.headers.get("content-encoding", "identity")
        if encoding not in ("identity", "gzip"):
            raise ServerUnreachable(f"{connection.address} answered in the encoding {encoding[:40]!r}, unasked")
        self._unpacker = zlib.decompressobj(wbits=GZIP_BITS) if encoding == "gzip" else None

    def add(self, part: bytes) -> None:
        """The next part. Raises ``ServerUnreachable`` when the body is too long, takes too long or is no gzip."""
        address, limit = self._connection.address, self._connection.answer_max_bytes
        self._arrived += len(part)
        if self._unpacker is not None and part:
            part = self._unpacked(part, limit - self._length)
        self._length += len(part)
        if max(self._length, self._arrived) > limit:
            raise ServerUnreachable(f"{address} answered with more than {limit} bytes")
        if time.monotonic() > self._ends:
            raise ServerUnreachable(f"{address} did not finish its answer in {self._connection.timeout_s:g} s")
        self._parts.append(part)

    def _unpacked(self, part: bytes, left: int) -> bytes:
        """What a compressed part holds; one byte more than is ``left`` at most, so that a bomb does not go off."""
        assert self._unpacker is not None
        try:
            found = self._unpacker.decompress(part, left + 1)
        except zlib.error:
            raise self._no_gzip() from None
        if self._unpacker.unused_data:
            raise self._no_gzip()
        return found

    def _no_gzip(self) -> ServerUnreachable:
        return ServerUnreachable(f"{self._connection.address} answered with something that is no gzip")

    def reply(self) -> Reply:
        """The whole answer. Raises ``ServerUnreachable`` when a compressed one has no end."""
        if self._unpacker is not None and not self._unpacker.eof and self._arrived:
            raise self._no_gzip()
        head = self._answer.headers
        media_type = head.get("content-type", "").partition(";")[0].strip().lower()
        return Reply(self._answer.status_code, media_type, b"".join(self._parts), head.get("x-policyd-decision-id"))


class Attempts:
    """How often a call is sent, and how long is waited in between."""

    def __init__(self, call: Call[Any], connection: Connection) -> None:
        self._left = connection.attempts_max - 1 if call.repeatable else 0
        self._pause_s = PAUSE_FIRST_S

    def pause_s(self, error: PolicydError) -> float:
        """Seconds until the next attempt; raises the error when there is none."""
        if self._left == 0 or not isinstance(error, _PASSING):
            raise error
        self._left -= 1
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, PAUSE_MAX_S)
        return pause_s
