"""What an author says about a package: ``# METADATA`` comment blocks, rule ids and where each rule stands.

Rules: pure; every fault is a finding with ``path:line``; strings and comments never look like rules. A ``placement``
package names its title, enforcement, owner and remedy; every ``deny``, ``warn`` and ``approval`` rule writes its id as
a literal (``"rule": "some_name"``), once in its package. ``warn`` is always advisory, and ``approval`` asks for a
person and names no enforcement. Unknown keys are faults, with the nearest
known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from policyd.core.verdict import Enforcement, RuleDoc
from policyd.documents import read_yaml
from policyd.engines.answers import EXPORTS
from policyd.engines.source import Rule, Source, Token
from policyd.errors import Finding

PLACEMENT: Final = "placement."
VIOLATION_EXPORTS: Final = ("deny", "warn", "approval")
WRITTEN: Final = (Enforcement.HARD.value, Enforcement.SOFT.value, Enforcement.ADVISORY.value)
"""What an author may write as enforcement; that of ``approval`` rules goes without saying."""

_MARKER: Final = "# METADATA"
_PACKAGE_KEYS: Final = ("title", "description", "custom", "scope", "related_resources", "authors", "organizations")
_PACKAGE_CUSTOM: Final = ("enforcement", "owner", "remedy", "optional")
_RULE_CUSTOM: Final = ("enforcement", "remedy")


@dataclass(frozen=True, slots=True)
class PackageDoc:
    """The described side of one package: texts from METADATA, rules by id, and what may be missing from the input."""

    name: str
    path: str
    line: int
    title: str
    enforcement: Enforcement
    owner: str
    remedy: str
    optional: frozenset[tuple[str, ...]]
    exports: frozenset[str]
    rules: Mapping[str, RuleDoc]


@dataclass(slots=True)
class _Block:
    """One METADATA block: the line after it, the line of its marker, and its YAML."""

    line: int
    next_line: int
    values: dict[str, Any]
    used: bool = field(default=False)


def describe(path: str, source: Source) -> tuple[PackageDoc | None, list[Finding]]:
    """Read one module of the ``placement`` packages; None when it is another module (a library) or has no package."""
    findings: list[Finding] = []
    blocks = _blocks(path, source.comments, findings)
    if not source.package.startswith(PLACEMENT):
        return None, findings
    block = _block_above(blocks, source.package_line)
    where = f"{path}:{source.package_line}"
    values, custom = _values(path, block, _PACKAGE_CUSTOM, findings)
    for key, holder in (("title", values), ("enforcement", custom), ("owner", custom), ("remedy", custom)):
        if not _text(holder.get(key)):
            place = key if holder is values else f"custom.{key}"
            findings.append(Finding(where, f"the METADATA above the package line has no {place}"))
    enforcement = _enforcement(where, custom.get("enforcement"), Enforcement.HARD, findings)
    doc_fallback = (_text(values.get("title")), enforcement, _text(custom.get("remedy")))
    rules = _rules(path, source, blocks, doc_fallback, findings)
    exports = frozenset(rule.name for rule in source.rules) & set(EXPORTS)
    if not exports:
        findings.append(Finding(where, "the package exports none of {', '.join(EXPORTS)}"))
    findings.extend(
        Finding(f"{path}:{block.line}", "the METADATA block stands above neither the package line nor a rule")
        for block in blocks
        if not block.used
    )
    doc = PackageDoc(
        name=source.package.removeprefix(PLACEMENT),
        path=path,
        line=source.package_line,
        title=doc_fallback[0],
        enforcement=enforcement,
        owner=_text(custom.get("owner")),
        remedy=doc_fallback[2],
        optional=_optional(where, custom.get("optional"), findings),
        exports=exports,
        rules=rules,
    )
    return doc, findings


def _blocks(path: str, comments: Sequence[Token], findings: list[Finding]) -> list[_Block]:
    """METADATA blocks: the marker on a line of its own and the comment lines that follow without a gap."""
    found: list[_Block] = []
    own_lines = {token.line: token.text for token in comments if token.starts_line}
    for line, text in own_lines.items():
        if text.rstrip() != _MARKER:
            continue
        body: list[str] = []
        following = line + 1
        while following in own_lines:
            body.append(own_lines[following].removeprefix("#"))
            following += 1
        found.append(_Block(line, following, _yaml(path, line, body, findings)))
    return found


def _yaml(path: str, line: int, body: Sequence[str], findings: list[Finding]) -> dict[str, Any]:
    """Comment lines below a marker as YAML. One leading blank of each is layout, the rest is indentation."""
    # Empty lines stand for the file above, so that findings name lines of the file.
    text = "\n" * line + "\n".join(line[1:] if line.startswith(" ") else line for line in body)
    document = read_yaml(text.encode("utf-8", "surrogatepass"), path)
    findings.extend(Finding(fault.where, f"the METADATA: {fault.message}") for fault in document.findings)
    if document.value is None:
        return {}
    if not isinstance(document.value, dict):
        findings.append(Finding(f"{path}:{line}", "the METADATA is not a mapping of names to values"))
        return {}
    return document.value


def _block_above(blocks: Sequence[_Block], line: int) -> _Block | None:
    for block in blocks:
        if block.next_line == line:
            block.used = True
            return block
    return None


def _values(
    path: str, block: _Block | None, custom_keys: Sequence[str], findings: list[Finding]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a block and of its ``custom`` part; unknown names become findings."""
    if block is None:
        return {}, {}
    where = f"{path}:{block.line}"
    custom = block.values.get("custom") or {}
    if not isinstance(custom, dict):
        findings.append(Finding(where, "custom is not a mapping of names to values"))
        custom = {}
    findings.extend(_unknown_keys(where, block.values, _PACKAGE_KEYS, ""))
    findings.extend(_unknown_keys(where, custom, custom_keys, "custom."))
    return block.values, custom


def _unknown_keys(where: str, values: Mapping[str, Any], known: Sequence[str], prefix: str) -> list[Finding]:
    findings = []
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {prefix}{nearest[0]}?" if nearest else f"; known are {', '.join(known)}"
            findings.append(Finding(where, f"the METADATA has an unknown key {prefix}{key}{hint}"))
    return findings


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _enforcement(where: str, value: Any, fallback: Enforcement, findings: list[Finding]) -> Enforcement:
    """A missing value falls back; a wrong one is a finding, and weighs as hard until it is mended."""
    if value is None:
        return fallback
    if value in WRITTEN:
        return Enforcement(value)
    findings.append(Finding(where, f"custom.enforcement is {value!r}; it is one of {', '.join(WRITTEN)}"))
    return Enforcement.HARD


def _optional(where: str, value: Any, findings: list[Finding]) -> frozenset[tuple[str, ...]]:
    if value is None:
        return frozenset()
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        findings.append(Finding(where, "custom.optional is not a list of dotted input paths"))
        return frozenset()
    return frozenset(tuple(item.removeprefix("input.").split(".")) for item in value)


def _rules(
    path: str,
    source: Source,
    blocks: Sequence[_Block],
    fallback: tuple[str, Enforcement, str],
    findings: list[Finding],
) -> dict[str, RuleDoc]:
    """RuleDocs by rule id, for every rule of the module that finds violations."""
    title, enforcement, remedy = fallback
    docs: dict[str, RuleDoc] = {}
    for rule in source.rules:
        where = f"{path}:{rule.line}"
        block = _block_above(blocks, rule.line)
        if rule.name not in VIOLATION_EXPORTS:
            continue
        values, custom = _values(path, block, _RULE_CUSTOM, findings)
        weight = _enforcement(where, custom.get("enforcement"), enforcement, findings)
        if rule.name == "warn":
            if custom.get("enforcement") not in (None, Enforcement.ADVISORY.value):
                findings.append(Finding(where, "a warn rule is advisory; write deny for a rule that refuses"))
            weight = Enforcement.ADVISORY
        if rule.name == "approval":
            if "enforcement" in custom:
                findings.append(
                    Finding(where, "an approval rule refuses until a person approves: it names no enforcement")
                )
            weight = Enforcement.APPROVAL
        names = _rule_ids(rule)
        if not names:
            findings.append(Finding(where, f'this {rule.name} rule has no literal rule id; write "rule": "some_name"'))
        for name in names:
            if name in docs:
                findings.append(Finding(where, f"the rule id '{name}' is also used at {docs[name].location}"))
                continue
            docs[name] = RuleDoc(
                rule=name,
                location=where,
                title=_text(values.get("title")) or title,
                enforcement=weight,
                remedy=_text(custom.get("remedy")) or remedy,
                export=rule.name,
            )
    return docs


def _rule_ids(rule: Rule) -> list[str]:
    """The literals that follow ``"rule":`` in a rule, each once, in order."""
    names: list[str] = []
    for key, colon, value in zip(rule.tokens, rule.tokens[1:], rule.tokens[2:], strict=False):
        if key.text == '"rule"' and colon.text == ":" and value.kind == "string" and value.text[1:-1] not in names:
            names.append(value.text[1:-1])
    return names
