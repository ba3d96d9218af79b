"""What policies may not hold: forms that regopy gets wrong, the network; forms that are kept get the verdict of OPA."""

from __future__ import annotations

import asyncio
import json
import subprocess
from dataclasses import replace
from pathlib import Path, PurePosixPath

import orjson
import pytest

from policyd.core.verdict import Question
from policyd.engines.embedded import EmbeddedEngine
from policyd.errors import PolicyInvalid
from policyd.ports import PolicyTree

HEAD = """# METADATA
# title: Every
# custom:
#   enforcement: hard
#   owner: tests
#   remedy: none
package placement.alike

deny contains violation if {
	BODY
	violation := {"rule": "all", "observed": true, "required": false}
}
"""
TREE = PolicyTree("sha256:every", None, {}, {}, {}, "", "")
REFUSED = {
    "not": "every x in input.pool.dedicated_to { not x in input.tenant.certifications }",
    "nested": "every x in input.pool.dedicated_to { every y in input.tenant.certifications { y == x } }",
    "comprehension": "every x in input.pool.dedicated_to { count([y | some y in input.pool.l; y == x]) == 0 }",
    "over a set": 'every x in {"a", "b"} { not x in input.pool.dedicated_to }',
}
KEPT = {
    "member": "every x in input.pool.dedicated_to { x in input.tenant.certifications }",
    "some": "every x in input.pool.dedicated_to { some y in input.tenant.certifications; y == x }",
    "compare": 'every x in input.pool.dedicated_to { x != "z" }',
    "two": 'every x in input.pool.dedicated_to { x != "z"; x in input.tenant.certifications }',
    "index": "every i, x in input.pool.dedicated_to { x in input.tenant.certifications; i < 1 }",
    "local": "every x in input.pool.dedicated_to { y := x; y in input.tenant.certifications }",
}
INPUTS = [(["p"], ["p"]), (["p"], ["z"]), (["p", "z"], ["z"]), ([], ["z"]), (["z"], [])]


def tree(body: str) -> PolicyTree:
    return replace(TREE, modules={PurePosixPath("alike/alike.rego"): HEAD.replace("BODY", body)})


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_forms_that_differ_are_refused(body: str) -> None:
    async def run() -> None:
        engine = EmbeddedEngine(1)
        try:
            with pytest.raises(PolicyInvalid) as raised:
                await engine.load(tree(body))
            assert [f.where for f in raised.value.findings if "inside `every`" in f.message] == ["alike/alike.rego:10"]
        finally:
            await engine.close()

    asyncio.run(run())


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_forms_that_are_kept_agree_with_opa(body: str, opa_binary: Path, tmp_path: Path) -> None:
    documents = [{"pool": {"dedicated_to": a}, "tenant": {"certifications": b}} for a, b in INPUTS]

    async def embedded() -> list[bool]:
        engine = EmbeddedEngine(1)
        try:
            await engine.load(tree(body))
            questions = [Question("alike", orjson.dumps(document)) for document in documents]
            answers = await engine.evaluate("sha256:every", questions, 5_000)
            assert [answer.error for answer in answers] == [None] * len(answers)
            return [bool(answer.deny) for answer in answers]
        finally:
            await engine.close()

    module = tmp_path / "every.rego"
    module.write_text(HEAD.replace("BODY", body))
    said = []
    for document in documents:
        command = [opa_binary, "eval", "-d", module, "-I", "data.placement.alike.deny", "-f", "raw"]
        done = subprocess.run(command, input=json.dumps(document), capture_output=True, text=True, check=True)
        said.append(done.stdout.strip() != "[]")
    assert asyncio.run(embedded()) == said
    assert any(said)
    assert not all(said)


def test_a_fault_of_a_late_pass_has_its_place() -> None:
    """The engine finds only late that one name is a set here and an object there; people still get file and line."""

    async def run() -> None:
        engine = EmbeddedEngine(1)
        try:
            mixed = tree('1 == 1\n}\n\ndeny[name] := value if {\n\tname := "a"\n\tvalue := 1')
            with pytest.raises(PolicyInvalid) as raised:
                await engine.load(mixed)
            assert all("rego-" not in finding.message for finding in raised.value.findings)
            assert all(finding.where.startswith("alike/alike.rego:") for finding in raised.value.findings)
        finally:
            await engine.close()

    asyncio.run(run())


@pytest.mark.parametrize("used", [True, False])
def test_the_network_has_no_place_in_any_rule(used: bool) -> None:
    """Also in a rule that nothing asks: found in the text, where the plan does not show it; and told once."""
    body = "called" if used else "1 == 1"
    module = HEAD.replace("BODY", body) + '\ncalled if http.send({"url": input.pool.id}).status_code == 200\n'
    for text in ("# http.send( in a comment is none\n", 'said := "http.send(x)"\n'):
        module += "\n" + text

    async def run() -> None:
        engine = EmbeddedEngine(1)
        try:
            with pytest.raises(PolicyInvalid) as raised:
                await engine.load(replace(TREE, modules={PurePosixPath("alike/alike.rego"): module}))
            told = [f.where for f in raised.value.findings if "http.send" in f.message]
            assert told == ["alike/alike.rego:14"]
        finally:
            await engine.close()

    asyncio.run(run())
