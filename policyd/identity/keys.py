"""The public keys of an issuer (a JWKS), fetched, kept for a while, and fetched again when a key is new.

    never fetched ──► fresh ──refresh_ms──► fetched again, or kept when that fails ──max_age_ms──► no keys

Rules: one fetch at a time, and not more often than ``cooldown_ms`` however many unknown keys are shown; a fetch that
fails leaves the last good keys in force until they are too old; a key that the issuer took away is gone with the next
fetch; only keys for signing, and only asymmetric ones.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import jwt
import orjson

from policyd.errors import ConfigError, Unauthenticated

DOCUMENT_MAX_BYTES: Final = 1_048_576
KEYS_MAX: Final = 100
_UNFETCHED: Final = (httpx.HTTPError, httpx.InvalidURL, ValueError, jwt.PyJWTError, TimeoutError)
_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyTimes:
    """How long keys count, in milliseconds."""

    refresh_ms: int = 300_000
    max_age_ms: int = 86_400_000
    cooldown_ms: int = 10_000
    timeout_ms: int = 3_000


@dataclass
class IssuerKeys:
    """The keys behind one address. ``generation`` changes whenever the keys have."""

    url: str
    times: KeyTimes = field(default_factory=KeyTimes)
    transport: httpx.AsyncBaseTransport | None = None
    generation: int = 0
    _keys: Mapping[str, jwt.PyJWK] = field(default_factory=dict)
    _fetched_at: float | None = None
    _tried_at: float | None = None
    _fetching: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def key(self, name: str) -> jwt.PyJWK:
        """The key of that name (``kid``). Raises ``Unauthenticated`` when the issuer has none, or cannot be asked."""
        if self._due():
            await self._fetch()
        found = self._keys.get(name)
        # A fetch in progress may bring the key: whoever comes meanwhile waits for it and asks for none.
        if found is None and (self._may_try() or self._fetching.locked()):
            await self._fetch()
            found = self._keys.get(name)
        if self._fetched_at is None or self._older_than(self._fetched_at, self.times.max_age_ms):
            raise Unauthenticated(
                "the keys of the issuer cannot be fetched, so nothing that it signed can be checked",
                remedy="try again later; the operator sees why in the server's log",
            )
        if found is None:
            raise Unauthenticated("the issuer has no key of the name that signed the token")
        return found

    def _due(self) -> bool:
        return self._may_try() and (
            self._fetched_at is None or self._older_than(self._fetched_at, self.times.refresh_ms)
        )

    def _may_try(self) -> bool:
        return self._tried_at is None or self._older_than(self._tried_at, self.times.cooldown_ms)

    def _older_than(self, moment: float, limit_ms: int) -> bool:
        return (time.monotonic() - moment) * 1_000 >= limit_ms

    async def _fetch(self) -> None:
        async with self._fetching:
            if not self._may_try():
                return  # whoever held the lock has just done it
            self._tried_at = time.monotonic()
            try:
                keys = await self._read()
            except _UNFETCHED as error:
                _log.error("the keys at %s cannot be fetched: %s", self.url, str(error) or type(error).__name__)
                return
            self._keys, self._fetched_at = keys, time.monotonic()
            self.generation += 1

    async def fetched(self) -> int:
        """Fetch now; how many keys there are. Raises ``ConfigError``."""
        try:
            return len(await self._read())
        except _UNFETCHED as error:
            said = str(error) or type(error).__name__
            raise ConfigError(
                f"the keys at {self.url} cannot be fetched: {said}",
                remedy="correct auth.oidc.jwks_url, or have the issuer reachable from here",
            ) from None

    async def _read(self) -> dict[str, jwt.PyJWK]:
        timeout_s = self.times.timeout_ms / 1_000
        # Neither a proxy from the environment nor another address by redirect may say what the keys are.
        async with (
            asyncio.timeout(timeout_s),
            httpx.AsyncClient(
                trust_env=False, follow_redirects=False, timeout=timeout_s, transport=self.transport
            ) as client,
            client.stream("GET", self.url, headers={"Accept": "application/json"}) as answer,
        ):
            if answer.status_code != 200:
                raise ValueError(f"the answer is {answer.status_code}")
            content = b""
            async for part in answer.aiter_bytes():
                content += part
                if len(content) > DOCUMENT_MAX_BYTES:
                    raise ValueError(f"the answer is longer than {DOCUMENT_MAX_BYTES} bytes")
        return parse_keys(content)


def parse_keys(content: bytes) -> dict[str, jwt.PyJWK]:
    """The keys of a JWKS document by name. Raises ``ValueError`` when it has none that can be used here."""
    document: Any = orjson.loads(content)
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list) or len(listed) > KEYS_MAX:
        raise ValueError(f"the document is no list of at most {KEYS_MAX} keys")
    found: dict[str, jwt.PyJWK] = {}
    for written in listed:
        # A key of a kind that is not known here is somebody else's, as RFC 7517, section 5, has it.
        if not isinstance(written, dict) or not isinstance(written.get("kid"), str):
            continue
        if written.get("use", "sig") != "sig" or written.get("kty") not in ("RSA", "EC", "OKP"):
            continue
        if written["kid"] in found:
            raise ValueError("two keys have the same name")
        try:
            found[written["kid"]] = jwt.PyJWK.from_dict(written)
        except jwt.PyJWTError:
            continue
    if not found:
        raise ValueError("the document has no key that can be used here")
    return found
