"""Waivers: what persons have lifted of the rules, from when to when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "waiver",
        sa.Column("id", sa.LargeBinary, primary_key=True),
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        *(sa.Column(name, sa.Text, nullable=True) for name in ("project", "policy", "rule", "rule_digest")),
        *(sa.Column(name, sa.Text, nullable=True) for name in ("pool", "model")),
        sa.Column("approval", sa.LargeBinary, nullable=False),
        sa.Column("from_us", sa.BigInteger, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
