"""Budgets: accounts with their balances, reservations, and the ledger time of each log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

SOUND = (
    "reserved >= 0 AND spent >= 0 AND leased >= 0 AND debt >= 0 "
    'AND reserved + spent + leased <= "limit" + debt AND "limit" >= 0'
)


def upgrade() -> None:
    """Make the three tables; a log that had none has spent nothing yet."""
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    amounts = [sa.Column(name, sa.BigInteger, nullable=False) for name in ("reserved", "spent", "leased", "debt")]
    op.create_table(
        "budget_account",
        sa.Column("number", number, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("path", "pools", "unit", "window")),
        sa.Column("start_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger, nullable=True),
        sa.Column("limit", sa.BigInteger, nullable=False),
        sa.Column("thresholds", sa.Text, nullable=False),
        *amounts,
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("crossed", sa.SmallInteger, nullable=False),
        sa.UniqueConstraint("path", "pools", "unit", "window", "start_us", name="budget_account_key"),
        sa.CheckConstraint(SOUND, name="budget_account_sound"),
    )
    op.create_table(
        "budget_hold",
        sa.Column("id", sa.LargeBinary, primary_key=True),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("hold_us", sa.BigInteger, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sa.Column("charges", sa.Text, nullable=False),
        sa.Column("actual", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    held = sa.text("state = 0")
    op.create_index("budget_hold_due", "budget_hold", ["expires_us"], sqlite_where=held, postgresql_where=held)
    op.create_table(
        "budget_time",
        sa.Column("log", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("last_us", sa.BigInteger, nullable=False),
    )
