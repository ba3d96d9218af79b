"""Revisions as the log keeps them: the texts of a policy tree, and the whole document of a fleet, by their digests.

Rules: a revision is found by the digest that decisions name; what is read back is whole, or it is not there.
It refuses to be fast: every kept revision is opened until the one that is meant is found, and there are few.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Final, Protocol

import orjson
from pydantic import ValidationError
from sqlalchemy import Connection

from audit import query, scan
from audit.record import BlobKind
from policyd.core.fleet import Fleet, FleetDocument, place_groups
from policyd.errors import AuditError
from policyd.ports import PolicyTree

_DAMAGED: Final = "restore the log from a backup"


class Readable(Protocol):
    """A reader of the log; see ``policyd.services.log_reader``."""

    async def read(self, read: Any) -> Any: ...


async def logged_policies(log: Readable, digest: str) -> PolicyTree | None:
    """The policy tree with this digest; None when the log has none. Raises ``AuditError`` for one that is damaged."""
    found = await log.read(lambda connection: _find(connection, "policy", digest))
    if found is None:
        return None
    try:
        return PolicyTree(
            digest=digest,
            commit=None,
            modules={PurePosixPath(path): text for path, text in found["modules"].items()},
            tests={},
            data={PurePosixPath(path): text for path, text in found["data"].items()},
            casbin_model=found["casbin_model"],
            casbin_rows=found["casbin_rows"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise AuditError(f"the policies {digest} in the log are no policy tree: {error}", remedy=_DAMAGED) from error


async def logged_fleet(log: Readable, digest: str) -> Fleet | None:
    """The fleet with this digest; None when the log has none. Raises ``AuditError`` for one that cannot be read."""
    found = await log.read(lambda connection: _find(connection, "fleet", digest))
    if found is None:
        return None
    try:
        document = FleetDocument.model_validate_json(orjson.dumps(found["fleet"]))
    except (KeyError, ValidationError) as error:
        raise AuditError(f"the fleet {digest} in the log cannot be read: {error}", remedy=_DAMAGED) from error
    return Fleet(document, digest, None, place_groups(document))


def _find(connection: Connection, kind: BlobKind, digest: str) -> dict[str, Any] | None:
    for address in scan.blobs_of(connection, kind):
        content = query.blob(connection, address)
        # The words of the digest are in the text: only that revision is worth parsing.
        if content is not None and digest.encode() in content:
            document = orjson.loads(content)
            if isinstance(document, dict) and document.get("digest") == digest:
                return document
    return None
