"""The built-in functions that policies may use: those that both engines answer alike, and that depend on nothing else.

Rules: what is not on the list is refused, with the line that calls it. Nothing that looks at the clock, the network,
the environment or chance is on it; nor is anything that prints values as text: engines print numbers differently.
The list is checked against both engines by ``tests/contract/test_engine_builtins.py``.
"""

from __future__ import annotations

from typing import Final

ARITY: Final[dict[str, int]] = {
    # Comparison and membership.
    "eq": 2, "equal": 2, "neq": 2, "gt": 2, "gte": 2, "lt": 2, "lte": 2,
    "internal.member_2": 2, "internal.member_3": 3,
    # Integers.
    "plus": 2, "minus": 2, "mul": 2, "div": 2, "rem": 2, "abs": 1, "ceil": 1, "floor": 1, "round": 1,
    "numbers.range": 2, "numbers.range_step": 3,
    # Collections.
    "count": 1, "sum": 1, "product": 1, "sort": 1,
    "array.concat": 2, "array.slice": 3, "array.reverse": 1,
    "and": 2, "or": 2, "intersection": 1, "union": 1,
    "object.get": 3, "object.keys": 1, "object.remove": 2, "object.filter": 2,
    # Text.
    "contains": 2, "startswith": 2, "endswith": 2, "split": 2, "substring": 3,
    "trim": 2, "trim_left": 2, "trim_right": 2, "trim_prefix": 2, "trim_suffix": 2, "trim_space": 1,
    "strings.any_prefix_match": 2, "strings.any_suffix_match": 2,
    "glob.match": 3,
    # Types.
    "is_array": 1, "is_boolean": 1, "is_null": 1, "is_number": 1, "is_object": 1, "is_set": 1, "is_string": 1,
    "type_name": 1,
}  # fmt: skip
"""Name to number of arguments."""

ALLOWED: Final = frozenset(ARITY)

NEVER: Final = frozenset({"http.send", "net.lookup_ip_addr", "opa.runtime", "rand.intn", "time.now_ns", "uuid.rfc4122"})
"""Not even in a rule that nothing uses yet: the next change may use it, and the plan shows used rules only."""

_REASONS: Final = {
    "http.send": "it talks to the network",
    "net.lookup_ip_addr": "it talks to the network",
    "opa.runtime": "it shows the environment of the engine",
    "time.now_ns": "a decision must not depend on the clock; read input.clock",
    "rand.intn": "a decision must not depend on chance",
    "uuid.rfc4122": "a decision must not depend on chance",
    "sprintf": "the engines print values differently; give the values as observed and required",
    "json.marshal": "the engines print values differently; give the values as observed and required",
    "lower": "the engines differ beyond ASCII; compare names exactly",
    "upper": "the engines differ beyond ASCII; compare names exactly",
    "concat": "the engines order sets differently; give the values as observed and required",
    "object.union": "the engines differ on nested objects",
    "regex.match": "the engines differ beyond ASCII; use glob.match, startswith or endswith",
    "max": "the engines differ on empty collections; compare every element",
    "min": "the engines differ on empty collections; compare every element",
    "object.subset": "the engines differ on wrong types; compare the fields",
    "replace": "one engine does not end on an empty text",
    "indexof": "the engines differ on empty texts; use contains, startswith or endswith",
    "walk": "it reads documents whole; name the fields",
    "print": "it has no place in a decision",
    "trace": "it has no place in a decision",
}


def refusal(name: str) -> str | None:
    """Why a policy may not call a built-in; None when it may."""
    if name in ALLOWED:
        return None
    reason = _REASONS.get(name, "it is not on the list of functions that every engine answers alike")
    return f"the function {name} may not be used: {reason}"
