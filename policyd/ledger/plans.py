"""Plans: where a set of limits counts now, worked out once for all decisions that are charged to it.

    limits of the fleet ──what somebody set──► limits that count ──the window of this moment──► keys of accounts

Rules: limits are the same objects from decision to decision, and a plan is known by them; it holds them, so that no
other object can take their place; it serves until the first of its windows ends, and no longer than what is set does:
whoever hears of a change makes new ``Plans``. Bounded.
It refuses: nothing; what may not be charged is for the rules of the ledger to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from policyd.ledger.changes import LimitKey, SetLimit, effective, key_of
from policyd.ledger.rules import AccountKey, Charge, Limit
from policyd.ledger.windows import Span, window_of

PLANS_MAX: Final = 8_192
PLACES_MAX: Final = 20_000


class Place(NamedTuple):
    """The account of a limit and its window; ``asked`` is the limit that a decision names, ``limit`` the one that
    counts."""

    asked: Limit
    limit: Limit
    key: AccountKey
    span: Span


class Plan(NamedTuple):
    """The places of the limits that a decision is charged to, and the time for which all of them are right."""

    places: tuple[Place, ...]
    keys: tuple[AccountKey, ...]
    limits: Mapping[AccountKey, tuple[Limit, int | None]]
    """By account: the limit that counts, and the end of its window."""
    span: Span


def placed(limit: Limit, time_us: int) -> Place:
    """Where a limit counts by itself."""
    span = window_of(limit.window, ZoneInfo(limit.zone), time_us)
    return Place(limit, limit, AccountKey(limit.path, limit.pools, limit.unit, limit.window, span.start_us), span)


class Plans:
    """The plans under what somebody set beside the fleet."""

    def __init__(self, found: Mapping[LimitKey, SetLimit]) -> None:
        self._set = found
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._places: dict[int, Place] = {}

    def place(self, limit: Limit, time_us: int) -> Place:
        """Where a limit counts now."""
        place = self._places.get(id(limit))
        if place is None or not place.span.holds(time_us):
            counted = effective(limit, self._set.get(key_of(limit)))
            if len(self._places) >= PLACES_MAX:
                self._places.clear()
            place = self._places[id(limit)] = placed(counted, time_us)._replace(asked=limit)
        return place

    def plan(self, charges: tuple[Charge, ...], time_us: int) -> Plan:
        """Where these charges go now."""
        name = tuple([id(charge[0]) for charge in charges])
        plan = self._plans.get(name)
        if plan is None or not plan.span.holds(time_us):
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            plan = self._plans[name] = _planned(tuple(self.place(limit, time_us) for limit, _ in charges))
        return plan


def _planned(places: tuple[Place, ...]) -> Plan:
    ends = [place.span.end_us for place in places if place.span.end_us is not None]
    span = Span(max((place.span.start_us for place in places), default=0), min(ends, default=None))
    limits = {place.key: (place.limit, place.span.end_us) for place in places}
    return Plan(places, tuple(place.key for place in places), limits, span)
