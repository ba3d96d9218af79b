"""Whatever bytes come, readers of signatures and signers answer with a value or a refusal, and with nothing else."""

from __future__ import annotations

import base64
from pathlib import PurePosixPath

from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st

from policyd.errors import ConfigError, RevisionError, SignatureRefused
from policyd.revisions import sshsig
from policyd.revisions.allowed_signers import parse_allowed_signers
from policyd.revisions.owners import OWNERS, owners_of
from policyd.revisions.sshsig import check, key_of, parse, sign

KEY = ed25519.Ed25519PrivateKey.generate()
ARMOUR = sign(KEY, b"message", "git").encode()
BLOB = base64.b64decode(b"".join(ARMOUR.splitlines()[1:-1]))
LINE = b'ana@example.org namespaces="git",valid-before="20300101Z" ssh-ed25519 ' + base64.b64encode(
    sshsig._written(KEY)
)


def _spoiled(whole: bytes) -> st.SearchStrategy[bytes]:
    """The whole with a piece of it replaced."""
    places = st.integers(0, len(whole))
    return st.tuples(places, places, st.binary(max_size=24)).map(
        lambda drawn: whole[: min(drawn[:2])] + drawn[2] + whole[max(drawn[:2]) :]
    )


@given(st.one_of(st.binary(max_size=400), _spoiled(BLOB)))
def test_a_blob_is_a_signature_of_this_message_or_refused(blob: bytes) -> None:
    armour = b"-----BEGIN SSH SIGNATURE-----\n" + base64.b64encode(blob) + b"\n-----END SSH SIGNATURE-----\n"
    try:
        check(parse(armour), b"message", "git")
    except SignatureRefused:
        return
    assert blob == BLOB


@given(st.one_of(st.binary(max_size=400), _spoiled(ARMOUR)))
def test_armour_is_read_or_refused(armour: bytes) -> None:
    try:
        found = parse(armour)
    except SignatureRefused:
        return
    assert found.namespace
    assert key_of(found.key.blob) == found.key


@given(st.one_of(st.binary(max_size=400), _spoiled(LINE), st.lists(_spoiled(LINE), max_size=4).map(b"\n".join)))
def test_signers_are_read_or_refused(content: bytes) -> None:
    try:
        found = parse_allowed_signers(content, "signers")
    except ConfigError:
        return
    assert all(found.person(name) for signer in found.signers for name in signer.principals)
    assert len({signer.key.blob for signer in found.signers}) == len(found.signers)


OWNED = b"* 1 ana@example.org ben@example.org\n/a/**/b? 0\n# more\nc/ cleo@example.org\n"


@given(
    st.one_of(
        st.binary(max_size=200), _spoiled(OWNED), st.text("*?/ab", max_size=40).map(lambda text: f"{text} 0".encode())
    ),
    st.text("ab/", max_size=60),
)
def test_owners_are_read_or_refused_and_say_something_of_every_path(content: bytes, path: str) -> None:
    try:
        owners = owners_of({OWNERS: content})
    except RevisionError:
        return
    need = owners.need(PurePosixPath(path))
    assert 0 <= need.count <= max(len(need.persons), 9)
