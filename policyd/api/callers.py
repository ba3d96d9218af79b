"""Who asks a request, and whether they may: the two questions of every route.

Rules: the gate has settled who asks before a route runs; a route asks for permission by name and never looks at roles;
what a caller may not see does not exist for it. Without authentication everybody who reaches the loopback address is
``local``, so a page of another site that a browser was led to (DNS rebinding) must not pass for it: the request names
this machine as its host, or it is refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from audit.query import Owner, Within
from policyd.core.principal import LOCAL, Principal
from policyd.core.snapshot import Snapshot
from policyd.errors import (
    Forbidden,
    LimitReached,
    NotFound,
    PolicydError,
    ReservationConflict,
    Unauthenticated,
    WrongHost,
)
from policyd.identity.credentials import Authenticator, Shown
from policyd.identity.limits import Limiter
from policyd.services.log_reader import NO_ENTRY_REMEDY, no_entry
from policyd.services.refusals import Refusals
from policyd.settings import is_loopback

if TYPE_CHECKING:
    # The command line comes past here too, and does without the web framework.
    from fastapi import Request
    from starlette.types import Scope

SCOPE_KEY: Final = "policyd.principal"
CERTIFICATE_KEY: Final = "policyd.certificate_names"
"""Set by the connection: the names in the client certificate that TLS verified."""
ANONYMOUS: Final = Principal("anonymous")
"""Who asks what everybody may: no grants, so no route gives anything away by mistake."""
HOST_MAX_BYTES: Final = 300
"""More than any host and its port; what is remembered of them stays small."""
RECORD_TIMEOUT_S: Final = 5
_log: Final = logging.getLogger(__name__)
REFUSED: Final = (Unauthenticated, Forbidden, LimitReached, WrongHost, ReservationConflict)
"""Errors that go into the log as refusals, beside what is hidden: of identity, and of a hold that is none any more."""


@dataclass
class Callers:
    """Settles who asks, holds each to its limits, and records who was refused. No authenticator: loopback only."""

    authenticator: Authenticator | None
    limiter: Limiter
    refusals: Refusals

    async def principal(self, scope: Scope) -> Principal:
        """Who asks. Raises ``Unauthenticated``, and ``WrongHost`` on the loopback address without authentication."""
        if self.authenticator is not None:
            return await self.authenticator.principal(_shown(scope))
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or len(hosts[0]) > HOST_MAX_BYTES or not _names_loopback(hosts[0]):
            raise WrongHost("the request does not name this machine as its host")
        return LOCAL

    async def refused(self, scope: Scope, error: PolicydError) -> None:
        """Record the error when it is one of identity that no decision has recorded."""
        hidden = isinstance(error, NotFound) and error.truth is not None
        if not (hidden or isinstance(error, REFUSED)) or error.decision_id is not None:
            return
        try:
            async with asyncio.timeout(RECORD_TIMEOUT_S):
                await self.refusals.record(error, _who(scope), scope["policyd.request_id"])
        except TimeoutError:
            _log.error("a refusal (%s) was not recorded within %d s", error.code, RECORD_TIMEOUT_S)


def readable(principal: Principal, snapshot: Snapshot) -> tuple[Within, ...] | None:
    """The parts of the log that the principal may read; None is all of it, with what belongs to no tenant.

    Raises ``Forbidden`` when it may read nothing.
    """
    entitled, tenants = snapshot.entitlements, sorted(snapshot.fleet.tenants)
    if principal.permitted_everywhere(entitled, "audit", "read", tenants):
        return None
    granting = {tenant: list(principal.granting(entitled, "audit", "read", tenant)) for tenant in tenants}
    found = {
        Within(tenant, grant.projects, grant.environments): None for tenant in tenants for grant in granting[tenant]
    }
    if not found:
        raise Forbidden(f"{principal.name!r} may read the log of no tenant")
    return tuple(found)


def owner_in(body: Mapping[str, Any]) -> Owner:
    """To whom an entry belongs by its own words."""
    workload, scope = body.get("workload"), body.get("scope") or (None, None, None)
    if workload is not None:
        scope = (workload["tenant"], workload["project"], workload["environment"])
    tenant, project, environment = scope
    return Owner(tenant, project, environment, body.get("principal"))


def require_readable(principal: Principal, snapshot: Snapshot, entry_id: str, owner: Owner) -> None:
    """Raise ``NotFound`` unless the principal may read this entry: of its tenants, or a refusal of its own request."""
    if owner.tenant is not None:
        scope = (owner.tenant, owner.project, owner.environment)
        readable_by = principal.permitted(snapshot.entitlements, "decisions", "read", *scope)
    else:
        readable_by = owner.principal == principal.name or _reads_all(principal, snapshot)
    if not readable_by:
        of = "/".join(part or "-" for part in (owner.tenant, owner.project, owner.environment))
        truth = f"the entry {entry_id} of {of if owner.tenant else 'no tenant'} was asked for"
        raise NotFound(no_entry(entry_id), remedy=NO_ENTRY_REMEDY, truth=truth)


def _reads_all(principal: Principal, snapshot: Snapshot) -> bool:
    try:
        return readable(principal, snapshot) is None
    except Forbidden:
        return False


def _shown(scope: Scope) -> Shown:
    authorization = [value for name, value in scope["headers"] if name == b"authorization"]
    return Shown(authorization, scope.get(CERTIFICATE_KEY))


@lru_cache(maxsize=256)
def _names_loopback(host: bytes) -> bool:
    return is_loopback(_host(host.decode("latin-1")))


def _host(written: str) -> str:
    """The name in a ``Host`` header, without its port."""
    name, colon, port = written.rpartition(":")
    return name if colon and port.isdigit() and not written.endswith("]") else written


def _who(scope: Scope) -> str:
    principal: Principal = scope.get(SCOPE_KEY, ANONYMOUS)
    if principal is not ANONYMOUS:
        return principal.name
    client = scope.get("client")
    return f"address:{client[0]}" if client else principal.name


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
