"""The tables of the tree: nodes that proofs are made from, and checkpoints as they were signed.

    tree_node        every node of the levels 8, 16, 24, …: one row for 256 entries, and one for 256 of those
    log_checkpoint   signed notes, by the size that they are over

The nodes between are hashed again from the leaf hashes of at most 256 entries, or from 256 nodes, when a proof needs
them: a row an entry would cost every decision what one proof in a thousand saves.

Rules: rows are only ever added, in the transaction of the entries that they are about; ``log`` is the number of the
log, since one database may hold several.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import BigInteger, Integer, LargeBinary, Table
from sqlmodel import Field, SQLModel

STEP: Final = 8
"""One level in so many is stored."""

# As in ``audit.tables``: SQLite stores both the same way, other databases need 64 bits named.
_NUMBER = BigInteger().with_variant(Integer, "sqlite")


class TreeNodeRow(SQLModel, table=True):
    """One node of the tree of one log."""

    __tablename__ = "tree_node"
    __table_args__ = {"sqlite_with_rowid": False}

    log: int = Field(primary_key=True)
    level: int = Field(primary_key=True)
    index: int = Field(sa_type=_NUMBER, primary_key=True)
    hash: bytes = Field(sa_type=LargeBinary)


class CheckpointRow(SQLModel, table=True):
    """One signed note over the first ``size`` entries of one log."""

    __tablename__ = "log_checkpoint"
    __table_args__ = {"sqlite_with_rowid": False}

    log: int = Field(primary_key=True)
    size: int = Field(sa_type=_NUMBER, primary_key=True)
    time_us: int = Field(sa_type=_NUMBER)
    note: bytes = Field(sa_type=LargeBinary)


def _table(row: type[SQLModel]) -> Table:
    found: Any = row.__dict__["__table__"]
    assert isinstance(found, Table)
    return found


TREE_NODE: Final = _table(TreeNodeRow)
CHECKPOINT: Final = _table(CheckpointRow)
