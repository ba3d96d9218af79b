"""Where the log of some settings lives, and what is wrong with the file that names a database."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from audit.postgresql_store import PostgresqlStore
from audit.stores import SqliteStore
from policyd.errors import ConfigError
from policyd.services.log_place import directory_of
from policyd.settings import Settings, load_settings

SECRET = "a%20secret"


def settings(folder: Path, content: str | bytes | None, **audit: str) -> Settings:
    file = folder / "database-url"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    chosen = {"data_dir": folder / "data", "audit": {"database_url_file": file, **audit}}
    return load_settings(environment={}, flags=chosen)


def test_without_a_database_the_log_is_a_file(tmp_path: Path) -> None:
    found = directory_of(load_settings(environment={}, flags={"data_dir": tmp_path})).store
    assert isinstance(found, SqliteStore)
    assert found.name == str(tmp_path / "audit.sqlite")


def test_a_database_is_named_without_its_secret(tmp_path: Path) -> None:
    content = f"postgresql://policyd:{SECRET}@db.example:6543/logs?sslmode=verify-full\n"
    found = directory_of(settings(tmp_path, content, origin="replica-1")).store
    assert isinstance(found, PostgresqlStore)
    assert found.name == "the PostgreSQL database logs at db.example:6543"
    assert not (tmp_path / "data").exists(), "nothing is opened or made"


@pytest.mark.parametrize(("content", "words"), [
    (None, "cannot be read"),
    (b"\xff\xfe", "cannot be read"),
    (f"mysql://policyd:{SECRET}@nowhere", "cannot be understood"),
    (f"postgresql://policyd:{SECRET}@[half", "cannot be understood"),
])  # fmt: skip
def test_what_is_wrong_with_the_address_is_told_without_it(tmp_path: Path, content: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        directory_of(settings(tmp_path, content))
    assert SECRET not in f"{caught.value} {caught.value.__cause__!r}"


@pytest.mark.parametrize("origin", ["", "two words", "n\u00f6", "x" * 257])
def test_a_name_of_a_log_is_plain(tmp_path: Path, origin: str) -> None:
    with pytest.raises(ConfigError, match="origin"):
        settings(tmp_path, "", origin=origin)


def test_a_missing_driver_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "audit.postgresql_store", None)
    with pytest.raises(ConfigError, match="driver of PostgreSQL") as caught:
        directory_of(settings(tmp_path, "postgresql:///logs"))
    assert "postgresql" in caught.value.remedy_text
