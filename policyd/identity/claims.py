"""Signed claims (JWT, RFC 7519) of one OIDC issuer: from a token to a principal with grants.

Rules: the issuer, the audience, the end of validity and the algorithm are checked, each always; the algorithm is one of
ours and fits the key, and a symmetric one or ``none`` is never among them; a header that demands more understanding
(``crit``) is refused; groups become grants by a map that the operator wrote, and a group that it does not name gives
nothing. What was verified is remembered until the claims end, at most a minute, and not beyond a change of the keys.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import jwt

from policyd.core.principal import Grant, Principal
from policyd.errors import Unauthenticated
from policyd.identity.keys import IssuerKeys

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a key that only the issuer has (RFC 7518, RFC 8037)."""

GROUPS_MAX: Final = 1_000
SUBJECT_MAX_CHARS: Final = 200
REMEMBERED_MAX: Final = 10_000
REMEMBERED_S: Final = 60


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """What a token must say, and what its groups mean."""

    issuer: str
    audience: str
    groups: Mapping[str, tuple[Grant, ...]]
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    subject_claim: str = "sub"
    groups_claim: str = "groups"
    leeway_s: int = 30


@dataclass
class IssuerClaims:
    """Verifies the tokens of one issuer. ``now_s`` gives the time, in seconds since 1970."""

    rules: ClaimRules
    keys: IssuerKeys
    now_s: Callable[[], float] = time.time
    _known: OrderedDict[bytes, tuple[Principal, float, int]] = field(default_factory=OrderedDict)

    async def principal(self, token: str) -> Principal:
        """Who the claims are about. Raises ``Unauthenticated`` unless everything about them holds."""
        digest = sha256(token.encode("ascii")).digest()
        known = self._known.get(digest)
        if known is not None and self.now_s() < known[1] and known[2] == self.keys.generation:
            return known[0]
        self._known.pop(digest, None)
        principal, until = await self._verified(token)
        self._known[digest] = (principal, until, self.keys.generation)
        if len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)
        return principal

    async def _verified(self, token: str) -> tuple[Principal, float]:
        algorithm, name = self._header(token)
        key = await self.keys.key(name)
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=self.rules.audience,
                issuer=self.rules.issuer,
                leeway=self.rules.leeway_s,
                options={"require": ["exp", "iss", "aud"], "verify_iat": True, "verify_nbf": True},
            )
            ends = float(claims["exp"]) + self.rules.leeway_s
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired", remedy="ask the issuer for a new token") from None
        except jwt.InvalidAudienceError:
            raise Unauthenticated("the token is for another audience") from None
        except jwt.InvalidIssuerError:
            raise Unauthenticated("the token is from another issuer") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            # The library's own words may repeat what was sent.
            raise Unauthenticated("the token does not verify") from None
        return self._principal(claims), min(ends, self.now_s() + REMEMBERED_S)

    def _header(self, token: str) -> tuple[str, str]:
        """Algorithm and name of the key, as claimed: nothing of it is believed but which key to try."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError):
            raise Unauthenticated("the token cannot be read") from None
        algorithm, name = header.get("alg"), header.get("kid")
        if algorithm not in self.rules.algorithms or algorithm not in ALGORITHMS:
            raise Unauthenticated("the token is signed by an algorithm that is not taken here")
        if not isinstance(name, str) or "crit" in header:
            raise Unauthenticated("the token names no key, or demands what is not understood here")
        return str(algorithm), name

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        subject = claims.get(self.rules.subject_claim)
        if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_MAX_CHARS or not subject.isprintable():
            raise Unauthenticated(f"the claim {self.rules.subject_claim!r} names nobody")
        groups = claims.get(self.rules.groups_claim, [])
        listed = [groups] if isinstance(groups, str) else groups
        if not isinstance(listed, list) or len(listed) > GROUPS_MAX or any(not isinstance(g, str) for g in listed):
            raise Unauthenticated(f"the claim {self.rules.groups_claim!r} is no list of at most {GROUPS_MAX} names")
        grants = {grant: None for name in listed for grant in self.rules.groups.get(name, ())}
        return Principal(f"oidc:{subject}", tuple(grants))
