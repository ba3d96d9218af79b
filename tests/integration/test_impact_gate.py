"""The gate of impact by a real server: what it finds is kept with the revision, and what it asks for is waited for."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from policyd.bootstrap import shipped
from policyd.client import Client
from policyd.errors import EngineError, RevisionConflict
from policyd.revisions.gates import GateResult
from policyd.revisions.policy_files import SUFFIXES
from policyd.revisions.tree_files import TreeFiles, read_tree_files
from policyd.revisions.trees import read_tree
from policyd.services.gate_runs import GateRuns, Offer
from policyd.services.impact_gate import ImpactGate
from tests.integration.conftest import ApiServer, serving
from tests.integration.git_server import BareRepository
from tests.integration.test_api_identity import bearer, granted, tokens_file
from tests.integration.test_revision_approvals import _line
from tests.integration.test_revision_trust import approved
from tests.integration.test_sources import FEW, eventually

RULE = "residency/residency.rego"
ABROAD = {"workload": {"tenant": "eu-bank", "model": "llama-3.1-70b-instruct"}}
PROCESS = (sys.executable, "-m", "policyd.cli.gate_process")


@dataclass
class Town:
    """A server whose revisions of policies pass the gate of impact, and its log of some decisions."""

    server: ApiServer
    client: Client
    law: BareRepository
    files: dict[str, bytes]
    tenant: dict[str, str]

    def stands(self, commit: str, state: str) -> Any:
        page = self.client.revisions("policy")["items"]
        return next((each for each in page if (each["commit"], each["state"]) == (commit, state)), None)

    def decide(self) -> dict[str, Any]:
        answer = self.server.client.post("/v1/decisions", json=ABROAD, headers=self.tenant)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Generator[Town, None, None]:
    folder = tmp_path_factory.mktemp("town")
    ana = {"name": "ana", "grants": [granted("platform"), granted("governance")]}
    tokens = tokens_file(
        folder / "tokens.json", ana, {"name": "bank", "grants": [granted("developer", tenant="eu-bank")]}
    )
    (folder / "signers").write_text(_line("ana") + _line("ben"))
    tree = read_tree(repository / "policies", SUFFIXES)
    files = {str(path): content for path, content in tree.items() if path.parts[0] in FEW}
    law = BareRepository(folder / "law.git")
    law.commit(files)
    settings = {
        "data_dir": folder / "data",
        "sources": {"policies": {"kind": "git", "location": str(law.path)}, "poll_ms": 200},
        "activation": {"gates": ["impact"], "max_flips_ppm": 1_000_000},
        "auth": {"tokens_file": str(folder / "tokens.json")},
        "revisions": {"allowed_signers_file": str(folder / "signers")},
    }
    with serving(settings) as server, Client(server.address, token=tokens["ana"], timeout_s=30) as client:
        yield Town(server, client, law, files, bearer(tokens["bank"]))


def offered(town: Town, files: dict[str, bytes], folder: Path, *, live: tuple[str, str] | None = None) -> Offer:
    """These policies as an offer beside the fleet of the server."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    trees: TreeFiles = read_tree_files(folder, shipped("fleet"))
    snapshot = town.server.parts.activation.current()
    return Offer(("policy",), trees, ("impact",), live or (snapshot.policies.digest, snapshot.fleet.digest))


def judged(runs: GateRuns | ImpactGate, offer: Offer) -> GateResult:
    (result,) = asyncio.run(runs(offer))  # type: ignore[arg-type]  # both return a coroutine
    return result


def test_what_a_hard_rule_refused_waits_for_a_second_person(town: Town) -> None:
    first = town.decide()
    live = town.server.parts.activation.current().policies
    refused = {each["pool"] for each in first["rejected"] if each["violations"][0]["policy"] == "residency"}
    assert refused, "the rule has to refuse something, for a candidate to place it"
    (began,) = town.stands(live.commit, "live")["gates"][1:2]
    assert (began["gate"], began["passed"], began["said"].split(",")[0]) == ("impact", True, "nothing was live before")

    lifted = town.files[RULE].replace(b"not country in input.workload.data.permitted_countries", b'country == "XX"')
    assert lifted != town.files[RULE]
    weaker = town.law.commit({**town.files, RULE: lifted})
    waits = eventually(lambda: town.stands(weaker, "waiting"))
    assert [(gate["gate"], gate["passed"]) for gate in waits["gates"]] == [
        ("signature", True),
        ("impact", True),
        ("approval", False),
    ]
    details = waits["gates"][1]["details"]
    assert (details["replayed"], details["hard"], details["needs_approval"]) == (1, 1, True)
    assert details["from"] < first["time"] < details["to"]
    assert details["rows"]["tenant"] == [{"value": "eu-bank", "flips": 0, "hard": 1}]
    assert waits["gates"][1]["findings"][0][0] == first["id"], "a decision to open"
    assert "where a hard rule refused: 1" in waits["said"]
    with pytest.raises(RevisionConflict, match="has not passed its gates"):
        town.client.activate_revision(weaker)
    time.sleep(2.5)  # it is asked again meanwhile, and the need of the impact is not forgotten
    assert town.stands(weaker, "waiting")
    approved(town.client, waits["digest"], live.digest, "ben")
    eventually(lambda: town.stands(weaker, "live"))
    eventually(lambda: town.decide()["policy"]["commit"] == weaker)


def test_a_share_above_the_limit_and_policies_that_are_none_are_refused(town: Town, tmp_path: Path) -> None:
    town.decide()
    settings = town.server.parts.settings
    document = settings.model_dump(mode="json")
    document["activation"]["max_flips_ppm"] = 0
    none = town.files[RULE].replace(b"count(countries) == 0", b"count(countries) >= 0")
    strict = {**town.files, RULE: none}
    result = judged(GateRuns(PROCESS, document, 60_000, ("impact",)), offered(town, strict, tmp_path / "strict"))
    assert not result.passed
    assert "would change; 0 % may" in result.said
    assert result.details["changes"]["allow_to_deny"] >= 1
    unread = {**town.files, RULE: town.files[RULE] + b"\ndeny contains {"}
    result = judged(GateRuns(PROCESS, document, 60_000, ("impact",)), offered(town, unread, tmp_path / "unread"))
    assert (result.gate, result.passed) == ("impact", False)
    assert result.findings


def test_a_gate_that_is_cut_is_refused_and_one_that_dies_says_nothing(town: Town, tmp_path: Path) -> None:
    offer = offered(town, town.files, tmp_path / "same")
    hangs = GateRuns((sys.executable, "-c", "import time; time.sleep(60)"), {}, 300, ("impact",))
    began = time.monotonic()
    result = judged(hangs, offer)
    assert (result.gate, result.passed) == ("impact", False)
    assert "longer than 300 ms" in result.said
    assert time.monotonic() - began < 10
    dies = GateRuns((sys.executable, "-c", "import os, sys; sys.stdin.read(); os._exit(9)"), {}, 10_000, ("impact",))
    with pytest.raises(EngineError, match="ended with 9 and gave no result"):
        judged(dies, offer)


def test_where_nobody_could_approve_it_is_refused_and_not_left_to_wait(town: Town, tmp_path: Path) -> None:
    said = {"gate": "impact", "passed": True, "said": "few", "findings": [], "details": {"needs_approval": True}}
    told = (sys.executable, "-c", f"import sys; sys.stdin.read(); print('{{\"results\": [' + {_json(said)!r} + ']}}')")
    offer = offered(town, town.files, tmp_path / "same")
    runs = GateRuns(told, {}, 10_000, ("impact",))
    assert judged(ImpactGate(runs, approvable=True), offer).passed
    refused = judged(ImpactGate(runs, approvable=False), offer)
    assert not refused.passed
    assert "revisions.allowed_signers_file" in refused.said


def _json(value: Any) -> str:
    import json

    return json.dumps(value)
