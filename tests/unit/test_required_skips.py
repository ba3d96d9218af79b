"""The rules of ``tests/conftest.py`` hold: a required thing cannot be skipped, and slow tests wait for ``--long``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPS_IN_A_TEST = "import pytest\ndef test_something():\n    pytest.skip('{reason}')\n"
SKIPS_A_MODULE = "import pytest\npytest.skip('{reason}', allow_module_level=True)\n"
SKIPS_IN_A_FIXTURE = (
    "import pytest\n@pytest.fixture\ndef engine():\n    pytest.skip('{reason}')\n"
    "def test_something(engine):\n    pass\n"
)
ONE_SLOW_ONE_FAST = "import pytest\n@pytest.mark.long\ndef test_slow(): pass\ndef test_fast(): pass\n"


def run(folder: Path, source: str, *arguments: str, require: str = "") -> subprocess.CompletedProcess[str]:
    """Run pytest on one file with this repository's conftest."""
    shutil.copy(Path(__file__).parent.parent / "conftest.py", folder / "conftest.py")
    (folder / "test_sample.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = long: slow\n")
    environment = {**os.environ, "POLICYD_REQUIRE": require, "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, str(folder)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=120, check=False
    )


@pytest.mark.parametrize("source", [SKIPS_IN_A_TEST, SKIPS_A_MODULE, SKIPS_IN_A_FIXTURE])
def test_a_skip_for_lack_of_a_required_thing_is_a_failure(tmp_path: Path, source: str) -> None:
    done = run(tmp_path, source.format(reason="no OPA binary"), require="postgres,opa")
    assert done.returncode not in (0, 5), done.stdout
    assert "skipped, but POLICYD_REQUIRE=opa" in done.stdout


def test_so_is_one_of_several(tmp_path: Path) -> None:
    reason = "no postgresql: apt-get install postgresql"
    done = run(tmp_path, SKIPS_IN_A_FIXTURE.format(reason=reason), require="opa,postgresql")
    assert done.returncode not in (0, 5), done.stdout
    assert "skipped, but POLICYD_REQUIRE=postgresql" in done.stdout


@pytest.mark.parametrize(("reason", "require"), [("no OPA binary", ""), ("no opacity", "opa")])
def test_other_skips_stay_skips(tmp_path: Path, reason: str, require: str) -> None:
    done = run(tmp_path, SKIPS_IN_A_TEST.format(reason=reason), require=require)
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout


@pytest.mark.parametrize(("arguments", "outcome"), [((), "1 passed, 1 deselected"), (("--long",), "2 passed")])
def test_slow_tests_wait_for_the_flag(tmp_path: Path, arguments: tuple[str, ...], outcome: str) -> None:
    assert outcome in run(tmp_path, ONE_SLOW_ONE_FAST, *arguments).stdout
