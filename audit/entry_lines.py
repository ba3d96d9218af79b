"""Entries with their columns as JSON lines, for whoever copies a log over a network.

    {"format":"policyd-entries@v1","origin":…,"from":<index>,"size":<entries of the log>}
    {"index":…,"id":…,"kind":…,"time_us":…,"search":{…},"leaf_hash":<hex>,"body":<the exact bytes>}
    {"index":…,"id":…,"kind":…,"time_us":…,"search":{…},"leaf_hash":<hex>,"body_base64":<base64>}
    {"index":…,"body":null}                       an entry whose body retention has removed
    {"end":<the first index that is not here>}

Rules: pure; every index has its line, so that nothing can be left out unseen; a body that is read has its hash.
It refuses: lines in any other form. Columns serve finding and counting: that they are those of the log is the word of
whoever wrote the lines, and what proves anything is an export.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard
from uuid import UUID

import orjson

from audit.entries import Stored
from audit.errors import ProofInvalid
from audit.export import odd_body
from audit.record import INTEGER_MAX, KINDS, SEARCH_FIELDS, leaf_hash

FORMAT: Final = "policyd-entries@v1"
PAGE_MAX_BYTES: Final = 8 * 1024 * 1024
"""Of bodies on a page that has more than one."""

_BODY: Final = b',"body":'
_BODY_BASE64: Final = b',"body_base64":'
_NAMES: Final = ["index", "id", "kind", "time_us", "search", "leaf_hash"]


@dataclass(frozen=True, slots=True)
class EntryPage:
    """A part of a log of ``size`` entries, from an index on and before ``end``; removed bodies are not in it."""

    origin: str
    size: int
    start: int
    end: int
    entries: tuple[Stored, ...]


def page_lines(origin: str, size: int, start: int, end: int, found: Sequence[Stored]) -> bytes:
    """The page of these entries, which are those from ``start`` to before ``end`` that have a body.

    It ends sooner where it would become too long.
    """
    lines = [_line({"format": FORMAT, "origin": origin, "from": start, "size": size})]
    at, length_bytes = start, 0
    for entry in found:
        length_bytes += len(entry.body)
        if length_bytes > PAGE_MAX_BYTES and at > start:
            end = entry.index
            break
        lines += [_removed(index) for index in range(at, entry.index)]
        lines.append(_entry_line(entry))
        at = entry.index + 1
    lines += [_removed(index) for index in range(at, end)]
    return b"".join([*lines, _line({"end": end})])


def read_page(content: bytes, start: int) -> EntryPage:
    """The page that begins with ``start``. Raises ``ProofInvalid`` for what is none."""
    lines = content.split(b"\n")
    if len(lines) < 3 or lines.pop():
        raise ProofInvalid("the page of entries has no end")
    head, last = _parsed(lines[0], "its first line"), _parsed(lines[-1], "its last line")
    origin, size, end = head.get("origin"), head.get("size"), last.get("end")
    if head.get("format") != FORMAT or not isinstance(origin, str) or not _index(size) or not _index(end):
        raise ProofInvalid(f"it is no page of entries in the format {FORMAT}")
    if head.get("from") != start or end != start + len(lines) - 2 or not end <= size or (end == start and end < size):
        raise ProofInvalid("the page of entries is not the part of the log that was asked for")
    found = [_entry(line, index) for index, line in enumerate(lines[1:-1], start)]
    return EntryPage(origin, size, start, end, tuple(entry for entry in found if entry is not None))


def _entry_line(entry: Stored) -> bytes:
    told = {
        "index": entry.index,
        "id": entry.id,
        "kind": entry.kind,
        "time_us": entry.time_us,
        "search": entry.search,
        "leaf_hash": entry.leaf_hash.hex(),
    }
    head = orjson.dumps(told)[:-1]
    if entry.body[:1] == b"{" and entry.body[-1:] == b"}" and b"\n" not in entry.body:
        return b"%b%b%b}\n" % (head, _BODY, entry.body)
    return b'%b%b"%b"}\n' % (head, _BODY_BASE64, b64encode(entry.body))


def _entry(line: bytes, index: int) -> Stored | None:
    """The entry of a line, None when its body was removed."""
    if line + b"\n" == _removed(index):
        return None
    # Neither can stand within the texts before it, whose quotes are escaped.
    head, found, rest = line.partition(_BODY)
    if found:
        body = rest[:-1]
    else:
        head, _, rest = line.partition(_BODY_BASE64)
        body = odd_body(_BODY_BASE64[1:] + rest + b"\n")
    told = _parsed(head + b"}", f"entry {index}")
    if list(told) != _NAMES or told["index"] != index or not line.endswith(b"}"):
        raise ProofInvalid(f"the line of entry {index} is not one of an entry")
    if told["leaf_hash"] != leaf_hash(body).hex():
        raise ProofInvalid(f"entry {index}: the body is not what was recorded")
    kind, time_us, search = told["kind"], told["time_us"], told["search"]
    if kind not in KINDS or not _index(time_us) or not _is_id(told["id"]) or not _is_search(search):
        raise ProofInvalid(f"entry {index}: its columns are damaged")
    return Stored(index, told["id"], kind, time_us, leaf_hash(body), body, search)


def _index(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= INTEGER_MAX


def _is_id(value: object) -> bool:
    try:
        return str(UUID(str(value))) == value
    except ValueError:
        return False


def _is_search(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() <= set(SEARCH_FIELDS)
        and all(isinstance(text, str) for text in value.values())
    )


def _removed(index: int) -> bytes:
    return b'{"index":%d,"body":null}\n' % index


def _line(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)


def _parsed(line: bytes, what: str) -> dict[str, Any]:
    try:
        found = orjson.loads(line)
    except ValueError:
        raise ProofInvalid(f"the page of entries is cut off or damaged: {what} is no JSON") from None
    if not isinstance(found, dict):
        raise ProofInvalid(f"the page of entries is damaged: {what} is no object")
    return found
