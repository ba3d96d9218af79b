"""The names in a PromQL query: metrics, the labels that are matched, and the labels that are grouped by or written out.

No evaluation: it reads the tokens, so that a test can hold every name against what a server exposes. It refuses what it
does not know rather than skipping it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<range>\[[^\]]*\])
    |(?P<number>\d+(?:\.\d+)?(?:[smhdwy](?![a-zA-Z_]))?)|(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    |(?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){},]))""",
    re.VERBOSE,
)
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
WORDS = {"and", "or", "unless", "offset", "bool"}
AGGREGATIONS = {"sum", "min", "max", "count", "avg"}
FUNCTIONS = {"rate", "increase", "histogram_quantile", "absent"}
RANGE = re.compile(r"\[(?:\d+[smhd]|\$__rate_interval)\]")


@dataclass
class Names:
    """Every metric with the labels that its selectors match, and the labels of the groupings."""

    matched: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    grouped: set[str] = field(default_factory=set)


def tokens(query: str) -> list[tuple[str, str]]:
    """Kind and text of every token. Raises ``ValueError`` for what is none."""
    found = []
    place = 0
    while place < len(query.rstrip()):
        match = TOKEN.match(query, place)
        if match is None:
            raise ValueError(f"no PromQL at {query[place : place + 20]!r}")
        place = match.end()
        assert match.lastgroup is not None
        found.append((match.lastgroup, match[match.lastgroup]))
    return found


def names_of(query: str) -> Names:
    """The names of a query. Raises ``ValueError`` for a function, a range or a form that is not known here."""
    found = Names()
    rest = tokens(query)
    while rest:
        kind, text = rest.pop(0)
        following = rest[0][1] if rest else ""
        if kind == "range" and not RANGE.fullmatch(text):
            raise ValueError(f"the range {text} is none")
        if kind != "name" or text in WORDS:
            continue
        if text in GROUPING:
            found.grouped |= set(_list(rest)) if following == "(" else set()
        elif following == "(" or (text in AGGREGATIONS and following in GROUPING):
            if text not in FUNCTIONS | AGGREGATIONS:
                raise ValueError(f"the function {text} is not known")
        else:
            found.matched.append((text, _selector(rest) if following == "{" else {}))
    return found


def _list(rest: list[tuple[str, str]]) -> list[str]:
    """The names between the next parentheses."""
    rest.pop(0)
    found = []
    while rest[0][1] != ")":
        kind, text = rest.pop(0)
        if kind == "name":
            found.append(text)
    rest.pop(0)
    return found


def _selector(rest: list[tuple[str, str]]) -> dict[str, str]:
    """Labels and values between the next braces; a value that is no equality is empty."""
    rest.pop(0)
    found = {}
    while rest[0][1] != "}":
        kind, label = rest.pop(0)
        if (kind, label) == ("sign", ","):
            continue
        operator, (value_kind, value) = rest.pop(0)[1], rest.pop(0)
        if kind != "name" or value_kind != "string" or operator not in ("=", "!=", "=~", "!~"):
            raise ValueError(f"no matcher: {label}{operator}{value}")
        found[label] = value[1:-1] if operator in ("=", "!=") else ""
    rest.pop(0)
    return found
