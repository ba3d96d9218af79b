"""OWNERS: which line decides about a file, and every line that is refused."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from policyd.errors import FleetInvalid, PolicyInvalid, RevisionError
from policyd.revisions.fleet_files import parse_fleet
from policyd.revisions.owners import NO_OWNERS, OWNERS, Need, Owners, owners_of
from policyd.revisions.policy_files import policy_tree

ANA, BEN = "ana@example.org", "ben@example.org"


def _owners(text: str) -> Owners:
    return owners_of({OWNERS: text.encode()})


def test_the_last_line_that_matches_decides() -> None:
    owners = _owners(
        f"# who\r\n*\t1 {ANA} {BEN}\r\n\n/casbin/ 2 {ANA} {BEN}\n/cases/**/*.yaml 0\nsettings.yaml {BEN}\n"
    )
    for path, need in {
        "residency/residency.rego": Need(1, (ANA, BEN), 2),
        "casbin/rows.csv": Need(2, (ANA, BEN), 4),
        "cases/a.yaml": Need(0, (), 5),
        "cases/deep/er/a.yaml": Need(0, (), 5),
        "cases/a.json": Need(1, (ANA, BEN), 2),
        "settings.yaml": Need(1, (BEN,), 6),
        "deep/settings.yaml": Need(1, (BEN,), 6),
        "OWNERS": Need(1, (ANA, BEN), 2),
    }.items():
        assert owners.need(PurePosixPath(path)) == need, path


def test_a_file_that_no_line_matches_needs_somebody_and_no_owners_need_nobody() -> None:
    assert _owners(f"/a/ {ANA}\n").need(PurePosixPath("b/c.rego")) == Need(1, (), 0)
    assert _owners("").need(PurePosixPath("b/c.rego")) == Need(1, (), 0)
    assert owners_of({PurePosixPath("a.rego"): b""}) == NO_OWNERS
    assert NO_OWNERS.need(PurePosixPath("a.rego")) == Need(0, (), 0)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("a", "a", True),
        ("a", "x/a", True),
        ("a", "x/a/y.rego", True),
        ("a", "xa", False),
        ("/a", "a/y.rego", True),
        ("/a", "x/a", False),
        ("a/", "a", False),
        ("a/", "x/a/y", True),
        ("a/b", "a/b", True),
        ("a/b", "x/a/b", False),
        ("*.rego", "x/y.rego", True),
        ("/*.rego", "x/y.rego", False),
        ("/*.rego", "y.rego", True),
        ("/a/*", "a/b", True),
        ("/a/*", "a/b/c", True),
        ("/a/**/z", "a/z", True),
        ("/a/**/z", "a/b/c/z", True),
        ("**", "a/b", True),
        ("?.rego", "x/a.rego", True),
        ("?.rego", "ab.rego", False),
        ("a+b.rego", "a+b.rego", True),
        ("a+b.rego", "aab.rego", False),
    ],
)
def test_patterns_are_those_of_gitignore(pattern: str, path: str, matches: bool) -> None:
    assert (_owners(f"{pattern} 0\n").need(PurePosixPath(path)).count == 0) is matches


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("*", "names neither persons nor how many"),
        (f"* 3 {ANA} {BEN}", "asks for 3 approvals of 2 persons"),
        (f"* 2 {ANA} {ANA}", "asks for 2 approvals of 1 person"),
        (f"* 10 {ANA}", "asks for more than 9"),
        ("* *@example.org", "is no principal"),
        (f"!a {ANA}", "no pattern that is understood"),
        (f"[ab] {ANA}", "no pattern that is understood"),
        (f"a//b {ANA}", "no pattern that is understood"),
        (f"a***b {ANA}", "no pattern that is understood"),
        (f"/ {ANA}", "alone matches no file"),
        (f"*a*b*c*d*e {ANA}", "more than 4 stars"),
        (f"{'a' * 300} {ANA}", "no pattern"),
        ("* änn@example.org", "no ASCII"),
        (f"* {ANA}\rben@example.org", "control character"),
    ],
)
def test_a_line_at_fault_is_named(line: str, said: str) -> None:
    with pytest.raises(RevisionError, match=said) as caught:
        _owners(f"# first\n{line}\n")
    assert caught.value.findings[0].where == "OWNERS:2"


def test_one_file_at_the_root_of_a_size() -> None:
    with pytest.raises(RevisionError, match="stands at the root of the tree only"):
        owners_of({PurePosixPath("casbin/OWNERS"): b"* 0\n"})
    with pytest.raises(RevisionError, match="larger than"):
        _owners("#" * 300_000)
    with pytest.raises(RevisionError, match="more than 1000 lines"):
        _owners("* 0\n" * 1_001)


def test_a_tree_with_a_broken_file_is_none() -> None:
    broken = {OWNERS: b"*\n"}
    with pytest.raises(FleetInvalid, match=r"OWNERS:1: names neither persons"):
        parse_fleet({**broken, PurePosixPath("fleet.yaml"): b"pools: []\n"})
    with pytest.raises(FleetInvalid, match="stands alone"):
        parse_fleet({OWNERS: b"* 0\n"})
    casbin = {PurePosixPath(f"casbin/{name}"): b"" for name in ("model.conf", "rows.csv")}
    files = {**casbin, PurePosixPath("a/a.rego"): b"package a\n"}
    with pytest.raises(PolicyInvalid, match=r"OWNERS:1: names neither persons"):
        policy_tree({**files, **broken}, None)
    sound = policy_tree({**files, OWNERS: b"* 0\n"}, None)
    assert sound.digest != policy_tree(files, None).digest
    assert not sound.data
