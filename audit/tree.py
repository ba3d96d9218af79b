"""The RFC 6962 Merkle tree over the entries of a log: its root, its right edge, and proofs about it.

    leaf = SHA-256(0x00 ‖ body)      node = SHA-256(0x01 ‖ left ‖ right)      root of nothing = SHA-256()

A node is named by level and index: level 0 holds the leaves, and node (l, i) covers the 2^l leaves from i·2^l. Proofs
are made from a source of such nodes, wherever they are kept.

Rules: pure: no clock, no input or output, no randomness; whole levels are hashed at once, because a call a leaf would
be most of the time; a proof is verified against the two things that its reader already has, and nothing else.
It refuses: a consistency proof from size 0 (every log starts with nothing, so it would prove nothing), indexes beyond
the tree, hashes that do not have 32 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Final

from audit.errors import ProofInvalid

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = sha256(b"").digest()
SIZE_MAX: Final = 2**63 - 1
PROOF_MAX_HASHES: Final = 126
"""More than any true proof has: two hashes a level at the most."""

NodeSource = Callable[[int, int], bytes]
"""Gives the hash of the node at a level and an index; every leaf below it must be in the log."""


@dataclass(frozen=True, slots=True)
class Run:
    """Nodes of one level that a batch completed, in order, from index ``first``."""

    level: int
    first: int
    hashes: tuple[bytes, ...]


def leaf_hash(body: bytes) -> bytes:
    """The hash of an entry: SHA-256 over a zero byte and the body."""
    return sha256(b"\x00" + body).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


class Edge:
    """The right edge of a growing tree: of each level, the last node that has no sibling yet. Enough to append.

    ``hashes`` has one hash for each bit of ``size`` that is set, the largest subtree first.
    """

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if not 0 <= size <= SIZE_MAX:
            raise ProofInvalid(f"a tree has no size {size}")
        if len(hashes) != size.bit_count():
            raise ProofInvalid(f"the edge of a tree of {size} has {size.bit_count()} hashes, and here {len(hashes)}")
        _check_hashes(hashes)
        levels = [level for level in range(size.bit_length()) if size >> level & 1]
        self.size = size
        self._open: dict[int, bytes] = dict(zip(reversed(levels), hashes, strict=True))

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """The open nodes, the largest subtree first."""
        return tuple(self._open[level] for level in sorted(self._open, reverse=True))

    def copy(self) -> Edge:
        """The same edge, which grows apart."""
        return Edge(self.size, self.hashes)

    def extend(self, leaves: Sequence[bytes]) -> list[Run]:
        """Append leaf hashes; answers the inner nodes that they completed, level by level."""
        level, nodes, runs = 0, list(leaves), []
        while nodes:
            first = self.size >> level
            if first & 1:
                nodes.insert(0, self._open.pop(level))
                first -= 1
            if len(nodes) & 1:
                self._open[level] = nodes.pop()
            pairs = iter(nodes)
            nodes = [_node_hash(left + right) for left, right in zip(pairs, pairs, strict=True)]
            level += 1
            if nodes:
                runs.append(Run(level, first >> 1, tuple(nodes)))
        self.size += len(leaves)
        return runs

    def root(self) -> bytes:
        """The root of the tree as it is now."""
        return _folded(self.hashes)


def edge_at(size: int, node: NodeSource) -> Edge:
    """The edge of the first ``size`` leaves, read from what is kept."""
    return Edge(size, [node(*name) for name in _subtrees(0, size)])


def root_at(size: int, node: NodeSource) -> bytes:
    """The root of the first ``size`` leaves."""
    return _span_hash(0, size, node)


def inclusion_proof(index: int, size: int, node: NodeSource) -> list[bytes]:
    """That leaf ``index`` is in the tree of the first ``size`` leaves: siblings from the leaf up."""
    if not 0 <= index < size <= SIZE_MAX:
        raise ProofInvalid(f"a tree of size {size} has no leaf {index}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        split = start + _split(end - start)
        if index < split:
            path.append(_span_hash(split, end, node))
            end = split
        else:
            path.append(_span_hash(start, split, node))
            start = split
    return path[::-1]


def consistency_proof(first: int, second: int, node: NodeSource) -> list[bytes]:
    """That the tree of ``second`` leaves begins with the tree of ``first`` leaves."""
    _check_sizes(first, second)
    proof: list[bytes] = []
    start, end = 0, second
    while first != end:
        split = start + _split(end - start)
        if first <= split:
            proof.append(_span_hash(split, end, node))
            end = split
        else:
            proof.append(_span_hash(start, split, node))
            start = split
    if start:
        proof.append(_span_hash(start, end, node))
    return proof[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Raises ``ProofInvalid`` unless ``proof`` shows ``leaf`` at ``index`` in the tree of this size and root."""
    if not 0 <= index < size <= SIZE_MAX:
        raise ProofInvalid(f"a tree of size {size} has no leaf {index}")
    _check_hashes((leaf, root, *proof))
    computed = leaf
    for sibling, left in _climb(index, size - 1, proof):
        computed = node_hash(sibling, computed) if left else node_hash(computed, sibling)
    if computed != root:
        raise ProofInvalid("the inclusion proof does not lead to the root")


def verify_consistency(first: int, second: int, proof: Sequence[bytes], first_root: bytes, second_root: bytes) -> None:
    """Raises ``ProofInvalid`` unless ``proof`` shows that the second tree begins with the first."""
    _check_sizes(first, second)
    _check_hashes((first_root, second_root, *proof))
    if first == second:
        if proof:
            raise ProofInvalid("the consistency proof of a tree with itself is empty")
        if first_root != second_root:
            raise ProofInvalid("two trees of one size have different roots")
        return
    path = list(proof if first & (first - 1) else (first_root, *proof))
    if not path:
        raise ProofInvalid("the proof is too short")
    node, last = first - 1, second - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    before = after = path[0]
    for sibling, left in _climb(node, last, path[1:]):
        if left:
            before = node_hash(sibling, before)
        after = node_hash(sibling, after) if left else node_hash(after, sibling)
    if before != first_root:
        raise ProofInvalid("the consistency proof does not lead to the root of the smaller tree")
    if after != second_root:
        raise ProofInvalid("the consistency proof does not lead to the root of the larger tree")


def _climb(node: int, last: int, proof: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """The siblings on the way up from ``node`` in a level that ends at ``last``, and whether each is a left one."""
    for sibling in proof:
        if last == 0:
            raise ProofInvalid("the proof is too long")
        left = bool(node & 1) or node == last
        yield sibling, left
        while left and not node & 1 and node:
            node, last = node >> 1, last >> 1
        node, last = node >> 1, last >> 1
    if last:
        raise ProofInvalid("the proof is too short")


_NODE: Final = sha256(b"\x01")


def _node_hash(children: bytes) -> bytes:
    # A copy that has the first byte already costs less than a new hash of everything.
    hashed = _NODE.copy()
    hashed.update(children)
    return hashed.digest()


def _check_sizes(first: int, second: int) -> None:
    if first == 0:
        raise ProofInvalid("consistency from size 0 proves nothing, so there is no such proof")
    if not 0 < first <= second <= SIZE_MAX:
        raise ProofInvalid(f"a tree of size {second} does not begin with one of size {first}")


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if len(hashes) > PROOF_MAX_HASHES + 2:
        raise ProofInvalid(f"a proof has at most {PROOF_MAX_HASHES} hashes, and here {len(hashes)}")
    for found in hashes:
        if len(found) != HASH_BYTES:
            raise ProofInvalid(f"a hash has {HASH_BYTES} bytes, and here {len(found)}")


def _split(width: int) -> int:
    """The largest power of two that is smaller than ``width``."""
    return 1 << ((width - 1).bit_length() - 1)


def _subtrees(start: int, end: int) -> list[tuple[int, int]]:
    """The whole subtrees that make up the leaves from ``start``, a border between subtrees, to ``end``."""
    found = []
    while start < end:
        level = (end - start).bit_length() - 1
        found.append((level, start >> level))
        start += 1 << level
    return found


def _span_hash(start: int, end: int, node: NodeSource) -> bytes:
    return _folded([node(*name) for name in _subtrees(start, end)])


def _folded(hashes: Sequence[bytes]) -> bytes:
    """One hash of subtrees that stand side by side, the largest first."""
    if not hashes:
        return EMPTY_ROOT
    computed = hashes[-1]
    for left in islice(reversed(hashes), 1, None):
        computed = node_hash(left, computed)
    return computed
