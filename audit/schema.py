"""Which schema a log has, and bringing it up to the one that this program knows.

    empty ──sqlite.sql──► head              a file: what every revision together makes, written down
    empty ──every revision──► head          PostgreSQL
    first release ──stamped 0001──► …       it made its tables without Alembic
    older revision ──the missing ones──► head
    head                                    nothing is done, and Alembic is not even loaded

The revisions are the files of ``migrations/versions``, one chain for every table of the database, whoever fills it:
``v0003_what_it_is_for.py`` is revision 0003. ``meta`` repeats the number for programs that ask no Alembic.
``sqlite.sql`` is printed by ``scripts/schema`` from these files, and a test holds it to them: a new log need not wait
for Alembic.

Rules: only opening for writing changes a schema, in the transaction of the caller; a reader recognises or refuses.
It refuses: a database of another program, a log of a newer schema, a log whose two version numbers disagree.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select

from audit.errors import SchemaUnknown
from audit.tables import META

MIGRATIONS: Final = Path(__file__).with_name("migrations")
FIRST: Final = "0001"
STATEMENT_END: Final = ";\n\n"
STAMP: Final = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


@cache
def head() -> str:
    """The newest revision that this program knows."""
    names = [path.name for path in (MIGRATIONS / "versions").glob("v*.py")]
    return max(found[1] for name in names if (found := re.match(r"v(\d{4})_", name)))


def create_or_upgrade(connection: Connection, *, create: bool) -> bool:
    """Bring the database to ``head()``, and tell whether that made it; does not commit.

    Raises ``SchemaUnknown``, with nothing changed, when it is no log, or one of a newer schema; an empty database is no
    log unless ``create``.
    """
    tables = inspect(connection).get_table_names()
    if create and not tables:
        if connection.dialect.name == "sqlite":
            for statement in (MIGRATIONS / "sqlite.sql").read_text(encoding="utf-8").split(STATEMENT_END)[:-1]:
                connection.exec_driver_sql(statement)
        else:
            migrate(connection)
        connection.execute(META.insert(), {"key": "schema_version", "value": str(int(head()))})
        return True
    if _revision(connection, tables) != head():
        migrate(connection, stamp_first=STAMP.name not in tables)
        connection.execute(META.update().where(META.c.key == "schema_version").values(value=str(int(head()))))
    return False


def recognise(connection: Connection) -> None:
    """Raises ``SchemaUnknown`` unless the database is a log of exactly this schema."""
    revision = _revision(connection, inspect(connection).get_table_names())
    if revision != head():
        raise SchemaUnknown(
            f"the log has schema version {int(revision)}, this program knows {int(head())}; "
            "it is brought up to date when it is next opened for writing, by policyd serve or by a decision"
        )


def _revision(connection: Connection, tables: list[str]) -> str:
    """The revision of a log, at most ``head()``."""
    if META.name not in tables:
        raise SchemaUnknown("this is not a log of decisions; it was left untouched")
    told = connection.execute(select(META.c.value).where(META.c.key == "schema_version")).scalar()
    stamped = connection.execute(select(STAMP.c.version_num)).scalars().all() if STAMP.name in tables else [FIRST]
    if told is None or [f"{told:0>4}"] != stamped or stamped[0] > head():
        raise SchemaUnknown(
            f"the log has schema version {told}, this program knows {int(head())}; "
            "use the version of policyd that wrote it, or a newer one"
        )
    return str(stamped[0])


def migrate(connection: Connection, *, stamp_first: bool = False) -> None:
    """Every revision that is missing, by Alembic; does not commit."""
    # Imported here because it takes a quarter of a second, which a log of the current schema does without.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    if stamp_first:
        command.stamp(config, FIRST)
    command.upgrade(config, "head")
