"""``GET /v1/bundles/policies.tar.gz``: the live policies for OPA servers that follow them.

Rules: for whoever may read revisions, since a bundle is the text of one; asking again costs nothing until another
revision is live.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from policyd.api.callers import principal_of, require_somewhere
from policyd.api.fleet import etag_matches
from policyd.api.openapi_bundles import BUNDLE
from policyd.api.parts import Parts
from policyd.api.queries import parameters


def bundle_router(parts: Parts) -> APIRouter:
    """The route of the bundle."""
    router = APIRouter(prefix="/v1/bundles", tags=["revisions"])

    @router.get("/policies.tar.gz", summary="The live policies as an OPA bundle", **BUNDLE)
    async def policies(request: Request) -> Response:
        """Modules and settings, with a manifest, and a signature when there is a key for it."""
        parameters(request, ())
        require_somewhere(principal_of(request), parts.snapshot, "revisions", "read")
        asked, etag = request.headers.get("if-none-match", ""), parts.bundles.etag()
        if etag_matches(asked, etag):
            return Response(status_code=304, headers=_headers(etag))
        bundle = await parts.bundles.live()
        return Response(bundle.content, headers=_headers(bundle.etag), media_type="application/gzip")

    return router


def _headers(etag: str) -> dict[str, str]:
    return {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Authorization"}
