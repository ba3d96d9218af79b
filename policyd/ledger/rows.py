"""The statements of the ledger on SQLite and PostgreSQL, and rows made from accounts and holds.

Rules: what changes many rows is one statement with its values inside, since a statement for each row is a trip for each
row; unused places are null, so that few texts exist and stay prepared; rows are read and locked in the order of their
keys, which is the same for everybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar
from uuid import UUID

import orjson
from sqlalchemy import Connection, Row, bindparam, func, or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from policyd.ledger.changes import LimitKey, SetLimit
from policyd.ledger.rules import STATES, Account, AccountKey, Hold, Limit
from policyd.ledger.tables import ACCOUNT, HOLD, LIMIT

ROWS_PER_STATEMENT_MAX: Final = 512
NEVER_US: Final = 2**63 - 1
PADDED: Final = "SELECT * FROM (VALUES {rows}) AS v WHERE column1 IS NOT NULL"
STATEMENTS: Final = {
    "hold_new": "INSERT INTO budget_hold (id, state, hold_us, expires_us, actual, charges) " + PADDED,
    "hold_changed": (
        "UPDATE budget_hold SET state = v.column2, hold_us = v.column3, expires_us = v.column4, actual = v.column5 "
        "FROM (VALUES {rows}) AS v WHERE budget_hold.id = v.column1"
    ),
    "account_changed": (
        'UPDATE budget_account SET "limit" = v.column2, thresholds = v.column3, reserved = v.column4, '
        "spent = v.column5, leased = v.column6, debt = v.column7, sequence = v.column8, crossed = v.column9 "
        "FROM (VALUES {rows}) AS v WHERE budget_account.number = v.column1"
    ),
}
T = TypeVar("T")
_LAST_CHANGE: Final = select(func.max(LIMIT.c.changed))


def run(connection: Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Run one of ``STATEMENTS`` for all rows, in as few statements as can be."""
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    for part in parts(rows):
        padded = 1 << (len(part) - 1).bit_length()
        values = [value for row in part for value in row]
        values.extend([None] * (len(part[0]) * (padded - len(part))))
        _write(connection, _sql(statement, mark, len(part[0]), padded), values)


def _write(connection: Connection, sql: str, values: Sequence[Any]) -> None:
    """Run a statement that writes: on a file by its driver, since SQLAlchemy takes as long again as SQLite."""
    if connection.dialect.name == "sqlite":
        driver: Any = connection.connection.dbapi_connection
        driver.execute(sql, values)
    else:
        connection.exec_driver_sql(sql, tuple(values))


@lru_cache(maxsize=256)
def _sql(statement: str, mark: str, columns: int, rows: int) -> str:
    row = "(" + ", ".join([mark] * columns) + ")"
    return STATEMENTS[statement].format(rows=", ".join([row] * rows))


def open_accounts(
    connection: Connection, limits: Mapping[AccountKey, tuple[Limit, int | None]]
) -> dict[AccountKey, int]:
    """The numbers of these accounts; those that are not there yet are made, with nothing spent."""
    insert = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    keys = sorted(limits)
    numbers = _numbers(connection, keys)
    rows = [_new_account(key, *limits[key]) for key in keys if key not in numbers]
    if rows:
        connection.execute(insert(ACCOUNT).on_conflict_do_nothing(), rows)
        numbers = _numbers(connection, keys)
    return numbers


def _numbers(connection: Connection, keys: Sequence[AccountKey]) -> dict[AccountKey, int]:
    columns = [ACCOUNT.c[name] for name in AccountKey._fields]
    query = select(ACCOUNT.c.number, *columns).where(tuple_(*columns).in_(bindparam("keys", expanding=True)))
    found = (row for part in parts(keys) for row in connection.execute(query, {"keys": [tuple(key) for key in part]}))
    return {AccountKey(*key): number for number, *key in found}


def _new_account(key: AccountKey, limit: Limit, end_us: int | None) -> dict[str, Any]:
    nothing = dict.fromkeys(("reserved", "spent", "leased", "debt", "sequence", "crossed"), 0)
    written = _thresholds_text(limit.thresholds)
    return {**key._asdict(), "end_us": end_us, "limit": limit.amount, "thresholds": written, **nothing}


def current_accounts(connection: Connection, paths: Sequence[str], time_us: int) -> list[Account]:
    """The accounts of these paths whose window has not ended, for whoever only reads."""
    query = select(ACCOUNT).where(
        ACCOUNT.c.path.in_(bindparam("paths", expanding=True)),
        or_(ACCOUNT.c.end_us.is_(None), ACCOUNT.c.end_us > time_us),
    )
    return [account_of(row) for part in parts(paths) for row in connection.execute(query, {"paths": part})]


def accounts(connection: Connection, numbers: Iterable[int]) -> Iterator[tuple[int, Account]]:
    """These accounts, locked in the order of their numbers."""
    query = select(ACCOUNT).where(ACCOUNT.c.number.in_(bindparam("numbers", expanding=True))).order_by(ACCOUNT.c.number)
    for part in parts(sorted(numbers)):
        for row in connection.execute(query.with_for_update(), {"numbers": part}):
            yield row.number, account_of(row)


def account_of(row: Row[Any]) -> Account:
    """The account of a row."""
    key = AccountKey(row.path, row.pools, row.unit, row.window, row.start_us)
    thresholds = tuple(int(percent) for percent in row.thresholds.split())
    balance = (row.reserved, row.spent, row.leased, row.debt, row.sequence, row.crossed)
    return Account(key, row.end_us, row.limit, thresholds, *balance)


def account_row(number: int, account: Account) -> tuple[Any, ...]:
    """What ``account_changed`` takes."""
    balance = (account.reserved, account.spent, account.leased, account.debt, account.sequence, account.crossed)
    return (number, account.limit, _thresholds_text(account.thresholds), *balance)


@lru_cache(maxsize=1_024)
def _thresholds_text(thresholds: tuple[int, ...]) -> str:
    return " ".join(map(str, thresholds))


def holds(connection: Connection, ids: Iterable[str]) -> Iterator[Row[Any]]:
    """The rows of these holds, locked in the order of their ids."""
    for part in parts(sorted(map(id_bytes, ids))):
        padded = 1 << (len(part) - 1).bit_length()
        values = (*part, *([None] * (padded - len(part))))
        yield from connection.exec_driver_sql(_holds_sql(connection.dialect.name, padded), values)


@lru_cache(maxsize=64)
def _holds_sql(dialect: str, ids: int) -> str:
    mark, lock = ("?", "") if dialect == "sqlite" else ("%s", " FOR UPDATE")
    marks = ", ".join([mark] * ids)
    return f"SELECT {', '.join(HOLD.c.keys())} FROM budget_hold WHERE id IN ({marks}) ORDER BY id{lock}"


def due_holds(connection: Connection, time_us: int, limit: int) -> Sequence[Row[Any]]:
    """Holds whose time has come, the longest overdue first, without those that somebody else has locked."""
    return connection.exec_driver_sql(_due_sql(connection.dialect.name), (time_us, limit)).all()


def next_due_us(connection: Connection) -> int:
    """When the next hold expires; the end of all time when there is none."""
    sql = "SELECT min(expires_us) FROM budget_hold WHERE state = 0"
    found = connection.exec_driver_sql(sql).scalar()
    return NEVER_US if found is None else int(found)


@lru_cache(maxsize=2)
def _due_sql(dialect: str) -> str:
    """The state is in the text, since an index of part of a table is found only so."""
    mark, lock = ("?", "") if dialect == "sqlite" else ("%s", " FOR UPDATE SKIP LOCKED")
    return (
        f"SELECT {', '.join(HOLD.c.keys())} FROM budget_hold WHERE state = 0 AND expires_us <= {mark} "
        f"ORDER BY expires_us LIMIT {mark}{lock}"
    )


def id_bytes(id: str) -> bytes:
    """An id as it is stored."""
    return bytes.fromhex(id.replace("-", ""))


def hold_id(row: Row[Any]) -> str:
    """The id of a hold's row."""
    return str(UUID(bytes=bytes(row.id)))


def charges_of(row: Row[Any]) -> list[tuple[int, int]]:
    """Account numbers and amounts."""
    return [(number, amount) for amount, *numbers in orjson.loads(row.charges) for number in numbers]


def hold_of(row: Row[Any], keys: Mapping[int, AccountKey]) -> Hold:
    """The hold of a row; the keys of its accounts are known."""
    charges = tuple((keys[number], amount) for number, amount in charges_of(row))
    actual = tuple((unit, amount) for unit, amount in orjson.loads(row.actual))
    return Hold(hold_id(row), charges, row.hold_us, row.expires_us, STATES[row.state], actual)


def hold_row(hold: Hold) -> tuple[Any, ...]:
    """What ``hold_changed`` takes, and ``hold_new`` with the charges behind it."""
    actual = orjson.dumps(hold.actual).decode() if hold.actual else "[]"
    return (id_bytes(hold.id), STATES.index(hold.state), hold.hold_us, hold.expires_us, actual)


def charges_text(hold: Hold, numbers: Mapping[AccountKey, int]) -> str:
    """The charges as they are stored: each amount, and the numbers of the accounts in a row that have it."""
    runs: list[list[int]] = []
    for key, amount in hold.charges:
        if not runs or runs[-1][0] != amount:
            runs.append([amount])
        runs[-1].append(numbers[key])
    return orjson.dumps(runs).decode()


def set_limits(connection: Connection) -> tuple[int, dict[LimitKey, SetLimit]]:
    """The number of the last change, and what is set."""
    found, last = {}, 0
    for row in connection.execute(select(LIMIT)):
        last = max(last, row.changed)
        if row.amount is not None:
            key = LimitKey(row.path, row.pools, row.unit, row.window)
            told = None if row.thresholds is None else tuple(int(percent) for percent in row.thresholds.split())
            found[key] = SetLimit(key, row.amount, row.zone, told)
    return last, found


def last_change(connection: Connection) -> int:
    """The number of the last change of limits."""
    return connection.execute(_LAST_CHANGE).scalar() or 0


def lock_limits(connection: Connection) -> None:
    """One writer at a time changes limits; a file has one writer anyway."""
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql("LOCK TABLE budget_limit IN SHARE ROW EXCLUSIVE MODE")


def write_limits(connection: Connection, limits: Mapping[LimitKey, tuple[SetLimit | None, int]]) -> None:
    """Keep what is set now, with the numbers of the changes."""
    insert = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    values = []
    for key, (limit, number) in limits.items():
        told = None if limit is None or limit.thresholds is None else _thresholds_text(limit.thresholds)
        amount, zone = (None, "UTC") if limit is None else (limit.amount, limit.zone)
        values.append({**key._asdict(), "amount": amount, "zone": zone, "thresholds": told, "changed": number})
    statement = insert(LIMIT)
    later = {name: statement.excluded[name] for name in ("amount", "zone", "thresholds", "changed")}
    connection.execute(statement.on_conflict_do_update(index_elements=list(LimitKey._fields), set_=later), values)


def write_time(connection: Connection, log: int, last_us: int) -> None:
    """Keep the ledger time of a log."""
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    _write(
        connection,
        f"INSERT INTO budget_time (log, last_us) VALUES ({mark}, {mark}) "
        "ON CONFLICT (log) DO UPDATE SET last_us = excluded.last_us",
        (log, last_us),
    )


def parts(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """The values in groups that one statement can take."""
    for start in range(0, len(values), ROWS_PER_STATEMENT_MAX):
        yield values[start : start + ROWS_PER_STATEMENT_MAX]
