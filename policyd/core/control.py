"""Control: how much of a pool is in the tenant's own hands, 0..1000. A table of points, so that it can be argued with.

Rules: an undeclared fact earns nothing; an expired certificate earns nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from policyd.core.pool import Pool
from policyd.core.terms import Terms

POINTS: Final[Mapping[str, Mapping[str, int]]] = {
    "tenancy": {"dedicated": 300, "single_tenant": 200, "shared": 0},
    "hardware": {"owned": 250, "leased": 150, "rented": 50},
    "account": {"ours": 150, "provider": 0},
}
SEAT_POINTS: Final = 100
"""For the operator's seat, and again for its parent's, among the seats that the tenant permits."""
CERTIFICATE_POINTS: Final = 25
CERTIFICATES_COUNTED: Final = 4


def control_component(pool: Pool, terms: Terms, date: str) -> tuple[int, dict[str, Any]]:
    """Points of a pool under a tenant's terms on a day (ISO 8601), and the facts that earned them."""
    facts = {name: getattr(pool, name) for name in POINTS}
    points = sum(POINTS[name].get(value, 0) for name, value in facts.items() if value is not None)
    seats = {"operator_seat": pool.operator.seat, "operator_parent_seat": pool.operator.parent_seat}
    points += sum(SEAT_POINTS for seat in seats.values() if seat in terms.permitted_seats)
    valid = sorted(c.name for c in pool.certifications or () if c.expires is not None and c.expires.isoformat() >= date)
    points += CERTIFICATE_POINTS * min(CERTIFICATES_COUNTED, len(valid))
    return points, {**facts, **seats, "certificates_in_date": valid}
