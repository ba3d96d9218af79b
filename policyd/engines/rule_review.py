"""Rules that do nothing: helpers that no exported rule uses, rules that repeat another, and names that hide built-ins.

Rules: pure, on the text of modules that compile; a rule counts as used when its name occurs in any other rule, as a
name, a field or a quoted key, so what is reported is truly without a user; what only the tests use is not used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from policyd.engines.answers import EXPORTS
from policyd.engines.capabilities import ARITY
from policyd.engines.metadata import PLACEMENT, VIOLATION_EXPORTS
from policyd.engines.source import Rule, Source, Token, read_source
from policyd.errors import Finding


def idle_rules(modules: Mapping[PurePosixPath, str]) -> list[Finding]:
    """Every rule that nothing uses, that another one repeats, or whose name hides a built-in."""
    sources = {str(path): read_source(modules[path]) for path in sorted(modules)}
    found: list[Finding] = []
    for path, source in sources.items():
        found += _unused(path, source, sources)
        found += _repeated(path, source)
        found += _hiding(path, source)
    return found


def undocumented_rules(modules: Mapping[PurePosixPath, str]) -> list[Finding]:
    """Every rule that finds violations without a title of its own, in packages that have more than one."""
    found: list[Finding] = []
    for path in sorted(modules):
        source = read_source(modules[path])
        rules = [rule for rule in source.rules if rule.name in VIOLATION_EXPORTS]
        if not source.package.startswith(PLACEMENT) or len(rules) < 2:
            continue
        comments = {token.line: token.text for token in source.comments if token.starts_line}
        for rule in rules:
            if not _has_title(comments, rule.line):
                name = _id_of(rule) or rule.name
                found.append(Finding(f"{path}:{rule.line}", f"the rule {name} has no METADATA title of its own"))
    return found


def _has_title(comments: Mapping[int, str], line: int) -> bool:
    line -= 1
    while line in comments:
        if comments[line].lstrip("# ").startswith("title:"):
            return True
        line -= 1
    return False


def _unused(path: str, source: Source, sources: Mapping[str, Source]) -> Iterator[Finding]:
    exports = EXPORTS if source.package.startswith(PLACEMENT) else ()
    own = {rule.name for rule in source.rules} - set(exports)
    if not own:
        return
    uses: Counter[str] = Counter()
    for other in sources.values():
        for rule in other.rules:
            # A rule cannot use itself, so what its own text says of its name is no use.
            mine = rule.name if other.package == source.package else ""
            uses.update({_word(token) for token in rule.tokens} - {mine})
    reported: set[str] = set()
    for rule in source.rules:
        if rule.name in own and not uses[rule.name] and rule.name not in reported:
            reported.add(rule.name)
            yield Finding(f"{path}:{rule.line}", f"nothing uses the rule {rule.name}")


def _word(token: Token) -> str:
    return token.text[1:-1] if token.kind in ("string", "raw") else token.text


def _repeated(path: str, source: Source) -> Iterator[Finding]:
    """A rule that holds exactly when another one of the same name does, and says no more than that one."""
    seen: dict[tuple[str, ...], Rule] = {}
    for rule in source.rules:
        body = tuple(token.text for token in _condition(rule))
        if not body:
            continue
        before = seen.setdefault((rule.name, *body), rule)
        if before is not rule:
            name = _id_of(rule) or rule.name
            yield Finding(
                f"{path}:{rule.line}",
                f"the rule {name} is shadowed by the one in line {before.line}, which has the same condition",
            )


def _condition(rule: Rule) -> tuple[Token, ...]:
    """The tokens of a rule that decide whether it holds: for a violation, what stands before it is put together."""
    if rule.name not in VIOLATION_EXPORTS:
        return rule.tokens
    texts = [token.text for token in rule.tokens]
    for at, text in enumerate(texts):
        if text == "if":
            rest = rule.tokens[at + 1 :]
            # What is put together is an object with the rule's id; before it stands `name :=`.
            key = next((i for i, token in enumerate(rest) if token.text == '"rule"'), len(rest))
            return rest[: max(0, key - 3)]
    return ()


def _id_of(rule: Rule) -> str | None:
    for key, value in zip(rule.tokens, rule.tokens[2:], strict=False):
        if key.text == '"rule"' and value.kind == "string":
            return value.text[1:-1]
    return None


def _hiding(path: str, source: Source) -> Iterator[Finding]:
    for rule in source.rules:
        if rule.name in ARITY:
            yield Finding(f"{path}:{rule.line}", f"the rule {rule.name} hides the built-in of that name; rename it")
