"""Logs that are damaged, rolled back, or without a key, as whoever types a command meets them: a clear error with an
exit code and its page, whichever command it is, and nothing lost by it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from policyd.cli.main import run

WORKLOAD = '{"workload": {"tenant": "eu-bank", "project": "support-chat", "model": "llama-3.1-70b-instruct"}}'
WRITES = ("audit", "rotate-key")
VERIFIES, READS, EXPORTS = ("audit", "verify"), ("audit", "search"), ("audit", "export")
Harm = Callable[[Path], None]


def sql(folder: Path, text: str) -> None:
    with closing(sqlite3.connect(folder / "audit.sqlite")) as log, log:
        log.executescript(text)


def overwritten(folder: Path, first: int, end: int) -> None:
    """Pages of the database, as a disk may lose them."""
    with (folder / "audit.sqlite").open("r+b") as file:
        for page in range(first, end):
            file.seek(page * 4_096)
            file.write(b"\xff" * 4_096)


def cut(folder: Path) -> None:
    file = folder / "audit.sqlite"
    os.truncate(file, file.stat().st_size // 2)


def older(folder: Path) -> None:
    """The log of before the last entry, beside the checkpoint of after it."""
    shutil.copy(folder.parent / "older" / "audit.sqlite", folder / "audit.sqlite")


def key_of_another(folder: Path) -> None:
    shutil.copy(folder.parent / "another" / "log.key", folder / "log.key")


NEWER = "UPDATE meta SET value = '99' WHERE key = 'schema_version'"
HARMS: dict[str, Harm] = {
    "no database": lambda folder: overwritten(folder, 0, 1),
    "pages lost": lambda folder: overwritten(folder, 20, 150),
    "cut in half": cut,
    "empty": lambda folder: os.truncate(folder / "audit.sqlite", 0),
    "gone": lambda folder: (folder / "audit.sqlite").unlink(),
    "a table gone": lambda folder: sql(folder, "DROP TABLE budget_account"),
    "a newer schema": lambda folder: sql(folder, "UPDATE alembic_version SET version_num = '0099'; " + NEWER),
    "rolled back": older,
    "key missing": lambda folder: (folder / "log.key").unlink(),
    "key of another": key_of_another,
    "key open to others": lambda folder: (folder / "log.key").chmod(0o644),
    "key damaged": lambda folder: (folder / "log.key").write_bytes(b"PRIVATE+KEY+nonsense\n") and None,
    "public key missing": lambda folder: (folder / "log.pub").unlink(),
    "public key damaged": lambda folder: (folder / "log.pub").write_text("nonsense\n") and None,
    "checkpoint damaged": lambda folder: (folder / "log.checkpoint").write_text("nonsense\n") and None,
    "personal key missing": lambda folder: (folder / "personal.key").unlink(),
    "keys of persons damaged": lambda folder: (folder / "personal.sqlite").write_bytes(b"nonsense" * 1_000) and None,
}  # fmt: skip

DAMAGED, LOST, KEY, UNREADABLE = "audit.tampered", "audit.rolled_back", "audit.key", "audit.unavailable"
CASES = [
    ("no database", WRITES, 4, DAMAGED, "is damaged"),
    ("no database", VERIFIES, 4, DAMAGED, "is damaged"),
    ("no database", READS, 4, DAMAGED, "is damaged"),
    ("pages lost", VERIFIES, 4, DAMAGED, "malformed"),
    ("pages lost", READS, 4, DAMAGED, "malformed"),
    ("pages lost", EXPORTS, 4, DAMAGED, "malformed"),
    ("cut in half", WRITES, 4, DAMAGED, "malformed"),
    ("cut in half", EXPORTS, 4, DAMAGED, "malformed"),
    ("empty", WRITES, 4, LOST, "log.checkpoint was signed over it"),
    ("empty", VERIFIES, 4, LOST, "log.checkpoint was signed over it"),
    ("gone", WRITES, 4, LOST, "log.checkpoint was signed over it"),
    ("gone", READS, 4, LOST, "log.checkpoint was signed over it"),
    ("a table gone", VERIFIES, 4, DAMAGED, "no such table"),
    ("a newer schema", WRITES, 1, UNREADABLE, "use the version of policyd that wrote it"),
    ("a newer schema", READS, 1, UNREADABLE, "use the version of policyd that wrote it"),
    ("rolled back", WRITES, 4, LOST, "the log was rolled back"),
    ("rolled back", VERIFIES, 4, LOST, "it was rolled back"),
    ("key missing", WRITES, 1, KEY, "log.key is missing, and the log was signed with it"),
    ("key of another", WRITES, 1, KEY, "and this log is"),
    ("key open to others", WRITES, 1, KEY, "its mode must be 0600"),
    ("key damaged", WRITES, 1, KEY, "log.key cannot be used"),
    ("public key missing", VERIFIES, 1, KEY, "log.pub is missing"),
    ("public key damaged", WRITES, 1, KEY, "log.pub cannot be used"),
    ("public key damaged", VERIFIES, 1, KEY, "log.pub cannot be used"),
    ("checkpoint damaged", WRITES, 4, DAMAGED, "log.checkpoint does not verify"),
    ("checkpoint damaged", VERIFIES, 4, DAMAGED, "log.checkpoint is no checkpoint"),
    ("personal key missing", WRITES, 1, KEY, "personal.key is missing"),
    ("keys of persons damaged", WRITES, 1, UNREADABLE, "keys of personal fields cannot be"),
]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``log`` with some decisions, ``older`` as it was before the last one, and ``another``."""
    folder = tmp_path_factory.mktemp("bad-logs")
    (folder / "workload.json").write_text(WORKLOAD)

    def decide(name: str) -> None:
        assert run(["decide", str(folder / "workload.json"), "--data-dir", str(folder / name)]) == 0

    decide("log")
    shutil.copytree(folder / "log", folder / "older")
    decide("log")
    shutil.copytree(folder / "older", folder / "another")
    for name in ("audit.sqlite", "log.key", "log.pub", "log.checkpoint"):
        (folder / "another" / name).unlink()
    decide("another")
    return folder


@pytest.fixture
def copied(logs: Path, tmp_path: Path) -> Path:
    """A copy of them for one test."""
    return shutil.copytree(logs, tmp_path / "logs") / "log"


@pytest.mark.parametrize(("harm", "command", "code", "page", "words"), CASES, ids=lambda case: str(case))
def test_what_is_wrong_with_a_log_is_told_and_nothing_is_lost(
    harm: str,
    command: tuple[str, ...],
    code: int,
    page: str,
    words: str,
    copied: Path,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    HARMS[harm](copied)
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    assert run([*command, "--data-dir", str(copied)]) == code
    told = capsys.readouterr().err
    assert words in " ".join(told.split())
    assert f"see: docs/errors/{page}.md" in told
    assert (repository / "docs" / "errors" / f"{page}.md").exists()
    for name in ("audit.sqlite", "log.key", "log.checkpoint"):
        found = copied / name
        # The log keeps what it had: nothing takes the place of what is damaged or gone.
        assert (found.read_bytes() if found.exists() else None) == before.get(name)


def test_keys_of_persons_that_are_gone_are_told_of(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copied / "personal.sqlite").unlink()
    assert run([*WRITES, "--data-dir", str(copied)]) == 0
    assert "what other keys have encrypted stays unreadable" in caplog.text


@pytest.mark.parametrize("part", [0.0, 0.3, 0.5, 0.9, 0.999])
def test_an_export_that_is_cut_off_is_told_at_any_place(
    part: float, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "log.jsonl"
    assert run([*EXPORTS, "--data-dir", str(copied), "--file", str(file)]) == 0
    assert run([*VERIFIES, str(file)]) == 0
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * part)])
    capsys.readouterr()
    assert run([*VERIFIES, str(file)]) == 4
    assert "see: docs/errors/audit." in capsys.readouterr().err
    assert run([*EXPORTS, "--data-dir", str(copied), "--file", str(file)]) == 0
    assert file.read_bytes() == whole, "it goes on where its whole lines end"
