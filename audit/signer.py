"""The private key of a log in a file, and the public one beside it.

Files: ``log.key`` (``skey`` form, mode 0600) and ``log.pub`` (the ``vkey`` of every key that the log has had, one a
line, the one in force last).

Rules: a key is made only for a log that has none yet, with the randomness of the system, and is on disk before it is
used; a file that others may read is not used; the text of a private key is in no message.
It refuses: to make a new key for a log that has checkpoints already, because nobody could tell it from a forged one.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from audit.errors import KeyInvalid
from audit.note import KEY_TEXT_MAX_CHARS, SeedSigner, VerifierKey

KEY_FILE: Final = "log.key"
PUBLIC_FILE: Final = "log.pub"
KEYS_MAX: Final = 1_000


def open_signer(path: Path, name: str, *, create: bool) -> SeedSigner:
    """The signer in the file at ``path``, which is made when ``create`` and there is none.

    Raises ``KeyInvalid`` when it is missing, open to others, damaged, or the key of another log than ``name``.
    """
    try:
        signer = open_own_signer(path)
    except KeyInvalid as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        if not create:
            raise KeyInvalid(f"the signing key {path} is missing, and the log was signed with it") from error.__cause__
        return _make(path, name)
    if signer.key.name != name:
        raise KeyInvalid(f"the signing key {path} is that of {signer.key.name}, and this log is {name}")
    return signer


def open_own_signer(path: Path) -> SeedSigner:
    """The signer in the file at ``path``, whosever it is. Raises ``KeyInvalid``."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise KeyInvalid(f"the signing key {path} cannot be opened: {error.strerror}") from error
    with os.fdopen(handle, "rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise KeyInvalid(f"the signing key {path} can be read by others; its mode must be 0600")
        text = file.read(KEY_TEXT_MAX_CHARS + 1)
    try:
        signer = SeedSigner.parse(text.decode("utf-8").strip())
    except UnicodeDecodeError:
        raise KeyInvalid(f"the signing key {path} is no text") from None
    except KeyInvalid as error:
        raise KeyInvalid(f"the signing key {path} cannot be used: {error}") from error
    return signer


def read_public(path: Path) -> tuple[VerifierKey, ...]:
    """The public keys in a file, one a line. Raises ``KeyInvalid``."""
    try:
        with path.open("rb") as file:
            text = file.read(KEYS_MAX * KEY_TEXT_MAX_CHARS).decode("utf-8")
    except FileNotFoundError:
        raise KeyInvalid(f"the public key {path} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KeyInvalid(f"the public key {path} cannot be read: {error}") from error
    try:
        keys = tuple(VerifierKey.parse(line.strip()) for line in text.splitlines() if line.strip())
    except KeyInvalid as error:
        raise KeyInvalid(f"the public key {path} cannot be used: {error}") from error
    if not keys:
        raise KeyInvalid(f"{path} holds no key")
    return keys


def write_public(path: Path, keys: tuple[VerifierKey, ...]) -> None:
    """Replace the file of public keys, as a whole and durably."""
    write_durably(path, "".join(f"{key.text}\n" for key in keys).encode(), 0o644)


def write_durably(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file as a whole: after a crash it is the old one or the new one. Raises ``OSError``."""
    draft = path.with_name(f"{path.name}.new")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _make(path: Path, name: str) -> SeedSigner:
    signer = SeedSigner(name, secrets.token_bytes(32))
    try:
        write_durably(path, f"{signer.text}\n".encode(), 0o600)
    except OSError as error:
        raise KeyInvalid(f"a signing key cannot be made at {path}: {error.strerror}") from error
    return signer
