"""Signatures of OpenSSH (``ssh-keygen -Y sign``, ``gpg.format=ssh``): reading them, checking them, making them.

    armour ──► blob: "SSHSIG", version, key, namespace, reserved, hash, signature     (PROTOCOL.sshsig of OpenSSH)
    what the key has signed: "SSHSIG", namespace, reserved, hash, H(message)

Rules: strict, since nothing that is read here is trusted yet: every length is bounded, nothing follows the last field,
a number has one form, base64 has one form; a signature counts in its own namespace only. The primitives are those of
``cryptography``; no binary of OpenSSH is needed.

Refused: SHA-1 (``ssh-rsa`` as an algorithm), other hashes than SHA-256 and SHA-512, RSA keys below 2048 bits, DSA, keys
of security tokens (``sk-…``), certificates, and every other kind of key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from policyd.errors import ConfigError, SignatureRefused

ARMOUR_MAX_BYTES: Final = 16_384
NAMESPACE_MAX_CHARS: Final = 256
KEY_FILE_MAX_BYTES: Final = 65_536
RSA_MIN_BITS: Final = 2_048
RSA_MAX_BITS: Final = 16_384
RSA_EXPONENT_MAX_BITS: Final = 64
_BEGIN: Final = b"-----BEGIN SSH SIGNATURE-----"
_END: Final = b"-----END SSH SIGNATURE-----"
_LINE_CHARS: Final = 70
"""As ``ssh-keygen`` breaks its lines."""
_MAGIC: Final = b"SSHSIG"
_VERSION: Final = 1
_HASHES: Final = ("sha256", "sha512")
_NAMESPACE: Final = re.compile(rf"[!-~]{{1,{NAMESPACE_MAX_CHARS}}}")
_CURVES: Final[dict[str, tuple[str, ec.EllipticCurve, hashes.HashAlgorithm]]] = {
    "ecdsa-sha2-nistp256": ("nistp256", ec.SECP256R1(), hashes.SHA256()),
    "ecdsa-sha2-nistp384": ("nistp384", ec.SECP384R1(), hashes.SHA384()),
    "ecdsa-sha2-nistp521": ("nistp521", ec.SECP521R1(), hashes.SHA512()),
}
_RSA_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "rsa-sha2-256": hashes.SHA256(),
    "rsa-sha2-512": hashes.SHA512(),
}
KEY_KINDS: Final = ("ssh-ed25519", *_CURVES, "ssh-rsa")
_Public = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class SshKey:
    """A public key: its kind, and the bytes that it is written as, of which there is one form only."""

    kind: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As ``ssh-keygen -l`` shows it."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest()).decode("ascii")
        return f"SHA256:{digest.rstrip('=')}"


@dataclass(frozen=True, slots=True)
class Signature:
    """What a signature says of itself. Nothing of it is proved before ``check``."""

    key: SshKey
    namespace: str
    hash_name: str
    algorithm: str
    raw: bytes


def key_of(blob: bytes) -> SshKey:
    """The key that these bytes are. Raises ``SignatureRefused``."""
    fields = _Fields(blob, "the key")
    kind = fields.name()
    if kind not in KEY_KINDS:
        raise SignatureRefused(f"the key is of the kind {kind!r}; {_of_kind(kind)}")
    _public(kind, fields)
    return SshKey(kind, blob)


def parse(armour: bytes) -> Signature:
    """The signature in its armour. Raises ``SignatureRefused``."""
    fields = _Fields(_unarmoured(armour), "the signature")
    if fields.take(len(_MAGIC)) != _MAGIC:
        raise SignatureRefused("the armour holds no signature of OpenSSH")
    if (version := fields.uint32()) != _VERSION:
        raise SignatureRefused(f"the signature is of version {version}; version {_VERSION} is known")
    key = key_of(fields.string())
    namespace = fields.name()
    if not _NAMESPACE.fullmatch(namespace):
        raise SignatureRefused("the namespace of the signature is empty, too long, or not printable")
    if fields.string():
        raise SignatureRefused("the signature has a reserved field that means nothing yet")
    hash_name = fields.name()
    if hash_name not in _HASHES:
        raise SignatureRefused(f"the signature is over a {hash_name!r} hash; {' and '.join(_HASHES)} are taken")
    inner = _Fields(fields.string(), "the signature")
    fields.end()
    algorithm, raw = inner.name(), inner.string()
    inner.end()
    if algorithm not in _algorithms(key.kind):
        told = "SHA-1, which is forged" if algorithm == "ssh-rsa" else f"no way of signing with {key.kind}"
        raise SignatureRefused(f"the signature is made with {algorithm!r}: {told}")
    return Signature(key, namespace, hash_name, algorithm, raw)


def check(signature: Signature, message: bytes, namespace: str) -> None:
    """Raise ``SignatureRefused`` unless the key of this signature has signed this message in this namespace."""
    if signature.namespace != namespace:
        raise SignatureRefused(f"the signature is for {signature.namespace!r}, and {namespace!r} is needed")
    signed = _signed(message, namespace, signature.hash_name)
    fields = _Fields(signature.key.blob, "the key")
    public = _public(fields.name(), fields)
    try:
        if isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(signature.raw, signed)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            numbers = _Fields(signature.raw, "the signature")
            pair = numbers.mpint(), numbers.mpint()
            numbers.end()
            public.verify(encode_dss_signature(*pair), signed, ec.ECDSA(_CURVES[signature.key.kind][2]))
        else:
            width = (public.key_size + 7) // 8
            if len(signature.raw) > width:
                raise SignatureRefused("the signature is longer than its key")
            raw = signature.raw.rjust(width, b"\0")
            public.verify(raw, signed, padding.PKCS1v15(), _RSA_HASHES[signature.algorithm])
    except InvalidSignature:
        raise SignatureRefused("the signature is over something else, or was changed") from None


def sign(key: PrivateKey, message: bytes, namespace: str) -> str:
    """The armoured signature of a message. Raises ``SignatureRefused`` for a key that nobody would accept."""
    blob = _written(key)
    public = key_of(blob)
    signed = _signed(message, namespace, "sha512")
    if isinstance(key, ed25519.Ed25519PrivateKey):
        algorithm, raw = public.kind, key.sign(signed)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = public.kind
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(_CURVES[public.kind][2])))
        raw = _mpint(r) + _mpint(s)
    else:
        algorithm, raw = "rsa-sha2-512", key.sign(signed, padding.PKCS1v15(), hashes.SHA512())
    inner = _string(algorithm.encode()) + _string(raw)
    parts = (blob, namespace.encode("ascii"), b"", b"sha512", inner)
    whole = base64.b64encode(_MAGIC + _VERSION.to_bytes(4, "big") + b"".join(map(_string, parts)))
    lines = [whole[at : at + _LINE_CHARS] for at in range(0, len(whole), _LINE_CHARS)]
    return b"\n".join((_BEGIN, *lines, _END, b"")).decode("ascii")


def read_private_key(content: bytes, place: str) -> PrivateKey:
    """A private key without a passphrase, in the format of OpenSSH or in PEM. Raises ``ConfigError``."""
    if len(content) > KEY_FILE_MAX_BYTES:
        raise ConfigError(f"{place} is larger than {KEY_FILE_MAX_BYTES} bytes, and no key")
    ssh = content.lstrip().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    try:
        key = load(content, None)
    except TypeError:
        raise ConfigError(
            f"{place} is locked with a passphrase, which is asked for nowhere", remedy=_KEY_REMEDY
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{place} is no private key that can be read: {error}", remedy=_KEY_REMEDY) from None
    if not isinstance(key, PrivateKey):
        raise ConfigError(f"{place} is a key that signs nothing here", remedy=_KEY_REMEDY)
    return key


_KEY_REMEDY: Final = (
    "name an Ed25519, ECDSA or RSA key without a passphrase; for any other, write what is to be signed with `--out`, "
    "sign it with `ssh-keygen -Y sign -n policyd-approval@v1`, and bring it with `--send`"
)


def _unarmoured(armour: bytes) -> bytes:
    if len(armour) > ARMOUR_MAX_BYTES:
        raise SignatureRefused(f"the signature is longer than {ARMOUR_MAX_BYTES} bytes")
    lines = armour.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
    if lines[0] != _BEGIN:
        raise SignatureRefused(f"the signature does not begin with {_BEGIN.decode()}")
    if len(lines) < 3 or lines[-1] != _END:
        raise SignatureRefused(f"the signature is cut off: it does not end with {_END.decode()}")
    joined = b"".join(lines[1:-1])
    try:
        blob = base64.b64decode(joined, validate=True)
    except binascii.Error:
        blob = b""
    if not blob or base64.b64encode(blob) != joined:
        raise SignatureRefused("the signature is no base64 between its first line and its last")
    return blob


def _signed(message: bytes, namespace: str, hash_name: str) -> bytes:
    digest = hashlib.new(hash_name, message).digest()
    return _MAGIC + b"".join(map(_string, (namespace.encode("ascii"), b"", hash_name.encode("ascii"), digest)))


def _algorithms(kind: str) -> tuple[str, ...]:
    return tuple(_RSA_HASHES) if kind == "ssh-rsa" else (kind,)


def _of_kind(kind: str) -> str:
    if kind.startswith("sk-"):
        return "keys of security tokens are not taken yet"
    if "-cert-v01" in kind:
        return "certificates are not taken, list the key itself"
    return f"taken are {', '.join(KEY_KINDS)}"


def _public(kind: str, fields: _Fields) -> _Public:
    """The key that follows the name of its kind."""
    try:
        if kind == "ssh-ed25519":
            found: _Public = ed25519.Ed25519PublicKey.from_public_bytes(fields.string())
        elif kind in _CURVES:
            name, curve, _ = _CURVES[kind]
            if fields.name() != name:
                raise SignatureRefused(f"the key of kind {kind} is on another curve")
            point = fields.string()
            if not point.startswith(b"\x04"):
                raise SignatureRefused("the point of the key is not written in full")
            found = ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
        else:
            exponent, modulus = fields.mpint(), fields.mpint()
            if not RSA_MIN_BITS <= modulus.bit_length() <= RSA_MAX_BITS:
                raise SignatureRefused(f"an RSA key has {RSA_MIN_BITS} to {RSA_MAX_BITS} bits")
            if exponent.bit_length() > RSA_EXPONENT_MAX_BITS:
                raise SignatureRefused("the exponent of the RSA key is too large")
            found = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureRefused(f"the key is no {kind} key: {error}") from None
    fields.end()
    return found


def _written(key: PrivateKey) -> bytes:
    """The public half as bytes."""
    formats = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    try:
        return base64.b64decode(key.public_key().public_bytes(*formats).split(b" ")[1])
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureRefused(f"OpenSSH has no such key: {error}") from None


def _string(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


def _mpint(number: int) -> bytes:
    return _string(number.to_bytes(number.bit_length() // 8 + 1, "big") if number else b"")


class _Fields:
    """Reads fields of RFC 4251 from front to back; ``what`` is what they are of, for a person."""

    def __init__(self, raw: bytes, what: str) -> None:
        self._raw, self._at, self._what = raw, 0, what

    def take(self, size: int) -> bytes:
        if size > len(self._raw) - self._at:
            raise SignatureRefused(f"{self._what} is cut off")
        self._at += size
        return self._raw[self._at - size : self._at]

    def uint32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        return self.take(self.uint32())

    def name(self) -> str:
        try:
            return self.string().decode("ascii")
        except UnicodeDecodeError:
            raise SignatureRefused(f"{self._what} has a name that is no ASCII") from None

    def mpint(self) -> int:
        raw = self.string()
        number = int.from_bytes(raw, "big")
        if raw[:1] >= b"\x80" or _mpint(number)[4:] != raw:
            raise SignatureRefused(f"{self._what} holds a number that is written otherwise than numbers are")
        return number

    def end(self) -> None:
        if self._at != len(self._raw):
            raise SignatureRefused(f"{self._what} goes on after its end")
