"""``policyd policy check``: every fault of a tree is found by its check, and the shipped tree has none."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import orjson
import pytest

from policyd.bootstrap import make_engine, make_entitlements
from policyd.cli import failures
from policyd.cli.main import run
from policyd.errors import NotFound, SourceRefused
from policyd.revisions.fleet_files import load_fleet
from policyd.revisions.kept import KeptTrees
from policyd.revisions.named_trees import named_tree
from policyd.revisions.policy_files import SUFFIXES
from policyd.revisions.trees import read_tree
from policyd.services.policy_review import Review, review
from policyd.settings import EngineSettings
from tests.integration.git_server import BareRepository

Change = Callable[[dict[str, str]], None]
RESIDENCY, ROWS = "residency/residency.rego", "casbin/rows.csv"
HELPER = "places := {country | some countries in input.pool.locations; some country in countries}"
AGAIN = """
# METADATA
# title: Says the same again
deny contains violation if {
	input.pool.evidence.expires < input.clock.date
	violation := {"rule": "again", "observed": 1, "required": 2}
}
"""
UNTITLED = AGAIN.replace("# METADATA\n# title: Says the same again\n", "").replace("expires <", "checked <")


def replaced(path: str, old: str, new: str) -> Change:
    def change(files: dict[str, str]) -> None:
        assert old in files[path]
        files[path] = files[path].replace(old, new, 1)

    return change


def added(path: str, text: str) -> Change:
    def change(files: dict[str, str]) -> None:
        files[path] = files.get(path, "") + text

    return change


@pytest.fixture(scope="module")
def few(repository: Path) -> dict[str, str]:
    """One package, its entitlements and settings: enough for every fault, and compiled in no time."""
    tree = read_tree(repository / "policies", SUFFIXES)
    kept = ("residency", "casbin", "settings.yaml")
    return {str(path): content.decode() for path, content in tree.items() if path.parts[0] in kept}


def reviewed(files: dict[str, str], repository: Path) -> Review:
    async def run() -> Review:
        engine = make_engine(EngineSettings(workers=1))
        try:
            content = {Path(path): text.encode() for path, text in files.items()}
            fleet = repository / "examples" / "fleet"
            return await review(content, None, lambda: load_fleet(fleet), engine, make_entitlements, date(2026, 11, 24))  # type: ignore[arg-type] - a path is a path
        finally:
            await engine.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("change", "check", "where", "said"),
    [
        (replaced(RESIDENCY, "evidence_expired", "location_unstated"), "compile", f"{RESIDENCY}:40", "is also used at"),
        (replaced(RESIDENCY, "input.clock.date", "input.clock.moon"), "input", RESIDENCY, "input.clock.moon"),
        (
            replaced(RESIDENCY, HELPER, HELPER + "\n\nspare := 7"),
            "rules",
            f"{RESIDENCY}:54",
            "nothing uses the rule spare",
        ),
        (added(RESIDENCY, AGAIN), "rules", RESIDENCY, "the rule again is shadowed by the one in line"),
        (added(RESIDENCY, UNTITLED), "documented", RESIDENCY, "the rule again has no METADATA title of its own"),
        (replaced(RESIDENCY, "count(foreign) > 0", "upper(foreign) > 0"), "compile", RESIDENCY, "upper"),
        (added(ROWS, "g, tenant:eu-bank, nobodys_role, eu-bank\n"), "entitlements", ROWS, "has no row of its own"),
        (added(ROWS, "p, lonely, *, own-eu, place, allow\n"), "rows", ROWS, "nobody has the role 'lonely'"),
        (added(ROWS, "p, uk, eu-bank, spot-uk, place, allow\n"), "rows", ROWS, "says the same of every tenant"),
        (added(ROWS, "p, uk, eu-bakn, spot-uk, place, allow\n"), "rows", ROWS, "which is no tenant; did you mean"),
        (added(ROWS, "p, uk, *, spot-ku, place, allow\n"), "rows", ROWS, "no pool is of the group 'spot-ku'"),
        (added("cases/x.yaml", "x:\n  - workload: {}\n"), "cases", "cases/x.yaml:2", "a `name`"),
        (lambda files: files.pop(ROWS), "files", ROWS, "is missing"),
    ],
)
def test_each_fault_is_found_by_its_check(
    few: dict[str, str], repository: Path, change: Change, check: str, where: str, said: str
) -> None:
    files = dict(few)
    change(files)
    errors = reviewed(files, repository).errors
    assert [(e.check, said in e.message, e.where.startswith(where)) for e in errors if said in e.message] == [
        (check, True, True)
    ], errors


def test_the_shipped_tree_has_no_error(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    assert run(["policy", "check", "policies", "-o", "json"]) == failures.DONE
    found = orjson.loads(capsys.readouterr().out)
    assert found["findings"] == []
    assert len(found["packages"]) == 9
    assert found["warnings"], "the example fleet says which of its prices are assumed"


def test_findings_end_with_their_code_and_name_the_file_from_here(
    few: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, text in few.items():
        (tmp_path / "law" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "law" / path).write_text(text)
    with (tmp_path / "law" / ROWS).open("a") as file:
        file.write("p, lonely, *, own-eu, place, allow\n")
    assert run(["policy", "check", "law", "-o", "github"]) == failures.FOUND
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("::error"))
    assert line.startswith("::error file=law/casbin/rows.csv,line=")


def test_a_tree_is_found_by_commit_branch_and_digest(
    few: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = BareRepository(tmp_path / "law.git")
    content = {path: text.encode() for path, text in few.items()}
    commit = bare.commit({f"law/{path}": text for path, text in content.items()})
    monkeypatch.chdir(bare.path)
    kept = KeptTrees(tmp_path / "kept")
    found = [named_tree(name, SUFFIXES, kept, "law").tree for name in ("main", f"{commit}:law", commit[:10])]
    assert {tree.commit for tree in found} == {commit}
    kept.keep(found[0], 1)
    assert named_tree(found[0].digest, SUFFIXES, kept, "law").tree.digest == found[1].digest
    for name in ("no-branch", "main:elsewhere", f"sha256:{'0' * 64}"):
        with pytest.raises(NotFound):
            named_tree(name, SUFFIXES, kept, "law")
    blob = next(iter(bare.repo.object_store))
    bare.commit({}, odd={"x.rego": (0o120000, blob)})
    with pytest.raises(SourceRefused, match="a link or a submodule"):
        named_tree("main:", SUFFIXES, kept, "law")
    shutil.rmtree(kept.folder)
