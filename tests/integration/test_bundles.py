"""A real OPA follows the bundle that a server serves, and says of every golden case what policyd says."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from policyd.core.verdict import Answer, PolicySet, Question
from policyd.engines.answers import answer_from
from policyd.engines.entitlements import CasbinEntitlements
from policyd.engines.opa_bundle import BundleKey, opa_bundle
from policyd.errors import ConfigError
from policyd.revisions.fleet_files import load_fleet
from policyd.revisions.policy_files import load_policy_tree
from policyd.services.cases import CaseRunner, load_cases
from policyd.services.sheets import SheetBook, SheetLimits

ROUTE = "/v1/bundles/policies.tar.gz"


def private_pem(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def public_pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "ascii")


def signing(folder: Path, key: Any, algorithm: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The settings of a server that signs with a key, and the key as an OPA is told of it."""
    path = folder / "bundle.pem"
    path.write_bytes(private_pem(key))
    return {"signing_key_file": str(path)}, {"policyd": {"algorithm": algorithm, "key": public_pem(key)}}


class Follower:
    """A real OPA that follows the bundle at an address, and what it answers for policyd's own questions."""

    def __init__(self, address: str, policies: PolicySet) -> None:
        self.client = httpx.Client(base_url=address, timeout=10)
        self.policies = policies

    def revision(self) -> str | None:
        """Which revision it has activated."""
        status = self.client.get("/v1/status").json()["result"]["bundles"]["policyd"]
        self.fault = status.get("message")
        return status.get("active_revision")

    async def evaluate(self, digest: str, questions: Sequence[Question], deadline_ms: int) -> list[Answer]:
        """Each question by itself, as any user of OPA asks."""
        del digest, deadline_ms
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Answer:
        body = b'{"input":' + question.input_json + b"}"
        found = self.client.post(f"/v1/data/placement/{question.package}", content=body).json()["result"]
        return answer_from(found, self.policies.packages[question.package])


@contextmanager
def following(
    opa: Path, folder: Path, server: str, policies: PolicySet, keys: dict[str, Any]
) -> Generator[Follower, None, None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    bundle = {"service": "policyd", "resource": ROUTE, "polling": {"min_delay_seconds": 1, "max_delay_seconds": 1}}
    config: dict[str, Any] = {"services": {"policyd": {"url": server}}, "bundles": {"policyd": bundle}, "status": {}}
    config["keys"], bundle["signing"] = keys, {"keyid": next(iter(keys))}
    (folder / "opa.json").write_text(json.dumps(config))
    command = [str(opa), "run", "--server", "--addr", address, "--config-file", str(folder / "opa.json")]
    child = subprocess.Popen([*command, "--log-level", "error"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    follower = Follower(f"http://{address}", policies)
    try:
        yield follower
    finally:
        follower.client.close()
        child.terminate()
        child.wait(20)


def until(condition: Callable[[], bool], limit_s: float = 30) -> None:
    end = time.monotonic() + limit_s
    while True:
        try:
            if condition():
                return
        except (httpx.TransportError, KeyError):
            pass
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)


def test_an_opa_that_follows_says_what_policyd_says(
    opa_binary: Path, serving_with: Callable[..., Any], tmp_path: Path, repository: Path
) -> None:
    settings, keys = signing(tmp_path, ec.generate_private_key(ec.SECP256R1()), "ES256")
    tree = load_policy_tree(repository / "policies")
    with serving_with(bundles=settings) as server:
        live = server.parts.snapshot
        with following(opa_binary, tmp_path, server.address, live.policies, keys) as opa:
            until(lambda: opa.revision() == tree.digest)
            book = SheetBook(opa, SheetLimits(cold_per_tenant_burst=100_000))  # type: ignore[arg-type]

            def entitlements(fleet: Any) -> CasbinEntitlements:
                return CasbinEntitlements.build(tree.casbin_model, tree.casbin_rows, domains=list(fleet.tenants))

            fleet = load_fleet(repository / "examples" / "fleet")
            runner = CaseRunner(book, live.policies, entitlements, fleet)
            cases = load_cases(repository / "policies" / "cases")
            differences = [(case.name, asyncio.run(runner.run(case)).differences) for case in cases]
            assert [each for each in differences if each[1]] == []
            assert len(differences) >= 25


def test_an_opa_that_knows_another_key_takes_nothing(
    opa_binary: Path, serving_with: Callable[..., Any], tmp_path: Path
) -> None:
    settings, _ = signing(tmp_path, ec.generate_private_key(ec.SECP256R1()), "ES256")
    with serving_with(bundles=settings) as server:
        keys = {"policyd": {"algorithm": "ES256", "key": public_pem(ec.generate_private_key(ec.SECP256R1()))}}
        with following(opa_binary, tmp_path, server.address, server.parts.snapshot.policies, keys) as opa:
            until(lambda: opa.revision() is None and opa.fault is not None)
            assert "verif" in opa.fault
            assert opa.client.get("/v1/data/placement").json() == {}


def test_an_opa_follows_when_another_revision_goes_live(
    opa_binary: Path, serving_with: Callable[..., Any], tmp_path: Path, repository: Path
) -> None:
    policies = shutil.copytree(repository / "policies", tmp_path / "policies")
    settings, keys = signing(tmp_path, rsa.generate_private_key(65_537, 2_048), "RS256")
    fleet = repository / "examples" / "fleet"
    with serving_with(bundles=settings, policies=str(policies), fleet=str(fleet)) as server:
        before = server.parts.snapshot.policies.digest
        with following(opa_binary, tmp_path, server.address, server.parts.snapshot.policies, keys) as opa:
            until(lambda: opa.revision() == before)
            with (policies / "settings.yaml").open("a") as file:
                file.write("# another revision\n")
            server.run(reloaded(server))
            after = server.parts.snapshot.policies.digest
            assert after != before
            until(lambda: opa.revision() == after)


async def reloaded(server: Any) -> None:
    await server.parts.reload.ask()


def test_asking_again_costs_nothing(api: Any) -> None:
    first = api.client.get(ROUTE)
    assert first.status_code == 200
    assert first.headers["content-type"] == "application/gzip"
    again = api.client.get(ROUTE, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert api.client.get(ROUTE, params={"revision": "x"}).status_code == 400


def test_a_bundle_holds_what_is_evaluated_and_nothing_beside(repository: Path) -> None:
    tree = load_policy_tree(repository / "policies")
    content = opa_bundle(tree, None)
    assert content == opa_bundle(tree, None)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        names = archive.getnames()
        manifest = orjson.loads(archive.extractfile(".manifest").read())  # type: ignore[union-attr]
    assert sorted(names) == sorted([".manifest", "data.json", *map(str, tree.modules)])
    assert manifest["revision"] == tree.digest
    assert {"placement", "settings"} <= set(manifest["roots"])


def test_who_may_read_no_revision_gets_no_bundle(serving_with: Callable[..., Any], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.yaml"
    lines = ["tokens:"]
    for name, role in (("gateway", "developer"), ("auditor", "auditor")):
        lines += [f"  - name: {name}", f"    sha256: {sha256(name.encode()).hexdigest()}"]
        lines += [f"    grants: [{{role: {role}, tenant: eu-bank}}]"]
    tokens.write_text("\n".join(lines))
    with serving_with(auth={"tokens_file": str(tokens)}) as server:
        asked = {
            name: server.client.get(ROUTE, headers={"Authorization": f"Bearer {name}"})
            for name in ("gateway", "auditor")
        }
        assert {name: answer.status_code for name, answer in asked.items()} == {"gateway": 403, "auditor": 200}
        assert server.client.get(ROUTE).status_code == 401


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"no key",
        private_pem(ed25519.Ed25519PrivateKey.generate()),
        private_pem(ec.generate_private_key(ec.SECP384R1())),
        private_pem(rsa.generate_private_key(65_537, 1_024)),
        public_pem(ec.generate_private_key(ec.SECP256R1())).encode(),
    ],
    ids=["empty", "text", "ed25519", "p-384", "rsa-1024", "public"],
)
def test_a_key_that_cannot_sign_is_refused(pem: bytes) -> None:
    with pytest.raises(ConfigError, match="signs bundles"):
        BundleKey.read(pem, "policyd")
