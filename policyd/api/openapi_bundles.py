"""The description of the bundle of policies, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final

from policyd.api.openapi import parameter, problems_of, route

BUNDLE: Final[dict[str, Any]] = route(
    "a gzipped tar archive, as [OPA describes it](https://www.openpolicyagent.org/docs/management-bundles)",
    {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
    problems_of(400, 503),
    parameters=[
        parameter(
            "If-None-Match", "the `ETag` of an earlier answer: 304 when it still holds", {"type": "string"}, "header"
        )
    ],
)
