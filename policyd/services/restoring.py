"""The way back after a log came back from a backup and is shorter than somebody has seen it.

    restored log, checkpoints that were kept ──► plan: which entries are lost, and what is presumed spent
    plan ──signed by two persons──► a gap entry where the first lost one stood ──checkpointed──► serving is possible

What was held and spent in the lost part cannot be known from the log. The plan therefore presumes that every budget
whose window is still open is spent to its limit: nothing more is reserved until the window ends. Whoever knows better,
from a provider's bill or a settlement that now finds nothing, writes the smaller figure into the plan before it is
signed. Gauges (what is in flight) are left as the restored log has them, because nothing was served meanwhile.

Rules: reads only, until two persons have signed; the log must be just the one that was planned for; gap, presumed
spending and the checkpoint over them are one transaction; applied once more, a plan changes nothing.
It refuses: a log that is not a beginning of what was kept, and a restore that nobody's checkpoint calls for.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import orjson
from sqlalchemy import Connection

from audit.checkpoint import Checkpoint, open_checkpoint
from audit.errors import AuditFailure, KeyInvalid, LogCorrupt, ProofInvalid
from audit.gap import approvers, gap_fields
from audit.note import NOTE_MAX_BYTES, VerifierKey
from audit.record import Blob, Entry, digest, encode
from audit.signer import open_signer, write_durably
from audit.store import Durability, Tail, append
from audit.stores import OpenLog
from audit.tree import root_at
from audit.tree_store import StoredLog, TreeTail, add_checkpoint, entries_of, last_checkpoint
from policyd.errors import AuditError, ProofRefused, RequestError
from policyd.ledger import rows
from policyd.ledger.chart import Chart
from policyd.ledger.rules import AMOUNT_MAX, GAUGES, Account, AccountKey, Limit
from policyd.ledger.windows import window_of
from policyd.services.admission import RECORD_VERSION, presumed_entries
from policyd.services.checkpoints import LogFiles, audit_error
from policyd.services.clock import now_us, rfc3339, uuid7
from policyd.services.data_directory import DataDirectory
from policyd.services.evidence import stored_log
from policyd.services.proofs import log_number

FORMAT: Final = "policyd-restore@v1"
PLAN_MAX_BYTES: Final = 16 * 1024 * 1024
WHY_MAX_CHARS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Known:
    """A checkpoint that somebody has kept of the log, and where it was found."""

    note: bytes
    checkpoint: Checkpoint
    where: str


def missing(directory: DataDirectory, kept: Sequence[Path]) -> tuple[int, Known | None]:
    """How many entries the log has, and the newest checkpoint that is over more, if there is one.

    Raises ``AuditTampered`` when the log is not a beginning of what was kept.
    """
    with stored_log(directory) as (source, keys):
        number = log_number(source.connection, source.origin)
        size = entries_of(source.connection, number)
        found = list(_known(directory, kept, keys, source.origin))
        _compare(found, size, source)
    beyond = [known for known in found if known.checkpoint.size > size]
    return size, max(beyond, key=lambda known: known.checkpoint.size, default=None)


def _known(directory: DataDirectory, kept: Sequence[Path], keys: Sequence[VerifierKey], origin: str) -> Iterable[Known]:
    files = LogFiles.within(directory.path)
    for path in (*((files.checkpoint,) if files.checkpoint.exists() else ()), *kept):
        try:
            with path.open("rb") as file:
                note = file.read(NOTE_MAX_BYTES + 1)
            yield Known(note, open_checkpoint(note, keys, origin=origin).checkpoint, str(path))
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}") from error
        except (ProofInvalid, KeyInvalid) as error:
            raise ProofRefused(f"{path}: {error}") from error


def _compare(found: Sequence[Known], size: int, source: StoredLog) -> None:
    for known in found:
        at = known.checkpoint.size
        if at <= size and root_at(at, source.node) != known.checkpoint.root:
            raise LogCorrupt(f"the first {at} entries are not those that the checkpoint in {known.where} is over")


def plan(directory: DataDirectory, kept: Sequence[Path], chart: Chart, why: str) -> bytes:
    """The plan as a document for two persons to read, change and sign. Raises ``RequestError`` when nothing is lost."""
    if not 0 < len(why.strip()) <= WHY_MAX_CHARS:
        raise RequestError(f"a restore says why, in 1 to {WHY_MAX_CHARS} characters")
    size, known = missing(directory, kept)
    if known is None:
        raise RequestError(
            f"nothing is missing: the log has {size} entries, and no known checkpoint is over more",
            remedy="start the server; name checkpoints that clients or witnesses have kept with --known",
        )
    time_us = now_us()
    with stored_log(directory) as (source, _):
        number = log_number(source.connection, source.origin)
        signed = last_checkpoint(source.connection, number)
        presumed = list(_presumed(source.connection, chart, time_us))
        root = root_at(size, source.node)
    document = {
        "format": FORMAT,
        "log": source.origin,
        "entries": size,
        "root": b64encode(root).decode(),
        "lost": [size, known.checkpoint.size - 1],
        "known": known.note.decode(),
        "kept_by": known.where,
        "signed": None if signed is None else signed[1].decode(),
        "presumed": presumed,
        "time": rfc3339(time_us),
        "why": why.strip(),
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _presumed(connection: Connection, chart: Chart, time_us: int) -> Iterable[dict[str, Any]]:
    """Every budget in its present window, with all that is left of it."""
    known = {account.key: account for account in rows.current_accounts(connection, list(chart), time_us)}
    for limits in chart.values():
        for limit in limits:
            if limit.unit in GAUGES:
                continue
            span = window_of(limit.window, ZoneInfo(limit.zone), time_us)
            key = AccountKey(limit.path, limit.pools, limit.unit, limit.window, span.start_us)
            account = known.get(key) or Account(key, span.end_us, limit.amount, limit.thresholds)
            yield {
                **key._asdict(),
                "end_us": span.end_us,
                "limit": limit.amount,
                "thresholds": list(limit.thresholds),
                "spent": account.spent,
                "reserved": account.reserved,
                "presumed": max(0, limit.amount - account.used),
            }


def applied(
    directory: DataDirectory,
    content: bytes,
    signatures: Sequence[bytes],
    persons: Sequence[VerifierKey],
    durability: Durability = "power_safe",
) -> int:
    """Let the log of a locked directory go on. Answers the index of its gap entry.

    Raises ``ProofRefused`` for signatures that do not count, ``RequestError`` for a plan that does not fit the log.
    """
    document = read_plan(content)
    try:
        named = approvers(signatures, persons, document["log"], digest(content))
        log = directory.store.open_writer(durability, None)
    except ProofInvalid as error:
        raise ProofRefused(str(error), remedy="each person signs the plan as it is, with a known key") from error
    except AuditFailure as error:
        raise audit_error("the log cannot be restored", error) from error
    try:
        return _apply(log, LogFiles.within(directory.path), document, content, signatures, named)
    except AuditFailure as error:
        raise audit_error("the log cannot be restored", error) from error
    finally:
        log.close()


def _apply(
    log: OpenLog,
    files: LogFiles,
    document: dict[str, Any],
    content: bytes,
    signatures: Sequence[bytes],
    persons: tuple[str, ...],
) -> int:
    size, connection = document["entries"], log.connection
    signer = open_signer(files.key, log.origin, create=False)
    if document["log"] != log.origin:
        raise RequestError(f"the plan is for the log {document['log']}, and this is {log.origin}")
    with connection.begin():
        tail, tree = Tail.read(connection, log.number), TreeTail(connection, log.number)
        note = _applied_before(connection, log, document, content)
        if note is None:
            if tail.next_index != size or b64encode(tree.edge.root()).decode() != document["root"]:
                raise RequestError(f"the plan is for another state of the log: it has {tail.next_index} entries now")
            entries = list(_entries(connection, document, digest(content), signatures, persons))
            placed = append(connection, entries, [Blob.of("restore", content)], tail=tail)
            tree.extend(connection, [position.leaf_hash for position in placed])
            note = Checkpoint(log.origin, tree.edge.size, tree.edge.root()).sign(signer)
            add_checkpoint(connection, log.number, tree.edge.size, now_us(), note)
    log.check_place()
    try:
        write_durably(files.checkpoint, note, 0o644)
    except OSError as error:
        raise AuditError(f"{files.checkpoint} cannot be written: {error.strerror}; apply the plan again") from error
    return int(size)


def _applied_before(connection: Connection, log: OpenLog, document: dict[str, Any], content: bytes) -> bytes | None:
    """The newest checkpoint, when this plan was applied and only the file beside the log was not written."""
    source = StoredLog(connection, log.origin, log.number)
    first = next(source.rows(document["entries"], document["entries"] + 1), None)
    if first is None or first.body is None or b'"plan":"%b"' % digest(content).encode() not in first.body:
        return None
    newest = last_checkpoint(connection, log.number)
    return None if newest is None else newest[1]


def _entries(
    connection: Connection, document: dict[str, Any], named: str, signatures: Sequence[bytes], persons: tuple[str, ...]
) -> Iterable[Entry]:
    """The gap, and what is presumed to have been spent in it."""
    time_us = now_us()
    gap_id = uuid7(time_us)
    first, last = document["lost"]
    signed = document["signed"]
    fields = gap_fields(
        document["known"].encode(), (first, last), named, signatures, None if signed is None else signed.encode()
    )
    told = {"persons": list(persons), "why": document["why"], "time": rfc3339(time_us), "v": RECORD_VERSION}
    body = encode({"id": gap_id, "kind": "gap", **fields, **told}, os.urandom(16))
    yield Entry("gap", gap_id, time_us, body, terms=tuple(("approver", name) for name in persons))
    yield from _spending(connection, document["presumed"], time_us, gap_id)


def _spending(connection: Connection, presumed: Sequence[dict[str, Any]], time_us: int, gap_id: str) -> Iterable[Entry]:
    asked = {_key(each): each for each in presumed if each["presumed"] > 0}
    limits = {
        key: (
            Limit(key.path, key.unit, key.window, each["limit"], pools=key.pools, thresholds=tuple(each["thresholds"])),
            each["end_us"],
        )
        for key, each in asked.items()
    }
    numbers = rows.open_accounts(connection, limits)
    changed = []
    for number, account in rows.accounts(connection, numbers.values()):
        amount = asked[account.key]["presumed"]
        if account.used + amount > AMOUNT_MAX:
            raise RequestError(f"the account {account.key.path} cannot count that much")
        posting = account.post(0, amount)
        yield from presumed_entries(posting, account.crossings(), time_us, gap_id)
        changed.append(rows.account_row(number, account))
    if changed:
        rows.run(connection, "account_changed", changed)


def _key(each: dict[str, Any]) -> AccountKey:
    return AccountKey(*(each[name] for name in AccountKey._fields))


def read_plan(content: bytes) -> dict[str, Any]:
    """A plan that may have been changed by hand. Raises ``RequestError`` when it is none any more."""
    try:
        found = orjson.loads(content)
        sound = found["format"] == FORMAT and isinstance(found["log"], str) and isinstance(found["why"], str)
        first, last = found["lost"]
        sound = sound and found["entries"] == first <= last
        for each in found["presumed"]:
            _key(each)
            numbers = (each["presumed"], each["limit"], each["start_us"], each["end_us"] or 0, *each["thresholds"])
            sound = sound and all(type(number) is int and 0 <= number <= AMOUNT_MAX for number in numbers)
    except (ValueError, TypeError, KeyError) as error:
        raise RequestError(f"the plan cannot be read: {error}") from error
    if not sound:
        raise RequestError(f"the plan is not of the format {FORMAT}, or holds a figure that no budget can count")
    assert isinstance(found, dict)
    return found
