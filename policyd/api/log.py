"""Proofs about the log over HTTP: its newest checkpoint, that it only grew, that a decision is in it.

Rules: hashes and signatures are for whoever may read anything of the log, since they tell nothing of what is in it but
how much there is; a receipt holds the bytes of its entry, so that it is for whoever may read that entry.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Final

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from policyd.api.callers import owner_in, principal_of, readable, require_readable
from policyd.api.openapi_log import CHECKPOINT, CONSISTENCY, ENTRIES, EXPORT, GAPS, RECEIPT
from policyd.api.parts import Parts
from policyd.api.queries import parameters
from policyd.errors import Finding, Forbidden, RequestError
from policyd.services.checkpoints import LogFiles, public_keys
from policyd.services.exports import entries_page
from policyd.services.proofs import consistency, export_page, gaps, newest_checkpoint, receipt
from policyd.services.witnessing import words_kept

_NO_STORE: Final = {"Cache-Control": "no-store"}
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}")


def log_router(parts: Parts) -> APIRouter:
    """The routes of proofs."""
    router = APIRouter(prefix="/v1", tags=["log"])

    @router.get("/log/checkpoint", summary="The newest checkpoint of the log", **CHECKPOINT)
    async def checkpoint(request: Request) -> Response:
        """How many entries the log has, and the root over all of them, signed. Keep it: later ones must continue it."""
        parameters(request, ())
        readable(principal_of(request), parts.snapshot)
        _, note = await newest_checkpoint(parts.reader, parts.committer.origin)
        return PlainTextResponse(note, headers=_NO_STORE)

    @router.get("/log/consistency", summary="The proof that the log only grew", **CONSISTENCY)
    async def consistent(request: Request) -> Response:
        """That the log of `to` entries begins with the log of `from` entries."""
        asked = parameters(request, ("from", "to"))
        readable(principal_of(request), parts.snapshot)
        first = size_of(asked, "from")
        if first is None:
            raise _fault("from", "is the size of the checkpoint that you have")
        second = size_of(asked, "to")
        if second is None:
            second, _ = await newest_checkpoint(parts.reader, parts.committer.origin)
        found = await consistency(parts.reader, parts.committer.origin, first, second)
        return Response(orjson.dumps(found), headers=_NO_STORE, media_type="application/json")

    @router.get("/log/gaps", summary="What the log says that it has lost", **GAPS)
    async def lost(request: Request) -> Response:
        """The gap entries of the log, oldest first: which entries were lost, who restored it, and why."""
        parameters(request, ())
        readable(principal_of(request), parts.snapshot)
        keys = await asyncio.to_thread(public_keys, LogFiles.within(parts.directory.path))
        found = await gaps(parts.reader, parts.committer.origin, keys)
        document = {"log": parts.committer.origin, "items": [gap.to_json() for gap in found]}
        return Response(orjson.dumps(document), headers=_NO_STORE, media_type="application/json")

    @router.get("/log/export", summary="A part of the export of the log", **EXPORT)
    async def export(request: Request) -> Response:
        """The exact bytes of entries from `from` to a checkpoint. Ask again from its end, until nothing is new."""
        asked = parameters(request, ("from",))
        _require_whole_log(request, parts)
        keys = await asyncio.to_thread(public_keys, LogFiles.within(parts.directory.path))
        page = await export_page(parts.reader, parts.committer.origin, keys, size_of(asked, "from") or 0)
        return Response(page, headers=_NO_STORE, media_type="application/jsonl")

    @router.get("/log/entries", summary="Entries of the log with what they are found by", **ENTRIES)
    async def entries(request: Request) -> Response:
        """Entries from `from` on, with their columns. Ask again from its end, until that is the size of the log."""
        asked = parameters(request, ("from", "log"))
        _require_whole_log(request, parts)
        start, log = size_of(asked, "from") or 0, asked.get("log", parts.committer.origin)
        page = await entries_page(parts.reader, log, start)
        return Response(page, headers=_NO_STORE, media_type="application/jsonl")

    @router.get("/decisions/{id}/receipt", summary="The receipt of a decision", tags=["decisions"], **RECEIPT)
    async def receipt_of(id: str, request: Request) -> Response:
        """The proof that the decision is in the log, to be verified offline with `policyd audit verify --receipt`."""
        parameters(request, ())
        principal = principal_of(request)
        require_readable(principal, parts.snapshot, id, await parts.reader.owner_of(id, principal.name))
        record = await parts.reader.by_id(id)
        require_readable(principal, parts.snapshot, id, owner_in(record.document()))
        found = await receipt(parts.reader, id, partial(words_kept, parts.directory.path))
        headers = {"X-Policyd-Decision-Id": id, "Content-Disposition": f'attachment; filename="{id}.tlog-proof"'}
        return PlainTextResponse(found.encode(), headers={**headers, **_NO_STORE})

    return router


def _require_whole_log(request: Request, parts: Parts) -> None:
    """Raise ``Forbidden`` unless the caller may read the log of every tenant."""
    principal = principal_of(request)
    if readable(principal, parts.snapshot) is not None:
        raise Forbidden(f"{principal.name!r} may not read the log of every tenant, which an export is")


def size_of(asked: dict[str, str], name: str) -> int | None:
    """A size of the log that a query names. Raises ``RequestError`` for what is none."""
    written = asked.get(name)
    if written is None:
        return None
    if not _NUMBER.fullmatch(written):
        raise _fault(name, "is a size of the log, a whole number")
    return int(written)


def _fault(name: str, message: str) -> RequestError:
    return RequestError(f"`{name}` {message}", findings=[Finding(name, message)])
