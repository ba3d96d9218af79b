"""No evaluation can tell a document from its projection on what the package reads, and both engines agree on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.projection import project
from policyd.core.verdict import Answer, PolicySet, Question
from policyd.engines.embedded import EmbeddedEngine
from policyd.engines.opa import OpaEngine
from policyd.ports import PolicyTree

HEAD = """# METADATA
# title: {name}
# custom: {{enforcement: hard, owner: tests, remedy: none}}
package placement.{name}

"""
DENY = 'deny contains {{"rule": "r", "observed": {observed}}} if {{\n{body}\n}}\n\n'
SETTINGS = {PurePosixPath("settings.yaml"): "settings: {limit: 2, words: [a, b], table: {a: b, b: 1}}\n"}
NAMES = ("a", "b", "c")

# Bodies over input.pool and input.workload; P and W stand for paths that vary.
BODIES = {
    "equals": ("\tinput.pool.P == input.workload.W", "input.pool.P"),
    "differs": ("\tinput.pool.P != input.workload.W", "true"),
    "negates": ("\tnot input.pool.P", "1"),
    "negates_equal": ('\tnot input.pool.P == "a"\n\tinput.workload.W', "1"),
    "scans": ("\tsome x in input.pool.P\n\tx != input.workload.W", "x"),
    "scans_pairs": ("\tsome k, v in input.pool.P\n\tnot v in input.workload.W", "[k, v]"),
    "every": ('\tevery x in input.pool.P { x != "a" }', "input.workload.W"),
    "dynamic": ("\tx := input.pool[input.workload.W]", "x"),
    "dynamic_deep": ("\tx := input.pool.P[input.workload.W]", "x"),
    "table": ("\tx := data.settings.table[input.workload.W]", "[x, input.pool.P]"),
    "alias": ("\tp := input.pool\n\tw := input.workload\n\tp.P == w.W", "p.P"),
    "alias_whole": ("\tp := input.pool\n\tp == input.workload", "1"),
    "passes": ("\tholds(input.pool)\n\tholds(input.workload)", "1"),
    "passes_field": ("\tx := field(input.pool)\n\tx.c", "x"),
    "falls_back": ('\tx := object.get(input.pool, "a", "none")\n\tx != input.workload.W', "x"),
    "falls_back_deep": ('\tx := object.get(input.pool, ["a", "b"], input.workload.W)', "x"),
    "rebuilds": ('\tx := {"p": input.pool.P, "w": [input.workload.W]}\n\tx.w[0] != x.p', "x"),
    "collects": ("\txs := [x | some x in input.pool.P; x != input.workload.W]\n\tcount(xs) > 0", "xs"),
    "unpacks": ('\t{"a": x} = input.pool.P', "[x, input.workload.W]"),
    "indexes": ("\tinput.pool.P[_].b == input.workload.W", "1"),
    "unused": ("\t_ = input.pool.P\n\tinput.workload.W", "1"),
    "exists": ("\tinput.pool\n\tinput.workload.W", "1"),
    "types": ("\tis_object(input.pool.P)\n\tnot is_string(input.workload.W)", "1"),
}
HELPERS = (
    "holds(x) if x.P != x.W\n\nfield(x) := x.P\n\nelse_value := 1 if input.pool.W\nelse := 2 if input.workload.P\n"
)
PATHS = [("a", "b"), ("a.b", "a"), ("b.c", "a.c")]


def packages() -> dict[str, str]:
    found = {}
    for name, (body, observed) in BODIES.items():
        for number, (pool, workload) in enumerate(PATHS):
            text = DENY.format(body=body, observed=observed) + HELPERS + "\nprefer := else_value\n"
            for letter, path in (("P", pool), ("W", workload)):
                text = text.replace(f".{letter}", f".{path}")
            found[f"{name}{number}"] = text
    return found


TREE = PolicyTree(
    digest="sha256:templates",
    commit=None,
    modules={PurePosixPath(f"{name}.rego"): HEAD.format(name=name) + text for name, text in packages().items()},
    tests={},
    data=SETTINGS,
    casbin_model="",
    casbin_rows="",
)


class Running:
    def __init__(self, engine: EmbeddedEngine | OpaEngine, runner: asyncio.Runner) -> None:
        self.engine = engine
        self.runner = runner
        self.policies: PolicySet = runner.run(engine.load(TREE))

    def ask(self, documents: list[tuple[str, Any]]) -> list[Answer]:
        asked = [Question(name, json.dumps(document).encode()) for name, document in documents]
        return self.runner.run(self.engine.evaluate(TREE.digest, asked, 5000))


@pytest.fixture(scope="module")
def embedded() -> Iterator[Running]:
    with asyncio.Runner() as runner:
        running = Running(EmbeddedEngine(2), runner)
        yield running
        runner.run(running.engine.close())


@pytest.fixture(scope="module")
def opa(request: pytest.FixtureRequest) -> Iterator[Running]:
    with asyncio.Runner() as runner:
        running = Running(OpaEngine.child(str(request.getfixturevalue("opa_binary"))), runner)
        yield running
        runner.run(running.engine.close())


SCALARS = st.sampled_from(["a", "b", "c", 1, 2, 0, True, False, None])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)),
    max_leaves=8,
)
PARTS = st.one_of(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3), VALUES)
DOCUMENTS = st.dictionaries(st.sampled_from(["pool", "workload", "model"]), PARTS, max_size=3)


def outcome(answer: Answer) -> Any:
    """Errors are worded by each engine in its own way."""
    return "error" if answer.error is not None else answer


@given(document=DOCUMENTS)
def test_an_evaluation_cannot_tell_a_document_from_its_projection(embedded: Running, document: Any) -> None:
    names = sorted(embedded.policies.packages)
    cut = [(name, project(document, embedded.policies.packages[name].reads)) for name in names]
    whole = embedded.ask([(name, document) for name in names])
    for name, left, right in zip(names, whole, embedded.ask(cut), strict=True):
        assert outcome(left) == outcome(right), name


FULL_VALUES = st.one_of(VALUES, st.fixed_dictionaries(dict.fromkeys(NAMES, VALUES)))
FULL_PART = st.fixed_dictionaries(dict.fromkeys(NAMES, FULL_VALUES))
FULL_DOCUMENTS = st.fixed_dictionaries({"pool": FULL_PART, "workload": FULL_PART})


def present(document: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        if not isinstance(document, dict) or document.get(key) is None:
            return False
        document = document[key]
    return True


@given(document=FULL_DOCUMENTS)
def test_both_engines_agree_wherever_the_facts_are_there(embedded: Running, opa: Running, document: Any) -> None:
    """Only questions whose every read path is there count, because the core refuses the others without asking.

    Where one engine meets a type error first, the other may meet an undefined value first: then one is an error. That
    is no answer, so nothing is allowed by it.
    """
    packages = embedded.policies.packages
    names = [name for name in sorted(packages) if all(present(document, path) for path in packages[name].reads)]
    asked = [(name, document) for name in names]
    for name, left, right in zip(names, embedded.ask(asked), opa.ask(asked), strict=True):
        if left.error is None and right.error is None:
            assert left == right, name


@given(document=DOCUMENTS)
def test_a_projection_holds_nothing_that_was_not_asked_for(document: Any) -> None:
    reads = [("pool", "a", "b"), ("workload", "c"), ("model",)]
    cut = project(document, reads)
    assert set(cut) == set(document) & {"pool", "workload", "model"}
    if isinstance(document.get("pool"), dict):
        assert set(cut["pool"]) <= {"a"}
    assert cut.get("model") == document.get("model")
    assert project(cut, reads) == cut
    assert project(document, [()]) == document
