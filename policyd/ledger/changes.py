"""Limits that people set while policyd runs, beside those that the fleet declares. Pure.

| the fleet declares | somebody set | what counts                                                       |
|--------------------|--------------|-------------------------------------------------------------------|
| a limit            | nothing      | the fleet's                                                       |
| a limit            | an amount    | the lower of the two, the fleet's zone, the thresholds of both    |
| nothing            | an amount    | what was set                                                      |
| nothing            | nothing      | no limit                                                          |

Rules: the fleet's limit is a ceiling, and whoever wants more changes the fleet; a limit that the fleet does not declare
counts from nowhere, so its first amount lowers. A raise is whatever leaves more room than before, and giving a limit
back to the fleet may be one. Another time zone begins another window, with nothing spent in it, so a limit keeps its
zone as long as it is set.
It refuses: a raise by who may not raise, and another zone for a limit that is set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from policyd.errors import BudgetRaised, ReservationConflict
from policyd.ledger.rules import AMOUNT_MAX, Limit, Unit, check_amount
from policyd.ledger.windows import Window

NO_CEILING: Final = AMOUNT_MAX
"""The amount of a limit that the fleet does not declare."""


class LimitKey(NamedTuple):
    """What an account can have one limit for."""

    path: str
    pools: str
    unit: Unit
    window: Window


@dataclass(frozen=True, slots=True)
class SetLimit:
    """A limit that somebody has set. Thresholds None are those that there would be without it."""

    key: LimitKey
    amount: int
    zone: str
    thresholds: tuple[int, ...] | None = None

    @property
    def ceiling(self) -> Limit:
        """What it is held under where the fleet declares nothing."""
        path, pools, unit, window = self.key
        return Limit(path, unit, window, NO_CEILING, self.zone, pools)


@dataclass(frozen=True, slots=True)
class Setting:
    """One limit of a change. ``ceiling`` is the fleet's, or one without a ceiling; ``amount`` None gives it back."""

    ceiling: Limit
    amount: int | None
    zone: str
    thresholds: tuple[int, ...] | None
    may_raise: bool


def key_of(limit: Limit) -> LimitKey:
    """What it limits."""
    return LimitKey(limit.path, limit.pools, limit.unit, limit.window)


def effective(ceiling: Limit, found: SetLimit | None) -> Limit:
    """The limit that counts."""
    if found is None:
        return ceiling
    if ceiling.amount == NO_CEILING:
        told = ceiling.thresholds if found.thresholds is None else found.thresholds
        return replace(ceiling, amount=found.amount, zone=found.zone, thresholds=told)
    told = tuple(sorted({*ceiling.thresholds, *(found.thresholds or ())}))
    return replace(ceiling, amount=min(ceiling.amount, found.amount), thresholds=told)


def wanted(setting: Setting) -> Limit:
    """The limit that would count after a change."""
    return effective(setting.ceiling, _after(setting))


def _after(setting: Setting) -> SetLimit | None:
    if setting.amount is None:
        return None
    return SetLimit(key_of(setting.ceiling), setting.amount, setting.zone, setting.thresholds)


def changed(setting: Setting, before: SetLimit | None) -> SetLimit | None:
    """What is set afterwards. Raises ``BudgetRaised``, ``AmountInvalid`` and ``ReservationConflict``."""
    if setting.amount is not None:
        check_amount(setting.amount, "limit")
    after = _after(setting)
    was, will = effective(setting.ceiling, before), effective(setting.ceiling, after)
    if before is not None and after is not None and was.zone != will.zone:
        raise ReservationConflict(
            f"the windows of {was.path} ({was.unit}, {was.window}) begin in {was.zone}, and not in {will.zone}",
            remedy="give the limit back first, or name the zone that it has",
        )
    if will.amount > was.amount and not setting.may_raise:
        raise BudgetRaised(
            f"{was.path} ({was.unit}, {was.window}) would be raised from {was.amount} to "
            f"{'no limit' if will.amount == NO_CEILING else will.amount}"
        )
    return after
