"""The few statements of every batch, without what is between us and the driver of a file.

SQLAlchemy takes as long for a statement of its own as SQLite takes to run it, and a batch has eight of them. Rules: the
transaction is the connection's, which was begun and will be committed there; nothing is read by it; an error is that of
the driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection


def run(connection: Connection, sql: str, values: Sequence[Any]) -> None:
    """Run a statement that writes, its values in their places."""
    if connection.dialect.name == "sqlite":
        driver: Any = connection.connection.dbapi_connection
        driver.execute(sql, values)
    else:
        connection.exec_driver_sql(sql, tuple(values))
