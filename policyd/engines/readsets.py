"""Which input paths a rule can read, by abstract interpretation of its compiled plan.

Each local holds a set of paths (of the input or the data document). A constant-key ``Dot`` extends a path, an
assignment copies it, a call is followed into the callee, ``object.get`` with constant keys counts as a ``Dot``. Every
other use of a local (scan, comparison, built-in argument, insertion, dynamic key, returned value that is used) reads
the whole subtree. The order of statements is ignored, so the result holds for every run.

Rules: pure; too much is slow, too little would be unsafe, so what is not understood reads everything (the path ``()``).
A parent is not read when it served only to reach its children: a projection keeps it, with those children alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from policyd.engines.plan import (
    DATA_LOCAL,
    INPUT_LOCAL,
    Block,
    Function,
    Plan,
    Statement,
    all_statements,
    local_reads,
)

Path = tuple[str, ...]
Paths = frozenset[Path]
Schema = Mapping[str, Any]
"""Legal input paths: name to the names below it, or to None where anything may stand."""

_INPUT: Final = "input"
_DATA: Final = "data"
_EVERYTHING: Final[Path] = (_INPUT,)
_NOTHING: Final[Paths] = frozenset()
_COPIES: Final = frozenset({"AssignVarStmt", "AssignVarOnceStmt"})
_HARMLESS: Final = frozenset(
    {"AssignIntStmt", "MakeNullStmt", "MakeNumberIntStmt", "MakeNumberRefStmt", "MakeObjectStmt", "MakeSetStmt"}
    | {"MakeArrayStmt", "ResetLocalStmt", "BreakStmt", "BlockStmt", "NotStmt", "NopStmt"}
)
_READERS: Final = frozenset(
    {"ArrayAppendStmt", "EqualStmt", "NotEqualStmt", "IsArrayStmt", "IsObjectStmt", "IsSetStmt", "LenStmt", "ScanStmt"}
    | {"ObjectInsertStmt", "ObjectInsertOnceStmt", "ObjectMergeStmt", "SetAddStmt", "ResultSetAddStmt"}
)
_TESTS: Final = frozenset({"IsDefinedStmt", "IsUndefinedStmt"})
_ORDERINGS: Final = frozenset({"lt", "lte", "gt", "gte"})
TEXT: Final[Path] = ("text",)
NUMBER: Final[Path] = ("number",)
"""What stands in a comparison for a constant."""
_UNKNOWN_CONTEXT: Final = frozenset({"WithStmt", "CallDynamicStmt"})


@dataclass(frozen=True, slots=True)
class ReadSet:
    """What a rule reads.

    ``reads`` are input paths and ``data_reads`` paths of the data document, none a prefix of another; ``builtins`` are
    the built-in functions that can run. ``ordered`` says where ``<`` and its like stand and what they may compare, as
    full paths (``("input", "pool", "gpu_count")``, ``("data", …)``, ``TEXT``, ``NUMBER``).
    """

    reads: tuple[Path, ...]
    data_reads: tuple[Path, ...]
    builtins: frozenset[str]
    ordered: frozenset[tuple[str, Paths]] = frozenset()


@dataclass(slots=True)
class _Trace:
    """What was seen so far: paths read whole, paths that only led further, paths that may be missing by design."""

    whole: set[Path] = field(default_factory=set)
    reached: set[Path] = field(default_factory=set)
    extended: set[Path] = field(default_factory=set)
    builtins: set[str] = field(default_factory=set)
    ordered: set[tuple[str, Paths]] = field(default_factory=set)
    known: dict[tuple[str, tuple[Paths, ...]], Paths] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)

    def extend(self, paths: Paths, key: str) -> Paths:
        longer = frozenset((*path, key) for path in paths)
        self.extended |= paths
        self.reached |= longer
        return longer

    def read(self, paths: Iterable[Path]) -> None:
        self.whole.update(paths)


def read_set(plan: Plan, entrypoints: Sequence[str]) -> ReadSet:
    """The read set of some entrypoints (``placement/residency/deny``), taken together."""
    trace = _Trace()
    for entrypoint in entrypoints:
        blocks = plan.entrypoints[entrypoint]
        start = {INPUT_LOCAL: frozenset({(_INPUT,)}), DATA_LOCAL: frozenset({(_DATA,)})}
        _run(plan, blocks, start, trace)
    touched = trace.whole | (trace.reached - trace.extended)
    minimal = _without_covered(touched)
    return ReadSet(
        reads=tuple(path[1:] for path in minimal if path[0] == _INPUT),
        data_reads=tuple(path[1:] for path in minimal if path[0] == _DATA),
        builtins=frozenset(trace.builtins),
        ordered=frozenset(trace.ordered),
    )


def _without_covered(paths: Iterable[Path]) -> list[Path]:
    kept: list[Path] = []
    for path in sorted(paths):
        if not kept or path[: len(kept[-1])] != kept[-1]:
            kept.append(path)
    return kept


def _call(plan: Plan, function: Function, arguments: tuple[Paths, ...], trace: _Trace) -> Paths:
    """Follow a call, once per combination of argument paths. A circle reads everything."""
    key = (function.name, arguments)
    if key in trace.known:
        return trace.known[key]
    if function.name in trace.running or len(arguments) != len(function.params):
        trace.read([_EVERYTHING])
        return _NOTHING
    trace.running.add(function.name)
    start = dict(zip(function.params, arguments, strict=True))
    locals_ = _run(plan, function.blocks, start, trace)
    trace.running.discard(function.name)
    trace.known[key] = locals_.get(function.result, _NOTHING)
    return trace.known[key]


def _run(plan: Plan, blocks: Sequence[Block], start: Mapping[int, Paths], trace: _Trace) -> Mapping[int, Paths]:
    """Propagate paths through the statements until nothing changes, then note what is read whole."""
    locals_: dict[int, Paths] = dict(start)
    body = list(all_statements(blocks))
    keys = _constant_keys(plan, body)
    changed = True
    while changed:
        changed = False
        for kind, fields in body:
            target, paths = _flow(plan, kind, fields, locals_, keys, trace)
            if target is not None and not paths <= locals_.get(target, _NOTHING):
                locals_[target] = locals_.get(target, _NOTHING) | paths
                changed = True
    for kind, fields in body:
        _note_reads(plan, kind, fields, locals_, keys, trace)
    _note_orderings(plan, body, locals_, trace)
    return locals_


def _note_orderings(plan: Plan, body: Sequence[Statement], locals_: Mapping[int, Paths], trace: _Trace) -> None:
    numbers = {fields["target"] for kind, fields in body if kind in ("MakeNumberIntStmt", "MakeNumberRefStmt")}
    for kind, fields in body:
        if kind != "CallStmt" or fields["func"] not in _ORDERINGS:
            continue
        compared = _NOTHING
        for operand in fields["args"]:
            compared |= _held(operand, locals_)
            if operand.get("type") == "string_index":
                compared |= {TEXT}
            elif operand.get("type") == "local" and operand["value"] in numbers:
                compared |= {NUMBER}
        trace.ordered.add((plan.place(fields), compared))


def _flow(
    plan: Plan,
    kind: str,
    fields: Mapping[str, Any],
    locals_: Mapping[int, Paths],
    keys: Mapping[int, tuple[str, ...]],
    trace: _Trace,
) -> tuple[int | None, Paths]:
    """The local that a statement sets, and the paths that it may then hold."""
    if kind in _COPIES:
        return fields["target"], _held(fields["source"], locals_)
    if kind == "DotStmt":
        key = _constant(plan, fields["key"])
        return fields["target"], _NOTHING if key is None else trace.extend(_held(fields["source"], locals_), key)
    if kind == "CallStmt":
        callee = plan.functions.get(fields["func"])
        if callee is not None:
            arguments = tuple(_held(operand, locals_) for operand in fields["args"])
            return fields["result"], _call(plan, callee, arguments, trace)
        chain = _object_get_chain(plan, fields, keys)
        if chain is not None:
            paths = _held(fields["args"][0], locals_)
            for key in chain:
                paths = trace.extend(paths, key)
            return fields["result"], paths | _held(fields["args"][2], locals_)
    return None, _NOTHING


def _note_reads(
    plan: Plan,
    kind: str,
    fields: Mapping[str, Any],
    locals_: Mapping[int, Paths],
    keys: Mapping[int, tuple[str, ...]],
    trace: _Trace,
) -> None:
    if kind in _COPIES or kind in _HARMLESS or kind == "ReturnLocalStmt" or kind in _TESTS:
        return
    if kind == "DotStmt":
        if _constant(plan, fields["key"]) is None:
            trace.read(_held(fields["source"], locals_) | _held(fields["key"], locals_))
        return
    if kind == "CallStmt":
        if fields["func"] in plan.functions:
            return
        trace.builtins.add(fields["func"])
        if _object_get_chain(plan, fields, keys) is None:
            for operand in fields["args"]:
                trace.read(_held(operand, locals_))
        return
    if kind in _READERS:
        for local in local_reads(fields, kind):
            trace.read(locals_.get(local, _NOTHING))
        return
    if kind in _UNKNOWN_CONTEXT or kind not in _READERS:
        trace.read([_EVERYTHING])


def _held(operand: Any, locals_: Mapping[int, Paths]) -> Paths:
    if isinstance(operand, Mapping) and operand.get("type") == "local":
        return locals_.get(operand["value"], _NOTHING)
    return _NOTHING


def _constant(plan: Plan, operand: Mapping[str, Any]) -> str | None:
    """A constant object key. An escaped string is not taken: its plain form differs from the plan's."""
    if operand.get("type") != "string_index":
        return None
    text = plan.strings[operand["value"]]
    return None if "\\" in text or '"' in text else text


def _constant_keys(plan: Plan, body: Sequence[Statement]) -> dict[int, tuple[str, ...]]:
    """Arrays that are built from constant strings only and never changed by anything else."""
    built: dict[int, list[str] | None] = {}
    for kind, fields in body:
        if kind == "MakeArrayStmt":
            built[fields["target"]] = None if fields["target"] in built else []
    for kind, fields in body:
        target = fields.get("array") if kind == "ArrayAppendStmt" else None
        if target in built:
            text = _constant(plan, fields["value"])
            items = built[target]
            if items is not None:
                built[target] = None if text is None else [*items, text]
    return {local: tuple(items) for local, items in built.items() if items}


def _object_get_chain(
    plan: Plan, fields: Mapping[str, Any], keys: Mapping[int, tuple[str, ...]]
) -> tuple[str, ...] | None:
    """The constant keys of ``object.get(object, key or [keys], default)``; None for anything else."""
    if fields["func"] != "object.get" or len(fields["args"]) != 3:
        return None
    operand = fields["args"][1]
    if operand.get("type") == "local":
        return keys.get(operand["value"])
    key = _argument_text(plan, operand)
    return None if key is None else (key,)


def _argument_text(plan: Plan, operand: Mapping[str, Any]) -> str | None:
    """A constant string as built-ins receive it: the plan writes those as JSON, with their quotes."""
    if operand.get("type") != "string_index":
        return None
    text = plan.strings[operand["value"]].removeprefix('"').removesuffix('"')
    return None if "\\" in text or '"' in text else text


def unknown_paths(reads: Iterable[Path], schema: Schema) -> list[Path]:
    """The paths that do not exist in the input schema; the shortest wrong prefix of each, sorted, once."""
    wrong: set[Path] = set()
    for path in reads:
        level: Schema | None = schema
        for depth, key in enumerate(path):
            if level is None:
                break
            if key not in level:
                wrong.add(path[: depth + 1])
                break
            level = level[key]
    return sorted(wrong)
