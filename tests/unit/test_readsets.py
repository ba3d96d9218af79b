"""Read sets from compiled plans: small modules whose reads are known, and plans that nobody has seen yet."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from policyd.core.projection import project
from policyd.engines.compilation import build_bundle, plan_of
from policyd.engines.compiler import settings_of
from policyd.engines.plan import Plan, plan_findings, read_plan
from policyd.engines.readsets import read_set, unknown_paths

# Rules of one package, and the paths that its export `x` reads.
READS: dict[str, tuple[str, list[str]]] = {
    "a field": ("x if input.pool.kind == 1", ["pool.kind"]),
    "two fields": ("x if input.pool.a == input.workload.b", ["pool.a", "workload.b"]),
    "a subtree and a leaf of it": ("x if {\n\tinput.pool.a == 1\n\tinput.pool.a.b == 2\n}", ["pool.a"]),
    "through a variable": ("x if {\n\tp := input.pool\n\tp.a == 1\n\tnot p.b\n}", ["pool.a", "pool.b"]),
    "through a function": ("x if f(input.pool)\n\nf(p) if p.a.b == 1", ["pool.a.b"]),
    "through a function, apart for each call": (
        "x if {\n\tf(input.pool)\n\tf(input.workload)\n}\n\nf(p) if p.a == 1",
        ["pool.a", "workload.a"],
    ),
    "through what a function gives back": ("x if f(input).kind == 1\n\nf(i) := i.pool", ["pool.kind"]),
    "through a helper rule": ("x if h\n\nh if input.deep.a == 1", ["deep.a"]),
    "a scan": ("x if {\n\tsome y in input.pool.l\n\ty.z == 1\n}", ["pool.l"]),
    "a key that varies": ("x if input.pool.table[input.workload.key] == 1", ["pool.table", "workload.key"]),
    "a comprehension": ("x := {y | some y in input.pool.l; y != input.workload.n}", ["pool.l", "workload.n"]),
    "a built-in": ("x := count(input.pool.l)", ["pool.l"]),
    "put into an object": ('x := {"a": input.pool.a}', ["pool.a"]),
    "object.get with a key": ('x := object.get(input.pool, "a", 1)', ["pool.a"]),
    "object.get with keys": ('x := object.get(input.pool, ["a", "b"], input.workload.c)', ["pool.a.b", "workload.c"]),
    "object.get with a key that varies": ("x := object.get(input.pool, input.workload.k, 1)", ["pool", "workload.k"]),
    "object.get and on": ('x if object.get(input.pool, "a", {}).b == 1', ["pool.a.b"]),
    "only whether it is there": ("x if input.pool", ["pool"]),
    "named but unused": ("x if {\n\t_ = input.pool.a\n}", ["pool.a"]),
    "a name with a blank": ('x if input.pool["a b"].c == 1', ["pool.a b.c"]),
    "everything": ("x := input", [""]),
    "everything, handed on": ("x := count(f(input))\n\nf(i) := i", [""]),
    "with": ("x if h with input.pool as 1\n\nh if input.pool == 1", [""]),
    "negation": ("x if not input.pool.certified", ["pool.certified"]),
    "else": ("x := 1 if input.a.b == 1\nelse := 2 if input.c.d == 2", ["a.b", "c.d"]),
    "every": ("x if {\n\tevery y in input.pool.l { y > input.pool.m }\n}", ["pool.l", "pool.m"]),
    "destructuring": ('x if {\n\t{"a": y} = input.pool.o\n\ty > 1\n}', ["pool.o"]),
    "nothing": ("x := data.settings.limit", []),
}


def compile_rules(rules: str) -> Plan:
    module = (("p.rego", f"package p\n\n{rules}\n"),)

    async def run() -> Plan:
        with tempfile.TemporaryDirectory() as directory:
            faults = await build_bundle(module, {"settings": {"limit": 1}}, ["p/x"], Path(directory))
            assert faults == []
            return plan_of(module, Path(directory))

    return asyncio.run(run())


@pytest.mark.parametrize("name", READS)
def test_what_a_rule_reads(name: str) -> None:
    rules, wanted = READS[name]
    reads = read_set(compile_rules(rules), ["p/x"]).reads
    assert [".".join(path) for path in reads] == wanted


def test_settings_and_built_ins_are_named_too() -> None:
    found = read_set(compile_rules("x if count(input.pool.l) > data.settings.limit"), ["p/x"])
    assert found.data_reads == (("settings", "limit"),)
    assert found.builtins == {"count", "gt"}


def statement(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "stmt": fields}


def plan_with(*statements: dict[str, Any]) -> Plan:
    """A plan by hand, whose one function holds these statements."""
    document = {
        "static": {"strings": [{"value": "pool"}], "files": [{"value": "p.rego"}]},
        "plans": {"plans": [{"name": "p/x", "blocks": [{"stmts": list(statements)}]}]},
        "funcs": {"funcs": []},
    }
    return read_plan(json.loads(json.dumps(document)), {"p.rego": "p.rego"})


@pytest.mark.parametrize("kind", ["WithStmt", "CallDynamicStmt", "SomethingNewStmt"])
def test_what_is_not_understood_reads_everything(kind: str) -> None:
    assert read_set(plan_with(statement(kind, target=9)), ["p/x"]).reads == ((),)


def test_the_order_of_statements_does_not_matter() -> None:
    dot = statement("DotStmt", source={"type": "local", "value": 5}, key={"type": "string_index", "value": 0}, target=6)
    copy = statement("AssignVarStmt", source={"type": "local", "value": 0}, target=5)
    use = statement("LenStmt", source={"type": "local", "value": 6}, target=7)
    for order in ((dot, copy, use), (use, dot, copy), (copy, dot, use)):
        assert read_set(plan_with(*order), ["p/x"]).reads == (("pool",),)


def test_paths_outside_the_schema_are_named_by_their_first_wrong_name() -> None:
    schema = {"pool": {"kind": None, "locations": {"storage": None}}, "workload": None}
    reads = [("pool", "kind", "deep"), ("pool", "locatoins", "x"), ("workload", "any"), ("pol",), ("pool",)]
    assert unknown_paths(reads, schema) == [("pol",), ("pool", "locatoins")]


UNBOUND = [
    "x := y",
    "x if { not z == input.b }",
    "x := 1 if {\n\ty := input.a\n\ty == 2\n} else := y if input.b",
    "x contains 1 if y := input.a\n\nx contains y if input.b",
    "x if {\n\tevery z in input.l { z > 1 }\n\tz == 1\n}",
    "f(a) := b\n\nx := f(1)",
]
BOUND = [
    "x[k] contains v if some k, v in input.o",
    "default x := 1\n\nx := 2 if {\n\tc := {d | some d in input.b; d > 1}\n\tcount(c) > 1\n} else := 4 if input.z",
    "x if {\n\tsome i\n\tinput.l[i] == 3\n\tinput.m[i] == 4\n}",
    'x if {\n\t[a, {"b": b}] = input.l\n\ta > b\n}',
    "x contains v if {\n\tsome v in input.l\n\tnot input.m[v]\n\tevery k in input.z { k > v }\n}",
]


@pytest.mark.parametrize("rules", UNBOUND)
def test_a_variable_that_nothing_binds_is_found(rules: str) -> None:
    messages = [finding.message for finding in plan_findings(compile_rules(rules), {"gt": 2, "count": 1})]
    assert any("nothing binds" in message for message in messages)


@pytest.mark.parametrize("rules", BOUND)
def test_a_variable_that_something_binds_is_left_alone(rules: str) -> None:
    assert plan_findings(compile_rules(rules), {"gt": 2, "count": 1}) == []


def test_a_projection_keeps_shapes_and_leaves_missing_things_missing() -> None:
    document = {"pool": {"kind": "spot", "locations": {"storage": ["DE"]}, "x": 1}, "workload": "text", "model": None}
    reads = [("pool", "locations", "storage"), ("pool", "nothing", "x"), ("workload", "a"), ("model", "b"), ("sla",)]
    assert project(document, reads) == {
        "pool": {"locations": {"storage": ["DE"]}},
        "workload": "text",
        "model": None,
    }
    assert project({"pool": {}}, [("pool", "a")]) == {"pool": {}}


def test_settings_come_from_every_file_and_stand_beside_nothing() -> None:
    files = {
        PurePosixPath("settings.yaml"): "settings:\n  sla: {limit: 1}\n",
        PurePosixPath("settings/more.json"): '{"sla": {"other": 2}}',
    }
    assert settings_of(files) == ({"sla": {"limit": 1, "other": 2}}, [])


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("a.yaml", "placement: {residency: {deny: []}}", "stands beside 'settings'"),
        ("a.yaml", "settings: {a: 0.5}", "is not exact"),
        ("a.yaml", 'settings: {a: "x\\ny"}', "control character"),
        ("a.yaml", "settings: {a: [}", "not YAML"),
        ("a.yaml", "- 1", "not a mapping"),
        ("a.yaml", "settings: {1: 2}", "a key is text"),
        ("a.yaml", "settings: {a: 99999999999999999999}", "larger than"),
        ("placement/a.yaml", "residency: {deny: []}", "stands beside 'settings'"),
    ],
)
def test_data_files_cannot_take_the_place_of_rules_or_differ_between_engines(path: str, text: str, words: str) -> None:
    _, findings = settings_of({PurePosixPath(path): text})
    assert any(words in finding.message for finding in findings), findings
    assert all(finding.where.startswith(path) for finding in findings)


def test_one_setting_in_two_files_is_a_finding() -> None:
    files = {PurePosixPath("a.yaml"): "settings: {a: 1}", PurePosixPath("b.yaml"): "settings: {a: 2}"}
    _, findings = settings_of(files)
    assert [str(finding) for finding in findings] == ["b.yaml:1: the setting 'a' is given in two files"]
