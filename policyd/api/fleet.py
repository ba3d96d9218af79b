"""The fleet as decided on: pools, models, and the revision itself.

Rules: what is shown is the live snapshot's fleet, whole; a fact that nobody declared is null, not left out; an answer
is named by the revision's digest (``ETag``), so that asking again costs nothing until the fleet changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from policyd.api.openapi import FLEET, MODELS, POOL, POOLS
from policyd.api.parts import Parts
from policyd.api.queries import cursor_at, limit_of, parameters, position_of
from policyd.core.fleet import Fleet, Model, ModelVersion, Tenant
from policyd.documents import nearest
from policyd.errors import NotFound


def fleet_router(parts: Parts) -> APIRouter:
    """The routes of the fleet."""
    router = APIRouter(prefix="/v1", tags=["fleet"])
    encoded_pools, encoded_models = _Encoded(pool_items), _Encoded(model_items)

    @router.get("/pools", summary="The pools of the fleet", **POOLS)
    async def pools(request: Request) -> Response:
        """Every pool with its declared facts, in order of id."""
        fleet = parts.snapshot.fleet
        return _page(request, fleet, "pools", encoded_pools.of(fleet))

    @router.get("/pools/{id:path}", summary="One pool", **POOL)
    async def pool(id: str, request: Request) -> Response:
        """One pool with its declared facts."""
        parameters(request, ())
        fleet = parts.snapshot.fleet
        found = fleet.pools.get(id)
        if found is None:
            raise NotFound(f"there is no pool {id[:200]!r}{_hint(id, list(fleet.pools))}")
        return _answer(request, fleet, {**found.model_dump(mode="json"), "fleet": revision(fleet)})

    @router.get("/models", summary="The models of the registry", **MODELS)
    async def models(request: Request) -> Response:
        """Every version of every model: one item each, newest version first."""
        fleet = parts.snapshot.fleet
        return _page(request, fleet, "models", encoded_models.of(fleet))

    @router.get("/fleet", summary="The fleet revision in force", **FLEET)
    async def whole(request: Request) -> Response:
        """Commit and digest of the revision, its tenants, models, SLA classes and data sources."""
        parameters(request, ())
        fleet = parts.snapshot.fleet
        return _answer(request, fleet, fleet_json(fleet))

    return router


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


def fleet_json(fleet: Fleet) -> dict[str, Any]:
    """The revision and the names that a request may use."""
    document = fleet.document
    return {
        **revision(fleet),
        "pools_total": len(fleet.pools),
        "tenants": [_tenant_json(fleet.tenants[name]) for name in sorted(fleet.tenants)],
        "models": sorted(fleet.models),
        "sla_classes": [sla.model_dump(mode="json") for sla in document.sla_classes],
        "data_sources": [source.model_dump(mode="json") for source in document.data_sources],
        "classification_map": {word: meant.value for word, meant in sorted(document.classification_map.items())},
        "place_groups": {name: sorted(members) for name, members in sorted(fleet.groups.items())},
    }


def _tenant_json(tenant: Tenant) -> dict[str, Any]:
    kept = {"name", "title", "seat", "sector", "zone", "sla_classes", "default_project", "floors", "projects"}
    return tenant.model_dump(mode="json", include=kept)


def _page(request: Request, fleet: Fleet, name: str, items: Items) -> Response:
    found = parameters(request, ("cursor", "limit"))
    limit = limit_of(found)
    bound_to = f"{name} {fleet.digest[-32:]}"
    start = position_of(found.get("cursor"), bound_to)
    end = start + limit
    following = cursor_at(bound_to, end) if end < len(items) else None
    return _answer(request, fleet, {"items": items[start:end], "next": following, "fleet": revision(fleet)})


def _answer(request: Request, fleet: Fleet, document: Any) -> Response:
    etag = f'"{fleet.digest}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
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
