"""A tree that grows in batches of any size, held against the recursive definition of RFC 6962."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from audit.errors import ProofInvalid
from audit.tree import (
    Edge,
    consistency_proof,
    edge_at,
    inclusion_proof,
    leaf_hash,
    root_at,
    verify_consistency,
    verify_inclusion,
)


def defined_root(leaves: list[bytes]) -> bytes:
    """Section 2.1 of RFC 6962, word by word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + defined_root(leaves[:split]) + defined_root(leaves[split:])).digest()


class TreeMachine(RuleBasedStateMachine):
    """Grows a log, keeps the nodes that batches complete, and proves from what was kept."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves: list[bytes] = []
        self.edge = Edge()
        self.kept: dict[tuple[int, int], bytes] = {}
        self.roots = {0: defined_root([])}

    def node(self, level: int, index: int) -> bytes:
        return self.kept[level, index]

    @rule(count=st.integers(0, 70))
    def grow(self, count: int) -> None:
        first = len(self.leaves)
        batch = [leaf_hash(b"entry %d" % (first + nth)) for nth in range(count)]
        self.leaves += batch
        self.kept.update({(0, first + nth): leaf for nth, leaf in enumerate(batch)})
        for run in self.edge.extend(batch):
            for nth, found in enumerate(run.hashes):
                assert (run.level, run.first + nth) not in self.kept, "a node is completed once"
                self.kept[run.level, run.first + nth] = found
        self.roots[len(self.leaves)] = self.edge.root()

    @rule()
    def restart(self) -> None:
        self.edge = edge_at(len(self.leaves), self.node)

    @precondition(lambda self: self.leaves)
    @rule(data=st.data())
    def prove_an_entry(self, data: st.DataObject) -> None:
        size = data.draw(st.sampled_from([size for size in self.roots if size]))
        index = data.draw(st.integers(0, size - 1))
        proof = inclusion_proof(index, size, self.node)
        verify_inclusion(self.leaves[index], index, size, proof, self.roots[size])
        with pytest.raises(ProofInvalid):
            verify_inclusion(leaf_hash(b"another"), index, size, proof, self.roots[size])
        if size > 1:
            with pytest.raises(ProofInvalid):
                verify_inclusion(self.leaves[index], (index + 1) % size, size, proof, self.roots[size])

    @precondition(lambda self: self.leaves)
    @rule(data=st.data())
    def prove_growth(self, data: st.DataObject) -> None:
        sizes = sorted(size for size in self.roots if size)
        first = data.draw(st.sampled_from(sizes))
        second = data.draw(st.sampled_from([size for size in sizes if size >= first]))
        proof = consistency_proof(first, second, self.node)
        verify_consistency(first, second, proof, self.roots[first], self.roots[second])
        with pytest.raises(ProofInvalid):
            verify_consistency(first, second, proof, leaf_hash(b"another past"), self.roots[second])

    @invariant()
    def the_root_is_the_defined_one(self) -> None:
        assert self.edge.size == len(self.leaves)
        assert self.edge.root() == defined_root(self.leaves) == root_at(len(self.leaves), self.node)


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(2, 200), data=st.data())
def test_a_changed_proof_proves_nothing(size: int, data: st.DataObject) -> None:
    leaves = [leaf_hash(b"%d" % nth) for nth in range(size)]

    def node(level: int, index: int) -> bytes:
        return defined_root(leaves[index << level : (index + 1) << level])

    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, node)
    place = data.draw(st.integers(0, len(proof) - 1))
    byte, bit = data.draw(st.integers(0, 31)), data.draw(st.integers(0, 7))
    changed = bytearray(proof[place])
    changed[byte] ^= 1 << bit
    with pytest.raises(ProofInvalid):
        verify_inclusion(
            leaves[index], index, size, [*proof[:place], bytes(changed), *proof[place + 1 :]], node_root(leaves)
        )
    first = data.draw(st.integers(1, size - 1))
    grown = consistency_proof(first, size, node)
    place = data.draw(st.integers(0, len(grown) - 1))
    changed = bytearray(grown[place])
    changed[byte] ^= 1 << bit
    with pytest.raises(ProofInvalid):
        verify_consistency(
            first,
            size,
            [*grown[:place], bytes(changed), *grown[place + 1 :]],
            defined_root(leaves[:first]),
            node_root(leaves),
        )


def node_root(leaves: list[bytes]) -> bytes:
    edge = Edge()
    edge.extend(leaves)
    return edge.root()
