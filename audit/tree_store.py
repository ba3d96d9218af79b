"""The tree where the log is: growing it with the entries, and reading nodes, checkpoints and rows back.

Rules: owns no transaction; nodes are written in the transaction of the entries that complete them; what a proof needs
is read in blocks of 256 hashes; reading a whole log takes one page of rows at a time.
It refuses: a log with fewer entries than its own nodes and checkpoints are about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, func, select

from audit.errors import LogCorrupt, LogRolledBack
from audit.export import Row
from audit.tables import BODY, ENTRY, has_body, index_of, place
from audit.tree import Edge, NodeSource, edge_at
from audit.tree_tables import CHECKPOINT, STEP, TREE_NODE

BLOCK: Final = 1 << STEP
ROWS_PER_PAGE: Final = 1_000
BLOCKS_MAX: Final = 64


class TreeTail:
    """What the one writer remembers of its tree: valid until a rollback."""

    def __init__(self, connection: Connection, log: int = 0) -> None:
        """Read it from the log; entries that an older version wrote without a tree are hashed now."""
        self._log = log
        size = entries_of(connection, log)
        blocks = connection.execute(
            select(func.max(TREE_NODE.c.index)).where(TREE_NODE.c.log == log, TREE_NODE.c.level == STEP)
        ).scalar()
        hashed = 0 if blocks is None else (int(blocks) + 1) * BLOCK
        if hashed > size:
            raise LogRolledBack(f"the tree was made over {hashed} entries: the log was rolled back", index=size)
        node = stored_nodes(connection, log)
        if size - hashed < BLOCK:
            self.edge = edge_at(size, node)
            return
        self.edge = edge_at(hashed, node)
        for page in _leaf_pages(connection, log, hashed, size):
            self.extend(connection, page)

    def extend(self, connection: Connection, leaves: Sequence[bytes]) -> None:
        """The leaf hashes of entries that this transaction appends."""
        rows = [
            {"log": self._log, "level": run.level, "index": run.first + nth, "hash": found}
            for run in self.edge.extend(leaves)
            if run.level % STEP == 0
            for nth, found in enumerate(run.hashes)
        ]
        if rows:
            connection.execute(TREE_NODE.insert(), rows)


def entries_of(connection: Connection, log: int = 0) -> int:
    """How many entries a log has; no index is missing below."""
    last = connection.execute(select(func.max(ENTRY.c.index)).where(_within(log, 0, None))).scalar()
    return 0 if last is None else index_of(last) + 1


def stored_nodes(connection: Connection, log: int = 0) -> NodeSource:
    """Nodes as they are stored, and those between hashed from what is below."""
    blocks: dict[tuple[int, int], tuple[bytes, ...]] = {}

    def block(level: int, number: int) -> tuple[bytes, ...]:
        if (level, number) not in blocks:
            if len(blocks) >= BLOCKS_MAX:
                blocks.clear()
            blocks[level, number] = _hashes(connection, log, level, number * BLOCK, (number + 1) * BLOCK)
        return blocks[level, number]

    def node(level: int, index: int) -> bytes:
        base = level - level % STEP
        width = 1 << (level - base)
        number, start = divmod(index * width, BLOCK)
        found = block(base, number)[start : start + width]
        if len(found) != width:
            raise LogCorrupt(f"node {index} of level {level} of the tree cannot be made: hashes below it are missing")
        edge = Edge()
        edge.extend(found)
        return edge.root()

    return node


def _hashes(connection: Connection, log: int, level: int, start: int, end: int) -> tuple[bytes, ...]:
    if level:
        of_level = and_(TREE_NODE.c.log == log, TREE_NODE.c.level == level)
        within = and_(of_level, TREE_NODE.c.index >= start, TREE_NODE.c.index < end)
        rows = connection.execute(
            select(TREE_NODE.c.index, TREE_NODE.c.hash).where(within).order_by(TREE_NODE.c.index)
        ).all()
        indexes = [index for index, _ in rows]
    else:
        rows = connection.execute(
            select(ENTRY.c.index, ENTRY.c.leaf_hash).where(_within(log, start, end)).order_by(ENTRY.c.index)
        ).all()
        indexes = [index_of(stored) for stored, _ in rows]
    # What is missing in the middle would give what follows another place.
    whole = len(indexes) if indexes == list(range(start, start + len(indexes))) else 0
    return tuple(found for _, found in rows[:whole])


def _leaf_pages(connection: Connection, log: int, start: int, end: int) -> Iterator[list[bytes]]:
    for first in range(start, end, ROWS_PER_PAGE):
        last = min(first + ROWS_PER_PAGE, end)
        page = _hashes(connection, log, 0, first, last)
        if len(page) != last - first:
            raise LogCorrupt("missing, or one of those that follow", index=first)
        yield list(page)


def add_checkpoint(connection: Connection, log: int, size: int, time_us: int, note: bytes) -> None:
    """Keep a signed note, in the transaction of the last entries that it is over."""
    connection.execute(CHECKPOINT.insert(), {"log": log, "size": size, "time_us": time_us, "note": note})


def last_checkpoint(connection: Connection, log: int = 0) -> tuple[int, bytes] | None:
    """Size and note of the newest checkpoint."""
    row = connection.execute(
        select(CHECKPOINT.c.size, CHECKPOINT.c.note)
        .where(CHECKPOINT.c.log == log)
        .order_by(CHECKPOINT.c.size.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else (row.size, row.note)


def covering_checkpoint(connection: Connection, index: int, log: int = 0) -> tuple[int, bytes] | None:
    """The first checkpoint that is over the entry at ``index``."""
    row = connection.execute(
        select(CHECKPOINT.c.size, CHECKPOINT.c.note)
        .where(CHECKPOINT.c.log == log, CHECKPOINT.c.size > index)
        .order_by(CHECKPOINT.c.size)
        .limit(1)
    ).one_or_none()
    return None if row is None else (row.size, row.note)


class StoredLog:
    """A log in a database as ``audit.export`` reads it. ``origin`` is its name."""

    def __init__(self, connection: Connection, origin: str, log: int = 0) -> None:
        self.connection = connection
        self._log = log
        self.origin = origin
        self.node = stored_nodes(connection, log)

    def checkpoints(self, after: int) -> Iterator[tuple[int, bytes]]:
        """Those over more than ``after`` entries, in order of size."""
        while True:
            rows = self.connection.execute(
                select(CHECKPOINT.c.size, CHECKPOINT.c.note)
                .where(CHECKPOINT.c.log == self._log, CHECKPOINT.c.size > after)
                .order_by(CHECKPOINT.c.size)
                .limit(ROWS_PER_PAGE)
            ).all()
            if not rows:
                return
            yield from ((size, note) for size, note in rows)
            after = rows[-1].size

    def rows(self, start: int, end: int) -> Iterator[Row]:
        """The entries from ``start`` to before ``end``."""
        for first in range(start, end, ROWS_PER_PAGE):
            page = self.connection.execute(
                select(ENTRY.c.index, ENTRY.c.kind, ENTRY.c.leaf_hash, BODY.c.body)
                .join_from(ENTRY, BODY, has_body(self.connection), isouter=True)
                .where(_within(self._log, first, min(first + ROWS_PER_PAGE, end)))
                .order_by(ENTRY.c.index)
            )
            for stored, kind, leaf, body in page:
                if not isinstance(body, bytes) and kind >= 0:
                    raise LogCorrupt("its body is missing", index=index_of(stored))
                yield Row(index_of(stored), leaf, body if isinstance(body, bytes) else None)


def _within(log: int, start: int, end: int | None) -> ColumnElement[bool]:
    last = place(log + 1, 0) if end is None else place(log, end)
    return and_(ENTRY.c.index >= place(log, start), ENTRY.c.index < last)
