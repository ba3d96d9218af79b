"""Accounts and holds in a database: what one batch changes, netted for each account and written with few statements.

    apply   ledger time ► holds read ► accounts opened, read and locked ► what is due expires ► each operation in turn
    write   new holds ► changed holds ► changed accounts ► ledger time

Rules: it owns no transaction; an operation that is refused or denied refuses no other one; after a rollback whoever
owns the transaction calls ``forget``. A ledger that only this process writes (``shared=False``) remembers balances,
and when the next hold expires, from batch to batch; a shared one reads and locks them each time. New accounts come
before locks, and locks in the order of numbers, so that nobody waits in a circle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, Connection, Row, cast, func, select

from policyd.errors import Overloaded, PolicydError
from policyd.ledger import rows
from policyd.ledger.changes import LimitKey, SetLimit, Setting, changed, effective, key_of, wanted
from policyd.ledger.plans import Plan, Plans, placed
from policyd.ledger.rules import (
    AccountKey,
    Changed,
    Crossing,
    Denied,
    Exhausted,
    Fits,
    Hold,
    Ledger,
    Limit,
    Posted,
    Posting,
    Relimited,
    Reservation,
    Unit,
)
from policyd.ledger.tables import TIME
from policyd.ledger.windows import LedgerTime

DUE_MAX: Final = 256
"""Holds that one batch lets expire; the next one takes the next."""
REMEMBERED_ACCOUNTS_MAX: Final = 50_000
REMEMBERED_HOLDS_MAX: Final = 20_000

Clock = Callable[[], tuple[int, int]]
"""The wall clock and a clock that never jumps, both in microseconds."""

_DATABASE_US: Final = cast(func.extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a reservation did use, for each unit that somebody measured."""

    id: str
    actual: tuple[tuple[Unit, int], ...]


@dataclass(frozen=True, slots=True)
class Void:
    """A reservation that was not used."""

    id: str


@dataclass(frozen=True, slots=True)
class Extension:
    """A reservation that is needed for so long from now."""

    id: str
    hold_us: int


@dataclass(frozen=True, slots=True)
class Change:
    """Limits that somebody sets, all of them or none, under the id of the entry that says so."""

    id: str
    settings: tuple[Setting, ...]


Operation = Reservation | Settlement | Void | Extension | Change
Result = Posted | Fits | Denied | Exhausted | Changed | PolicydError


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a batch: a result for each operation, and what happened by the way."""

    time_us: int
    results: tuple[Result, ...]
    expired: tuple[Posted, ...]
    relimited: tuple[Relimited, ...]


def machine_clock() -> tuple[int, int]:
    """The clocks of this machine; the second one counts its sleep, where the system can tell."""
    steady = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.time_ns() // 1_000, time.clock_gettime_ns(steady) // 1_000


class Jump(NamedTuple):
    """Ledger time at a start: from the last one that was kept to the clock's word, which nobody could check."""

    from_us: int
    to_us: int


class LedgerRows:
    """The ledger behind one connection. ``log`` is the number of the log that shares its transactions.

    The wall clock is that of the database where several writers share it, unless a ``clock`` is given.
    """

    def __init__(
        self, connection: Connection, *, shared: bool = False, log: int = 0, clock: Clock | None = None
    ) -> None:
        self._shared = shared
        self._log = log
        self._clock = clock or machine_clock
        self._database_time = shared and clock is None
        self.forget()
        last_us = connection.execute(select(func.max(TIME.c.last_us))).scalar() or 0
        wall_us, monotonic_us = self._clock()
        if self._database_time:
            wall_us = connection.execute(select(_DATABASE_US)).scalar_one()
        self._time = LedgerTime(max(last_us, wall_us), monotonic_us)
        self.began = Jump(last_us or self._time.last_us, self._time.last_us)

    def forget(self) -> None:
        """After a rollback, what was remembered of it did not happen."""
        self._ledger = Ledger()
        self._numbers: dict[AccountKey, int] = {}
        self._keys: dict[int, AccountKey] = {}
        self._new_holds: dict[str, Hold] = {}
        self._changed_holds: dict[str, Hold] = {}
        self._changed: set[AccountKey] = set()
        self._due_us: int | None = None
        self._set: dict[LimitKey, SetLimit] | None = None
        self._plans = Plans({})
        self._change = 0
        self._new_limits: dict[LimitKey, tuple[SetLimit | None, int]] = {}

    @property
    def time_us(self) -> int:
        """The ledger time of the last batch."""
        return self._time.last_us

    def keep_time(self, connection: Connection) -> None:
        """Store the ledger time, whether or not an account has changed."""
        rows.write_time(connection, self._log, self.time_us)

    def due(self, connection: Connection) -> bool:
        """Whether a hold waits to expire."""
        return bool(self._due(connection, self.now(connection), 1))

    def apply(
        self, connection: Connection, operations: Sequence[Operation], new: Collection[str] = frozenset()
    ) -> Applied:
        """Expire what is due, then each operation in turn. Nothing is stored until ``write``.

        The caller knows that the ids in ``new`` have held nothing: they are not looked for.
        """
        time_us = self.now(connection)
        if self._set is None:
            self._hear(connection)
        if self._shared and any(isinstance(operation, Change) for operation in operations):
            rows.lock_limits(connection)
        limits = self._limits(operations, time_us)
        of_holds = [operation.id for operation in operations if not isinstance(operation, Change)]
        named = {name for name in of_holds if name not in new and name not in self._ledger.holds}
        found = list(rows.holds(connection, named)) if named else []
        # After the named ones, and without waiting: whoever has locked a hold that is due lets it expire itself.
        due = self._due(connection, time_us, DUE_MAX)
        found += due
        remembered = [self._ledger.holds.get(name) for name in of_holds]
        self._load(connection, limits, found, remembered)
        # Only now, when the accounts are locked: whoever changed their limits before has let go of them.
        if self._shared and limits and rows.last_change(connection) != self._change:
            self._hear(connection)
            limits = self._limits(operations, time_us)
            self._load(connection, limits, (), ())
        expired = [self._ledger.expire(rows.hold_id(row), time_us) for row in due]
        relimited = [self._ledger.relimit(key, limit.amount, limit.thresholds) for key, (limit, _) in limits.items()]
        results = [self._result(operation, time_us) for operation in operations]
        done = Applied(
            time_us,
            tuple(results),
            tuple(each for each in expired if each is not None),
            tuple(each for each in relimited if each is not None),
        )
        self._note(operations, done)
        return done

    def _hear(self, connection: Connection) -> None:
        """Read what is set."""
        self._change, self._set = rows.set_limits(connection)
        self._plans = Plans(self._set)

    def write(self, connection: Connection) -> None:
        """Store what has changed since the last time."""
        if self._new_limits:
            rows.write_limits(connection, self._new_limits)
            self._new_limits = {}
        if self._new_holds:
            new = [(*rows.hold_row(hold), rows.charges_text(hold, self._numbers)) for hold in self._new_holds.values()]
            rows.run(connection, "hold_new", new)
        if self._changed_holds:
            rows.run(connection, "hold_changed", [rows.hold_row(hold) for hold in self._changed_holds.values()])
        if self._changed:
            changed = [rows.account_row(self._numbers[key], self._ledger.accounts[key]) for key in self._changed]
            rows.run(connection, "account_changed", changed)
            rows.write_time(connection, self._log, self.time_us)
        self._new_holds, self._changed_holds, self._changed = {}, {}, set()
        self._trim()

    def _trim(self) -> None:
        ledger = self._ledger
        if len(ledger.accounts) > REMEMBERED_ACCOUNTS_MAX or len(ledger.holds) > REMEMBERED_HOLDS_MAX:
            self.forget()
        elif self._shared:
            ledger.accounts.clear()
            ledger.holds.clear()

    def now(self, connection: Connection) -> int:
        """The ledger time, which moves on by being asked."""
        wall_us, monotonic_us = self._clock()
        if self._shared:
            last_us, database_us = connection.execute(select(func.max(TIME.c.last_us), _DATABASE_US)).one()
            self._time.last_us = max(self._time.last_us, last_us or 0)
            wall_us = database_us if self._database_time else wall_us
        return self._time.advance(wall_us, monotonic_us)

    def _due(self, connection: Connection, time_us: int, limit: int) -> Sequence[Row[Any]]:
        """Holds whose time has come. Who writes alone knows the next one, and asks only then."""
        if self._shared:
            return rows.due_holds(connection, time_us, limit)
        if self._due_us is None:
            self._due_us = rows.next_due_us(connection)
        if self._due_us > time_us:
            return ()
        due = rows.due_holds(connection, time_us, limit)
        self._due_us = None  # those that are left, or were held for longer meanwhile, are looked at again
        return due

    def _limits(self, operations: Iterable[Operation], time_us: int) -> dict[AccountKey, tuple[Limit, int | None]]:
        """The limits that are charged or changed, by account, with the end of its window; the last word counts."""
        limits: dict[AccountKey, tuple[Limit, int | None]] = {}
        seen: dict[int, Plan] = {}  # held, so that no other object takes its place
        for operation in operations:
            if isinstance(operation, Reservation):
                plan = self._plans.plan(operation.charges, time_us)
                if id(plan) not in seen:
                    seen[id(plan)] = plan
                    limits.update(plan.limits)
            elif isinstance(operation, Change):
                for setting in operation.settings:
                    now, then = self._plans.place(setting.ceiling, time_us), placed(wanted(setting), time_us)
                    limits[now.key] = (now.limit, now.span.end_us)
                    limits.setdefault(then.key, (then.limit, then.span.end_us))
        return limits

    def _load(
        self,
        connection: Connection,
        limits: dict[AccountKey, tuple[Limit, int | None]],
        found: Sequence[Row[Any]],
        remembered: Iterable[Hold | None],
    ) -> None:
        """Have every account at hand that the batch touches, and every hold."""
        unnumbered = {key: limit for key, limit in limits.items() if key not in self._numbers}
        if unnumbered:
            self._number(rows.open_accounts(connection, unnumbered))
        accounts = self._ledger.accounts
        charged = (key for hold in remembered if hold is not None for key, _ in hold.charges)
        numbers = {self._numbers[key] for key in (*limits, *charged) if key not in accounts}
        held = (number for row in found for number, _ in rows.charges_of(row))
        numbers.update(number for number in held if self._keys.get(number) not in accounts)
        if numbers:
            for number, account in rows.accounts(connection, numbers):
                accounts[account.key] = account
                self._number({account.key: number})
        for row in found:
            hold = rows.hold_of(row, self._keys)
            self._ledger.holds.setdefault(hold.id, hold)

    def _number(self, numbers: dict[AccountKey, int]) -> None:
        self._numbers.update(numbers)
        self._keys.update((number, key) for key, number in numbers.items())

    def _result(self, operation: Operation, time_us: int) -> Result:
        ledger = self._ledger
        try:
            if isinstance(operation, Reservation):
                plan = self._plans.plan(operation.charges, time_us)
                if operation.id in ledger.holds:
                    return ledger.reserve(operation, [place.span for place in plan.places], time_us)
                return ledger.hold(operation, [ledger.accounts[key] for key in plan.keys], time_us)
            if isinstance(operation, Change):
                return self._changed_limits(operation, time_us)
            if isinstance(operation, Settlement):
                return ledger.settle(operation.id, dict(operation.actual))
            if isinstance(operation, Void):
                return ledger.void(operation.id)
            return ledger.extend(operation.id, time_us + operation.hold_us)
        except PolicydError as error:
            return error

    def _changed_limits(self, change: Change, time_us: int) -> Changed:
        """Set the limits, all or none, and give them to the accounts of the present windows."""
        assert self._set is not None
        done = []
        for setting in change.settings:
            found = changed(setting, self._set.get(key_of(setting.ceiling)))
            place = placed(effective(setting.ceiling, found), time_us)
            if place.key not in self._ledger.accounts:
                raise Overloaded("somebody else changes this budget at this moment", remedy="try again")
            done.append((found, place))
        self._change += 1
        self._plans = Plans(self._set)
        postings: list[Posting] = []
        crossings: list[Crossing] = []
        for found, place in done:
            key = key_of(place.limit)
            if found is None:
                self._set.pop(key, None)
            else:
                self._set[key] = found
            self._new_limits[key] = (found, self._change)
            relimited = self._ledger.relimit(place.key, place.limit.amount, place.limit.thresholds)
            self._changed.add(place.key)
            if relimited is not None:
                postings.append(relimited.posting)
                crossings += relimited.crossings
        return Changed(tuple(postings), tuple(crossings))

    def _note(self, operations: Sequence[Operation], done: Applied) -> None:
        """What ``write`` will have to store."""
        for operation, posted in zip(operations, done.results, strict=True):
            if isinstance(posted, Posted) and not posted.replay:
                self._changed.update([posting[0] for posting in posted.postings])
                holds = self._new_holds if isinstance(operation, Reservation) else self._changed_holds
                holds[posted.hold.id] = posted.hold
                if self._due_us is not None and posted.hold.expires_us < self._due_us:
                    self._due_us = posted.hold.expires_us
        for posted in done.expired:
            self._changed.update(posting.key for posting in posted.postings)
            self._changed_holds[posted.hold.id] = posted.hold
        self._changed.update(each.posting.key for each in done.relimited)
