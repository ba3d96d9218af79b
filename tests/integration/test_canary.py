"""Revisions in canary on a real server: who is decided on them, how they go live, and how they go back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from policyd.bootstrap import running
from policyd.client import Client
from policyd.errors import ConfigError
from policyd.revisions.kept import Tree
from policyd.revisions.policy_files import SUFFIXES
from policyd.revisions.trees import read_tree
from policyd.services.trials import in_share
from policyd.settings import load_settings
from tests.integration.conftest import ApiServer, serving
from tests.integration.git_server import BareRepository
from tests.integration.test_api_identity import bearer, granted, tokens_file
from tests.integration.test_sheet_book import ENDLESS
from tests.integration.test_sources import FEW, eventually

TENANTS = ("eu-bank", "globex-saas")
HALF_PPM = 500_000
LONG_MS = 3_600_000


class Town:
    """A server with persons that follows a repository, and puts what it finds into canary."""

    def __init__(self, folder: Path, repository: Path, **activation: Any) -> None:
        self.tokens = tokens_file(
            folder / "tokens.yaml",
            {"name": "ana", "grants": [granted("platform")]},
            {"name": "dev", "grants": [granted("developer")]},
        )
        tree = read_tree(repository / "policies", SUFFIXES)
        self.files = {str(path): content for path, content in tree.items() if path.parts[0] in FEW}
        self.law = BareRepository(folder / "law.git")
        self.first = self.law.commit(self.files)
        self.settings = {
            "sources": {"policies": {"kind": "git", "location": str(self.law.path)}, "poll_ms": 200},
            "activation": {"steps": ["canary"], "gates": [], "converge_ms": 50, **activation},
            "engine": {"deadline_ms": 500},
            "auth": {"tokens_file": str(folder / "tokens.yaml")},
            "data_dir": folder / "data",
        }

    @contextmanager
    def open(self) -> Generator[ApiServer, None, None]:
        with serving(self.settings) as self.server:
            self.ana = Client(self.server.address, token=self.tokens["ana"], timeout_s=30)
            try:
                yield self.server
            finally:
                self.ana.close()

    def commit(self, words: str, **files: bytes) -> str:
        """A commit whose share of half the tenants has the first one, and not the other."""
        for number in range(1_000):
            text = self.files["settings.yaml"] + f"# {words} {number}\n".encode()
            tree = {**self.files, "settings.yaml": text, **files}
            digest = Tree.of({PurePosixPath(path): content for path, content in tree.items()}, None).digest
            if [in_share(tenant, digest, HALF_PPM) for tenant in TENANTS] == [True, False]:
                return self.law.commit(tree)
        raise AssertionError("a share of half the tenants always has both or none")

    def stands(self, commit: str, state: str) -> Any:
        """The revision, once it stands so."""

        def found() -> Any:
            page = self.ana.revisions("policy")["items"]
            return next((each for each in page if (each["commit"], each["state"]) == (commit, state)), None)

        return eventually(found)

    def answer(self, tenant: str, **resources: int) -> Any:
        request = {"workload": {"tenant": tenant, "model": "llama-3.1-8b-instruct", "resources": resources}}
        return self.server.client.post("/v1/decisions", json=request, headers=bearer(self.tokens["dev"]))

    def decided_on(self) -> dict[str, str]:
        """The commit that each tenant is decided on, by the answer, and by the record behind it."""
        found = {}
        for tenant in TENANTS:
            answer = self.answer(tenant)
            body = answer.json()
            found[tenant] = body["policy"]["commit"]
            again = self.server.client.get(f"/v1/decisions/{body['id']}", headers=bearer(self.tokens["ana"])).json()
            assert again["policy"] == body["policy"], "the record names the commits of its answer"
        return found


def test_a_share_of_tenants_is_decided_on_it_also_after_a_restart_until_a_person_activates(
    tmp_path: Path, repository: Path
) -> None:
    town = Town(tmp_path, repository, canary_ppm=HALF_PPM, canary_min_ms=0, mode="manual")
    with town.open():
        assert set(town.decided_on().values()) == {town.first}
        second = town.commit("second")
        town.stands(second, "waiting")
        assert set(town.decided_on().values()) == {town.first}
        assert town.ana.activate_revision(second)["state"] == "canary"
        parted = {"eu-bank": second, "globex-saas": town.first}
        eventually(lambda: town.decided_on() == parted)
        time.sleep(0.5)
        assert town.decided_on() == parted, "where a person activates, nothing goes live by itself"
    with town.open():
        eventually(lambda: town.decided_on() == parted)
        assert town.ana.activate_revision(second)["state"] == "live"
        eventually(lambda: set(town.decided_on().values()) == {second})
        eventually(lambda: town.server.parts.decisions.trials.now is None)
        assert town.ana.roll_back("policy")["commit"] == town.first
        eventually(lambda: set(town.decided_on().values()) == {town.first})


def test_it_goes_live_by_itself_unless_it_is_paused_or_taken_back(tmp_path: Path, repository: Path) -> None:
    town = Town(tmp_path, repository, canary_ppm=1_000_000, canary_min_ms=1_500)
    with town.open():
        second = town.commit("second")
        digest = town.stands(second, "canary")["digest"]
        town.ana.activate_revision(digest, step="pause")
        eventually(lambda: set(town.decided_on().values()) == {second})
        time.sleep(1.6)
        assert town.stands(second, "canary")["paused"]
        town.ana.activate_revision(digest, step="resume")
        town.stands(second, "live")
        for _ in range(20):
            assert town.answer("eu-bank").json()["policy"]["commit"] == second, "nobody goes back and forth meanwhile"

        third = town.commit("third")
        town.stands(third, "canary")
        assert town.ana.roll_back("policy")["commit"] == second
        assert town.stands(third, "refused")["said"] == "taken back by a person"
        eventually(lambda: set(town.decided_on().values()) == {second})
        time.sleep(0.5)
        town.stands(third, "refused")
        town.ana.activate_revision(third)
        town.stands(third, "canary")


def test_a_candidate_that_never_ends_is_taken_back_and_nobody_is_decided_on_half_of_it(
    tmp_path: Path, repository: Path
) -> None:
    town = Town(tmp_path, repository, canary_ppm=1_000_000, canary_min_ms=LONG_MS, canary_failures_max=1)
    with town.open():
        bad = town.commit("endless", **{"endless/endless.rego": ENDLESS.encode()})
        town.stands(bad, "canary")
        eventually(lambda: town.answer("eu-bank").json()["policy"]["commit"] == bad)
        answers = [town.answer("eu-bank", gpu_count=7) for _ in range(2)]
        assert {each.status_code for each in answers} == {200}
        assert {each.json()["policy"]["commit"] for each in answers} == {town.first}
        assert "decisions failed on it" in town.stands(bad, "refused")["said"]
        eventually(lambda: set(town.decided_on().values()) == {town.first})
        found = town.server.run(town.server.parts.reader.search({}, kinds=["error"]))
        failed = [record.document() for record in found.items]
        assert len(failed) == 2, "what failed is recorded, under the commits that it failed on"
        assert {each["code"] for each in failed} == {"engine.failed"}


def test_nothing_of_it_costs_a_server_that_has_nothing_in_canary(api: ApiServer) -> None:
    assert api.parts.decisions.trials.now is None
    assert api.parts.canary.share_ppm == 50_000
    assert api.parts.activation.kept()[-1] is api.parts.snapshot


def test_an_opa_at_an_address_has_no_room_for_a_canary(tmp_path: Path, repository: Path) -> None:
    town = Town(tmp_path, repository)
    town.settings["engine"] = {"kind": "opa", "opa_url": "http://127.0.0.1:9"}

    async def run() -> None:
        async with running(load_settings(environment={}, flags=town.settings)):
            raise AssertionError("it started")

    with pytest.raises(ConfigError, match="canary needs two"):
        asyncio.run(run())
