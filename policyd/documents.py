"""YAML files as plain JSON values that remember their lines, and model errors as findings at those lines.

Rules: text is UTF-8; keys are text and stand once; numbers are plain decimal integers of at most 2**53 - 1; a date
stays the text that it was. The result holds only dicts, lists, text, integers, booleans and None.

Refused, each with a finding at its line: numbers with a fraction or exponent (they lose digits: money is quoted), NaN,
tags, merge keys, several documents in one file, aliases that grow without bound, deep nesting. Every fault of a file is
found, not only the first, except where the syntax itself is broken.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from policyd.errors import Finding

MAX_NODES: Final = 500_000
"""Values in one file, counted after aliases are written out."""
MAX_NESTING: Final = 40
MAX_INTEGER: Final = 2**53 - 1

_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9_]{0,20})")
_TAG: Final = "tag:yaml.org,2002:"

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a value stands: its file and line, and the spots of what is in it (by key, or by position)."""

    file: str
    line: int
    below: Mapping[str | int, Spot] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def at(self, location: Sequence[str | int]) -> Spot:
        """The spot of a value, or of the nearest value around it that was written."""
        spot = self
        for key in location:
            if key not in spot.below:
                break
            spot = spot.below[key]
        return spot


@dataclass(frozen=True, slots=True)
class Document:
    """A file's value with its lines. ``broken`` says that the syntax fails, so that ``value`` says nothing."""

    value: Any
    spot: Spot
    findings: tuple[Finding, ...]
    broken: bool = False


def read_yaml(content: bytes, file: str) -> Document:
    """The one document of a YAML (or JSON) file; never raises, an empty file is None. ``file`` names it in findings."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return _broken(file, line, "not UTF-8 text")
    loader = YAML(typ="safe", pure=True)
    try:
        root = loader.compose(text)
    except ReaderError as error:
        return _broken(file, text.count("\n", 0, error.position) + 1, "a character that YAML does not permit")
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        told = " ".join(part for part in (error.context, error.problem) if part)
        return _broken(file, mark.line + 1 if mark else 1, f"not YAML: {told}")
    except RecursionError:
        return _broken(file, 1, f"nested deeper than {MAX_NESTING} levels")
    except (YAMLError, ValueError, LookupError, AttributeError, TypeError, AssertionError) as error:
        # The parser itself trips over some malformed directives and escapes.
        return _broken(file, 1, f"not YAML: {error}")
    if root is None:
        return Document(None, Spot(file, 1), ())
    reading = _Reading(file)
    try:
        value, spot = reading.read(root, root.start_mark.line + 1, ())
    except _Unbounded as error:
        return _broken(file, error.line, str(error))
    return Document(value, spot, tuple(reading.findings))


def _broken(file: str, line: int, message: str) -> Document:
    spot = Spot(file, line)
    return Document(None, spot, (Finding(str(spot), message),), broken=True)


class _Unbounded(Exception):
    """The document has more values or levels than a limit permits."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _Refused(Exception):
    """One key or value that is not read; the file's other values still are."""


class _Reading:
    """One pass over the nodes of a file: values, spots and findings."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.findings: list[Finding] = []
        self._nodes = 0

    def read(self, node: Node, line: int, around: tuple[int, ...]) -> tuple[Any, Spot]:
        """The value of a node and its spot; ``around`` are the nodes that it lies in, to see a ring of aliases."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _Unbounded(line, f"more than {MAX_NODES} values, aliases written out")
        if len(around) > MAX_NESTING or id(node) in around:
            raise _Unbounded(line, f"nested deeper than {MAX_NESTING} levels")
        around = (*around, id(node))
        if isinstance(node, MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, line, around)
        if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
            return self._sequence(node, line, around)
        try:
            if not isinstance(node, ScalarNode):
                raise _Refused(f"tag {node.tag!r} is not read here")
            return _scalar(node), Spot(self.file, line)
        except _Refused as refused:
            self._find(line, str(refused))
            return None, Spot(self.file, line)

    def _mapping(self, node: MappingNode, line: int, around: tuple[int, ...]) -> tuple[dict[str, Any], Spot]:
        values: dict[str, Any] = {}
        spots: dict[str | int, Spot] = {}
        for key_node, value_node in node.value:
            at = key_node.start_mark.line + 1
            try:
                key = _key(key_node)
                if key in values:
                    raise _Refused(f"key {key!r} stands twice; the first one is in line {spots[key].line}")
            except _Refused as refused:
                self._find(at, str(refused))
            else:
                values[key], spots[key] = self.read(value_node, at, around)
        return values, Spot(self.file, line, spots)

    def _sequence(self, node: SequenceNode, line: int, around: tuple[int, ...]) -> tuple[list[Any], Spot]:
        values: list[Any] = []
        spots: dict[str | int, Spot] = {}
        for i, item in enumerate(node.value):
            value, spots[i] = self.read(item, item.start_mark.line + 1, around)
            values.append(value)
        return values, Spot(self.file, line, spots)

    def _find(self, line: int, message: str) -> None:
        self.findings.append(Finding(f"{self.file}:{line}", message))


def _key(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        raise _Refused("a key is text")
    if node.tag == _TAG + "merge":
        raise _Refused("merge keys (<<) are not read here; write the keys out")
    if node.tag != _TAG + "str":
        raise _Refused(f"a key is text: quote {node.value!r}")
    return _text(node.value)


def _scalar(node: ScalarNode) -> str | int | bool | None:
    text: str = node.value
    kind = str(node.tag).removeprefix(_TAG)
    if kind in ("str", "timestamp"):
        return _text(text)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        if not _INTEGER.fullmatch(text):
            raise _Refused(f"{text[:40]!r} is not a plain decimal integer; quote it if it is text")
        if abs(int(text.replace("_", ""))) > MAX_INTEGER:
            raise _Refused(f"{text[:40]} is larger than {MAX_INTEGER}")
        return int(text.replace("_", ""))
    if kind == "float":
        raise _Refused(f"{text[:40]} is not exact: write money as a quoted decimal ('88.49') and all else whole")
    raise _Refused(f"tag {node.tag!r} is not read here")


def _text(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _Refused("half of a surrogate pair is not a character") from None
    return text


def nearest(name: str, known: Sequence[str]) -> str:
    """``; did you mean …?`` for the nearest known name, else a list of some known names, else nothing."""
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known are {', '.join(f'`{name}`' for name in known[:24])}" if known else ""


def model_findings(
    error: ValidationError, model: type[BaseModel], spot: Spot, value: Any = None, limit: int | None = None
) -> list[Finding]:
    """Every fault that a model found in a value, at its line and in a person's words; of the first ``limit`` faults.

    ``value`` is what was validated; items of lists are then named by their ``id`` or ``name`` instead of a position.
    """
    schema = _schema_of(model)
    findings = []
    faults = error.errors(include_url=False, include_context=True)[:limit]
    for fault in faults:
        # A list that lost its faulty items is told to be too short; the items' own faults say it all.
        if fault["type"] == "too_short" and any(_lies_in(other["loc"], fault["loc"]) for other in faults):
            continue
        location = _written(fault["loc"], value)
        findings.append(Finding(str(spot.at(location)), _in_words(fault, location, schema, value)))
    return findings


def _lies_in(location: Location, around: Location) -> bool:
    return len(location) > len(around) and location[: len(around)] == around


@cache
def _schema_of(model: type[BaseModel]) -> Mapping[str, Any]:
    return model.model_json_schema(mode="validation")


def _written(location: Location, value: Any) -> Location:
    """The part of a model's location that names keys and positions of the file (models add words for unions)."""
    kept: list[str | int] = []
    for i, key in enumerate(location):
        last = i == len(location) - 1
        if isinstance(value, dict) and isinstance(key, str) and (key in value or last) and key != "[key]":
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        elif not (value is None and last and key != "[key]"):
            continue
        kept.append(key)
    return tuple(kept)


def _in_words(fault: Any, location: Location, schema: Mapping[str, Any], value: Any) -> str:
    path = dotted(location, value)
    kind = fault["type"]
    if kind == "missing":
        return f"`{path}` is missing"
    if kind == "extra_forbidden":
        known = sorted(_properties(location[:-1], schema))
        return f"unknown key `{path}`{nearest(str(location[-1]), known)}"
    if kind == "literal_error":
        expected = [word.strip("'") for word in re.split(r", | or ", fault["ctx"]["expected"])]
        near = nearest(str(fault["input"]), expected) if isinstance(fault["input"], str) else ""
        hint = near if near.startswith("; did") else ""
        return f"`{path}` is {_shown(fault['input'])}; use one of {', '.join(expected)}{hint}"
    said = fault["msg"].removeprefix("Value error, ")
    shown = (
        "" if kind == "value_error" or isinstance(fault["input"], dict | list) else f" (here {_shown(fault['input'])})"
    )
    return f"`{path}`: {said[:1].lower()}{said[1:]}{shown}" if path else f"{said[:1].lower()}{said[1:]}{shown}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def dotted(location: Location, value: Any) -> str:
    """A location for a person: ``pools[gcp-a].price.amount``."""
    path = ""
    for key in location:
        if isinstance(key, int):
            value = value[key] if isinstance(value, list) and key < len(value) else None
            name = next((value[n] for n in ("id", "name") if n in value), key) if isinstance(value, dict) else key
            path += f"[{name}]"
        else:
            value = value.get(key) if isinstance(value, dict) else None
            path += f".{key}" if path else key
    return path


def _properties(location: Location, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys that a JSON Schema knows at a location; empty where it names none."""
    at: Any = schema
    for key in (*location, None):
        at = _resolved(at, schema)
        if key is None:
            break
        at = at.get("items", {}) if isinstance(key, int) else _below(at, key)
    found = at.get("properties", {})
    return found if isinstance(found, Mapping) else {}


def _below(at: Mapping[str, Any], key: str) -> Any:
    properties = at.get("properties", {})
    patterns = list(at.get("patternProperties", {}).values())
    return properties[key] if key in properties else at.get("additionalProperties") or next(iter(patterns), {})


def _resolved(at: Any, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema with its reference followed and ``or null`` taken off."""
    while isinstance(at, Mapping):
        if "$ref" in at:
            at = schema["$defs"][at["$ref"].rpartition("/")[2]]
        elif "anyOf" in at:
            at = next((option for option in at["anyOf"] if option.get("type") != "null"), {})
        elif len(at.get("allOf", ())) == 1:
            at = at["allOf"][0]
        else:
            return at
    return {}
