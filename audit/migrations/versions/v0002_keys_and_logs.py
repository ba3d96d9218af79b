"""Idempotency keys, which the first release made beside the log when it first wrote one; and the names of logs.

A file holds one log, number 0. A database that several replicas write holds one for each.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make both tables; a log that was begun by the first release gives its name to number 0."""
    connection = op.get_bind()
    if "idempotency" not in sa.inspect(connection).get_table_names():
        op.create_table(
            "idempotency",
            sa.Column("scope", sa.LargeBinary, primary_key=True),
            sa.Column("request", sa.LargeBinary, nullable=False),
            sa.Column("decision", sa.Text, nullable=False),
            sa.Column("expires_us", sa.BigInteger, nullable=False),
            sqlite_with_rowid=False,
        )
        op.create_index("ix_idempotency_expires_us", "idempotency", ["expires_us"])
    op.create_table(
        "log",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("origin", sa.Text, nullable=False, unique=True),
    )
    op.execute("INSERT INTO log (number, origin) SELECT 0, value FROM meta WHERE key = 'origin'")
