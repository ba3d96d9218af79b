"""The ledger against a plain model that remembers holds and adds them up; and its events against its balances."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from policyd.errors import NotFound, ReservationConflict
from policyd.ledger.rules import (
    GAUGES,
    AccountKey,
    Charge,
    Crossing,
    Denied,
    Exhausted,
    Fits,
    Ledger,
    Limit,
    Posted,
    Posting,
    Relimited,
    Reservation,
)
from policyd.ledger.windows import window_of

ZONE = ZoneInfo("Europe/Berlin")
HOUR_US = 3_600_000_000
START_US = 1_774_735_200_000_000  # the evening before clocks go forward
LIMITS = (
    Limit("*", "micro_usd", "day", 120),
    Limit("acme", "micro_usd", "hour", 60),
    Limit("acme", "tokens", "total", 300),
    Limit("acme", "gpus", "now", 3, pools="spot"),
    Limit("acme/chat", "micro_usd", "total", 90),
)
AMOUNTS = st.integers(0, 70)


class Model:
    """Holds, and nothing else: every balance is added up from all of them, each time."""

    def __init__(self) -> None:
        self.holds: dict[str, dict[str, Any]] = {}
        self.limits: dict[AccountKey, int] = {}

    def reserved(self, key: AccountKey) -> int:
        return sum(h["charges"].get(key, 0) for h in self.holds.values() if h["state"] == "held")

    def spent(self, key: AccountKey) -> int:
        if key.unit in GAUGES:
            return 0
        total = 0
        for hold in self.holds.values():
            if key in hold["charges"] and hold["state"] in ("settled", "expired"):
                presumed = hold["charges"][key]
                total += hold["actual"].get(key.unit, presumed) if hold["state"] == "settled" else presumed
        return total

    def room(self, key: AccountKey, amount: int) -> bool:
        used = self.reserved(key) + self.spent(key)
        return used <= self.limits[key] and used + amount <= self.limits[key]


class LedgerMachine(RuleBasedStateMachine):
    """Random operations in random order, at a time that runs on."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.ledger, self.model = Ledger(), Model()
        self.now_us = START_US
        self.events: list[Posting | Crossing] = []
        self.nth = 0

    def note(self, done: Posted | Relimited | None) -> None:
        if isinstance(done, Posted):
            self.events += [*done.postings, *done.crossings]
        elif isinstance(done, Relimited):
            self.events += [done.posting, *done.crossings]

    @rule(
        target=ids,
        which=st.sets(st.integers(0, 4), min_size=1),
        amounts=st.tuples(*[AMOUNTS] * 5),
        hours=st.integers(1, 5),
    )
    def reserve(self, which: set[int], amounts: tuple[int, ...], hours: int) -> Any:
        self.nth += 1
        charges = tuple(Charge(LIMITS[nth], amounts[nth] % 4 if nth == 3 else amounts[nth]) for nth in sorted(which))
        spans = [window_of(charge.limit.window, ZONE, self.now_us) for charge in charges]
        name = f"hold-{self.nth}"
        keys = {}
        for charge, span in zip(charges, spans, strict=True):
            limit = charge.limit
            key = AccountKey(limit.path, limit.pools, limit.unit, limit.window, span.start_us)
            self.model.limits.setdefault(key, limit.amount)
            keys[key] = charge.amount or 0
        fits = all(self.model.room(key, amount) for key, amount in keys.items())
        asked = self.ledger.reserve(Reservation(name, charges, hours * HOUR_US, holds=False), spans, self.now_us)
        assert isinstance(asked, Fits) == fits
        done = self.ledger.reserve(Reservation(name, charges, hours * HOUR_US), spans, self.now_us)
        assert fits or asked == done  # who does not hold hears the same reason
        if not fits:
            full = {key for key, amount in keys.items() if not self.model.room(key, amount)}
            if isinstance(done, Exhausted):
                assert [each.key for each in done.groups] == [key for key in keys if key in full and key.pools != "*"]
            else:
                assert isinstance(done, Denied)
                assert done.key == next(key for key in keys if key in full)
                assert {key.pools for key in full} == {"*"}
            return multiple()
        assert isinstance(done, Posted)
        self.note(done)
        ends = self.now_us + hours * HOUR_US
        self.model.holds[name] = {"state": "held", "charges": keys, "actual": {}, "expires": ends}
        return name

    @rule(name=ids, micro_usd=AMOUNTS, tokens=st.none() | AMOUNTS)
    def settle(self, name: str, micro_usd: int, tokens: int | None) -> None:
        actual: dict[Any, int] = {"micro_usd": micro_usd} | ({} if tokens is None else {"tokens": tokens})
        hold = self.model.holds[name]
        if hold["state"] == "voided" or (hold["state"] == "settled" and hold["actual"] != actual):
            self.refused(ReservationConflict, lambda: self.ledger.settle(name, actual))
            return
        done = self.ledger.settle(name, actual)
        assert done.replay == (hold["state"] == "settled")
        self.note(done)
        hold["state"], hold["actual"] = "settled", actual

    @rule(name=ids)
    def void(self, name: str) -> None:
        hold = self.model.holds[name]
        if hold["state"] in ("settled", "expired"):
            self.refused(ReservationConflict, lambda: self.ledger.void(name))
            return
        self.note(self.ledger.void(name))
        hold["state"] = "voided"

    @rule(name=ids, hours=st.integers(0, 5))
    def extend(self, name: str, hours: int) -> None:
        hold = self.model.holds[name]
        ends = self.now_us + hours * HOUR_US
        if hold["state"] != "held":
            self.refused(ReservationConflict, lambda: self.ledger.extend(name, ends))
            return
        self.note(self.ledger.extend(name, ends))
        hold["expires"] = max(hold["expires"], ends)

    @rule(hours=st.integers(0, 30))
    def time_passes(self, hours: int) -> None:
        self.now_us += hours * HOUR_US
        for name, hold in self.model.holds.items():
            due = hold["state"] == "held" and hold["expires"] <= self.now_us
            done = self.ledger.expire(name, self.now_us)
            assert (done is not None) == due
            self.note(done)
            if due:
                hold["state"] = "expired"

    @rule(nth=st.integers(0, 20), limit=st.integers(0, 200))
    def relimit(self, nth: int, limit: int) -> None:
        keys = sorted(self.ledger.accounts)
        if keys:
            key = keys[nth % len(keys)]
            self.note(self.ledger.relimit(key, limit, (50, 80, 95)))
            self.model.limits[key] = limit

    @rule()
    def a_stranger(self) -> None:
        self.refused(NotFound, lambda: self.ledger.settle("nobody", {}))

    def refused(self, error: type[Exception], action: Any) -> None:
        before = len(self.events), repr(self.ledger)
        try:
            action()
        except error:
            assert (len(self.events), repr(self.ledger)) == before
        else:
            raise AssertionError(f"{error.__name__} was to be raised")

    @invariant()
    def balances_are_those_of_the_model(self) -> None:
        for key, account in self.ledger.accounts.items():
            used = account.reserved + account.spent
            assert (account.reserved, account.spent) == (self.model.reserved(key), self.model.spent(key))
            assert account.limit == self.model.limits[key]
            assert account.debt == max(0, used - account.limit)
            assert min(account.reserved, account.spent, account.debt, account.leased) >= 0

    @invariant()
    def events_lead_to_the_balances(self) -> None:
        last: dict[AccountKey, Posting] = {}
        told: dict[AccountKey, int] = {}
        for event in self.events:
            if isinstance(event, Posting):
                assert event.sequence == (last[event.key].sequence if event.key in last else 0) + 1
                if event.key in last and event.limit > last[event.key].limit:
                    told[event.key] = 0  # a higher limit may be crossed anew
                last[event.key] = event
            else:
                assert event.sequence == last[event.key].sequence
                assert event.spent * 100 >= event.limit * event.percent
                assert event.percent > told.get(event.key, 0)
                told[event.key] = event.percent
        for key, account in self.ledger.accounts.items():
            posting = last.get(key)
            kept = (account.sequence, account.limit, account.reserved, account.spent, account.leased, account.debt)
            assert posting is None or posting[1:] == kept
            assert posting is not None or account.sequence == 0


LedgerMachine.TestCase.settings = settings(settings.default, stateful_step_count=40)
TestLedger = LedgerMachine.TestCase
