"""What one identity must not learn from the answers to its own questions, over real HTTP."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import ssl
import time
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import orjson
import pytest
import trustme

from policyd.core.fleet import Fleet
from policyd.errors import EngineError
from policyd.identity.tokens import new_token
from policyd.revisions.fleet_files import load_fleet
from policyd.services.permission import visible_pools
from tests.integration.conftest import ApiServer, serving
from tests.integration.test_api_bad_input import check_problem
from tests.integration.test_api_identity import BANK, Doors, Tls, bearer, granted, tokens_file

MODEL = "llama-3.1-70b-instruct"


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Generator[Doors, None, None]:
    """A server and tokens, some of them with a grant that is for every tenant and decides for none."""
    folder = tmp_path_factory.mktemp("attack")
    made = tokens_file(
        folder / "tokens.yaml",
        {"name": "bank", "grants": [granted("developer", tenant="eu-bank")]},
        {"name": "bank-monitor", "grants": [granted("developer", tenant="eu-bank"), granted("monitor")]},
        {"name": "monitor", "grants": [granted("monitor")]},
        {"name": "lab-auditor", "grants": [granted("auditor", tenant="nordic-lab")]},
        {"name": "gone", "grants": [granted("developer", tenant="eu-banc")]},
        {"name": "auditor", "grants": [granted("auditor")]},
        {"name": "platform", "grants": [granted("platform")]},
    )
    flags = {"data_dir": folder / "data", "auth": {"tokens_file": folder / "tokens.yaml"}}
    with serving(flags) as server:
        yield server, made


@pytest.mark.parametrize("who", ["monitor", "bank-monitor", "gone"])
@pytest.mark.parametrize(
    "workload",
    [
        {"tenant": "nordic-lb", "model": MODEL},
        {"tenant": "nordic-lab", "model": MODEL},
        {"tenant": "nordic-lab", "model": "llama"},
        {"tenant": "nordic-lab", "project": "open-scienc", "model": MODEL},
        {"tenant": "nordic-lab", "environment": "prod", "model": MODEL},
        {"tenant": "nordic-lab", "model": MODEL, "data": {"residency": ["US"]}},
        {"tenant": "nordic-lab", "model": MODEL, "data": {"sources": ["genome-cohrt"]}},
        {"tenant": "nordic-lab", "model": MODEL, "sla_class": "realtime"},
    ],
)
def test_no_error_tells_of_a_tenant_that_one_may_not_act_for(doors: Doors, who: str, workload: dict[str, Any]) -> None:
    server, tokens = doors
    asked = {"subject": {"type": "tenant", "id": workload["tenant"]}, "action": {"name": "place"}}
    asked |= {"resource": {"type": "pool", "id": "x"}, "context": workload}
    for path, body in (("/v1/decisions", {"workload": workload}), ("/access/v1/evaluation", asked)):
        found = server.client.post(path, json=body, headers=bearer(tokens[who]))
        problem = check_problem(server, found, 403, "identity.forbidden")
        assert problem["detail"] == f"'token:{who}' may not act for tenant {workload['tenant']!r}"
        assert "findings" not in problem
    simulated = server.client.post("/v1/simulations", json={"workloads": [workload]}, headers=bearer(tokens[who]))
    if simulated.status_code == 200:
        assert "may not act for tenant" in simulated.json()["items"][0]["today"]["problem"]["detail"]
    else:
        check_problem(server, simulated, 403, "identity.forbidden")


def test_errors_tell_whoever_may_act_what_is_wrong(doors: Doors) -> None:
    server, tokens = doors

    def detail(who: str, **workload: Any) -> str:
        body = {"workload": {"model": MODEL, **workload}}
        return str(server.client.post("/v1/decisions", json=body, headers=bearer(tokens[who])).json()["detail"])

    assert "did you mean 'support-chat'" in detail("bank-monitor", tenant="eu-bank", project="support-chta")
    assert "did you mean 'eu-bank'" in detail("platform", tenant="eu-bnk")
    assert "name one" in detail("platform")
    assert "may not act for any tenant" in detail("monitor")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_resumed_session_does_not_outlive_its_authority(tmp_path: Path, version: ssl.TLSVersion) -> None:
    tls = Tls(tmp_path)
    sidecar = tls.authority.issue_cert("sidecar.lab.internal")
    flags = {
        "data_dir": tmp_path / "data",
        "tls": tls.settings(client_ca_file=tls.files["ca"]),
        "auth": {
            "refresh_ms": 100,
            "certificates": {"sidecar.lab.internal": [granted("developer", tenant="nordic-lab")]},
        },
    }
    context = ssl.create_default_context()
    tls.authority.configure_trust(context)
    sidecar.configure_cert(context)
    context.minimum_version = context.maximum_version = version

    def asked(server: ApiServer, session: ssl.SSLSession | None = None) -> tuple[bytes, ssl.SSLSession | None]:
        host, port = server.address.removeprefix("https://").split(":")
        with (
            socket.create_connection((host, int(port)), 10) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as secure,
        ):
            secure.sendall(b"GET /v1/pools?limit=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b""
            while part := secure.recv(65_536):
                answer += part
            return answer[9:12], secure.session

    with serving(flags) as server:
        time.sleep(1.1)  # a session's age is told in whole seconds
        answer, session = asked(server)
        assert answer == b"200"
        assert asked(server, session)[0] == b"200"
        trustme.CA().cert_pem.write_to_path(tls.files["ca"])
        time.sleep(0.5)
        # Either a whole handshake, which is refused, or a session that names nobody.
        with suppress(ssl.SSLError):
            assert asked(server, session)[0] in (b"401", b"")


def test_a_search_does_not_tell_of_a_hidden_pool(doors: Doors) -> None:
    server, tokens = doors
    made = server.client.post("/v1/decisions", json=BANK, headers=bearer(tokens["bank"]))
    assert made.status_code == 200

    def found(who: str, pool: str) -> int:
        search = {"rejected_pool": pool, "tenant": "eu-bank"}
        answer = server.client.get("/v1/decisions", params=search, headers=bearer(tokens[who]))
        assert answer.status_code == 200
        return len(answer.json()["items"])

    record = server.client.get("/v1/decisions", params={"limit": "1"}, headers=bearer(tokens["bank"])).json()["items"][
        0
    ]
    shown = server.client.get(f"/v1/decisions/{record['id']}", headers=bearer(tokens["bank"])).json()["rejected"][0]
    assert found("bank", shown["pool"]) > 0
    assert found("auditor", "hospital-muc-h100") > 0
    assert found("bank", "hospital-muc-h100") == 0


def test_who_simulates_for_another_tenant_is_recorded(doors: Doors) -> None:
    server, tokens = doors
    workloads = [{"tenant": "nordic-lab", "model": MODEL}] * 3
    body = {"workloads": [*workloads, BANK["workload"]]}
    assert server.client.post("/v1/simulations", json=body, headers=bearer(tokens["bank"])).status_code == 200
    search = {"principal": "token:bank", "denied_by": "identity.forbidden"}
    answer = server.client.get("/v1/decisions", params=search, headers=bearer(tokens["auditor"]))
    (entry,) = answer.json()["items"]
    assert "may not act for tenant 'nordic-lab'" in entry["detail"]


def test_metrics_that_name_tenants_are_for_those_who_read_for_all(tmp_path: Path) -> None:
    made = tokens_file(
        tmp_path / "tokens.yaml",
        {"name": "bank", "grants": [granted("auditor", tenant="eu-bank")]},
        {"name": "all", "grants": [granted("monitor")]},
    )
    auth = {"tokens_file": tmp_path / "tokens.yaml"}
    flags = {"data_dir": tmp_path / "data", "auth": auth, "telemetry": {"tenant_label": True}}
    with serving(flags) as server:
        check_problem(server, server.client.get("/metrics", headers=bearer(made["bank"])), 403, "identity.forbidden")
        assert server.client.get("/metrics", headers=bearer(made["all"])).status_code == 200


def test_a_key_gives_nothing_to_who_has_lost_the_right(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    token, digest = new_token()

    def grant(*grants: dict[str, Any]) -> None:
        path.write_bytes(orjson.dumps({"tokens": [{"name": "bank", "sha256": digest, "grants": grants}]}))

    grant(granted("developer", tenant="eu-bank"))
    auth = {"tokens_file": path, "refresh_ms": 100}
    with serving({"data_dir": tmp_path / "data", "auth": auth}) as server:

        def asked() -> httpx.Response:
            return server.client.post("/v1/decisions", json=BANK, headers={**bearer(token), "Idempotency-Key": "k"})

        first = asked()
        assert first.status_code == 200
        assert asked().json()["id"] == first.json()["id"]
        grant(granted("auditor", tenant="eu-bank"))
        time.sleep(0.5)
        refused = asked()
        check_problem(server, refused, 403, "identity.forbidden")
        assert "x-policyd-decision-id" in refused.headers


def test_items_that_wait_for_the_same_failure_have_ids_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: object) -> None:
        await asyncio.sleep(0.2)
        raise EngineError("no verdict")

    with serving({"data_dir": tmp_path / "data"}) as server:
        monkeypatch.setattr(server.parts.engine, "evaluate", failing)
        items = server.client.post("/v1/decisions/batch", json={"requests": [BANK] * 3}).json()["items"]
        assert [item["status"] for item in items] == [503] * 3
        assert len({item["decision_id"] for item in items}) == 3
        for item in items:
            assert server.client.get(f"/v1/decisions/{item['decision_id']}").json()["code"] == EngineError.code


def test_a_refusal_is_not_filed_under_a_tenant_that_is_only_claimed(doors: Doors) -> None:
    server, tokens = doors
    lab = {"workload": {"tenant": "nordic-lab", "project": "open-science", "environment": "prod", "model": MODEL}}
    answer = server.client.post("/v1/decisions", json=lab, headers=bearer(tokens["bank-monitor"]))
    check_problem(server, answer, 403, "identity.forbidden")
    entry = answer.headers["x-policyd-decision-id"]
    # The role that is for every tenant does not decide, so the claim concerns nobody of the lab.
    theirs = server.client.get("/v1/decisions", params={"limit": "1000"}, headers=bearer(tokens["lab-auditor"]))
    assert entry not in {item["id"] for item in theirs.json()["items"]}
    assert server.client.get(f"/v1/decisions/{entry}", headers=bearer(tokens["lab-auditor"])).status_code == 404
    own = server.client.get(f"/v1/decisions/{entry}", headers=bearer(tokens["bank-monitor"]))
    assert own.json()["asked"]["workload"]["tenant"] == "nordic-lab"
    assert server.client.get(f"/v1/decisions/{entry}", headers=bearer(tokens["auditor"])).status_code == 200
    real = server.client.post("/v1/decisions", json=lab, headers=bearer(tokens["platform"]))
    known = server.client.get(f"/v1/decisions/{real.json()['id']}", headers=bearer(tokens["lab-auditor"]))
    assert known.status_code == 200


def test_grants_that_add_up_to_every_tenant_do_not_show_what_none_sees(tmp_path: Path, repository: Path) -> None:
    fleet = tmp_path / "fleet"
    copytree(repository / "examples" / "fleet", fleet)
    policies = tmp_path / "policies"
    copytree(repository / "policies", policies)
    # No tenant sees these pools then.
    for file in policies.joinpath("casbin").glob("*.csv"):
        file.write_text(file.read_text().replace("p, market, *, spot-uk, view, allow\n", ""))
    tenants = [tenant.name for tenant in load_fleet(fleet).document.tenants]
    made = tokens_file(
        tmp_path / "tokens.yaml",
        {"name": "each", "grants": [granted("developer", tenant=name) for name in tenants] + [granted("monitor")]},
        {"name": "auditor", "grants": [granted("auditor")]},
    )
    flags = {"fleet": fleet, "policies": policies, "data_dir": tmp_path / "data"}
    with serving({**flags, "auth": {"tokens_file": tmp_path / "tokens.yaml"}}) as server:
        groups = {}
        for name, token in made.items():
            found = server.client.get("/v1/pools", params={"limit": "1000"}, headers=bearer(token))
            groups[name] = {item["group"] for item in found.json()["items"]}
    assert groups["auditor"] - groups["each"] == {"spot-uk"}


def test_a_pool_that_is_dedicated_to_others_does_not_show(doors: Doors) -> None:
    snapshot = doors[0].parts.snapshot
    pool = snapshot.fleet.pools["onprem-fra-h100"].model_copy(update={"dedicated_to": ("nordic-lab",)})
    pools = tuple(pool if each.id == pool.id else each for each in snapshot.fleet.document.pools)
    document = snapshot.fleet.document.model_copy(update={"pools": pools})
    fleet = Fleet(document, "sha256:other", None, snapshot.fleet.groups)
    assert pool.id in visible_pools(snapshot.entitlements, snapshot.fleet, ["eu-bank"])
    assert pool.id not in visible_pools(snapshot.entitlements, fleet, ["eu-bank"])
    assert visible_pools(snapshot.entitlements, fleet, []) == frozenset()


def test_a_damaged_entry_of_another_tenant_reads_like_none(tmp_path: Path) -> None:
    made = tokens_file(
        tmp_path / "tokens.yaml",
        {"name": "bank", "grants": [granted("developer", tenant="eu-bank")]},
        {"name": "lab", "grants": [granted("developer", tenant="nordic-lab")]},
    )
    absent = "01990000-0000-7000-8000-000000000000"
    with serving({"data_dir": tmp_path / "data", "auth": {"tokens_file": tmp_path / "tokens.yaml"}}) as server:
        decided = server.client.post("/v1/decisions", json=BANK, headers=bearer(made["bank"])).json()

        def read(token: str, entry: str, suffix: str) -> tuple[int, str]:
            answer = server.client.get(f"/v1/decisions/{entry}{suffix}", headers=bearer(made[token]))
            told = {key: value for key, value in answer.json().items() if key != "request_id"}
            return answer.status_code, orjson.dumps(told).decode().replace(entry, "ID")

        damages = ("UPDATE blob SET content = x'00'", "UPDATE body SET body = CAST('{}' AS BLOB)", "DELETE FROM body")
        for damage in damages:
            with closing(sqlite3.connect(server.parts.directory.log_path)) as log, log:
                assert log.execute(damage).rowcount
            for suffix in ("", "/explanation"):
                assert read("bank", decided["id"], suffix)[0] == 503
                assert read("lab", decided["id"], suffix) == read("lab", absent, suffix), damage
                assert read("lab", absent, suffix)[0] == 404
