"""The settings of who may ask: proofs of identity, TLS, and what one principal may ask at once.

Rules: those of ``policyd.settings``, of which these are sections.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from policyd.core.principal import GrantDocument
from policyd.source_settings import is_loopback

Signature = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # by a key that only the issuer has (RFC 7518, RFC 8037); a symmetric one would let a reader of the keys sign


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OidcSettings(_Section):
    """An issuer whose signed claims (JWT) prove who asks."""

    issuer: str = Field(description="the issuer, exactly as its tokens name it", min_length=1)
    audience: str = Field(description="the audience that a token must be meant for; never left out", min_length=1)
    jwks_url: str = Field(description="where its public keys are (JWKS); https, or http on loopback")
    algorithms: tuple[Signature, ...] = Field(("RS256", "ES256"), description="signatures that are taken", min_length=1)
    subject_claim: str = Field("sub", description="the claim that names the principal", min_length=1)
    groups_claim: str = Field("groups", description="the claim that lists its groups", min_length=1)
    groups: dict[str, tuple[GrantDocument, ...]] = Field(
        default_factory=dict, description="grants by group; a group that is not named gives nothing"
    )
    leeway_s: Annotated[int, Field(ge=0, le=300)] = Field(30, description="how far the issuer's clock may be off")
    jwks_refresh_ms: Annotated[int, Field(ge=1_000, le=86_400_000)] = Field(
        300_000, description="how often the keys are fetched"
    )
    jwks_max_age_ms: Annotated[int, Field(ge=1_000, le=2_592_000_000)] = Field(
        86_400_000, description="how long fetched keys count while they cannot be fetched again"
    )
    jwks_timeout_ms: Annotated[int, Field(ge=100, le=60_000)] = Field(3_000, description="longest fetch of the keys")

    @field_validator("jwks_url")
    @classmethod
    def _fetched_safely(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            return value
        raise ValueError("is no https address; http only on loopback, since whoever answers says who may ask")


class AuthSettings(_Section):
    """How callers prove who they are. Without any of these, whoever reaches the loopback address is `local`."""

    tokens_file: Path | None = Field(None, description="file with the hashes of bearer tokens and their grants")
    oidc: OidcSettings | None = Field(None, description="an issuer of signed claims (JWT)")
    certificates: dict[str, tuple[GrantDocument, ...]] = Field(
        default_factory=dict,
        description="grants by name in a client certificate (DNS name or URI); needs `tls.client_ca_file`",
    )
    refresh_ms: Annotated[int, Field(ge=100, le=3_600_000)] = Field(
        1_000, description="how often the files of tokens and certificates are looked at"
    )

    @property
    def configured(self) -> bool:
        """Whether callers must prove who they are."""
        return bool(self.tokens_file or self.oidc or self.certificates)


class TlsSettings(_Section):
    """Files for TLS; changed files are taken for new connections, without a restart."""

    certificate_file: Path | None = Field(None, description="certificate chain of the server, PEM")
    key_file: Path | None = Field(None, description="its private key, PEM")
    client_ca_file: Path | None = Field(None, description="authorities whose client certificates are taken, PEM")
    client_certificate: Literal["optional", "required"] = Field(
        "optional", description="whether a caller must show a certificate of `client_ca_file`"
    )


class LimitSettings(_Section):
    """What one principal may ask at once and for how long."""

    in_flight_max: Annotated[int, Field(ge=1, le=100_000)] = Field(
        512, description="requests of one principal in progress"
    )
    requests_per_s: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10_000, description="requests of one principal a second, in the long run"
    )
    requests_burst: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        20_000, description="requests of one principal at once, after quiet"
    )
    refusals_interval_ms: Annotated[int, Field(ge=100, le=3_600_000)] = Field(
        10_000, description="refusals of one kind and principal within this time share one entry of the log"
    )
