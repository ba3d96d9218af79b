"""Compressed answers: the bytes are those of the plain answer, for every reader of gzip."""

from __future__ import annotations

import gzip
import zlib
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.api.packing import PACKED_MIN_BYTES, Packing, accepts_gzip, gzipped, packed

ASKED = [(b"accept-encoding", b"gzip")]
OWN = st.binary(max_size=300)
SHARED = st.builds(lambda text, times: text * times, st.binary(min_size=1, max_size=40), st.integers(0, 300))


@given(st.lists(st.one_of(OWN, st.builds(packed, SHARED)), max_size=7), st.data())
def test_one_member_holds_the_pieces(pieces: list[Any], data: st.DataObject) -> None:
    plain = b"".join(
        zlib.decompress(p.deflated + b"\x03\x00", wbits=-15) if not isinstance(p, bytes) else p for p in pieces
    )
    written = b"".join(gzipped(pieces))
    assert gzip.decompress(written) == plain
    reader = zlib.decompressobj(wbits=31)
    cut = data.draw(st.integers(0, len(written)))
    assert reader.decompress(written[:cut]) + reader.decompress(written[cut:]) == plain
    assert reader.eof
    assert not reader.unused_data


@given(SHARED, st.integers(0, 0xFFFFFFFF))
def test_the_checksum_needs_no_look_at_the_content(content: bytes, start: int) -> None:
    assert packed(content).crc32_after(start) == zlib.crc32(content, start)


@pytest.mark.parametrize("length", [0, 65_535, 65_536, 200_000])
def test_a_long_piece_of_ones_own_is_stored_whole(length: int) -> None:
    own = bytes(range(256)) * (length // 256 + 1)
    written = b"".join(gzipped([own[:length], packed(b"x" * 9_000)]))
    assert gzip.decompress(written) == own[:length] + b"x" * 9_000


@pytest.mark.parametrize(
    ("asked", "accepted"),
    [
        ([b"gzip"], True),
        ([b"x-gzip"], True),
        ([b"GZip, deflate, br"], True),
        ([b"br", b"gzip;q=0.2"], True),
        ([b"*"], True),
        ([b"deflate, * ; q=0.1"], True),
        ([b"gzip;q=1.0, identity; q=0.5, *;q=0"], True),
        ([], False),
        ([b""], False),
        ([b"identity"], False),
        ([b"gzip;q=0"], False),
        ([b"gzip; q=0.000, *"], False),
        ([b"*;q=0"], False),
        ([b"gzip;q=0.1, identity"], False),
        ([b"gzip;q=none"], False),
        ([b"gzipped"], False),
        ([b"a" * 600 + b", gzip"], False),
    ],
)
def test_who_accepts_gzip(asked: list[bytes], accepted: bool) -> None:
    assert accepts_gzip([(b"host", b"gzip"), *((b"accept-encoding", value) for value in asked)]) is accepted


def sheet(content: bytes) -> Any:
    return SimpleNamespace(digest=f"sha256:{zlib.crc32(content)}", shown_refused_json=content, lifted=())


def test_only_what_a_sheet_shares_is_compressed() -> None:
    long, short = sheet(b"refused " * 5_000), sheet(b"[]")
    alike = b"refused " * 5_000
    packing = Packing()
    headers, pieces = packing.answer(ASKED, [b"{", long.shown_refused_json, b"}"], [long])
    assert (b"content-encoding", b"gzip") in headers
    assert sum(map(len, pieces)) < PACKED_MIN_BYTES
    for own, sheets in ((alike, [long]), (short.shown_refused_json, [short]), (alike, [])):
        headers, pieces = packing.answer(ASKED, [b"{", own, b"}"], sheets)
        assert (b"content-encoding", b"gzip") not in headers
        assert b"".join(pieces) == b"{" + own + b"}"


def test_it_remembers_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policyd.api.packing.PACKED_MAX", 2)
    packing = Packing()
    for number in (1, 2, 1, 3):
        content = b"%d" % number * PACKED_MIN_BYTES
        packing.answer(ASKED, [content], [sheet(content)])
    assert [each.length // PACKED_MIN_BYTES for each in packing._packed.values()] == [1, 1]
    assert [gzip.decompress(b"".join(gzipped([each])))[:1] for each in packing._packed.values()] == [b"1", b"3"]
