"""Entries as lines: what is written is read back, and nothing that a go-between changes, drops or adds is read."""

from __future__ import annotations

import pytest

from audit import entry_lines
from audit.entries import Stored
from audit.entry_lines import page_lines, read_page
from audit.errors import ProofInvalid
from audit.record import leaf_hash

ID = "0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b"
BODIES = (b'{"kind":"decision","said":",\\"body\\":{}"}', b'{"two":\n"lines"}', b"no object", b'{"id":3}', b'{"id":4}')


def entry(index: int, body: bytes, **search: str) -> Stored:
    return Stored(index, ID, "decision", 1_700_000_000_000_000 + index, leaf_hash(body), body, search)


FOUND = [
    entry(7, BODIES[0], tenant='a,"body":b', model="ü"),
    entry(9, BODIES[1]),
    entry(10, BODIES[2]),
    entry(12, BODIES[4]),
]


def test_what_is_written_is_read() -> None:
    page = read_page(page_lines("policyd/test", 20, 7, 14, FOUND), 7)
    assert (page.origin, page.size, page.start, page.end) == ("policyd/test", 20, 7, 14)
    assert list(page.entries) == FOUND
    nothing = read_page(page_lines("policyd/test", 20, 20, 20, []), 20)
    assert (nothing.end, nothing.entries) == (20, ())


def test_a_page_that_would_become_too_long_ends_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_lines, "PAGE_MAX_BYTES", 1)
    content = page_lines("policyd/test", 20, 5, 14, FOUND)
    page = read_page(content, 5)
    assert (page.end, list(page.entries)) == (9, FOUND[:1])
    at, found = 9, FOUND[:1]
    while at < 14:
        page = read_page(page_lines("policyd/test", 20, at, 14, [each for each in FOUND if each.index >= at]), at)
        assert len(page.entries) <= 1
        at = page.end
        found += page.entries
    assert found == FOUND


WHOLE = page_lines("policyd/test", 14, 7, 14, FOUND)
LINES = WHOLE.splitlines(keepends=True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"null\nnull\nnull\n",
        WHOLE[:-1],
        b"".join(LINES[:-1]),
        b"".join(LINES[:3] + LINES[4:]),
        b"".join([*LINES[:2], LINES[3], LINES[2], *LINES[4:]]),
        b"".join([*LINES[:-1], LINES[-2], LINES[-1]]),
        WHOLE.replace(b'"from":7', b'"from":8'),
        WHOLE.replace(b'"size":14', b'"size":13'),
        WHOLE.replace(b'"size":14', b'"size":"14"'),
        WHOLE.replace(b"policyd-entries@v1", b"policyd-entries@v2"),
        WHOLE.replace(b'"said"', b'"sand"'),
        WHOLE.replace(b'"kind":"decision","time', b'"kind":"decree","time'),
        WHOLE.replace(b'"time_us":1', b'"time_us":-1'),
        WHOLE.replace(b'"tenant"', b'"tenants"'),
        WHOLE.replace(b'"model":"\xc3\xbc"', b'"model":7'),
        WHOLE.replace(ID.encode(), ID.upper().encode(), 1),
        WHOLE.replace(b'"index":7,', b'"more":1,"index":7,'),
        WHOLE.replace(leaf_hash(BODIES[4]).hex().encode(), leaf_hash(BODIES[3]).hex().encode()),
        page_lines("policyd/test", 20, 7, 7, []),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_page_of_entries_is_refused(content: bytes) -> None:
    assert content != WHOLE
    with pytest.raises(ProofInvalid, match=r"page of entries|entry \d+"):
        read_page(content, 7)


def test_no_byte_of_a_body_can_change_unseen() -> None:
    at = WHOLE.index(b'{"id":4}')
    for place in range(at, at + 8):
        with pytest.raises(ProofInvalid):
            read_page(WHOLE[:place] + bytes([WHOLE[place] ^ 1]) + WHOLE[place + 1 :], 7)
