"""What a caller shows, and who that makes it: one question for every kind of proof.

    a bearer token that we made   looked up by its hash
    a signed claim (JWT)          verified against the keys of its issuer
    a client certificate          verified by TLS already, looked up by its name

Rules: a credential that is shown must hold, so a bad token is never passed over for a good certificate; nothing that a
caller shows is repeated in an error, a log or a trace; a proof that cannot be checked is no proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Protocol

from policyd.core.principal import Grant, Principal
from policyd.errors import Unauthenticated

CREDENTIAL_MAX_BYTES: Final = 16_384


class Tokens(Protocol):
    """Bearer tokens of our own, by the SHA-256 of their bytes."""

    def principal(self, digest: bytes) -> Principal | None:
        """Who holds the token with that digest. Raises ``Unauthenticated`` when it has expired."""


class Claims(Protocol):
    """Signed claims of an issuer."""

    async def principal(self, token: str) -> Principal:
        """Who the claims are about. Raises ``Unauthenticated`` unless everything about them holds."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """Names in client certificates that make a principal: a DNS name or a URI such as ``spiffe://corp/sidecar``."""

    grants: Mapping[str, tuple[Grant, ...]] = field(default_factory=dict)

    def principal(self, names: Sequence[str]) -> Principal:
        """The principal of the one known name. Raises ``Unauthenticated`` when none or several are known."""
        known = sorted(set(names) & self.grants.keys())
        if len(known) != 1:
            raise Unauthenticated(
                "the client certificate names nobody that is known here"
                if not known
                else "the client certificate names several that are known here, so it does not say which"
            )
        return Principal(f"cert:{known[0]}", self.grants[known[0]])


@dataclass(frozen=True, slots=True)
class Shown:
    """What came with a request: the ``Authorization`` headers, and the names in the verified client certificate.

    ``certificate_names`` None says that no certificate was shown.
    """

    authorization: Sequence[bytes] = ()
    certificate_names: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Says who asks. Kinds of proof that are None are not set up here."""

    tokens: Tokens | None = None
    claims: Claims | None = None
    certificates: Certificates | None = None

    async def principal(self, shown: Shown) -> Principal:
        """Who shows this. Raises ``Unauthenticated``."""
        if shown.authorization:
            return await self._bearer(shown.authorization)
        if shown.certificate_names is not None and self.certificates is not None:
            return self.certificates.principal(shown.certificate_names)
        raise Unauthenticated("the request shows no credential")

    async def _bearer(self, headers: Sequence[bytes]) -> Principal:
        if len(headers) != 1:
            raise Unauthenticated("there is more than one Authorization header")
        scheme, _, credential = headers[0].strip().partition(b" ")
        credential = credential.strip()
        if scheme.lower() != b"bearer" or not credential:
            raise Unauthenticated("the Authorization header is not `Bearer` with a token")
        if len(credential) > CREDENTIAL_MAX_BYTES:
            raise Unauthenticated("the token is too long")
        if self.tokens is not None:
            found = self.tokens.principal(sha256(credential).digest())
            if found is not None:
                return found
        # A signed claim is three parts; a token of ours holds no dot.
        if self.claims is not None and credential.count(b".") == 2 and credential.isascii():
            return await self.claims.principal(credential.decode("ascii"))
        raise Unauthenticated("the token is not known here")
