"""The description of ``GET /metrics``, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final

from policyd.api.openapi import problems_of, route

METRICS: Final[dict[str, Any]] = route(
    "every metric, as docs/reference/metrics.md names it",
    {"text/plain": {"schema": {"type": "string"}}},
    problems_of(403, 404),
)
