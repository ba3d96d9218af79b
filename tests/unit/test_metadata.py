"""METADATA, rule ids and places, read from text that tries to mislead."""

from __future__ import annotations

import pytest

from policyd.core.verdict import Enforcement
from policyd.engines.metadata import PackageDoc, describe
from policyd.engines.source import read_source, syntax_findings

HEAD = """# METADATA
# title: Data stays
# description: |
#   Two lines,
#   of prose.
# custom:
#   enforcement: hard
#   owner: data-protection
#   remedy: choose another pool
#   optional: [pool.commitment, input.pool.evidence.expires]
package placement.residency

"""


def read(text: str) -> tuple[PackageDoc | None, list[str]]:
    doc, findings = describe("residency.rego", read_source(text))
    return doc, [str(finding) for finding in findings]


def test_a_described_package_is_read_whole() -> None:
    doc, findings = read(HEAD + 'deny contains {"rule": "far"} if input.pool.x\n')
    assert findings == []
    assert doc is not None
    assert (doc.name, doc.title, doc.enforcement, doc.owner) == (
        "residency",
        "Data stays",
        Enforcement.HARD,
        "data-protection",
    )
    assert doc.optional == {("pool", "commitment"), ("pool", "evidence", "expires")}
    assert doc.exports == {"deny"}
    assert doc.rules["far"].location == "residency.rego:13"
    assert doc.rules["far"].remedy == "choose another pool"


def test_a_rule_may_weigh_differently_and_keeps_what_it_does_not_say() -> None:
    body = '# METADATA\n# custom:\n#   enforcement: soft\ndeny contains v if {\n\tv := {"rule": "far"}\n}\n'
    doc, findings = read(HEAD + body)
    assert findings == []
    assert doc is not None
    assert doc.rules["far"].enforcement is Enforcement.SOFT
    assert doc.rules["far"].title == "Data stays"
    assert doc.rules["far"].location == "residency.rego:16"


def test_warnings_are_advisory_whatever_the_package_is() -> None:
    doc, findings = read(HEAD + 'warn contains {"rule": "soon"} if input.pool.x\n')
    assert findings == []
    assert doc is not None
    assert doc.rules["soon"].enforcement is Enforcement.ADVISORY
    _, findings = read(
        HEAD + '# METADATA\n# custom: {enforcement: hard}\nwarn contains {"rule": "soon"} if input.pool.x\n'
    )
    assert findings == ["residency.rego:15: a warn rule is advisory; write deny for a rule that refuses"]


def test_rules_in_strings_and_comments_are_no_rules() -> None:
    body = (
        'deny contains {"rule": "real", "observed": text} if {\n'
        '\ttext := "deny contains {\\"rule\\": \\"fake\\"} if"  # deny contains {"rule": "comment"}\n'
        '\traw := `\ndeny contains {"rule": "raw"} if true\n`\n\traw\n}\n# METADATA of no kind\n'
    )
    doc, findings = read(HEAD + body)
    assert findings == []
    assert doc is not None
    assert set(doc.rules) == {"real"}
    assert doc.exports == {"deny"}


@pytest.mark.parametrize("missing", ["title", "enforcement", "owner", "remedy"])
def test_each_text_of_a_package_is_required(missing: str) -> None:
    text = "\n".join(line for line in HEAD.splitlines() if f" {missing}:" not in line)
    _, findings = read(text + '\ndeny contains {"rule": "a"} if input.pool.x\n')
    place = missing if missing == "title" else f"custom.{missing}"
    assert [finding for finding in findings if f"no {place}" in finding]
    assert findings[0].startswith("residency.rego:10: ")


FAULTS = {
    'deny contains {"rule": name} if name := input.pool.x\n': "rego:13: this deny rule has no literal rule id",
    'deny contains v if {\n\tv := {"observed": 1}\n}\n': "rego:13: this deny rule has no literal rule id",
    'deny contains {"rule": "a"} if input.pool.x\n\nwarn contains {"rule": "a"} if input.pool.y\n': (
        "residency.rego:15: the rule id 'a' is also used at residency.rego:13"
    ),
    '# METADATA\n# custom: {enforcment: soft}\ndeny contains {"rule": "a"} if input.pool.x\n': (
        "residency.rego:13: the METADATA has an unknown key custom.enforcment; did you mean custom.enforcement?"
    ),
    '# METADATA\n# titel: x\ndeny contains {"rule": "a"} if input.pool.x\n': "did you mean title?",
    '# METADATA\n# custom: {enforcement: harsh}\ndeny contains {"rule": "a"} if input.pool.x\n': "is one of hard, soft",
    '# METADATA\n# title: [\ndeny contains {"rule": "a"} if input.pool.x\n': "rego:14: the METADATA: not YAML",
    '# METADATA\n# title: x\n\ndeny contains {"rule": "a"} if input.pool.x\n': "stands above neither",
    "helper := 1\n": "the package exports none",
}


@pytest.mark.parametrize("body", FAULTS)
def test_every_fault_has_its_place(body: str) -> None:
    _, findings = read(HEAD + body)
    assert any(FAULTS[body] in finding for finding in findings), findings


def test_a_wrong_enforcement_weighs_hard_until_it_is_mended() -> None:
    doc, _ = read(HEAD.replace("enforcement: hard", "enforcement: sofd") + 'deny contains {"rule": "a"} if input.x\n')
    assert doc is not None
    assert doc.rules["a"].enforcement is Enforcement.HARD


def test_libraries_need_no_description() -> None:
    assert read("package lib.places\n\nf(x) := x\n") == (None, [])


VERSION_1 = [
    "x if { true }",
    "x := 1 if { true }",
    "x := {1} if { true }",
    "x := {k: v | some k, v in input.o}",
    "x contains {1, 2} if { true }",
    "x if {\n\ttrue\n} else if {\n\tfalse\n}",
    "x := 1 if {\n\ttrue\n} else := {2} if {\n\tfalse\n}",
    "x if every y in input.l { y > 1 }",
    "default x := {1}",
    "x contains y if some y in {1, 2}",
    "x := [y | y := {1}][0]",
    'x if "{" == "}"',
    "x if 1 in {1}",
    "x := f({1}) if true\n\nf(y) := y",
    "x if\n{\n\ttrue\n}",
]
VERSION_0 = [
    "x { true }",
    "x = 1 { true }",
    "x[y] { y := 1 }",
    "f(y) { y }",
    "x contains y { y := 1 }",
    "x := 1 { true } else := 2 if { false }",
    "x if { true } { false }",
    "x := 1 if { true } else := 2 { false }",
]


@pytest.mark.parametrize("rule", VERSION_1)
def test_rules_of_version_1_pass(rule: str) -> None:
    assert syntax_findings("a.rego", read_source(f"package placement.a\n\n{rule}\n")) == []


@pytest.mark.parametrize("rule", VERSION_0)
def test_rules_of_version_0_are_found(rule: str) -> None:
    findings = syntax_findings("a.rego", read_source(f"package placement.a\n\n{rule}\n"))
    assert [finding.where for finding in findings] == ["a.rego:3"]
    assert "version 0" in findings[0].message
