"""The ledger in a database: what the rules say is what is stored, after a restart as well, and under a crowd."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import IntegrityError

from audit import store as log_store
from audit.postgresql_store import PostgresqlStore
from policyd.errors import NotFound, ReservationConflict
from policyd.ledger.rows import account_of
from policyd.ledger.rules import AccountKey, Charge, Denied, Exhausted, Limit, Posted, Reservation
from policyd.ledger.store import Applied, Extension, LedgerRows, Operation, Settlement, Void
from policyd.ledger.tables import ACCOUNT, HOLD

HOUR_US = 3_600_000_000
START_US = 1_774_735_200_000_000
ROOT, TENANT = Limit("*", "micro_usd", "day", 1_000, "Europe/Berlin"), Limit("acme", "micro_usd", "total", 100)


class Clock:
    """A machine whose clocks only the test moves."""

    def __init__(self) -> None:
        self.wall_us, self.monotonic_us = START_US, 0

    def __call__(self) -> tuple[int, int]:
        return self.wall_us, self.monotonic_us

    def run(self, step_us: int) -> None:
        self.wall_us, self.monotonic_us = self.wall_us + step_us, self.monotonic_us + step_us


def name(nth: int) -> str:
    return str(UUID(int=0x0199_0000_0000_7000_8000_0000_0000_0000 + nth))


def asked(nth: int, amount: int | None, *limits: Limit, hold_us: int = HOUR_US) -> Reservation:
    return Reservation(name(nth), tuple(Charge(limit, amount) for limit in limits or (ROOT, TENANT)), hold_us)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        found = log_store.open_sqlite(tmp_path / "audit.sqlite", "process_safe", origin="policyd/test")
    else:
        address = request.getfixturevalue("database")
        log = PostgresqlStore(address, tmp_path / "origin").open_writer("process_safe", "policyd/test")
        log.connection.close()
        found = log.connection.engine
    yield found
    found.dispose()


class Book:
    """One writer of the ledger: a connection, a transaction for each batch."""

    def __init__(self, engine: Engine, *, clock: Clock | None = None, log: int = 0) -> None:
        self.connection = engine.connect()
        shared = engine.dialect.name == "postgresql"
        self.clock = clock or Clock()
        with self.connection.begin():
            self.rows = LedgerRows(self.connection, shared=shared, clock=self.clock, log=log)

    def __call__(self, *operations: Operation) -> Applied:
        with self.connection.begin():
            done = self.rows.apply(self.connection, operations)
            self.rows.write(self.connection)
        return done

    def balances(self) -> dict[AccountKey, tuple[int, int, int, int]]:
        with self.connection.begin():
            accounts = [account_of(row) for row in self.connection.execute(select(ACCOUNT))]
        return {each.key: (each.reserved, each.spent, each.debt, each.sequence) for each in accounts}

    def balance(self, path: str = "acme") -> tuple[int, int, int]:
        return next(found[:3] for key, found in self.balances().items() if key.path == path)


@pytest.fixture
def book(engine: Engine) -> Iterator[Book]:
    book = Book(engine)
    yield book
    book.connection.close()


def reopened(book: Book, engine: Engine) -> Book:
    book.connection.close()
    return Book(engine, clock=book.clock)


def test_one_batch_admits_in_order_until_there_is_no_room(book: Book) -> None:
    done = book(*(asked(nth, 30) for nth in range(5)))
    assert [type(result) for result in done.results] == [Posted, Posted, Posted, Denied, Denied]
    denied = done.results[3]
    assert isinstance(denied, Denied)
    assert (denied.key.path, denied.why, denied.remaining, denied.resets_us) == ("acme", "room", 10, None)
    assert book.balance() == book.balance("*") == (90, 0, 0)
    smaller = book(asked(9, 31), asked(10, 10)).results
    assert [type(result) for result in smaller] == [Denied, Posted]


def test_the_balance_is_there_after_a_restart(book: Book, engine: Engine) -> None:
    book(asked(1, 40), asked(2, 20))
    book(Settlement(name(1), (("micro_usd", 45),)))
    book = reopened(book, engine)
    assert book.balance() == (20, 45, 0)
    assert isinstance(book(asked(3, 36)).results[0], Denied)
    again = book(Settlement(name(1), (("micro_usd", 45),)), Settlement(name(1), (("micro_usd", 4),)), Void(name(2)))
    assert isinstance(again.results[0], Posted)
    assert again.results[0].replay
    assert isinstance(again.results[1], ReservationConflict)
    assert book.balance() == (0, 45, 0)
    assert isinstance(book(Void(name(77))).results[0], NotFound)


def test_reserved_and_settled_in_one_batch(book: Book, engine: Engine) -> None:
    book(asked(1, 40), Settlement(name(1), (("micro_usd", 130),)), asked(2, 1))
    book = reopened(book, engine)
    assert book.balance() == (0, 130, 30)
    assert isinstance(book(asked(3, 0)).results[0], Denied)


def test_a_hold_expires_by_itself_and_only_once(book: Book, engine: Engine) -> None:
    book(asked(1, 40), asked(2, 30, hold_us=2 * HOUR_US))
    book.clock.run(HOUR_US)
    book = reopened(book, engine)
    with book.connection.begin():
        assert book.rows.due(book.connection)
    done = book()
    assert [posted.hold.id for posted in done.expired] == [name(1)]
    assert book().expired == ()
    assert book.balance() == (30, 40, 0)
    book(Settlement(name(1), (("micro_usd", 7),)))
    assert book.balance() == (30, 7, 0)


def test_an_extension_counts_from_now(book: Book) -> None:
    book(asked(1, 40))
    book.clock.run(HOUR_US // 2)
    book(Extension(name(1), HOUR_US))
    book.clock.run(HOUR_US // 2)
    assert book().expired == ()
    book.clock.run(HOUR_US // 2)
    assert len(book().expired) == 1


def test_a_window_that_begins_is_a_new_account_and_what_is_late_goes_to_the_old_one(book: Book) -> None:
    book(asked(1, 60, ROOT, hold_us=100 * HOUR_US))
    book.clock.run(24 * HOUR_US)
    book(asked(2, 50, ROOT, hold_us=100 * HOUR_US))
    book(Settlement(name(1), (("micro_usd", 1_500),)))
    first, second = (found for _, found in sorted(book.balances().items()))
    assert first[:3] == (0, 1_500, 500)
    assert second[:3] == (50, 0, 0)


def test_another_limit_is_posted_before_what_is_reserved_under_it(book: Book) -> None:
    book(asked(1, 60, TENANT))
    lowered = Limit("acme", "micro_usd", "total", 50)
    done = book(asked(2, 1, lowered))
    assert [(each.posting.limit, each.posting.debt) for each in done.relimited] == [(50, 10)]
    assert isinstance(done.results[0], Denied)
    assert book.balance() == (60, 0, 10)
    raised = Limit("acme", "micro_usd", "total", 200)
    assert isinstance(book(asked(3, 140, raised)).results[0], Posted)


def test_after_a_rollback_nothing_of_the_batch_is_left(book: Book) -> None:
    book(asked(1, 40))
    transaction = book.connection.begin()
    book.rows.apply(book.connection, [asked(2, 40), asked(3, 10, Limit("new", "tokens", "hour", 10))])
    book.rows.write(book.connection)
    transaction.rollback()
    book.rows.forget()
    assert book.balance() == (40, 0, 0)
    assert isinstance(book(asked(2, 60)).results[0], Posted)
    assert isinstance(book(asked(3, 10, Limit("new", "tokens", "hour", 10))).results[0], Posted)


def test_the_database_keeps_the_invariant_by_itself(book: Book) -> None:
    book(asked(1, 40))
    for change in ("spent = 61", "reserved = -1", "debt = -1", "limit = 10"):
        statement = text(f"UPDATE budget_account SET {change}".replace("limit =", '"limit" ='))
        with pytest.raises(IntegrityError), book.connection.begin():
            book.connection.execute(statement)


def test_ledger_time_does_not_go_back_over_a_restart(book: Book, engine: Engine) -> None:
    before = book(asked(1, 40)).time_us
    book.clock.wall_us -= 2 * HOUR_US
    book = reopened(book, engine)
    assert book(asked(2, 1)).time_us == before


SPOT, OWN = (Limit("acme", "in_flight", "now", 5, pools=group) for group in ("spot", "own"))


def test_groups_without_room_are_all_named_and_hold_nothing(book: Book, engine: Engine) -> None:
    done = book(*(asked(nth, 2, SPOT, OWN) for nth in range(3)), asked(4, 1, OWN), asked(5, 101, SPOT, TENANT))
    assert [type(result) for result in done.results] == [Posted, Posted, Exhausted, Posted, Exhausted]
    both, one = done.results[2], done.results[4]
    assert isinstance(both, Exhausted)
    assert isinstance(one, Exhausted), "without the pools of the group less may be needed"
    assert [(each.key.pools, each.asked, each.remaining) for each in both.groups] == [("spot", 2, 1), ("own", 2, 1)]
    assert [each.key.pools for each in one.groups] == ["spot"]
    book = reopened(book, engine)
    assert {key.pools: found[0] for key, found in book.balances().items() if found[3]} == {"spot": 4, "own": 5}
    again = book(asked(2, 1, SPOT)).results[0]  # the id of one that was refused has held nothing
    assert isinstance(again, Posted)
    assert not again.replay


def test_a_crowd_fills_a_group_exactly_and_goes_on_to_the_next(engine: Engine) -> None:
    writers = [Book(engine, log=log) for log in range(2 if engine.dialect.name == "postgresql" else 1)]
    held: list[str] = []

    def writer(nth: int) -> None:
        for place in range(nth, 64, len(writers)):
            for limit in (SPOT, OWN):
                if isinstance(writers[nth](asked(place, 1, limit)).results[0], Posted):
                    held.append(limit.pools)
                    break

    threads = [threading.Thread(target=writer, args=(nth,)) for nth in range(len(writers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(held) == ["own"] * 5 + ["spot"] * 5
    for each in writers:
        each.connection.close()


@pytest.mark.fault("1,000 reservations for room of 100")
def test_a_thousand_at_once_and_room_for_a_hundred(book: Book) -> None:
    limit = Limit("crowd", "micro_usd", "month", 500)
    admitted = 0
    for start in range(0, 1_000, 250):
        done = book(*(asked(nth, 5, limit) for nth in range(start, start + 250)))
        admitted += sum(isinstance(result, Posted) for result in done.results)
    assert admitted == 100
    assert book.balance("crowd") == (500, 0, 0)
    with book.connection.begin():
        assert len(book.connection.execute(select(HOLD)).all()) == 100


@pytest.mark.fault("1,000 reservations for room of 100, two replicas")
def test_many_writers_at_once_and_room_for_a_hundred(engine: Engine) -> None:
    """Two replicas on one database; a file has one writer, and it meets the same crowd alone."""
    limits = Limit("crowd", "micro_usd", "month", 500), Limit("*", "micro_usd", "total", 10_000)
    writers = [Book(engine, log=log) for log in range(2 if engine.dialect.name == "postgresql" else 1)]
    admitted: list[int] = []

    def writer(nth: int) -> None:
        for start in range(nth * 50, 1_000, len(writers) * 50):
            done = writers[nth](*(asked(place, 5, *limits) for place in range(start, start + 50)))
            admitted.append(sum(isinstance(result, Posted) for result in done.results))

    threads = [threading.Thread(target=writer, args=(nth,)) for nth in range(len(writers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(admitted) == 100
    assert len(admitted) == 20
    assert writers[0].balance("crowd") == writers[0].balance("*") == (500, 0, 0)
    for each in writers:
        each.connection.close()


def test_two_writers_let_a_hold_expire_once(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        return  # a file has one writer
    clock = Clock()
    first, second = Book(engine, clock=clock, log=0), Book(engine, clock=clock, log=1)
    first(*(asked(nth, 1, ROOT) for nth in range(40)))
    clock.run(HOUR_US)
    with first.connection.begin():
        mine = first.rows.apply(first.connection, [])
        theirs = second()
        first.rows.write(first.connection)
    assert len(mine.expired) == 40
    assert theirs.expired == ()
    assert second().expired == ()
    assert first.balance("*") == (0, 40, 0)
    first.connection.close()
    second.connection.close()
