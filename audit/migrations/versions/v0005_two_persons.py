"""Proposals that wait for a second person, and what two persons have done: legal holds and erasures."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the tables; a log that had none has nothing waiting, nothing held and nothing to be destroyed."""
    op.create_table(
        "proposal",
        sa.Column("id", sa.LargeBinary, primary_key=True),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "legal_hold",
        sa.Column("id", sa.LargeBinary, primary_key=True),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("token", sa.Text, nullable=True),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "erasure",
        sa.Column("id", sa.LargeBinary, primary_key=True),
        sa.Column("token", sa.Text, primary_key=True),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_erasure_state", "erasure", ["state"])
