"""Whether the search index says what the entries say: an entry that a search passes over is lost for an auditor.

Each sealed block is indexed once more from its entries, and compared with the rows that are stored.

Rules: memory stays flat however long the log is; the first entry that the index is wrong about is named. A block
without a row is no fault, because a search reads its entries themselves.
It refuses: nothing.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from sqlalchemy import Connection, func, select

from audit import blocks
from audit.block_store import BlockRows, Sealer
from audit.block_tables import BLOCK, POSTING
from audit.blocks import FIELDS
from audit.errors import LogCorrupt
from audit.tables import INDEX_BITS, index_of

PAGE_BLOCKS: Final = 256


def check_index(connection: Connection, log: int) -> None:
    """Compare the index of a log with its entries. Raises ``LogCorrupt`` naming the first that it is wrong about."""
    first, end = blocks.blocks_of(log)
    # It remembers nothing, so everything is read.
    sealer = Sealer(log, 1 << INDEX_BITS)
    at, expected = first, 0
    while True:
        rows = connection.execute(
            select(BLOCK).where(BLOCK.c.number >= at, BLOCK.c.number < end).order_by(BLOCK.c.number).limit(PAGE_BLOCKS)
        ).all()
        for number, *stored in rows:
            made = sealer.rows(connection, number)
            expected += len(made[1])
            if list(made[0][1:]) != stored:
                raise LogCorrupt("the search index has other times", index=index_of(blocks.first_place(number)))
            _compare(connection, number, made)
        if len(rows) < PAGE_BLOCKS:
            break
        at = rows[-1].number + 1
    count = select(func.count()).select_from(POSTING).where(POSTING.c.block >= first, POSTING.c.block < end)
    surplus = connection.execute(count).scalar_one() - expected
    if surplus:
        raise LogCorrupt(f"the search index has {surplus} rows that no entry brings")


def _compare(connection: Connection, number: int, made: BlockRows) -> None:
    wanted: defaultdict[int, dict[int, bytes]] = defaultdict(dict)
    for field, value, _, offsets in made[1]:
        wanted[field][value] = offsets
    wrong: list[tuple[int, str]] = []
    for field, values in wanted.items():
        rows = connection.execute(
            select(POSTING.c.value, POSTING.c.offsets).where(
                POSTING.c.field == field, POSTING.c.value.in_(sorted(values)), POSTING.c.block == number
            )
        )
        stored: dict[int, bytes] = dict(rows.all())
        for value, offsets in values.items():
            if stored.get(value) != offsets:
                found = blocks.unpacked(stored[value]) if value in stored else 0
                odd = found ^ blocks.unpacked(offsets)
                lowest = (odd & -odd).bit_length() - 1
                wrong.append((max(0, lowest), FIELDS[field]))
    if wrong:
        offset, name = min(wrong)
        raise LogCorrupt(
            f"the search index does not say its {name}", index=index_of(blocks.first_place(number) + offset)
        )
