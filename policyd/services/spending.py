"""What became of the cost of decisions, for reports: settled, presumed to be spent, or nothing.

    held      nobody has said yet: not here, and its expected cost stands
    settled   what was posted
    voided    nothing
    expired   what was held, presumed to be spent

Rules: it is what the ledger has posted, which verification holds against the log; a decision that reserved nothing is
not here; what a settlement did not measure counts as held, as the ledger counts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection, Row, select

from audit.report import Spent
from policyd.ledger.rows import charges_of, parts
from policyd.ledger.rules import STATES
from policyd.ledger.tables import ACCOUNT, HOLD


def spending(connection: Connection, ids: Sequence[bytes]) -> Mapping[bytes, Spent]:
    """Of the decisions with these ids, what is known of those whose reservation has ended."""
    ended = _ended(connection, ids)
    money = _money(connection, {number for row in ended for number, _ in charges_of(row)})
    found = {}
    for row in ended:
        spent = _spent(row, money)
        if spent is not None:
            found[bytes(row.id)] = spent
    return found


def _ended(connection: Connection, ids: Sequence[bytes]) -> list[Row[*tuple[Any, ...]]]:
    held, found = STATES.index("held"), list[Row[*tuple[Any, ...]]]()
    for part in parts(ids):
        query = select(HOLD.c.id, HOLD.c.state, HOLD.c.charges, HOLD.c.actual)
        found += connection.execute(query.where(HOLD.c.id.in_(part), HOLD.c.state != held)).all()
    return found


def _money(connection: Connection, numbers: set[int]) -> set[int]:
    """Those of the accounts that count micro-USD."""
    found: set[int] = set()
    for part in parts(sorted(numbers)):
        query = select(ACCOUNT.c.number).where(ACCOUNT.c.number.in_(part), ACCOUNT.c.unit == "micro_usd")
        found.update(connection.execute(query).scalars())
    return found


def _spent(row: Row[*tuple[Any, ...]], money: set[int]) -> Spent | None:
    state = STATES[row.state]
    if state == "voided":
        return Spent(0)
    # Every level holds the same amount.
    held = next((amount for number, amount in charges_of(row) if number in money), None)
    if state == "expired":
        return None if held is None else Spent(held, presumed=True)
    settled = dict(orjson.loads(row.actual)).get("micro_usd", held)
    return None if settled is None else Spent(settled)
