"""Every allowed built-in gives the same on both engines: for good arguments, and for arguments of every wrong type."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from policyd.core.verdict import Answer, Question
from policyd.engines.capabilities import ALLOWED, ARITY, refusal
from policyd.engines.embedded import EmbeddedEngine
from policyd.engines.opa import OpaEngine
from policyd.ports import PolicyTree

HEAD = """# METADATA
# title: {name}
# custom: {{enforcement: hard, owner: tests, remedy: none}}
package placement.{name}

"""
OPERATORS = {
    "eq": "a0 = a1", "equal": "a0 == a1", "neq": "a0 != a1", "gt": "a0 > a1", "gte": "a0 >= a1", "lt": "a0 < a1",
    "lte": "a0 <= a1", "plus": "a0 + a1", "minus": "a0 - a1", "mul": "a0 * a1", "div": "a0 / a1", "rem": "a0 % a1",
    "and": "to_set(a0) & to_set(a1)", "or": "to_set(a0) | to_set(a1)", "internal.member_2": "a0 in a1",
    "internal.member_3": "a0, a1 in a2", "intersection": "intersection({to_set(x) | some x in a0})",
    "union": "union({to_set(x) | some x in a0})", "is_set": "is_set(to_set(a0))", "object.keys": "object.keys(a0)",
}  # fmt: skip

NUMBERS = [[7, 2], [2, 7], [-7, 2], [7, -2], [0, 5], [9007199254740991, 1], [6, 3], [5, 5]]
TEXTS = [["abc", "b"], ["abc", ""], ["", "a"], ["äöü", "ö"], ["aXbXc", "X"], ["a", "a"], ["日本語", "日"], [" a ", " "]]
ORDERED = [*NUMBERS, ["a", "b"], ["b", "a"], ["a", "a"], ["Z", "a"], ["a", "ä"], ["", "a"]]
LISTS: list[Any] = [[1, 2, 3], [], [3, 1, 2], [2, 2], ["b", "a"], [-1, 0]]
ANYTHING: list[Any] = [1, 0, "", "a", True, False, None, [], [1], {}, {"a": 1}, {"a": None}]
COLLECTIONS: list[Any] = [[1, "a", None], [], {"k": 1, "l": "a"}, {}]
REMOVALS: list[Any] = [[{"a": 1, "b": 2}, ["a", "z"]], [{}, ["a"]], [{"a": 1}, []]]
AFFIXES: list[Any] = [["abc", ["a", "c"]], ["abc", []], [["abc", "x"], "a"], ["abc", "z"]]

GOOD: dict[str, list[list[Any]]] = {
    **{key: [[a, b] for a in ANYTHING for b in ANYTHING] for key in ("eq", "equal", "neq")},
    **dict.fromkeys(("gt", "gte", "lt", "lte"), ORDERED),
    **dict.fromkeys(("plus", "minus", "mul", "div", "rem"), NUMBERS),
    "internal.member_2": [[a, c] for a in ANYTHING for c in COLLECTIONS],
    "internal.member_3": [["k", 1, {"k": 1}], [0, 1, [1, 2]], ["k", 2, {"k": 1}], ["z", 1, {}]],
    **{key: [[5], [-5], [0]] for key in ("abs", "ceil", "floor", "round")},
    "numbers.range": [[1, 3], [3, 1], [0, 0], [-2, 2]],
    "numbers.range_step": [[0, 6, 2], [6, 0, 2], [0, 5, 3], [1, 1, 1]],
    "count": [["abc"], ["äö"], [""], [[1, 2]], [{"a": 1}], [{}]],
    **{key: [[[1, 2, 3]], [[]], [[-1, 5]]] for key in ("sum", "product")},
    **{key: [[values] for values in LISTS] for key in ("sort",)},
    "array.concat": [[[1], [2]], [[], []]],
    "array.slice": [[[1, 2, 3], 1, 2], [[1, 2, 3], -1, 9], [[1, 2, 3], 2, 1], [[], 0, 0]],
    "array.reverse": [[values] for values in LISTS],
    **{key: [[a, b] for a in LISTS for b in LISTS] for key in ("and", "or")},
    **{key: [[[[1, 2], [2, 3]]], [[]], [[[1], []]], [[["a"], ["a"]]]] for key in ("intersection", "union")},
    "object.get": [
        [{"a": {"b": 1}}, ["a", "b"], 0],
        [{"a": 1}, "z", 0],
        [{"a": None}, "a", 0],
        [{"a": 1}, ["a", "b"], 7],
    ],
    "object.keys": [[{"a": 1, "b": 2}], [{}]],
    **{
        key: [[{"a": 1, "b": 2}, ["a", "z"]], [{}, ["a"]], [{"a": 1}, []]] for key in ("object.remove", "object.filter")
    },
    **dict.fromkeys(
        (
            "contains",
            "startswith",
            "endswith",
            "split",
            "trim",
            "trim_left",
            "trim_right",
            "trim_prefix",
            "trim_suffix",
        ),
        TEXTS,
    ),
    "substring": [["abcd", 1, 2], ["abcd", 1, -1], ["äbcd", 1, 2], ["abcd", 9, 2], ["", 0, 1]],
    "trim_space": [[" a "], [""], ["a"]],
    **{
        key: [["abc", ["a", "c"]], ["abc", []], [["abc", "x"], "a"], ["abc", "z"]]
        for key in ("strings.any_prefix_match", "strings.any_suffix_match")
    },
    "glob.match": [["eu-*", ["."], "eu-west"], ["*", ["."], "a.b"], ["{a,b}-*", ["-"], "a-x"], ["a?c", [], "abc"]],
    **{key: [[value] for value in ANYTHING] for key in (name for name in ALLOWED if name.startswith("is_"))},
    "type_name": [[value] for value in ANYTHING],
}


def expression(name: str) -> str:
    if name in OPERATORS:
        return OPERATORS[name]
    return f"{name}({', '.join(f'a{index}' for index in range(ARITY[name]))})"


def module(package: str, name: str) -> str:
    bindings = "".join(f"\ta{index} := input.pool.a{index}\n" for index in range(ARITY[name]))
    sets = "\n\nto_set(list) := {x | some x in list}\n" if "to_set" in expression(name) else "\n"
    if name == "eq":
        return f'{HEAD.format(name=package)}obligation contains {{"name": "v"}} if {{\n{bindings}\ta0 = a1\n}}{sets}'
    body = f"{bindings}\tvalue := {expression(name)}\n"
    return f'{HEAD.format(name=package)}obligation contains {{"name": "v", "value": value}} if {{\n{body}}}{sets}'


PACKAGES = {name: f"b_{name.replace('.', '_')}" for name in sorted(ALLOWED)}


def tree() -> PolicyTree:
    modules = {PurePosixPath(f"{package}.rego"): module(package, name) for name, package in PACKAGES.items()}
    return PolicyTree("sha256:builtins", None, modules, {}, {}, "", "")


def questions() -> list[tuple[str, list[Any]]]:
    """Good arguments, and each of the first good ones with one argument of every other type."""
    asked = [(name, arguments) for name, table in GOOD.items() for arguments in table]
    for name, table in GOOD.items():
        for index in range(len(table[0])):
            asked.extend((name, [*table[0][:index], wrong, *table[0][index + 1 :]]) for wrong in ANYTHING)
    return asked


def evaluate(engine: EmbeddedEngine | OpaEngine, asked: list[tuple[str, list[Any]]]) -> list[Answer]:
    async def run() -> list[Answer]:
        try:
            loaded = await engine.load(tree())
            batch = [
                Question(PACKAGES[name], json.dumps({"pool": {f"a{i}": a for i, a in enumerate(arguments)}}).encode())
                for name, arguments in asked
            ]
            return await engine.evaluate(loaded.digest, batch, 10_000)
        finally:
            await engine.close()

    return asyncio.run(run())


def test_every_allowed_function_has_good_arguments_here() -> None:
    assert set(GOOD) == set(ALLOWED)
    assert all(len(arguments) == ARITY[name] for name, table in GOOD.items() for arguments in table)


ORDERING = {"gt", "gte", "lt", "lte"}
"""The engines order values of different types differently; the core sees to it that inputs have their types."""


def test_every_allowed_function_gives_the_same_on_both_engines(opa_binary: Path) -> None:
    asked = questions()
    embedded = evaluate(EmbeddedEngine(2), asked)
    opa = evaluate(OpaEngine.child(str(opa_binary)), asked)
    good = sum(len(table) for table in GOOD.values())
    differ = [
        f"{name}{arguments}: {left} {right}"
        for number, ((name, arguments), left, right) in enumerate(zip(asked, embedded, opa, strict=True))
        if (left.error is None, left.obligation) != (right.error is None, right.obligation)
        and not (name in ORDERING and number >= good)
    ]
    assert differ == []


@pytest.mark.parametrize("name", ["http.send", "time.now_ns", "opa.runtime", "rand.intn", "uuid.rfc4122", "made.up"])
def test_what_is_not_on_the_list_is_refused_with_a_reason(name: str) -> None:
    assert name in str(refusal(name))
    assert refusal("count") is None
