"""Whether a principal may decide or simulate for a workload, and what a refusal may say of its tenant.

Rules: what is wrong with a request tells of the tenant that it names (its projects, its environments, the places that
it permits), so whoever may do nothing for that tenant is told only that; a tenant that does not exist reads the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from policyd.core.fleet import Fleet
from policyd.core.principal import Entitled, Principal
from policyd.core.snapshot import Permits, Snapshot
from policyd.core.workload import Workload, WorkloadRequest
from policyd.errors import Forbidden, PolicydError

OBJECT = "decisions"


def require_scope(principal: Principal, entitled: Entitled, action: str, workload: Workload) -> None:
    """Raise ``Forbidden`` unless the principal may do this where the workload belongs."""
    scope = (workload.tenant, workload.project, workload.environment)
    if principal.permitted(entitled, OBJECT, action, *scope):
        return
    if not principal.permitted_somewhere(entitled, OBJECT, action, workload.tenant):
        raise _foreign(principal, workload.tenant)
    raise Forbidden(f"{principal.name!r} has no entitlement to {action} for {'/'.join(scope)!r}")


def told_to(
    principal: Principal, snapshot: Snapshot, action: str, request: WorkloadRequest, error: PolicydError
) -> PolicydError:
    """The error that the principal is told when its request cannot be normalised: this one, or ``Forbidden``."""
    tenants = snapshot.fleet.tenants
    name = request.tenant
    if name is None and principal.tenants is not None and len(principal.tenants) == 1:
        (name,) = principal.tenants
    asked = [name] if name is not None and name in tenants else list(tenants)
    allowed = [one for one in asked if principal.permitted_somewhere(snapshot.entitlements, OBJECT, action, one)]
    # Who may do it for every tenant may know which there are; without a name, one is enough to be told to name it.
    if (allowed and name is None) or len(allowed) == len(asked):
        return error
    return _foreign(principal, name)


def visible_pools(entitled: Permits, fleet: Fleet, tenants: Sequence[str]) -> frozenset[str]:
    """The pools that at least one of these tenants may see: it may view the group, and the pool is not dedicated to
    others."""
    known = {pool.group for pool in fleet.pools.values()}
    groups = {
        tenant: {group for group in known if entitled.permits(f"tenant:{tenant}", tenant, group, "view")}
        for tenant in tenants
    }
    return frozenset(
        pool.id
        for pool in fleet.pools.values()
        if any(pool.group in groups[name] for name in (set(pool.dedicated_to or tenants) & groups.keys()))
    )


def _foreign(principal: Principal, tenant: str | None) -> Forbidden:
    return Forbidden(f"{principal.name!r} may not act for {f'tenant {tenant!r}' if tenant else 'any tenant'}")
