"""Proposals that wait for a second person, and the legal holds that two persons have placed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make both tables; a log that had none has nothing waiting, and nothing held."""
    op.create_table(
        "proposal",
        sa.Column("id", sa.LargeBinary, primary_key=True),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("proposer", sa.Text, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "legal_hold",
        sa.Column("id", sa.LargeBinary, primary_key=True),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
