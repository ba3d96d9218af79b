"""The tables of the ledger. They come from ``audit/migrations``, beside those of the log.

    budget_account  one limit of one level in one window, with its balance
    budget_hold     one reservation; its charges are lists of an amount and the numbers of its accounts, as JSON
    budget_time     the ledger time that each log has reached
    budget_limit    what somebody has set for an account beside the fleet; without an amount it was given back

``leased`` is what an account has lent to a place that decides without asking it each time. Nobody lends yet: every
decision asks the one writer, so it is 0, and it counts against the limit from the first release on because a limit that
grew a term later could not be checked on rows written before.

Rules: no balance can break its invariant, since the database checks it too; rows of past windows stay, because late
settlements are charged to them.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlmodel import Field, SQLModel

SOUND: Final = (
    "reserved >= 0 AND spent >= 0 AND leased >= 0 AND debt >= 0 "
    'AND reserved + spent + leased <= "limit" + debt AND "limit" >= 0'
)

# SQLite numbers rows by itself only where the type is exactly INTEGER.
_NUMBER = BigInteger().with_variant(Integer, "sqlite")


class AccountRow(SQLModel, table=True):
    """One account; ``number`` is how holds name it, and the order in which accounts are locked."""

    __tablename__ = "budget_account"
    __table_args__ = (
        UniqueConstraint("path", "pools", "unit", "window", "start_us", name="budget_account_key"),
        CheckConstraint(SOUND, name="budget_account_sound"),
    )

    number: int | None = Field(default=None, sa_column=Column("number", _NUMBER, primary_key=True))
    path: str = Field(sa_type=Text)
    pools: str = Field(sa_type=Text)
    unit: str = Field(sa_type=Text)
    window: str = Field(sa_type=Text)
    start_us: int = Field(sa_type=BigInteger)
    end_us: int | None = Field(sa_type=BigInteger)
    limit: int = Field(sa_type=BigInteger)
    thresholds: str = Field(sa_type=Text)
    reserved: int = Field(sa_type=BigInteger)
    spent: int = Field(sa_type=BigInteger)
    leased: int = Field(sa_type=BigInteger)
    debt: int = Field(sa_type=BigInteger)
    sequence: int = Field(sa_type=BigInteger)
    crossed: int = Field(sa_type=SmallInteger)


class HoldRow(SQLModel, table=True):
    """One reservation; ``state`` is its position in ``policyd.ledger.rules.STATES``."""

    __tablename__ = "budget_hold"
    __table_args__ = (
        Index(
            "budget_hold_due",
            "expires_us",
            sqlite_where=text("state = 0"),
            postgresql_where=text("state = 0"),
        ),
        {"sqlite_with_rowid": False},
    )

    id: bytes = Field(sa_type=LargeBinary, primary_key=True)
    state: int = Field(sa_type=SmallInteger)
    hold_us: int = Field(sa_type=BigInteger)
    expires_us: int = Field(sa_type=BigInteger)
    charges: str = Field(sa_type=Text)
    actual: str = Field(sa_type=Text)


class TimeRow(SQLModel, table=True):
    """The latest ledger time of one log."""

    __tablename__ = "budget_time"

    log: int = Field(sa_column=Column("log", Integer, primary_key=True, autoincrement=False))
    last_us: int = Field(sa_type=BigInteger)


class LimitRow(SQLModel, table=True):
    """A limit that somebody has set; ``changed`` is the number of the change, by which other writers hear of it."""

    __tablename__ = "budget_limit"
    __table_args__ = (CheckConstraint("amount >= 0", name="budget_limit_sound"),)

    path: str = Field(sa_type=Text, primary_key=True)
    pools: str = Field(sa_type=Text, primary_key=True)
    unit: str = Field(sa_type=Text, primary_key=True)
    window: str = Field(sa_type=Text, primary_key=True)
    amount: int | None = Field(sa_type=BigInteger)
    zone: str = Field(sa_type=Text)
    thresholds: str | None = Field(sa_type=Text)
    changed: int = Field(sa_type=BigInteger)


def _table(row: type[SQLModel]) -> Table:
    found: Any = row.__dict__["__table__"]
    assert isinstance(found, Table)
    return found


ACCOUNT: Final = _table(AccountRow)
HOLD: Final = _table(HoldRow)
TIME: Final = _table(TimeRow)
LIMIT: Final = _table(LimitRow)
BUDGET_TABLES: Final = (ACCOUNT, HOLD, TIME, LIMIT)
