"""Revisions by a real server with persons: they wait, go live, are rolled back, and log, API and CLI say why."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from policyd.client import Client
from policyd.errors import Forbidden, NotFound, RevisionConflict
from policyd.revisions.policy_files import SUFFIXES
from policyd.revisions.trees import read_tree
from policyd.services.doctor import Health
from policyd.services.doctor_revisions import check_revisions
from policyd.services.log_place import directory_of
from tests.integration.conftest import ApiServer, serving
from tests.integration.git_server import BareRepository
from tests.integration.test_api_identity import bearer, granted, tokens_file
from tests.integration.test_sources import eventually

FEW = ("residency", "casbin", "settings.yaml")
BANK = {"workload": {"tenant": "eu-bank", "model": "llama-3.1-70b-instruct"}}
ROLLBACK_MAX_S = 5.0
"""Far above the figure, which ``bench/bench_activation.py`` measures on a quiet machine."""


class Town:
    """A server that follows a repository and a folder, with persons."""

    def __init__(self, server: ApiServer, tokens: dict[str, str], law: BareRepository, files: dict[str, bytes]) -> None:
        self.server, self.tokens, self.law, self.files = server, tokens, law, files
        self.clients: dict[str, Client] = {}

    def client(self, name: str) -> Client:
        if name not in self.clients:
            self.clients[name] = Client(self.server.address, token=self.tokens[name], timeout_s=30)
        return self.clients[name]

    def commit(self, words: str, **files: bytes) -> str:
        text = self.files["settings.yaml"] + f"# {words}\n".encode()
        return self.law.commit({**self.files, "settings.yaml": text, **files})

    def stands(self, commit: str) -> dict[str, Any] | None:
        page = self.client("ana").revisions("policy")
        return next((dict(each) for each in page["items"] if each["commit"] == commit), None)

    def stands_as(self, commit: str, state: str) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            standing = self.stands(commit)
            return standing if standing is not None and standing["state"] == state else None

        answer: dict[str, Any] = eventually(found)
        return answer

    def decided_on(self) -> str:
        answer = self.server.client.post("/v1/decisions", json=BANK, headers=bearer(self.tokens["bank"]))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["policy"]["commit"])


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Generator[Town, None, None]:
    folder = tmp_path_factory.mktemp("town")
    tokens = tokens_file(
        folder / "tokens.yaml",
        {"name": "ana", "grants": [granted("platform")]},
        {"name": "bo", "grants": [granted("platform", tenant="eu-bank")]},
        {"name": "eve", "grants": [granted("auditor")]},
        {"name": "bank", "grants": [granted("developer", tenant="eu-bank")]},
    )
    tree = read_tree(repository / "policies", SUFFIXES)
    files = {str(path): content for path, content in tree.items() if path.parts[0] in FEW}
    law = BareRepository(folder / "law.git")
    law.commit(files)
    settings = {
        "sources": {"policies": {"kind": "git", "location": str(law.path)}, "poll_ms": 200},
        "activation": {"mode": "manual"},
        "auth": {"tokens_file": str(folder / "tokens.yaml")},
        "data_dir": folder / "data",
    }
    with serving(settings) as server:
        made = Town(server, tokens, law, files)
        yield made
        for client in made.clients.values():
            client.close()


def test_a_revision_waits_goes_live_and_is_rolled_back(town: Town) -> None:
    first = town.decided_on()
    assert town.stands_as(first, "live")["gates"][0]["gate"] == "check"
    second = town.commit("second")
    waits = town.stands_as(second, "waiting")
    assert [(gate["gate"], gate["passed"]) for gate in waits["gates"]] == [("check", True), ("tests", True)]
    active = town.client("eve").active_revisions()
    assert (active["policy"]["commit"], active["policy"]["stale_since"]) == (first, None)
    assert [each["commit"] for each in active["candidates"]] == [second]
    assert town.decided_on() == first

    assert town.client("ana").activate_revision(second)["state"] == "live"
    eventually(lambda: town.decided_on() == second)
    with pytest.raises(RevisionConflict, match="is live"):
        town.client("ana").activate_revision(second)

    began = time.monotonic()
    back = town.client("ana").roll_back("policy")
    assert (back["commit"], back["state"]) == (first, "live")
    eventually(lambda: town.decided_on() == first)
    assert time.monotonic() - began < ROLLBACK_MAX_S
    assert town.stands_as(second, "refused")["said"].startswith("a person went back to")
    time.sleep(1)
    assert town.decided_on() == first, "what was rolled back from does not come back while its source has it"
    assert town.client("ana").activate_revision(second)["state"] == "live"
    eventually(lambda: town.decided_on() == second)

    records = town.server.run(town.server.parts.reader.search({}, kinds=["revision"]))
    bodies = [record.document() for record in reversed(records.items) if "revisions" in record.document()]
    steps = [(body["action"], body["revisions"][0]["commit"]) for body in bodies]
    life = [action for action, commit in steps if commit == second]
    assert life == ["seen", "check", "test", "wait", "activate", "rollback"], steps
    assert [body["principal"] for body in bodies if body["action"] == "rollback"] == ["token:ana", "token:ana"]


def test_what_a_gate_refuses_never_serves_and_everything_says_why(town: Town) -> None:
    before = town.decided_on()
    bad = town.commit("third", **{"residency/residency.rego": b"package placement.residency\ndeny contains {"})
    refused = town.stands_as(bad, "refused")
    assert refused["gates"][0]["passed"] is False
    assert "residency.rego:1" in refused["said"]
    with pytest.raises(RevisionConflict, match="is refused: check"):
        town.client("ana").activate_revision(bad)
    with pytest.raises(RevisionConflict, match="never live"):
        town.client("ana").roll_back("policy", digest=bad)
    ready = town.server.client.get("/readyz").json()
    assert ready["ready"] is True
    assert bad in eventually(lambda: town.client("eve").active_revisions()["policy"]["fault"])
    assert town.decided_on() == before


def test_a_policy_whose_tests_fail_is_refused_by_them(town: Town) -> None:
    test = b"package placement.residency_test\n\nimport rego.v1\n\ntest_nothing_holds if 1 == 2\n"
    bad = town.commit("fourth", **{"residency/more_test.rego": test})
    refused = town.stands_as(bad, "refused")
    assert [(gate["gate"], gate["passed"]) for gate in refused["gates"]] == [("check", True), ("tests", False)]
    assert "test_nothing_holds" in refused["said"]
    settings = town.server.parts.settings
    (check,) = asyncio.run(check_revisions(settings, directory_of(settings)))
    assert (check.health, bad in check.detail) == (Health.WARN, True)
    assert "test_nothing_holds" in check.detail


def test_only_who_may_for_all_tenants_takes_a_step(town: Town) -> None:
    digest = town.client("ana").active_revisions()["policy"]["digest"]
    for name in ("bo", "eve", "bank"):
        client = town.client(name)
        with pytest.raises(Forbidden):
            client.activate_revision(digest)
        with pytest.raises(Forbidden):
            client.roll_back("policy")
    with pytest.raises(Forbidden):
        town.client("bank").revisions()
    with pytest.raises(NotFound):
        town.client("ana").activate_revision("sha256:" + "0" * 64)
    with pytest.raises(NotFound, match="fleet"):
        town.client("ana").roll_back("fleet")
    answer = town.server.client.get("/v1/revisions?kind=law", headers=bearer(town.tokens["ana"]))
    assert answer.status_code == 400


def test_the_command_line_shows_a_table_and_takes_short_names(
    town: Town, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from policyd.cli.main import run as command

    token = tmp_path / "token"
    token.write_text(town.tokens["ana"])
    token.chmod(0o600)
    at = ["--server", town.server.address, "--token-file", str(token)]
    commit = town.decided_on()
    page = town.client("ana").revisions("policy")["items"]
    before = next(each for each in page if each["commit"] != commit and all(gate["passed"] for gate in each["gates"]))
    assert command(["policy", "rollback", before["digest"][7:17], *at, "--output", "json"]) == 0
    assert '"state":"live"' in capsys.readouterr().out.replace(" ", "")
    eventually(lambda: town.decided_on() == before["commit"])
    assert command(["policy", "activate", commit[:10], *at]) == 0
    eventually(lambda: town.decided_on() == commit)
    assert command(["policy", "log", "--kind", "policy", *at]) == 0
    told = capsys.readouterr().out
    assert commit[:12] in told
    assert "check:FAILED" in told
    assert command(["policy", "activate", "ffff", *at]) == 1


def test_local_takes_no_step(api: Any) -> None:
    assert api.client.get("/v1/revisions").json() == {"items": [], "next": None}
    active = api.client.get("/v1/revisions/active").json()
    assert active["policy"]["digest"] == active["policy"]["to_be_live"] == api.parts.snapshot.policies.digest
    for path in ("/v1/revisions/sha256:0/activation", "/v1/revisions/rollback"):
        answer = api.client.post(path, json={})
        assert (answer.status_code, answer.json()["code"]) == (403, "identity.forbidden")
