"""Reload of a serving policyd: a pair of trees goes live whole or not at all, and nobody's request notices."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest


@pytest.fixture
def trees(tmp_path: Path, repository: Path) -> dict[str, Path]:
    """Policies and a fleet of one's own to change."""
    shutil.copytree(repository / "policies", tmp_path / "policies")
    shutil.copytree(repository / "examples" / "fleet", tmp_path / "fleet")
    return {"policies": tmp_path / "policies", "fleet": tmp_path / "fleet"}


def reload(server: Any) -> None:
    async def asked() -> None:
        await server.parts.reload.ask()

    server.run(asked())


def told(server: Any) -> tuple[int, str | None]:
    found = server.client.get("/readyz")
    return found.status_code, next(check for check in found.json()["checks"] if check["name"] == "reload")["reason"]


def touch(fleet: Path) -> None:
    """The same fleet with another digest."""
    with (fleet / "tenants.yaml").open("a") as file:
        file.write("# changed\n")


def grow(fleet: Path) -> None:
    """Another fleet: one tenant more."""
    path = fleet / "tenants.yaml"
    lines = path.read_text()
    first = lines.index("  - ")
    second = lines.index("\n  - ", first)
    copied = lines[first:second].replace("eu-bank", "another-bank")
    path.write_text(lines + ("" if lines.endswith("\n") else "\n") + copied + "\n")


def test_a_broken_tree_leaves_the_last_good_pair_and_says_so(
    serving_with: Any, bank_chat: dict[str, Any], trees: dict[str, Path]
) -> None:
    with serving_with(**trees) as server:
        before = server.client.post("/v1/decisions", json=bank_chat).json()
        assert told(server) == (200, None)
        module = trees["policies"] / "residency" / "residency.rego"
        good = module.read_text()
        module.write_text(good + "\ndeny contains {\n")
        grow(trees["fleet"])
        reload(server)
        status, reason = told(server)
        assert status == 200
        assert reason is not None
        assert "changed nothing" in reason
        after = server.client.post("/v1/decisions", json=bank_chat).json()
        assert (after["policy"], after["fleet"]) == (before["policy"], before["fleet"])
        module.write_text(good)
        reload(server)
        assert told(server) == (200, None)
        mended = server.client.post("/v1/decisions", json=bank_chat).json()
        assert mended["policy"] == before["policy"]
        assert mended["fleet"] != before["fleet"]
        assert "another-bank" in server.client.get("/v1/fleet").text


def test_trees_that_are_live_already_are_not_recorded_again(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    with serving_with() as server:
        live, index = (
            server.parts.snapshot,
            server.client.post("/v1/decisions", json=bank_chat).json()["audit"]["index"],
        )
        reload(server)
        assert server.parts.snapshot is live
        assert server.client.post("/v1/decisions", json=bank_chat).json()["audit"]["index"] == index + 1


def test_reloads_that_are_asked_for_at_once_follow_as_one(serving_with: Any) -> None:
    with serving_with() as server:

        async def many() -> None:
            first = server.parts.reload.ask()
            await asyncio.sleep(0)
            assert all(server.parts.reload.ask() is first for _ in range(20))
            await first

        server.run(many())
        assert server.parts.reload.count == 2


def test_classes_of_before_are_ready_in_the_new_pair(
    serving_with: Any, bank_chat: dict[str, Any], trees: dict[str, Path]
) -> None:
    with serving_with(**trees) as server:
        requests = [bank_chat, {"workload": {"tenant": "spark-startup", "model": "llama-3.1-70b-instruct"}}]
        for _ in range(2):  # the second reload knows what leads to the classes that the first one made
            for request in requests:
                assert server.client.post("/v1/decisions", json=request).status_code == 200
            touch(trees["fleet"])
            reload(server)
            computed = server.parts.book.counts.computed
            fleets = {
                server.client.post("/v1/decisions", json=request).json()["fleet"]["digest"] for request in requests
            }
            assert fleets == {server.parts.snapshot.fleet.digest}
            assert server.parts.book.counts.computed == computed


def test_no_request_fails_while_pairs_are_swapped(
    serving_with: Any, bank_chat: dict[str, Any], trees: dict[str, Path]
) -> None:
    with serving_with(**trees) as server:
        done, statuses, fleets = threading.Event(), [], []

        def ask() -> None:
            with httpx.Client(base_url=server.address, timeout=30) as client:
                while not done.is_set():
                    found = client.post("/v1/decisions", json=bank_chat)
                    statuses.append(found.status_code)
                    fleets.append(found.json()["fleet"]["digest"])

        callers = [threading.Thread(target=ask) for _ in range(4)]
        for caller in callers:
            caller.start()
        try:
            for _ in range(3):
                touch(trees["fleet"])
                reload(server)
        finally:
            done.set()
            for caller in callers:
                caller.join(30)
        assert set(statuses) == {200}
        assert len(set(fleets)) >= 3
        assert told(server) == (200, None)


def test_memory_of_pairs_long_gone_is_given_back(
    serving_with: Any, bank_chat: dict[str, Any], trees: dict[str, Path]
) -> None:
    with serving_with(**trees) as server:
        book, held = server.parts.book, []
        for _ in range(5):
            assert server.client.post("/v1/decisions", json=bank_chat).status_code == 200
            touch(trees["fleet"])
            reload(server)
            held.append(len({digest for digest, _ in book._sheets}))
        assert held[1:] == [2, 2, 2, 2], "the live pair and the one before it"
        assert {digest for digest, _ in book._answers} == {server.parts.snapshot.policies.digest}
        assert server.client.post("/v1/decisions", json=bank_chat).status_code == 200
