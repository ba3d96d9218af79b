"""A protected change waits for two signatures, going forward and going back, on a real server that follows git."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from policyd.client import Client
from policyd.errors import ApprovalRefused, RevisionConflict
from policyd.revisions.approvals import NAMESPACE, Approval, Change, expiry, signed_bytes
from policyd.revisions.policy_files import SUFFIXES
from policyd.revisions.sshsig import sign
from policyd.revisions.trees import read_tree
from policyd.services.clock import now_us
from tests.integration.conftest import ApiServer, serving
from tests.integration.git_server import BareRepository
from tests.integration.test_api_identity import granted, tokens_file
from tests.integration.test_revision_approvals import DAY_US, KEYS, _line
from tests.integration.test_sources import FEW, eventually

RULE = "residency/residency.rego"


@pytest.fixture
def town(
    tmp_path: Path, repository: Path
) -> Generator[tuple[ApiServer, Client, BareRepository, dict[str, bytes]], None, None]:
    person = {"name": "ana", "grants": [granted("platform"), granted("governance")]}
    tokens = tokens_file(tmp_path / "tokens.json", person)
    (tmp_path / "signers").write_text(_line("ana") + _line("ben"))
    tree = read_tree(repository / "policies", SUFFIXES)
    files = {str(path): content for path, content in tree.items() if path.parts[0] in FEW}
    law = BareRepository(tmp_path / "law.git")
    law.commit(files)
    settings = {
        "data_dir": tmp_path / "data",
        "sources": {"policies": {"kind": "git", "location": str(law.path)}, "poll_ms": 200},
        "activation": {"gates": []},
        "auth": {"tokens_file": str(tmp_path / "tokens.json")},
        "revisions": {"allowed_signers_file": str(tmp_path / "signers")},
    }
    with serving(settings) as server, Client(server.address, token=tokens["ana"], timeout_s=30) as client:
        yield server, client, law, files


def approved(client: Client, digest: str, replaces: str, *names: str) -> None:
    change, expires = Change("policy", digest, replaces), expiry(now_us() + DAY_US)
    for name in names:
        signature = sign(KEYS[name], signed_bytes(change, expires), NAMESPACE)
        client.approve_revision(Approval(change, expires, signature).to_json())


def test_a_hard_rule_goes_with_two_signatures_going_forward_and_going_back(
    town: tuple[ApiServer, Client, BareRepository, dict[str, bytes]],
) -> None:
    server, client, law, files = town

    def stands(commit: str, state: str) -> Any:
        page = client.revisions("policy")["items"]
        return next((each for each in page if (each["commit"], each["state"]) == (commit, state)), None)

    live = server.parts.snapshot.policies.digest
    assert files[RULE].count(b"enforcement: hard")
    weaker = law.commit({**files, RULE: files[RULE].replace(b"enforcement: hard", b"enforcement: soft")})
    waits = eventually(lambda: stands(weaker, "waiting"))
    assert [(gate["gate"], gate["passed"]) for gate in waits["gates"]] == [("signature", True), ("approval", False)]
    assert "2 more of allowed signers must approve it: the hard rule" in waits["said"]
    with pytest.raises(RevisionConflict, match="has not passed its gates"):
        client.activate_revision(weaker)
    approved(client, waits["digest"], live, "ana", "ben")
    eventually(lambda: stands(weaker, "live"))
    eventually(lambda: server.parts.snapshot.policies.commit == weaker)

    strict = law.commit({**files, "settings.yaml": files["settings.yaml"] + b"# 2\n"})
    digest = eventually(lambda: stands(strict, "live"))["digest"]
    eventually(lambda: server.parts.snapshot.policies.commit == strict)
    with pytest.raises(ApprovalRefused, match=r"going back to .* is not approved yet"):
        client.roll_back("policy")
    assert server.parts.snapshot.policies.commit == strict
    approved(client, waits["digest"], digest, "ana", "ben")
    assert client.roll_back("policy")["commit"] == weaker
    eventually(lambda: server.parts.snapshot.policies.commit == weaker)
    bodies = [record.body for record in server.run(server.parts.reader.search({}, kinds=["revision"])).items]
    assert len(bodies) >= 8
    assert not any(b"example.org" in body for body in bodies), "who signed stands where it can be erased"
