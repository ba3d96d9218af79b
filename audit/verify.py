"""Verify a log offline: an export, a receipt, or the SQLite file of a log itself.

    python -m audit.verify EXPORT [--key VKEY] [--witness VKEY] [--anchor CHECKPOINT]

Exit codes: 0 nothing is wrong, 4 something is, 2 the command cannot be understood. ``EXPORT`` may be ``-`` for standard
input. A key may be the name of a file that holds it.

Rules: needs Python and ``cryptography``, nothing of policyd; memory stays flat however long the log is; the first bad
index is named with the reason, and the last line says how far the word goes; what the log says of its own key is not
evidence of who signed it.
It refuses: to call a log untampered.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from binascii import hexlify
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import lru_cache, partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote
from uuid import UUID

from audit.checkpoint import Checkpoint, open_checkpoint
from audit.errors import AuditFailure, KeyInvalid, LogCorrupt, LogCutOff, ProofInvalid
from audit.export import HASH_CHARS, LINE_MAX_BYTES, Row, entry_line, odd_body, parse_checkpoint, parse_end, parse_head
from audit.fold import Anchor, Fold, Verdict
from audit.note import LOG_ALGORITHM, NOTE_MAX_BYTES, VerifierKey, parse_note, verify_note
from audit.postings import TOUCHING
from audit.signer import read_public
from audit.tree import Run, leaf_hash

BATCH_ENTRIES: Final = 1_024
KEY_KIND: Final = b'","kind":"key"'
"""Where the body of an entry that names a new key says so, after {"id":"…36 characters…"""
GAP_KIND: Final = b'","kind":"gap"'
"""At the same place, in one that says what was lost."""
_BODY: Final = b'","body":'
_BODY_AT: Final = HASH_CHARS + len(_BODY)
_LEAF: Final = sha256(b"\x00")
SEEN_KIND: Final = b'","kind":"checkpoint_seen"'[: len(KEY_KIND)]
"""At the same place, in one that says what other logs were seen to be: so much of it as the others have."""
RETENTION_KIND: Final = b'","kind":"retention"'[: len(KEY_KIND)]
"""At the same place, in one that says which bodies were removed."""
_KIND_AT: Final = slice(7 + 36, 7 + 36 + len(KEY_KIND))
_FIRST_AT, _TOUCHING = len(TOUCHING[0]) - 1, frozenset(each[-1] for each in TOUCHING)
_LETTER_AT, _KIND = _KIND_AT.start + 3, ord("k")
"""One letter of each is looked at first: two slices of every body would take a twentieth of the time."""
_MARKED: Final = frozenset({KEY_KIND, GAP_KIND, SEEN_KIND, RETENTION_KIND})
_REMOVED: Final = b'","body":null}\n'
EXIT_BAD: Final = 4
WARRANTS_SHOWN_MAX: Final = 10
"""Warrants in the lines for a person, the newest; JSON has more."""
BUFFER_BYTES: Final = 256 * 1024
"""With the usual 8 KiB, reading lines of a kilobyte takes twice as long."""
STEP: Final = 8
"""As in ``audit.tree_store``, which needs more than there may be here: one level in so many is stored."""


class LineSource(Protocol):
    """A file, or what reads like one."""

    def readline(self, limit: int, /) -> bytes:
        """The next line, cut at the limit; nothing at the end."""
        ...


def verify_export(
    file: LineSource,
    *,
    keys: Sequence[VerifierKey] = (),
    witnesses: Sequence[VerifierKey] = (),
    anchors: Sequence[Anchor] = (),
    accounts: bool = True,
) -> Verdict:
    """Check an export from its first line to its last; without ``keys`` the export names its own.

    ``accounts`` says whether the changes of budget accounts are folded, too.
    Raises ``ProofInvalid`` or ``KeyInvalid`` when it is no export at all.
    """
    head = parse_head(file.readline(LINE_MAX_BYTES))
    fold = Fold(
        head.origin,
        [*(keys or (head.key,)), *witnesses],
        edge=head.edge,
        anchors=anchors,
        key_given=bool(keys),
        accounts=accounts,
    )
    try:
        _fold_lines(iter(partial(file.readline, LINE_MAX_BYTES), b""), fold)
        return fold.verdict()
    except LogCorrupt as error:
        return fold.failed(error)
    except (ProofInvalid, KeyInvalid) as error:
        return fold.failed(LogCorrupt(str(error), index=fold.size))


def _fold_lines(lines: Iterator[bytes], fold: Fold) -> None:
    """Entries in batches, checkpoints where they stand, and the end, behind which nothing comes."""
    checkpoints = 0
    line = next(lines, b"")
    while line:
        line = _fold_entries(line, lines, fold)
        if line and not line.endswith(b"\n"):
            raise LogCutOff("missing: the export is cut off here", index=fold.size)
        if line.startswith(b'{"checkpoint":'):
            fold.checkpoint(parse_checkpoint(line))
            checkpoints += 1
        elif line.startswith(b'{"end":'):
            _end(line, lines, fold, checkpoints)
            return
        elif line and not line.startswith(_head(fold.size)):
            raise _instead(line, fold.size)
        else:
            continue
        line = next(lines, b"")
    raise LogCutOff("missing: the export is cut off here", index=fold.size)


def _fold_entries(line: bytes, lines: Iterator[bytes], fold: Fold) -> bytes:
    """One batch of entries, or less; answers the line that follows it.

    The usual line is held against the one that it should be as a whole: what is not exactly that is looked at closely.
    """
    leaves: list[bytes] = []
    index, limit = fold.size, fold.size + BATCH_ENTRIES
    if fold.next_stop is not None:
        limit = min(limit, fold.next_stop)
    at = len(_head(index)) + _BODY_AT
    while line and index < limit:
        body = line[at:-2]
        hashed = _LEAF.copy()
        hashed.update(body)
        leaf = hashed.digest()
        if line != b'{"index":%d,"leaf_hash":"%b","body":%b}\n' % (index, hexlify(leaf), body):
            head = _head(index)
            if not line.startswith(head):
                break
            at = len(head) + _BODY_AT
            if line[at - len(_BODY) :] == _REMOVED:
                leaves.append(_removed_leaf(line, len(head), index))
                fold.missing(index)
                index += 1
                line = next(lines, b"")
                continue
            body = _line_body(line, at, index)
            leaf = leaf_hash(body)
        try:
            first, kind = body[_FIRST_AT], body[_LETTER_AT]
        except IndexError:  # shorter than any entry that says something of the log
            first = kind = 0
        if first in _TOUCHING:
            fold.balances(index, body)
        elif kind == _KIND and body[_KIND_AT] in _MARKED:
            _fold_marked(index, body, fold)
        leaves.append(leaf)
        index += 1
        line = next(lines, b"")
    fold.extend(leaves)
    return line


def _removed_leaf(line: bytes, at: int, index: int) -> bytes:
    """The leaf hash of an entry whose body was removed; whether it is right, the checkpoints say."""
    text = line[at : at + HASH_CHARS].decode("ascii", "replace")
    try:
        leaf = bytes.fromhex(text)
    except ValueError as error:
        raise LogCorrupt("the line has no leaf hash", index=index) from error
    if leaf.hex() != text:
        raise LogCorrupt("the leaf hash is not spelled as an export spells it", index=index)
    return leaf


def _fold_marked(index: int, body: bytes, fold: Fold) -> None:
    """An entry that says something of the log itself."""
    kind = body[_KIND_AT]
    if kind == KEY_KIND:
        fold.rotation(index, body)
    elif kind == GAP_KIND:
        fold.gap(index, body)
    elif body.startswith(b'","kind":"retention"', _KIND_AT.start):
        fold.retention(index, body)
    elif body.startswith(b'","kind":"checkpoint_seen"', _KIND_AT.start):
        fold.seen(index, body)


def _head(index: int) -> bytes:
    return b'{"index":%d,"leaf_hash":"' % index


def _line_body(line: bytes, at: int, index: int) -> bytes:
    """The body of an entry line that starts as it should. Raises ``LogCorrupt`` unless all of it is right."""
    if not line.endswith(b"\n"):
        raise LogCutOff("missing: the export is cut off here", index=index)
    rest, plain = at - _BODY_AT + HASH_CHARS, line[at - len(_BODY) : at] == _BODY and line.endswith(b"}\n")
    try:
        body = line[at:-2] if plain else odd_body(line[rest + 2 :])
    except ProofInvalid as error:
        raise LogCorrupt(str(error), index=index) from error
    row = Row(index, leaf_hash(body), body)
    if entry_line(row) != line:
        raise LogCorrupt("the body is not what was recorded", index=index)
    return body


def _end(line: bytes, lines: Iterator[bytes], fold: Fold, checkpoints: int) -> None:
    size, count = parse_end(line)
    if size != fold.size:
        raise LogCorrupt(f"missing: the export says that it ends with {size} entries", index=min(size, fold.size))
    if count != checkpoints:
        raise LogCorrupt(f"the export says that it holds {count} checkpoints, and it holds {checkpoints}")
    if fold.covered != fold.size:
        raise LogCorrupt("no checkpoint covers it", index=fold.covered)
    if next(lines, b""):
        raise LogCorrupt("something follows the end of the export", index=fold.size)


def _instead(line: bytes, index: int) -> LogCorrupt:
    """What is wrong with a line that is not the next entry."""
    if line.startswith(b'{"index":'):
        found = line[len(b'{"index":') :].split(b",", 1)[0][:20].decode("ascii", "replace")
        return LogCorrupt(f"missing or moved: entry {found} stands here", index=index)
    return LogCorrupt("the line is neither an entry nor a checkpoint nor the end", index=index)


def verify_sqlite(
    path: Path,
    *,
    keys: Sequence[VerifierKey],
    key_given: bool,
    witnesses: Sequence[VerifierKey] = (),
    anchors: Sequence[Anchor] = (),
) -> Verdict:
    """Check the SQLite file of a log, also beside its writer: bodies, order, columns, tree and checkpoints.

    Raises ``LogCorrupt`` when the file cannot be read as a log.
    """
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as connection:
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.execute("BEGIN")
            origin = _scalar(connection, "SELECT value FROM meta WHERE key = 'origin'")
            fold = Fold(str(origin), [*keys, *witnesses], anchors=anchors, key_given=key_given)
            try:
                _fold_database(connection, fold)
                return fold.verdict()
            except LogCorrupt as error:
                return fold.failed(error)
    except sqlite3.Error as error:
        raise LogCorrupt(f"{path} is damaged, or no log at all: {error}") from error


def _scalar(connection: sqlite3.Connection, query: str) -> object:
    row = connection.execute(query).fetchone()
    return None if row is None else row[0]


def _fold_database(connection: sqlite3.Connection, fold: Fold) -> None:
    kinds = _kinds()
    kept = connection.execute("SELECT size, note FROM log_checkpoint WHERE log = 0 ORDER BY size")
    entries = connection.execute(
        'SELECT e."index", e.id, e.kind, e.time_us, e.leaf_hash, b.body FROM entry e '
        'LEFT JOIN body b ON b."index" = e."index" ORDER BY e."index"'
    )
    following = next(kept, None)
    while True:
        stops = [size for size in (following and following[0], fold.next_stop) if size is not None]
        wanted = min([BATCH_ENTRIES, *(size - fold.size for size in stops)])
        rows = list(islice(entries, max(wanted, 0)))
        first = fold.size
        for run in fold.extend([_row_leaf(row, first + nth, kinds, fold) for nth, row in enumerate(rows)]):
            if run.level % STEP == 0:
                _check_nodes(connection, run)
        if following is not None and following[0] <= fold.size:
            fold.checkpoint(following[1] if isinstance(following[1], bytes) else b"")
            following = next(kept, None)
        elif not rows:
            break
    if following is not None:
        raise LogCorrupt(f"missing: a checkpoint is over {following[0]} entries", index=fold.size)
    orphan = _scalar(connection, 'SELECT max("index") FROM body')
    if isinstance(orphan, int) and orphan >= fold.size:
        raise LogCorrupt("its body is there, and the entry is missing", index=fold.size)


def _check_nodes(connection: sqlite3.Connection, run: Run) -> None:
    """The nodes that are stored are those that the entries give."""
    query = 'SELECT hash FROM tree_node WHERE log = 0 AND level = ? AND "index" >= ? AND "index" < ? ORDER BY "index"'
    stored = connection.execute(query, (run.level, run.first, run.first + len(run.hashes))).fetchall()
    if [found for (found,) in stored] != list(run.hashes):
        raise LogCorrupt("the stored tree is not that of these entries", index=run.first << run.level)


def _kinds() -> tuple[str, ...]:
    # Imported here because what an export needs must not.
    from audit.record import KINDS

    return KINDS


def _row_leaf(row: Sequence[object], expected: int, kinds: Sequence[str], fold: Fold) -> bytes:
    index, entry_id, kind, time_us, leaf, body = row
    if index != expected:
        raise LogCorrupt("missing", index=expected)
    if body is None and isinstance(kind, int) and -len(kinds) <= kind < 0 and isinstance(leaf, bytes):
        fold.missing(expected)
        return leaf
    if body is None:
        raise LogCorrupt("its body is missing", index=expected)
    computed = leaf_hash(body) if isinstance(body, bytes) else None
    if computed is None or computed != leaf or not isinstance(body, bytes):
        raise LogCorrupt("the body is not what was recorded", index=expected)
    sound = isinstance(entry_id, bytes) and len(entry_id) == 16 and isinstance(kind, int) and 0 <= kind < len(kinds)
    if not sound or not isinstance(time_us, int):
        raise LogCorrupt("its columns are damaged", index=expected)
    assert isinstance(entry_id, bytes)
    assert isinstance(kind, int)
    if not _says(body, entry_id, kinds[kind], time_us):
        raise LogCorrupt("its columns do not say what its body says", index=expected)
    if body[_KIND_AT] in _MARKED:
        _fold_marked(expected, body, fold)
    return computed


def _says(body: bytes, entry_id: bytes, kind: str, time_us: int) -> bool:
    """Whether the body names this id, this kind and this time: what it has is looked for as text, which is quick."""
    if b'"id":"%b"' % str(UUID(bytes=entry_id)).encode() not in body:
        return False
    if b'"time":"' in body and b'"time":"%b"' % _rfc3339(time_us) not in body:
        return False
    if kind != "decision":
        return b'"kind":"%b"' % kind.encode() in body
    # A decision needs no kind; a label may have that name, so that a body which holds the word is read.
    return b'"kind":"' not in body or json.loads(body).get("kind", kind) == kind


def _rfc3339(time_us: int) -> bytes:
    return b"%b.%06dZ" % (_second(time_us // 1_000_000), time_us % 1_000_000)


@lru_cache(maxsize=1_024)
def _second(seconds: int) -> bytes:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
    except (ValueError, OverflowError, OSError):
        return b"no time"


def kept_anchor(path: Path, keys: Iterable[VerifierKey], who: str | None = None) -> Anchor:
    """A checkpoint that the reader has kept, as an anchor; its signature is checked when keys are given.

    When a witness whose key is among them cosigned it, that is who vouches for it.

    Raises ``ProofInvalid`` or ``KeyInvalid``.
    """
    try:
        with path.open("rb") as file:
            note = file.read(NOTE_MAX_BYTES + 1)
    except OSError as error:
        raise ProofInvalid(f"the checkpoint {path} cannot be read: {error.strerror}") from error
    found = list(keys)
    if not any(key.algorithm == LOG_ALGORITHM for key in found):
        # Without the key of the log it is what the reader has kept, and no more.
        checkpoint = Checkpoint.parse(parse_note(note).text)
        return Anchor(checkpoint.size, checkpoint.root, who or f"the checkpoint in {path}")
    opened = open_checkpoint(note, found)
    seen = " and ".join(f"{each.name} (seen at {each.time_s} s)" for each in opened.witnesses)
    return Anchor(opened.checkpoint.size, opened.checkpoint.root, who or seen or f"the checkpoint in {path}")


def witnessed(data: bytes, key: VerifierKey) -> Anchor:
    """A checkpoint as a witness vouches for it; who else signed it is not looked at. Raises ``ProofInvalid``."""
    note = parse_note(data[: NOTE_MAX_BYTES + 1])
    [signed] = verify_note(note, [key])
    checkpoint = Checkpoint.parse(note.text)
    return Anchor(checkpoint.size, checkpoint.root, f"{key.name} (seen at {signed.time_s} s)")


def report(verdict: Verdict) -> list[str]:
    """A verdict in lines, for a person."""
    lines = [f"log {verdict.origin}"]
    if verdict.fault is not None:
        lines.append(f"FAILED: {verdict.fault}")
        lines.append(f"{verdict.entries} entries before that are what was recorded, as far as this goes:")
    else:
        span = f"entries {verdict.first} to {verdict.first + verdict.entries - 1}" if verdict.entries else "no entries"
        lines.append(f"{span} and {verdict.checkpoints} checkpoints hold together")
    open_entries = verdict.first + verdict.entries - verdict.covered
    if open_entries:
        lines.append(f"{open_entries} entries from {verdict.covered} on are not covered by a checkpoint")
    lines += [f"GAP: {gap.words}" for gap in verdict.gaps]
    if verdict.removed:
        lines.append(f"{verdict.removed} bodies were removed by retention, under {verdict.warrants_total} warrants")
        lines += [f"REMOVED: {warrant.words}" for warrant in verdict.warrants[-WARRANTS_SHOWN_MAX:]]
    if verdict.accounts:
        other = f"; {verdict.elsewhere} more of their changes are in other logs" if verdict.elsewhere else ""
        gone = f"; {verdict.passed_over} were in removed bodies" if verdict.passed_over else ""
        lines.append(f"every change of {verdict.accounts} budget accounts follows the one before{other}{gone}")
    lines += [f"has seen {each.size} entries of the log {each.origin}" for each in verdict.seen]
    named = ", ".join(f"{key.name}+{key.id.hex()}" for key in verdict.keys)
    lines.append(f"signed by {named}" + ("" if verdict.key_given else ", which the log itself names"))
    lines.append(verdict.word)
    return lines


def key_arguments(texts: Iterable[str]) -> list[VerifierKey]:
    """Keys, or the names of files with one a line. Raises ``KeyInvalid``."""
    found: list[VerifierKey] = []
    for text in texts:
        found += read_public(Path(text)) if "+" not in text or Path(text).is_file() else [VerifierKey.parse(text)]
    return found


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m audit.verify", description="Verify an export of a log offline.")
    parser.add_argument("export", metavar="EXPORT", help="the file, or - for standard input")
    parser.add_argument("--key", action="append", default=[], metavar="VKEY", help="the log's key, or a file with it")
    parser.add_argument("--witness", action="append", default=[], metavar="VKEY", help="a witness's key")
    parser.add_argument("--anchor", action="append", default=[], metavar="FILE", type=Path, help="a kept checkpoint")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    flags = _arguments().parse_args(arguments)
    try:
        keys, witnesses = key_arguments(flags.key), key_arguments(flags.witness)
        anchors = [kept_anchor(path, [*keys, *witnesses]) for path in flags.anchor]
        if flags.export == "-":
            verdict = verify_export(sys.stdin.buffer, keys=keys, witnesses=witnesses, anchors=anchors)
        else:
            with Path(flags.export).open("rb", buffering=BUFFER_BYTES) as file:
                verdict = verify_export(file, keys=keys, witnesses=witnesses, anchors=anchors)
    except OSError as error:
        sys.stderr.write(f"{flags.export} cannot be read: {error.strerror}\n")
        return 2
    except AuditFailure as error:
        sys.stderr.write(f"FAILED: {error}\n")
        return EXIT_BAD
    sys.stdout.write("\n".join(report(verdict)) + "\n")
    return EXIT_BAD if verdict.fault is not None else 0


if __name__ == "__main__":
    sys.exit(main())
