"""The export of a log: JSON lines that hold the exact bytes and all that is needed to verify them offline.

    {"format":"policyd-export@v1","origin":…,"key":<vkey>,"from":<index>,"edge":[<base64>, …]}
    {"index":<index>,"leaf_hash":<hex>,"body":<the exact bytes>}            one an entry, in order
    {"index":<index>,"leaf_hash":<hex>,"body_base64":<base64>}              for a body that would break the line
    {"index":<index>,"leaf_hash":<hex>,"body":null}                         for a body that retention has removed
    {"checkpoint":<signed note>}                                            after the entry that it ends with
    {"end":<size>,"checkpoints":<count>}

``edge`` is the right edge of the entries before ``from``; it needs no trust, because the checkpoints that follow are
over all entries from the first. A body is written as it is, so that the lines are JSON for any other reader.

Rules: pure; every line has one spelling; an export ends with a checkpoint, and what no checkpoint covers yet stays out;
nothing is held but one line.
It refuses: to guess at a line that has another form.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, Protocol

from audit.checkpoint import Checkpoint
from audit.errors import LogCorrupt, ProofInvalid
from audit.note import VerifierKey, decode_base64, parse_note
from audit.tree import Edge

FORMAT: Final = "policyd-export@v1"
LINE_MAX_BYTES: Final = 512 * 1024
HASH_CHARS: Final = 64
PAGES_MAX: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """One entry, as a log keeps it."""

    index: int
    leaf_hash: bytes
    body: bytes | None
    """None when retention has removed it."""


class LogSource(Protocol):
    """A log that can be read from front to back, as it was at one moment."""

    @property
    def origin(self) -> str:
        """The name of the log."""
        ...

    def checkpoints(self, after: int) -> Iterator[tuple[int, bytes]]:
        """Sizes and signed notes, of more than ``after`` entries, in order of size."""
        ...

    def rows(self, start: int, end: int) -> Iterator[Row]:
        """The entries from ``start`` to before ``end``, in order. Raises ``LogCorrupt`` for what cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Head:
    """The first line of an export."""

    origin: str
    key: VerifierKey
    edge: Edge


def export_lines(source: LogSource, key: VerifierKey, edge: Edge) -> Iterator[bytes]:
    """The export of ``source`` from the size of ``edge`` on; ``key`` is the one that was in force there."""
    yield _line(
        {
            "format": FORMAT,
            "origin": source.origin,
            "key": key.text,
            "from": edge.size,
            "edge": [b64encode(found).decode() for found in edge.hashes],
        }
    )
    yield from resumed_lines(source, Written(edge.size, 0, 0))


@dataclass(frozen=True, slots=True)
class Written:
    """How far an export has come: entries and checkpoints, and the length of the file up to its last checkpoint."""

    size: int
    checkpoints: int
    length_bytes: int


def written(file: IO[bytes], origin: str) -> Written:
    """How far the export in a file has come. What follows its last checkpoint is to be cut off and written again.

    Raises ``ProofInvalid`` when it is no export of this log.
    """
    line = file.readline(LINE_MAX_BYTES)
    head = parse_head(line)
    if head.origin != origin:
        raise ProofInvalid(f"the file is an export of the log {head.origin}, and not of {origin}")
    size, checkpoints, length = head.edge.size, 0, len(line)
    whole = length
    while line := file.readline(LINE_MAX_BYTES):
        length += len(line)
        if line.startswith(b'{"checkpoint":') and line.endswith(b"\n"):
            size = Checkpoint.parse(parse_note(parse_checkpoint(line)).text).size
            checkpoints, whole = checkpoints + 1, length
    return Written(size, checkpoints, whole)


def resumed_lines(source: LogSource, so_far: Written) -> Iterator[bytes]:
    """The lines that follow those that are written."""
    size, count = so_far.size, so_far.checkpoints
    for end, note in source.checkpoints(size):
        for row in source.rows(size, end):
            if row.index != size:
                raise LogCorrupt("missing", index=size)
            yield entry_line(row)
            size += 1
        if size != end:
            raise LogCorrupt(f"missing, and a checkpoint is over {end} entries", index=size)
        yield _line({"checkpoint": note.decode()})
        count += 1
    yield _line({"end": size, "checkpoints": count})


def joined_lines(page: Callable[[int], bytes], start: int, so_far: Written | None = None) -> Iterator[bytes]:
    """One export from pages, each an export from an index on: from ``start``, or what follows ``so_far``.

    Raises ``ProofInvalid`` for a page that does not continue the one before.
    """
    size, count = (start, 0) if so_far is None else (so_far.size, so_far.checkpoints)
    first = so_far is None
    for _ in range(PAGES_MAX):
        lines = [line + b"\n" for line in page(size).split(b"\n")[:-1]]
        if len(lines) < 2 or parse_head(lines[0]).edge.size != size:
            raise ProofInvalid("a page of the export does not continue the one before")
        end, checkpoints = parse_end(lines[-1])
        if first:
            yield lines[0]
        yield from lines[1:-1]
        first, count = False, count + checkpoints
        if end <= size:
            break
        size = end
    yield _line({"end": size, "checkpoints": count})


def entry_line(row: Row) -> bytes:
    """One entry as a line."""
    head = b'{"index":%d,"leaf_hash":"%b",' % (row.index, row.leaf_hash.hex().encode())
    if row.body is None:
        return head + b'"body":null}\n'
    if row.body[:1] == b"{" and row.body[-1:] == b"}" and b"\n" not in row.body:
        return b'%b"body":%b}\n' % (head, row.body)
    return b'%b"body_base64":"%b"}\n' % (head, b64encode(row.body))


def parse_head(line: bytes) -> Head:
    """Reads the first line. Raises ``ProofInvalid`` or ``KeyInvalid``."""
    document = _parse(line)
    if document.get("format") != FORMAT:
        raise ProofInvalid(f"this is no export of a log: the first line does not name the format {FORMAT}")
    if list(document) != ["format", "origin", "key", "from", "edge"]:
        raise ProofInvalid("the first line of the export does not hold what it should")
    origin, key, first, edge = (document[name] for name in ("origin", "key", "from", "edge"))
    sound = isinstance(origin, str) and isinstance(key, str) and isinstance(edge, list) and type(first) is int
    if not sound or not all(isinstance(found, str) for found in edge):
        raise ProofInvalid("the first line of the export does not hold what it should")
    return Head(origin, VerifierKey.parse(key), Edge(first, [decode_base64(found) for found in edge]))


def odd_body(rest: bytes) -> bytes:
    """The body of an entry line from ``body_base64`` on. Raises ``ProofInvalid``."""
    head, tail = b'"body_base64":"', b'"}\n'
    if not rest.startswith(head) or not rest.endswith(tail):
        raise ProofInvalid("the line has another form than an entry")
    body = decode_base64(rest[len(head) : -len(tail)].decode("ascii", "replace"))
    if body[:1] == b"{" and body[-1:] == b"}" and b"\n" not in body:
        raise ProofInvalid("the line has another form than this entry")
    return body


def parse_checkpoint(line: bytes) -> bytes:
    """Reads a checkpoint line. Raises ``ProofInvalid``."""
    document = _parse(line)
    note = document.get("checkpoint")
    if list(document) != ["checkpoint"] or not isinstance(note, str):
        raise ProofInvalid("the line is neither an entry nor a checkpoint nor the end")
    return note.encode("utf-8", "replace")


def parse_end(line: bytes) -> tuple[int, int]:
    """Reads the last line: size, and number of checkpoints. Raises ``ProofInvalid``."""
    document = _parse(line)
    size, count = document.get("end"), document.get("checkpoints")
    if list(document) != ["end", "checkpoints"] or type(size) is not int or type(count) is not int:
        raise ProofInvalid("the last line does not hold what it should")
    return size, count


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any]:
    """A line in its one spelling."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProofInvalid("the line is no JSON; the export may be cut off or damaged") from error
    if not isinstance(document, dict) or _line(document) != line:
        raise ProofInvalid("the line is not spelled as an export spells it")
    return document
