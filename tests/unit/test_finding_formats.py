"""Findings as JUnit, SARIF and GitHub annotations: what others wrote cannot break out of its form."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import orjson

from policyd.cli.finding_formats import Reported, TestCase, github, junit, sarif

ROOT = Path("law")
HOSTILE = 'a "quoted" <b> & 100% ]]>\x00\n::error::forged'
FOUND = [
    Reported("compile", "error", "a/a.rego:7", "is version 0"),
    Reported("rows", "error", "casbin/rows.csv:3", HOSTILE),
    Reported("facts", "warning", "pools.gcp-a.price", "has status assumed"),
]


def test_sarif_names_file_and_line_below_the_root() -> None:
    run = orjson.loads(sarif(FOUND, {"compile": "Compiles"}, ROOT))["runs"][0]
    places = [result.get("locations") for result in run["results"]]
    assert places[0][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "law/a/a.rego"},
        "region": {"startLine": 7},
    }
    assert places[2] is None
    assert run["results"][2]["message"]["text"] == "pools.gcp-a.price: has status assumed"
    assert [result["level"] for result in run["results"]] == ["error", "error", "warning"]


def test_github_gets_one_line_a_finding_whatever_is_in_it() -> None:
    lines = github(FOUND, ROOT).splitlines()
    assert lines[0] == "::error file=law/a/a.rego,line=7,title=compile::is version 0"
    assert len(lines) == 3
    assert "%0A::error::forged" in lines[1]
    assert "100%25" in lines[1]
    assert lines[2].startswith("::warning title=facts::pools.gcp-a.price: ")


def test_junit_is_xml_whatever_a_test_says() -> None:
    cases = [TestCase("one", HOSTILE, "a.rego", HOSTILE, 0.5), TestCase("one", "good"), TestCase("two", "good")]
    root = ElementTree.fromstring(junit(cases))
    assert [(s.get("name"), s.get("tests"), s.get("failures")) for s in root] == [("one", "2", "1"), ("two", "1", "0")]
    failure = root[0][0][0]
    assert failure.text == HOSTILE.replace("\x00", "\ufffd")
