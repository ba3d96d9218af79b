"""A backup of a log in a file, and the way of its files back into a data directory.

    audit.sqlite ──SQLite's online backup, beside the writer──► a draft ──verified──► the named directory
    backup.json     what is in it: name of the log, entries, size that is signed, hash of the database
    log.pub, log.checkpoint     the public keys, and the newest checkpoint of the copy

The database holds whatever its entries name: sheets, facts, policies and fleets.

Rules: a copy that does not verify is no backup; the writer goes on meanwhile; putting a backup back removes nothing:
the files that stood there are kept in a directory beside it; a newer checkpoint in the data directory is left alone.
It refuses: a signing key in a backup, because whoever has it writes history; a log in a database, which has tools of
its own.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import orjson

from audit.errors import AuditFailure
from audit.signer import read_public, write_durably, write_public
from audit.stores import SqliteStore
from audit.verify import verify_sqlite
from policyd.errors import AuditError, AuditTampered, RequestError
from policyd.services.checkpoints import LogFiles, audit_error
from policyd.services.clock import now_us, rfc3339
from policyd.services.data_directory import DataDirectory

FORMAT: Final = "policyd-backup@v1"
MANIFEST: Final = "backup.json"
MANIFEST_MAX_BYTES: Final = 16 * 1024
_DATABASE: Final = "audit.sqlite"
_READ_BYTES: Final = 1024 * 1024


def back_up(directory: DataDirectory, target: Path) -> dict[str, Any]:
    """Copy the log into ``target``, which must not be there yet. Answers what the backup says of itself."""
    source = _file_of(directory)
    if target.exists():
        raise RequestError(f"{target} is there already", remedy="name a directory that does not exist yet")
    draft = target.with_name(f"{target.name}.draft-{os.getpid()}")
    try:
        keys = read_public(LogFiles.within(directory.path).public)
        draft.mkdir(parents=True, mode=0o700)
        try:
            _copy(source, draft / _DATABASE)
            verdict = verify_sqlite(draft / _DATABASE, keys=keys, key_given=False)
            if verdict.error is not None:
                raise AuditTampered(f"the log in {directory.path} does not verify: {verdict.fault}")
            write_public(draft / LogFiles.within(draft).public.name, keys)
            signed = _newest_note(draft / _DATABASE)
            if signed is not None:
                write_durably(LogFiles.within(draft).checkpoint, signed, 0o644)
            manifest = {
                "format": FORMAT,
                "log": verdict.origin,
                "entries": verdict.entries,
                "signed": verdict.covered,
                "time": rfc3339(now_us()),
                "bytes": (draft / _DATABASE).stat().st_size,
                "sha256": _hash(draft / _DATABASE),
            }
            write_durably(draft / MANIFEST, orjson.dumps(manifest, option=orjson.OPT_INDENT_2), 0o644)
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except (OSError, sqlite3.Error) as error:
        raise AuditError(f"the backup cannot be written to {target}: {error}") from error
    except AuditFailure as error:
        raise audit_error("the log cannot be backed up", error) from error
    return manifest


def put_back(directory: DataDirectory, backup: Path) -> dict[str, Any]:
    """Put a backup where the log of a locked data directory is. Answers its manifest, and where the old files are."""
    place = _file_of(directory)
    manifest = _manifest(backup)
    files, theirs = LogFiles.within(directory.path), LogFiles.within(backup)
    try:
        if _hash(backup / _DATABASE) != manifest["sha256"]:
            raise AuditTampered(f"{backup / _DATABASE} is not what {MANIFEST} says", remedy="take another backup")
        _check_same_log(files, manifest)
        draft = place.with_name(f"{place.name}.restored")
        shutil.copyfile(backup / _DATABASE, draft)
        _sync(draft)
        aside = _set_aside(directory.path, place)
        draft.replace(place)
        for own, kept in ((files.public, theirs.public), (files.checkpoint, theirs.checkpoint)):
            if not own.exists() and kept.exists():
                write_durably(own, kept.read_bytes(), 0o644)
        _sync(directory.path)
    except OSError as error:
        raise AuditError(f"the backup cannot be put into {directory.path}: {error}") from error
    return {**manifest, "set_aside": None if aside is None else str(aside)}


def _file_of(directory: DataDirectory) -> Path:
    if not isinstance(directory.store, SqliteStore):
        raise RequestError(
            f"the log is in {directory.store.name}",
            remedy="back it up and bring it back with pg_dump, or a base backup with archived WAL; "
            "then go on with `policyd audit restore --plan`",
        )
    return directory.store.path


def _copy(source: Path, target: Path) -> None:
    if not source.exists():
        raise AuditError(f"there is no log at {source}", remedy="name the directory of the log with --data-dir")
    address = f"file:{quote(str(source.absolute()))}?mode=ro"
    with closing(sqlite3.connect(address, uri=True)) as read, closing(sqlite3.connect(target)) as written:
        # In one step, which is one read transaction: page by page, each commit of the writer would begin it again.
        read.backup(written, pages=-1)
        written.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    _sync(target)


def _newest_note(database: Path) -> bytes | None:
    with closing(sqlite3.connect(f"file:{quote(str(database.absolute()))}?mode=ro", uri=True)) as connection:
        row = connection.execute("SELECT note FROM log_checkpoint WHERE log = 0 ORDER BY size DESC LIMIT 1").fetchone()
    return None if row is None else bytes(row[0])


def _manifest(backup: Path) -> dict[str, Any]:
    try:
        with (backup / MANIFEST).open("rb") as file:
            found = orjson.loads(file.read(MANIFEST_MAX_BYTES))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{backup} is no backup of a log: {error}", remedy="name what audit backup has made"
        ) from None
    if not isinstance(found, dict) or found.get("format") != FORMAT or not {"log", "sha256"} <= found.keys():
        raise RequestError(f"{backup / MANIFEST} is not of the format {FORMAT}")
    return found


def _check_same_log(files: LogFiles, manifest: dict[str, Any]) -> None:
    try:
        names = {key.name for key in read_public(files.public)} if files.public.exists() else set()
    except AuditFailure as error:
        raise audit_error("the log cannot be restored", error) from error
    if names and manifest["log"] not in names:
        raise RequestError(f"the backup is of the log {manifest['log']}, and not of {', '.join(sorted(names))}")


def _set_aside(folder: Path, place: Path) -> Path | None:
    """Move what stands there, with its write-ahead log, into a directory of its own."""
    found = [path for end in ("", "-wal", "-shm") if (path := place.with_name(place.name + end)).exists()]
    if not found:
        return None
    aside = folder / f"before-restore-{now_us()}"
    aside.mkdir(mode=0o700)
    for path in found:
        path.rename(aside / path.name)
    return aside


def _hash(path: Path) -> str:
    found = sha256()
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            found.update(part)
    return found.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
