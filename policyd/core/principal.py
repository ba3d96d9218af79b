"""Who asks, and in which scopes with which roles: what every surface checks before it answers.

An identity is proved outside (a token, a signed claim, a certificate, or the loopback address); it arrives here as a
**principal**: a name and its grants. A grant is a role in a scope. What a role may do in a tenant is for the
entitlements to say (Casbin), so two things must come together: a grant that covers the scope, and a row that allows.

Rules: one row that denies the name or one of the roles outweighs every row that allows; a grant that is limited to
projects or environments does not cover what has none; a name that no grant covers may do nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:@/+-]{0,127}$")]
"""The name of a role, tenant, project or token: what a row of Casbin may hold."""


class Entitled(Protocol):
    """The part of the entitlements that is asked here."""

    def permits(self, subject: str, domain: str, obj: str, action: str) -> bool:
        """Whether a row allows it and none denies it."""

    def denies(self, subject: str, domain: str, obj: str, action: str) -> bool:
        """Whether a row denies it."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A role in a scope. None stands for every tenant, every project, every environment."""

    role: str
    tenant: str | None = None
    projects: frozenset[str] | None = None
    environments: frozenset[str] | None = None

    def covers(self, tenant: str, project: str | None, environment: str | None) -> bool:
        """Whether the scope lies inside; a limited grant does not cover a scope that does not say where it is."""
        return (
            self.tenant in (None, tenant)
            and (self.projects is None or project in self.projects)
            and (self.environments is None or environment in self.environments)
        )


class GrantDocument(BaseModel):
    """A role in a scope; what is left out is not limited."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Name = Field(description="a role that the rows of Casbin speak of")
    tenant: Name | None = Field(None, description="the tenant; without it, every tenant")
    projects: tuple[Name, ...] | None = Field(None, description="projects; without it, every project", min_length=1)
    environments: tuple[Name, ...] | None = Field(None, description="environments; without it, all", min_length=1)

    def grant(self) -> Grant:
        """The grant."""
        return Grant(
            self.role,
            self.tenant,
            frozenset(self.projects) if self.projects is not None else None,
            frozenset(self.environments) if self.environments is not None else None,
        )


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. ``name`` says how it was proved too (``token:ci``, ``oidc:4711``), so that no name is another's."""

    name: str
    grants: tuple[Grant, ...] = ()

    @property
    def tenants(self) -> frozenset[str] | None:
        """The tenants that some grant names; None when a grant is for every tenant."""
        named = frozenset(grant.tenant for grant in self.grants if grant.tenant is not None)
        return None if any(grant.tenant is None for grant in self.grants) else named

    def permitted(
        self,
        entitled: Entitled,
        obj: str,
        action: str,
        tenant: str,
        project: str | None = None,
        environment: str | None = None,
    ) -> bool:
        """Whether it may do this there. The scope of what belongs to no project has none."""
        roles = {grant.role for grant in self.grants if grant.covers(tenant, project, environment)}
        return self._entitled(entitled, obj, action, tenant, roles)

    def permitted_somewhere(self, entitled: Entitled, obj: str, action: str, tenant: str) -> bool:
        """Whether it may do this for the tenant at all, in whichever project and environment: enough to see what the
        tenant's projects share, such as the fleet."""
        roles = {grant.role for grant in self.grants if grant.tenant in (None, tenant)}
        return self._entitled(entitled, obj, action, tenant, roles)

    def granting(self, entitled: Entitled, obj: str, action: str, tenant: str) -> Iterator[Grant]:
        """The grants that permit this for the tenant, for whoever turns permission into a filter."""
        for grant in self.grants:
            if grant.tenant in (None, tenant) and self._entitled(entitled, obj, action, tenant, {grant.role}):
                yield grant

    def permitted_everywhere(self, entitled: Entitled, obj: str, action: str, tenants: Iterable[str]) -> bool:
        """Whether grants without any limit permit this for each of the tenants: only then may it touch what belongs to
        no tenant. Grants that add up to every tenant do not, and nor does one of them beside an unlimited grant of a
        role that permits something else."""
        whole = Principal(self.name, tuple(grant for grant in self.grants if grant == Grant(grant.role)))
        names = list(tenants)
        return bool(whole.grants) and all(
            whole.permitted(entitled, obj, action, tenant) and self.permitted_somewhere(entitled, obj, action, tenant)
            for tenant in names
        )

    def speaks_for(self, entitled: Entitled, obj: str, action: str, tenant: str) -> bool:
        """Whether what it asks in the name of a tenant concerns that tenant: a grant names it, or one for every tenant
        permits what is asked. A role for every tenant that gives something else does not."""
        named = any(grant.tenant == tenant for grant in self.grants)
        return named or self.permitted_somewhere(entitled, obj, action, tenant)

    def _entitled(self, entitled: Entitled, obj: str, action: str, tenant: str, roles: set[str]) -> bool:
        if not any(entitled.permits(role, tenant, obj, action) for role in roles):
            return False
        # Every role that it has in the tenant counts for a denial, the ones that do not cover the scope too.
        held = {grant.role for grant in self.grants if grant.tenant in (None, tenant)}
        return not any(entitled.denies(subject, tenant, obj, action) for subject in (self.name, *held))


LOCAL: Final = Principal("local", (Grant("local"),))
"""Who acts on loopback without authentication: decides, simulates and reads for every tenant, approves nothing."""
