"""Joins what proves who asks: tokens, signed claims and certificates; the other half is ``policyd.bootstrap``.

Rules: what is not set up proves nobody; nothing is fetched before somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from policyd.core.principal import Grant, GrantDocument
from policyd.identity.credentials import Authenticator, Certificates, Claims
from policyd.identity.tokens import TokenFile
from policyd.identity_settings import AuthSettings, OidcSettings
from policyd.services.clock import now_us

if TYPE_CHECKING:
    from policyd.identity.keys import IssuerKeys


def make_authenticator(settings: AuthSettings) -> tuple[Authenticator | None, TokenFile | None]:
    """What proves who asks, and the file of tokens behind it. None when nothing is set up: loopback only.

    Raises ``ConfigError`` when the tokens cannot be read.
    """
    if not settings.configured:
        return None, None
    tokens = TokenFile(settings.tokens_file, now_us) if settings.tokens_file is not None else None
    if tokens is not None:
        tokens.refresh()
    certificates = {name: _grants(grants) for name, grants in settings.certificates.items()}
    return Authenticator(tokens, _claims(settings.oidc), Certificates(certificates) if certificates else None), tokens


def issuer_keys(oidc: OidcSettings) -> IssuerKeys:
    """The keys of an issuer, not fetched yet."""
    # Imported here because signatures and an HTTP client take a fifth of a second that most commands do without.
    from policyd.identity.keys import IssuerKeys, KeyTimes

    times = KeyTimes(oidc.jwks_refresh_ms, oidc.jwks_max_age_ms, timeout_ms=oidc.jwks_timeout_ms)
    return IssuerKeys(oidc.jwks_url, times)


def _claims(oidc: OidcSettings | None) -> Claims | None:
    if oidc is None:
        return None
    from policyd.identity.claims import ClaimRules, IssuerClaims

    rules = ClaimRules(
        issuer=oidc.issuer,
        audience=oidc.audience,
        groups={name: _grants(grants) for name, grants in oidc.groups.items()},
        algorithms=oidc.algorithms,
        subject_claim=oidc.subject_claim,
        groups_claim=oidc.groups_claim,
        leeway_s=oidc.leeway_s,
    )
    return IssuerClaims(rules, issuer_keys(oidc))


def _grants(written: Iterable[GrantDocument]) -> tuple[Grant, ...]:
    return tuple(document.grant() for document in written)
