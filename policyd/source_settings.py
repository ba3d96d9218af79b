"""The settings of the sources that policies and a fleet are followed from.

Rules: those of ``policyd.settings``, of which this is a section. An address that anybody on the way could answer for is
refused, since whoever answers makes the law.
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own loopback, by its address or as ``localhost``."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class SourceSettings(_Section):
    """A source that policies or the fleet are followed from."""

    kind: Literal["git", "directory", "bundle"] = Field(
        description="a git repository, a directory that is looked at again and again, or an OPA bundle (`.tar.gz`)"
    )
    location: str = Field(
        description="`https://…`, `ssh://user@host/…`, `file:///…` or path of the repository; the directory; the file",
        min_length=1,
        max_length=2_048,
    )
    branch: str = Field("main", description="the branch of the repository", min_length=1, max_length=255)
    tag: str | None = Field(None, description="a tag instead of a branch", min_length=1, max_length=255)
    path: str = Field("", description="the folder of the tree in the repository or bundle; none: its root")
    username: str = Field("git", description="user name that goes with `token_file` over https", max_length=255)
    token_file: Path | None = Field(None, description="file with the password or access token for https")
    ssh_key_file: Path | None = Field(None, description="private key for ssh; none: what ssh itself would use")
    ssh_known_hosts_file: Path | None = Field(
        None, description="host keys for ssh, which takes no unknown one; none: those of the user"
    )
    deadline_ms: Annotated[int, Field(ge=100, le=600_000)] = Field(
        30_000, description="longest reading of a repository; then what reads it is killed"
    )
    fetch_max_mib: Annotated[int, Field(ge=1, le=16_384)] = Field(
        256, description="largest history that is fetched from a repository"
    )
    rewritten_history: Literal["refuse", "accept"] = Field(
        "refuse", description="what becomes of a commit that does not descend from the one that is live"
    )
    stale_max_ms: Annotated[int, Field(ge=1_000, le=31_536_000_000)] | None = Field(
        604_800_000,
        description="how long decisions go on while the source does not confirm what is live, "
        "at least twice `poll_ms`; none: without end",
    )

    @field_validator("location")
    @classmethod
    def _safely_reached(cls, value: str) -> str:
        if "://" not in value:
            return value
        parts = urlsplit(value)
        if parts.password or (parts.scheme != "ssh" and parts.username):
            raise ValueError("holds a password or user name; name token_file and username instead")
        if parts.scheme in ("https", "file") or (parts.scheme == "ssh" and parts.hostname):
            return value
        if parts.scheme == "http" and is_loopback(parts.hostname or ""):
            return value
        raise ValueError("is no https, ssh or file address; http only on loopback, since whoever answers makes the law")

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        if value.startswith("/") or ".." in value.split("/"):
            raise ValueError("is no folder inside")
        return value.strip("/")


class PushSettings(_Section):
    """The webhook by which a git server says that somebody has pushed: `POST /v1/revisions/webhook`."""

    form: Literal["github", "gitlab", "gitlab_token"] = Field(
        description="`github` and `gitlab` sign the body; `gitlab_token` sends the secret token itself"
    )
    secret_file: Path = Field(description="file with the secret that the git server has too, 16 bytes at least")


class SourcesSettings(_Section):
    """Where revisions come from, when they are followed while policyd serves."""

    policies: SourceSettings | None = Field(None, description="the source of the policies, instead of `policies`")
    fleet: SourceSettings | None = Field(None, description="the source of the fleet, instead of `fleet`")
    webhook: PushSettings | None = Field(None, description="who says that there is something new, besides polling")
    poll_ms: Annotated[int, Field(ge=100, le=86_400_000)] = Field(10_000, description="how often sources are looked at")

    @model_validator(mode="after")
    def _looked_at_in_time(self) -> SourcesSettings:
        if self.webhook is not None and self.policies is None and self.fleet is None:
            raise ValueError("sources.webhook is set, and there is no source to look at")
        for kind in ("policies", "fleet"):
            source: SourceSettings | None = getattr(self, kind)
            if source is not None and source.stale_max_ms is not None and source.stale_max_ms < 2 * self.poll_ms:
                raise ValueError(f"sources.{kind}.stale_max_ms is less than twice sources.poll_ms ({self.poll_ms})")
        return self
