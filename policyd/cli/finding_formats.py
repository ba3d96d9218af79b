"""Findings in the forms that other programs read: JUnit XML, SARIF 2.1.0 and the annotations of GitHub's runners.

Rules: a place is a file and a line, the file below the root that was checked, so that it is found from where the
command ran; every text is escaped for its form, since findings quote what others wrote; no form leaves a finding out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

import orjson

SARIF_SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
_FILES: Final = (".rego", ".yaml", ".yml", ".json", ".csv", ".conf")
"""Ends of the names of files; any other place is a path of names in a document."""
_PLACE: Final = re.compile(r"(?P<file>.+?):(?P<line>[0-9]+)$")
_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Reported:
    """One finding: the check or test that found it, ``error`` or ``warning``, where, and what."""

    rule: str
    level: str
    where: str
    message: str

    def place(self, root: Path) -> tuple[str | None, int]:
        """File and line, when ``where`` names them."""
        found = _PLACE.fullmatch(self.where)
        name, line = (found["file"], int(found["line"])) if found else (self.where, 1)
        path = Path(name)
        if path.suffix not in _FILES:
            return None, 1
        under = path if path.is_relative_to(root) or path.exists() else root / path
        return under.as_posix(), max(1, line)


def sarif(reported: Sequence[Reported], rules: Mapping[str, str], root: Path) -> str:
    """A SARIF log of one run."""
    results = []
    for one in reported:
        file, line = one.place(root)
        text = one.message if file else f"{one.where}: {one.message}" if one.where else one.message
        result: dict[str, Any] = {"ruleId": one.rule, "level": one.level, "message": {"text": text}}
        if file is not None:
            place = {"artifactLocation": {"uri": file}, "region": {"startLine": line}}
            result["locations"] = [{"physicalLocation": place}]
        results.append(result)
    driver = {
        "name": "policyd",
        "rules": [{"id": name, "shortDescription": {"text": text}} for name, text in rules.items()],
    }
    log = {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
    return orjson.dumps(log, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def github(reported: Sequence[Reported], root: Path) -> str:
    """Workflow commands, one a line."""
    lines = []
    for one in reported:
        file, line = one.place(root)
        place = f"file={_property(file)},line={line}," if file is not None else ""
        text = one.message if file else f"{one.where}: {one.message}" if one.where else one.message
        lines.append(f"::{one.level} {place}title={_property(one.rule)}::{_command(text)}\n")
    return "".join(lines)


def _command(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _command(text).replace(":", "%3A").replace(",", "%2C")


@dataclass(frozen=True, slots=True)
class TestCase:
    """One line of a JUnit report; no failure is a pass."""

    __test__ = False

    suite: str
    name: str
    place: str = ""
    failure: str | None = None
    time_s: float = 0.0


def junit(cases: Sequence[TestCase]) -> str:
    """A JUnit report, one suite for each ``suite`` in the order of their first case."""
    suites: dict[str, list[TestCase]] = {}
    for case in cases:
        suites.setdefault(case.suite, []).append(case)
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<testsuites>"]
    for name, members in suites.items():
        failed = sum(case.failure is not None for case in members)
        time_s = sum(case.time_s for case in members)
        lines.append(
            f"<testsuite name={_attribute(name)} tests={_attribute(len(members))} failures={_attribute(failed)} "
            f'errors="0" skipped="0" time={_attribute(f"{time_s:.3f}")}>'
        )
        for case in members:
            head = f"<testcase classname={_attribute(name)} name={_attribute(case.name)} file={_attribute(case.place)} "
            head += f"time={_attribute(f'{case.time_s:.3f}')}"
            if case.failure is None:
                lines.append(f"{head}/>")
            else:
                text = escape(_NO_XML.sub("\ufffd", case.failure))
                lines.append(f"{head}><failure message={_attribute(case.failure)}>{text}</failure></testcase>")
        lines.append("</testsuite>")
    return "\n".join([*lines, "</testsuites>"]) + "\n"


def _attribute(value: object) -> str:
    return quoteattr(_NO_XML.sub("\ufffd", str(value)))
