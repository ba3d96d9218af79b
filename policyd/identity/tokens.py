"""Bearer tokens of our own: a file holds their hashes, nobody holds the tokens but their owners.

The file is YAML, written by ``policyd token new`` and by hand:

    tokens:
      - name: bank-gateway
        sha256: 5e88…          # of the token's bytes; the token itself stands nowhere
        expires_at: 2027-01-01T00:00:00Z
        grants:
          - {role: developer, tenant: eu-bank, projects: [support-chat], environments: [prod]}

Rules: a token has 256 random bits, so that a plain hash of it cannot be searched for; look-ups are by hash, so that
their time tells nothing of a token; a file that does not load leaves the last good one in force, and says so; a token
that was taken out of the file is unknown as soon as the file is read again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from policyd.core.principal import GrantDocument, Name, Principal
from policyd.documents import Spot, model_findings, read_yaml
from policyd.errors import ConfigError, Finding, Unauthenticated

PREFIX: Final = "pd_"
RANDOM_BYTES: Final = 32
_log: Final = logging.getLogger(__name__)
FILE_MAX_BYTES: Final = 8 * 1024 * 1024


class TokenDocument(BaseModel):
    """One token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    expires_at: AwareDatetime | None = None
    grants: tuple[GrantDocument, ...]


class TokensDocument(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: tuple[TokenDocument, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    digest: bytes
    principal: Principal
    expires_at_us: int | None


class TokenFile:
    """The tokens of a file. ``now_us`` gives the time, for their expiry."""

    def __init__(self, path: Path, now_us: Callable[[], int]) -> None:
        self._path = path
        self._now_us = now_us
        self._stamp: tuple[int, int, int] | None = None
        self._known: Mapping[bytes, _Known] = {}
        self.fault: str | None = None
        """Why the file of this moment is not in force; None when it is."""

    async def keep_fresh(self, refresh_ms: int) -> None:
        """Read the file again whenever it changes, for ever; a broken one leaves the last good one in force."""
        while True:
            await asyncio.sleep(refresh_ms / 1_000)
            before = self.fault
            try:
                await asyncio.to_thread(self.refresh)
            except ConfigError as error:
                if error.detail != before:
                    _log.error("the last good tokens stay in force: %s", error.detail)

    def refresh(self) -> bool:
        """Read the file when it has changed; whether other tokens are in force now. Raises ``ConfigError``."""
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp == self._stamp:
                return False
            content = self._path.read_bytes() if found.st_size <= FILE_MAX_BYTES else b""
        except OSError as error:
            raise self._refused(ConfigError(f"the tokens in {self._path} cannot be read: {error.strerror}")) from None
        if not content:
            raise self._refused(ConfigError(f"{self._path} is empty or longer than {FILE_MAX_BYTES} bytes"))
        try:
            self._known = parse_tokens(content, str(self._path))
        except ConfigError as error:
            # The same broken file is told once, not every second.
            self._stamp = stamp
            raise self._refused(error) from None
        self._stamp, self.fault = stamp, None
        return True

    def _refused(self, error: ConfigError) -> ConfigError:
        self.fault = error.detail
        return error

    def expiries(self) -> list[tuple[str, int | None]]:
        """The name of each token in force, and its end in microseconds since 1970 if it has one."""
        return [(known.principal.name, known.expires_at_us) for known in self._known.values()]

    def principal(self, digest: bytes) -> Principal | None:
        """Who holds the token with that digest. Raises ``Unauthenticated`` when it has expired."""
        known = self._known.get(digest)
        if known is None or not compare_digest(known.digest, digest):
            return None
        if known.expires_at_us is not None and self._now_us() >= known.expires_at_us:
            raise Unauthenticated("the token has expired", remedy="ask for a new token")
        return known.principal


def parse_tokens(content: bytes, file: str) -> dict[bytes, _Known]:
    """The tokens of a file, by digest. Raises ``ConfigError`` with a finding for each fault."""
    document = read_yaml(content, file)
    if document.findings:
        raise _unloadable(document.findings)
    try:
        read = TokensDocument.model_validate(document.value)
    except ValidationError as error:
        raise _unloadable(model_findings(error, TokensDocument, document.spot, document.value)) from None
    findings = _doubles(read, document.spot)
    if findings:
        raise _unloadable(findings)
    return {bytes.fromhex(token.sha256): _known(token) for token in read.tokens}


def _unloadable(findings: Sequence[Finding]) -> ConfigError:
    return ConfigError(f"the tokens do not load: {findings[0]}", findings=findings)


def _doubles(read: TokensDocument, spot: Spot) -> list[Finding]:
    """Names and tokens that stand twice: which grants they have would depend on their order."""
    findings = []
    seen: set[str] = set()
    for position, token in enumerate(read.tokens):
        for what, value in (("name", token.name), ("sha256", token.sha256)):
            if value in seen:
                where = spot.at(("tokens", position, what))
                findings.append(Finding(str(where), f"the {what} {value!r} stands twice"))
            seen.add(value)
    return findings


def _known(token: TokenDocument) -> _Known:
    expires = token.expires_at
    return _Known(
        bytes.fromhex(token.sha256),
        Principal(f"token:{token.name}", tuple(grant.grant() for grant in token.grants)),
        int(expires.timestamp() * 1_000_000) if expires is not None else None,
    )


def new_token() -> tuple[str, str]:
    """A new token, and the hexadecimal SHA-256 of it for the file. The token is not kept anywhere."""
    token = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    return token, sha256(token.encode("ascii")).hexdigest()
