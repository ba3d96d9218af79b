"""Where the log of these settings lives: in a file of the data directory, or in a database that other writers share.

Rules: the address of a database comes from a file, since it holds a password, and no message repeats it.
It refuses: a database without the driver for it, which is an extra.
"""

from __future__ import annotations

from audit.errors import LogUnavailable
from audit.stores import SqliteStore
from policyd.errors import ConfigError
from policyd.services.data_directory import LOG_FILE, DataDirectory
from policyd.settings import Settings

ADDRESS_MAX_CHARS = 8_192


def directory_of(settings: Settings) -> DataDirectory:
    """The data directory, with the store of its log. Raises ``ConfigError``; reads a file and opens nothing."""
    file = settings.audit.database_url_file
    if file is None:
        store = SqliteStore(settings.data_dir / LOG_FILE, settings.audit.personal_keys_path)
        return DataDirectory(settings.data_dir, store, settings.audit.personal_key_file)
    try:
        # Imported here because its driver takes an eighth of a second, and is not always installed.
        from audit.postgresql_store import PostgresqlStore
    except ImportError as error:
        raise ConfigError(
            f"audit.database_url_file is set, and the driver of PostgreSQL cannot be loaded: {error}",
            remedy="install policyd with its extra postgresql, or requirements/postgresql.lock",
        ) from None
    try:
        with file.open(encoding="utf-8") as opened:
            address = opened.read(ADDRESS_MAX_CHARS).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file audit.database_url_file={file} cannot be read: {error}") from None
    try:
        deadline_ms = settings.audit.database_deadline_ms
        name = settings.data_dir / "origin"
        database = PostgresqlStore(address, name, settings.audit.origin, deadline_ms=deadline_ms)
    except LogUnavailable as error:
        raise ConfigError(f"{file}: {error}") from None
    return DataDirectory(settings.data_dir, database, settings.audit.personal_key_file)
