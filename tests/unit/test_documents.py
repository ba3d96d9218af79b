"""YAML in and out: what plain words mean, that hostile files are findings and never a crash, and round trips."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policyd.documents import MAX_DIRECTIVES, MAX_NESTING, Document, read_yaml, write_yaml


def read(text: str) -> Document:
    return read_yaml(text.encode(), "f")


def told(text: str) -> list[str]:
    return [str(finding) for finding in read(text).findings]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *((word, word) for word in ("NO", "no", "yes", "on", "off", "Y", "12:30:45", "=", "0.0.1", "2026-07-01")),
        *((word, None) for word in ("", "~", "null", "Null", "NULL")),
        *((word, True) for word in ("true", "True", "TRUE")),
        *((word, False) for word in ("false", "False", "FALSE")),
        *((word, int(word)) for word in ("0", "-0", "+7", "1_000", "9007199254740991")),
        *((f"'{word}'", word) for word in ("1", "true", "null", "<<", "1e3")),
        ("2026-07-01T00:00:00Z", "2026-07-01T00:00:00Z"),
        ("nUll", "nUll"),
        ("1_", 1),
        ("1.2.3", "1.2.3"),
        ("0xZ", "0xZ"),
    ],
)
def test_plain_words_mean_what_the_core_schema_says(word: str, value: Any) -> None:
    document = read(f"a: {word}\n")
    assert (document.value, document.findings) == ({"a": value}, ())
    assert type(document.value["a"]) is type(value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        *((word, "is not exact") for word in ("1.0", "1.", ".5", "1e3", "-1E-3", "1_0.5", ".inf", "-.Inf", ".NaN")),
        *((word, "is not a plain decimal integer") for word in ("012", "0o17", "0x1F", "0b1", "0_1", "9" * 5000)),
        ("9007199254740992", "is larger than"),
        ("<<", "merge keys (<<) are not read here"),
        *((word, "tag ") for word in ("!!str NO", "!!int 'x'", "!!bool x", "!x y", "!<int> 1", "!!map {}", "!!seq []")),
    ],
)
def test_what_is_refused_has_its_line_and_hides_nothing_else(word: str, message: str) -> None:
    document = read(f"# first\na: {word}\nb: [1]\n")
    assert document.value == {"a": None, "b": [1]}
    (finding,) = document.findings
    assert finding.where == "f:2"
    assert message in finding.message
    assert len(finding.message) < 200


def test_an_alias_is_written_out_and_shares_nothing() -> None:
    document = read("a: &x {k: [1]}\nb: *x\nc:\n  - *x\n")
    assert document.value == {"a": {"k": [1]}, "b": {"k": [1]}, "c": [{"k": [1]}]}
    document.value["a"]["k"].append(2)
    assert document.value["b"] == {"k": [1]}
    assert [str(document.spot.at(place)) for place in (("a",), ("b",), ("b", "k"), ("c",), ("c", 0))] == [
        "f:1", "f:2", "f:1", "f:3", "f:1",
    ]  # fmt: skip


def test_spots_follow_what_was_read() -> None:
    spot = read("a: 1\nb:\n  - x\n  -\n    c: 2\n    c: 3\n    1: 4\n").spot
    assert list(spot.below) == ["a", "b"]
    assert str(spot.at(("b", 1, "c"))) == "f:5", "the key that counts is the first one"
    assert str(spot.at(("b", 1, "absent"))) == str(spot.at(("b", 1))) == "f:5"
    assert len(spot.below["b"].below[1].below) == 1


def test_the_nesting_that_is_permitted_is_read() -> None:
    deepest = "[" * (MAX_NESTING + 1) + "]" * (MAX_NESTING + 1)
    assert read(deepest).findings == ()
    assert told(f"- {deepest}") == ["f:1: nested deeper than 40 levels"]
    chain = "".join(f"a{i}: &a{i} [{'*a' + str(i - 1) if i else ''}]\n" for i in range(MAX_NESTING))
    assert read(chain).findings == ()
    assert "nested deeper" in told(chain + f"last: [*a{MAX_NESTING - 1}]\n")[0]


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 35))
HOSTILE = {
    "open lists": "[" * 100_000,
    "open lists on lines": "[\n" * 100_000,
    "open mappings": "{a: " * 50_000,
    "open keys": "? " * 100_000,
    "open items": "- " * 100_000,
    "open blocks": "".join(" " * i + "a:\n" for i in range(1_500)),
    "an alias bomb": BOMB,
    "a deep chain of aliases": "a0: &a0 {}\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3_000)),
    "a ring": "a: &a [*a]",
    "a ring through two": "&a {b: &c [*a, *c]}",
    "a ring through its key": "&a {? *a : b}",
    "many aliases": "a: &a [1, 2, 3]\nb: [" + "*a," * 150_000 + "]",
    "zeros": "\x00" * 100_000,
    "a zero in a value": "a: x\x00y",
    "half a character": 'a: "\\ud800"',
    "two halves": 'a: "\\ud83d\\ude00"',
    "no character": 'a: "\\U00110000"',
    "tag directives": "".join(f"%TAG !a{i}! x\n" for i in range(MAX_DIRECTIVES + 2)),
    "an unknown alias": "a: *b",
    "an open quote": '"' + "\n" * 100_000,
    "a key without end": "x" * 100_000 + ": y",
    "a number without end": "a: " + "1" * 4_000_000,
    "a tag without end": "a: !" + "x" * 1_000_000 + " y",
    "a double key without end": "? " + "x" * 100_000 + "\n: 1\n? " + "x" * 100_000 + "\n: 2\n",
    "two documents": "a: 1\n---\nb: 2\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_short_finding(name: str) -> None:
    (finding,) = told(HOSTILE[name])
    assert finding.startswith("f:")
    assert len(finding) < 200


def test_one_huge_text_is_a_text() -> None:
    size = 1_000_000
    assert read(f"a: {'x' * size}").value == {"a": "x" * size}
    assert read("1." * size).value == "1." * size


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=12), below, max_size=4),
    max_leaves=12,
)
WORDS = ["NO", "1e3", "0o17", "012", "1_0.5", "<<", "=", "~", "", "on", "null", "2026-07-01", "- a", "a: b", "#", "\n"]


@given(JSON)
@example(WORDS)
@example({word: word for word in WORDS})
@example({"\x85": "\u2029"})
@example({"long": "word " * 60, "line\u2028": "\x85 \ufeff \U0001f600 \ud7ff\x07"})
def test_what_is_written_reads_back(value: Any) -> None:
    document = read_yaml(write_yaml(value, width=60).encode(), "f")
    assert (document.value, document.findings) == (value, ())


def test_nothing_written_is_an_alias_or_out_of_order() -> None:
    shared = ["x"]
    assert write_yaml({"b": shared, "a": shared}, width=60) == "b:\n  - x\na:\n  - x\n"
