"""Batches in a database against the rules with everything in memory: the same results, the same balances."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, event, select

from policyd.errors import PolicydError
from policyd.ledger.rows import account_of
from policyd.ledger.rules import Charge, Denied, Ledger, Limit, Posted, Reservation
from policyd.ledger.store import Extension, LedgerRows, Operation, Settlement, Void
from policyd.ledger.tables import ACCOUNT, BUDGET_TABLES
from policyd.ledger.windows import Span

LIMITS = (
    Limit("*", "micro_usd", "total", 150),
    Limit("acme", "micro_usd", "total", 90),
    Limit("acme", "gpus", "now", 4, pools="spot"),
    Limit("rival", "micro_usd", "total", 60),
)
AMOUNT = st.integers(0, 40)


def name(nth: int) -> str:
    return str(UUID(int=0x0199_0000_0000_7000_8000_0000_0000_0000 + nth))


def reservation(nth: int, which: set[int], amount: int, holds: bool) -> Reservation:
    return Reservation(name(nth), tuple(Charge(LIMITS[place], amount) for place in sorted(which)), 50, holds)


IDS = st.integers(0, 9)
OPERATIONS = st.one_of(
    st.builds(reservation, IDS, st.sets(st.integers(0, 3), min_size=1), AMOUNT, st.booleans()),
    st.builds(lambda nth, amount: Settlement(name(nth), (("micro_usd", amount),)), IDS, AMOUNT),
    st.builds(lambda nth: Void(name(nth)), IDS),
    st.builds(lambda nth, hold: Extension(name(nth), hold), IDS, st.integers(1, 90)),
)
BATCHES = st.lists(
    st.tuples(st.integers(0, 40), st.lists(OPERATIONS, max_size=6), st.sampled_from(["write", "roll back", "reopen"])),
    max_size=8,
)


def model_result(model: Ledger, operation: Operation, time_us: int) -> Any:
    try:
        if isinstance(operation, Reservation):
            return model.reserve(operation, [Span(0, None)] * len(operation.charges), time_us)
        if isinstance(operation, Settlement):
            return model.settle(operation.id, dict(operation.actual))
        if isinstance(operation, Void):
            return model.void(operation.id)
        return model.extend(operation.id, time_us + operation.hold_us)
    except PolicydError as error:
        return error


def told(result: Any) -> Any:
    if isinstance(result, Posted):
        return result.hold.id, result.postings, result.crossings, result.replay
    return result if isinstance(result, Denied) else (type(result), str(result))


@given(batches=BATCHES)
def test_batches_follow_the_rules(batches: list[tuple[int, list[Operation], str]]) -> None:
    engine = create_engine("sqlite://", connect_args={"isolation_level": None})
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    now, model = 1_000, Ledger()

    def clock() -> tuple[int, int]:
        return now, now

    with engine.connect() as connection:
        with connection.begin():
            ACCOUNT.metadata.create_all(connection, tables=BUDGET_TABLES)
            ledger = LedgerRows(connection, clock=clock)
        for pause, operations, end in batches:
            now += pause
            transaction = connection.begin()
            done = ledger.apply(connection, operations)
            ledger.write(connection)
            if end == "roll back":
                transaction.rollback()
                ledger.forget()
                continue
            transaction.commit()
            due = [hold for hold in list(model.holds) if model.expire(hold, now) is not None]
            assert {posted.hold.id for posted in done.expired} == set(due)
            assert [told(result) for result in done.results] == [
                told(model_result(model, operation, now)) for operation in operations
            ]
            if end == "reopen":
                with connection.begin():
                    ledger = LedgerRows(connection, clock=clock)
            with connection.begin():
                stored = [account_of(row) for row in connection.execute(select(ACCOUNT))]
            balances = {each.key: each for each in stored if each.sequence}
            assert balances == {key: each for key, each in model.accounts.items() if each.sequence}
    engine.dispose()
