"""A server that follows sources: what is new goes live, what is bad is told, and the last good revisions serve."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policyd.errors import ConfigError
from policyd.revisions.policy_files import SUFFIXES
from policyd.revisions.trees import read_tree
from policyd.settings import load_settings
from tests.integration.git_server import BareRepository

WAIT_S = 60
FEW = ("residency", "casbin", "settings.yaml")
"""What is left of the shipped policies: one package, for a new revision to be compiled in no time."""


def eventually(found: Callable[[], Any]) -> Any:
    ends = time.monotonic() + WAIT_S
    while not (value := found()):
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.05)
    return value


def check(server: Any, name: str) -> dict[str, Any]:
    return next(one for one in server.client.get("/readyz").json()["checks"] if one["name"] == name)


def decided(server: Any, request: dict[str, Any]) -> dict[str, Any]:
    answer = server.client.post("/v1/decisions", json=request)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.fixture
def policies(tmp_path: Path, repository: Path) -> tuple[BareRepository, dict[str, bytes]]:
    files = read_tree(repository / "policies", SUFFIXES)
    few = {f"law/{path}": content for path, content in files.items() if path.parts[0] in FEW}
    return BareRepository(tmp_path / "law.git"), few


def settings_of(bare: BareRepository, fleet: Path, **more: Any) -> dict[str, Any]:
    git = {"kind": "git", "location": f"file://{bare.path}", "path": "law", **more}
    return {"sources": {"policies": git, "fleet": {"kind": "directory", "location": str(fleet)}, "poll_ms": 200}}


def test_a_server_follows_a_repository_and_a_directory(
    serving_with: Any,
    bank_chat: dict[str, Any],
    policies: tuple[BareRepository, dict[str, bytes]],
    tmp_path: Path,
    repository: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bare, files = policies
    fleet = tmp_path / "fleet"
    shutil.copytree(repository / "examples" / "fleet", fleet)
    first = bare.commit(files)
    with serving_with(**settings_of(bare, fleet)) as server:
        assert decided(server, bank_chat)["policy"]["commit"] == first
        assert check(server, "sources") == {"name": "sources", "ok": True, "reason": None}

        second = bare.commit({**files, "law/settings.yaml": files["law/settings.yaml"] + b"# 2\n"})
        eventually(lambda: decided(server, bank_chat)["policy"]["commit"] == second)

        # A broken policy beside a changed fleet: the fleet goes live, the last good policy stays, and both are told.
        broken = bare.commit({**files, "law/residency/residency.rego": b"package placement.residency\ndeny contains {"})
        with (fleet / "tenants.yaml").open("a") as file:
            file.write("# changed\n")
        before = server.parts.snapshot.fleet.digest
        eventually(lambda: decided(server, bank_chat)["fleet"]["digest"] != before)
        reason = eventually(lambda: check(server, "sources")["reason"])
        assert broken in reason
        assert "residency.rego:1: " in reason
        stale = decided(server, bank_chat)
        assert stale["policy"]["commit"] == second
        assert stale["policy"]["stale_since"]
        assert "stale_since" not in stale["fleet"]
        replayed = server.client.get(f"/v1/decisions/{stale['id']}").json()
        assert (replayed["policy"], replayed["fleet"]) == (stale["policy"], stale["fleet"])
        refusals = caplog.text.count("changed nothing")
        time.sleep(1)
        assert caplog.text.count("changed nothing") == refusals, "what was refused is not tried at every poll"

        mended = bare.commit(files)
        eventually(lambda: decided(server, bank_chat)["policy"]["commit"] == mended)
        assert check(server, "sources")["reason"] is None
        assert "stale_since" not in decided(server, bank_chat)["policy"]

    # Gone for a day, and restarted meanwhile: what went live last serves, from the disk.
    shutil.move(bare.path, tmp_path / "gone.git")
    with serving_with(**settings_of(bare, fleet)) as server:
        body = decided(server, bank_chat)
        assert body["policy"]["commit"] == mended
        assert body["policy"]["stale_since"]
        assert "no git repository" in check(server, "sources")["reason"]
        assert server.client.get("/readyz").status_code == 200
    with serving_with(**settings_of(bare, fleet, stale_max_ms=3_000)) as server:
        answer = server.client.post("/v1/decisions", json=bank_chat)
        assert (answer.status_code, answer.json()["code"]) == (503, "revision.stale")
        assert server.client.get("/readyz").status_code == 503
        assert not check(server, "revisions")["ok"]
        shutil.move(tmp_path / "gone.git", bare.path)
        eventually(lambda: server.client.get("/readyz").status_code == 200)
        assert decided(server, bank_chat)["policy"]["commit"] == mended

    # Broken at the start: the last good pair, kept from before, goes live.
    bare.commit({**files, "law/settings.yaml": b"settings: [\n"})
    with serving_with(**settings_of(bare, fleet)) as server:
        assert decided(server, bank_chat)["policy"]["commit"] == mended
        eventually(lambda: "settings.yaml" in (check(server, "sources")["reason"] or ""))


def test_nothing_kept_and_nothing_readable_ends_the_start(tmp_path: Path, repository: Path) -> None:
    import asyncio

    from policyd.bootstrap import running
    from policyd.errors import RevisionError

    async def start(flags: dict[str, Any]) -> None:
        async with running(load_settings(environment={}, flags={"data_dir": tmp_path / "data", **flags})):
            pass

    bare = BareRepository(tmp_path / "law.git")
    with pytest.raises(RevisionError, match="no policies to serve, and none are kept"):
        asyncio.run(start(settings_of(bare, repository / "examples" / "fleet")))
    with pytest.raises(ConfigError, match="both set"):
        load_settings(environment={}, flags={"policies": "x", **settings_of(bare, repository / "examples" / "fleet")})


@pytest.mark.parametrize(
    "location", ["http://example.org/x.git", "https://user:pass@example.org/x.git", "ftp://example.org/x", "ssh:///x"]
)
def test_an_unsafe_address_is_no_setting(location: str) -> None:
    with pytest.raises(ConfigError):
        load_settings(environment={}, flags={"sources": {"policies": {"kind": "git", "location": location}}})
