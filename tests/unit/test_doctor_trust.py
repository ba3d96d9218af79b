"""What the doctor says of the allowed signers."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519

from policyd.revisions import sshsig
from policyd.services.doctor import Health
from policyd.services.doctor_trust import check_signers
from policyd.settings import Settings

NOW_US = 1_764_000_000_000_000  # 2025-11-24
GIT = {"policies": {"kind": "git", "location": "https://git.example.org/law.git"}}


def _line(person: str, options: str = "") -> str:
    key = base64.b64encode(sshsig._written(ed25519.Ed25519PrivateKey.generate())).decode()
    return f"{person}@example.org {options} ssh-ed25519 {key}\n"


def _said(**settings: Any) -> list[tuple[Health, str]]:
    checks = check_signers(Settings.model_validate(settings), lambda: NOW_US)
    assert all(check.part == "signers" for check in checks)
    assert all(check.remedy for check in checks if check.health is not Health.OK)
    return [(check.health, check.detail) for check in checks]


def test_without_signers_a_source_is_believed_and_that_is_told() -> None:
    assert _said() == [(Health.OK, "none are named, and no source is followed")]
    ((health, said),) = _said(sources=GIT)
    assert health is Health.WARN
    assert "whoever can push to a source is believed" in said


def test_a_file_that_cannot_be_used_fails(tmp_path: Path) -> None:
    path = tmp_path / "signers"
    revisions = {"allowed_signers_file": path}
    assert _said(revisions=revisions)[0][0] is Health.FAIL
    path.write_text("nobody\n")
    assert "signers:1" in _said(revisions=revisions)[0][1]
    path.write_text("".join(map(_line, ("ana", "ben", "cleo"))))
    assert _said(revisions=revisions) == [(Health.OK, f"3 keys of 3 persons in {path}")]


def test_what_will_be_in_the_way_is_told_before(tmp_path: Path) -> None:
    path = tmp_path / "signers"
    path.write_text(_line("ana", "valid-before=20251201Z") + _line("ana", "valid-before=20250101Z"))
    revisions = {"allowed_signers_file": path}
    assert _said(revisions=revisions, sources=GIT)[1:] == [
        (Health.WARN, "a key of ana@example.org expires on 2025-12-01"),
        (Health.WARN, "a key of ana@example.org has expired on 2025-01-01"),
        (Health.WARN, "1 persons may sign"),
    ]
