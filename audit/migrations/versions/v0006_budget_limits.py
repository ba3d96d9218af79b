"""Limits that people set beside the fleet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the table; nobody has set anything yet."""
    op.create_table(
        "budget_limit",
        *(sa.Column(name, sa.Text, primary_key=True) for name in ("path", "pools", "unit", "window")),
        sa.Column("amount", sa.BigInteger, nullable=True),
        sa.Column("zone", sa.Text, nullable=False),
        sa.Column("thresholds", sa.Text, nullable=True),
        sa.Column("changed", sa.BigInteger, nullable=False),
        sa.CheckConstraint("amount >= 0", name="budget_limit_sound"),
    )
