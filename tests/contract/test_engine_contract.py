"""One suite for every engine: equal answers on equal policies, errors that stay errors, deadlines that hold."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from policyd.core.verdict import Answer, Enforcement, Question
from policyd.engines.embedded import EmbeddedEngine
from policyd.engines.opa import OpaEngine
from policyd.errors import EngineError, EngineUnavailable, PolicyInvalid
from policyd.ports import PolicyTree

HEAD = """# METADATA
# title: {name} holds
# custom:
#   enforcement: hard
#   owner: tests
#   remedy: none needed
package placement.{name}

"""
SETTINGS = 'settings:\n  limit: 3\n  banned: ["KP", "XX"]\n  words: {grüß: schön}\n'
LOOP = """deny contains {"rule": "loops"} if {
	some a in numbers.range(1, input.pool.n)
	some b in numbers.range(1, input.pool.n)
	some c in numbers.range(1, input.pool.n)
	(a * b) * c == 0
}
"""


class Running:
    """An engine and the loop that it belongs to."""

    def __init__(self, engine: EmbeddedEngine | OpaEngine, runner: asyncio.Runner) -> None:
        self.engine = engine
        self.run = runner.run

    @property
    def pids(self) -> tuple[int, ...]:
        return self.engine.worker_pids if isinstance(self.engine, EmbeddedEngine) else self.engine.child_pids

    def ask(self, digest: str, *questions: tuple[str, Any], deadline_ms: int = 5000) -> list[Answer]:
        asked = [Question(package, json.dumps(document).encode()) for package, document in questions]
        return self.run(self.engine.evaluate(digest, asked, deadline_ms))


def make(kind: str, request: pytest.FixtureRequest) -> EmbeddedEngine | OpaEngine:
    return EmbeddedEngine(2) if kind == "embedded" else OpaEngine.child(str(request.getfixturevalue("opa_binary")))


@pytest.fixture(scope="module", params=["embedded", "opa"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    engine = make(request.param, request)
    with asyncio.Runner() as runner:
        yield Running(engine, runner)
        runner.run(engine.close())


@pytest.fixture(params=["embedded", "opa"])
def fresh(request: pytest.FixtureRequest) -> Iterator[Running]:
    """An engine of its own, for tests that hurt it."""
    engine = make(request.param, request)
    with asyncio.Runner() as runner:
        yield Running(engine, runner)
        runner.run(engine.close())


def tree(digest: str, packages: dict[str, str], *, settings: str = SETTINGS, tests: str = "") -> PolicyTree:
    """A tree with one module for each package; METADATA is put above."""
    return PolicyTree(
        digest=f"sha256:{digest}",
        commit=None,
        modules={
            PurePosixPath(f"{name}/{name}.rego"): HEAD.format(name=name) + body for name, body in packages.items()
        },
        tests={PurePosixPath("sample/sample_test.rego"): tests} if tests else {},
        data={PurePosixPath("settings.yaml"): settings},
        casbin_model="",
        casbin_rows="",
    )


def one(rule: str, **fields: Any) -> Answer:
    return Answer(deny=({"rule": rule, **fields},))


# Package, its rules, the input, and the answer that every engine gives.
ANSWERS: dict[str, tuple[str, Any, Answer]] = {
    "plain": (
        'deny contains {"rule": "far", "observed": input.pool.country} if input.pool.country != "DE"',
        {"pool": {"country": "US"}},
        one("far", observed="US"),
    ),
    "quiet": ('deny contains {"rule": "far"} if input.pool.country != "DE"', {"pool": {"country": "DE"}}, Answer()),
    "absent": ('deny contains {"rule": "far"} if input.pool.country != "DE"', {}, Answer()),
    "nothing": ('deny contains {"rule": "is_null"} if input.pool.a == null', {"pool": {"a": None}}, one("is_null")),
    "settings": (
        'deny contains {"rule": "banned", "observed": c} if {\n'
        "\tsome c in data.settings.banned\n\tc in input.pool.l\n}",
        {"pool": {"l": ["DE", "KP"]}},
        one("banned", observed="KP"),
    ),
    "unicode": (
        'deny contains {"rule": "odd", "observed": [input.pool.name, data.settings.words]} if {\n'
        '\tinput.pool.name == "Zürich 東京 🚀"\n}',
        {"pool": {"name": "Zürich 東京 🚀"}},
        one("odd", observed=["Zürich 東京 🚀", {"grüß": "schön"}]),
    ),
    "integers": (
        'deny contains {"rule": "n", "observed": [1.0, 9 / 3, 7 % 4, input.pool.a + 1, 1e3]} if input.pool.a == 2.0',
        {"pool": {"a": 2}},
        one("n", observed=[1, 1000, 3, 3, 3]),
    ),
    "same_number": (
        'deny contains {"rule": "n", "observed": x} if some x in [1, 1.0]',
        {},
        one("n", observed=1),
    ),
    "largest": (
        'deny contains {"rule": "n", "observed": input.pool.a - 1} if input.pool.a > 9007199254740990',
        {"pool": {"a": 9007199254740991}},
        one("n", observed=9007199254740990),
    ),
    "sets": (
        'deny contains {"rule": "s", "observed": seen, "required": {{2, 1}, {"b", "a"}}} if {\n'
        "\tseen := {x | some x in input.pool.l}\n}",
        {"pool": {"l": [10, 9, 9]}},
        one("s", observed=[10, 9], required=[["a", "b"], [1, 2]]),
    ),
    "nested": (
        'deny contains {"rule": "s", "observed": {"a": {"b": [{"c": input.pool.x}]}}} if input.pool.x',
        {"pool": {"x": {"y": [1, None, True]}}},
        one("s", observed={"a": {"b": [{"c": {"y": [1, None, True]}}]}}),
    ),
    "several": (
        'deny contains {"rule": "z", "observed": x} if some x in input.pool.l\n\n'
        'deny contains {"rule": "a"} if input.pool.l',
        {"pool": {"l": ["b", "a"]}},
        Answer(deny=({"observed": "a", "rule": "z"}, {"observed": "b", "rule": "z"}, {"rule": "a"})),
    ),
    "partial_break": (
        'deny contains {"rule": "no"} if {\n\tnot input.pool.certified\n\tevery x in input.pool.l { x > 1 }\n}',
        {"pool": {"l": [2, 3]}},
        one("no"),
    ),
    "helpers": (
        'deny contains {"rule": "h", "observed": size(input.pool)} if size(input.pool) > 1\n\nsize(p) := count(p.l)',
        {"pool": {"l": [1, 2]}},
        one("h", observed=2),
    ),
    "otherwise": (
        "prefer := 1 if input.pool.a == 1\nelse := 2 if input.pool.a == 2\nelse := 3",
        {"pool": {"a": 2}},
        Answer(prefer=2),
    ),
    "preference": ("prefer := -1000.0 if input.pool.a", {"pool": {"a": True}}, Answer(prefer=-1000)),
    "no_preference": ("prefer := 5 if input.pool.a", {"pool": {"a": False}}, Answer()),
    "falls_back": ("default prefer := 7\n\nprefer := 5 if input.pool.a", {"pool": {}}, Answer(prefer=7)),
    "duties": (
        'obligation contains {"name": "max_output_tokens", "value": input.pool.a} if input.pool.a',
        {"pool": {"a": 4}},
        Answer(obligation=({"name": "max_output_tokens", "value": 4},)),
    ),
    "warns": ('warn contains {"rule": "w"} if input.pool.a', {"pool": {"a": 1}}, Answer(warn=({"rule": "w"},))),
    "may_miss": (
        'deny contains {"rule": "g", "observed": x} if {\n'
        '\tx := object.get(input.pool, ["a", "b"], "none")\n\tx == "none"\n}',
        {"pool": {"a": {}}},
        one("g", observed="none"),
    ),
    "globs": (
        'deny contains {"rule": "g"} if glob.match("eu-*", ["."], input.pool.region)',
        {"pool": {"region": "eu-west"}},
        one("g"),
    ),
    "keys": (
        'deny contains {"rule": "k", "observed": {k: v | some k, v in input.pool.o; v > 1}} if true',
        {"pool": {"o": {"a": 1, "ö": 2}}},
        one("k", observed={"ö": 2}),
    ),
}

# Package, its rules, the input, and words that the error says on every engine (beside the engine's own).
ERRORS: dict[str, tuple[str, Any, str]] = {
    "by_zero": ('deny contains {"rule": "d", "observed": 1 / input.pool.z} if true', {"pool": {"z": 0}}, ""),
    "rest_by_zero": ('deny contains {"rule": "d", "observed": 1 % input.pool.z} if true', {"pool": {"z": 0}}, ""),
    "conflict": ("prefer := 1 if input.pool.a\n\nprefer := 2 if input.pool.b", {"pool": {"a": 1, "b": 1}}, ""),
    "function_conflict": (
        "prefer := f(input.pool.a)\n\nf(x) := 1 if x > 0\n\nf(x) := 2 if x > 1",
        {"pool": {"a": 2}},
        "",
    ),
    "wrong_type": ('deny contains {"rule": "d"} if count(input.pool.a) > 1', {"pool": {"a": 5}}, ""),
    "adds_text": ('deny contains {"rule": "d"} if input.pool.a + 1 > 1', {"pool": {"a": "x"}}, ""),
    "no_object": (
        'deny contains x if {\n\tx := input.pool.a\n\ty := {"rule": "d"}\n\ty\n}',
        {"pool": {"a": "x"}},
        "object",
    ),
    "no_rule": (
        'deny contains x if {\n\tx := {"observed": input.pool.a}\n\ty := {"rule": "d"}\n\ty\n}',
        {"pool": {"a": "x"}},
        "no text `rule`",
    ),
    "other_rule": (
        'deny contains x if {\n\tx := {"rule": input.pool.a}\n\ty := {"rule": "d"}\n\ty\n}',
        {"pool": {"a": "x"}},
        "'x' is not declared",
    ),
    "fraction": ('deny contains {"rule": "d", "observed": 1 / 2} if input.pool.a', {"pool": {"a": 1}}, "no integer"),
    "too_large": (
        'deny contains {"rule": "d", "required": input.pool.a * 4} if true',
        {"pool": {"a": 9007199254740991}},
        "beyond",
    ),
    "loud": ("prefer := input.pool.a", {"pool": {"a": 1001}}, "not an integer from"),
    "worded": ("prefer := input.pool.a", {"pool": {"a": "5"}}, "not an integer from"),
    "truth": ("prefer := input.pool.a", {"pool": {"a": True}}, "not an integer from"),
    "half": ("prefer := input.pool.a / 2", {"pool": {"a": 1}}, "no integer"),
    "nameless": ('obligation contains {"value": 1} if input.pool.a', {"pool": {"a": 1}}, "no text `name`"),
    "quoted": ('deny contains {"rule": "d"} if input.pool.a', {"pool": {"a": 'say "hi"'}}, "quote"),
    "escaped": ('deny contains {"rule": "d"} if input.pool.a', {"pool": {"a\\": 1}}, "backslash"),
    "newline": ('deny contains {"rule": "d"} if input.pool.a', {"pool": {"a": "a\nb"}}, "control"),
    "float_in": ('deny contains {"rule": "d"} if input.pool.a', {"pool": {"a": 0.5}}, "no integer"),
    "huge_in": ('deny contains {"rule": "d"} if input.pool.a', {"pool": {"a": 2**60}}, "beyond"),
    "no_document": ('deny contains {"rule": "d"} if input.pool.a', [1], "no JSON object"),
}


@pytest.fixture(scope="module")
def answers(running: Running) -> dict[str, Answer]:
    """Every package of both tables, asked in one batch: so each error also proves that the others get their answers."""
    table = {**ANSWERS, **ERRORS}
    loaded = running.run(running.engine.load(tree("table", {name: row[0] for name, row in table.items()})))
    given = running.ask(loaded.digest, *[(name, row[1]) for name, row in table.items()])
    return dict(zip(table, given, strict=True))


@pytest.mark.parametrize("name", ANSWERS)
def test_every_engine_gives_this_answer(answers: dict[str, Answer], name: str) -> None:
    assert answers[name] == ANSWERS[name][2]


@pytest.mark.parametrize("name", ERRORS)
def test_every_engine_makes_this_an_error_and_nothing_else(answers: dict[str, Answer], name: str) -> None:
    answer = answers[name]
    assert answer.error is not None
    assert answer.error.startswith(f"{name}: ")
    assert ERRORS[name][2] in answer.error
    assert answer == Answer(error=answer.error)


# A rule body, words of the finding, and the line after the header that it names.
REFUSALS: dict[str, tuple[str, str, int]] = {
    "syntax": ("deny contains {", "", 0),
    "version_0": ('deny[x] { x := {"rule": "a"} }', "no `if`", 1),
    "version_0_value": (
        'deny contains {"rule": "a"} if input.pool.a\n\nhelper { input.pool.a }',
        "'helper' has no `if`",
        3,
    ),
    "no_set": ('deny := {"rule": "a"} if input.pool.a', "not a set", 1),
    "partial_object": ('deny[x] if x := {"rule": "a"}', "not a set", 1),
    "prefer_set": ("prefer contains 1 if input.pool.a", "not one value", 1),
    "prefer_function": ("prefer(x) := x", "function", 1),
    "unbound": ('deny contains {"rule": "a"} if country == "DE"', "", 1),
    "unbound_in_not": ('deny contains {"rule": "a"} if not country == "DE"', "", 1),
    "unknown_function": ('deny contains {"rule": "a"} if no_such(input.pool.a)', "no_such", 1),
    "too_many_arguments": ('deny contains {"rule": "a"} if f(1, 2, 3)\n\nf(x) := x', "", 1),
    "circle": ('deny contains {"rule": "a"} if a\n\na if b\n\nb if a', "", 3),
    "clock": ('deny contains {"rule": "a"} if time.now_ns() > 1', "time.now_ns", 1),
    "network": (
        'deny contains {"rule": "a"} if http.send({"method": "get", "url": "x"}).status_code > 1',
        "http.send",
        1,
    ),
    "environment": ('deny contains {"rule": "a", "observed": opa.runtime()} if true', "opa.runtime", 1),
    "chance": ('deny contains {"rule": "a"} if rand.intn("x", 2) == 1', "rand.intn", 1),
    "no_setting": ('deny contains {"rule": "a"} if input.pool.a > data.settings.limmit', "data.settings.limmit", -1),
    "other_data": ('deny contains {"rule": "a"} if input.pool.a > data.secrets.x', "data.secrets.x", -1),
    "whole_input": ('deny contains {"rule": "a", "observed": input} if true', "input as a whole", -1),
    "replaces_input": ('deny contains {"rule": "a"} if h with input.pool as 1\n\nh if input.pool == 1', "`with`", 1),
    "no_literal_rule": ('deny contains {"rule": id} if {\n\tid := input.pool.a\n}', "no literal rule id", 1),
    "rule_twice": (
        'deny contains {"rule": "a"} if input.pool.a\n\ndeny contains {"rule": "a"} if input.pool.b',
        "also used",
        3,
    ),
    "template": ('deny contains {"rule": "a", "observed": $"{input.pool.a}"} if true', "template", 1),
    "exports_nothing": ("helper := 1", "exports none", -1),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_every_engine_refuses_this_module_with_its_line(running: Running, name: str) -> None:
    body, words, line = REFUSALS[name]
    with pytest.raises(PolicyInvalid) as refused:
        running.run(running.engine.load(tree(f"refused-{name}", {"bad": body})))
    header = HEAD.count("\n")
    places = [finding.where for finding in refused.value.findings if words in finding.message]
    assert places, [str(finding) for finding in refused.value.findings]
    if line:
        assert f"bad/bad.rego:{header + line if line > 0 else header - 1}" in places


def test_a_refused_tree_leaves_no_digest_behind(running: Running) -> None:
    with pytest.raises(PolicyInvalid):
        running.run(running.engine.load(tree("half", {"bad": "deny contains {"})))
    with pytest.raises(EngineUnavailable):
        running.ask("sha256:half", ("bad", {}))


def test_a_tree_without_packages_is_refused(running: Running) -> None:
    with pytest.raises(PolicyInvalid, match="findings"):
        running.run(running.engine.load(tree("empty", {})))


def test_what_a_package_says_about_itself_arrives(running: Running) -> None:
    metadata = "# METADATA\n# title: Too far\n# custom:\n#   enforcement: soft\n#   remedy: move\n"
    body = metadata + 'deny contains {"rule": "far"} if input.pool.a.b > 1\n'
    loaded = running.run(running.engine.load(tree("described", {"described": body})))
    package = loaded.packages["described"]
    rule = package.rules["far"]
    assert (rule.title, rule.enforcement, rule.remedy) == ("Too far", Enforcement.SOFT, "move")
    assert rule.location == f"described/described.rego:{HEAD.count(chr(10)) + 6}"
    assert package.reads == (("pool", "a", "b"),)
    assert package.exports == {"deny"}
    assert loaded.settings["limit"] == 3
    assert loaded.engine.split()[0] in ("regopy", "opa")


def test_policies_live_side_by_side_and_are_forgotten_one_by_one(running: Running) -> None:
    rule = 'deny contains {{"rule": "a", "observed": {}}} if input.pool.a'
    running.run(running.engine.load(tree("left", {"p": rule.format(1)})))
    running.run(running.engine.load(tree("right", {"p": rule.format(2)})))
    asked = ("p", {"pool": {"a": 1}})
    for _ in range(2):
        assert running.ask("sha256:left", asked) == [one("a", observed=1)]
        assert running.ask("sha256:right", asked) == [one("a", observed=2)]
    running.run(running.engine.unload("sha256:left"))
    running.run(running.engine.unload("sha256:unknown"))
    with pytest.raises(EngineUnavailable):
        running.ask("sha256:left", asked)
    assert running.ask("sha256:right", asked) == [one("a", observed=2)]


def test_settings_belong_to_their_own_digest(running: Running) -> None:
    rule = 'deny contains {"rule": "a", "observed": data.settings.limit} if input.pool.a'
    for limit in (1, 2):
        running.run(running.engine.load(tree(f"limit{limit}", {"p": rule}, settings=f"settings: {{limit: {limit}}}\n")))
    given = [running.ask(f"sha256:limit{limit}", ("p", {"pool": {"a": 1}}))[0] for limit in (1, 2, 1)]
    assert [answer.deny[0]["observed"] for answer in given] == [1, 2, 1]


def test_thousands_of_questions_are_answered_in_order(running: Running) -> None:
    rules = {
        "odd": 'deny contains {"rule": "a", "observed": input.pool.n} if input.pool.n % 2 == 1',
        "echo": 'obligation contains {"name": "n", "value": input.pool.n} if input.pool.n >= 0',
    }
    loaded = running.run(running.engine.load(tree("many", rules)))
    questions = [(("odd", "echo")[n % 3 == 0], {"pool": {"n": n}}) for n in range(3000)]
    for n, answer in enumerate(running.ask(loaded.digest, *questions)):
        if n % 3 == 0:
            assert answer == Answer(obligation=({"name": "n", "value": n},))
        else:
            assert answer == (one("a", observed=n) if n % 2 else Answer())
    if isinstance(running.engine, EmbeddedEngine):
        assert running.pids
        for pid in running.pids:
            status = Path(f"/proc/{pid}/status").read_text()
            resident_kib = int(status.split("VmHWM:")[1].split()[0])
            assert resident_kib <= 80 * 1024


def test_no_questions_give_no_answers(running: Running) -> None:
    loaded = running.run(running.engine.load(tree("none", {"p": 'deny contains {"rule": "a"} if input.pool.a'})))
    assert running.ask(loaded.digest) == []


def test_unknown_packages_and_digests_are_errors(running: Running) -> None:
    loaded = running.run(running.engine.load(tree("known", {"p": 'deny contains {"rule": "a"} if input.pool.a'})))
    unknown, known = running.ask(loaded.digest, ("q", {}), ("p", {"pool": {"a": 1}}))
    assert unknown == Answer(error="q: there is no such package")
    assert known == one("a")
    with pytest.raises(EngineUnavailable):
        running.ask("sha256:unknown", ("p", {}))


LOOPS = {"loop": LOOP, "good": 'deny contains {"rule": "a"} if input.pool.n > 1'}


def test_the_deadline_stops_one_question_and_spares_the_others(running: Running) -> None:
    loaded = running.run(running.engine.load(tree("loops", LOOPS)))
    running.ask(loaded.digest, ("good", {"pool": {"n": 5}}))
    started = time.monotonic()
    (late,) = running.ask(loaded.digest, ("loop", {"pool": {"n": 20_000}}), deadline_ms=400)
    assert time.monotonic() - started < 0.4 + 0.5
    assert late.error is not None
    assert "loop: no answer within 400 ms" in late.error
    mixed = [("good", {"pool": {"n": 5}}), ("loop", {"pool": {"n": 20_000}}), ("loop", {"pool": {"n": 2}})]
    first, guilty, small = running.ask(loaded.digest, *mixed, deadline_ms=400)
    assert (first, small) == (one("a"), Answer())
    assert guilty.error is not None


def test_a_package_that_loops_on_everything_ends_after_two_tries(running: Running) -> None:
    loaded = running.run(running.engine.load(tree("loops2", LOOPS)))
    questions = [("loop", {"pool": {"n": 20_000 + n}}) for n in range(200)] + [("good", {"pool": {"n": 5}})]
    started = time.monotonic()
    *late, good = running.ask(loaded.digest, *questions, deadline_ms=300)
    assert time.monotonic() - started < 6
    assert all(answer.error is not None and answer.error.startswith("loop: ") for answer in late)
    assert good == one("a")


def test_nothing_computes_on_after_the_deadline(fresh: Running) -> None:
    loaded = fresh.run(fresh.engine.load(tree("loops3", LOOPS)))
    fresh.ask(loaded.digest, ("loop", {"pool": {"n": 20_000}}), deadline_ms=300)
    time.sleep(0.3)
    assert fresh.engine.counts.timeouts == 1
    # OPA may give up by itself once its caller has left, and then there is nothing to kill; a worker never does.
    assert fresh.engine.counts.killed == 1 or "opa" in fresh.engine.name.lower()
    before = {pid: processor_ticks(pid) for pid in fresh.pids}
    time.sleep(0.5)
    for pid, ticks in before.items():
        assert processor_ticks(pid) - ticks <= 10


def processor_ticks(pid: int) -> int:
    """Hundredths of a second of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_killed_engine_process_costs_nothing_between_batches(fresh: Running) -> None:
    loaded = fresh.run(fresh.engine.load(tree("killed", LOOPS)))
    for _ in range(2):
        assert fresh.ask(loaded.digest, *[("good", {"pool": {"n": 5}})] * 70) == [one("a")] * 70
        assert fresh.pids
        for pid in fresh.pids:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.25)
    assert fresh.ask(loaded.digest, ("good", {"pool": {"n": 5}})) == [one("a")]
    assert fresh.engine.counts.crashed >= 1
    assert fresh.engine.worker_pids == fresh.pids


def test_an_engine_process_that_is_killed_again_and_again_gives_an_error(fresh: Running) -> None:
    loaded = fresh.run(fresh.engine.load(tree("murder", LOOPS)))
    fresh.ask(loaded.digest, ("good", {"pool": {"n": 5}}))

    async def attack() -> list[Answer] | EngineError:
        question = Question("loop", b'{"pool":{"n":20000}}')
        asked = asyncio.ensure_future(fresh.engine.evaluate(loaded.digest, [question], 3000))
        while not asked.done():
            await asyncio.sleep(0.2)
            for pid in fresh.pids:
                os.kill(pid, signal.SIGKILL)
        try:
            return asked.result()
        except EngineError as fault:
            return fault

    started = time.monotonic()
    outcome = fresh.run(attack())
    assert time.monotonic() - started < 8
    assert isinstance(outcome, EngineError) or outcome[0].error is not None
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            assert fresh.ask(loaded.digest, ("good", {"pool": {"n": 5}})) == [one("a")]
            return
        except EngineUnavailable:
            time.sleep(0.1)
    pytest.fail("the engine did not come back")


def test_many_batches_at_once_do_not_mix_their_answers(running: Running) -> None:
    rule = 'deny contains {"rule": "a", "observed": input.pool.n} if input.pool.n >= 0'
    loaded = running.run(running.engine.load(tree("parallel", {"p": rule})))

    async def batch(first: int) -> bool:
        asked = [Question("p", json.dumps({"pool": {"n": n}}).encode()) for n in range(first, first + 50)]
        given = await running.engine.evaluate(loaded.digest, asked, 5000)
        return given == [one("a", observed=n) for n in range(first, first + 50)]

    async def together() -> list[bool]:
        return await asyncio.gather(*[batch(n * 1000) for n in range(8)])

    assert all(running.run(together()))


def test_a_cancelled_batch_leaves_the_engine_usable(running: Running) -> None:
    loaded = running.run(running.engine.load(tree("cancelled", LOOPS)))

    async def leave() -> None:
        question = Question("loop", b'{"pool":{"n":20000}}')
        await asyncio.wait_for(running.engine.evaluate(loaded.digest, [question], 60_000), 0.3)

    with pytest.raises(TimeoutError):
        running.run(leave())
    assert running.ask(loaded.digest, ("good", {"pool": {"n": 5}})) == [one("a")]


def test_closing_ends_every_process_and_every_answer(fresh: Running) -> None:
    loaded = fresh.run(fresh.engine.load(tree("closed", LOOPS)))
    fresh.run(fresh.engine.health())
    fresh.ask(loaded.digest, ("good", {"pool": {"n": 5}}))
    pids = fresh.pids
    assert pids
    fresh.run(fresh.engine.close())
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    with pytest.raises(EngineUnavailable):
        fresh.ask(loaded.digest, ("good", {"pool": {"n": 5}}))
    with pytest.raises(EngineUnavailable):
        fresh.run(fresh.engine.health())


TESTS = """package placement.sample_test

found(pool) := deny if {
	deny := data.placement.sample.deny with input.pool as pool
}

test_holds if {
	found({"a": 1}) == {{"rule": "a", "observed": 1}}
}

test_quiet if {
	found({"a": 0}) == set()
}

test_with_settings if {
	found({"a": 0}) == set() with data.settings as {"limit": 9}
}

test_fails if {
	found({"a": 1}) == set()
}
"""


def test_rego_tests_run_and_say_where_they_stand(running: Running) -> None:
    rule = 'deny contains {"rule": "a", "observed": input.pool.a} if input.pool.a > 0'
    results = {
        result.rule: result for result in running.run(running.engine.test(tree("t", {"sample": rule}, tests=TESTS)))
    }
    assert {name: result.passed for name, result in results.items()} == {
        "test_holds": True,
        "test_quiet": True,
        "test_with_settings": True,
        "test_fails": False,
    }
    assert results["test_fails"].location == "sample/sample_test.rego:19"
    assert results["test_fails"].detail
    assert results["test_fails"].package == "placement.sample_test"
