"""Postings fold into balances; a change that is missing, moved, or does not follow is named with its entry."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import postings as read_postings
from audit.balances import Balances, fold_logs
from audit.errors import LogCorrupt
from policyd.ledger.postings import deepest, written
from policyd.ledger.rules import AccountKey, Charge, Denied, Ledger, Limit, Posted, Posting, Reservation
from policyd.ledger.windows import Span
from policyd.services.admission import admission_of
from policyd.services.admission import presumed_entries as presumed
from tests.property.test_postings import AMOUNTS, POSTINGS

LIMITS = (
    Limit("*", "micro_usd", "day", 10_000),
    Limit("t", "gpus", "now", 40),
    Limit("t/p", "micro_usd", "total", 900),
)
SPANS = (Span(86_400_000_000, 172_800_000_000), Span(0, None), Span(0, None))
HOUR_US = 3_600_000_000


class Book:
    """A ledger that writes entries as the writer of the log does."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.bodies: list[bytes] = []

    def reserve(self, nth: int, *amounts: int) -> None:
        asked = Reservation(name(nth), tuple(map(Charge, LIMITS, amounts)), HOUR_US)
        done = self.ledger.reserve(asked, SPANS, 0)
        scope = {"tenant": "t", "project": "p", "environment": "prod"}
        self._add({"admission": admission_of(asked, done, 0), "id": name(nth), "workload": scope})
        self._cross(done)

    def settle(self, nth: int, spent: int) -> None:
        self._changed(self.ledger.settle(name(nth), {"micro_usd": spent}), "settlement")

    def void(self, nth: int) -> None:
        self._changed(self.ledger.void(name(nth)), "void")

    def expire(self, nth: int) -> None:
        done = self.ledger.expire(name(nth), 2 * HOUR_US)
        if done is not None:
            self._add({"accounts": accounts(done), "event": "expired", "kind": "budget"})
            self._cross(done)

    def limit(self, which: int, amount: int) -> None:
        key = self.ledger.open(LIMITS[which], SPANS[which]).key
        done = self.ledger.relimit(key, amount, (50, 80, 95))
        if done is not None:
            body = {"account": deepest([done.posting]), "postings": written([done.posting])}
            self._add({"accounts": body, "event": "limit", "kind": "budget"})

    def _changed(self, done: Posted, kind: str) -> None:
        self._add({"accounts": {**accounts(done), "state": done.hold.state}, "kind": kind})
        self._cross(done)

    def _cross(self, done: Posted | Denied) -> None:
        for crossing in done.crossings if isinstance(done, Posted) else ():
            told = {"sequence": crossing.sequence, "spent": crossing.spent, "limit": crossing.limit}
            self._add({"account": list(crossing.key), "event": "threshold", "kind": "budget", **told})

    def _add(self, body: dict[str, Any]) -> None:
        self.bodies.append(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def accounts(done: Posted) -> dict[str, Any]:
    held = [amount for _, amount in done.hold.charges] if done.postings else []
    return {"account": deepest(done.postings), "postings": written(done.postings, held)}


def name(nth: int) -> str:
    return str(UUID(int=(0x0199 << 112) | (7 << 76) | (2 << 62) | nth))


def folded(bodies: Sequence[bytes], *, whole: bool = True) -> Balances:
    found = Balances(whole=whole)
    for index, body in enumerate(bodies):
        found.entry(index, body)
    return found


def busy() -> Book:
    book = Book()
    for nth in range(6):
        book.reserve(nth, 100 + nth, 2, 50)
    book.settle(0, 30)
    book.settle(1, 700)
    book.void(2)
    book.limit(2, 500)
    book.expire(3)
    book.settle(3, 10)
    book.limit(0, 20_000)
    book.reserve(7, 10_000, 1, 1)
    return book


def stored(book: Book) -> dict[Any, tuple[int, ...]]:
    fields = ("sequence", "limit", "reserved", "spent", "leased", "debt")
    return {
        tuple(key): tuple(getattr(account, name) for name in fields)
        for key, account in book.ledger.accounts.items()
        if account.sequence
    }


def test_the_fold_of_a_log_is_its_ledger() -> None:
    book = busy()
    found = folded(book.bodies)
    assert found.missing is None
    assert {account: tuple(balance) for account, balance in found.accounts.items()} == stored(book)
    assert any(b'"threshold"' in body for body in book.bodies)


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(
                st.just("reserve"), st.integers(0, 9), st.integers(0, 400), st.integers(0, 9), st.integers(0, 400)
            ),
            st.tuples(st.just("settle"), st.integers(0, 9), st.integers(0, 800)),
            st.tuples(st.sampled_from(["void", "expire"]), st.integers(0, 9)),
            st.tuples(st.just("limit"), st.integers(0, 2), st.integers(0, 12_000)),
        ),
        max_size=40,
    )
)
def test_whatever_a_ledger_does_the_log_folds_into_its_balances_at_every_prefix(steps: list[tuple[Any, ...]]) -> None:
    from policyd.errors import PolicydError

    book = Book()
    for step, *arguments in steps:
        try:
            getattr(book, step)(*arguments)
        except PolicydError:
            continue
        found = folded(book.bodies)
        assert {account: tuple(balance) for account, balance in found.accounts.items()} == stored(book)


def test_an_entry_that_is_missing_is_named_by_the_one_after_it() -> None:
    book = busy()
    for missing in range(6):
        with pytest.raises(LogCorrupt, match="are missing") as caught:
            raise folded(book.bodies[:missing] + book.bodies[missing + 1 :]).missing or AssertionError
        assert caught.value.index == missing
    swapped = [*book.bodies[:2], book.bodies[3], book.bodies[2], *book.bodies[4:]]
    with pytest.raises(LogCorrupt, match="comes after change") as caught:
        folded(swapped)
    assert caught.value.index == 3


def test_a_balance_that_does_not_follow_is_named() -> None:
    book = busy()
    changed = 0
    for index, body in enumerate(book.bodies):
        found = json.loads(body)
        said = found.get("admission") or found.get("accounts")
        if said is None or not said.get("postings"):
            continue
        for group in said["postings"]:
            row = group[-1][-1]
            for column in range(3, len(row)):  # reserved, spent, debt
                row[column] += 1
                bad = json.dumps(found, sort_keys=True, separators=(",", ":")).encode()
                row[column] -= 1
                if said.get("state") == "settled" and column == 4:
                    continue  # nobody but its own entry says how much a settlement spent
                with pytest.raises(LogCorrupt, match="does not follow") as caught:
                    folded([*book.bodies[:index], bad, *book.bodies[index + 1 :]])
                assert caught.value.index == index
                changed += 1
    assert changed > 30


def test_a_part_of_a_log_begins_anywhere() -> None:
    book = busy()
    for start in range(len(book.bodies)):
        assert folded(book.bodies[start:], whole=False).missing is None


def test_logs_that_share_accounts_fold_together() -> None:
    book = busy()
    mine: list[tuple[int, bytes]] = []
    theirs: list[tuple[int, bytes]] = []
    log = mine
    for nth, body in enumerate(book.bodies):
        # A threshold stands in the log of the change that reached it.
        log = (mine if nth % 3 else theirs) if b'"threshold"' not in body else log
        log.append((len(log), body))

    def read(log: list[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        return iter(log)

    both = fold_logs({"mine": read(mine), "theirs": read(theirs)})
    assert {account: tuple(balance) for account, balance in both.accounts.items()} == stored(book)
    alone = folded([body for _, body in mine])
    assert alone.missing is not None
    assert alone.missing_total > 0
    with pytest.raises(LogCorrupt, match="are missing"):
        fold_logs({"mine": read(mine), "theirs": read(theirs[:1] + theirs[2:])})


@given(postings=POSTINGS, data=st.data(), told=st.booleans())
def test_the_log_reads_what_the_ledger_writes(postings: list[Posting], data: st.DataObject, told: bool) -> None:
    held = data.draw(st.lists(AMOUNTS, min_size=len(postings), max_size=len(postings))) if told else []
    account = deepest(postings)
    groups = written(postings, held)
    body = (
        json.dumps({"accounts": {"account": account, "postings": groups}, "event": "limit"}).replace(" ", "").encode()
    )
    found = {change.account: (change.after, change.held) for change in read_postings.told(body).changes}
    each = zip(postings, held or [None] * len(postings), strict=True)
    assert found == {tuple(posting.key): (posting[1:], amount) for posting, amount in each}


def test_what_is_no_posting_is_named() -> None:
    bad = (b'{"accounts":{"postings":[1]}}', b'{"accounts":[1]}', b'{"account":1,"event":"threshold"}', b'{"account":')
    for body in bad:
        with pytest.raises(LogCorrupt, match="entry 7: what it says of budgets cannot be read"):
            Balances().entry(7, body)
    Balances().entry(7, b'{"asked":{"admission":1}}')


def test_what_was_presumed_after_a_restore_follows() -> None:
    book = busy()
    account = book.ledger.accounts[AccountKey("*", "*", "micro_usd", "day", SPANS[0].start_us)]
    bodies = [entry.body for entry in presumed(account.post(0, 500), account.crossings(), 0, name(9))]
    assert folded([*book.bodies, *bodies]).accounts[tuple(account.key)].spent == account.spent
