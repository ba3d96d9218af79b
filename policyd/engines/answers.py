"""From a question's bytes to the engine, and from the raw exports of a Rego package to an ``Answer``.

Both engines pass through here, so that equal policies give equal answers. Rules: pure; sets have one canonical order;
an integral float is an integer, any other float is an error; what is not well formed is an error and never a smaller
answer. It refuses strings with quotes, backslashes or control characters in questions: one engine keeps strings in
their escaped form and would compare, count and print them differently from the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from policyd.core.quantities import MAX_SAFE
from policyd.core.verdict import Answer, Package

EXPORTS: Final = ("deny", "warn", "prefer", "obligation", "approval")
SET_EXPORTS: Final = frozenset({"deny", "warn", "obligation", "approval"})
"""Exports that are partial sets: one without elements is empty, and never undefined."""

PREFER_LIMIT: Final = 1000
MAX_ITEMS: Final = 1000
"""Most elements of one exported set for one pool."""

_MAX_DEPTH: Final = 24
_TEXT: Final = frozenset({str})
_NUMBERS_ALIKE: Final = bytes.maketrans(b"123456789eE", b"000000000..")
_LONG_NUMBER: Final = b"0" * 15
_FORBIDDEN: Final = frozenset('"\\') | frozenset(map(chr, range(0x20)))


class _Malformed(Exception):
    """Why an answer or a question is no good; its text goes into ``Answer.error``."""


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no blanks, no escapes beyond what JSON demands."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def unrepresentable(value: Any, depth: int = 0) -> str | None:
    """Why a JSON value cannot go to every engine with the same meaning; None when it can."""
    if isinstance(value, str):
        return "a text holds a quote, a backslash or a control character" if not _FORBIDDEN.isdisjoint(value) else None
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if -MAX_SAFE <= value <= MAX_SAFE else f"the number {value} is beyond ±{MAX_SAFE}"
    if isinstance(value, float):
        return f"{value} is no integer"
    if depth >= _MAX_DEPTH:
        return f"it is nested deeper than {_MAX_DEPTH}"
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            return "a name in it is no text"
        parts: list[Any] = [part for item in value.items() for part in item]
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        return f"{type(value).__name__} is no JSON value"
    for part in parts:
        reason = unrepresentable(part, depth + 1)
        if reason:
            return reason
    return None


def question_fault(input_json: bytes) -> str | None:
    """Why a question's input cannot be asked; None when it can. It must be a JSON object."""
    try:
        document = orjson.loads(input_json)
    except ValueError:
        return "the question is no JSON"
    if not isinstance(document, dict):
        return "the question is no JSON object"
    # Every forbidden character is escaped in JSON, and every forbidden number is long or has a fraction or exponent: so
    # most questions are told apart without looking at each value. A regular expression takes ten times as long.
    alike = input_json.translate(_NUMBERS_ALIKE)
    doubtful = b"\\" in input_json or b"0." in alike or _LONG_NUMBER in alike
    nested = input_json.count(b"{") + input_json.count(b"[") >= _MAX_DEPTH
    return unrepresentable(document) if doubtful or nested else None


def answer_from(exports: Mapping[str, Any], package: Package) -> Answer:
    """Judge the raw exports of one package."""
    try:
        lost = sorted((SET_EXPORTS & package.exports).difference(exports))
        if lost:
            raise _Malformed(f"{lost[0]}: the engine gave no set")
        return Answer(
            deny=_violations("deny", exports.get("deny", []), package),
            warn=_violations("warn", exports.get("warn", []), package),
            prefer=_preference(exports.get("prefer", 0)),
            obligation=_obligations(exports.get("obligation", [])),
            approval=_violations("approval", exports.get("approval", []), package),
        )
    except _Malformed as fault:
        return Answer(error=str(fault))


def _violations(export: str, value: Any, package: Package) -> tuple[Mapping[str, Any], ...]:
    """The elements of ``deny``, ``warn`` or ``approval``. Each has the id of a rule of that
    name: a warning's would weigh nothing."""
    items = _objects(export, value)
    for item in items:
        if not isinstance(item.get("rule"), str):
            raise _Malformed(f"{export}: a violation has no text `rule`")
        doc = package.rules.get(item["rule"])
        if doc is None or doc.export != export:
            raise _Malformed(f"{export}: the rule '{item['rule']}' is not declared by a {export} rule of the package")
    return items


def _obligations(value: Any) -> tuple[Mapping[str, Any], ...]:
    items = _objects("obligation", value)
    for item in items:
        if not isinstance(item.get("name"), str):
            raise _Malformed("obligation: an obligation has no text `name`")
    return items


def _objects(export: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list):
        raise _Malformed(f"{export}: not a set (write `{export} contains …`)")
    if not value:
        return ()
    if len(value) > MAX_ITEMS:
        raise _Malformed(f"{export}: more than {MAX_ITEMS} elements")
    items: list[Mapping[str, Any]] = []
    for item in value:
        if not isinstance(item, dict):
            raise _Malformed(f"{export}: an element is not an object")
        items.append(_plain(export, item, 0))
    if len(items) == 1:
        return (items[0],)
    # Two elements that differ as 1 and 1.0 are one element once numbers are equal on every engine.
    unique = {canonical_json(item): item for item in items}
    return tuple(unique[text] for text in sorted(unique))


def _preference(value: Any) -> int:
    number = _plain("prefer", value, 0)
    if type(number) is not int or not -PREFER_LIMIT <= number <= PREFER_LIMIT:
        raise _Malformed(f"prefer: not an integer from -{PREFER_LIMIT} to {PREFER_LIMIT}")
    return number


def _plain(export: str, value: Any, depth: int) -> Any:
    """The value with integral floats as integers. Raises ``_Malformed`` for other floats and unsafe integers."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is int or kind is float:
        if not -MAX_SAFE <= value <= MAX_SAFE:
            raise _Malformed(f"{export}: a number is beyond ±{MAX_SAFE}")
        if value != int(value):
            raise _Malformed(f"{export}: {value} is no integer")
        return int(value)
    if depth >= _MAX_DEPTH:
        raise _Malformed(f"{export}: nested deeper than {_MAX_DEPTH}")
    if kind is dict:
        return {str(key): _plain(export, part, depth + 1) for key, part in value.items()}
    # A set inside a value is printed as a list, in an order of the engine's own; so every list here gets one order.
    if _TEXT.issuperset(map(type, value)):
        return sorted(value)
    return sorted((_plain(export, part, depth + 1) for part in value), key=canonical_json)
