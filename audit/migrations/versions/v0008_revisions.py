"""The states of revisions: what was seen, judged, refused, and what is to be live."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the table; what a log without it has had live is taken over by the next process that follows a source."""
    op.create_table(
        "revision",
        sa.Column("kind", sa.SmallInteger, primary_key=True),
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("label", sa.Text, nullable=True),
        sa.Column("blob", sa.Text, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("verb", sa.SmallInteger, nullable=False),
        sa.Column("said", sa.Text, nullable=False),
        sa.Column("gates", sa.Text, nullable=False),
        sa.Column("paused", sa.SmallInteger, nullable=False),
        sa.Column("seen_us", sa.BigInteger, nullable=False),
        sa.Column("since_us", sa.BigInteger, nullable=False),
        sa.Column("served_us", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
