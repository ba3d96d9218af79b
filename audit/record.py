"""What the log takes: entries, the blobs that they name, and the exact bytes that are hashed.

An **entry** is one thing that happened. Its ``body`` is the evidence: canonical JSON, stored and hashed byte for byte.
``search`` and ``terms`` repeat what people look for; they serve the search only and are never evidence. A **blob** is
what many entries share (a sheet, a revision, a set of facts): content-addressed and stored once.

The fields of a body, all optional for this package, in the words of the product:

    id kind time            as in the entry; time is RFC 3339 UTC
    principal request_id    who asked, and the request that carried it
    _personal               personal fields, encrypted: who asked, labels, what was said; see ``audit.personal``
    workload                as normalised, floors applied: tenant, project, environment, model, data, demand, …
    outcome denied_by       allow, deny or error, and why nothing was left
    ranked                  pools in order, with score, components and cost in micro-USD
    spilled                 pools whose group an account had no room for, and that account
    admission accounts      what it holds or changes of budgets, with every balance afterwards
    sheet facts             digests of blobs: the verdict for every pool, and what was measured at that minute
    policy fleet engine     commits and digests of the revisions, engine and version
    waivers approvers       the waivers that it stands on, and who answers for each
    mode                    what the answer binds to; what its pools oblige to is in the sheet
    lost known plan         of a gap: what is missing, who kept what of it, and what two persons signed
    salt                    random, so that a leaf hash tells nothing about a guessable body

Rules: bodies hold integers up to 2^53-1, strings, booleans, null, lists and objects with ASCII keys, so that the bytes
equal RFC 8785; randomness and ids are arguments; an entry that breaks a rule cannot be constructed.
It refuses: floats, larger integers, dates and other objects, bodies over 65,535 bytes (the entry bundle counts in
16 bits), prompts and completions (there is no field for them).
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

import orjson

from audit.errors import RecordInvalid
from audit.tree import leaf_hash as leaf_hash  # the hash of an entry is a word of this module too

Kind = Literal[
    "decision",
    "error",
    "refusal",
    "revision",
    "settlement",
    "void",
    "budget",
    "key",
    "extension",
    "gap",
    "proposal",
    "approval",
    "hold",
    "checkpoint_seen",
    "erasure",
    "retention",
    "waiver",
    "compliance",
]
KINDS: Final[tuple[Kind, ...]] = (
    "decision",
    "error",
    "refusal",
    "revision",
    "settlement",
    "void",
    "budget",
    "key",
    "extension",
    "gap",
    "proposal",
    "approval",
    "hold",
    "checkpoint_seen",
    "erasure",
    "retention",
    "waiver",
    "compliance",
)
"""Stored as their position here: append new ones at the end, never reorder."""

TERM_FIELDS: Final = ("data_source", "rejected_pool", "rule", "country", "waiver", "approver")
"""What an entry may have several of. Stored as their position here: append at the end, never reorder."""

SHEET_TERM_FIELDS: Final = ("rejected_pool", "rule")
"""What a sheet says for every decision that names it."""

BlobKind = Literal["sheet", "policy", "fleet", "facts", "revision", "restore"]
BLOB_KINDS: Final[tuple[BlobKind, ...]] = ("sheet", "policy", "fleet", "facts", "revision", "restore")

BODY_MAX_BYTES: Final = 65_535
BLOB_MAX_BYTES: Final = 64 * 1024 * 1024
VALUE_MAX_CHARS: Final = 512
TERMS_MAX: Final = 4_096
DEPTH_MAX: Final = 32
INTEGER_MAX: Final = 2**53 - 1
SALT_MIN_BYTES: Final = 16

_ENCODING: Final = (
    orjson.OPT_SORT_KEYS
    | orjson.OPT_STRICT_INTEGER
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)
_UUID7: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")

Term = tuple[str, str]
"""A field of ``TERM_FIELDS`` and one of its values."""

Personal = tuple[str, bytes]
"""The name of a person, and fields about that person as a JSON object, which ``audit.personal`` encrypts."""
SEALED_BYTES: Final = 64
"""More than number, nonce, tag, base64 and quotes add to personal fields."""


class Search(NamedTuple):
    """What an entry has at most one of and is found by. ``sheet`` is the digest of a blob that the log must hold."""

    tenant: str | None = None
    project: str | None = None
    environment: str | None = None
    principal: str | None = None
    outcome: str | None = None
    denied_by: str | None = None
    pool: str | None = None
    provider: str | None = None
    country: str | None = None
    model: str | None = None
    model_version: str | None = None
    classification: str | None = None
    sla_class: str | None = None
    mode: str | None = None
    policy_commit: str | None = None
    fleet_commit: str | None = None
    request_id: str | None = None
    sheet: str | None = None


SEARCH_FIELDS: Final = Search._fields
REQUEST_ID: Final = SEARCH_FIELDS.index("request_id")
NOT_SEARCHED: Final = Search()


class _Fields(NamedTuple):
    kind: Kind
    id: str
    time_us: int
    body: bytes
    search: Search
    terms: tuple[Term, ...]
    personal: tuple[Personal, ...]
    token: str | None


class Entry(_Fields):
    """One thing that happened. ``id`` is a UUIDv7 in lower-case text, ``time_us`` UTC microseconds since 1970; by
    ``token`` it is found in the place of its principal, once its personal fields are encrypted.

    Raises ``RecordInvalid`` when a rule of this module is broken.
    """

    __slots__ = ()

    def __new__(
        cls,
        kind: Kind,
        id: str,
        time_us: int,
        body: bytes,
        search: Search = NOT_SEARCHED,
        terms: tuple[Term, ...] = (),
        personal: tuple[Personal, ...] = (),
        token: str | None = None,
    ) -> Entry:
        """An entry that was checked."""
        if kind not in KINDS:
            raise RecordInvalid(f"kind {kind!r} is none of {', '.join(KINDS)}")
        if not is_entry_id(id):
            raise RecordInvalid(f"id {id!r} is not a UUIDv7 in canonical text")
        if type(time_us) is not int or not 0 <= time_us <= INTEGER_MAX:
            raise RecordInvalid("time_us is not a count of microseconds since 1970 within 2^53-1")
        if type(body) is not bytes or not body:
            raise RecordInvalid("the body is not bytes, or is empty")
        _check_search(search)
        _check_terms(terms, TERM_FIELDS)
        made = super().__new__(cls, kind, id, time_us, body, search, terms, personal, token)
        if made.length_bytes > BODY_MAX_BYTES:
            raise _too_long(made.length_bytes)
        return made

    @property
    def length_bytes(self) -> int:
        """How long its body is when its personal fields are in it, encrypted."""
        if not self.personal:
            return len(self.body)
        return len(self.body) + SEALED_BYTES + sum(SEALED_BYTES + len(fields) * 4 // 3 for _, fields in self.personal)

    def sealed(self, key: str, value: bytes, token: str | None, terms: tuple[Term, ...]) -> Entry:
        """``begun_with`` for its personal fields, encrypted; it is found by ``token`` in the place of its principal,
        and by ``terms`` that name no person."""
        return Entry._make((*self.begun_with(key, value)[:5], terms, (), token))

    def begun_with(self, key: str, value: bytes) -> Entry:
        """The same entry with one more field in front: ``key`` sorts before the others, ``value`` is canonical JSON.

        All else was checked when the entry was made. Raises ``RecordInvalid`` when the body becomes too long.
        """
        body = b'{"%b":%b,%b' % (key.encode(), value, self.body[1:])
        if len(body) > BODY_MAX_BYTES:
            raise _too_long(len(body))
        return Entry._make((*self[:3], body, *self[4:]))


def _too_long(length_bytes: int) -> RecordInvalid:
    return RecordInvalid(f"the body has {length_bytes} bytes; an entry holds at most {BODY_MAX_BYTES}")


@dataclass(frozen=True, slots=True)
class Blob:
    """Shared content, addressed by ``sha256:`` and the hex hash of its bytes.

    ``terms`` (sheets only) are the rejected pools and rules by which every decision that names this sheet is found.
    Raises ``RecordInvalid`` when the digest is not that of the content.
    """

    digest: str
    kind: BlobKind
    content: bytes
    terms: tuple[Term, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in BLOB_KINDS:
            raise RecordInvalid(f"blob kind {self.kind!r} is none of {', '.join(BLOB_KINDS)}")
        if type(self.content) is not bytes or len(self.content) > BLOB_MAX_BYTES:
            raise RecordInvalid(f"a blob is at most {BLOB_MAX_BYTES} bytes")
        if self.digest != digest(self.content):
            raise RecordInvalid(f"the content is not what {self.digest!r} addresses")
        if self.terms and self.kind != "sheet":
            raise RecordInvalid("only a sheet has terms")
        _check_terms(self.terms, SHEET_TERM_FIELDS)

    @classmethod
    def of(cls, kind: BlobKind, content: bytes, terms: tuple[Term, ...] = ()) -> Blob:
        """The blob with this content, its digest computed."""
        return cls(digest(content), kind, content, terms)


def personal(name: str, fields: Mapping[str, Any]) -> Personal:
    """Fields about a person. Raises ``RecordInvalid`` for what no body may hold."""
    return name, _canonical(fields, "the personal fields")


class Filled(NamedTuple):
    """A field of a body that is encoded and checked already. Made by ``Form.filled`` and ``fixed`` only."""

    content: bytes


def fixed(fields: Mapping[str, Any]) -> dict[str, Filled]:
    """Fields that many bodies have alike, encoded and checked once. Raises ``RecordInvalid``."""
    for name, value in fields.items():
        _canonical({name: value}, f"the field {name!r}")
    return {name: Filled(orjson.dumps(value, option=_ENCODING)) for name, value in fields.items()}


class Form(NamedTuple):
    """An object that is always the same but for one field: encoded and checked once, with a blank for that field."""

    before: bytes
    blank: bytes
    after: bytes

    @classmethod
    def of(cls, fields: Mapping[str, Any], blank: str) -> Form:
        """A form with these fields, of which some stand before the ``blank`` and some behind it.

        Raises ``RecordInvalid`` for what no body may hold.
        """
        before = {name: value for name, value in fields.items() if name < blank}
        after = {name: value for name, value in fields.items() if name > blank}
        if not before or not after or blank in fields or not blank.isascii():
            raise RecordInvalid(f"{blank!r} cannot be the blank of a form")
        parts = [_canonical(part, "the form") for part in (before, after)]
        return cls(parts[0][:-1], b',"%b":' % blank.encode(), b"," + parts[1][1:])

    def filled(self, fields: Mapping[str, Any]) -> Filled:
        """The object with these fields in its blank; without the blank when there are none.

        Raises ``RecordInvalid`` for what no body may hold.
        """
        if not fields:
            return Filled(self.before + self.after)
        return Filled(self.before + self.blank + _canonical(fields, "what fills the form") + self.after)


NOTHING_FILLED: Final[Mapping[str, Filled]] = MappingProxyType({})


def is_entry_id(text: object) -> bool:
    """Whether ``text`` is a UUIDv7 in canonical lower-case text."""
    return isinstance(text, str) and _UUID7.fullmatch(text) is not None


def is_digest(text: object) -> bool:
    """Whether ``text`` is ``sha256:`` and 64 lower-case hex digits."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def encodable(text: str) -> bool:
    """Whether ``text`` has a UTF-8 form, which half a character (a lone surrogate) has not."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def digest(content: bytes) -> str:
    """The content address of bytes: ``sha256:`` and hex."""
    return "sha256:" + sha256(content).hexdigest()


def encode(fields: Mapping[str, Any], salt: bytes, filled: Mapping[str, Filled] = NOTHING_FILLED) -> bytes:
    """The canonical bytes of a body: sorted ASCII keys, no blanks, ``salt`` added in Base64 without padding.

    ``filled`` are further fields, which were checked when they were made.
    ``salt`` is at least 16 random bytes, new for each entry. Raises ``RecordInvalid`` naming the path of what does not
    fit; the length is checked by ``Entry``.
    """
    if len(salt) < SALT_MIN_BYTES:
        raise RecordInvalid(f"the salt has {len(salt)} bytes; it needs {SALT_MIN_BYTES}")
    if "salt" in fields:
        raise RecordInvalid("the body names its own salt")
    further: dict[str, Any] = {name: orjson.Fragment(value.content) for name, value in filled.items()}
    further["salt"] = b64encode(salt).rstrip(b"=").decode()
    return _canonical(fields, "the body", further)


def _canonical(fields: Mapping[str, Any], what: str, sound: Mapping[str, Any] = NOTHING_FILLED) -> bytes:
    """The canonical bytes of these fields, which are checked, and of others that are known to be ``sound``."""
    try:
        encoded = orjson.dumps({**fields, **sound}, option=_ENCODING)
    except TypeError as error:
        _check_json(fields)
        raise RecordInvalid(f"{what} cannot be encoded: {error}") from error
    if not _sound(fields, encoded.isascii()):
        _check_json(fields)
    return encoded


def salt_of(text: str) -> bytes:
    """The salt of a body, as ``encode`` has written it."""
    return b64decode(text + "=" * (-len(text) % 4), validate=True)


_SCALARS: Final = frozenset({str, int, bool, type(None)})
_TEXT: Final = frozenset({str})


def _sound(value: Any, ascii_keys: bool) -> bool:
    """Whether a value that orjson has encoded (so: safe integers, no deep nesting) is plain JSON with ASCII keys.

    A quick yes for what the product writes; what it does not say yes to, ``_check_json`` judges and names. A body that
    is ASCII as a whole has ``ascii_keys``.
    """
    pending = [value]
    # Grows while it is read: what holds more than scalars is looked into next.
    for part in pending:
        kind = type(part)
        if kind is dict:
            if not _TEXT.issuperset(map(type, part)) or not (ascii_keys or all(map(str.isascii, part))):
                return False
            parts = part.values()
        elif kind is list or kind is tuple:
            parts = part
        elif kind in _SCALARS:
            continue
        else:
            return False
        if not _SCALARS.issuperset(map(type, parts)):
            pending += [each for each in parts if type(each) not in _SCALARS]
    return True


def _check_json(root: Mapping[str, Any]) -> None:
    """Refuse what has no single canonical form. A loop, not recursion: bodies come from outside."""
    pending: list[tuple[Any, tuple[Any, ...]]] = [(root, ())]
    while pending:
        value, path = pending.pop()
        if isinstance(value, str) or value is None or value is True or value is False:
            continue
        if isinstance(value, int):
            if not -INTEGER_MAX <= value <= INTEGER_MAX:
                raise RecordInvalid(f"{_path(path)}: an integer beyond 2^53-1")
            continue
        if len(path) >= DEPTH_MAX:
            raise RecordInvalid(f"{_path(path)}: nested deeper than {DEPTH_MAX}")
        if isinstance(value, Mapping):
            for key, child in value.items():
                if not isinstance(key, str) or not key.isascii():
                    raise RecordInvalid(f"{_path(path)}: the key {key!r} is not ASCII text")
                pending.append((child, (*path, key)))
        elif isinstance(value, list | tuple):
            pending.extend((child, (*path, position)) for position, child in enumerate(value))
        else:
            raise RecordInvalid(f"{_path(path)}: {type(value).__name__} has no place in a record")


def _path(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path) or "the body"


def _check_terms(terms: tuple[Term, ...], allowed: tuple[str, ...]) -> None:
    if len(terms) > TERMS_MAX:
        raise RecordInvalid(f"{len(terms)} terms; at most {TERMS_MAX}")
    for field, value in terms:
        if field not in allowed:
            raise RecordInvalid(f"term {field!r} is none of {', '.join(allowed)}")
        _check_value(field, value)


def _check_search(search: Search) -> None:
    """Thousands of entries differ in the request that carried them only."""
    try:
        if _fits(search.request_id) and _all_fit(search[:REQUEST_ID]) and _all_fit(search[REQUEST_ID + 1 :]):
            return
    except TypeError:  # what has no hash is no text either, and is named below
        pass
    for name, value in zip(SEARCH_FIELDS, search, strict=True):
        if value is not None:
            _check_value(name, value)


@lru_cache(maxsize=8_192)
def _all_fit(values: tuple[object, ...]) -> bool:
    return all(map(_fits, values))


def _fits(value: object) -> bool:
    return value is None or (isinstance(value, str) and 0 < len(value) <= VALUE_MAX_CHARS and encodable(value))


def _check_value(field: str, value: object) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= VALUE_MAX_CHARS:
        raise RecordInvalid(f"{field} is not text of 1 to {VALUE_MAX_CHARS} characters")
    if not encodable(value):
        raise RecordInvalid(f"{field} holds half a character (a lone surrogate)")
