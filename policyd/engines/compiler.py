"""From the text of a policy tree to packages that may go live, the same for every engine.

Two steps around the engine's own compilation: ``prepare`` reads the text (syntax, METADATA, settings, entrypoints) and
``finish`` reads the compiled plan (read sets, built-ins, and the faults that the engine keeps quiet about). Rules:
pure; every fault is a finding with ``path:line``; a tree with one finding does not go live. It refuses a package in two
files, data outside ``settings``, and rules that read documents which are neither input nor settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any, Final

import orjson

from policyd.core.inputs import BOOLEAN, INTEGER, MAP, STRING, STRINGS, shape_at
from policyd.core.verdict import Package, PolicySet, RuleDoc
from policyd.documents import read_yaml
from policyd.engines.answers import EXPORTS, SET_EXPORTS, unrepresentable
from policyd.engines.capabilities import ARITY, NEVER, refusal
from policyd.engines.metadata import PackageDoc, describe
from policyd.engines.plan import Function, Plan, all_statements, plan_findings, reachable
from policyd.engines.readsets import NUMBER, TEXT, ReadSet, read_set
from policyd.engines.source import Source, read_source, syntax_findings
from policyd.errors import Finding
from policyd.ports import PolicyTree

SETTINGS: Final = "settings"
_LIBRARY: Final = re.compile(r"lib(\.[a-z_][a-z0-9_]*)*")
_PLACEMENT_NAME: Final = re.compile(r"placement\.[a-z_][a-z0-9_]*")
_NESTED_ERROR: Final = re.compile(
    r"errormsg \d+:(?P<words>[^)]*)\).*?\d+:(?P<file>m\d+\.rego)\|(?P<offset>\d+)\|\d+", re.DOTALL
)
"""An error of a later pass says its words first, and the place in the tree that it prints below them."""
_PLACE_IN_ERROR: Final = re.compile(r"\(error \d+:([^|]*)\|(\d+)\|(\d+)\s*\(errormsg \d+:(.*?)\)\s*\(", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A tree, read: modules in a fixed order, settings, package descriptions, and the entrypoints to compile."""

    modules: tuple[tuple[str, str], ...]
    settings: Mapping[str, Any]
    sources: Mapping[str, Source]
    docs: tuple[PackageDoc, ...]
    entrypoints: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def data(self) -> dict[str, Any]:
        """The data document that rules see."""
        return {SETTINGS: self.settings}


def entrypoint(package: str, export: str) -> str:
    """The engine's name of one export of a placement package."""
    return f"placement/{package}/{export}"


def prepare(tree: PolicyTree) -> Prepared:
    """Read the text of a tree. Faults are in ``findings``; the rest is as complete as they allow."""
    findings: list[Finding] = []
    settings, data_findings = settings_of(tree.data)
    findings.extend(data_findings)
    modules = tuple((str(path), tree.modules[path]) for path in sorted(tree.modules))
    sources = {path: read_source(text) for path, text in modules}
    docs: list[PackageDoc] = []
    owners: dict[str, str] = {}
    for path, source in sources.items():
        findings.extend(syntax_findings(path, source))
        findings.extend(_package_findings(path, source, owners))
        findings.extend(_never_findings(path, source))
        doc, faults = describe(path, source)
        findings.extend(faults)
        if doc is not None:
            docs.append(doc)
    for test in sorted(tree.tests):
        findings.extend(_verdict_in_a_test(str(test), read_source(tree.tests[test])))
    if not docs:
        findings.append(Finding("", "the tree has no package below placement: it would refuse nothing"))
    entrypoints = tuple(entrypoint(doc.name, export) for doc in docs for export in sorted(doc.exports))
    return Prepared(modules, settings, sources, tuple(docs), entrypoints, tuple(findings))


def _verdict_in_a_test(path: str, source: Source) -> Iterator[Finding]:
    """A package in a file called ``*_test.rego`` by mistake would refuse nothing, and nobody would hear of it."""
    for rule in source.rules:
        if rule.name in EXPORTS:
            message = f"{rule.name} in a test file decides nothing; name the file otherwise, or the rule"
            yield Finding(f"{path}:{rule.line}", message)


def _package_findings(path: str, source: Source, owners: dict[str, str]) -> Iterator[Finding]:
    if not source.package:
        return
    where = f"{path}:{source.package_line}"
    if not _LIBRARY.fullmatch(source.package) and not _PLACEMENT_NAME.fullmatch(source.package):
        yield Finding(where, f"the package {source.package} is neither placement.<name> nor lib.<name>")
    if source.package in owners:
        yield Finding(where, f"the package {source.package} is also in {owners[source.package]}; one package, one file")
    owners.setdefault(source.package, path)


def _never_findings(path: str, source: Source) -> Iterator[Finding]:
    """Calls of functions that no policy may hold, in rules that are used or not."""
    for rule in source.rules:
        for first, dot, second in zip(rule.tokens, rule.tokens[1:], rule.tokens[2:], strict=False):
            name = f"{first.text}.{second.text}"
            if dot.text == "." and first.kind == "name" and name in NEVER:
                yield Finding(f"{path}:{first.line}", refusal(name) or "")


def settings_of(data: Mapping[PurePosixPath, str]) -> tuple[dict[str, Any], list[Finding]]:
    """``data.settings``: what the JSON and YAML files say, merged as ``opa test`` merges them.

    A file's mapping is placed under the directories above it. A name that two files give is a finding, and so is every
    name beside ``settings``: a data file could otherwise take the place of a rule.
    """
    root: dict[str, Any] = {}
    findings: list[Finding] = []
    for path in sorted(data):
        values = _mapping_of(path, data[path], findings)
        for part in reversed(path.parts[:-1]):
            values = {part: values}
        reason = unrepresentable(values)
        if reason:
            findings.append(Finding(f"{path}:1", f"{reason}; settings hold integers and plain texts"))
        findings.extend(
            Finding(f"{path}:1", f"the name '{key}' stands beside '{SETTINGS}'; data files give settings only")
            for key in values
            if key != SETTINGS
        )
        findings.extend(_merge(root, values, str(path)))
    settings = root.get(SETTINGS, {})
    if not isinstance(settings, dict):
        findings.append(Finding("", f"'{SETTINGS}' is not a mapping of names to values"))
        settings = {}
    return settings, findings


def _mapping_of(path: PurePosixPath, text: str, findings: list[Finding]) -> dict[str, Any]:
    """JSON is read as YAML, which holds it."""
    document = read_yaml(text.encode("utf-8", "surrogatepass"), str(path))
    findings.extend(document.findings)
    if document.broken:
        return {}
    if not isinstance(document.value, dict):
        findings.append(Finding(f"{path}:1", "the file is not a mapping of names to values"))
        return {}
    return document.value


def _merge(level: dict[str, Any], values: Mapping[str, Any], path: str) -> Iterator[Finding]:
    for key, value in values.items():
        if isinstance(level.get(key), dict) and isinstance(value, dict):
            yield from _merge(level[key], value, path)
        elif key in level:
            yield Finding(f"{path}:1", f"the setting '{key}' is given in two files")
        else:
            level[key] = value


def engine_findings(
    texts: Mapping[str, str], paths: Mapping[str, str], faults: Sequence[tuple[str, str]]
) -> list[Finding]:
    """The engine's own refusals, as findings. It counts bytes from the start of a module; people count lines.

    ``texts`` and ``paths`` go by the names that the modules were compiled under.
    """
    findings: list[Finding] = []
    for name, message in faults:
        places = [(file, offset, words) for file, offset, _, words in _PLACE_IN_ERROR.findall(message)]
        nested = _NESTED_ERROR.search(message)
        if not places and nested is not None:
            places = [(nested["file"], nested["offset"], nested["words"])]
        for file, offset, words in places:
            line = texts.get(file, "").encode()[: int(offset)].count(b"\n") + 1
            findings.append(Finding(f"{paths.get(file, file)}:{line}", " ".join(words.split())))
        if not places:
            findings.append(Finding(f"{paths[name]}:1" if name else "", " ".join(message.split())[:300]))
    return list(dict.fromkeys(findings))


def finish(tree: PolicyTree, prepared: Prepared, plan: Plan, engine: str) -> tuple[PolicySet, list[Finding]]:
    """Read the compiled plan: what each package reads, and what is wrong with it."""
    findings = list(plan_findings(plan, ARITY))
    packages: dict[str, Package] = {}
    for doc in prepared.docs:
        roots = [f"g0.data.placement.{doc.name}.{export}" for export in doc.exports]
        names = sorted(reachable(plan, roots))
        functions = [plan.functions[name] for name in names]
        reads = read_set(plan, [entrypoint(doc.name, export) for export in sorted(doc.exports)])
        findings.extend(_builtin_findings(plan, functions))
        findings.extend(_export_findings(plan, doc))
        findings.extend(_lost_findings(plan, doc))
        findings.extend(_read_findings(doc, reads, prepared.settings))
        findings.extend(_ordering_findings(reads, prepared.settings))
        packages[doc.name] = _package(doc, reads, _meaning(doc, prepared, names, reads))
    unique = sorted(set(findings), key=lambda finding: (finding.where, finding.message))
    return PolicySet(tree.digest, tree.commit, engine, packages, prepared.settings), unique


def _meaning(doc: PackageDoc, prepared: Prepared, functions: Sequence[str], reads: ReadSet) -> bytes:
    """What the rules of a package mean: its text, that of the libraries it calls, and the settings it reads."""
    texts = dict(prepared.modules)
    paths = [doc.path]
    for path, source in sorted(prepared.sources.items()):
        inside = f"g0.data.{source.package}."
        if path != doc.path and any(name.startswith(inside) for name in functions):
            paths.append(path)
    settings = [[list(path), _value_at(prepared.data, path)] for path in sorted(reads.data_reads)]
    return orjson.dumps([doc.name, [texts[path] for path in paths], settings], option=orjson.OPT_SORT_KEYS)


def _value_at(data: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = data
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _bound(doc: RuleDoc, meaning: bytes) -> RuleDoc:
    """The rule with its digest. Where it stands in its file is no part of it, since the text is."""
    said = orjson.dumps([doc.rule, doc.export, doc.title, doc.enforcement.value, doc.remedy])
    return replace(doc, digest="sha256:" + sha256(said + meaning).hexdigest())


def _package(doc: PackageDoc, reads: ReadSet, meaning: bytes) -> Package:
    return Package(
        name=doc.name,
        title=doc.title,
        enforcement=doc.enforcement,
        owner=doc.owner,
        remedy=doc.remedy,
        location=f"{doc.path}:{doc.line}",
        exports=doc.exports,
        reads=reads.reads,
        optional=doc.optional,
        builtins=reads.builtins,
        rules={name: _bound(rule, meaning) for name, rule in doc.rules.items()},
    )


def _builtin_findings(plan: Plan, functions: Sequence[Function]) -> Iterator[Finding]:
    for function in functions:
        for kind, fields in all_statements(function.blocks):
            where = plan.where(fields, function)
            if kind == "CallStmt" and fields["func"] not in plan.functions:
                reason = refusal(fields["func"])
                if reason and not fields["func"].startswith(("data.", "g0.")):
                    yield Finding(where, reason)
            elif kind == "WithStmt":
                yield Finding(where, "`with` has no place in a policy: what the rule reads could not be known")
            elif kind == "CallDynamicStmt":
                yield Finding(where, "a function is chosen while the rule runs; name it")


def _export_findings(plan: Plan, doc: PackageDoc) -> Iterator[Finding]:
    """``deny``, ``warn`` and ``obligation`` are sets; ``prefer`` is one value; none is a function."""
    for export in sorted(doc.exports):
        function = plan.functions.get(f"g0.data.placement.{doc.name}.{export}")
        if function is None:
            yield Finding(f"{doc.path}:{doc.line}", f"the engine compiled no rule {export}")
            continue
        first = [kind for kind, _ in all_statements(function.blocks[:1])]
        makes_set, makes_object = "MakeSetStmt" in first, "MakeObjectStmt" in first
        where = plan.where({}, function)
        if len(function.params) != 2:
            yield Finding(where, f"{export} is a function; it must be a rule")
        elif export in SET_EXPORTS and not makes_set:
            yield Finding(where, f"{export} is not a set; write `{export} contains … if {{ … }}`")
        elif export not in SET_EXPORTS and (makes_set or makes_object):
            yield Finding(where, f"{export} is not one value; write `{export} := … if {{ … }}`")


def _lost_findings(plan: Plan, doc: PackageDoc) -> Iterator[Finding]:
    """Exported rules that the engine compiled and the source reader did not see: nobody would ask them."""
    prefix = f"g0.data.placement.{doc.name}."
    for name, function in plan.functions.items():
        head = name.removeprefix(prefix)
        if name.startswith(prefix) and head not in doc.exports and not set(EXPORTS).isdisjoint(head.split(".")):
            where = plan.where({}, function)
            yield Finding(where, f"the rule {head} would never be asked; begin it on its own line, as a plain name")


def _read_findings(doc: PackageDoc, reads: ReadSet, settings: Mapping[str, Any]) -> Iterator[Finding]:
    where = f"{doc.path}:{doc.line}"
    if () in reads.reads:
        yield Finding(where, "the package reads the input as a whole; name the fields that it needs")
    for path in reads.data_reads:
        dotted = ".".join(("data", *path))
        if not path or path[0] != SETTINGS:
            yield Finding(where, f"the package reads {dotted}; rules read input, data.settings and named rules only")
        elif not _exists(settings, path[1:]):
            yield Finding(where, f"the package reads {dotted}, which no settings file gives")
    for path in sorted(doc.optional):
        if not any(read[: len(path)] == path or path[: len(read)] == read for read in reads.reads):
            yield Finding(where, f"custom.optional names {'.'.join(path)}, which the package does not read")


def _ordering_findings(reads: ReadSet, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """A quoted number in a setting, or a label, which is text: each engine orders text and numbers in its own way."""
    for where, paths in reads.ordered:
        kinds = {kind: ".".join(path) for path in sorted(paths) if (kind := _kind(path, settings))}
        if len(kinds) > 1 or not kinds.keys() <= {"text", "number"}:
            found = ", ".join(f"{path} is {kind}" for kind, path in sorted(kinds.items()))
            yield Finding(where, f"only text and text, or number and number, can be ordered: {found}")


def _kind(path: tuple[str, ...], settings: Mapping[str, Any]) -> str | None:
    """``text``, ``number``, another word, or None when it is not known."""
    if path in (TEXT, NUMBER):
        return path[0]
    if path[0] == "input":
        shape = shape_at(path[1:])
        known = {STRING: "text", INTEGER: "number", BOOLEAN: "a boolean", STRINGS: "a list", MAP: "an object"}
        return known.get(shape) if isinstance(shape, str) else None
    value: Any = settings
    for key in path[2:]:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return None
    return "text" if isinstance(value, str) else "number" if type(value) is int else type(value).__name__


def _exists(values: Any, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(values, Mapping) or key not in values:
            return False
        values = values[key]
    return True
