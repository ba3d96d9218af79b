"""A rule that refuses is never lost between source and engine: it is asked, or the tree does not go live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import PurePosixPath

import pytest

from policyd.core.assemble import _Found, _spread
from policyd.core.verdict import Question
from policyd.engines.compiler import prepare
from policyd.engines.embedded import EmbeddedEngine
from policyd.engines.opa import OpaEngine
from policyd.errors import PolicyInvalid
from policyd.ports import Engine, PolicyTree

HEAD = """# METADATA
# title: Lost
# custom: {enforcement: hard, owner: tests, remedy: none}
package placement.lost

"""
MILD = """# METADATA
# custom: {enforcement: advisory}
deny contains {"rule": "mild", "observed": 1} if input.pool.kind == "never"
"""
DENY = 'deny contains {"rule": "refuses", "observed": 1} if input.pool.kind == "spot"\n'
OTHER = 'deny contains {"rule": "other", "observed": 1} if input.pool.kind == "never"\n'
WARN = 'warn contains {"rule": "warns", "observed": 1} if input.pool.kind == "spot"\n'
WARN_OF_SETTING = 'warn contains {"rule": "warns", "observed": 1} if input.pool.kind == data.settings.default\n'
SETTINGS = {PurePosixPath("settings.yaml"): "settings: {default: spot, words: {in: spot, contains: spot}}\n"}

BODIES = {
    "after an import of a keyword": "import future.keywords.contains\n\n" + DENY + WARN,
    "after an import of in": "import future.keywords.in\n\n" + DENY + WARN,
    "after a field called default": WARN + "setting := data.settings.default\n" + DENY,
    "after a field called in": WARN + "setting := data.settings.words.in\n" + DENY,
    "after a warning, beside another deny": OTHER + WARN_OF_SETTING + DENY,
    "on the line of another rule": WARN.strip() + "; " + DENY,
    "on the line of a warning, beside another deny": OTHER + WARN.strip() + "; " + DENY,
    "between two backticks": WARN + 'x := $`{"`"}`\n' + DENY + 'y := "`"\n',
    "after a text with a bracket in a text": MILD + 'unused := $"{f("[")}"\n\nf(x) := x\n\n' + DENY,
    "under another head": WARN + "data.placement.lost." + DENY,
    "made of a warning": WARN
    + 'deny contains violation if {\n\tsome violation in warn\n\tviolation != {"rule": "unused"}\n}\n',
}
ENGINES: dict[str, Callable[[str], Engine]] = {"embedded": lambda _: EmbeddedEngine(1), "opa": OpaEngine.child}


@pytest.mark.parametrize("engine_name", ENGINES)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_rule_that_refuses_is_heard(body: str, engine_name: str, request: pytest.FixtureRequest) -> None:
    binary = str(request.getfixturevalue("opa_binary")) if engine_name == "opa" else ""
    assert asyncio.run(blocks(ENGINES[engine_name](binary), body))


async def blocks(engine: Engine, body: str) -> bool:
    """Whether the body refuses the one pool, or is itself refused. Blocking, as ``assemble`` sees it."""
    tree = PolicyTree("sha256:lost", None, {PurePosixPath("lost/lost.rego"): HEAD + body}, {}, SETTINGS, "", "")
    try:
        package = (await engine.load(tree)).packages["lost"]
        [answer] = await engine.evaluate(tree.digest, [Question("lost", b'{"pool":{"kind":"spot"}}')], 5_000)
    except PolicyInvalid:
        return True
    finally:
        await engine.close()
    pool = _Found([], [], [])
    _spread(package, answer, [pool])
    return bool(pool.reasons)


def test_a_rule_in_a_test_file_is_a_finding() -> None:
    tests = {PurePosixPath("pen_test.rego"): HEAD.replace("lost", "pen_test") + DENY}
    tree = PolicyTree("sha256:pen", None, {PurePosixPath("lost.rego"): HEAD + WARN}, tests, {}, "", "")
    assert [str(f).split(" in ")[0] for f in prepare(tree).findings] == ["pen_test.rego:6: deny"]


def test_a_rule_after_a_field_called_like_a_keyword_keeps_its_place() -> None:
    body = WARN + "setting := data.settings.default\n" + DENY
    tree = PolicyTree("sha256:lost", None, {PurePosixPath("lost/lost.rego"): HEAD + body}, {}, SETTINGS, "", "")

    async def run() -> None:
        engine = EmbeddedEngine(1)
        try:
            package = (await engine.load(tree)).packages["lost"]
            assert package.exports == {"deny", "warn"}
            assert package.rules["refuses"].location == "lost/lost.rego:8"
            assert package.rules["refuses"].enforcement == "hard"
        finally:
            await engine.close()

    asyncio.run(run())
