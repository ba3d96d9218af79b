"""How Alembic runs here: on the connection that ``audit.schema`` hands over, inside its transaction.

Rules: no address and no configuration file; whoever opened the connection begins, commits and rolls back, so that a
migration that fails leaves the log as it was.
"""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=False)
context.run_migrations()
