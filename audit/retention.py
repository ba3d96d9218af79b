"""Retention entries: what a log says of bodies that it has removed, and what a verification holds against it.

    {"id":…,"kind":"retention","newest":<time>,"oldest":<time>,"removed":[[first, last], …],"rules":[[kind, days], …],
     "salt":…,"skipped":<held entries>,"time":…,"v":1}

A body that is missing waits in ``Pending`` until a later retention entry names its index: that entry is its warrant.

Rules: pure, with nothing but the standard library; a warrant names indexes and no ages, so that it covers exactly what
it says; memory is a bit for each body whose warrant has not come yet.
It refuses: a warrant over entries that are not before it, and one over entries younger than six months.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from json import loads
from typing import Any, Final

from audit.errors import ProofInvalid

KEEP_MIN_DAYS: Final = 184
"""Six months, the longest that they are."""
REMOVED_MAX: Final = 1_000
"""Bodies of one warrant: their ranges fit into one entry, whatever lies between them."""
_BLOCK_BITS: Final = 8
_INDEX_MAX: Final = 2**40


@dataclass(frozen=True, slots=True)
class Warrant:
    """What one retention entry says. ``bodies`` counts those that were found missing, and that it is the warrant of."""

    index: int
    id: str
    time: str
    oldest: str
    newest: str
    skipped: int
    removed: tuple[tuple[int, int], ...]
    bodies: int = 0

    @property
    def words(self) -> str:
        """The removal in a sentence."""
        held = f"; {self.skipped} were held" if self.skipped else ""
        return (
            f"entry {self.index} ({self.id}) is the warrant of {self.bodies} removed bodies, "
            f"of {self.oldest} to {self.newest}, at {self.time}{held}"
        )

    def to_json(self) -> dict[str, Any]:
        """The removal as a document."""
        times = {"time": self.time, "oldest": self.oldest, "newest": self.newest}
        return {"index": self.index, "id": self.id, "bodies": self.bodies, "skipped": self.skipped, **times}


def ranges(indexes: Sequence[int]) -> list[list[int]]:
    """Indexes, which rise, as first and last of each row."""
    found: list[list[int]] = []
    for index in indexes:
        if found and index == found[-1][1] + 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    return found


def read_warrant(index: int, body: bytes) -> Warrant:
    """What the retention entry at this index says. Raises ``ProofInvalid`` when it cannot be a warrant."""
    try:
        told = loads(body)
        removed = tuple((first, last) for first, last in told["removed"])
        numbers = [number for pair in removed for number in pair]
        sound = all(type(number) is int for number in (*numbers, told["skipped"]))
        sound = sound and numbers == sorted(numbers) and len(removed) <= REMOVED_MAX
        sound = sound and bool(numbers) and numbers[0] >= 0 and numbers[-1] < min(index, _INDEX_MAX)
        count = sum(last - first + 1 for first, last in removed)
        age = datetime.fromisoformat(told["time"]) - datetime.fromisoformat(told["newest"])
        times = (str(told["time"]), str(told["oldest"]), str(told["newest"]))
        found = Warrant(index, str(told["id"]), *times, told["skipped"], removed)
    except (ValueError, TypeError, KeyError) as error:
        raise ProofInvalid(f"it says that bodies were removed, and is not written so: {error}") from error
    if not sound or count > REMOVED_MAX:
        raise ProofInvalid("it says that bodies were removed which it cannot name")
    if age < timedelta(days=KEEP_MIN_DAYS):
        raise ProofInvalid(f"it says that bodies were removed which are younger than {KEEP_MIN_DAYS} days")
    return found


class Pending:
    """Bodies that are missing and have no warrant yet."""

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}
        self.total = 0
        """Missing bodies so far, with a warrant or without."""

    def miss(self, index: int) -> None:
        """The body at this index is not there."""
        block, bit = index >> _BLOCK_BITS, 1 << (index & ((1 << _BLOCK_BITS) - 1))
        self._blocks[block] = self._blocks.get(block, 0) | bit
        self.total += 1

    def warrant(self, first: int, last: int) -> int:
        """Those from ``first`` to ``last`` have a warrant; answers how many that are."""
        covered = 0
        for block in range(first >> _BLOCK_BITS, (last >> _BLOCK_BITS) + 1):
            begin = block << _BLOCK_BITS
            low, high = max(first - begin, 0), min(last - begin, (1 << _BLOCK_BITS) - 1)
            mask = (1 << (high + 1)) - (1 << low)
            waiting = self._blocks.get(block, 0)
            covered += (waiting & mask).bit_count()
            if waiting & ~mask:
                self._blocks[block] = waiting & ~mask
            else:
                self._blocks.pop(block, None)
        return covered

    @property
    def first(self) -> int | None:
        """The first body that no warrant covers."""
        if not self._blocks:
            return None
        block = min(self._blocks)
        bits = self._blocks[block]
        return (block << _BLOCK_BITS) + (bits & -bits).bit_length() - 1
