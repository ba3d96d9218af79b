"""The fleet as decided on: pools, models, and the revision itself.

Rules: what is shown is the live snapshot's fleet, as far as the caller may see it: its tenants, their data sources, and
the pools that they see; a fact that nobody declared is null, not left out; an answer
is named by the revision's digest (``ETag``), so that asking again costs nothing until the fleet changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from policyd.api.callers import principal_of, require_somewhere
from policyd.api.openapi import FLEET, MODELS, POOL, POOLS
from policyd.api.parts import Parts
from policyd.api.queries import cursor_at, limit_of, parameters, position_of
from policyd.core.fleet import Fleet, Model, ModelVersion, Tenant
from policyd.core.snapshot import Snapshot
from policyd.documents import nearest
from policyd.errors import NotFound
from policyd.services.permission import visible_pools


def fleet_router(parts: Parts) -> APIRouter:
    """The routes of the fleet."""
    router = APIRouter(prefix="/v1", tags=["fleet"])
    encoded_pools, encoded_models = _Encoded(pool_items), _Encoded(model_items)

    @router.get("/pools", summary="The pools of the fleet", **POOLS)
    async def pools(request: Request) -> Response:
        """Every pool that the caller may see, with its declared facts, in order of id."""
        view = view_of(request, parts.snapshot)
        items = [
            item
            for pool, item in zip(view.fleet.pools.values(), encoded_pools.of(view.fleet), strict=True)
            if view.shows(pool.id)
        ]
        return _page(request, view, "pools", items)

    @router.get("/pools/{id:path}", summary="One pool", **POOL)
    async def pool(id: str, request: Request) -> Response:
        """One pool with its declared facts."""
        parameters(request, ())
        view = view_of(request, parts.snapshot)
        found, known = view.fleet.pools.get(id), [name for name in view.fleet.pools if view.shows(name)]
        detail = f"there is no pool {id[:200]!r}{_hint(id, known)}"
        if found is None:
            raise NotFound(detail)
        if not view.shows(id):
            raise NotFound(detail, truth=f"the pool {id!r} was asked for")
        return _answer(request, view, {**found.model_dump(mode="json"), "fleet": revision(view.fleet)})

    @router.get("/models", summary="The models of the registry", **MODELS)
    async def models(request: Request) -> Response:
        """Every version of every model: one item each, newest version first."""
        view = view_of(request, parts.snapshot)
        return _page(request, view, "models", encoded_models.of(view.fleet))

    @router.get("/fleet", summary="The fleet revision in force", **FLEET)
    async def whole(request: Request) -> Response:
        """Commit and digest of the revision, its tenants, models, SLA classes and data sources."""
        parameters(request, ())
        view = view_of(request, parts.snapshot)
        return _answer(request, view, fleet_json(view))

    return router


@dataclass(frozen=True)
class View:
    """The part of the fleet that a caller may see: some tenants, and the pools that these see (None is every pool)."""

    fleet: Fleet
    tenants: tuple[str, ...]
    pools: frozenset[str] | None

    def shows(self, pool: str) -> bool:
        """Whether that pool is seen."""
        return self.pools is None or pool in self.pools

    @property
    def etag(self) -> str:
        """The revision, and what of it is seen."""
        if self.pools is None and len(self.tenants) == len(self.fleet.tenants):
            return f'"{self.fleet.digest}"'
        seen = orjson.dumps([self.tenants, sorted(self.pools or ())])
        return f'"{self.fleet.digest}.{sha256(seen).hexdigest()[:16]}"'


def view_of(request: Request, snapshot: Snapshot) -> View:
    """What the caller of a request may see. Raises ``Forbidden`` when it may read the fleet for no tenant."""
    principal, fleet = principal_of(request), snapshot.fleet
    tenants = tuple(require_somewhere(principal, snapshot, "fleet", "read"))
    if principal.permitted_everywhere(snapshot.entitlements, "fleet", "read", fleet.tenants):
        return View(fleet, tenants, None)
    return View(fleet, tenants, visible_pools(snapshot.entitlements, fleet, tenants))


def revision(fleet: Fleet) -> dict[str, str | None]:
    """Which fleet this is."""
    return {"commit": fleet.commit, "digest": fleet.digest}


Items = tuple[orjson.Fragment, ...]


class _Encoded:
    """The items of the fleet in force, encoded once a revision."""

    def __init__(self, encode: Callable[[Fleet], Items]) -> None:
        self._encode = encode
        self._held: tuple[str, Items] = ("", ())

    def of(self, fleet: Fleet) -> Items:
        """The items of this fleet."""
        if self._held[0] != fleet.digest:
            self._held = (fleet.digest, self._encode(fleet))
        return self._held[1]


def pool_items(fleet: Fleet) -> Items:
    """Each pool of a fleet, in order of id."""
    return tuple(orjson.Fragment(orjson.dumps(pool.model_dump(mode="json"))) for pool in fleet.pools.values())


def model_items(fleet: Fleet) -> Items:
    """Each version of each model of a fleet."""
    found = ((fleet.models[name], version) for name in sorted(fleet.models) for version in fleet.models[name].versions)
    return tuple(orjson.Fragment(orjson.dumps(_model_json(model, version))) for model, version in found)


def _model_json(model: Model, version: ModelVersion) -> dict[str, Any]:
    written = version.model_dump(mode="json")
    return {"name": model.name, **written, **model.model_dump(mode="json", exclude={"name", "versions"})}


def fleet_json(view: View) -> dict[str, Any]:
    """The revision and the names that the caller's requests may use."""
    fleet, document = view.fleet, view.fleet.document
    used = {name for tenant in view.tenants for project in fleet.tenants[tenant].projects for name in project.sources}
    every = len(view.tenants) == len(fleet.tenants)
    return {
        **revision(fleet),
        "pools_total": sum(map(view.shows, fleet.pools)),
        "tenants": [_tenant_json(fleet.tenants[name]) for name in view.tenants],
        "models": sorted(fleet.models),
        "sla_classes": [sla.model_dump(mode="json") for sla in document.sla_classes],
        "data_sources": [
            source.model_dump(mode="json") for source in document.data_sources if every or source.name in used
        ],
        "classification_map": {word: meant.value for word, meant in sorted(document.classification_map.items())},
        "place_groups": {name: sorted(members) for name, members in sorted(fleet.groups.items())},
    }


def _tenant_json(tenant: Tenant) -> dict[str, Any]:
    kept = {"name", "title", "seat", "sector", "zone", "sla_classes", "default_project", "floors", "projects"}
    return tenant.model_dump(mode="json", include=kept)


def _page(request: Request, view: View, name: str, items: Sequence[orjson.Fragment]) -> Response:
    found = parameters(request, ("cursor", "limit"))
    limit = limit_of(found)
    bound_to = f"{name} {view.etag[-33:-1]}"
    start = position_of(found.get("cursor"), bound_to)
    end = start + limit
    following = cursor_at(bound_to, end) if end < len(items) else None
    return _answer(request, view, {"items": items[start:end], "next": following, "fleet": revision(view.fleet)})


def _answer(request: Request, view: View, document: Any) -> Response:
    etag = view.etag
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Authorization"}
    if etag_matches(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    return Response(orjson.dumps(document), headers=headers, media_type="application/json")


def etag_matches(written: str, etag: str) -> bool:
    """Whether an ``If-None-Match`` header names the entity tag; weak and strong ones count alike (RFC 9110, 13.1.2)."""
    names = {part.strip().removeprefix("W/") for part in written.split(",")}
    return etag in names or "*" in names


def _hint(name: str, known: list[str]) -> str:
    found = nearest(name[:128], known)
    return found if found.startswith("; did") else ""
