"""A block of a log and what its entries say, as bits: the form of the search index, without any input or output.

A block is ``block_entries()`` entries in a row. For each value of each field it has a posting: the offsets of the
entries that have the value. Which entries match several filters is an AND of whole numbers, so that a search looks at
the entries of its page and at no others.

    nothing                 every entry of the block
    pairs of bytes          few: their offsets, rising, little-endian
    a bit for each entry    the rest: little-endian, the first entry lowest

Rules: a posting is never empty of entries; the three forms differ by their length; fields are stored as their position
in ``FIELDS``: append new ones at the end, never reorder.
It refuses: nothing; what is damaged is found by ``audit.block_check``.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import Final

from audit.record import TERM_FIELDS
from audit.tables import place

BLOCK_BITS = 12
"""4,096 entries: a value takes at most 512 bytes, and ten million entries are 2,441 blocks."""

FIELDS: Final = (
    "kind",
    "tenant",
    "project",
    "environment",
    "principal",
    "outcome",
    "denied_by",
    "pool",
    "provider",
    "country",
    "model",
    "model_version",
    "classification",
    "sla_class",
    "mode",
    "policy_commit",
    "fleet_commit",
    "data_source",
    "rejected_pool",
    "rule",
    "waiver",
    "approver",
)
COLUMNS: Final = tuple(name for name in FIELDS if name == "country" or name not in TERM_FIELDS)
"""The fields that are columns of an entry. The others, and countries too, come from its terms or its sheet."""

Terms = tuple[tuple[int, int], ...]
"""Fields, by their position in ``TERM_FIELDS``, and values."""

FEW: Final = 64
_DIGITS: Final = bytes.maketrans(b"01", b"\x00\x01")
_FIELD_OF_TERM: Final = tuple(FIELDS.index(name) for name in TERM_FIELDS)


def block_entries() -> int:
    """How many entries a block has."""
    return 1 << BLOCK_BITS


def block_of(stored: int) -> int:
    """The number of the block that holds this place."""
    return stored >> BLOCK_BITS


def first_place(block: int) -> int:
    """The place of the first entry of a block."""
    return block << BLOCK_BITS


def blocks_of(log: int) -> tuple[int, int]:
    """The numbers that the blocks of a log can have: the first, and the first that they cannot."""
    return place(log, 0) >> BLOCK_BITS, place(log + 1, 0) >> BLOCK_BITS


def bits_of(offsets: Sequence[int]) -> int:
    """The number whose bits are these offsets, each named once."""
    if len(offsets) < FEW:
        return sum([1 << offset for offset in offsets])
    size = block_entries()
    digits = bytearray(b"0") * size
    for offset in offsets:
        digits[size - 1 - offset] = 49
    return int(digits, 2)


def offsets_of(bits: int) -> list[int]:
    """The offsets of the bits that are set, rising."""
    if bits.bit_count() < FEW:
        return last_offsets_of(bits, FEW)[::-1]
    digits = bin(bits)[:1:-1].encode().translate(_DIGITS)
    return list(compress(range(len(digits)), digits))


def last_offsets_of(bits: int, limit: int) -> list[int]:
    """The highest ``limit`` of the bits that are set, falling."""
    digits = bin(bits)[2:]
    found: list[int] = []
    at = digits.find("1")
    while at >= 0 and len(found) < limit:
        found.append(len(digits) - 1 - at)
        at = digits.find("1", at + 1)
    return found


def packed(offsets: Sequence[int]) -> bytes:
    """The posting of these offsets, which rise; there is at least one."""
    count = len(offsets)
    if count == block_entries():
        return b""
    if _is_sparse(2 * count):
        return struct.pack(f"<{count}H", *offsets)
    return bits_of(offsets).to_bytes(_dense_bytes(), "little")


def packed_bits(bits: int) -> bytes:
    """The posting of these bits, of which there is at least one."""
    count = bits.bit_count()
    if count == block_entries():
        return b""
    if _is_sparse(2 * count):
        return packed(offsets_of(bits))
    return bits.to_bytes(_dense_bytes(), "little")


def unpacked(content: bytes) -> int:
    """The bits of a posting."""
    if not content:
        return (1 << block_entries()) - 1
    if _is_sparse(len(content)):
        return bits_of(struct.unpack(f"<{len(content) // 2}H", content))
    return int.from_bytes(content, "little")


def packed_times(times_us: Sequence[int]) -> bytes:
    """The times of a block."""
    return struct.pack(f"<{len(times_us)}q", *times_us)


def unpacked_times(content: bytes) -> tuple[int, ...]:
    """The times of a block, in the order of its entries."""
    return struct.unpack(f"<{len(content) // 8}q", content)


def time_at(content: bytes, offset: int) -> int:
    """The time of one entry of a block."""
    return int.from_bytes(content[8 * offset : 8 * offset + 8], "little", signed=True)


def column_offsets(column: Sequence[int | None]) -> dict[int, Sequence[int]]:
    """For each number in a column, the offsets of the entries that have it."""
    first = column[0]
    if column.count(first) == len(column):
        return {} if first is None else {first: range(len(column))}
    offsets: defaultdict[int | None, list[int]] = defaultdict(list)
    for offset, number in enumerate(column):
        offsets[number].append(offset)
    return {number: found for number, found in offsets.items() if number is not None}


def postings(
    columns: Mapping[str, Sequence[int | None]],
    terms: Iterable[tuple[int, int, int]],
    sheet_terms: Mapping[int, Terms],
) -> dict[tuple[int, int], bytes]:
    """The posting of each field and value that occur in a full block.

    ``terms`` are those of its entries (field by ``TERM_FIELDS``, value, offset), ``sheet_terms`` those of its sheets.
    """
    found: dict[tuple[int, int], bytes] = {}
    bits: defaultdict[tuple[int, int], int] = defaultdict(int)
    for nth, name in enumerate(FIELDS):
        if name in TERM_FIELDS:
            continue
        found.update(((nth, number), packed(offsets)) for number, offsets in column_offsets(columns[name]).items())
    for number, offsets in column_offsets(columns["country"]).items():
        bits[FIELDS.index("country"), number] = bits_of(offsets)
    of_terms: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for field, value, offset in terms:
        of_terms[_FIELD_OF_TERM[field], value].append(offset)
    for key, offsets in of_terms.items():
        bits[key] |= bits_of(offsets)
    # Many sheets say the same of the same pools: what they say together is added once.
    of_sheets: defaultdict[Terms, int] = defaultdict(int)
    for sheet, offsets in column_offsets(columns["sheet"]).items():
        of_sheets[sheet_terms.get(sheet, ())] |= bits_of(offsets)
    for each, saying in of_sheets.items():
        for field, value in each:
            bits[_FIELD_OF_TERM[field], value] |= saying
    found.update((key, packed_bits(each)) for key, each in bits.items())
    return found


def _dense_bytes() -> int:
    return max(1, block_entries() // 8)


def _is_sparse(length_bytes: int) -> bool:
    return length_bytes < _dense_bytes()
