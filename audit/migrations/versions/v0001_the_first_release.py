"""The tables of the first release, which made them without Alembic; its logs are stamped with this revision.

On PostgreSQL, which the first release did not know, ``entry`` and ``body`` are partitioned by the time in the id.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

WORDS = (
    "tenant",
    "project",
    "environment",
    "principal",
    "outcome",
    "denied_by",
    "pool",
    "provider",
    "country",
    "model",
    "model_version",
    "classification",
    "sla_class",
    "mode",
    "policy_commit",
    "fleet_commit",
    "sheet",
)
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "meta",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("value", sa.String, nullable=False),
    )
    op.create_table(
        "word",
        sa.Column("number", NUMBER, primary_key=True),
        sa.Column("text", sa.Text, nullable=False, unique=True),
    )
    if op.get_bind().dialect.name == "postgresql":
        _months()
    else:
        _entries()
    _terms("sheet_term", sa.Column("sheet", sa.Integer, primary_key=True))
    op.create_table(
        "blob",
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("encoding", sa.String, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("kind", sa.Integer, nullable=False),
        sa.Column("time_us", NUMBER, nullable=False),
        *(sa.Column(name, sa.Integer) for name in WORDS),
        sa.Column("request_id", sa.Text),
        sa.Column("leaf_hash", sa.LargeBinary, nullable=False),
    ]


def _entries() -> None:
    op.create_table(
        "entry",
        sa.Column("index", NUMBER, primary_key=True),
        sa.Column("id", sa.LargeBinary, nullable=False, unique=True),
        *_columns(),
    )
    _indexes()
    op.create_table(
        "body",
        sa.Column("index", NUMBER, sa.ForeignKey("entry.index"), primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    _terms("entry_term", sa.Column("index", NUMBER, sa.ForeignKey("entry.index"), primary_key=True))


def _months() -> None:
    op.create_table("entry", *_place(), *_columns(), sa.UniqueConstraint("id"), postgresql_partition_by="RANGE (id)")
    _indexes()
    op.create_table(
        "body",
        *_place(),
        sa.Column("body", sa.LargeBinary, nullable=False),
        postgresql_partition_by="RANGE (id)",
    )
    _terms("entry_term", sa.Column("index", NUMBER, primary_key=True))


def _place() -> tuple[sa.Column[Any], sa.Column[Any]]:
    return sa.Column("index", NUMBER, primary_key=True), sa.Column("id", sa.LargeBinary, primary_key=True)


def _indexes() -> None:
    has_request = sa.text("request_id IS NOT NULL")
    op.create_index("entry_by_time", "entry", ["time_us"])
    op.create_index("entry_by_tenant", "entry", ["tenant", "time_us"])
    op.create_index("entry_by_request", "entry", ["request_id"], sqlite_where=has_request, postgresql_where=has_request)


def _terms(table: str, owner: sa.Column[Any]) -> None:
    op.create_table(
        table,
        sa.Column("field", sa.Integer, primary_key=True),
        sa.Column("value", sa.Integer, primary_key=True),
        owner,
        sqlite_with_rowid=False,
    )
