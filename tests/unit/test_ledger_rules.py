"""Reserve, settle, void, extend, expire: every cell of the table of states, and amounts at their edges."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from policyd.errors import AmountInvalid, NotFound, ReservationConflict
from policyd.ledger.rules import (
    AMOUNT_MAX,
    AccountKey,
    Charge,
    Denied,
    Ledger,
    Limit,
    Posted,
    Relimited,
    Reservation,
    Unit,
)
from policyd.ledger.windows import Span

ALWAYS = Span(0, None)
HOLD_US = 60_000_000


def limit(amount: int, path: str = "acme", unit: Unit = "micro_usd") -> Limit:
    return Limit(path, unit, "now" if unit in ("gpus", "in_flight") else "total", amount)


def asked(id: str, *charges: tuple[Limit, int | None]) -> Reservation:
    return Reservation(id, tuple(Charge(*charge) for charge in charges), HOLD_US)


def reserve(ledger: Ledger, reservation: Reservation, time_us: int = 0) -> Posted | Denied:
    return ledger.reserve(reservation, [ALWAYS] * len(reservation.charges), time_us)


def key(path: str = "acme", unit: Unit = "micro_usd") -> AccountKey:
    return AccountKey(path, "*", unit, limit(0, path, unit).window, 0)


def balance(ledger: Ledger, path: str = "acme", unit: Unit = "micro_usd") -> tuple[int, int, int]:
    account = ledger.accounts[key(path, unit)]
    return account.reserved, account.spent, account.debt


def held(amount: int = 40, top: int = 100) -> Ledger:
    ledger = Ledger()
    assert isinstance(reserve(ledger, asked("one", (limit(top), amount))), Posted)
    return ledger


def test_a_hold_stands_on_every_account() -> None:
    ledger = Ledger()
    posted = reserve(ledger, asked("one", (limit(100, "*"), 40), (limit(50), 40), (limit(7, unit="requests"), 1)))
    assert isinstance(posted, Posted)
    assert [(p.key.path, p.key.unit, p.sequence, p.reserved) for p in posted.postings] == [
        ("*", "micro_usd", 1, 40),
        ("acme", "micro_usd", 1, 40),
        ("acme", "requests", 1, 1),
    ]
    assert posted.hold.expires_us == HOLD_US


def test_without_room_at_one_level_nothing_is_held_anywhere() -> None:
    ledger = Ledger()
    reserve(ledger, asked("one", (limit(100, "*"), 40), (limit(50), 40)))
    denied = ledger.reserve(asked("two", (limit(100, "*"), 11), (limit(50), 11)), [ALWAYS, Span(0, 9)], 1)
    assert denied == Denied(key(), "room", 11, 50, 10, None)
    assert balance(ledger, "*") == balance(ledger) == (40, 0, 0)
    assert "two" not in ledger.holds


def test_the_last_unit_may_be_held_and_no_more() -> None:
    ledger = held(40, 41)
    assert isinstance(reserve(ledger, asked("two", (limit(41), 1))), Posted)
    assert isinstance(reserve(ledger, asked("three", (limit(41), 1))), Denied)


def test_what_nobody_can_price_is_denied() -> None:
    denied = reserve(Ledger(), asked("one", (limit(100), None)))
    assert isinstance(denied, Denied)
    assert (denied.why, denied.remaining) == ("unknown", 100)


def test_with_debt_nothing_more_is_held_not_even_nothing() -> None:
    ledger = held(100)
    ledger.settle("one", {"micro_usd": 130})
    assert balance(ledger) == (0, 130, 30)
    denied = reserve(ledger, asked("two", (limit(100), 0)))
    assert isinstance(denied, Denied)
    assert denied.why == "debt"


def test_a_settlement_releases_the_rest() -> None:
    ledger = held(40)
    ledger.settle("one", {"micro_usd": 25})
    assert balance(ledger) == (0, 25, 0)


def test_what_a_settlement_does_not_say_counts_as_held() -> None:
    ledger = Ledger()
    reserve(ledger, asked("one", (limit(100), 40), (limit(1000, unit="tokens"), 600), (limit(5, unit="gpus"), 2)))
    ledger.settle("one", {"micro_usd": 1})
    assert balance(ledger) == (0, 1, 0)
    assert balance(ledger, unit="tokens") == (0, 600, 0)
    assert balance(ledger, unit="gpus") == (0, 0, 0)  # nothing is spent of a gauge


def test_what_expires_is_presumed_spent_and_a_late_settlement_corrects_it() -> None:
    ledger = held(40)
    assert ledger.expire("one", HOLD_US - 1) is None
    assert ledger.expire("one", HOLD_US) is not None
    assert balance(ledger) == (0, 40, 0)
    assert ledger.expire("one", HOLD_US) is None
    ledger.settle("one", {"micro_usd": 3})
    assert balance(ledger) == (0, 3, 0)


def test_an_expired_gauge_is_free_again() -> None:
    ledger = Ledger()
    reserve(ledger, asked("one", (limit(2, unit="gpus"), 2)))
    ledger.expire("one", HOLD_US)
    assert balance(ledger, unit="gpus") == (0, 0, 0)
    ledger.settle("one", {})
    assert balance(ledger, unit="gpus") == (0, 0, 0)


def test_an_extension_holds_longer_and_never_shorter() -> None:
    ledger = held()
    assert not ledger.extend("one", HOLD_US + 5).replay
    assert ledger.extend("one", 1).replay
    assert ledger.expire("one", HOLD_US) is None
    assert ledger.expire("one", HOLD_US + 5) is not None


Do = Callable[[Ledger], object]
SETTLE: Do = lambda ledger: ledger.settle("one", {"micro_usd": 5})  # noqa: E731 - a table of actions
SETTLE_OTHER: Do = lambda ledger: ledger.settle("one", {"micro_usd": 6})  # noqa: E731
VOID: Do = lambda ledger: ledger.void("one")  # noqa: E731
EXPIRE: Do = lambda ledger: ledger.expire("one", HOLD_US)  # noqa: E731
EXTEND: Do = lambda ledger: ledger.extend("one", HOLD_US * 2)  # noqa: E731


@pytest.mark.parametrize(
    ("before", "then"),
    [
        (SETTLE, SETTLE_OTHER),
        (SETTLE, VOID),
        (SETTLE, EXTEND),
        (VOID, SETTLE),
        (VOID, EXTEND),
        (EXPIRE, VOID),
        (EXPIRE, EXTEND),
    ],
)
def test_what_contradicts_is_a_conflict_and_changes_nothing(before: Do, then: Do) -> None:
    ledger = held()
    before(ledger)
    balances, hold = balance(ledger), repr(ledger.holds["one"])
    with pytest.raises(ReservationConflict):
        then(ledger)
    assert (balance(ledger), repr(ledger.holds["one"])) == (balances, hold)


@pytest.mark.parametrize("action", [SETTLE, VOID])
def test_the_same_again_is_a_replay(action: Do) -> None:
    ledger = held()
    action(ledger)
    after = balance(ledger), ledger.accounts[key()].sequence
    again = action(ledger)
    assert isinstance(again, Posted)
    assert again.replay
    assert (balance(ledger), ledger.accounts[key()].sequence) == after


@pytest.mark.parametrize("action", [SETTLE, VOID, EXPIRE, EXTEND])
def test_without_a_reservation_there_is_nothing_to_change(action: Do) -> None:
    with pytest.raises(NotFound):
        action(Ledger())


def test_a_reservation_again_is_a_replay_and_another_one_a_conflict() -> None:
    ledger = held(40)
    again = reserve(ledger, asked("one", (limit(100), 40)), 9)
    assert isinstance(again, Posted)
    assert again.replay
    assert balance(ledger) == (40, 0, 0)
    with pytest.raises(ReservationConflict):
        reserve(ledger, asked("one", (limit(100), 41)))


@pytest.mark.parametrize("amount", [-1, AMOUNT_MAX + 1, 2**63, 1.5, True, "1"])
def test_what_is_no_amount_is_refused(amount: int) -> None:
    with pytest.raises(AmountInvalid):
        reserve(Ledger(), asked("one", (limit(AMOUNT_MAX), amount)))
    ledger = held()
    with pytest.raises(AmountInvalid):
        ledger.settle("one", {"micro_usd": amount})
    assert ledger.holds["one"].state == "held"
    assert balance(ledger) == (40, 0, 0)


def test_an_account_counts_up_to_its_end_and_refuses_what_is_beyond_it() -> None:
    ledger = Ledger()
    for name in ("one", "two"):
        reserve(ledger, asked(name, (limit(AMOUNT_MAX), 1)))
    ledger.settle("one", {"micro_usd": AMOUNT_MAX - 1})
    with pytest.raises(AmountInvalid, match="cannot count beyond"):
        ledger.settle("two", {"micro_usd": 2})
    assert balance(ledger) == (1, AMOUNT_MAX - 1, 0)
    ledger.settle("two", {"micro_usd": 1})
    assert balance(ledger) == (0, AMOUNT_MAX, 0)


def test_an_account_is_charged_once_by_a_reservation() -> None:
    with pytest.raises(AmountInvalid):
        reserve(Ledger(), asked("one", (limit(10), 6), (limit(10), 6)))


def test_each_threshold_is_told_once() -> None:
    ledger = Ledger()
    told = []
    for nth, spent in enumerate([49, 1, 29, 1, 20]):
        reserve(ledger, asked(str(nth), (limit(100), spent)))
        told.append([crossing.percent for crossing in ledger.settle(str(nth), {"micro_usd": spent}).crossings])
    assert told == [[], [50], [], [80], [95]]


def test_a_correction_does_not_tell_a_threshold_again() -> None:
    ledger = held(60)
    expired = ledger.expire("one", HOLD_US)
    assert expired is not None
    assert [crossing.percent for crossing in expired.crossings] == [50]
    assert ledger.settle("one", {"micro_usd": 10}).crossings == ()
    reserve(ledger, asked("two", (limit(100), 50)))
    assert ledger.settle("two", {"micro_usd": 50}).crossings == ()


def test_a_lowered_limit_raises_debt_and_a_raised_one_takes_it_away() -> None:
    ledger = held(60)
    ledger.settle("one", {"micro_usd": 60})
    lowered = ledger.relimit(key(), 40, (50, 80, 95))
    assert isinstance(lowered, Relimited)
    assert lowered.posting.debt == 20
    assert [crossing.percent for crossing in lowered.crossings] == [80, 95]
    raised = ledger.relimit(key(), 100, (50, 80, 95))
    assert isinstance(raised, Relimited)
    assert (raised.posting.debt, raised.crossings) == (0, ())
    assert ledger.accounts[key()].crossed == 50
    assert ledger.relimit(key(), 100, (50, 80, 95)) is None
