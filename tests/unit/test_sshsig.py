"""Signatures of OpenSSH: we take what the real ``ssh-keygen`` makes, it takes what we make, and nothing else counts."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa

from policyd.errors import ConfigError, SignatureRefused
from policyd.revisions import sshsig
from policyd.revisions.sshsig import PrivateKey, check, key_of, parse, read_private_key, sign
from tests.programs import needs

MESSAGE = b"what is signed\n"
NAMESPACE = "git"
RSA_KEY = rsa.generate_private_key(65_537, 2_048)
KEYS: dict[str, PrivateKey] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "p521": ec.generate_private_key(ec.SECP521R1()),
    "rsa": RSA_KEY,
}


def _string(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


def _armour(blob: bytes) -> bytes:
    return b"-----BEGIN SSH SIGNATURE-----\n" + base64.b64encode(blob) + b"\n-----END SSH SIGNATURE-----\n"


def _blob(armour: str) -> bytes:
    return base64.b64decode("".join(armour.splitlines()[1:-1]))


def _rebuilt(armour: str, **changed: bytes) -> bytes:
    """The same signature with some of its fields changed."""
    fields = sshsig._Fields(_blob(armour), "the signature")
    fields.take(6)
    version = fields.take(4)
    names = ("key", "namespace", "reserved", "hash", "signature")
    parts = {"magic": b"SSHSIG", "version": version, **{name: fields.string() for name in names}, **changed}
    return _armour(parts["magic"] + parts["version"] + b"".join(_string(parts[name]) for name in names))


@pytest.mark.parametrize("name", KEYS)
def test_a_signature_counts_for_its_message_and_namespace(name: str) -> None:
    armour = sign(KEYS[name], MESSAGE, NAMESPACE).encode()
    found = parse(armour)
    check(found, MESSAGE, NAMESPACE)
    check(parse(armour.replace(b"\n", b"\r\n")), MESSAGE, NAMESPACE)
    with pytest.raises(SignatureRefused, match="over something else"):
        check(found, MESSAGE + b" ", NAMESPACE)
    with pytest.raises(SignatureRefused, match="is for 'git', and 'file' is needed"):
        check(found, MESSAGE, "file")


@needs("ssh-keygen")
@pytest.mark.parametrize(
    ("kind", "bits"), [("ed25519", "256"), ("ecdsa", "256"), ("ecdsa", "384"), ("ecdsa", "521"), ("rsa", "2048")]
)
def test_openssh_and_we_take_each_others_signatures(tmp_path: Path, kind: str, bits: str) -> None:
    key, message = tmp_path / "key", tmp_path / "message"
    _run("ssh-keygen", "-q", "-t", kind, "-b", bits, "-N", "", "-C", "ana@example.org", "-f", str(key))
    message.write_bytes(MESSAGE)
    _run("ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(message))
    theirs = parse(message.with_suffix(".sig").read_bytes())
    check(theirs, MESSAGE, NAMESPACE)
    public = key.with_suffix(".pub").read_text()
    assert theirs.key.fingerprint in _run("ssh-keygen", "-l", "-f", str(key.with_suffix(".pub")))

    ours = tmp_path / "ours.sig"
    ours.write_text(sign(read_private_key(key.read_bytes(), "key"), MESSAGE, NAMESPACE))
    allowed = tmp_path / "allowed"
    allowed.write_text(f"ana@example.org {public}")
    asked = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-f",
        str(allowed),
        "-I",
        "ana@example.org",
        "-n",
        NAMESPACE,
        "-s",
        str(ours),
    ]
    assert "Good" in subprocess.run(asked, input=MESSAGE, capture_output=True, check=True).stdout.decode()


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def test_sha1_is_refused() -> None:
    signed = sshsig._signed(MESSAGE, NAMESPACE, "sha512")
    raw = RSA_KEY.sign(signed, padding.PKCS1v15(), hashes.SHA1())
    inner = _string(b"ssh-rsa") + _string(raw)
    with pytest.raises(SignatureRefused, match="SHA-1, which is forged"):
        parse(_rebuilt(sign(RSA_KEY, MESSAGE, NAMESPACE), signature=inner))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"magic": b"SSHSIX"}, "no signature of OpenSSH"),
        ({"version": b"\0\0\0\2"}, "of version 2"),
        ({"namespace": b""}, "namespace of the signature is empty"),
        ({"namespace": b"gi t"}, "namespace of the signature is empty, too long, or not printable"),
        ({"namespace": "gït".encode()}, "no ASCII"),
        ({"reserved": b"x"}, "reserved field"),
        ({"hash": b"sha1"}, "over a 'sha1' hash"),
        ({"hash": b"md5"}, "over a 'md5' hash"),
        ({"key": _string(b"ssh-dss") + _string(b"x")}, "of the kind 'ssh-dss'"),
        ({"key": _string(b"sk-ssh-ed25519@openssh.com")}, "keys of security tokens are not taken yet"),
        ({"key": _string(b"ssh-ed25519-cert-v01@openssh.com")}, "certificates are not taken"),
        ({"key": _string(b"ssh-ed25519") + _string(b"x" * 31)}, "no ssh-ed25519 key"),
        ({"key": _string(b"ssh-ed25519") + _string(b"x" * 32) + b"y"}, "goes on after its end"),
        ({"key": _string(b"ssh-ed25519") + b"\xff\xff\xff\xff"}, "the key is cut off"),
        ({"signature": _string(b"ssh-rsa") + _string(b"x" * 64)}, "'ssh-rsa'"),
        ({"signature": _string(b"rsa-sha2-512") + _string(b"x" * 64)}, "no way of signing with ssh-ed25519"),
        ({"signature": _string(b"ssh-ed25519") + _string(b"x" * 64) + b"y"}, "goes on after its end"),
        ({"signature": _string(b"ssh-ed25519")}, "cut off"),
    ],
)
def test_every_field_is_looked_at(changed: dict[str, bytes], said: str) -> None:
    with pytest.raises(SignatureRefused, match=said):
        parse(_rebuilt(sign(KEYS["ed25519"], MESSAGE, NAMESPACE), **changed))


@pytest.mark.parametrize(
    ("armour", "said"),
    [
        (b"", "does not begin"),
        (b"x\n" + sign(KEYS["ed25519"], MESSAGE, NAMESPACE).encode(), "does not begin"),
        (sign(KEYS["ed25519"], MESSAGE, NAMESPACE).encode()[:-30], "cut off"),
        (b"-----BEGIN SSH SIGNATURE-----\n-----END SSH SIGNATURE-----\n", "cut off"),
        (b"-----BEGIN SSH SIGNATURE-----\n*\n-----END SSH SIGNATURE-----\n", "no base64"),
        (b"-----BEGIN SSH SIGNATURE-----\nU1\n-----END SSH SIGNATURE-----\n", "no base64"),
        (_armour(b"SSHSIG"), "cut off"),
        (sign(KEYS["ed25519"], MESSAGE, NAMESPACE).encode() + b"more\n", "cut off"),
        (b"-----BEGIN SSH SIGNATURE-----\n" + b"A" * 20_000, "longer than 16384 bytes"),
    ],
)
def test_the_armour_is_whole_or_refused(armour: bytes, said: str) -> None:
    with pytest.raises(SignatureRefused, match=said):
        parse(armour)


def test_every_cut_and_every_changed_byte_is_refused() -> None:
    blob = _blob(sign(KEYS["ed25519"], MESSAGE, NAMESPACE))
    for at in range(len(blob)):
        changed = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
        for wrong in (blob[:at], changed):
            with pytest.raises(SignatureRefused):
                check(parse(_armour(wrong)), MESSAGE, NAMESPACE)


def test_small_rsa_keys_and_other_curves_are_refused() -> None:
    small = rsa.generate_private_key(65_537, 1_024)
    with pytest.raises(SignatureRefused, match="2048 to 16384 bits"):
        sign(small, MESSAGE, NAMESPACE)
    with pytest.raises(SignatureRefused):
        sign(ec.generate_private_key(ec.SECP256K1()), MESSAGE, NAMESPACE)


def test_a_key_has_one_form() -> None:
    public = sshsig._written(KEYS["rsa"])
    numbers = RSA_KEY.public_key().public_numbers()
    padded = _string(b"ssh-rsa") + sshsig._mpint(numbers.e) + _string(b"\0" * 2 + numbers.n.to_bytes(256, "big"))
    assert key_of(public).kind == "ssh-rsa"
    with pytest.raises(SignatureRefused, match="written otherwise"):
        key_of(padded)
    negative = _string(b"ssh-rsa") + sshsig._mpint(numbers.e) + _string(numbers.n.to_bytes(256, "big"))
    with pytest.raises(SignatureRefused, match="written otherwise"):
        key_of(negative)
    point = (
        KEYS["p256"]
        .public_key()
        .public_bytes(  # type: ignore[union-attr]  # each key here has points
            serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
        )
    )
    with pytest.raises(SignatureRefused, match="not written in full"):
        key_of(_string(b"ecdsa-sha2-nistp256") + _string(b"nistp256") + _string(point))
    with pytest.raises(SignatureRefused, match="another curve"):
        key_of(_string(b"ecdsa-sha2-nistp256") + _string(b"nistp384") + _string(point))


def test_private_keys() -> None:
    key = KEYS["ed25519"]
    for form in (serialization.PrivateFormat.OpenSSH, serialization.PrivateFormat.PKCS8):
        written = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        assert read_private_key(written, "key").public_key() == key.public_key()
    encryption = serialization.BestAvailableEncryption(b"open")
    locked = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    with pytest.raises(ConfigError, match="the file is locked with a passphrase"):
        read_private_key(locked, "the file")
    with pytest.raises(ConfigError, match="no private key"):
        read_private_key(b"no key", "the file")
    with pytest.raises(ConfigError, match="larger than"):
        read_private_key(b"x" * 70_000, "the file")
    other = ed448.Ed448PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ConfigError, match="signs nothing here"):
        read_private_key(other, "the file")


@needs("ssh-keygen")
def test_a_key_of_openssh_with_a_passphrase_is_named(tmp_path: Path) -> None:
    key = tmp_path / "key"
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(key))
    with pytest.raises(ConfigError, match="is locked with a passphrase") as caught:
        read_private_key(key.read_bytes(), "key")
    assert "ssh-keygen -Y sign" in caught.value.remedy_text
