"""Counting a log: steps add up to what the entries say, damage is noticed, and what has no end is refused."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection

from audit import report, store
from audit.errors import LogCorrupt, QueryInvalid
from audit.query import Within
from audit.record import Blob, Entry, Search
from audit.report import Counted, Spent, Told

STRICT = Blob.of("sheet", b'{"sheet":"strict"}', (("rule", "strict_rule"), ("rejected_pool", "p9")))
DAY_US = 86_400_000_000
START = datetime(2026, 3, 1, tzinfo=UTC)
START_US = int(START.timestamp()) * 1_000_000


def read(body: bytes) -> Told:
    found = orjson.loads(body)
    values = {"rule": found["rules"], "data_source": found["sources"], "fleet_digest": [found["fleet"]]}
    return Told(found["cost"], values)


def made(nth: int, dice: random.Random) -> tuple[Entry, dict[str, Any]]:
    """An entry, and the same as a plain mapping: what the counts are held against."""
    outcome = dice.choice(("allow", "allow", "deny", "error"))
    facts: dict[str, Any] = {
        "tenant": dice.choice(("a", "b")),
        "environment": dice.choice(("dev", "staging", "prod")),
        "model": dice.choice(("m", "n")),
        "model_version": dice.choice(("1", "2")),
        "outcome": outcome,
        "provider": dice.choice(("x", "y")) if outcome == "allow" else None,
    }
    cost = dice.randrange(10**9) if outcome == "allow" else 0
    strict = dice.random() < 0.5
    rules = dice.sample(("r1", "r2", "strict_rule"), dice.randrange(3))
    sources = dice.sample(("s1", "s2"), dice.randrange(3))
    time_us = START_US + dice.randrange(60) * DAY_US
    body = orjson.dumps({"nth": nth, "cost": cost, "rules": rules, "sources": sources, "fleet": f"f{nth % 2}"})
    search = Search(**facts, sheet=STRICT.digest if strict else None)
    entry = Entry("decision", f"01990000-0000-7000-8000-{nth:012x}", time_us, body, search)
    facts |= {"day": (START + timedelta(days=(time_us - START_US) // DAY_US)).date().isoformat()}
    facts |= {"cost": cost, "rule": sorted({*rules, *(["strict_rule"] if strict else [])}) or [None]}
    return entry, {**facts, "data_source": sources or [None], "fleet_digest": f"f{nth % 2}", "index": nth}


class Log:
    """A log of a few hundred made entries."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine = store.open_sqlite(path, "process_safe", origin="test/log")
        dice = random.Random(7)
        pairs = [made(nth, dice) for nth in range(400)]
        with self.engine.begin() as connection:
            store.append(connection, [entry for entry, _ in pairs], [STRICT])
        self.facts = [facts for _, facts in pairs]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    found = Log(tmp_path_factory.mktemp("log") / "audit.sqlite")
    yield found
    found.engine.dispose()


@pytest.fixture
def connection(log: Log) -> Iterator[Connection]:
    with log.engine.connect() as found:
        yield found


def whole(connection: Connection, tables: list[report.Table], limit: int, filters: Any = None, **more: Any) -> Counted:
    counted, after = Counted(tuple({} for _ in tables)), None
    for _ in range(1_000):
        step = report.count(connection, tables, filters or {}, read, after=after, limit=limit, rows_max=1_000, **more)
        counted.add(step, 1_000)
        after = step.after
        if after is None:
            return counted
    raise AssertionError("the report does not end")


TABLES: list[report.Table] = [
    ("outcome",),
    ("provider", "tenant"),
    ("day",),
    ("rule",),
    ("data_source", "model"),
    ("fleet_digest",),
]


@pytest.mark.parametrize("limit", [1, 7, 400, 5_000])
def test_steps_of_any_length_add_up_to_what_the_entries_say(log: Log, connection: Connection, limit: int) -> None:
    counted = whole(connection, TABLES, limit)
    assert counted.entries == 400
    for table, found in zip(TABLES, counted.tables, strict=True):
        expected, costs = Counter[Any](), Counter[Any]()
        for facts in log.facts:
            several = [name for name in table if isinstance(facts[name], list)]
            for value in facts[several[0]] if several else [None]:
                key = tuple(value if name in several else facts[name] for name in table)
                expected[key, facts["outcome"]] += 1
                costs[key] += facts["cost"]
        got = {(key, name): getattr(c, name) for key, c in found.items() for name in ("allow", "deny", "error")}
        assert {pair: n for pair, n in got.items() if n} == dict(expected)
        assert {key: c.cost_micro_usd for key, c in found.items()} == {key: costs[key] for key in found}
        assert all(c.entries == c.allow + c.deny + c.error for c in found.values())


def test_what_became_of_costs_is_in_columns_of_its_own(log: Log, connection: Connection) -> None:
    allowed = [facts for facts in log.facts if facts["outcome"] == "allow"]

    def spending(_: Connection, ids: Sequence[bytes]) -> dict[bytes, Spent]:
        known = {0: Spent(7), 1: Spent(0), 2: Spent(11, presumed=True)}
        return {id: known[nth] for id in ids if (nth := int.from_bytes(id[10:]) % 4) in known}

    counted = whole(connection, [("outcome",)], 7, spending=spending)
    found = counted.tables[0]["allow",]
    kinds = Counter(facts["index"] % 4 for facts in log.facts if facts["outcome"] == "allow")
    assert found.settled_micro_usd == 7 * kinds[0]
    assert found.presumed_micro_usd == 11 * kinds[2]
    assert found.expected_micro_usd == sum(facts["cost"] for facts in allowed if facts["index"] % 4 == 3)
    assert found.cost_micro_usd == found.settled_micro_usd + found.presumed_micro_usd + found.expected_micro_usd


def test_filters_and_what_one_may_read_narrow_a_report(log: Log, connection: Connection) -> None:
    march = {"from": "2026-03-01", "to": "2026-03-11", "outcome": "allow"}
    expected = [f for f in log.facts if f["day"] < "2026-03-11" and f["outcome"] == "allow"]
    assert whole(connection, [("outcome",)], 50, filters=march).entries == len(expected) > 20
    assert report.total(connection, march) == len(expected)
    part = (Within("a", environments=frozenset({"prod"})),)
    mine = [f for f in expected if f["tenant"] == "a" and f["environment"] == "prod"]
    assert whole(connection, [("outcome",)], 50, filters=march, within=part).entries == len(mine) > 0
    assert whole(connection, [("outcome",)], 50, within=(Within("nobody"),)).entries == 0


@pytest.mark.parametrize("limit", [3, 1_000])
def test_first_uses_are_the_first_of_the_log(log: Log, connection: Connection, limit: int) -> None:
    found: dict[report.UseKey, report.FirstUse] = {}
    at: int | None = 0
    while at is not None:
        uses, at = report.first_uses(connection, {}, from_index=at, limit=limit)
        for use in uses:
            found[use.key] = use.earlier(found.get(use.key))
    expected: dict[Any, list[int]] = {}
    for facts in log.facts:
        if facts["outcome"] == "allow":
            key = tuple(facts[name] for name in ("tenant", "model", "model_version", "environment"))
            expected.setdefault(key, []).append(facts["index"])
    assert {key: (use.index, use.entries) for key, use in found.items()} == {
        key: (min(indexes), len(indexes)) for key, indexes in expected.items()
    }


@pytest.mark.parametrize(
    "tables", [[("nothing",)], [("principal",)], [()], [("rule", "rule")], [("rule", "data_source")]], ids=str
)
def test_what_cannot_be_counted_is_refused(connection: Connection, tables: list[report.Table]) -> None:
    with pytest.raises(QueryInvalid):
        report.count(connection, tables, {}, read, rows_max=10)


def test_a_report_with_too_many_rows_is_refused_and_not_cut(connection: Connection) -> None:
    with pytest.raises(QueryInvalid, match="more than 10 rows"):
        report.count(connection, [("day",)], {}, read, rows_max=10)
    counted = report.count(connection, [("day",)], {}, read, limit=50, rows_max=60)
    with pytest.raises(QueryInvalid, match="more than 3 rows"):
        Counted(({},)).add(counted, 3)


def test_an_altered_body_ends_the_report(tmp_path: Path) -> None:
    log = Log(tmp_path / "altered.sqlite")
    log.engine.dispose()
    with closing(sqlite3.connect(log.path)) as connection, connection:
        connection.execute('UPDATE body SET body = replace(body, \'"cost":\', \'"cost": \') WHERE "index" = 200')
    engine = store.open_sqlite_reader(log.path)
    with engine.connect() as connection, pytest.raises(LogCorrupt) as fault:
        whole(connection, [("outcome",)], 50)
    assert fault.value.index == 200
    engine.dispose()
