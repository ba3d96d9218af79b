"""The tables of the search index: full blocks of a log, and what their entries say.

    block     one row for a full block: the entries of a log whose places share all but their lowest bits; their times
    posting   one row for a field, a value of it and a block that has it: which entries of the block do

Rules: rows are added in the transaction of the block's last entry, and made again by ``audit.removal`` alone; ``value``
is the number of a word (for the field ``kind`` that of the kind), so that what a value says can be anything, a keyed
hash too; neither is evidence, and ``audit.block_check`` compares both with the entries.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, Table
from sqlmodel import Field, SQLModel

# As in ``audit.tables``: SQLite stores both the same way, other databases need 64 bits named.
_NUMBER = BigInteger().with_variant(Integer, "sqlite")


class BlockRow(SQLModel, table=True):
    """One full block: its number, the first and the last time in it, and the time of every entry."""

    __tablename__ = "block"
    __table_args__ = (Index("block_by_time", "last_us", "number"),)

    number: int = Field(sa_column=Column("number", _NUMBER, primary_key=True, autoincrement=False))
    first_us: int = Field(sa_type=_NUMBER)
    last_us: int = Field(sa_type=_NUMBER)
    times_us: bytes = Field(sa_type=LargeBinary)


class PostingRow(SQLModel, table=True):
    """Which entries of a block have this value of this field."""

    __tablename__ = "posting"
    __table_args__ = {"sqlite_with_rowid": False}

    field: int = Field(primary_key=True)
    value: int = Field(primary_key=True)
    block: int = Field(sa_type=_NUMBER, primary_key=True)
    offsets: bytes = Field(sa_type=LargeBinary)


def _table(row: type[SQLModel]) -> Table:
    found: Any = row.__dict__["__table__"]
    assert isinstance(found, Table)
    return found


BLOCK: Final = _table(BlockRow)
POSTING: Final = _table(PostingRow)
BLOCK_TABLES: Final = (BLOCK, POSTING)
