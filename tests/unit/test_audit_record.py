"""Entries, blobs and canonical bytes."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pytest

from audit.errors import RecordInvalid
from audit.record import BODY_MAX_BYTES, Blob, Entry, Search, digest, encode, is_entry_id, leaf_hash

ID = "01990000-0000-7000-8000-000000000001"
SALT = bytes(range(16))


def test_a_body_has_sorted_keys_no_blanks_and_its_salt() -> None:
    assert encode({"b": [1, None, True], "a": "é"}, SALT) == (
        '{"a":"é","b":[1,null,true],"salt":"AAECAwQFBgcICQoLDA0ODw"}'.encode()
    )


def test_control_characters_are_escaped_as_rfc_8785_says() -> None:
    text = "".join(map(chr, range(0x20))) + '"\\/\x7f\u2028'
    body = encode({"text": text}, SALT)
    assert body == json.dumps(json.loads(body), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class Colour(StrEnum):
    RED = "red"


def test_an_enumeration_of_texts_is_its_text() -> None:
    assert b'"red"' in encode({"colour": Colour.RED}, SALT)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (1.0, "x.1"),
        (float("nan"), "x.1"),
        (2**53, "x.1"),
        (-(2**53), "x.1"),
        (datetime(2026, 1, 1, tzinfo=UTC), "x.1"),
        (b"bytes", "x.1"),
        ({1, 2}, "x.1"),
        ({"clé": 1}, "x.1"),
        ({1: 1}, "x.1"),
    ],
)
def test_what_has_no_canonical_form_is_refused_with_its_place(value: object, place: str) -> None:
    with pytest.raises(RecordInvalid, match=f"^{place}: "):
        encode({"x": [0, value]}, SALT)


def test_the_largest_integers_pass() -> None:
    assert json.loads(encode({"x": [2**53 - 1, -(2**53) + 1]}, SALT))["x"] == [2**53 - 1, -(2**53) + 1]


def test_nesting_is_bounded() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RecordInvalid, match="nested deeper"):
        encode({"x": deep}, SALT)


def test_half_a_character_is_refused() -> None:
    with pytest.raises(RecordInvalid):
        encode({"x": "\ud800"}, SALT)


@pytest.mark.parametrize(("fields", "salt"), [({}, b"short"), ({"salt": "mine"}, SALT)])
def test_the_salt_is_long_and_not_the_bodys_own(fields: dict[str, str], salt: bytes) -> None:
    with pytest.raises(RecordInvalid, match="salt"):
        encode(fields, salt)


def test_the_leaf_hash_is_that_of_rfc_6962() -> None:
    # RFC 6962 test vector: the leaf hash of the empty string.
    assert leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert leaf_hash(b"{}") == hashlib.sha256(b"\x00{}").digest()


def test_a_body_of_the_largest_size_fits_and_one_byte_more_does_not() -> None:
    assert len(Entry("decision", ID, 0, b"x" * BODY_MAX_BYTES).body) == 65_535
    with pytest.raises(RecordInvalid, match="65536 bytes"):
        Entry("decision", ID, 0, b"x" * (BODY_MAX_BYTES + 1))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "guess"},
        {"id": "01990000-0000-4000-8000-000000000001"},
        {"id": ID.upper().replace("01990", "0199A")},
        {"id": ID + "\n"},
        {"time_us": -1},
        {"time_us": 2**53},
        {"time_us": 1.5},
        {"time_us": True},
        {"body": b""},
        {"body": "text"},
        {"search": Search(tenant="")},
        {"search": Search(request_id="x" * 513)},
        {"search": Search(principal="\udfff")},
        {"terms": (("tenant", "acme"),)},
        {"terms": (("rule", ""),)},
        {"terms": (("rule", "r"),) * 4_097},
    ],
)
def test_an_entry_that_breaks_a_rule_cannot_be_made(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"kind": "decision", "id": ID, "time_us": 0, "body": b"{}"}
    assert Entry(**good).id == ID
    with pytest.raises(RecordInvalid):
        Entry(**(good | change))


def test_a_blob_is_what_its_digest_says() -> None:
    assert Blob.of("facts", b"{}").digest == "sha256:" + hashlib.sha256(b"{}").hexdigest()
    with pytest.raises(RecordInvalid, match="not what"):
        Blob(digest(b"{}"), "facts", b"{ }")


@pytest.mark.parametrize(
    ("kind", "terms"),
    [("facts", (("rule", "r"),)), ("sheet", (("data_source", "crm"),)), ("letter", ())],
)
def test_a_blob_of_the_wrong_kind_or_terms_is_refused(kind: Any, terms: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(RecordInvalid):
        Blob.of(kind, b"{}", terms)


def test_ids_are_uuids_of_version_7_only() -> None:
    assert is_entry_id(ID)
    assert not is_entry_id(None)
    assert not is_entry_id("' OR 1=1 --")
