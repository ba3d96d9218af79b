"""A server that requires signatures: what nobody allowed has signed never serves, and the same files signed do."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from dulwich.objects import Commit

from policyd.bootstrap import running, shipped
from policyd.errors import ConfigError, RevisionError
from policyd.revisions import fleet_files, policy_files, sshsig
from policyd.revisions.trees import read_tree
from policyd.settings import load_settings
from tests.integration.conftest import ApiServer, serving
from tests.integration.git_server import BareRepository

ANA, EVE = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
FEW = ("residency", "casbin", "settings.yaml")


def _files(name: str, suffixes: tuple[str, ...]) -> dict[str, bytes]:
    return {str(path): content for path, content in read_tree(shipped(name), suffixes).items()}


FLEET = _files("fleet", fleet_files.SUFFIXES)
POLICIES = {
    path: content
    for path, content in _files("policies", policy_files.SUFFIXES).items()
    if path.split("/")[0] in FEW and not path.endswith("_test.rego")
}


class Repository(BareRepository):
    """A repository whose commits somebody signs, or nobody."""

    def signed(self, files: dict[str, bytes], key: ed25519.Ed25519PrivateKey) -> str:
        commit = self.repo[self.commit(files).encode()]
        assert isinstance(commit, Commit)
        commit.gpgsig = sshsig.sign(key, commit.as_raw_string(), "git").encode().rstrip(b"\n")
        self.repo.object_store.add_object(commit)
        self.repo.refs[b"refs/heads/main"] = commit.id  # type: ignore[index] - a name of a ref is bytes
        return commit.id.decode()


def _eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)


def _reason(server: ApiServer) -> str:
    checks = server.client.get("/readyz").json()["checks"]
    return next(str(check.get("reason") or "") for check in checks if check["name"] == "sources")


def _live(server: ApiServer) -> str | None:
    return server.parts.activation.current().policies.commit


async def _started(flags: dict[str, Any]) -> None:
    async with running(load_settings(environment={}, flags=flags)):
        pass


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, Any]:
    public = base64.b64encode(sshsig._written(ANA)).decode()
    (tmp_path / "signers").write_text(f'ana@example.org namespaces="git" ssh-ed25519 {public}\n')
    sources = {kind: {"kind": "git", "location": f"file://{tmp_path / kind}.git"} for kind in ("policies", "fleet")}
    return {
        "data_dir": tmp_path / "data",
        "sources": {**sources, "poll_ms": 200},
        "activation": {"gates": []},
        "revisions": {"allowed_signers_file": str(tmp_path / "signers"), "require_signed": True},
    }


def test_only_what_an_allowed_signer_has_signed_serves(tmp_path: Path, flags: dict[str, Any]) -> None:
    policies, fleet = Repository(tmp_path / "policies.git"), Repository(tmp_path / "fleet.git")
    fleet.signed(FLEET, ANA)
    unsigned = policies.commit(POLICIES)
    with pytest.raises(RevisionError, match=f"signature: the commit {unsigned} is not signed"):
        asyncio.run(_started(flags))
    first = policies.signed(POLICIES, ANA)
    with serving(flags) as server:
        assert _live(server) == first
        changed = {**POLICIES, "settings.yaml": POLICIES["settings.yaml"] + b"# 2\n"}
        unsigned = policies.commit(changed)
        _eventually(lambda: f"the commit {unsigned} is not signed" in _reason(server))
        stranger = policies.signed(changed, EVE)
        _eventually(lambda: "none of an allowed signer" in _reason(server))
        assert _live(server) == first
        signed = policies.signed(changed, ANA)
        _eventually(lambda: _live(server) == signed)
        assert _reason(server) == ""
        assert len({first, unsigned, stranger, signed}) == 4


def test_signatures_are_required_of_repositories_only(flags: dict[str, Any]) -> None:
    sources = {**flags["sources"], "fleet": {"kind": "directory", "location": "fleet"}}
    for given in (sources, {"policies": flags["sources"]["policies"]}):
        with pytest.raises(ConfigError, match=r"require_signed needs a git repository as sources\.fleet"):
            load_settings(environment={}, flags={**flags, "sources": given})
    with pytest.raises(ConfigError, match="require_signed needs allowed_signers_file"):
        load_settings(environment={}, flags={**flags, "revisions": {"require_signed": True}})
