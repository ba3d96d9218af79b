"""Reads Rego source text as far as policyd must: tokens, package name, rule heads, and version-0 syntax.

Rules: strings, raw strings and comments never look like code; lines count from 1. It is no parser: the engine parses.
This module finds what the engine does not tell (where a rule head stands) and what it wrongly accepts (rules of Rego
version 0, whose body has no ``if``). It refuses to guess: what it cannot read, it reports.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from policyd.errors import Finding

_TOKEN: Final = re.compile(
    r"""
      (?P<newline>\n)
    | (?P<space>[ \t\r\f\v]+)
    | (?P<comment>\#[^\n]*)
    | (?P<string>\$?"(?:[^"\\\n]|\\.)*")
    | (?P<raw>\$?`[^`]*`)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<number>[0-9][0-9A-Za-z_.]*)
    | (?P<operator>:=|==|!=|<=|>=)
    | (?P<sign>.)
    """,
    re.VERBOSE,
)
_OPENING: Final = "([{"
_CLOSING: Final = ")]}"
_EXPORTED: Final = frozenset({"deny", "warn", "prefer", "obligation", "approval"})
_BEFORE_A_VALUE: Final = frozenset({"if", "in", "contains", "not", "with", "as", "default", "else", "some", "every"})


@dataclass(frozen=True, slots=True)
class Token:
    """One piece of source: its kind, its text, the line it starts on, and how many brackets are open before it.

    A ``field`` is a name after a dot: ``data.settings.default`` and ``import future.keywords.in`` end in no keyword.
    """

    kind: str
    text: str
    line: int
    depth: int
    starts_line: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule definition: the name in its head, the line of the head, and its tokens without comments."""

    name: str
    line: int
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """One module: its package (dotted, empty when it has none), that line, its rules in order and its comments."""

    package: str
    package_line: int
    rules: tuple[Rule, ...]
    comments: tuple[Token, ...]


def tokens_of(text: str) -> Iterator[Token]:
    """The tokens of a module, comments included, blanks and newlines left out."""
    line, depth, starts_line, after_dot = 1, 0, True, False
    for match in _TOKEN.finditer(text):
        kind, piece = match.lastgroup or "sign", match.group()
        if kind == "newline":
            line, starts_line = line + 1, True
            continue
        if kind == "space":
            continue
        if kind == "sign" and piece in _CLOSING:
            depth = max(0, depth - 1)
        yield Token("field" if after_dot and kind == "name" else kind, piece, line, depth, starts_line)
        if kind == "sign" and piece in _OPENING:
            depth += 1
        line += piece.count("\n")
        starts_line, after_dot = False, piece == "."


def read_source(text: str) -> Source:
    """Split a module into package, rules and comments."""
    comments: list[Token] = []
    code: list[Token] = []
    for token in tokens_of(text):
        (comments if token.kind == "comment" else code).append(token)
    package, package_line = "", 0
    rules: list[Rule] = []
    for statement in _statements(code):
        first = statement[0]
        if first.text == "package":
            same_line = [token.text for token in statement[1:] if token.line == first.line]
            package, package_line = "".join(same_line), first.line
        elif first.text != "import":
            rules.append(Rule(_rule_name(statement), first.line, tuple(statement)))
    return Source(package, package_line, tuple(rules), tuple(comments))


def _statements(code: list[Token]) -> Iterator[list[Token]]:
    """Group tokens into statements: one starts at a name that begins a line outside brackets, unless it continues.

    ``else`` continues the rule before it; so does what follows an operator or a keyword that wants a value.
    """
    current: list[Token] = []
    for token in code:
        if current and token.starts_line and token.depth == 0 and _may_start(token) and not _wants_more(current[-1]):
            yield current
            current = []
        current.append(token)
    if current:
        yield current


def _may_start(token: Token) -> bool:
    return token.kind == "name" and token.text not in {"else", "if", "in", "with", "as", "contains"}


def _wants_more(last: Token) -> bool:
    if last.kind == "name":
        return last.text in _BEFORE_A_VALUE
    return last.kind == "operator" or (last.kind == "sign" and last.text in "=<>+-*/%&|,.:")


def _rule_name(statement: list[Token]) -> str:
    names = [token.text for token in statement[:2] if token.kind == "name"]
    return names[1] if len(names) > 1 and names[0] == "default" else (names[0] if names else "")


def syntax_findings(path: str, source: Source) -> list[Finding]:
    """What the embedded engine accepts although Rego version 1 does not, with ``path:line``."""
    findings: list[Finding] = []
    if not source.package:
        findings.append(Finding(f"{path}:1", "the module has no package line"))
    for rule in source.rules:
        findings.extend(_bodies_without_if(path, rule))
        findings.extend(_every(path, rule))
        findings.extend(
            Finding(f"{path}:{token.line}", "a `;` between rules is no Rego; begin the next rule on a line of its own")
            for token in rule.tokens
            if token.text == ";" and token.depth == 0
        )
        if rule.name in _EXPORTED:
            findings.extend(_template_strings(path, rule))
    return findings


def _bodies_without_if(path: str, rule: Rule) -> Iterator[Finding]:
    """A ``{`` outside brackets that follows a value, in a rule that has not said ``if`` yet, is a version 0 body."""
    has_if = False
    before: Token | None = None
    for token in rule.tokens:
        if token.depth == 0:
            if token.kind == "name" and token.text in {"if", "else"}:
                has_if = token.text == "if"
            is_body = token.text == "{" and token.kind == "sign" and before is not None and _ends_value(before)
            chained = is_body and before is not None and before.text == "}"
            if is_body and (not has_if or chained):
                yield Finding(
                    f"{path}:{token.line}",
                    f"the body of '{rule.name}' has no `if`: this is Rego version 0; write `{rule.name} … if {{ … }}`",
                )
        before = token


def _every(path: str, rule: Rule) -> Iterator[Finding]:
    """What regopy fails on inside an ``every``, or takes for true: ``not``, another ``every``, a comprehension."""
    opened: list[int] = []
    awaited: int | None = None
    for before, token in pairwise((None, *rule.tokens)):
        if token is None:
            continue
        body = token.kind == "sign" and token.text == "{" and before is not None and _ends_value(before)
        if token.kind == "sign" and token.text == "}" and opened and token.depth <= opened[-1]:
            opened.pop()
        elif body and awaited == token.depth:
            opened.append(token.depth)
            awaited = None
        elif opened and (token.text == "|" or (token.kind == "name" and token.text in {"not", "every"})):
            yield Finding(
                f"{path}:{token.line}",
                f"`{token.text}` inside `every` is not evaluated alike by both engines; count what breaks the rule "
                "instead: `count([x | some x in xs; broken(x)]) == 0`",
            )
        if token.kind == "name" and token.text == "every":
            awaited = token.depth


def _ends_value(token: Token) -> bool:
    if token.kind == "name":
        return token.text not in _BEFORE_A_VALUE
    return token.kind in {"field", "string", "raw", "number"} or token.text in {")", "]", "}"}


def _template_strings(path: str, rule: Rule) -> Iterator[Finding]:
    for token in rule.tokens:
        if token.kind in {"string", "raw"} and token.text.startswith("$"):
            yield Finding(
                f"{path}:{token.line}",
                "template strings print values differently in each engine; give the values as observed and required",
            )
