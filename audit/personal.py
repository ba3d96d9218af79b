"""Personal fields of entries, encrypted under a key for each person of each tenant, and unreadable without it.

    entry with personal fields ──key in the key store, durable──► ciphertext in its body ──hashed──► leaf
    body ──key still there──► the fields        body ──key destroyed──► ``erased``: the leaf and every proof still hold

    {"_personal":["<base64 of: number of the key (8) · nonce (12) · ciphertext and tag>", …], …the rest of the body}

The plain text is a JSON object that is laid over the body. What entries of a person are found by is the number of the
key, ``p:`` and hex, which is random; only the key store leads from a name to it, by a keyed hash.

Rules: AES-256-GCM, the id of the entry authenticated with it, so that no ciphertext passes for that of another entry;
no nonce comes twice under one key, since it counts within a run and begins with what was drawn for the run; keys are
remembered for a bounded number of people, and forgotten when some key was destroyed; names are never in the key store.
It refuses: to seal without a durable key.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import time
from base64 import b64decode, b64encode
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from audit import keys_store
from audit.errors import KeyInvalid, LogUnavailable
from audit.keys_store import WrappedKey
from audit.record import Entry
from audit.signer import write_durably

FIELD: Final = "_personal"
"""Sorts before every other key of a body."""
KEY_FILE: Final = "personal.key"
STORE_FILE: Final = "personal.sqlite"
ERASED: Final = "erased"
UNREADABLE: Final = "unreadable"
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
ID_BYTES: Final = 8
REMEMBERED_MAX: Final = 10_000
LOOKED_S: Final = 1.0
"""How often a writer looks whether another one has destroyed a key."""
_log: Final = logging.getLogger(__name__)
_PREFIX: Final = b'{"_personal":'
_FIELDS_OF_TOKEN: Final = "p:"
_TOKEN: Final = re.compile(f"{_FIELDS_OF_TOKEN}[0-9a-f]{{{2 * ID_BYTES}}}")


def open_wrapping_key(path: Path, *, create: bool) -> bytes:
    """The key that wraps the others: 32 random bytes in base64, made when ``create`` and there is none.

    Raises ``KeyInvalid`` when it is missing, open to others or damaged.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        if not create:
            raise KeyInvalid(f"the wrapping key {path} is missing") from None
        key = os.urandom(KEY_BYTES)
        try:
            write_durably(path, b64encode(key) + b"\n", 0o600)
        except OSError as error:
            raise KeyInvalid(f"a wrapping key cannot be made at {path}: {error.strerror}") from error
        return key
    except OSError as error:
        raise KeyInvalid(f"the wrapping key {path} cannot be opened: {error.strerror}") from error
    with os.fdopen(handle, "rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise KeyInvalid(f"the wrapping key {path} can be read by others; its mode must be 0600")
        text = file.read(256).strip()
    try:
        key = b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise KeyInvalid(f"the wrapping key {path} is not 32 bytes in base64")
    return key


@dataclass(frozen=True, slots=True)
class _Unwrapped:
    id: bytes
    cipher: AESGCM
    token: str


class _Wrapping:
    """What the wrapping key does: names to keyed hashes, keys to wrapped keys and back."""

    def __init__(self, key: bytes) -> None:
        self.check = keys_store.fingerprint(key)
        self._cipher = AESGCM(key)
        self._naming = hmac.new(key, b"policyd personal fields: names", sha256).digest()

    def person(self, name: str) -> bytes:
        return hmac.new(self._naming, name.encode(), sha256).digest()

    def made(self, tenant: str, name: str) -> WrappedKey:
        key_id, person, nonce = os.urandom(ID_BYTES), self.person(name), os.urandom(NONCE_BYTES)
        bound = _bound(key_id, tenant, person)
        return WrappedKey(key_id, tenant, person, nonce + self._cipher.encrypt(nonce, os.urandom(KEY_BYTES), bound))

    def opened(self, key: WrappedKey) -> _Unwrapped:
        bound = _bound(key.id, key.tenant, key.person)
        try:
            plain = self._cipher.decrypt(key.wrapped[:NONCE_BYTES], key.wrapped[NONCE_BYTES:], bound)
        except InvalidTag:
            raise KeyInvalid("a key of personal fields is damaged, or wrapped with another wrapping key") from None
        return _Unwrapped(key.id, AESGCM(plain), _FIELDS_OF_TOKEN + key.id.hex())


def _bound(key_id: bytes, tenant: str, person: bytes) -> bytes:
    return b"\0".join((key_id, tenant.encode(), person))


class Vault:
    """The keys behind one writer. Made anew with each opening of the log; ``close`` gives its connection back.

    Raises ``KeyInvalid`` for a wrapping key that is not that of the store, ``LogUnavailable`` when the store fails.
    """

    def __init__(self, engine: Engine, key_file: Path) -> None:
        self._engine = engine
        self._known: OrderedDict[tuple[str, str], _Unwrapped] = OrderedDict()
        self._session = os.urandom(NONCE_BYTES - 8)
        self._count = count(time.time_ns())
        self._destroyed = ""
        self._looked_s = time.monotonic()
        with self._writing() as connection:
            known = keys_store.prepare(connection)
            self.new = known is None
            # A key is only made for a store that has none yet: what another one has wrapped could not be read again.
            self._wrapping = _Wrapping(open_wrapping_key(key_file, create=known is None))
            if known is None:
                keys_store.belong(connection, self._wrapping.check)
            elif not hmac.compare_digest(known, self._wrapping.check):
                raise KeyInvalid(f"the keys of personal fields were wrapped with another key than {key_file}")
            self._destroyed = keys_store.destroyed_total(connection)

    def close(self) -> None:
        """Give everything back."""
        self._engine.dispose()

    def ready(self, people: Iterable[tuple[str, str]]) -> None:
        """Have a durable key for each (tenant, name), which ``seal`` may then use. Raises ``LogUnavailable``."""
        wanted = set(people)
        if not wanted:
            return
        if time.monotonic() - self._looked_s >= LOOKED_S:
            self._look()
        new = [each for each in wanted if each not in self._known]
        if not new:
            return
        while self._known and len(self._known) + len(new) > REMEMBERED_MAX:
            self._known.popitem(last=False)
        # What was just let go of may be wanted by this very batch.
        missing = {
            (tenant, self._wrapping.person(name)): (tenant, name) for tenant, name in wanted - self._known.keys()
        }
        with self._writing() as connection:
            found = keys_store.keys_of(connection, list(missing))
            made = [self._wrapping.made(*missing[each]) for each in missing if each not in found]
            if made:
                found |= keys_store.add_keys(connection, made)
        for person, key in found.items():
            self._known[missing[person]] = self._wrapping.opened(key)

    def seal(self, entry: Entry) -> Entry:
        """The entry with its personal fields encrypted in its body, and found by the number of the key."""
        if not entry.personal:
            return entry
        tenant = entry.search.tenant or ""
        bound = entry.id.encode()
        sealed = []
        for name, fields in entry.personal:
            key = self._known[tenant, name]
            nonce = self._session + (next(self._count) & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big")
            sealed.append(b64encode(key.id + nonce + key.cipher.encrypt(nonce, fields, bound)))
        principal = entry.search.principal
        token = None if principal is None else self._known[tenant, principal].token
        terms = entry.terms
        if len(entry.personal) > 1:  # whoever approved something has fields of their own
            terms = tuple((name, self._known[tenant, v].token if name == "approver" else v) for name, v in terms)
        return entry.sealed(FIELD, b'["' + b'","'.join(sealed) + b'"]', token, terms)

    def token(self, tenant: str, name: str) -> str:
        """What entries of this person are found by; its key is made when there is none."""
        self.ready([(tenant, name)])
        return self._known[tenant, name].token

    def found(self, tenant: str, name: str) -> str | None:
        """The same, or None when there is no key of this person."""
        return dict(self.everywhere(name)).get(tenant)

    def everywhere(self, name: str) -> list[tuple[str, str]]:
        """The tenants in which there is a key of this person (``""`` for entries of none), and the tokens there."""
        with self._writing() as connection:
            keys = keys_store.keys_everywhere(connection, self._wrapping.person(name))
        return [(key.tenant, self._wrapping.opened(key).token) for key in keys]

    def destroy(self, *tokens: str) -> None:
        """Destroy the keys of these for good. They may be gone already. Raises ``LogUnavailable``."""
        with self._writing() as connection:
            keys_store.destroy(connection, [bytes.fromhex(each.removeprefix(_FIELDS_OF_TOKEN)) for each in tokens])
        self._known.clear()

    def fields(self, body: bytes) -> dict[str, Any] | None:
        """The personal fields of a body that can be read, laid over each other."""
        with self._writing() as connection:
            return _Opening(connection, self._wrapping).fields([body])[0]

    def _look(self) -> None:
        with self._writing() as connection:
            destroyed = keys_store.destroyed_total(connection)
        if destroyed != self._destroyed:
            self._known.clear()
        self._destroyed, self._looked_s = destroyed, time.monotonic()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection, connection.begin():
                yield connection
        except (DBAPIError, SQLAlchemyError) as error:
            cause = getattr(error, "orig", None) or error
            raise LogUnavailable(f"the keys of personal fields cannot be written: {cause}") from error


class Readable:
    """The keys for whoever reads. Without a store or a wrapping key, every personal field is ``unreadable``."""

    def __init__(self, engine: Engine | None, wrapping_key: bytes | None) -> None:
        self._engine = engine
        self._wrapping = None if wrapping_key is None else _Wrapping(wrapping_key)

    def close(self) -> None:
        """Give everything back."""
        if self._engine is not None:
            self._engine.dispose()

    def fields(self, bodies: Sequence[bytes]) -> list[dict[str, Any] | None]:
        """The personal fields of each body; None for one that has none. A store that fails is told to the log of the
        server, and what is in its keys is ``unreadable``."""
        if not any(body.startswith(_PREFIX) for body in bodies):
            return [None] * len(bodies)
        if self._engine is None or self._wrapping is None:
            return [{"principal": UNREADABLE} if body.startswith(_PREFIX) else None for body in bodies]
        try:
            with self._reading() as connection:
                return _Opening(connection, self._wrapping).fields(bodies)
        except (LogUnavailable, KeyInvalid) as error:
            _log.warning("personal fields cannot be read: %s", error)
            return [{"principal": UNREADABLE} if body.startswith(_PREFIX) else None for body in bodies]

    def tokens(self, name: str) -> tuple[str, ...]:
        """What entries of this person are found by, in every tenant."""
        if self._engine is None or self._wrapping is None:
            return ()
        with self._reading() as connection:
            keys = keys_store.keys_everywhere(connection, self._wrapping.person(name))
        return tuple(sorted(_FIELDS_OF_TOKEN + key.id.hex() for key in keys))

    def knows(self, tenant: str | None, name: str) -> bool:
        """Whether there is a key for this person of this tenant, or of any."""
        if self._engine is None or self._wrapping is None:
            return False
        with self._reading() as connection:
            keys = keys_store.keys_everywhere(connection, self._wrapping.person(name))
        return any(tenant in (None, key.tenant) for key in keys)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        assert self._engine is not None
        try:
            with self._engine.connect() as connection, connection.begin():
                yield connection
        except (DBAPIError, SQLAlchemyError) as error:
            cause = getattr(error, "orig", None) or error
            raise LogUnavailable(f"the keys of personal fields cannot be read: {cause}") from error


class _Opening:
    """Bodies to their personal fields, with the keys that are still there."""

    def __init__(self, connection: Connection, wrapping: _Wrapping) -> None:
        self._connection = connection
        self._wrapping = wrapping

    def fields(self, bodies: Sequence[bytes]) -> list[dict[str, Any] | None]:
        sealed = [_sealed(body) for body in bodies]
        ids = {part[:ID_BYTES] for found in sealed if found is not None for part in found[1]}
        stored = keys_store.keys_by_id(self._connection, ids)
        keys = {key_id: self._wrapping.opened(key) for key_id, key in stored.items()}
        return [None if found is None else self._laid_over(*found, keys) for found in sealed]

    def _laid_over(self, entry_id: bytes, parts: Sequence[bytes], keys: Mapping[bytes, _Unwrapped]) -> dict[str, Any]:
        found: dict[str, Any] = {"principal": ERASED}
        for part in parts:
            key = keys.get(part[:ID_BYTES])
            if key is None:
                continue
            nonce, sealed = part[ID_BYTES : ID_BYTES + NONCE_BYTES], part[ID_BYTES + NONCE_BYTES :]
            try:
                plain = key.cipher.decrypt(nonce, sealed, entry_id)
            except InvalidTag:
                raise KeyInvalid("a personal field is not what was recorded with its entry") from None
            found = laid_over(found, orjson.loads(plain))
        return found


def _sealed(body: bytes) -> tuple[bytes, list[bytes]] | None:
    if not body.startswith(_PREFIX):
        return None
    document = orjson.loads(body)
    return str(document.get("id", "")).encode(), [b64decode(part) for part in document[FIELD]]


def laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both objects as one: objects of one name are joined, anything else is that of ``over``."""
    joined = dict(under)
    for name, value in over.items():
        below = joined.get(name)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        joined[name] = laid_over(below, value) if both else value  # type: ignore[arg-type]  # both are mappings here
    return joined


def opened(body: bytes, fields: Mapping[str, Any] | None) -> dict[str, Any]:
    """The document of a body, with its personal fields; those that cannot be read are not there, and the principal is
    ``erased``, or ``unreadable`` when nobody has tried."""
    document: dict[str, Any] = orjson.loads(body)
    if document.pop(FIELD, None) is None:
        return document
    return laid_over(document, {"principal": UNREADABLE} if fields is None else fields)


def is_token(text: str) -> bool:
    """Whether this is what a person is found by, and not a name, as entries of a release before keys have it."""
    return _TOKEN.fullmatch(text) is not None
