"""Approvals of revisions by a real server: who may bring one, what is taken into the log, and how the gate finds it."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Generator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from policyd.bootstrap import shipped
from policyd.cli.main import run as main
from policyd.client import Client
from policyd.errors import ApprovalRefused, Forbidden
from policyd.revisions import policy_files, sshsig
from policyd.revisions.approvals import NAMESPACE, Approval, Change, expiry, signed_bytes
from policyd.revisions.gates import GateResult
from policyd.revisions.kept import Tree
from policyd.revisions.sshsig import sign
from policyd.revisions.trees import read_tree
from policyd.services.clock import now_us
from policyd.services.trust import Trust
from tests.integration.conftest import ApiServer, serving
from tests.integration.test_api_bad_input import check_problem
from tests.integration.test_api_identity import bearer, granted, tokens_file
from tests.programs import needs

KEYS = {name: ed25519.Ed25519PrivateKey.generate() for name in ("ana", "ben", "eve")}
DAY_US = 86_400_000_000
PERSONS = (
    {"name": "ana", "grants": [granted("governance")]},
    {"name": "bank", "grants": [granted("governance", tenant="eu-bank")]},
    {"name": "ops", "grants": [granted("platform")]},
)
LIVE = read_tree(shipped("policies"), policy_files.SUFFIXES)
RESIDENCY = PurePosixPath("residency/residency.rego")
CANDIDATE = Tree.of({**LIVE, RESIDENCY: LIVE[RESIDENCY] + b"\n# a change\n"}, None)


def _line(name: str) -> str:
    return f"{name}@example.org ssh-ed25519 {base64.b64encode(sshsig._written(KEYS[name])).decode()}\n"


class Office:
    """A server, its persons, and the file of its signers."""

    def __init__(self, server: ApiServer, tokens: dict[str, str], signers: Path) -> None:
        self.server, self.tokens, self.signers = server, tokens, signers
        self.live = server.parts.activation.current().policies.digest

    def approval(self, name: str, tree: Tree = CANDIDATE, days: float = 1, **more: str) -> dict[str, str]:
        change = Change("policy", tree.digest, more.pop("replaces", self.live))
        expires = expiry(int(now_us() + days * DAY_US))
        signature = sign(KEYS[name], signed_bytes(change, expires), more.pop("namespace", NAMESPACE))
        return {**Approval(change, expires, signature).to_json(), **more}

    def post(self, name: str, body: Any, digest: str | None = None) -> Any:
        path = f"/v1/revisions/{digest or body['digest']}/approval"
        return self.server.client.post(path, json=body, headers=bearer(self.tokens[name]))

    def gate(self, tree: Tree) -> GateResult:
        trust = Trust(self.server.parts.settings.revisions, self.server.parts.reader)
        return self.server.run(trust.approval("policy", tree, Tree.of(LIVE, None)))


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Generator[Office, None, None]:
    place = tmp_path_factory.mktemp("approvals")
    tokens = tokens_file(place / "tokens.json", *PERSONS)
    signers = place / "signers"
    signers.write_text(_line("ana") + _line("ben"))
    flags = {
        "auth": {"tokens_file": str(place / "tokens.json")},
        "revisions": {"allowed_signers_file": str(signers)},
    }
    with serving({"data_dir": place / "data", **flags}) as server:
        yield Office(server, tokens, signers)


def test_an_approval_is_taken_found_by_digest_and_counts_at_the_gate(office: Office) -> None:
    hard = LIVE[RESIDENCY].replace(b"enforcement: hard", b"enforcement: soft")
    weaker = Tree.of({**LIVE, RESIDENCY: hard}, None)
    gate = office.gate(weaker)
    assert not gate.passed
    assert "2 more of allowed signers must approve it: the hard rule residency" in gate.said
    with Client(office.server.address, token=office.tokens["ana"]) as client:
        done = client.approve_revision(office.approval("ana", weaker))
        assert done["signer"] == "ana@example.org"
        assert not office.gate(weaker).passed
        client.approve_revision(office.approval("ben", weaker))
        listed = client.revision_approvals(weaker.digest)
    assert listed["live"]["policy"] == office.live
    assert [(item["signer"], item["counts"]) for item in listed["items"]] == [
        ("ana@example.org", True),
        ("ben@example.org", True),
    ]
    gate = office.gate(weaker)
    assert gate.passed, gate.said
    assert gate.details["approvers"] == ["ana@example.org", "ben@example.org"]
    record = office.server.run(office.server.parts.reader.by_id(done["id"]))
    body = record.document()
    assert body["principal"] == "token:ana"
    assert body["signer"] == "ana@example.org"
    assert body["revision"] == {"kind": "policy", "digest": weaker.digest, "replaces": office.live}
    assert b"example.org" not in record.body
    assert office.gate(CANDIDATE).passed


def test_a_signer_who_is_taken_out_counts_no_more(office: Office) -> None:
    soft = LIVE[RESIDENCY].replace(b"enforcement: hard", b"enforcement: advisory")
    weaker = Tree.of({**LIVE, RESIDENCY: soft}, None)
    for name in ("ana", "ben"):
        assert office.post("ana", office.approval(name, weaker)).status_code == 200
    assert office.gate(weaker).passed
    office.signers.write_text(_line("ana"))
    try:
        gate = office.gate(weaker)
        assert not gate.passed
        assert any("none of an allowed signer" in finding.message for finding in gate.findings)
        office.signers.write_text("nobody\n")
        gate = office.gate(weaker)
        assert not gate.passed
        assert gate.findings[0].where.endswith("signers:1")
        check_problem(office.server, office.post("ana", office.approval("ana", weaker)), 500, "config.invalid")
    finally:
        office.signers.write_text(_line("ana") + _line("ben"))


OTHER = "sha256:" + "c" * 64


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "eve"}, "none of an allowed signer"),
        ({"namespace": "git"}, "is for 'git'"),
        ({"replaces": OTHER}, "another revision in whose place it comes"),
        ({"days": -1}, "has expired"),
        ({"days": 8}, "further away than approvals hold"),
        ({"signature": "approved-by: ana"}, "does not begin with"),
        ({"expires": "2030-01-01T00:00:00Z"}, "over something else"),
        ({"kind": "fleet"}, "another revision in whose place it comes"),
    ],
)
def test_what_does_not_count_is_not_taken(office: Office, wrong: dict[str, Any], said: str) -> None:
    body = office.approval(wrong.pop("name", "ana"), **wrong)
    problem = check_problem(office.server, office.post("ana", body), 422, "revision.approval")
    assert said in problem["detail"]


def test_an_approval_of_another_digest_is_not_taken(office: Office) -> None:
    body = office.approval("ana")
    problem = check_problem(office.server, office.post("ana", body, OTHER), 422, "revision.approval")
    assert "approves another revision" in problem["detail"]
    problem = check_problem(office.server, office.post("ana", {**body, "digest": OTHER}), 422, "revision.approval")
    assert "over something else" in problem["detail"]
    check_problem(office.server, office.post("ana", body, "main"), 400, "request.invalid")
    check_problem(office.server, office.post("ana", {**body, "more": 1}), 400, "request.invalid")
    live = Tree(LIVE, None, office.live)
    assert "serves already" in office.post("ana", office.approval("ana", live)).json()["detail"]


def test_who_brings_it_needs_the_permission_for_all_tenants(office: Office) -> None:
    for name in ("bank", "ops"):
        check_problem(office.server, office.post(name, office.approval("ana")), 403, "identity.forbidden")
    path = f"/v1/revisions/{CANDIDATE.digest}/approval"
    assert office.server.client.get(path, headers=bearer(office.tokens["ops"])).status_code == 200
    check_problem(
        office.server, office.server.client.get(path, headers=bearer(office.tokens["bank"])), 403, "identity.forbidden"
    )


def test_local_approves_nothing_and_without_signers_nobody_does(tmp_path: Path) -> None:
    tokens = tokens_file(tmp_path / "tokens.json", *PERSONS)
    with serving({"data_dir": tmp_path / "data"}) as server, Client(server.address) as client:
        live = client.revision_approvals(OTHER)["live"]["policy"]
        change = Change("policy", OTHER, live)
        body = Approval(change, "2030-01-01T00:00:00Z", sign(KEYS["ana"], b"", NAMESPACE)).to_json()
        with pytest.raises(Forbidden, match="nobody in particular"):
            client.approve_revision(body)
    flags = {"auth": {"tokens_file": str(tmp_path / "tokens.json")}}
    with (
        serving({"data_dir": tmp_path / "more", **flags}) as server,
        Client(server.address, token=tokens["ana"]) as ana,
        pytest.raises(ApprovalRefused, match="nobody is named who may approve"),
    ):
        ana.approve_revision(body)


def _key_file(path: Path, name: str) -> Path:
    formats = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    path.write_bytes(KEYS[name].private_bytes(*formats))
    path.chmod(0o600)
    return path


def test_the_command_signs_sends_and_hands_over(
    office: Office, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token, key = tmp_path / "token", _key_file(tmp_path / "key", "ben")
    token.write_text(office.tokens["ana"])
    tree = Tree.of({**LIVE, RESIDENCY: LIVE[RESIDENCY] + b"\n# by command\n"}, None)
    folder = tmp_path / "policies"
    for path, content in tree.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    asked = ["--server", office.server.address, "--token-file", str(token)]
    assert main(["policy", "approve", str(folder), "--key", str(key), *asked, "-o", "json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["digest"], done["signer"]) == (tree.digest, "ben@example.org")

    out = tmp_path / "approval.json"
    assert main(["policy", "approve", str(folder), "--key", str(key), "--out", str(out), *asked]) == 0
    assert main(["policy", "approve", tree.digest, "--send", str(out), *asked]) == 0
    assert "ben@example.org" in capsys.readouterr().out
    assert main(["policy", "approve", OTHER, "--send", str(out), *asked]) == 2
    assert "and not sha256:cccc" in capsys.readouterr().err
    assert main(["policy", "approve", OTHER, *asked]) == 2
    assert main(["policy", "approve", OTHER, "--send", str(out), "--key", str(key), *asked]) == 2
    assert main(["policy", "approve", OTHER, "--key", str(tmp_path / "none"), *asked]) == 2
    (tmp_path / "broken").write_text("{")
    assert main(["policy", "approve", OTHER, "--send", str(tmp_path / "broken"), *asked]) == 2
    assert main(["policy", "approve", OTHER, "--send", str(tmp_path / "none"), *asked]) == 2


@needs("ssh-keygen")
def test_openssh_signs_what_out_has_written(office: Office, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token, key, out = tmp_path / "token", _key_file(tmp_path / "key", "ana"), tmp_path / "approval.json"
    token.write_text(office.tokens["ana"])
    asked = ["--server", office.server.address, "--token-file", str(token)]
    assert main(["policy", "approve", OTHER, "--replaces", office.live, "--out", str(out)]) == 0
    assert main(["policy", "approve", OTHER, "--send", str(out), *asked]) == 2
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(out)]
    subprocess.run(command, check=True, capture_output=True)
    capsys.readouterr()
    assert main(["policy", "approve", OTHER, "--send", str(out), *asked]) == 0
    assert "ana@example.org" in capsys.readouterr().out
