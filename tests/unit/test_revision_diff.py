"""What changed between two revisions is told by rule, row and field."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from policyd.bootstrap import shipped
from policyd.cli.main import run
from policyd.revisions.policy_files import load_policy_tree
from policyd.services.revision_diff import policy_changes


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_rules_enforcement_data_and_rows_are_told_apart(tmp_path: Path) -> None:
    tree = tmp_path / "policies"
    shutil.copytree(shipped("policies"), tree)
    residency = tree / "residency" / "residency.rego"
    edited(residency, "count(foreign) > 0\n", "count(foreign) > 1\n")
    edited(residency, "enforcement: hard", "enforcement: soft")
    rows = tree / "casbin" / "rows.csv"
    rows.write_text(rows.read_text(encoding="utf-8") + "\np, nobody, *, decisions, read, allow\n", encoding="utf-8")
    found = policy_changes(load_policy_tree(shipped("policies")), load_policy_tree(tree))
    told = {(each.what, each.name, each.how, each.field) for each in found}
    rule = "residency.location_not_permitted"
    assert {("rule", rule, "changed", "code"), ("rule", rule, "changed", "enforcement")} <= told
    assert ("entitlement", "p, nobody, *, decisions, read, allow", "added", "") in told
    assert all(name.startswith("residency.") for what, name, *_ in told if what == "rule")


def test_comments_and_blanks_are_no_change(tmp_path: Path) -> None:
    tree = tmp_path / "policies"
    shutil.copytree(shipped("policies"), tree)
    edited(tree / "residency" / "residency.rego", "count(foreign) > 0\n", "count(foreign)  >  0 # some\n")
    assert policy_changes(load_policy_tree(shipped("policies")), load_policy_tree(tree)) == []


def test_a_fleet_is_told_by_the_field_of_the_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = tmp_path / "fleet"
    shutil.copytree(shipped("fleet"), fleet)
    edited(fleet / "pools-own.yaml", "id: onprem-fra-a100", "id: onprem-fra-other")
    edited(fleet / "pools-own.yaml", "processing: [FR]", "processing: [US]")
    assert run(["policy", "diff", str(shipped("fleet")), str(fleet), "--kind", "fleet", "-o", "json"]) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert {"what": "pool", "name": "onprem-fra-a100", "how": "removed"} in changes
    assert {"what": "pool", "name": "onprem-fra-other", "how": "added"} in changes
    moved = [each for each in changes if each["how"] == "changed"]
    assert {(each["field"], each["before"], each["after"]) for each in moved} == {
        ("locations.processing", '["FR"]', '["US"]')
    }


def test_a_revision_that_nobody_has_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "diff", "no-such-commit", str(shipped("policies"))]) == 1
    assert "no file or folder" in capsys.readouterr().err
