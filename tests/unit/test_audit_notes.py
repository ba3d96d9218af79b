"""Notes, keys, checkpoints and receipts: the published vectors, and every way to be wrong."""

from __future__ import annotations

import os
from base64 import b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.checkpoint import Checkpoint, open_checkpoint, open_rotation, sign_rotation
from audit.errors import KeyInvalid, ProofInvalid
from audit.note import (
    SIGNATURES_MAX,
    WITNESS_ALGORITHM,
    Note,
    SeedSigner,
    Signature,
    VerifierKey,
    parse_note,
    sign_note,
    verify_note,
)
from audit.proof import Receipt
from audit.signer import open_signer, read_public, write_public
from audit.tree import EMPTY_ROOT, Edge, inclusion_proof, leaf_hash

# The documented example of golang.org/x/mod/sumdb/note, whose bytes any correct signer repeats.
SECRET = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
PUBLIC = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
LINE = (
    "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
# The example of the note specification.
SPEC_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPEC_NOTE = (
    "This is an example message.\n\n\u2014 example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)

LOG = SeedSigner("log.example/one", bytes(range(32)))
OTHER = SeedSigner("log.example/one", bytes(32))
WITNESS_PRIVATE = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
WITNESS = VerifierKey("witness.example", WITNESS_ALGORITHM, WITNESS_PRIVATE.public_key().public_bytes_raw())
CHECKPOINT = Checkpoint("log.example/one", 3, bytes(32))


def cosigned(text: str, time_s: int, key: VerifierKey = WITNESS) -> Signature:
    message = f"cosignature/v1\ntime {time_s}\n{text}".encode()
    return Signature(key.name, key.id, time_s.to_bytes(8, "big") + WITNESS_PRIVATE.sign(message))


def test_the_published_key_signs_the_published_bytes() -> None:
    signer = SeedSigner.parse(SECRET)
    assert (signer.text, signer.key.text) == (SECRET, PUBLIC)
    assert sign_note(TEXT, signer) == (TEXT + "\n" + LINE).encode()
    assert verify_note(parse_note((TEXT + "\n" + LINE).encode()), [VerifierKey.parse(PUBLIC)])[0].time_s == 0


def test_the_note_of_the_specification_verifies() -> None:
    note = parse_note(SPEC_NOTE.encode())
    assert note.encode() == SPEC_NOTE.encode()
    assert verify_note(note, [VerifierKey.parse(SPEC_KEY)])[0].key.name == "example.com/foo"


@pytest.mark.parametrize("text", [PUBLIC, SECRET])
def test_no_mangled_key_is_a_key(text: str) -> None:
    parse = SeedSigner.parse if text is SECRET else VerifierKey.parse
    for place in range(len(text)):
        for mangled in (
            text[:place],
            text[place + 1 :],
            text[:place] + chr(ord(text[place]) + 1) + text[place + 1 :],
        ):
            with pytest.raises(KeyInvalid) as caught:
                parse(mangled)
            assert "AYEKFALVFGyNhPJEMzD1QIDr" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "x" * 2_000 + PUBLIC,
        "",
    ],
)
def test_keys_of_another_length_or_algorithm_are_refused(text: str) -> None:
    with pytest.raises(KeyInvalid):
        VerifierKey.parse(text)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff", "not UTF-8"),
        (b"text\n\n\xe2\x80\x94 n eA==\n", "too short"),
        (b"text\n\x00\n\n", "control character"),
        (b"text\r\n\n", "control character"),
        (b"text\n", "no empty line"),
        (b"\n\n\xe2\x80\x94 n AAAAAAA=\n", "no empty line"),
        (b"text\n\n\xe2\x80\x94 n AAAAAAA=", "cut off"),
        (b"text\n\n", "cut off"),
        (b"text\n\n- n AAAAAAA=\n", "no signature line"),
        (b"text\n\n\xe2\x80\x94 n\n", "no signature line"),
        (b"text\n\n\xe2\x80\x94 n+ AAAAAAA=\n", "no signature line"),
        (b"text\n\n\xe2\x80\x94 n AAAAAAB=\n", "usual spelling"),
        (b"text\n\n\xe2\x80\x94 n AAAA AAA=\n", "not base64"),
        (b"text\n\n" + b"\xe2\x80\x94 n AAAAAAA=\n" * (SIGNATURES_MAX + 1), "signatures"),
        (b"x" * 70_000 + b"\n\n", "at most"),
    ],
)
def test_notes_of_another_form_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(ProofInvalid, match=why):
        parse_note(data)


def test_unknown_signatures_are_ignored_and_known_ones_must_verify() -> None:
    signed = parse_note(CHECKPOINT.sign(LOG))
    stranger = Signature(LOG.key.name, b"\x00\x01\x02\x03", bytes(64))
    namesake = Signature("elsewhere", LOG.key.id, bytes(64))
    many = Note(signed.text, (stranger, *signed.signatures, namesake))
    assert open_checkpoint(many.encode(), [LOG.key]).keys == (LOG.key,)
    forged = Note(signed.text, (Signature(LOG.key.name, LOG.key.id, bytes(64)), *signed.signatures))
    with pytest.raises(ProofInvalid, match="does not verify"):
        open_checkpoint(forged.encode(), [LOG.key])
    with pytest.raises(ProofInvalid, match=r"no signature of a known key; it is signed by log.example/one"):
        open_checkpoint(signed.encode(), [OTHER.key])
    with pytest.raises(ProofInvalid, match="no signature of a known key"):
        open_checkpoint(signed.encode(), [])


def test_several_keys_verify_while_one_replaces_another() -> None:
    both = CHECKPOINT.sign(LOG, OTHER)
    assert open_checkpoint(both, [LOG.key]).keys == (LOG.key,)
    assert set(open_checkpoint(both, [LOG.key, OTHER.key]).keys) == {LOG.key, OTHER.key}


def test_a_witness_says_when_it_saw_a_checkpoint() -> None:
    signed = parse_note(CHECKPOINT.sign(LOG))
    seen = Note(signed.text, (*signed.signatures, cosigned(signed.text, 1_679_315_147)))
    opened = open_checkpoint(seen.encode(), [LOG.key, WITNESS])
    assert [(each.name, each.time_s) for each in opened.witnesses] == [("witness.example", 1_679_315_147)]
    alone = Note(signed.text, (cosigned(signed.text, 5),))
    with pytest.raises(ProofInvalid, match="no signature of the log itself"):
        open_checkpoint(alone.encode(), [LOG.key, WITNESS])
    moved = Signature(WITNESS.name, WITNESS.id, (9).to_bytes(8, "big") + cosigned(signed.text, 5).blob[8:])
    with pytest.raises(ProofInvalid, match=r"witness.example.* does not verify"):
        open_checkpoint(Note(signed.text, (*signed.signatures, moved)).encode(), [LOG.key, WITNESS])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("o\n03\n" + b64encode(bytes(32)).decode() + "\n", "no size"),
        ("o\n-3\n" + b64encode(bytes(32)).decode() + "\n", "no size"),
        ("o\n99999999999999999999\n" + b64encode(bytes(32)).decode() + "\n", "no size"),
        ("o\n9999999999999999999\n" + b64encode(bytes(32)).decode() + "\n", "a size"),
        ("o\n3\n" + b64encode(bytes(31)).decode() + "\n", "32 bytes"),
        ("o\n3\n" + b64encode(bytes(32)).decode() + "\nextension\n", "three lines"),
        ("\n3\n" + b64encode(bytes(32)).decode() + "\n", "names its log"),
        ("o\n0\n" + b64encode(bytes(32)).decode() + "\n", "empty log"),
        ("o\n3\n", "three lines"),
    ],
)
def test_checkpoints_of_another_form_are_refused(text: str, why: str) -> None:
    with pytest.raises(ProofInvalid, match=why):
        open_checkpoint(sign_note(text, LOG), [LOG.key])


def test_a_checkpoint_is_of_the_log_that_is_asked_about() -> None:
    assert open_checkpoint(CHECKPOINT.sign(LOG), [LOG.key], origin="log.example/one").checkpoint == CHECKPOINT
    with pytest.raises(ProofInvalid, match=r"and not of log.example/two"):
        open_checkpoint(CHECKPOINT.sign(LOG), [LOG.key], origin="log.example/two")
    assert Checkpoint.parse(Checkpoint("o", 0, EMPTY_ROOT).text).size == 0


def test_the_old_key_names_the_new_one() -> None:
    note = sign_rotation(LOG, "log.example/one", OTHER.key)
    assert open_rotation(note, [LOG.key], origin="log.example/one") == OTHER.key
    with pytest.raises(ProofInvalid, match="no signature of a known key"):
        open_rotation(sign_rotation(OTHER, "log.example/one", OTHER.key), [LOG.key], origin="log.example/one")
    with pytest.raises(ProofInvalid, match=r"not in log.example/two"):
        open_rotation(note, [LOG.key], origin="log.example/two")
    with pytest.raises(ProofInvalid, match="replaces no key"):
        open_rotation(CHECKPOINT.sign(LOG), [LOG.key], origin="log.example/one")
    with pytest.raises(ProofInvalid, match="not one of this log"):
        open_rotation(sign_rotation(LOG, "log.example/one", WITNESS), [LOG.key], origin="log.example/one")


BODIES = [b'{"nth":%d}' % nth for nth in range(11)]


def node(level: int, index: int) -> bytes:
    edge = Edge()
    edge.extend([leaf_hash(body) for body in BODIES[index << level : (index + 1) << level]])
    return edge.root()


def receipt(index: int = 5, *, extra: bytes | None = BODIES[5]) -> Receipt:
    edge = Edge()
    edge.extend([leaf_hash(body) for body in BODIES])
    signed = Checkpoint("log.example/one", len(BODIES), edge.root()).sign(LOG)
    return Receipt(index, tuple(inclusion_proof(index, len(BODIES), node)), signed, extra)


def test_a_receipt_proves_its_entry_offline() -> None:
    written = receipt().encode()
    assert written.startswith(b"c2sp.org/tlog-proof@v1\nextra eyJudGgiOjV9\nindex 5\n")
    read = Receipt.parse(written)
    assert read == receipt()
    opened = read.verify([LOG.key], origin="log.example/one", expected_leaf=leaf_hash(BODIES[5]))
    assert opened.checkpoint.size == len(BODIES)
    bare = Receipt.parse(receipt(extra=None).encode())
    assert bare.verify([LOG.key], expected_leaf=leaf_hash(BODIES[5])).keys == (LOG.key,)
    with pytest.raises(ProofInvalid, match="needs the leaf hash"):
        bare.verify([LOG.key])
    with pytest.raises(ProofInvalid, match="another entry"):
        read.verify([LOG.key], expected_leaf=leaf_hash(BODIES[6]))
    with pytest.raises(ProofInvalid, match="does not lead to the root"):
        receipt(extra=BODIES[6]).verify([LOG.key])


def test_every_changed_byte_of_a_receipt_is_noticed() -> None:
    written = receipt().encode()
    for place in range(len(written)):
        for bit in (0, 5, 7):
            changed = bytearray(written)
            changed[place] ^= 1 << bit
            with pytest.raises((ProofInvalid, KeyInvalid)):
                Receipt.parse(bytes(changed)).verify([LOG.key], origin="log.example/one")
        with pytest.raises(ProofInvalid):
            Receipt.parse(written[:place]).verify([LOG.key], origin="log.example/one")


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=400), st.sampled_from([b"", b"c2sp.org/tlog-proof@v1\n", b"c2sp.org/tlog-proof@v1\nindex 5\n"])
)
def test_strangers_bytes_are_refused_by_name(data: bytes, head: bytes) -> None:
    with pytest.raises(ProofInvalid):
        Receipt.parse(head + data).verify([LOG.key])
    with pytest.raises(ProofInvalid):
        open_checkpoint(data, [LOG.key])


def test_a_signing_key_is_made_once_and_kept_to_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "log.key"
    made = open_signer(path, "log.example/one", create=True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert open_signer(path, "log.example/one", create=False).key == made.key
    with pytest.raises(KeyInvalid, match=r"and this log is log\.example/two"):
        open_signer(path, "log.example/two", create=True)
    path.chmod(0o640)
    with pytest.raises(KeyInvalid, match="0600"):
        open_signer(path, "log.example/one", create=True)
    path.chmod(0o600)
    path.write_bytes(made.text.replace("+A", "+B").encode())
    with pytest.raises(KeyInvalid, match="cannot be used") as caught:
        open_signer(path, "log.example/one", create=True)
    assert made.text.split("+", 4)[-1][1:] not in str(caught.value)
    path.write_bytes(b"\xff")
    with pytest.raises(KeyInvalid, match="no text"):
        open_signer(path, "log.example/one", create=True)
    path.unlink()
    with pytest.raises(KeyInvalid, match="is missing"):
        open_signer(path, "log.example/one", create=False)
    os.symlink(tmp_path / "elsewhere", path)
    with pytest.raises(KeyInvalid, match="cannot be opened"):
        open_signer(path, "log.example/one", create=True)


def test_public_keys_are_a_list_with_the_one_in_force_last(tmp_path: Path) -> None:
    path = tmp_path / "log.pub"
    with pytest.raises(KeyInvalid, match="missing"):
        read_public(path)
    write_public(path, (LOG.key, OTHER.key))
    assert read_public(path) == (LOG.key, OTHER.key)
    path.write_text("\n")
    with pytest.raises(KeyInvalid, match="holds no key"):
        read_public(path)
    path.write_bytes(b"\xff")
    with pytest.raises(KeyInvalid, match="cannot be read"):
        read_public(path)
