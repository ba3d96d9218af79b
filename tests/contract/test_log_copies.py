"""A log is counted, and read from front to back, alike in a file of SQLite and in a database of a real PostgreSQL."""

from __future__ import annotations

from itertools import pairwise

import pytest
from sqlalchemy import Connection

from audit import entries, report, store
from audit.errors import LogCorrupt
from audit.record import Search
from audit.report import Told
from audit.stores import LogStore
from tests.contract.test_log_stores import SHEET, entry, reading, writing
from tests.contract.test_log_stores import kind as kind
from tests.contract.test_log_stores import place as place

TABLES: list[report.Table] = [("tenant", "outcome"), ("rule",), ("day",)]
ALLOWED = Search(tenant="t", model="m", model_version="1", environment="prod", outcome="allow", sheet=SHEET.digest)
DENIED = Search(tenant="t", model="m", model_version="1", environment="dev", outcome="deny")


def filled(place: LogStore, origin: str = "test/log", first: int = 0) -> int:
    """A log with a hundred entries, each third of them denied; gives its number."""
    with writing(place, origin) as (connection, tail):
        made = [entry(first + nth, DENIED if nth % 3 == 0 else ALLOWED) for nth in range(100)]
        store.append(connection, made, [SHEET], tail=tail)
        return tail.log


def counted(connection: Connection, limit: int) -> report.Counted:
    found = report.Counted(tuple({} for _ in TABLES))
    while True:
        step = report.count(connection, TABLES, {}, lambda body: Told(7), after=found.after, limit=limit, rows_max=100)
        found.add(step, 100)
        if found.after is None:
            return found


@pytest.mark.parametrize("limit", [7, 100, 1_000])
def test_a_log_is_counted(place: LogStore, limit: int) -> None:
    filled(place)
    with reading(place) as connection:
        found = counted(connection, limit)
    assert found.entries == 100
    by_outcome, by_rule, by_day = found.tables
    assert {key: (c.entries, c.cost_micro_usd) for key, c in by_outcome.items()} == {
        ("t", "deny"): (34, 238), ("t", "allow"): (66, 462),
    }  # fmt: skip
    assert {key: c.entries for key, c in by_rule.items()} == {(None,): 34, ("location_not_permitted",): 66}
    assert sum(c.entries for c in by_day.values()) == 100


def test_a_log_is_read_from_front_to_back(place: LogStore) -> None:
    log = filled(place)
    with reading(place) as connection:
        steps = [entries.entries(connection, at, 100, 30, log=log) for at in range(0, 100, 30)]
        found = [one for step in steps for one in step]
        assert [(one.index, one.id, one.body) for one in found] == [
            (nth, entry(nth).id, entry(nth).body) for nth in range(100)
        ]
        assert found[1].search == {
            "tenant": "t", "model": "m", "model_version": "1", "environment": "prod", "outcome": "allow",
            "sheet": SHEET.digest,
        }  # fmt: skip
        with pytest.raises(LogCorrupt) as fault:
            entries.entries(connection, 90, 110, log=log)
        assert fault.value.index == 100


def test_first_uses_name_the_log_and_the_index_in_it(place: LogStore) -> None:
    filled(place)
    with reading(place) as connection:
        at: int | None = 0
        uses: list[report.FirstUse] = []
        while at is not None:
            found, at = report.first_uses(connection, {}, from_index=at, limit=40)
            uses += found
    assert [(use.key, use.log, use.index) for use in uses] == [
        (("t", "m", "1", "prod"), "test/log", index) for index in (1, 40, 80)
    ]
    assert all(one.earlier(other) == other.earlier(one) for one, other in pairwise(uses))
    whole = uses[2].earlier(uses[0].earlier(uses[1]))
    assert (whole.index, whole.entries) == (1, 66)
