"""Entitlements: deny outweighs, unknown is refused, and no name can change what a row says."""

from __future__ import annotations

import pathlib
import threading
from pathlib import Path

import pytest

from policyd.engines.entitlements import CasbinEntitlements
from policyd.errors import EngineError, PolicyInvalid

MODEL = """
[request_definition]
r = sub, dom, obj, act

[policy_definition]
p = sub, dom, obj, act, eft

[role_definition]
g = _, _, _

[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))

[matchers]
m = r.dom == p.dom && g(r.sub, p.sub, r.dom) && r.act == p.act && r.obj == p.obj
"""
ROWS = """
# who may place where
p, placer, *, own-eu, place, allow
p, placer, *, spot-eu, place, allow
p, tenant:careful, careful, spot-eu, place, deny
p, senior, bank, vault, open, allow
p, local, *, decisions, read, allow
g, tenant:bank, placer, bank
g, tenant:careful, placer, careful
g, tenant:bank, senior, bank
g, senior, placer, bank
"""
DOMAINS = ("bank", "careful")


def build(rows: str = ROWS, model: str = MODEL) -> CasbinEntitlements:
    return CasbinEntitlements.build(model, rows, domains=DOMAINS)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (("tenant:bank", "bank", "own-eu", "place"), True),
        (("tenant:bank", "bank", "spot-eu", "place"), True),
        (("tenant:bank", "bank", "vault", "open"), True),
        (("senior", "bank", "own-eu", "place"), True),
        (("tenant:careful", "careful", "own-eu", "place"), True),
        (("tenant:careful", "careful", "spot-eu", "place"), False),
        (("tenant:careful", "careful", "vault", "open"), False),
        (("tenant:bank", "careful", "own-eu", "place"), False),
        (("tenant:bank", "bank", "own-eu", "view"), False),
        (("tenant:bank", "*", "own-eu", "place"), False),
        (("tenant:bank", "bank", "*", "place"), False),
        (("local", "bank", "decisions", "read"), True),
        (("local", "elsewhere", "decisions", "read"), False),
        (("nobody", "bank", "own-eu", "place"), False),
        (("", "", "", ""), False),
        (("placer", "", "", ""), False),
        (("p.sub", "p.dom", "p.obj", "p.act"), False),
    ],
)
def test_who_may_do_what(asked: tuple[str, str, str, str], answer: bool) -> None:
    entitlements = build()
    assert entitlements.permits(*asked) is answer
    assert entitlements.permits(*asked) is answer


HOSTILE = [
    "a, b",
    'a"b',
    "a\nb",
    "a'b",
    "eval(1)",
    "true",
    "r.sub",
    "True or True",
    "*",
    "a) || (true",
    "\x00",
    "tenant:bank ",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_in_a_request_is_more_than_a_name(name: str) -> None:
    entitlements = build()
    for position in range(4):
        asked = ["tenant:bank", "bank", "own-eu", "place"]
        asked[position] = name
        assert entitlements.permits(*asked) is False
    assert entitlements.permits("tenant:bank", "bank", "own-eu", "place") is True


@pytest.mark.parametrize(
    ("rows", "words", "line"),
    [
        ("p, a, bank, x, place", "a p row has 5 values", 1),
        ("p, a, bank, x, place, allow, more", "a p row has 5 values", 1),
        ("p, a, bank, x, place, permit", "neither allow nor deny", 1),
        ("p, a, bank, x, place, Allow", "neither allow nor deny", 1),
        ("p, , bank, x, place, allow", "is no name", 1),
        ("p, a(b), bank, x, place, allow", "is no name", 1),
        ('p, "a", bank, x, place, allow', "is no name", 1),
        ("p, a*, bank, x, place, allow", "names are exact", 1),
        ("p, *, bank, x, place, allow", "names are exact", 1),
        ("p2, a, bank, x, place, allow", "'p2' is no kind of row", 1),
        ("e, a, bank, x, place, allow", "'e' is no kind of row", 1),
        ("g, a, b", "a g row has 3 values", 1),
        ("g, a, ghost, bank", "'ghost' has no row of its own", 1),
        ("p, a, bank, x, place, allow\np, a, bank, x, place, allow", "the same row stands in line 1", 2),
        ("p, a, bank, x, place, allow\ng, a, b, bank\ng, b, a, bank", "contains itself", 2),
    ],
)
def test_malformed_rows_are_refused_with_their_line(rows: str, words: str, line: int) -> None:
    with pytest.raises(PolicyInvalid) as refused:
        build(rows)
    assert any(
        words in finding.message and finding.where == f"casbin/rows.csv:{line}" for finding in refused.value.findings
    ), [str(finding) for finding in refused.value.findings]


def test_roles_that_casbin_would_cut_off_are_refused() -> None:
    chain = "\n".join(f"g, r{n}, r{n + 1}, bank" for n in range(12))
    with pytest.raises(PolicyInvalid, match="findings") as refused:
        build(f"p, r12, bank, x, place, allow\n{chain}")
    assert "deeper than 9" in str(refused.value.findings[0])


def test_a_chain_of_allowed_length_holds_to_its_end() -> None:
    chain = "\n".join(f"g, r{n}, r{n + 1}, bank" for n in range(8))
    assert build(f"p, r8, bank, x, place, allow\n{chain}").permits("r0", "bank", "x", "place") is True
    denied = f"p, r8, bank, x, place, deny\np, r0, bank, x, place, allow\n{chain}"
    assert build(denied).permits("r0", "bank", "x", "place") is False


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("e = some(where (p.eft == allow)) && !some(where (p.eft == deny))", "e = some(where (p.eft == allow))"),
        ("r.dom == p.dom && ", ""),
        ("r.obj == p.obj", "keyMatch(r.obj, p.obj)"),
        ("r.obj == p.obj", "r.obj == p.obj || true"),
        ("r.obj == p.obj", "eval(p.obj)"),
        ("p = sub, dom, obj, act, eft", "p = sub, dom, obj, act"),
        ("g = _, _, _", "g = _, _"),
        ("[role_definition]\ng = _, _, _\n", ""),
        ("[matchers]", "[matchers]\nm2 = true"),
        ("[matchers]", "[extras]\nx = 1\n[matchers]"),
    ],
)
def test_a_model_of_another_meaning_is_refused(old: str, new: str) -> None:
    assert old in MODEL
    with pytest.raises(PolicyInvalid) as refused:
        build(model=MODEL.replace(old, new))
    assert all(finding.where.startswith("casbin/model.conf:") for finding in refused.value.findings)


def test_the_digest_names_the_rows_as_they_apply() -> None:
    assert build().digest == build(ROWS + "\n# a remark\n").digest
    assert build().digest != build(ROWS + "p, local, bank, decisions, decide, allow\n").digest
    assert build().digest != CasbinEntitlements.build(MODEL, ROWS, domains=("bank",)).digest


def test_an_error_is_no_answer_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    entitlements = build()
    asked = ("tenant:bank", "bank", "own-eu", "place")
    real = entitlements._enforcer.enforce

    def breaks(*_: str) -> bool:
        raise RuntimeError("broken inside")

    with monkeypatch.context() as patch:
        patch.setattr(entitlements._enforcer, "enforce", breaks)
        with pytest.raises(EngineError, match="broken inside"):
            entitlements.permits(*asked)
        patch.setattr(entitlements._enforcer, "enforce", lambda *_: "yes")
        with pytest.raises(EngineError, match="'yes'"):
            entitlements.permits(*asked)
    assert real(*asked) is True
    assert entitlements.permits(*asked) is True
    assert entitlements.permits("tenant:careful", "careful", "spot-eu", "place") is False


def test_an_error_inside_casbin_leaves_its_index_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    entitlements = build()
    roles = entitlements._enforcer.get_role_manager()

    def breaks(*_: str) -> bool:
        raise RuntimeError("no roles today")

    with monkeypatch.context() as patch:
        patch.setattr(type(roles), "has_link", breaks)
        with pytest.raises(EngineError):
            entitlements.permits("tenant:careful", "careful", "spot-eu", "place")
    assert entitlements.permits("tenant:careful", "careful", "spot-eu", "place") is False
    assert entitlements.permits("tenant:bank", "bank", "own-eu", "place") is True


def test_many_threads_get_the_answers_of_one() -> None:
    entitlements = build()
    asked = [("tenant:bank", "bank", "own-eu", "place"), ("tenant:careful", "careful", "spot-eu", "place")] * 50
    wrong: list[tuple[str, str, str, str]] = []

    def ask() -> None:
        for question in asked:
            entitlements._memo.clear()
            if entitlements.permits(*question) is not (question[0] == "tenant:bank"):
                wrong.append(question)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_names_that_nobody_wrote_are_not_remembered() -> None:
    entitlements = build()
    for number in range(1000):
        entitlements.permits(f"stranger{number}", "bank", "own-eu", "place")
        entitlements.permits("tenant:bank", "bank", f"thing{number}", "place")
    assert entitlements._memo == {}


def test_the_shipped_rows_hold(repository: Path) -> None:
    folder: pathlib.Path = repository / "policies" / "casbin"
    model, rows = (folder / "model.conf").read_text(), (folder / "rows.csv").read_text()
    entitlements = CasbinEntitlements.build(model, rows, domains=("eu-bank", "globex-saas"))
    assert entitlements.permits("tenant:eu-bank", "eu-bank", "own-eu", "place") is True
    assert entitlements.permits("tenant:globex-saas", "globex-saas", "neocloud-global", "place") is False
    assert entitlements.permits("tenant:eu-bank", "globex-saas", "own-eu", "place") is False
