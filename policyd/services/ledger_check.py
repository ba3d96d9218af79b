"""The ledger of a database against its logs: the balances in the tables are those that the logs fold into.

Rules: logs and tables are read in one transaction, as they are at one moment; all logs of a database are folded
together, since they share its accounts, unless retention has removed bodies, and with them the order between logs;
memory is one balance an account and one page of entries a log.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, func, select

from audit.balances import Balances, fold_logs
from audit.errors import LogCorrupt
from audit.postings import TOUCHING, Account, Balance
from audit.tables import BODY, ENTRY, LOG, index_of, place
from policyd.ledger.tables import ACCOUNT

ROWS_PER_PAGE: Final = 1_000
_KEY: Final = ("path", "pools", "unit", "window", "start_us")


def check_ledger(connection: Connection) -> Balances:
    """Fold the logs and compare the tables with them. Raises ``LogCorrupt`` naming the first entry or the account."""
    numbers = connection.execute(select(LOG.c.number, LOG.c.origin).order_by(LOG.c.number)).all()
    removed = connection.execute(select(func.count()).select_from(ENTRY).where(ENTRY.c.kind < 0)).scalar_one()
    found = fold_logs({origin: _entries(connection, number) for number, origin in numbers}, removed)
    _compare(connection, found, removed)
    return found


def _entries(connection: Connection, log: int) -> Iterator[tuple[int, bytes]]:
    """The entries of one log that may say something of accounts."""
    after = place(log, 0) - 1
    touching = func.substr(BODY.c.body, 1, len(TOUCHING[0])).in_(TOUCHING)
    query = select(BODY.c.index, BODY.c.body).where(touching).order_by(BODY.c.index).limit(ROWS_PER_PAGE)
    while True:
        rows = connection.execute(query.where(BODY.c.index > after, BODY.c.index < place(log + 1, 0))).all()
        if not rows:
            return
        for stored, body in rows:
            yield index_of(stored), bytes(body)
        after = rows[-1][0]


def _compare(connection: Connection, found: Balances, removed: int) -> None:
    unseen = set(found.accounts)
    for row in _accounts(connection):
        account, stored = row
        unseen.discard(account)
        folded = found.accounts.get(account)
        if folded is None and stored.sequence == 0:
            continue
        known = 0 if folded is None else folded.sequence
        if known < stored.sequence <= known + removed:
            found.passed_over += stored.sequence - known
            continue
        if folded != stored:
            told = "nothing" if folded is None else f"change {folded.sequence}: {_words(folded)}"
            raise LogCorrupt(
                f"the account {account[0]} ({account[2]} a {account[3]}) has {_words(stored)} after change "
                f"{stored.sequence} in its table, and the log says {told}"
            )
    if unseen:
        raise LogCorrupt(f"the account {min(unseen)[0]} has changes in the log, and is in no table")


def _accounts(connection: Connection) -> Iterator[tuple[Account, Balance]]:
    after = -1
    query = select(ACCOUNT).order_by(ACCOUNT.c.number).limit(ROWS_PER_PAGE)
    while True:
        rows = connection.execute(query.where(ACCOUNT.c.number > after)).all()
        if not rows:
            return
        for row in rows:
            path, pools, unit, window, start_us = (getattr(row, name) for name in _KEY)
            yield (path, pools, unit, window, start_us), Balance(*(getattr(row, name) for name in Balance._fields))
        after = rows[-1].number


def _words(balance: Balance) -> str:
    return f"{balance.reserved} reserved, {balance.spent} spent, {balance.debt} debt of {balance.limit}"
