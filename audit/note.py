r"""Signed notes and their keys, as ``c2sp.org/signed-note`` and ``c2sp.org/tlog-cosignature`` describe them.

    text, lines ending in \n · an empty line · one line a signature: — <key name> base64(key id ‖ signature)
    key id = first 4 bytes of SHA-256(key name ‖ 0x0A ‖ algorithm ‖ public key)

    algorithm 0x01   Ed25519 over the text                                   a log's own signature
    algorithm 0x04   Ed25519 over "cosignature/v1", the time and the text    a witness's cosignature

Rules: pure; a signature of an unknown key is ignored; one of a known key that does not verify rejects the whole note;
base64 has one spelling; everything has a limit.
It refuses: control characters, key names with blanks or ``+``, notes without a signature of a known key.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from audit.errors import KeyInvalid, ProofInvalid

LOG_ALGORITHM: Final = 0x01
WITNESS_ALGORITHM: Final = 0x04
NOTE_MAX_BYTES: Final = 64 * 1024
SIGNATURES_MAX: Final = 64
NAME_MAX_BYTES: Final = 255
KEY_TEXT_MAX_CHARS: Final = 1_024
TIMESTAMP_MAX_S: Final = 2**63 - 1

_DASH: Final = "\u2014 "
_KEY_ID_BYTES: Final = 4
_PUBLIC_BYTES: Final = 32
_SECRET_PREFIX: Final = "PRIVATE+KEY+"
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")
_BLANK: Final = re.compile(r"[\s+\x00-\x1f]")
_HEX: Final = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with its name. ``text`` is its ``vkey`` form: name+id+base64(algorithm ‖ key)."""

    name: str
    algorithm: int
    public: bytes

    def __post_init__(self) -> None:
        check_key_name(self.name)
        if self.algorithm not in (LOG_ALGORITHM, WITNESS_ALGORITHM):
            raise KeyInvalid(f"the key {self.name} has the algorithm {self.algorithm}; 1 and 4 are known")
        if len(self.public) != _PUBLIC_BYTES:
            raise KeyInvalid(f"the key {self.name} has {len(self.public)} bytes; Ed25519 has {_PUBLIC_BYTES}")

    @property
    def id(self) -> bytes:
        """The four bytes by which signature lines name the key."""
        return sha256(b"%b\n%c%b" % (self.name.encode(), self.algorithm, self.public)).digest()[:_KEY_ID_BYTES]

    @property
    def text(self) -> str:
        """The key as one line of text."""
        return f"{self.name}+{self.id.hex()}+{_base64(bytes((self.algorithm,)) + self.public)}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Reads the ``vkey`` form. Raises ``KeyInvalid``."""
        name, key_id, material = _key_parts(text)
        key = cls(name, material[0], material[1:])
        if key.id.hex() != key_id:
            raise KeyInvalid(f"the key {name} does not have the id {key_id} that its text gives")
        return key

    def time_of(self, text: str, signature: bytes) -> int:
        """When the text was cosigned, in seconds since 1970; 0 for a log's own signature, which has no time.

        Raises ``ProofInvalid`` when the signature is not one of this key over this text.
        """
        signed_s, message = 0, text.encode()
        if self.algorithm == WITNESS_ALGORITHM:
            signed_s, signature = int.from_bytes(signature[:8], "big"), signature[8:]
            message = b"cosignature/v1\ntime %d\n%b" % (signed_s, message)
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError) as error:
            raise ProofInvalid(f"the signature of {self.name}+{self.id.hex()} does not verify") from error
        if signed_s > TIMESTAMP_MAX_S:
            raise ProofInvalid(f"the cosignature of {self.name} has a time beyond 2^63-1")
        return signed_s


class Signer(Protocol):
    """Whatever holds the private key of a log: a file, a key service, a card."""

    @property
    def key(self) -> VerifierKey:
        """The public key that goes with it."""
        ...

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of an Ed25519 signature. Raises ``KeyInvalid`` when the key cannot be used."""
        ...


class SeedSigner:
    """A signer from the 32 bytes of an Ed25519 seed. ``text`` is its ``skey`` form, which is a secret."""

    def __init__(self, name: str, seed: bytes) -> None:
        if len(seed) != _PUBLIC_BYTES:
            raise KeyInvalid(f"the private key of {name} has {len(seed)} bytes; Ed25519 has {_PUBLIC_BYTES}")
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self._seed = seed
        self._key = VerifierKey(name, LOG_ALGORITHM, self._private.public_key().public_bytes_raw())

    @property
    def key(self) -> VerifierKey:
        """The public key that goes with it."""
        return self._key

    @property
    def text(self) -> str:
        """The private key as one line of text."""
        material = _base64(bytes((LOG_ALGORITHM,)) + self._seed)
        return f"{_SECRET_PREFIX}{self._key.name}+{self._key.id.hex()}+{material}"

    @classmethod
    def parse(cls, text: str) -> SeedSigner:
        """Reads the ``skey`` form. Raises ``KeyInvalid``, which never shows the text."""
        if not text.startswith(_SECRET_PREFIX):
            raise KeyInvalid("this is no private key: its text does not start with PRIVATE+KEY+")
        name, key_id, material = _key_parts(text[len(_SECRET_PREFIX) :])
        if material[0] != LOG_ALGORITHM:
            raise KeyInvalid(f"the private key of {name} has the algorithm {material[0]}; a log signs with 1")
        signer = cls(name, material[1:])
        if signer.key.id.hex() != key_id:
            raise KeyInvalid(f"the private key of {name} does not have the id {key_id} that its text gives")
        return signer

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of an Ed25519 signature."""
        return self._private.sign(message)


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line. ``blob`` is what follows the key id."""

    name: str
    key_id: bytes
    blob: bytes

    @property
    def line(self) -> str:
        """The line with its newline."""
        return f"{_DASH}{self.name} {_base64(self.key_id + self.blob)}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A note as read: nothing in it is verified yet. ``text`` ends in a newline."""

    text: str
    signatures: tuple[Signature, ...]

    def encode(self) -> bytes:
        """The note as bytes."""
        return (self.text + "\n" + "".join(signature.line for signature in self.signatures)).encode()


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that was verified, and its time when it has one."""

    key: VerifierKey
    time_s: int


def sign_note(text: str, *signers: Signer) -> bytes:
    """A note over ``text`` with a signature of every signer."""
    _check_text(text)
    signatures = [Signature(each.key.name, each.key.id, each.sign(text.encode())) for each in signers]
    return Note(text, tuple(signatures)).encode()


def parse_note(data: bytes) -> Note:
    """Reads a note, strictly. Raises ``ProofInvalid``."""
    if len(data) > NOTE_MAX_BYTES:
        raise ProofInvalid(f"a note has at most {NOTE_MAX_BYTES} bytes, and here {len(data)}")
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProofInvalid("the note is not UTF-8") from error
    if _CONTROL.search(whole):
        raise ProofInvalid("the note holds a control character")
    head, empty, tail = whole.rpartition("\n\n")
    if not empty or not head:
        raise ProofInvalid("the note has no empty line between text and signatures")
    return Note(head + "\n", parse_signatures(tail))


def parse_signatures(text: str) -> tuple[Signature, ...]:
    """Reads signature lines. Raises ``ProofInvalid``."""
    if not text.endswith("\n"):
        raise ProofInvalid("the last signature line is cut off")
    lines = text[:-1].split("\n")
    if len(lines) > SIGNATURES_MAX:
        raise ProofInvalid(f"a note has at most {SIGNATURES_MAX} signatures, and here {len(lines)}")
    return tuple(_signature(line) for line in lines)


def verify_note(note: Note, keys: Iterable[VerifierKey]) -> tuple[Signed, ...]:
    """Every signature of these keys, verified; other signatures are ignored.

    Raises ``ProofInvalid`` when none is there, or when one of these keys signed something else.
    """
    known = {(key.name, key.id): key for key in keys}
    found: dict[tuple[str, bytes], Signed] = {}
    for signature in note.signatures:
        key = known.get((signature.name, signature.key_id))
        if key is not None:
            found[signature.name, signature.key_id] = Signed(key, key.time_of(note.text, signature.blob))
    if not found:
        names = ", ".join(f"{signature.name}+{signature.key_id.hex()}" for signature in note.signatures)
        raise ProofInvalid(f"no signature of a known key; it is signed by {names}")
    return tuple(found.values())


def check_key_name(name: str) -> None:
    """Raises ``KeyInvalid`` for a name that no key may have."""
    if not name or _BLANK.search(name) or len(name.encode("utf-8", "replace")) > NAME_MAX_BYTES:
        raise KeyInvalid(f"{name!r} names no key: 1 to {NAME_MAX_BYTES} bytes without blanks and plus signs")


def decode_base64(text: str) -> bytes:
    """The bytes of a base64 text in its one spelling. Raises ``ProofInvalid``."""
    try:
        decoded = b64decode(text, validate=True)
    except (Base64Error, ValueError) as error:
        raise ProofInvalid(f"{text[:80]!r} is not base64") from error
    if _base64(decoded) != text:
        raise ProofInvalid(f"{text[:80]!r} is not the usual spelling of its base64")
    return decoded


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def _check_text(text: str) -> None:
    if not text.endswith("\n") or _CONTROL.search(text):
        raise ProofInvalid("the text of a note ends in a newline and holds no other control character")


def _signature(line: str) -> Signature:
    if not line.startswith(_DASH):
        raise ProofInvalid(f"{line[:80]!r} is no signature line")
    name, blank, encoded = line[len(_DASH) :].partition(" ")
    if not blank or not name or _BLANK.search(name) or len(name.encode()) > NAME_MAX_BYTES:
        raise ProofInvalid(f"{line[:80]!r} is no signature line")
    decoded = decode_base64(encoded)
    if len(decoded) <= _KEY_ID_BYTES:
        raise ProofInvalid(f"the signature of {name} is too short")
    return Signature(name, decoded[:_KEY_ID_BYTES], decoded[_KEY_ID_BYTES:])


def _key_parts(text: str) -> tuple[str, str, bytes]:
    """Name, id and material of a key's text. What fails here may be a secret, so that it is never repeated."""
    name, plus, rest = text.partition("+")
    key_id, second_plus, encoded = rest.partition("+")
    if not plus or not second_plus or len(text) > KEY_TEXT_MAX_CHARS or not _HEX.fullmatch(key_id):
        raise KeyInvalid("this is no key: a key is name+id+base64")
    check_key_name(name)
    try:
        material = decode_base64(encoded)
    except ProofInvalid as error:
        raise KeyInvalid(f"the key of {name} is not base64") from error.__cause__
    if len(material) < 2:
        raise KeyInvalid(f"the key of {name} is empty")
    return name, key_id, material
