"""The Merkle tree against the vectors of Certificate Transparency, and what it refuses."""

from __future__ import annotations

import pytest

from audit.errors import ProofInvalid
from audit.tree import (
    EMPTY_ROOT,
    Edge,
    consistency_proof,
    edge_at,
    inclusion_proof,
    leaf_hash,
    root_at,
    verify_consistency,
    verify_inclusion,
)

# The eight inputs of the reference tests of Certificate Transparency, and the roots of their first 1 to 8.
BODIES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
LEAVES = [leaf_hash(body) for body in BODIES]

A = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
B = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
C = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
D = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
E = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
F = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
G = "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"


def node(level: int, index: int) -> bytes:
    edge = Edge()
    edge.extend(LEAVES[index << level : (index + 1) << level])
    return edge.root()


def hexes(hashes: list[bytes]) -> list[str]:
    return [found.hex() for found in hashes]


def test_roots_are_those_of_the_reference() -> None:
    assert ROOTS[0] == EMPTY_ROOT
    for size, root in enumerate(ROOTS):
        edge = Edge()
        edge.extend(LEAVES[:size])
        assert edge.root() == root
        assert root_at(size, node) == root
        assert edge_at(size, node).hashes == edge.hashes


@pytest.mark.parametrize(
    ("index", "size", "expected"),
    [(0, 1, []), (0, 8, [A, B, C]), (5, 8, [D, F, G]), (2, 3, [ROOTS[2].hex()]), (1, 5, [LEAVES[0].hex(), B, D])],
)
def test_inclusion_proofs_are_those_of_the_reference(index: int, size: int, expected: list[str]) -> None:
    proof = inclusion_proof(index, size, node)
    assert hexes(proof) == expected
    verify_inclusion(LEAVES[index], index, size, proof, ROOTS[size])


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(1, 1, []), (1, 8, [A, B, C]), (6, 8, [E, F, G]), (2, 5, [B, D])]
)
def test_consistency_proofs_are_those_of_the_reference(first: int, second: int, expected: list[str]) -> None:
    proof = consistency_proof(first, second, node)
    assert hexes(proof) == expected
    verify_consistency(first, second, proof, ROOTS[first], ROOTS[second])


def test_nothing_is_consistent_with_an_empty_log() -> None:
    with pytest.raises(ProofInvalid, match="from size 0"):
        consistency_proof(0, 8, node)
    with pytest.raises(ProofInvalid, match="from size 0"):
        verify_consistency(0, 8, [], EMPTY_ROOT, ROOTS[8])


@pytest.mark.parametrize(("first", "second"), [(9, 8), (-1, 8), (1, 2**63)])
def test_sizes_that_cannot_be_are_refused(first: int, second: int) -> None:
    with pytest.raises(ProofInvalid, match="does not begin with"):
        verify_consistency(first, second, [], ROOTS[1], ROOTS[8])
    with pytest.raises(ProofInvalid, match="does not begin with"):
        consistency_proof(first, second, node)


@pytest.mark.parametrize(("index", "size"), [(8, 8), (-1, 8), (0, 0), (2**63, 2**63 + 1)])
def test_leaves_beyond_the_tree_are_refused(index: int, size: int) -> None:
    with pytest.raises(ProofInvalid, match="has no leaf"):
        inclusion_proof(index, size, node)
    with pytest.raises(ProofInvalid, match="has no leaf"):
        verify_inclusion(LEAVES[0], index, size, [], ROOTS[8])


def test_proofs_have_the_right_length_and_hashes_of_32_bytes() -> None:
    proof = inclusion_proof(5, 8, node)
    with pytest.raises(ProofInvalid, match="too short"):
        verify_inclusion(LEAVES[5], 5, 8, proof[:-1], ROOTS[8])
    with pytest.raises(ProofInvalid, match="too long"):
        verify_inclusion(LEAVES[5], 5, 8, [*proof, proof[0]], ROOTS[8])
    with pytest.raises(ProofInvalid, match="has 32 bytes"):
        verify_inclusion(LEAVES[5], 5, 8, [*proof[:-1], b"short"], ROOTS[8])
    with pytest.raises(ProofInvalid, match="at most"):
        verify_inclusion(LEAVES[5], 5, 8, [proof[0]] * 200, ROOTS[8])
    grown = consistency_proof(6, 8, node)
    with pytest.raises(ProofInvalid, match="too short"):
        verify_consistency(6, 8, grown[:-1], ROOTS[6], ROOTS[8])
    with pytest.raises(ProofInvalid, match="too short"):
        verify_consistency(6, 8, [], ROOTS[6], ROOTS[8])
    with pytest.raises(ProofInvalid, match="too long"):
        verify_consistency(6, 8, [*grown, grown[0]], ROOTS[6], ROOTS[8])
    with pytest.raises(ProofInvalid, match="is empty"):
        verify_consistency(8, 8, [grown[0]], ROOTS[8], ROOTS[8])
    with pytest.raises(ProofInvalid, match="different roots"):
        verify_consistency(8, 8, [], ROOTS[8], ROOTS[7])


def test_an_edge_needs_a_hash_for_each_subtree() -> None:
    with pytest.raises(ProofInvalid, match="has 2 hashes"):
        Edge(5, [ROOTS[4]])
    with pytest.raises(ProofInvalid, match="no size"):
        Edge(-1)
    with pytest.raises(ProofInvalid, match="32 bytes"):
        Edge(1, [b""])


def test_a_batch_tells_which_inner_nodes_it_completed() -> None:
    edge = Edge()
    edge.extend(LEAVES[:3])
    told = {
        (run.level, run.first + nth): found for run in edge.extend(LEAVES[3:]) for nth, found in enumerate(run.hashes)
    }
    assert told == {
        (level, index): node(level, index) for level, index in ((1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (3, 0))
    }
