"""Evidence from a data directory: verifying its log, exporting it, proving one entry; no server is needed.

Rules: the log is read as it is at one moment, also beside its writer; nothing is held but a page of it; an export to a
file goes on where the file ends; the checkpoint that the log keeps itself must hold, and is no anchor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from audit.block_check import check_index
from audit.checkpoint import open_checkpoint
from audit.errors import (
    AuditFailure,
    KeyInvalid,
    LogCorrupt,
    LogCutOff,
    LogRolledBack,
    ProofInvalid,
    SchemaUnknown,
)
from audit.export import Written, export_lines, resumed_lines, written
from audit.fold import Anchor, Verdict
from audit.note import WITNESS_ALGORITHM, VerifierKey
from audit.record import KINDS
from audit.seen import opened_seen
from audit.signer import read_public
from audit.stores import SqliteStore
from audit.tables import BODY, ENTRY, LOG, has_body, index_of, place
from audit.tree import edge_at
from audit.tree_store import StoredLog
from audit.verify import BUFFER_BYTES, kept_anchor, key_arguments, verify_export, verify_sqlite, witnessed
from policyd.errors import (
    AuditError,
    AuditRolledBack,
    AuditTampered,
    ExportCutOff,
    PolicydError,
    ProofRefused,
    RequestError,
)
from policyd.services.checkpoints import LogFiles, audit_error, no_log, unreadable
from policyd.services.data_directory import DataDirectory
from policyd.services.ledger_check import check_ledger
from policyd.services.log_place import directory_of
from policyd.services.proofs import log_number
from policyd.services.witnessing import word_of
from policyd.settings import Settings

SEEN_MAX: Final = 10_000
"""Entries of another log that are looked through for what it has seen of this one."""


def keys_of(texts: Sequence[str]) -> list[VerifierKey]:
    """Keys, or files with one. Raises ``RequestError``."""
    try:
        return key_arguments(texts)
    except KeyInvalid as error:
        raise RequestError(str(error), remedy="give a key as name+id+base64, or the file that holds it") from error


def anchors_of(paths: Sequence[Path], keys: Sequence[VerifierKey]) -> list[Anchor]:
    """Checkpoints that were kept. Raises ``ProofRefused``."""
    try:
        return [kept_anchor(path, keys) for path in paths]
    except (ProofInvalid, KeyInvalid) as error:
        raise ProofRefused(str(error)) from error


def verify_file(
    path: Path, keys: Sequence[VerifierKey], witnesses: Sequence[VerifierKey], anchors: Sequence[Anchor]
) -> Verdict:
    """Check an export. Raises ``ProofRefused`` when it is none."""
    try:
        with path.open("rb", buffering=BUFFER_BYTES) as file:
            return verify_export(file, keys=keys, witnesses=witnesses, anchors=anchors)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    except (ProofInvalid, KeyInvalid) as error:
        raise ProofRefused(f"{path}: {error}") from error


def verify_directory(
    directory: DataDirectory,
    keys: Sequence[VerifierKey],
    witnesses: Sequence[VerifierKey],
    anchors: Sequence[Anchor],
) -> Verdict:
    """Check the log of a directory, the checkpoint beside it, and that its search index passes over no entry.

    Without keys it is checked with those that the directory names.
    """
    files = LogFiles.within(directory.path)
    _require_log(directory)
    try:
        known = list(keys) or list(read_public(files.public))
        # Before the log is opened: what is signed from now on may be beyond what is read.
        note = files.kept()
        held = list(anchors)
        if note is not None:
            held.append(_beside(files.checkpoint))
        held += _words_of_witnesses(directory.path, [*known, *witnesses])
        if isinstance(directory.store, SqliteStore):
            file, given = directory.store.path, bool(keys)
            verdict = verify_sqlite(file, keys=known, key_given=given, witnesses=witnesses, anchors=held)
        else:
            verdict = _verify_rows(directory, keys, witnesses, held)
        return verdict if verdict.error is not None else _within_database(directory, verdict)
    except AuditFailure as error:
        raise audit_error("the log cannot be verified", error) from error


def _beside(path: Path) -> Anchor:
    """The checkpoint in the file beside the log. Raises ``LogCorrupt`` when it is none."""
    try:
        # Whether its key is known is said by the log's own checkpoints, which need the keys that entries name.
        return replace(kept_anchor(path, ()), own=True, who="the checkpoint beside the log")
    except ProofInvalid as error:
        raise LogCorrupt(f"{path} is no checkpoint: {error}") from error


def _words_of_witnesses(folder: Path, keys: Sequence[VerifierKey]) -> list[Anchor]:
    """What a server that asks witnesses has kept, as far as the keys of these are known."""
    asked = [key for key in keys if key.algorithm == WITNESS_ALGORITHM and word_of(folder, key).exists()]
    # Whether the log signed it, too, is said by the log's own checkpoints, which need the keys that entries name.
    return [witnessed(word_of(folder, key).read_bytes(), key) for key in asked]


def seen_by_others(source: StoredLog, number: int, keys: Sequence[VerifierKey]) -> list[Anchor]:
    """What the other logs of the database have seen of this one, the newest of each."""
    found = []
    names = source.connection.execute(select(LOG.c.number, LOG.c.origin).where(LOG.c.number != number)).all()
    for other, name in names:
        # No tenant has such an entry, and an index finds those of none.
        mine = (ENTRY.c.index >= place(other, 0), ENTRY.c.index < place(other + 1, 0), ENTRY.c.tenant.is_(None))
        query = select(ENTRY.c.index, BODY.c.body).join_from(ENTRY, BODY, has_body(source.connection)).where(*mine)
        wanted = query.where(ENTRY.c.kind == KINDS.index("checkpoint_seen")).order_by(ENTRY.c.index.desc())
        for stored, body in source.connection.execute(wanted.limit(SEEN_MAX)):
            seen = opened_seen(bytes(body), keys, source.origin)
            if seen:
                found.append(Anchor(seen[0].size, seen[0].root, f"entry {index_of(stored)} of the log {name}"))
                break
    return found


def _within_database(directory: DataDirectory, verdict: Verdict) -> Verdict:
    """The verdict, when the search index says what the entries say, and the ledger's tables what the logs fold into."""
    try:
        engine = directory.store.open_reader()
    except SchemaUnknown:
        # A log that this version has not opened for writing yet has no index, and the ledger's tables as they were.
        return verdict
    try:
        with engine.connect() as connection, connection.begin():
            check_index(connection, log_number(connection, verdict.origin))
            balances = check_ledger(connection)
    except LogCorrupt as error:
        return replace(verdict, error=error)
    except DBAPIError as error:
        raise unreadable(error) from error
    finally:
        engine.dispose()
    return replace(verdict, accounts=len(balances.accounts), elsewhere=0, passed_over=balances.passed_over)


class _Lines:
    """Lines that are made as they are read, in the place of a file."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines

    def readline(self, limit: int, /) -> bytes:
        """The next line. A longer one is read as cut off, which it then is."""
        return next(self._lines, b"")[:limit]


def _verify_rows(
    directory: DataDirectory,
    keys: Sequence[VerifierKey],
    witnesses: Sequence[VerifierKey],
    anchors: Sequence[Anchor],
) -> Verdict:
    """Check a log in a database through what its export would be."""
    with stored_log(directory) as (source, known):
        number = log_number(source.connection, source.origin)
        anchors = [*anchors, *seen_by_others(source, number, [*known, *keys])]
    lines = _Lines(exported(directory, 0))
    # Its accounts are folded with those of the other logs in the database.
    return verify_export(lines, keys=keys, witnesses=witnesses, anchors=anchors, accounts=False)


@contextmanager
def stored_log(directory: DataDirectory) -> Iterator[tuple[StoredLog, tuple[VerifierKey, ...]]]:
    """The log of a directory as it is now, and its keys."""
    _require_log(directory)
    try:
        keys = read_public(LogFiles.within(directory.path).public)
        engine = directory.store.open_reader()
        try:
            with engine.connect() as connection, connection.begin():
                # Every key of a log carries its name.
                name = keys[-1].name
                yield StoredLog(connection, name, log_number(connection, name)), keys
        finally:
            engine.dispose()
    except AuditFailure as error:
        raise audit_error("the log cannot be read", error) from error
    except DBAPIError as error:
        raise unreadable(error) from error


def exported(directory: DataDirectory, start: int) -> Iterator[bytes]:
    """The lines of an export from an index on."""
    with stored_log(directory) as (source, keys):
        first = next(source.checkpoints(start), None)
        last = next(source.checkpoints(start - 1), None) if first is None else first
        if last is None and start > 0:
            raise RequestError(f"no checkpoint of the log reaches entry {start}")
        key = open_checkpoint(last[1], keys).keys[0] if last is not None else keys[-1]
        edge = edge_at(start, source.node)
        yield from export_lines(source, key, edge)


def exported_from(settings: Settings, file: Path | None, start: int, stream: IO[bytes]) -> tuple[int, int]:
    """An export of the log that the settings name, to a file or a stream. Answers the sizes before and after."""
    directory = directory_of(settings)
    if file is not None:
        return export_to(directory, file)
    for line in exported(directory, start):
        stream.write(line)
    stream.flush()
    return start, start


def export_to(directory: DataDirectory, path: Path) -> tuple[int, int]:
    """Write an export to a file, or go on where the file ends. Answers the sizes before and after."""
    with stored_log(directory) as (source, keys), proving(str(path)):

        def lines(so_far: Written | None) -> Iterator[bytes]:
            if so_far is not None:
                return resumed_lines(source, so_far)
            first = next(source.checkpoints(0), None)
            key = open_checkpoint(first[1], keys).keys[0] if first is not None else keys[-1]
            return export_lines(source, key, edge_at(0, source.node))

        return appended(path, source.origin, lines)


@contextmanager
def proving(what: str) -> Iterator[None]:
    """Within it, what proves nothing is ``ProofRefused``, and says of what."""
    try:
        yield
    except (ProofInvalid, KeyInvalid) as error:
        raise ProofRefused(f"{what}: {error}", remedy="name a new file for the export, or mend its source") from error


def appended(path: Path, origin: str, lines: Callable[[Written | None], Iterator[bytes]]) -> tuple[int, int]:
    """Lines of an export in a file that is new, or that ends somewhere. Answers the sizes before and after."""
    try:
        with path.open("r+b" if path.exists() else "w+b") as file:
            so_far = written(file, origin) if os.fstat(file.fileno()).st_size else None
            before = size = 0 if so_far is None else so_far.size
            following = lines(so_far)
            if so_far is not None:
                file.seek(so_far.length_bytes)
                file.truncate()
            for line in following:
                file.write(line)
                size += line.startswith(b'{"index":')
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise AuditError(
            f"the export cannot be written to {path}: {error.strerror}",
            remedy="make room, and run the command again: it goes on where the file ends",
        ) from error
    return before, size


def failure_of(verdict: Verdict, *, export: bool) -> PolicydError | None:
    """The error that a verdict stands for."""
    if verdict.error is None:
        return None
    if isinstance(verdict.error, LogCutOff):
        return ExportCutOff(str(verdict.error))
    if isinstance(verdict.error, LogRolledBack):
        return AuditRolledBack(str(verdict.error))
    return ProofRefused(str(verdict.error)) if export else AuditTampered(str(verdict.error))


def _require_log(directory: DataDirectory) -> None:
    if not directory.store.exists():
        raise no_log(directory.path)
