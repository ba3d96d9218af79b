"""The rules of the ledger: reserve, settle, void, extend, expire. Pure: ids, times and limits are arguments.

An **account** is one limit of one level in one window: path, pool group, unit, window and its start. A **hold** is what
one decision may cost, held on every account that it touches until it is known what it did cost.

| hold    | reserve | settle             | void     | extend   | expire                      |
|---------|---------|--------------------|----------|----------|-----------------------------|
| none    | held    | not found          | not found| not found| not found                   |
| held    | replay  | settled            | voided   | held     | expired, once its time came |
| settled | replay  | replay if the same | conflict | conflict | no                          |
| voided  | replay  | conflict           | replay   | conflict | no                          |
| expired | replay  | settled: corrects  | conflict | conflict | no                          |

Rules: a hold stands on all its accounts or on none, and is never shrunk to fit; who asks without holding is judged
alike; groups of pools without room are named before anything else, since without their pools the rest needs less; an
amount that is not known is no zero: it is refused. A settlement is posted in full to the window of its reservation, and
what passes the limit is debt. What has expired is presumed spent. Gauges (GPUs and requests in flight) only hold:
nothing is ever spent of them.
Always ``reserved, spent, leased, debt >= 0`` and ``reserved + spent + leased <= limit + debt``; debt is what passes the
limit and nothing else, so only settlements and lowered limits raise it. Each change of an account has the next number
of that account and its balance afterwards; a threshold is crossed once.
It refuses: amounts below zero or beyond 2**53 - 1, and the same id with something else in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from policyd.errors import AmountInvalid, NotFound, ReservationConflict
from policyd.ledger.windows import Span, Window

Unit = Literal["micro_usd", "tokens", "gpu_ms", "requests", "gpus", "in_flight"]
UNITS: Final[tuple[Unit, ...]] = ("micro_usd", "tokens", "gpu_ms", "requests", "gpus", "in_flight")
ALL_POOLS: Final = "*"
GAUGES: Final = frozenset({"gpus", "in_flight"})
AMOUNT_MAX: Final = 2**53 - 1
THRESHOLDS: Final = (50, 80, 95)
"""Percent of a limit whose crossing is told, unless the budget names others."""

State = Literal["held", "settled", "voided", "expired"]
STATES: Final[tuple[State, ...]] = ("held", "settled", "voided", "expired")
"""Stored as their position here: append new ones at the end, never reorder."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What an account may use in each of its windows. ``pools`` names a group of pools, or ``*`` for all."""

    path: str
    unit: Unit
    window: Window
    amount: int
    zone: str = "UTC"
    pools: str = ALL_POOLS
    thresholds: tuple[int, ...] = THRESHOLDS


class AccountKey(NamedTuple):
    """Which account. Accounts are always touched in the order of their keys."""

    path: str
    pools: str
    unit: Unit
    window: Window
    start_us: int


class Posting(NamedTuple):
    """One change of one account: its number there, and the balance after it."""

    key: AccountKey
    sequence: int
    limit: int
    reserved: int
    spent: int
    leased: int
    debt: int


_new: Final = tuple.__new__


class Crossing(NamedTuple):
    """A threshold that the spent amount has reached with the posting of that number."""

    key: AccountKey
    percent: int
    sequence: int
    spent: int
    limit: int


@dataclass(slots=True)
class Account:
    """One account with its balance. ``crossed`` is the highest threshold told so far, in percent."""

    key: AccountKey
    end_us: int | None
    limit: int
    thresholds: tuple[int, ...] = THRESHOLDS
    reserved: int = 0
    spent: int = 0
    leased: int = 0
    debt: int = 0
    sequence: int = 0
    crossed: int = 0

    @property
    def used(self) -> int:
        """What counts against the limit."""
        return self.reserved + self.spent + self.leased

    @property
    def remaining(self) -> int:
        """What is left to reserve."""
        return max(0, self.limit - self.used)

    def post(self, reserved: int, spent: int) -> Posting:
        """Change both parts by these differences; the debt follows."""
        self.reserved += reserved
        self.spent += spent
        over = self.reserved + self.spent + self.leased - self.limit
        self.debt = over if over > 0 else 0
        self.sequence += 1
        return Posting(self.key, self.sequence, self.limit, self.reserved, self.spent, self.leased, self.debt)

    def take(self, amount: int) -> Posting:
        """As ``post`` of what there is room for: an account with room has no debt."""
        self.reserved = reserved = self.reserved + amount
        self.sequence = sequence = self.sequence + 1
        # As Posting(…) does, without its call: this is most of what a reservation costs.
        return _new(Posting, (self.key, sequence, self.limit, reserved, self.spent, self.leased, 0))

    def crossings(self) -> list[Crossing]:
        """The thresholds that are reached and were not told yet; from now on they are told."""
        if not self.spent:
            return []
        reached = [p for p in self.thresholds if p > self.crossed and self.spent * 100 >= self.limit * p]
        if reached:
            self.crossed = max(reached)
        return [Crossing(self.key, p, self.sequence, self.spent, self.limit) for p in reached]


class Charge(NamedTuple):
    """What a reservation asks of one limit; None when nobody can say."""

    limit: Limit
    amount: int | None


class Reservation(NamedTuple):
    """What a decision may cost at most, at every level and window, and for how long that is held.

    One that does not hold is judged in the same way, and changes nothing.
    """

    id: str
    charges: tuple[Charge, ...]
    hold_us: int
    holds: bool = True


@dataclass(slots=True)
class Hold:
    """A reservation that was admitted; ``actual`` is what it was settled with."""

    id: str
    charges: tuple[tuple[AccountKey, int], ...]
    hold_us: int
    expires_us: int
    state: State = "held"
    actual: tuple[tuple[Unit, int], ...] = ()


class Posted(NamedTuple):
    """A change that went through. A replay changes nothing and has no postings."""

    hold: Hold
    postings: tuple[Posting, ...] = ()
    crossings: tuple[Crossing, ...] = ()
    replay: bool = False


class Fits(NamedTuple):
    """There is room for a reservation that does not hold."""

    id: str


@dataclass(frozen=True, slots=True)
class Relimited:
    """An account that has another limit now."""

    posting: Posting
    crossings: tuple[Crossing, ...]


class Changed(NamedTuple):
    """Limits that were changed: their accounts afterwards, which have their debt now."""

    postings: tuple[Posting, ...]
    crossings: tuple[Crossing, ...]


@dataclass(frozen=True, slots=True)
class Denied:
    """A reservation without room: at which account, what was left there and when it resets (None: never).

    ``why`` is ``room``, ``debt``, or ``unknown`` when nobody can say what it would cost.
    """

    key: AccountKey
    why: Literal["room", "debt", "unknown"]
    asked: int | None
    limit: int
    remaining: int
    resets_us: int | None


class Exhausted(NamedTuple):
    """Groups of pools without room for a reservation, which holds nothing: who asks may go on without them."""

    groups: tuple[Denied, ...]


@dataclass(slots=True)
class Ledger:
    """Accounts and holds that a caller has at hand: all of them, or those that one batch touches."""

    accounts: dict[AccountKey, Account] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)

    def relimit(self, key: AccountKey, limit: int, thresholds: tuple[int, ...]) -> Relimited | None:
        """Give an account another limit, and take what has passed the new one as debt; None when nothing changes."""
        account = self.accounts[key]
        account.thresholds = thresholds
        if account.limit == limit:
            return None
        account.limit = check_amount(limit, "limit")
        told = [p for p in thresholds if p <= account.crossed and account.spent * 100 >= limit * p]
        account.crossed = max(told, default=0)
        posting = account.post(0, 0)
        return Relimited(posting, tuple(account.crossings()))

    def reserve(self, asked: Reservation, spans: Sequence[Span], time_us: int) -> Posted | Fits | Denied | Exhausted:
        """Hold every charge, or none. ``spans`` are the windows of the charges; missing accounts are opened.

        Raises ``ReservationConflict`` when the id holds something else, and ``AmountInvalid``.
        """
        known = self.holds.get(asked.id)
        if known is not None:
            if not _same(known, asked):
                raise ReservationConflict(f"reservation {asked.id} was made with other amounts")
            return Posted(known, replay=True)
        return self.hold(
            asked, [self.open(limit, span) for (limit, _), span in zip(asked.charges, spans, strict=True)], time_us
        )

    def open(self, limit: Limit, span: Span) -> Account:
        """The account of a limit in that window, with nothing spent when it is a new one."""
        key = AccountKey(limit.path, limit.pools, limit.unit, limit.window, span.start_us)
        account = self.accounts.get(key)
        if account is None:
            account = Account(key, span.end_us, check_amount(limit.amount, "limit"), limit.thresholds)
            self.accounts[key] = account
        return account

    def hold(self, asked: Reservation, accounts: Sequence[Account], time_us: int) -> Posted | Fits | Denied | Exhausted:
        """As ``reserve``, for an id that holds nothing yet, on the accounts of its charges."""
        if not 0 < asked.hold_us <= AMOUNT_MAX:
            raise AmountInvalid(f"a hold of {asked.hold_us} microseconds is none")
        if len(set(map(id, accounts))) < len(accounts):
            raise AmountInvalid("a reservation charges an account once")
        held = []
        for account, (limit, amount) in zip(accounts, asked.charges, strict=True):
            if amount is None:
                return _without_room(asked, accounts)
            if type(amount) is not int or not 0 <= amount <= AMOUNT_MAX:
                check_amount(amount, limit.unit)
            if account.debt or account.reserved + account.spent + account.leased + amount > account.limit:
                return _without_room(asked, accounts)
            held.append((account.key, amount))
        if not asked.holds:
            return Fits(asked.id)
        hold = Hold(asked.id, tuple(held), asked.hold_us, time_us + asked.hold_us)
        self.holds[asked.id] = hold
        return Posted(hold, tuple([account.take(amount) for account, (_, amount) in zip(accounts, held, strict=True)]))

    def settle(self, id: str, actual: Mapping[Unit, int]) -> Posted:
        """Post what was really used; what is not said of a unit counts as held. The rest of the hold is released.

        Raises ``NotFound``, ``ReservationConflict`` and ``AmountInvalid``.
        """
        for unit, amount in actual.items():
            check_amount(amount, unit)
        said = tuple(sorted(actual.items()))
        hold = self._hold(id)
        if hold.state == "settled":
            if hold.actual != said:
                raise ReservationConflict(f"reservation {id} is settled already, with other amounts")
            return Posted(hold, replay=True)
        if hold.state == "voided":
            raise ReservationConflict(f"reservation {id} is void: nothing can be spent of it")
        changes = []
        for key, amount in hold.charges:
            expired = hold.state == "expired" and key.unit not in GAUGES
            spent = 0 if key.unit in GAUGES else actual.get(key.unit, amount) - (amount if expired else 0)
            changes.append((self.accounts[key], 0 if hold.state == "expired" else -amount, spent))
        posted = self._post(hold, "settled", changes)
        hold.actual = said
        return posted

    def void(self, id: str) -> Posted:
        """Release all of a hold that was not used. Raises ``NotFound`` and ``ReservationConflict``."""
        hold = self._hold(id)
        if hold.state == "voided":
            return Posted(hold, replay=True)
        if hold.state != "held":
            raise ReservationConflict(f"reservation {id} is {hold.state}: it cannot be made void")
        return self._post(hold, "voided", [(self.accounts[key], -amount, 0) for key, amount in hold.charges])

    def extend(self, id: str, expires_us: int) -> Posted:
        """Hold on until then; an earlier moment than the present one changes nothing.

        Raises ``NotFound``, ``ReservationConflict`` and ``AmountInvalid``.
        """
        hold = self._hold(id)
        if hold.state != "held":
            raise ReservationConflict(f"reservation {id} is {hold.state}: it holds nothing any more")
        replay = check_amount(expires_us, "expires_us") <= hold.expires_us
        hold.expires_us = max(hold.expires_us, expires_us)
        return Posted(hold, replay=replay)

    def expire(self, id: str, time_us: int) -> Posted | None:
        """Presume that a hold whose time has come is spent; None when it has not, or when nothing is held."""
        hold = self._hold(id)
        if hold.state != "held" or time_us < hold.expires_us:
            return None
        changes = [(self.accounts[key], -amount, 0 if key.unit in GAUGES else amount) for key, amount in hold.charges]
        return self._post(hold, "expired", changes)

    def _hold(self, id: str) -> Hold:
        hold = self.holds.get(id)
        if hold is None:
            raise NotFound(f"there is no reservation {id}")
        return hold

    def _post(self, hold: Hold, state: State, changes: Iterable[tuple[Account, int, int]]) -> Posted:
        """All the changes of a hold, or none of them: what no account can count is refused before the first."""
        changes = list(changes)
        for account, reserved, spent in changes:
            if account.used + reserved + spent > AMOUNT_MAX:
                raise AmountInvalid(f"account {account.key.path} cannot count beyond {AMOUNT_MAX} {account.key.unit}")
        hold.state = state
        postings = tuple(account.post(reserved, spent) for account, reserved, spent in changes)
        crossings = [crossing for account, _, _ in changes for crossing in account.crossings()]
        return Posted(hold, postings, tuple(crossings))


def _without_room(asked: Reservation, accounts: Sequence[Account]) -> Denied | Exhausted:
    """Every group of pools without room, or else the first account. Raises ``AmountInvalid``."""
    charged = zip(accounts, asked.charges, strict=True)
    full = [_denied(account, amount) for account, (_, amount) in charged if not _has_room(account, amount)]
    groups = tuple(each for each in full if each.key.pools != ALL_POOLS)
    return Exhausted(groups) if groups else full[0]


def _has_room(account: Account, amount: int | None) -> bool:
    if amount is None:
        return False
    return not account.debt and account.used + check_amount(amount, account.key.unit) <= account.limit


def _denied(account: Account, amount: int | None) -> Denied:
    why: Literal["room", "debt", "unknown"] = "debt" if account.debt else "room"
    told = "unknown" if amount is None else why
    return Denied(account.key, told, amount, account.limit, account.remaining, account.end_us)


def check_amount(amount: int, name: str) -> int:
    """The amount, if it is one. Raises ``AmountInvalid``."""
    if type(amount) is not int or not 0 <= amount <= AMOUNT_MAX:
        raise AmountInvalid(f"{name}: {amount!r} is not a whole number from 0 to {AMOUNT_MAX}")
    return amount


def _same(hold: Hold, asked: Reservation) -> bool:
    """Whether a hold came from this reservation: the window's start is the only thing that time decided."""
    held = [(*key[:4], amount) for key, amount in hold.charges]
    wanted = [(c.limit.path, c.limit.pools, c.limit.unit, c.limit.window, c.amount) for c in asked.charges]
    return hold.hold_us == asked.hold_us and held == wanted
