"""The unit and the Dockerfile say what the documents promise. No image is built: there is no container engine here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from policyd.settings import load_settings

HARDENED = {
    "DynamicUser": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes",
    "NoNewPrivileges": "yes", "StateDirectory": "policyd", "CapabilityBoundingSet": "", "MemoryDenyWriteExecute": "yes",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX", "ExecReload": "kill -HUP $MAINPID",
}  # fmt: skip
REFUSE_EXEC_GAIN = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(65, 1, 0, 0, 0):
    sys.exit(77)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""What systemd's MemoryDenyWriteExecute asks of newer kernels (PR_SET_MDWE)."""


@pytest.fixture
def unit(repository: Path) -> str:
    return (repository / "deploy" / "systemd" / "policyd.service").read_text()


@pytest.fixture
def steps(repository: Path) -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, continued lines joined."""
    text = (repository / "deploy" / "container" / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [line.split(maxsplit=1) for line in lines]
    assert all(re.fullmatch(r"[A-Z]+", step[0]) for step in found)
    return [(step[0], re.sub(r" +", " ", step[1])) for step in found]


def test_the_service_is_hardened(unit: str) -> None:
    written = dict(re.findall(r"^([A-Za-z]+)=(.*)$", unit, re.MULTILINE))
    assert {name: written.get(name) for name in HARDENED} == HARDENED


def test_systemd_takes_the_unit(unit: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze")
    # The installed command is not on this machine; everything else is judged as it is.
    file = tmp_path / "policyd.service"
    file.write_text(unit.replace("/opt/policyd/bin/policyd", "/bin/true"))
    verified = subprocess.run([analyze, "verify", file], capture_output=True, text=True, timeout=60)
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=20", file], capture_output=True, text=True, timeout=60
    )
    assert judged.returncode == 0, judged.stdout[-400:] + judged.stderr


def test_it_decides_where_no_memory_may_be_written_and_run(repository: Path, tmp_path: Path) -> None:
    policyd = Path(sys.executable).parent / "policyd"
    workload = repository / "examples" / "workloads" / "eu-bank-chat.yaml"
    command = [sys.executable, "-c", REFUSE_EXEC_GAIN, policyd, "decide", workload, "--data-dir", tmp_path / "data"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert done.returncode == 0, done.stderr


def test_the_image_runs_as_a_numeric_user_that_is_not_root(steps: list[tuple[str, str]]) -> None:
    users = [value for name, value in steps if name == "USER"]
    assert users
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])
    last_stage = max(place for place, (name, _) in enumerate(steps) if name == "FROM")
    assert sum(name == "FROM" for name, _ in steps) == 2
    assert not [value for name, value in steps[last_stage:] if name == "RUN" and "pip install" in value]


def test_the_build_takes_only_hashed_packages_from_the_index(steps: list[tuple[str, str]]) -> None:
    commands = " && ".join(value for name, value in steps if name == "RUN")
    installs = re.findall(r"pip (?:install|wheel) [^&]*", commands)
    assert len(installs) == 4
    assert all("--require-hashes" in install or "--no-index" in install for install in installs)
    assert not re.search(r"curl|wget|apt|git ", commands)
    assert not [name for name, _ in steps if name == "ADD"]


def test_the_image_says_whether_it_is_alive_and_ends_in_order(steps: list[tuple[str, str]]) -> None:
    found = dict(steps)
    assert "http://127.0.0.1:8470/livez" in found["HEALTHCHECK"]
    assert (found["STOPSIGNAL"], found["VOLUME"]) == ("SIGTERM", "/var/lib/policyd")
    assert (found["ENTRYPOINT"], found["CMD"]) == ('["policyd"]', '["serve"]')


def test_what_the_image_copies_makes_the_wheel(steps: list[tuple[str, str]], repository: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for value in (value for name, value in steps if name == "COPY" and "--from" not in value):
        *sources, target = value.split()
        for name in sources:
            held, place = repository / name, source / target
            if held.is_dir():
                shutil.copytree(held, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(held, place)
    command = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation"]
    made = subprocess.run(
        [*command, "--wheel-dir", tmp_path / "wheel", "."], cwd=source, capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stderr
    (wheel,) = (tmp_path / "wheel").glob("policyd-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    for target in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].values():
        assert any(name.startswith(target) for name in names), target
    migrations = {str(path.relative_to(repository)) for path in (repository / "audit/migrations").rglob("*.py")}
    assert len(migrations) > 2
    assert migrations <= set(names)


def test_the_settings_of_the_how_to_load(repository: Path, tmp_path: Path) -> None:
    page = (repository / "docs" / "how-to" / "run-in-production.md").read_text()
    file = tmp_path / "policyd.yaml"
    file.write_text(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    found = load_settings(file, environment={})
    assert (found.host, found.engine.kind, found.auth.configured) == ("0.0.0.0", "opa", True)
