"""Two real ``policyd serve`` on one PostgreSQL: each writes its own log, both read all, and neither needs the other."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.postgresql_server import PASSWORD, QUOTED_PASSWORD

POLICYD = [sys.executable, "-c", "from policyd.cli.main import main; main()"]
WORKLOAD = {"workload": {"tenant": "eu-bank", "project": "support-chat", "model": "llama-3.1-70b-instruct"}}


def environment(repository: Path, address_file: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("POLICYD_")}
    # Replicas on one database share the key that wraps those of personal fields.
    shared = {"POLICYD_AUDIT__PERSONAL_KEY_FILE": str(address_file.with_name("personal.key"))}
    return {**kept, **shared, "PYTHONPATH": str(repository), "POLICYD_AUDIT__DATABASE_URL_FILE": str(address_file)}


@contextmanager
def served(data: Path, settings: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    command = [*POLICYD, "serve", "--port", "0", "--data-dir", str(data)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings, cwd=data.parent
    )
    try:
        assert process.stdout is not None
        found = re.search(r"https?://\S+", process.stdout.readline())
        assert found, process.communicate(timeout=10)
        with httpx.Client(base_url=found[0], timeout=60) as client:
            yield process, client
    finally:
        process.kill()
        process.communicate(timeout=30)


def decide(client: httpx.Client, key: str | None = None) -> dict[str, Any]:
    answer = client.post("/v1/decisions", json=WORKLOAD, headers={"Idempotency-Key": key} if key else {})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def said(settings: dict[str, str], folder: Path, *arguments: str) -> Any:
    command = [*POLICYD, *arguments, "--output", "json"]
    done = subprocess.run(command, env=settings, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_servers_share_a_database(database: str, tmp_path: Path, repository: Path) -> None:
    address_file = tmp_path / "database-url"
    address_file.write_text(database + "\n")
    settings = environment(repository, address_file)
    with served(tmp_path / "one", settings) as (process, one), served(tmp_path / "other", settings) as (_, other):
        first, second = decide(one, "a-key"), decide(other)
        assert first["audit"]["log"] != second["audit"]["log"]
        assert decide(other, "a-key") == first, "a key is one key, whichever replica hears it"
        for client in (one, other):
            found = client.get("/v1/decisions", params={"tenant": "eu-bank"}).json()["items"]
            assert [each["id"] for each in found] == [second["id"], first["id"]]
            assert [each["audit"] for each in found] == [second["audit"], first["audit"]]
        assert other.get(f"/v1/decisions/{first['id']}").json()["ranked"] == first["ranked"]
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        third = decide(other)
        assert third["audit"]["index"] == second["audit"]["index"] + 1
    with served(tmp_path / "one", settings) as (_, one):
        again = decide(one)
        assert again["audit"]["log"] == first["audit"]["log"]
        assert again["audit"]["index"] > first["audit"]["index"]
        page = said(settings, tmp_path, "audit", "search", "--data-dir", "nowhere", "--tenant", "eu-bank")
        assert [each["id"] for each in page["items"]] == [each["id"] for each in (again, third, second, first)]
        shown = said(settings, tmp_path, "audit", "show", first["id"], "--data-dir", "nowhere")
        assert shown["audit"] == first["audit"]
    told = json.dumps(said(settings, tmp_path, "config", "show"))
    assert PASSWORD not in told
    assert QUOTED_PASSWORD not in told
    assert str(address_file) in told


def test_a_database_that_lets_nobody_in_is_told(database: str, tmp_path: Path, repository: Path) -> None:
    address_file = tmp_path / "database-url"
    address_file.write_text(database.replace(QUOTED_PASSWORD, "wrong"))
    command = [*POLICYD, "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
    settings = environment(repository, address_file)
    done = subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "password authentication failed" in done.stderr
