"""Answers with ``Content-Encoding: gzip``, for nearly nothing: what a sheet's answers share is compressed once.

    gzip head │ stored: before `rejected` │ deflated once a sheet: `rejected` │ stored: after it │ checksum, length

One gzip member, since many readers stop after the first. Its checksum needs no look at the shared part: a CRC is linear
in the value that it starts from, so the checksum after that part is one number, and one more for each bit of the start.

Rules: the body is the same to the byte with and without compression; what is one caller's own is never compressed, so
that no length tells of it, and because sending it is cheaper; compression is only for who accepts it.
It refuses to remember more than ``PACKED_MAX`` sheets, and to pack what is too short to gain from it.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from policyd.core.sheet import Sheet

PACKED_MAX: Final = 4_096
"""As many as sheets are held (``engine.sheets_max``); a packed one takes some kilobytes."""
PACKED_MIN_BYTES: Final = 4_096
ACCEPT_MAX_BYTES: Final = 512
SENT_MIN_BYTES: Final = 65_536
VARY: Final = (b"vary", b"Accept-Encoding")
_JSON: Final = (b"content-type", b"application/json")
GZIP: Final = (b"content-encoding", b"gzip")

_HEAD: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_STORED_MAX_BYTES: Final = 65_535
_RAW: Final = -15
_GZIP_NAMES: Final = (b"gzip", b"x-gzip")


class Packed(NamedTuple):
    """A part of many answers: deflated, up to a whole byte and without the end, and how it changes a checksum."""

    length: int
    deflated: bytes
    from_zero: int
    by_bit: tuple[int, ...]

    def crc32_after(self, start: int) -> int:
        """``zlib.crc32`` of this part, begun at ``start``."""
        found = self.from_zero
        for change in self.by_bit:
            if start & 1:
                found ^= change
            start >>= 1
        return found


def packed(content: bytes) -> Packed:
    """Compress a part that will be sent often."""
    deflater = zlib.compressobj(wbits=_RAW)
    deflated = deflater.compress(content) + deflater.flush(zlib.Z_FULL_FLUSH)
    from_zero = zlib.crc32(content)
    by_bit = tuple(zlib.crc32(content, 1 << bit) ^ from_zero for bit in range(32))
    return Packed(len(content), deflated, from_zero, by_bit)


@dataclass(slots=True)
class Packing:
    """What was compressed, by the digest of its sheet, or by its own where waivers have changed it; what was asked for
    longest ago goes first."""

    _packed: OrderedDict[str, Packed] = field(default_factory=OrderedDict)

    def answer(
        self, asked: Iterable[tuple[bytes, bytes]], pieces: Sequence[bytes], sheets: Iterable[Sheet]
    ) -> tuple[list[tuple[bytes, bytes]], Sequence[bytes]]:
        """The headers of a body and the body, both in pieces, for who sent the headers ``asked``.

        What answers of ``sheets`` share is found among the pieces by being the same object.
        """
        if accepts_gzip(asked):
            shared = {id(sheet.shown_refused_json): sheet for sheet in sheets}
            found = [self._packed_piece(piece, shared.get(id(piece))) for piece in pieces]
            if any(isinstance(piece, Packed) for piece in found):
                written = gzipped(found)
                return [_JSON, _length(written), VARY, GZIP], written
        return [_JSON, _length(pieces), VARY], pieces

    def _packed_piece(self, piece: bytes, sheet: Sheet | None) -> bytes | Packed:
        gains = sheet is not None and len(piece) >= PACKED_MIN_BYTES
        if sheet is None or not gains:
            return piece
        # What waivers leave of a sheet has its digest, and says something else.
        return self._of(sha256(piece).hexdigest() if sheet.lifted else sheet.digest, piece)

    def _of(self, digest: str, shared: bytes) -> Packed:
        found = self._packed.get(digest)
        if found is not None:
            self._packed.move_to_end(digest)
            return found
        found = self._packed[digest] = packed(shared)
        if len(self._packed) > PACKED_MAX:
            self._packed.popitem(last=False)
        return found


class Pieces(Response):
    """An answer that leaves in pieces, so that a long one is never in memory as a whole."""

    def __init__(self, headers: Sequence[tuple[bytes, bytes]], pieces: Sequence[bytes]) -> None:
        super().__init__()
        self.raw_headers = list(headers)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; the connection waits for the reader between the pieces."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        waiting: list[bytes] = []
        length = 0
        for piece in self._pieces:
            waiting.append(piece)
            length += len(piece)
            if length >= SENT_MIN_BYTES:
                await send({"type": "http.response.body", "body": b"".join(waiting), "more_body": True})
                waiting, length = [], 0
        await send({"type": "http.response.body", "body": b"".join(waiting), "more_body": False})


def gzipped(pieces: Iterable[bytes | Packed]) -> list[bytes]:
    """One gzip member that holds the pieces."""
    parts, crc, length = [_HEAD], 0, 0
    for piece in pieces:
        if isinstance(piece, Packed):
            crc, length = piece.crc32_after(crc), length + piece.length
            parts.append(piece.deflated)
        else:
            crc, length = zlib.crc32(piece, crc), length + len(piece)
            parts += _stored(piece)
    parts.append(_stored_head(0, last=True) + crc.to_bytes(4, "little") + (length & 0xFFFFFFFF).to_bytes(4, "little"))
    return parts


def _length(pieces: Iterable[bytes]) -> tuple[bytes, bytes]:
    return (b"content-length", str(sum(map(len, pieces))).encode())


def _stored(content: bytes) -> Iterable[bytes]:
    if len(content) <= _STORED_MAX_BYTES:
        return (_stored_head(len(content)), content)
    starts = range(0, len(content), _STORED_MAX_BYTES)
    return [each for start in starts for each in _stored(content[start : start + _STORED_MAX_BYTES])]


def _stored_head(length: int, *, last: bool = False) -> bytes:
    """The head of a block of deflate that is not compressed (RFC 1951, section 3.2.4), at a whole byte."""
    return bytes((last,)) + length.to_bytes(2, "little") + (length ^ 0xFFFF).to_bytes(2, "little")


def accepts_gzip(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request's ``Accept-Encoding`` lets the answer be gzip. Without one, it is not asked for."""
    asked = [value for name, value in headers if name == b"accept-encoding"]
    written = b",".join(asked)
    return 0 < len(written) <= ACCEPT_MAX_BYTES and _accepts_gzip(written)


@lru_cache(maxsize=256)
def _accepts_gzip(asked: bytes) -> bool:
    weights: dict[bytes, float] = {}
    for part in asked.lower().split(b","):
        name, *parameters = (each.strip() for each in part.split(b";"))
        weights[name] = min((_weight(each) for each in parameters), default=1.0)
    named = [weights[name] for name in _GZIP_NAMES if name in weights]
    gzip = max(named) if named else weights.get(b"*", 0.0)
    # Compressing gains nothing for who would rather have it plain.
    return gzip > 0 and gzip >= weights.get(b"identity", 0.0)


def _weight(parameter: bytes) -> float:
    name, _, value = parameter.partition(b"=")
    if name.strip() != b"q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
