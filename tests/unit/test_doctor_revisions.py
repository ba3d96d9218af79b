"""What the doctor says of revisions: what is newer than what is live, why it does not serve, and whose turn it is."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policyd.revisions.states import Revision
from policyd.services.data_directory import DataDirectory
from policyd.services.doctor import Health
from policyd.services.doctor_revisions import check_revisions, told
from policyd.services.log_place import directory_of
from policyd.settings import Settings, load_settings

LIVE = Revision("policy", "sha256:1", "1" * 40, "b", "live", "activate", "", (), False, 1, 10, 10, 3)
NEW = replace(LIVE, digest="sha256:2", commit="2" * 40, since_us=20, served_us=0)


def gate(name: str, *, passed: bool = False) -> dict[str, Any]:
    return {"gate": name, "passed": passed, "said": "x", "findings": [], "findings_total": 0, "details": {}}


@pytest.mark.parametrize(
    ("changes", "health", "said", "remedy"),
    [
        ({"state": "refused", "gates": (gate("check"),), "said": "check: 1 errors"}, Health.WARN, "1 errors", "mend"),
        ({"state": "refused", "gates": (gate("impact"),)}, Health.WARN, "is refused", "max_flips_ppm"),
        ({"state": "refused", "gates": (gate("signature"),)}, Health.WARN, "is refused", "signed"),
        ({"state": "refused", "verb": "rollback"}, Health.WARN, "is refused", "policyd policy activate 22"),
        ({"state": "waiting", "gates": (gate("approval"),)}, Health.WARN, "is waiting", "policyd policy approve"),
        ({"state": "waiting", "gates": (gate("check", passed=True),)}, Health.OK, "is waiting", "policy activate 22"),
        ({"state": "candidate"}, Health.OK, "is candidate", ""),
        ({"state": "retired"}, Health.OK, "1 is live", ""),
        ({"state": "refused", "since_us": 5}, Health.OK, "1 is live", ""),
        ({"state": "refused", "kind": "fleet"}, Health.OK, "1 is live", ""),
    ],
)
def test_the_newest_that_does_not_serve_is_told_with_what_to_do(
    changes: dict[str, Any], health: Health, said: str, remedy: str
) -> None:
    check = told([replace(NEW, **changes), LIVE], "policy")
    assert (check.part, check.health) == ("revisions", health)
    assert said in check.detail
    assert remedy in check.remedy


def test_nothing_live_is_a_failure() -> None:
    assert told([], "policy").health is Health.FAIL
    check = told([replace(NEW, state="refused", gates=(gate("tests"),), said="tests: 2 failed")], "policy")
    assert check.health is Health.FAIL
    assert "tests: 2 failed" in check.detail


def test_without_a_source_or_a_log_there_is_nothing_to_tell(tmp_path: Path) -> None:
    plain = load_settings(environment={}, flags={"data_dir": tmp_path})
    assert asyncio.run(check_revisions(plain, directory_of(plain))) == []
    followed = {"sources": {"policies": {"kind": "directory", "location": str(tmp_path)}}}
    settings: Settings = load_settings(environment={}, flags={"data_dir": tmp_path, **followed})
    directory: DataDirectory = directory_of(settings)
    assert asyncio.run(check_revisions(settings, directory)) == []
    directory.store.path.write_bytes(b"no database at all, whatever its name says" * 100)  # type: ignore[attr-defined]
    (check,) = asyncio.run(check_revisions(settings, directory))
    assert (check.health, check.part) == (Health.WARN, "revisions")
