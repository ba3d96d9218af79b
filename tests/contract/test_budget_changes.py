"""Limits that people set, in a database: what counts, what becomes debt, what another writer hears, who may raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import orjson
import pytest
from sqlalchemy import Engine

from audit import store as log_store
from audit.personal import Vault
from audit.stores import SqliteStore
from policyd.errors import BudgetRaised, PolicydError, ReservationConflict
from policyd.ledger.changes import NO_CEILING, SetLimit, Setting, effective, key_of
from policyd.ledger.rows import set_limits
from policyd.ledger.rules import Changed, Denied, Limit, Posted
from policyd.ledger.store import Change, Settlement
from policyd.services.admission import Admission
from policyd.services.budget_entries import setting_json
from policyd.services.proposals import OPEN as OPEN_STATE
from policyd.services.proposals import Approved, Proposal
from tests.contract.test_ledger_store import Book, asked, name, reopened
from tests.contract.test_ledger_store import engine as engine  # the same two stores

ROOF = Limit("acme", "micro_usd", "total", 100)
DAY_US = 86_400_000_000
OPEN = Limit("acme/chat", "micro_usd", "total", NO_CEILING)


@pytest.fixture
def book(engine: Engine) -> Iterator[Book]:
    book = Book(engine)
    yield book
    book.connection.close()


def change(nth: int, ceiling: Limit, amount: int | None, *, may_raise: bool = False, zone: str = "UTC") -> Change:
    return Change(name(nth), (Setting(ceiling, amount, zone, None, may_raise),))


def test_a_lower_limit_counts_at_once_and_makes_debt_of_what_is_beyond(book: Book, engine: Engine) -> None:
    book(asked(1, 60, ROOF))
    book(Settlement(name(1), (("micro_usd", 60),)))
    (done,) = book(change(2, ROOF, 40)).results
    assert isinstance(done, Changed)
    (posting,) = done.postings
    assert (posting.limit, posting.spent, posting.debt) == (40, 60, 20)
    assert [crossing.percent for crossing in done.crossings] == [80, 95]  # 60 of 100 had crossed 50 already
    (denied,) = book(asked(3, 0, ROOF)).results
    assert isinstance(denied, Denied)
    assert denied.why == "debt"
    book = reopened(book, engine)
    assert isinstance(book(asked(4, 1, ROOF)).results[0], Denied)


def test_the_fleet_is_a_ceiling_also_when_it_is_lowered_later(book: Book) -> None:
    book(change(1, ROOF, 80))
    assert isinstance(book(asked(2, 81, ROOF)).results[0], Denied)
    lower = Limit("acme", "micro_usd", "total", 30)
    assert isinstance(book(asked(3, 31, lower)).results[0], Denied)
    assert isinstance(book(asked(4, 30, lower)).results[0], Posted)
    assert effective(ROOF, SetLimit(key_of(ROOF), 500, "UTC")).amount == 100


def test_who_may_not_raise_raises_nothing(book: Book) -> None:
    book(change(1, ROOF, 40))
    for amount in (41, None):
        assert isinstance(book(change(2, ROOF, amount)).results[0], BudgetRaised)
    assert isinstance(book(asked(3, 41, ROOF)).results[0], Denied)
    book(change(4, ROOF, 60, may_raise=True))
    assert isinstance(book(asked(5, 60, ROOF)).results[0], Posted)
    book(change(6, ROOF, None, may_raise=True))
    assert isinstance(book(asked(7, 40, ROOF)).results[0], Posted)


def test_a_limit_that_the_fleet_does_not_know_lowers_first_and_keeps_its_zone(book: Book) -> None:
    book(change(1, OPEN, 10))
    assert isinstance(book(asked(2, 11, OPEN)).results[0], Denied)
    day = Limit("acme", "requests", "day", NO_CEILING)
    book(change(3, day, 5, zone="Europe/Berlin"))
    moved = book(change(4, day, 5, may_raise=True, zone="Asia/Tokyo")).results[0]
    assert isinstance(moved, ReservationConflict)
    assert isinstance(book(change(5, OPEN, None)).results[0], BudgetRaised)
    book(change(6, OPEN, None, may_raise=True))
    assert isinstance(book(asked(7, 11, OPEN)).results[0], Posted)


def test_a_change_is_whole_or_nothing(book: Book) -> None:
    book(change(1, OPEN, 10))
    both = Change(name(2), (Setting(ROOF, 50, "UTC", None, False), Setting(OPEN, 11, "UTC", None, False)))
    assert isinstance(book(both).results[0], PolicydError)
    assert isinstance(book(asked(3, 51, ROOF)).results[0], Posted)
    with book.connection.begin():
        assert {key.path: found.amount for key, found in set_limits(book.connection)[1].items()} == {"acme/chat": 10}


def test_another_writer_of_the_database_hears_of_it(engine: Engine, book: Book, tmp_path: Path) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("a file has one writer")
    other = Book(engine, clock=book.clock, log=1)
    assert isinstance(other(asked(1, 30, ROOF)).results[0], Posted)
    book(change(2, ROOF, 40))
    denied, fits = other(asked(3, 11, ROOF), asked(4, 10, ROOF)).results
    assert isinstance(denied, Denied)
    assert isinstance(fits, Posted)
    other(change(5, ROOF, 35))
    (denied,) = book(asked(6, 0, ROOF)).results
    assert isinstance(denied, Denied)
    assert (denied.why, denied.limit) == ("debt", 35)
    other.connection.close()


def test_two_changes_in_one_batch_and_a_rollback(book: Book) -> None:
    first, second, refused = book(change(1, ROOF, 50), change(2, ROOF, 20), change(3, ROOF, 21)).results
    assert isinstance(first, Changed)
    assert isinstance(second, Changed)
    assert isinstance(refused, BudgetRaised)
    transaction = book.connection.begin()
    book.rows.apply(book.connection, [change(4, ROOF, 5)])
    book.rows.write(book.connection)
    transaction.rollback()
    book.rows.forget()
    assert isinstance(book(asked(5, 20, ROOF)).results[0], Posted)


def test_a_jump_at_the_start_is_told_once_also_when_two_persons_set_a_limit_first(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "audit.sqlite")
    keys = store.open_keys(write=True)
    assert keys is not None
    engine = log_store.open_sqlite(store.path, "process_safe", origin="policyd/test")
    with closing(Vault(keys, tmp_path / "personal.key")) as vault, closing(Book(engine).connection) as connection:
        book = Book(engine)
        book(asked(1, 1, ROOF))
        time_us = book.rows.time_us + 2 * DAY_US
        book.connection.close()
        with connection.begin():
            admission = Admission(connection, 0, DAY_US, lambda: (time_us, time_us))
            told = [setting_json(Setting(ROOF, 50, "UTC", None, may_raise=True))]
            document = {"path": ROOF.path, "limits": told, "reason": "less is needed"}
            proposal = Proposal(name(2), OPEN_STATE, "budget.set", "acme", "", document, "token:ana", 0, 0)
            effect = admission.set_by_two(connection, Approved(proposal, name(3), "token:ben", time_us), vault)
            judged = admission.judge(connection, [])
        events = [orjson.loads(entry.body).get("event") for entry in (*effect.entries, *judged.entries)]
        assert (events.count("clock_jump"), events.count("set")) == (1, 1)
    engine.dispose()
