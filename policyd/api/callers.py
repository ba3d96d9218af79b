"""Who asks a request, and whether they may: the two questions of every route.

Rules: the gate has settled who asks before a route runs; a route asks for permission by name and never looks at roles;
what a caller may not see does not exist for it.
"""

from __future__ import annotations

from typing import Final

from fastapi import Request

from policyd.core.principal import Principal
from policyd.core.snapshot import Snapshot
from policyd.errors import Forbidden

SCOPE_KEY: Final = "policyd.principal"


def principal_of(request: Request) -> Principal:
    """Who asks, as the gate found."""
    found: Principal = request.scope[SCOPE_KEY]
    return found


def tenants_open_to(principal: Principal, snapshot: Snapshot, obj: str, action: str) -> list[str]:
    """The tenants of the fleet, in order, for which the principal may do this somewhere."""
    entitled = snapshot.entitlements
    return [
        name for name in sorted(snapshot.fleet.tenants) if principal.permitted_somewhere(entitled, obj, action, name)
    ]


def require_somewhere(principal: Principal, snapshot: Snapshot, obj: str, action: str) -> list[str]:
    """``tenants_open_to``, and ``Forbidden`` when there are none."""
    found = tenants_open_to(principal, snapshot, obj, action)
    if not found:
        raise Forbidden(f"{principal.name!r} may not {action} {obj} for any tenant")
    return found
