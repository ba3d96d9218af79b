"""OWNERS: who must approve a change of which files, as the tree that serves says it.

    # the last line that matches a file decides      pattern [how many] persons
    *                1 ana@example.org ben@example.org
    /casbin/         2 ana@example.org ben@example.org cleo@example.org
    /cases/**/*.yaml 0

Rules: one file, ``OWNERS``, at the root of a tree; patterns are those of ``.gitignore`` without ``!``: a slash ties one
to the root, ``*`` stays in its folder, ``**`` does not, a folder means all below it. Persons are principals of the
allowed signers; none named means any of them. Without a number one approval is needed, and a file that no line matches
needs one by anybody. The OWNERS of the live tree decides about a candidate; the candidate's own must be sound, for it
is next.

Refused, with the line at fault: patterns of other forms, a number beyond the persons named, a second OWNERS below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from policyd.errors import Finding, RevisionError

OWNERS: Final = PurePosixPath("OWNERS")
FILE_MAX_BYTES: Final = 262_144
RULES_MAX: Final = 1_000
PATTERN_MAX_CHARS: Final = 256
STARS_MAX: Final = 4
"""Runs of stars in one pattern, so that none takes long to match."""
COUNT_MAX: Final = 9
_PATTERN: Final = re.compile(r"[A-Za-z0-9._/*?@+=,-]+")
_PERSON: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+@/:=-]{0,255}")


@dataclass(frozen=True, slots=True)
class Need:
    """So many approvals by these persons; by anybody when none is named. ``line`` of OWNERS says so; 0 is no line."""

    count: int
    persons: tuple[str, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Owners:
    """A whole file, as patterns and what they need; None is a tree that has no such file, and needs nothing."""

    rules: tuple[tuple[re.Pattern[str], Need], ...] | None

    def need(self, path: PurePosixPath) -> Need:
        """What a change of this file needs."""
        if self.rules is None:
            return Need(0, (), 0)
        matching = [need for pattern, need in self.rules if pattern.fullmatch(str(path))]
        return matching[-1] if matching else Need(1, (), 0)


NO_OWNERS: Final = Owners(None)


def owners_of(files: Mapping[PurePosixPath, bytes]) -> Owners:
    """What the OWNERS of a tree says. Raises ``RevisionError`` with a finding for each line at fault."""
    owners, findings = read_owners(files)
    if findings:
        raise RevisionError(f"OWNERS cannot be used: {findings[0]}", findings=findings)
    return owners


def read_owners(files: Mapping[PurePosixPath, bytes]) -> tuple[Owners, list[Finding]]:
    """What the OWNERS of a tree says, and what is wrong with it."""
    findings = [
        Finding(str(path), "OWNERS stands at the root of the tree only; put its lines there")
        for path in files
        if path.name == OWNERS.name and path != OWNERS
    ]
    if OWNERS not in files:
        return NO_OWNERS, findings
    rules, found = _rules(files[OWNERS])
    return Owners(rules), [*findings, *found]


def _rules(content: bytes) -> tuple[tuple[tuple[re.Pattern[str], Need], ...], list[Finding]]:
    if len(content) > FILE_MAX_BYTES:
        return (), [Finding(str(OWNERS), f"is larger than {FILE_MAX_BYTES} bytes")]
    rules: list[tuple[re.Pattern[str], Need]] = []
    findings: list[Finding] = []
    for number, raw in enumerate(content.replace(b"\r\n", b"\n").split(b"\n"), 1):
        try:
            line = raw.decode("ascii").replace("\t", " ").strip(" ")
            if not line.isprintable():
                raise ValueError("holds a control character")
            if line and not line.startswith("#"):
                rules.append(_rule(line.split(" "), number))
        except UnicodeDecodeError:
            findings.append(Finding(f"{OWNERS}:{number}", "is no ASCII"))
        except ValueError as error:
            findings.append(Finding(f"{OWNERS}:{number}", str(error)))
    if len(rules) > RULES_MAX:
        findings.append(Finding(str(OWNERS), f"has more than {RULES_MAX} lines"))
    return tuple(rules), findings


def _rule(words: list[str], line: int) -> tuple[re.Pattern[str], Need]:
    pattern, *rest = [word for word in words if word]
    count = 1
    if rest and rest[0].isdigit():
        if len(rest[0]) > 1 or int(rest[0]) > COUNT_MAX:
            raise ValueError(f"asks for more than {COUNT_MAX} approvals")
        count, rest = int(rest[0]), rest[1:]
    elif not rest:
        raise ValueError("names neither persons nor how many must approve; `0` says that nobody must")
    persons = tuple(dict.fromkeys(rest))
    for person in persons:
        if not _PERSON.fullmatch(person):
            raise ValueError(f"{person!r} is no principal, such as ana@example.org")
    if persons and count > len(persons):
        raise ValueError(f"asks for {count} approvals of {len(persons)} person{'s' if len(persons) > 1 else ''}")
    return _compiled(pattern), Need(count, persons, line)


def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern as an expression over the whole path."""
    if not _PATTERN.fullmatch(pattern) or len(pattern) > PATTERN_MAX_CHARS or "***" in pattern or "//" in pattern:
        raise ValueError(f"{pattern[:80]!r} is no pattern that is understood here")
    if len(re.findall(r"\*+", pattern)) > STARS_MAX:
        raise ValueError(f"{pattern!r} has more than {STARS_MAX} stars")
    inner = pattern.strip("/")
    if not inner:
        raise ValueError("`/` alone matches no file; `*` matches all of them")
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|[^*?]+", inner)
    middle = "".join(_TOKENS.get(token) or re.escape(token) for token in tokens)
    above = "" if "/" in pattern.rstrip("/") else "(?:.*/)?"
    return re.compile(above + middle + ("/.*" if pattern.endswith("/") else "(?:/.*)?"))


_TOKENS: Final = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
