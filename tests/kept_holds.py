"""What a log and a ledger must say after whatever happened to them: every answer is kept, and every hold is accounted
for. Used by the tests of faults, whichever fault it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine, select

from audit.tables import BODY
from policyd.ledger.rows import account_of, charges_of, hold_id
from policyd.ledger.rules import STATES
from policyd.ledger.tables import ACCOUNT, HOLD
from policyd.services.admission import postings_of


def check_kept_holds(engine: Engine, answered: Mapping[str, str]) -> None:
    """Every answer is kept, every hold is recorded, and balances are both the sum of holds and the end of the log.

    ``answered`` has the last state that somebody heard of each hold.
    """
    with engine.connect() as connection:
        holds = {hold_id(row): row for row in connection.execute(select(HOLD))}
        accounts = {row.number: account_of(row) for row in connection.execute(select(ACCOUNT))}
        bodies = [json.loads(body) for (body,) in connection.execute(select(BODY.c.body).order_by(BODY.c.index))]
    engine.dispose()
    reserved = dict.fromkeys(accounts, 0)
    for row in holds.values():
        for number, amount in charges_of(row):
            reserved[number] += amount if STATES[row.state] == "held" else 0
    assert reserved == {number: account.reserved for number, account in accounts.items()}
    recorded = {body["id"] for body in bodies if "postings" in body.get("admission", {})}
    assert recorded == holds.keys()  # no hold without its decision, and no decision without its hold
    last: dict[tuple[Any, ...], list[Any]] = {}
    for body in bodies:
        for posting, _ in postings_of(body):
            key, balance = tuple(posting.key), list(posting[1:])
            assert balance[0] == (last[key][0] if key in last else 0) + 1
            last[key] = balance
    for account in accounts.values():
        kept = [account.sequence, account.limit, account.reserved, account.spent, account.leased, account.debt]
        assert not account.sequence or last[tuple(account.key)] == kept
    for id, state in answered.items():
        # What was answered as held may have been settled or released just before the end, without an answer.
        assert id in holds
        assert state == "held" or STATES[holds[id].state] == state
