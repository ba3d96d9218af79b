"""The search index: full blocks, and which of their entries have a value; the terms of a sheet by the sheet.

The entries of a log that was begun before are indexed by whoever opens it for writing next, which is at once.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make both tables and the index."""
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "block",
        sa.Column("number", number, primary_key=True, autoincrement=False),
        sa.Column("first_us", number, nullable=False),
        sa.Column("last_us", number, nullable=False),
        sa.Column("times_us", sa.LargeBinary, nullable=False),
    )
    op.create_index("block_by_time", "block", ["last_us", "number"])
    op.create_table(
        "posting",
        sa.Column("field", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("value", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("block", number, primary_key=True, autoincrement=False),
        sa.Column("offsets", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("sheet_term_by_sheet", "sheet_term", ["sheet"])
