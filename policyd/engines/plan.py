"""The compiled plan of a policy tree: what regopy's ``plan.json`` says, and the faults that regopy does not report.

regopy builds a bundle without a word when a variable is never bound, a function does not exist or is called with the
wrong number of arguments, or rules call each other in a circle; the rule is then undefined when it is asked, and an
undefined ``deny`` refuses nothing. So this module finds those faults in the plan, before anything goes live.

Rules: pure; rows of the plan count from 0, lines here from 1; an unknown shape is a fault and never skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from policyd.errors import Finding

INPUT_LOCAL: Final = 0
DATA_LOCAL: Final = 1
HIDDEN_PARAMETERS: Final = 2
"""Every function takes the input and the data document before its own parameters."""

_READ_FIELDS: Final = ("source", "array", "object", "set")
_WRITE_FIELDS: Final = ("target", "result")
_TESTS_OF_UNDEFINED: Final = frozenset({"IsDefinedStmt", "IsUndefinedStmt", "ReturnLocalStmt"})
_OPERAND_FIELDS: Final = ("source", "key", "value", "a", "b")

Statement = tuple[str, Mapping[str, Any]]
Block = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Function:
    """One compiled rule or function: parameters (input and data first), the local it returns, and its blocks."""

    name: str
    params: tuple[int, ...]
    result: int
    blocks: tuple[Block, ...]
    file: int
    line: int

    @property
    def rule_path(self) -> str:
        """The dotted rule path, for example ``data.placement.residency.deny``."""
        return self.name.split(".", 1)[1] if "." in self.name else self.name


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole plan: constants, source files in the order that statements number them, entrypoints and functions."""

    strings: tuple[str, ...]
    files: tuple[str, ...]
    entrypoints: Mapping[str, tuple[Block, ...]]
    functions: Mapping[str, Function]

    def where(self, statement: Mapping[str, Any], function: Function) -> str:
        """``path:line`` of a statement; the head of its rule when the plan does not say."""
        return self.place({"file": function.file, "row": function.line - 1, **statement}) or function.rule_path

    def place(self, statement: Mapping[str, Any]) -> str:
        """``path:line`` of a statement; empty when the plan does not say."""
        file, line = statement.get("file", -1), statement.get("row", 0) + 1
        return f"{self.files[file]}:{line}" if 0 <= file < len(self.files) else ""


def statements(block: Block) -> Iterator[Statement]:
    """The statements of one block, in order, as (type, fields)."""
    for item in block:
        yield item["type"], item["stmt"]


def nested_blocks(kind: str, fields: Mapping[str, Any]) -> list[Block]:
    """The blocks inside a statement."""
    found = [block["stmts"] for block in fields.get("blocks", ())]
    if "block" in fields:
        found.append(fields["block"]["stmts"])
    return found


def all_statements(blocks: Sequence[Block]) -> Iterator[Statement]:
    """Every statement at every depth."""
    for block in blocks:
        for kind, fields in statements(block):
            yield kind, fields
            yield from all_statements(nested_blocks(kind, fields))


def read_plan(document: Mapping[str, Any], paths: Mapping[str, str]) -> Plan:
    """Read ``plan.json``; ``paths`` turn the names that modules were compiled under into their paths.

    Raises ``KeyError`` or ``TypeError`` when it has another shape.
    """
    static = document["static"]
    functions = {}
    for item in document["funcs"]["funcs"] if document.get("funcs") else ():
        blocks = tuple(block["stmts"] for block in item["blocks"])
        file, line = _place(blocks)
        functions[item["name"]] = Function(item["name"], tuple(item["params"]), item["return"], blocks, file, line)
    return Plan(
        strings=tuple(entry["value"] for entry in static["strings"]),
        files=tuple(paths[entry["value"]] for entry in static["files"]),
        entrypoints={
            plan["name"]: tuple(block["stmts"] for block in plan["blocks"]) for plan in document["plans"]["plans"]
        },
        functions=functions,
    )


def _place(blocks: Sequence[Block]) -> tuple[int, int]:
    for _, fields in all_statements(blocks):
        if "row" in fields:
            return fields["file"], fields["row"] + 1
    return 0, 1


def called(function: Function) -> set[str]:
    """The names of the functions and built-ins that a function calls."""
    return {fields["func"] for kind, fields in all_statements(function.blocks) if kind == "CallStmt"}


def reachable(plan: Plan, roots: Sequence[str]) -> set[str]:
    """The function names that can run when the named functions run."""
    seen: set[str] = set()
    queue = [name for name in roots if name in plan.functions]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        queue.extend(callee for callee in called(plan.functions[name]) if callee in plan.functions)
    return seen


def plan_findings(plan: Plan, builtin_arity: Mapping[str, int]) -> list[Finding]:
    """Faults that the engine would answer with "undefined": see the module text."""
    findings: list[Finding] = []
    for function in plan.functions.values():
        findings.extend(_call_findings(plan, function, builtin_arity))
        findings.extend(_unbound_findings(plan, function))
        if function.name in reachable(plan, sorted(called(function))):
            findings.append(Finding(plan.where({}, function), f"the rule {function.rule_path} calls itself"))
    return findings


def _call_findings(plan: Plan, function: Function, builtin_arity: Mapping[str, int]) -> Iterator[Finding]:
    for kind, fields in all_statements(function.blocks):
        if kind != "CallStmt":
            continue
        name, given = fields["func"], len(fields["args"])
        where = plan.where(fields, function)
        if name in plan.functions:
            wanted = len(plan.functions[name].params)
            if given != wanted:
                own, passed = wanted - HIDDEN_PARAMETERS, given - HIDDEN_PARAMETERS
                shown = plan.functions[name].rule_path
                yield Finding(where, f"{shown} takes {own} arguments, and is called with {passed}")
        elif name in builtin_arity:
            if given != builtin_arity[name]:
                yield Finding(where, f"{name} takes {builtin_arity[name]} arguments, and is called with {given}")
        elif name.startswith(("data.", "g0.")):
            yield Finding(where, f"there is no function {name.removeprefix('g0.')}")


def _unbound_findings(plan: Plan, function: Function) -> list[Finding]:
    """Locals that are read before anything writes them: variables that nothing binds."""
    findings: dict[str, Finding] = {}
    _walk_alternatives(plan, function, function.blocks, set(function.params), findings)
    return list(findings.values())


def _walk_alternatives(
    plan: Plan, function: Function, blocks: Sequence[Block], defined: set[int], findings: dict[str, Finding]
) -> None:
    """Blocks of one statement or function: a variable of one body is not bound in the next, a result local is.

    Result locals are those that the plan resets before the bodies run.
    """
    for block in blocks:
        _walk_definitions(plan, function, block, set(defined), findings)
        defined |= {fields["target"] for kind, fields in statements(block) if kind == "ResetLocalStmt"}


def _walk_definitions(
    plan: Plan, function: Function, block: Block, defined: set[int], findings: dict[str, Finding]
) -> None:
    for kind, fields in statements(block):
        for local in () if kind in _TESTS_OF_UNDEFINED else local_reads(fields, kind):
            if local not in defined:
                where = plan.where(fields, function)
                message = f"the rule {function.rule_path} uses a variable that nothing binds"
                findings.setdefault(where, Finding(where, message))
        written = local_writes(fields, kind)
        inside = nested_blocks(kind, fields)
        if inside:
            scope = defined | written
            if kind == "WithStmt":
                # What a `with` expression assigns is bound after it.
                _walk_definitions(plan, function, inside[0], scope, findings)
            else:
                _walk_alternatives(plan, function, inside, scope, findings)
            if kind in ("BlockStmt", "WithStmt"):
                defined |= scope
        if kind != "ScanStmt":
            defined |= written


def local_reads(fields: Mapping[str, Any], kind: str) -> Iterator[int]:
    """The locals whose value a statement looks at (those in nested blocks not counted)."""
    for name in _OPERAND_FIELDS:
        operand = fields.get(name)
        if isinstance(operand, Mapping) and operand.get("type") == "local":
            yield operand["value"]
    for name in _READ_FIELDS:
        if type(fields.get(name)) is int:
            yield fields[name]
    for operand in fields.get("args", ()):
        if operand.get("type") == "local":
            yield operand["value"]
    if kind == "ObjectMergeStmt":
        yield from (fields[name] for name in ("a", "b") if type(fields.get(name)) is int)


def local_writes(fields: Mapping[str, Any], kind: str) -> set[int]:
    """The locals that a statement sets."""
    written = {fields[name] for name in _WRITE_FIELDS if type(fields.get(name)) is int}
    if kind == "ScanStmt":
        written |= {fields["key"], fields["value"]}
    return written
