"""YAML as plain JSON values that remember their lines, and back; model errors as findings at those lines.

Rules: text is UTF-8; keys are text and stand once; numbers are plain decimal integers of at most 2**53 - 1; a date
stays the text that it was. The result holds only dicts, lists, text, integers, booleans and None.

Refused, each with a finding at its line: numbers with a fraction or exponent (they lose digits: money is quoted), NaN,
tags, merge keys, several documents in one file, aliases that grow without bound, deep nesting. Every fault of a file is
found, not only the first, except where the syntax itself is broken.

Plain words mean what YAML 1.2 (core schema) says: ``NO``, ``on`` and ``12:30`` are text. The parser is libyaml through
PyYAML, with its own 1.1 meanings left out; without libyaml this module does not import.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from yaml import CSafeLoader, SafeDumper
from yaml import dump as dump_yaml
from yaml.error import MarkedYAMLError, YAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from policyd.errors import Finding

MAX_NODES: Final = 500_000
"""Values in one file, counted after aliases are written out."""
MAX_NESTING: Final = 40
MAX_INTEGER: Final = 2**53 - 1
MAX_DIRECTIVES: Final = 16
"""Lines that begin with ``%``: the parser compares each tag directive with all before it."""

_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9_]{0,20})")
_LIKE_INTEGER: Final = re.compile(r"[-+]?([0-9][0-9_]*|0o[0-7_]+|0x[0-9a-fA-F_]+|0b[01_]+)")
_LIKE_FLOAT: Final = re.compile(
    r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_NUMBER_STARTS: Final = frozenset("0123456789+-.")


class _Kind(Enum):
    """What a value is that carries no tag. A tag that an author writes is text, and so never equals one of these."""

    MAPPING = auto()
    LIST = auto()
    TEXT = auto()
    NULL = auto()
    BOOL = auto()
    INTEGER = auto()
    FLOAT = auto()
    MERGE = auto()


_WORDS: Final = (
    dict.fromkeys(("", "~", "null", "Null", "NULL"), _Kind.NULL)
    | dict.fromkeys(("true", "True", "TRUE", "false", "False", "FALSE"), _Kind.BOOL)
    | {"<<": _Kind.MERGE}
)

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a value stands: its file and line, and the spots of what is in it (by key, or by position).

    Line 0 is that of what has no lines, such as a variable of the environment.
    """

    file: str
    line: int
    below: Mapping[str | int, Spot] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

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
    if text.count("\n%") > MAX_DIRECTIVES:
        return _broken(file, 1, f"more than {MAX_DIRECTIVES} lines that begin with %")
    try:
        root = _composed(text)
    except _Unbounded as error:
        return _broken(file, error.line, str(error))
    except ReaderError as error:
        # The parser counts bytes.
        line = text.encode().count(b"\n", 0, error.position) + 1
        return _broken(file, line, "a character that YAML does not permit")
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        told = " ".join(part for part in (error.context, error.problem) if part)
        # The parser ends a last line that lacks its newline, and then stands one line too far.
        last = len((text + "|").splitlines())
        return _broken(file, min(mark.line + 1, last) if mark else 1, f"not YAML: {told}")
    except (YAMLError, ValueError) as error:
        return _broken(file, 1, f"not YAML: {error}")
    if root is None:
        return Document(None, Spot(file, 1), ())
    findings: list[Finding] = []
    value = _read(root, root.start_mark.line + 1, file, findings)
    return Document(value, _spot(file, root.start_mark.line + 1, root), tuple(findings))


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


class _Loader(CSafeLoader):
    """libyaml's nodes, with the core schema as ``tag``, and bounds while they are made: libyaml's binding recurses."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0

    def descend_resolver(self, current_node: Node | None, current_index: Any) -> None:
        """Called by the parser before each value."""
        self._depth += 1
        self._nodes += 1
        if self._depth > MAX_NESTING + 1 or self._nodes > MAX_NODES:
            line = current_node.start_mark.line + 1 if current_node is not None else 1
            raise _too_deep(line) if self._depth > MAX_NESTING + 1 else _too_many(line)

    def ascend_resolver(self) -> None:
        """Called by the parser after each value."""
        self._depth -= 1

    def resolve(self, kind: type[Node], value: str | None, implicit: Any) -> Any:
        """The ``_Kind`` of a value without a tag; of a scalar, ``implicit`` says first whether it stands unquoted."""
        if value is None:
            return _Kind.MAPPING if kind is MappingNode else _Kind.LIST
        if not implicit[0]:
            return _Kind.TEXT
        word = _WORDS.get(value)
        if word is not None:
            return word
        if value[0] in _NUMBER_STARTS:
            if _LIKE_INTEGER.fullmatch(value):
                return _Kind.INTEGER
            if _LIKE_FLOAT.fullmatch(value):
                return _Kind.FLOAT
        return _Kind.TEXT


def _composed(text: str) -> Node | None:
    """The nodes of the one document; raises ``_Unbounded`` and the parser's errors."""
    loader = _Loader(text)
    try:
        root: Node | None = loader.get_single_node()
    finally:
        loader.dispose()
    if root is not None and "&" in text and "*" in text:  # else it has no alias
        _bound_aliases(root, {})
    return root


def _bound_aliases(node: Node, extents: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Values in a node and levels below it, aliases written out; raises ``_Unbounded``. Each node is counted once."""
    extent = extents.get(id(node))
    if extent is None:
        extents[id(node)] = (0, MAX_NESTING)  # found again below itself, it has no end
        children = _children(node)
        below = [_bound_aliases(child, extents) for child in children if type(child) is not ScalarNode]
        scalars = len(children) - len(below)
        levels = max((levels for _, levels in below), default=0 if scalars else -1)
        extent = (1 + scalars + sum(nodes for nodes, _ in below), 1 + levels)
        extents[id(node)] = extent
    if extent[0] > MAX_NODES:
        raise _too_many(node.start_mark.line + 1)
    if extent[1] > MAX_NESTING:
        raise _too_deep(node.start_mark.line + 1)
    return extent


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, SequenceNode) else []


def _too_deep(line: int) -> _Unbounded:
    return _Unbounded(line, f"nested deeper than {MAX_NESTING} levels")


def _too_many(line: int) -> _Unbounded:
    return _Unbounded(line, f"more than {MAX_NODES} values, aliases written out")


def _kind(node: Node) -> object:
    """What ``_Loader.resolve`` found, or the text of an author's tag; PyYAML's types know only of the text."""
    return node.tag


def _read(node: Node, line: int, file: str, findings: list[Finding]) -> Any:
    """The value of a node; what is refused becomes a finding and None."""
    kind = _kind(node)
    try:
        if kind is _Kind.TEXT:
            return node.value
        if kind is _Kind.MAPPING:
            return _read_mapping(node, file, findings)
        if kind is _Kind.LIST:
            return [_read(item, item.start_mark.line + 1, file, findings) for item in node.value]
        return _scalar(node)
    except _Refused as refused:
        findings.append(Finding(f"{file}:{line}", str(refused)))
        return None


def _read_mapping(node: Node, file: str, findings: list[Finding]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        at = key_node.start_mark.line + 1
        try:
            key = _key(key_node)
            if key in values:
                raise _Refused(f"key {_shown(key)} stands twice; the first one is in line {lines[key]}")
        except _Refused as refused:
            findings.append(Finding(f"{file}:{at}", str(refused)))
        else:
            lines[key] = at
            values[key] = _read(value_node, at, file, findings)
    return values


def _key(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        raise _Refused("a key is text")
    kind = _kind(node)
    if kind is _Kind.MERGE:
        raise _Refused("merge keys (<<) are not read here; write the keys out")
    if kind is not _Kind.TEXT:
        raise _Refused(f"a key is text: quote {_shown(node.value)}")
    key: str = node.value
    return key


def _scalar(node: Node) -> str | int | bool | None:
    text: str = node.value
    match _kind(node):
        case _Kind.NULL:
            return None
        case _Kind.BOOL:
            return text.lower() == "true"
        case _Kind.MERGE:
            raise _Refused("merge keys (<<) are not read here; quote << if it is text")
        case _Kind.INTEGER:
            if not _INTEGER.fullmatch(text):
                raise _Refused(f"{text[:40]!r} is not a plain decimal integer; quote it if it is text")
            if abs(int(text.replace("_", ""))) > MAX_INTEGER:
                raise _Refused(f"{text[:40]} is larger than {MAX_INTEGER}")
            return int(text.replace("_", ""))
        case _Kind.FLOAT:
            raise _Refused(f"{text[:40]} is not exact: write money as a quoted decimal ('88.49') and all else whole")
        case _:
            raise _Refused(f"tag {_shown(node.tag)} is not read here")


class _Below(Mapping[str | int, "Spot"]):
    """The spots in a node, made when they are first asked for: most files have no fault, and nobody asks."""

    __slots__ = ("_file", "_node", "_spots")

    def __init__(self, file: str, node: Node) -> None:
        self._file = file
        self._node = node
        self._spots: dict[str | int, Spot] | None = None

    def _made(self) -> dict[str | int, Spot]:
        if self._spots is None:
            self._spots = {}
            for key, line, node in _within(self._node):
                self._spots.setdefault(key, _spot(self._file, line, node))
        return self._spots

    def __getitem__(self, key: str | int) -> Spot:
        return self._made()[key]

    def __iter__(self) -> Iterator[str | int]:
        return iter(self._made())

    def __len__(self) -> int:
        return len(self._made())


def _spot(file: str, line: int, node: Node) -> Spot:
    return Spot(file, line) if isinstance(node, ScalarNode) else Spot(file, line, _Below(file, node))


def _within(node: Node) -> Iterator[tuple[str | int, int, Node]]:
    """Key or position, line and node of each value that was read in a node."""
    kind = _kind(node)
    if kind is _Kind.LIST:
        for i, item in enumerate(node.value):
            yield i, item.start_mark.line + 1, item
    elif kind is _Kind.MAPPING:
        for key, value in node.value:
            if _kind(key) is _Kind.TEXT:
                yield key.value, key.start_mark.line + 1, value


class YamlWriter(SafeDumper):
    """Writes JSON values as YAML that any reader, of YAML 1.1 or 1.2, reads back as they were; nothing is an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        """A value that stands in two places is written twice."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """The items of a list stand deeper than its key."""
        super().increase_indent(flow, False)


def _text_node(writer: YamlWriter, text: str) -> ScalarNode:
    # A reader makes other line breaks of these, unless they are escaped.
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


YamlWriter.add_representer(str, _text_node)
# Texts that only YAML 1.2 takes for numbers are quoted too.
YamlWriter.add_implicit_resolver("tag:yaml.org,2002:int", _LIKE_INTEGER, list(_NUMBER_STARTS))
YamlWriter.add_implicit_resolver("tag:yaml.org,2002:float", _LIKE_FLOAT, list(_NUMBER_STARTS))


def write_yaml(value: Any, *, width: int, writer: type[YamlWriter] = YamlWriter) -> str:
    """JSON values as one YAML document: keys in their order, texts folded at ``width`` columns where they can be."""
    text: str = dump_yaml(
        value, Dumper=writer, default_flow_style=False, allow_unicode=True, sort_keys=False, width=width
    )
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
