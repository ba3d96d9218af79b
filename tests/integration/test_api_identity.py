"""Who asks, over real HTTP: tokens, signed claims, certificates; what each may see; and what everybody else is told."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import orjson
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from policyd.identity.tokens import new_token
from tests.integration.conftest import ApiServer, serving
from tests.integration.test_api_bad_input import check_problem

BANK = {"workload": {"tenant": "eu-bank", "project": "support-chat", "model": "llama-3.1-70b-instruct"}}
LAB = {"workload": {"tenant": "nordic-lab", "model": "llama-3.1-70b-instruct"}}
ISSUER, AUDIENCE = "https://issuer.example/realm", "policyd"


def tokens_file(path: Path, *entries: dict[str, Any]) -> dict[str, str]:
    """A file of tokens with these entries; the tokens by name."""
    made, listed = {}, []
    for entry in entries:
        token, digest = new_token()
        made[entry["name"]] = token
        listed.append({"sha256": digest, **entry})
    path.write_bytes(orjson.dumps({"tokens": listed}))
    return made


def granted(role: str, **scope: Any) -> dict[str, Any]:
    return {"role": role, **scope}


Doors = tuple[ApiServer, dict[str, str]]
"""A server and its tokens by name."""


class Issuer:
    """A real issuer on loopback: keys, a JWKS document behind HTTP, tokens."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"one": rsa.generate_private_key(65_537, 2_048)}
        self.published = ["one"]
        self.mode, self.asked = "well", 0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                body = issuer.document() if issuer.mode in ("well", "slow") else b"<html>"
                if issuer.mode == "slow":
                    time.sleep(0.5)
                self.send_response(500 if issuer.mode == "down" else 200)
                self.end_headers()
                if issuer.mode == "hang":
                    time.sleep(2)
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def document(self) -> bytes:
        listed = []
        for name in self.published:
            key = self.keys[name].public_key()
            algorithm = jwt.get_algorithm_by_name("RS256" if isinstance(key, rsa.RSAPublicKey) else "ES256")
            listed.append({**json.loads(algorithm.to_jwk(key)), "kid": name, "use": "sig"})
        return json.dumps({"keys": listed}).encode()

    def token(self, *, key: str = "one", algorithm: str = "RS256", kid: str | None = None, **claims: Any) -> str:
        said: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "4711",
            "exp": datetime.now(UTC) + timedelta(minutes=5),
            "groups": ["bank-ml"],
            **claims,
        }
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, self.keys[key], algorithm, headers={"kid": kid or key})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def issuer() -> Generator[Issuer, None, None]:
    made = Issuer()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def doors(
    tmp_path_factory: pytest.TempPathFactory, issuer: Issuer
) -> Generator[tuple[ApiServer, dict[str, str]], None, None]:
    """A server that knows tokens and an issuer."""
    folder = tmp_path_factory.mktemp("identity")
    past = "2020-01-01T00:00:00Z"
    made = tokens_file(
        folder / "tokens.yaml",
        {"name": "bank", "grants": [granted("developer", tenant="eu-bank")]},
        {"name": "bank-dev", "grants": [granted("developer", tenant="eu-bank", environments=["dev"])]},
        {"name": "lab", "grants": [granted("developer", tenant="nordic-lab")]},
        {"name": "auditor", "grants": [granted("auditor")]},
        {"name": "bank-auditor", "grants": [granted("auditor", tenant="eu-bank")]},
        {"name": "nobody", "grants": []},
        {"name": "old", "expires_at": past, "grants": [granted("platform")]},
    )
    groups = {"bank-ml": [granted("developer", tenant="eu-bank")], "audit": [granted("auditor")]}
    oidc = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": issuer.url, "groups": groups}
    flags = {
        "data_dir": folder / "data",
        "auth": {"tokens_file": folder / "tokens.yaml", "oidc": oidc, "refresh_ms": 100},
        "limits": {"refusals_interval_ms": 60_000},
    }
    with serving(flags) as server:
        yield server, made


def decide(server: ApiServer, token: str | None, body: dict[str, Any] = BANK) -> httpx.Response:
    return server.client.post("/v1/decisions", json=body, headers=bearer(token) if token else {})


def test_a_token_decides_in_its_scope_only(doors: Doors) -> None:
    server, tokens = doors
    found = decide(server, tokens["bank"])
    assert found.status_code == 200
    record = server.client.get(f"/v1/decisions/{found.json()['id']}", headers=bearer(tokens["bank"])).json()
    assert record["principal"] == "token:bank"
    check_problem(server, decide(server, tokens["bank"], LAB), 403, "identity.forbidden")
    # The one tenant that it may act for need not be named.
    unnamed = {"workload": {"project": "support-chat", "model": "llama-3.1-70b-instruct"}}
    assert decide(server, tokens["bank"], unnamed).json()["workload"]["tenant"] == "eu-bank"
    # An environment outside the grant, and roles that do not decide.
    check_problem(server, decide(server, tokens["bank-dev"]), 403, "identity.forbidden")
    check_problem(server, decide(server, tokens["auditor"]), 403, "identity.forbidden")
    check_problem(server, decide(server, tokens["nobody"]), 403, "identity.forbidden")


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer pd_unknown",
        "bearer\tx",
        "Basic dXNlcjpwYXNz",
        "Bearer a.b.c",
        "Bearer ..",
        "Bearer " + "x" * 20_000,
        "Bearer \xff\xfe.\xff.\xff",
    ],
)
def test_what_proves_nothing(doors: Doors, authorization: str | None) -> None:
    server, _ = doors
    headers = [] if authorization is None else [(b"Authorization", authorization.encode("latin-1"))]
    for method, path in (
        ("POST", "/v1/decisions"),
        ("GET", "/v1/pools"),
        ("GET", "/v1/decisions"),
        ("GET", "/nowhere"),
    ):
        content = orjson.dumps(BANK) if method == "POST" else None
        sent = [*headers, (b"Content-Type", b"application/json")]
        found = server.client.request(method, path, content=content, headers=sent)
        check_problem(server, found, 401, "identity.unauthenticated")
        assert found.headers["www-authenticate"].startswith("Bearer")
        shown = (authorization or "").partition(" ")[2]
        assert len(shown) < 4 or shown not in found.text


def test_two_credentials_are_none(doors: Doors) -> None:
    server, tokens = doors
    both = [("Authorization", f"Bearer {tokens['bank']}"), ("Authorization", f"Bearer {tokens['lab']}")]
    check_problem(server, server.client.get("/v1/pools", headers=both), 401, "identity.unauthenticated")


def test_an_expired_token(doors: Doors) -> None:
    server, tokens = doors
    found = check_problem(server, decide(server, tokens["old"]), 401, "identity.unauthenticated")
    assert "expired" in found["detail"]


def test_open_paths_need_no_proof_and_tell_no_secret(doors: Doors) -> None:
    server, _ = doors
    for path in ("/livez", "/readyz", "/openapi.json", "/docs/errors/identity.unauthenticated"):
        assert server.client.get(path).status_code == 200


def test_metrics_are_for_those_who_may_read_them(doors: Doors) -> None:
    server, tokens = doors
    assert server.client.get("/metrics", headers=bearer(tokens["auditor"])).status_code == 200
    check_problem(server, server.client.get("/metrics", headers=bearer(tokens["bank"])), 403, "identity.forbidden")
    check_problem(server, server.client.get("/metrics"), 401, "identity.unauthenticated")


def test_tenants_do_not_see_each_other(doors: Doors) -> None:
    server, tokens = doors
    theirs = decide(server, tokens["lab"], LAB).json()["id"]
    assert decide(server, tokens["bank"]).status_code == 200
    absent = "01990000-0000-7000-8000-000000000000"
    for suffix in ("", "/explanation", "/receipt"):
        hidden = server.client.get(f"/v1/decisions/{theirs}{suffix}", headers=bearer(tokens["bank"]))
        nowhere = server.client.get(f"/v1/decisions/{absent}{suffix}", headers=bearer(tokens["bank"]))
        problems = []
        for answer, asked in ((hidden, theirs), (nowhere, absent)):
            document = check_problem(server, answer, 404, "not_found")
            document.pop("request_id")
            problems.append(json.dumps(document).replace(asked, "ID"))
        assert problems[0] == problems[1], "the answer tells that it exists"
        assert server.client.get(f"/v1/decisions/{theirs}{suffix}", headers=bearer(tokens["lab"])).status_code == 200
        assert (
            server.client.get(f"/v1/decisions/{theirs}{suffix}", headers=bearer(tokens["auditor"])).status_code == 200
        )

    def tenants(token: str, **filters: str) -> set[str | None]:
        found = server.client.get("/v1/decisions", params={"limit": "1000", **filters}, headers=bearer(tokens[token]))
        assert found.status_code == 200, found.text
        for item in found.json()["items"][:5]:
            # What a search shows can be opened, and the other way round.
            answer = server.client.get(f"/v1/decisions/{item['id']}", headers=bearer(tokens[token]))
            assert answer.status_code == 200, item
        return {item["workload"]["tenant"] if "workload" in item else tenant_of(item) for item in found.json()["items"]}

    def tenant_of(item: dict[str, Any]) -> str | None:
        return item["scope"][0] if item.get("scope") else None

    assert tenants("lab") == {"nordic-lab"}
    assert tenants("lab", tenant="eu-bank") == set()
    assert tenants("bank-auditor") == {"eu-bank"}
    decide(server, "pd_unknown")
    assert {"eu-bank", "nordic-lab", None} <= tenants("auditor")
    nobody = server.client.get("/v1/decisions", headers=bearer(tokens["nobody"]))
    check_problem(server, nobody, 403, "identity.forbidden")


def test_proofs_are_for_readers_and_the_whole_log_for_who_may_read_all(doors: Doors) -> None:
    server, tokens = doors
    own = decide(server, tokens["bank"]).json()["id"]
    assert server.client.get(f"/v1/decisions/{own}/receipt", headers=bearer(tokens["bank"])).status_code == 200
    for path, allowed in (
        ("/v1/log/checkpoint", {"auditor", "bank-auditor"}),
        ("/v1/log/consistency?from=1&to=1", {"auditor", "bank-auditor"}),
        ("/v1/log/export?from=1", {"auditor"}),
        ("/v1/log/entries?from=1", {"auditor"}),
    ):
        for name in ("auditor", "bank-auditor", "nobody"):
            found = server.client.get(path, headers=bearer(tokens[name]))
            if name in allowed:
                assert found.status_code == 200, (path, name)
            else:
                check_problem(server, found, 403, "identity.forbidden")
        check_problem(server, server.client.get(path), 401, "identity.unauthenticated")


def test_the_fleet_as_each_may_see_it(doors: Doors) -> None:
    server, tokens = doors

    def pools(token: str) -> set[str]:
        found = server.client.get("/v1/pools", params={"limit": "1000"}, headers=bearer(tokens[token]))
        return {item["id"] for item in found.json()["items"]}

    assert "hospital-muc-h100" in pools("auditor")
    assert "hospital-muc-h100" not in pools("bank")
    assert "onprem-fra-h100" in pools("bank")
    hidden = server.client.get("/v1/pools/hospital-muc-h100", headers=bearer(tokens["bank"]))
    assert "hospital-muc" not in check_problem(server, hidden, 404, "not_found")["detail"].partition("; did")[2]
    fleet = server.client.get("/v1/fleet", headers=bearer(tokens["bank"]))
    assert [tenant["name"] for tenant in fleet.json()["tenants"]] == ["eu-bank"]
    assert "hospital" not in fleet.text
    every = server.client.get("/v1/fleet", headers=bearer(tokens["auditor"]))
    assert every.headers["etag"] != fleet.headers["etag"], "one must not stand for the other in a cache"


def test_signed_claims(doors: Doors, issuer: Issuer) -> None:
    server, _ = doors
    found = decide(server, issuer.token())
    assert found.status_code == 200
    record = server.client.get(f"/v1/decisions/{found.json()['id']}", headers=bearer(issuer.token(groups=["audit"])))
    assert record.json()["principal"] == "oidc:4711"
    check_problem(server, decide(server, issuer.token(), LAB), 403, "identity.forbidden")
    check_problem(server, decide(server, issuer.token(groups=["else"])), 403, "identity.forbidden")
    check_problem(server, decide(server, issuer.token(groups=None)), 403, "identity.forbidden")
    # A name of the issuer's choice is no name of ours.
    record = decide(server, issuer.token(sub="local", groups=[]))
    check_problem(server, record, 403, "identity.forbidden")


def forged(issuer: Issuer, **header: Any) -> str:
    """The claims of a good token under another header, unsigned."""
    _, payload, _ = issuer.token().split(".")
    written = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    return f"{written}.{payload}."


def with_public_key_as_secret(issuer: Issuer) -> str:
    """HS256 with the public key as the secret: the classic confusion of algorithms."""
    import hmac
    from hashlib import sha256

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = issuer.keys["one"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _, payload, _ = issuer.token().split(".")
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"one"}').rstrip(b"=").decode()
    signature = hmac.new(public, f"{head}.{payload}".encode(), sha256).digest()
    return f"{head}.{payload}." + base64.urlsafe_b64encode(signature).rstrip(b"=").decode()


BAD_CLAIMS: dict[str, Callable[[Issuer], str]] = {
    "expired": lambda i: i.token(exp=datetime.now(UTC) - timedelta(minutes=5)),
    "not yet": lambda i: i.token(nbf=datetime.now(UTC) + timedelta(minutes=5)),
    "made in the future": lambda i: i.token(iat=datetime.now(UTC) + timedelta(minutes=5)),
    "another audience": lambda i: i.token(aud="another"),
    "no audience": lambda i: i.token(aud=None),
    "another issuer": lambda i: i.token(iss="https://issuer.example/realm/"),
    "no end": lambda i: i.token(exp=None),
    "an end beyond numbers": lambda i: jwt.encode(
        {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": 10**400}, i.keys["one"], "RS256", headers={"kid": "one"}
    ),
    "an endless end": lambda i: i.token(exp=float("inf")),
    "no subject": lambda i: i.token(sub=None),
    "a subject that is no text": lambda i: i.token(sub="x\ny"),
    "a long subject": lambda i: i.token(sub="x" * 500),
    "groups that are no list": lambda i: i.token(groups={"bank-ml": True}),
    "groups within groups": lambda i: i.token(groups=[["bank-ml"]]),
    "alg none": lambda i: forged(i, alg="none", kid="one"),
    "alg None": lambda i: forged(i, alg="None", kid="one"),
    "no alg": lambda i: forged(i, kid="one"),
    "unsigned": lambda i: forged(i, alg="RS256", kid="one"),
    "crit": lambda i: jwt.encode(
        {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": 4_000_000_000},
        i.keys["one"],
        "RS256",
        headers={"kid": "one", "crit": ["exp"]},
    ),
    "no key name": lambda i: jwt.encode(
        {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": 4_000_000_000}, i.keys["one"], "RS256"
    ),
    "unknown key": lambda i: i.token(kid="two"),
    "key of a path": lambda i: i.token(kid="../../etc/passwd"),
    "altered": lambda i: i.token()[:-8] + "AAAAAAAA",
    "the public key as secret": with_public_key_as_secret,
    "an algorithm that is not taken": lambda i: i.token(algorithm="RS512"),
}


@pytest.mark.parametrize("name", BAD_CLAIMS)
def test_bad_claims(doors: Doors, issuer: Issuer, name: str) -> None:
    server, _ = doors
    token = BAD_CLAIMS[name](issuer)
    problem = check_problem(server, decide(server, token), 401, "identity.unauthenticated")
    assert token not in json.dumps(problem)


@contextmanager
def with_issuer(tmp_path: Path, issuer: Issuer, **oidc: Any) -> Generator[ApiServer, None, None]:
    groups = {"bank-ml": [granted("developer", tenant="eu-bank")]}
    settings = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": issuer.url, "groups": groups, **oidc}
    with serving({"data_dir": tmp_path / "data", "auth": {"oidc": settings}}) as server:
        yield server


@pytest.fixture
def own_issuer() -> Generator[Issuer, None, None]:
    made = Issuer()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_keys_rotate(tmp_path: Path, own_issuer: Issuer) -> None:
    with with_issuer(tmp_path, own_issuer, algorithms=["RS256", "ES256"]) as server:
        keys = server.parts.callers.authenticator.claims.keys  # type: ignore[union-attr]
        old = own_issuer.token()
        assert decide(server, old).status_code == 200
        own_issuer.keys["two"] = ec.generate_private_key(ec.SECP256R1())
        own_issuer.published = ["two"]
        new = own_issuer.token(key="two", algorithm="ES256")
        # The new key is asked for at once, but not by every token with an invented key.
        keys.times = keys.times.__class__(cooldown_ms=0)
        assert decide(server, new).status_code == 200
        check_problem(server, decide(server, old), 401, "identity.unauthenticated")
        keys.times = keys.times.__class__(cooldown_ms=60_000)
        before = own_issuer.asked
        for number in range(20):
            decide(server, own_issuer.token(kid=f"invented-{number}"))
        assert own_issuer.asked == before
        # A key of another kind than the algorithm needs.
        check_problem(server, decide(server, own_issuer.token(kid="two")), 401, "identity.unauthenticated")


def test_who_comes_while_keys_are_fetched_waits_for_them(tmp_path: Path, own_issuer: Issuer) -> None:
    own_issuer.mode = "slow"
    with with_issuer(tmp_path, own_issuer) as server, ThreadPoolExecutor(4) as pool:
        tokens = [own_issuer.token(sub=str(number)) for number in range(4)]
        assert {answer.status_code for answer in pool.map(lambda token: decide(server, token), tokens)} == {200}
        assert own_issuer.asked == 1


@pytest.mark.parametrize("mode", ["down", "html", "hang"])
def test_an_issuer_that_cannot_be_asked(tmp_path: Path, own_issuer: Issuer, mode: str) -> None:
    own_issuer.mode = mode
    with with_issuer(tmp_path, own_issuer, jwks_timeout_ms=300) as server:
        began = time.monotonic()
        check_problem(server, decide(server, own_issuer.token()), 401, "identity.unauthenticated")
        assert time.monotonic() - began < 1.5
        keys = server.parts.callers.authenticator.claims.keys  # type: ignore[union-attr]
        keys.times = keys.times.__class__(cooldown_ms=0)
        own_issuer.mode = "well"
        assert decide(server, own_issuer.token()).status_code == 200
        # What was fetched counts for a while without the issuer, and not for ever.
        own_issuer.mode = mode
        keys.times = keys.times.__class__(refresh_ms=0, cooldown_ms=0, timeout_ms=200)
        assert decide(server, own_issuer.token(sub="another")).status_code == 200
        keys.times = keys.times.__class__(refresh_ms=0, cooldown_ms=0, max_age_ms=0, timeout_ms=200)
        check_problem(server, decide(server, own_issuer.token(sub="third")), 401, "identity.unauthenticated")


def test_refusals_are_recorded_and_a_flood_is_one_entry(doors: Doors) -> None:
    server, tokens = doors
    for _ in range(50):
        server.client.get("/v1/pools/hospital-muc-h100", headers=bearer(tokens["bank-dev"]))
    search = {"principal": "token:bank-dev", "denied_by": "not_found", "limit": "100"}

    def entries() -> list[dict[str, Any]]:
        answer = server.client.get("/v1/decisions", params=search, headers=bearer(tokens["auditor"]))
        return list(answer.json()["items"])

    assert len(entries()) == 1
    assert "hospital-muc-h100" in entries()[0]["detail"]
    server.run(server.parts.callers.refusals.flush())
    counted = entries()
    assert len(counted) == 2
    assert counted[0]["count"] == 49
    for entry in counted:
        for suffix in ("", "/explanation", "/explanation?format=text"):
            opened = server.client.get(f"/v1/decisions/{entry['id']}{suffix}", headers=bearer(tokens["auditor"]))
            assert opened.status_code == 200
    # No search of the tenant's own auditor finds what a principal of another tenant was refused.
    mine = server.client.get("/v1/decisions", params=search, headers=bearer(tokens["bank-auditor"]))
    assert mine.json()["items"] == []


def test_tokens_come_and_go_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tokens.yaml"
    first = tokens_file(path, {"name": "a", "grants": [granted("developer", tenant="eu-bank")]})
    flags = {"data_dir": tmp_path / "data", "auth": {"tokens_file": path, "refresh_ms": 100}}
    with serving(flags) as server:
        assert decide(server, first["a"]).status_code == 200
        second = tokens_file(path, {"name": "b", "grants": [granted("developer", tenant="eu-bank")]})
        wait_until(lambda: decide(server, second["b"]).status_code == 200)
        assert decide(server, first["a"]).status_code == 401
        path.write_text("tokens: [{name: c, sha256: short, grants: []}]")
        wait_until(lambda: server.parts.settings and "stay in force" in caplog.text)
        assert decide(server, second["b"]).status_code == 200
        path.unlink()
        time.sleep(0.3)
        assert decide(server, second["b"]).status_code == 200


def wait_until(held: Callable[[], Any], limit_s: float = 10) -> None:
    ends = time.monotonic() + limit_s
    while not held():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.05)


def test_limits_of_one_principal_are_not_the_others(tmp_path: Path) -> None:
    made = tokens_file(
        tmp_path / "tokens.yaml",
        {"name": "loud", "grants": [granted("developer", tenant="eu-bank")]},
        {"name": "quiet", "grants": [granted("developer", tenant="eu-bank")]},
    )
    flags = {
        "data_dir": tmp_path / "data",
        "auth": {"tokens_file": tmp_path / "tokens.yaml"},
        "limits": {"requests_per_s": 1, "requests_burst": 5},
    }
    with serving(flags) as server:
        statuses = [decide(server, made["loud"]).status_code for _ in range(8)]
        assert statuses[:5] == [200] * 5
        refused = decide(server, made["loud"])
        assert 429 in (*statuses, refused.status_code)
        check_problem(server, refused, 429, "identity.limit")
        assert int(refused.headers["retry-after"]) >= 1
        assert decide(server, made["quiet"]).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8470", "127.0.0.1.evil.example", "", "localhost@evil.example"]
)
def test_a_rebound_name_is_not_local(api: Any, host: str) -> None:
    answer = api.client.get("/v1/pools", headers={"Host": host})
    assert answer.status_code in (400, 421)
    if answer.status_code == 421:
        check_problem(api, answer, 421, "identity.host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8470", "[::1]:8470", "[::1]"])
def test_names_of_this_machine(api: Any, host: str) -> None:
    assert api.client.get("/v1/pools", headers={"Host": host}).status_code == 200


class Tls:
    """Certificates of an authority made for one test."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.server = self.authority.issue_cert("127.0.0.1", "localhost")
        self.files = {name: folder / f"{name}.pem" for name in ("certificate", "key", "ca")}
        self.write(self.server)
        self.authority.cert_pem.write_to_path(self.files["ca"])

    def write(self, certificate: trustme.LeafCert) -> None:
        self.files["certificate"].write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(self.files["key"])

    def settings(self, **more: Any) -> dict[str, Any]:
        return {"certificate_file": self.files["certificate"], "key_file": self.files["key"], **more}

    def client(self, address: str, certificate: trustme.LeafCert | None = None) -> httpx.Client:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if certificate is not None:
            certificate.configure_cert(context)
        return httpx.Client(base_url=address, verify=context, timeout=10)


def test_client_certificates(tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    made = tokens_file(tmp_path / "tokens.yaml", {"name": "bank", "grants": [granted("developer", tenant="eu-bank")]})
    sidecar = tls.authority.issue_cert("sidecar.lab.internal")
    both = tls.authority.issue_cert("sidecar.lab.internal", "auditor.internal")
    certificates = {
        "sidecar.lab.internal": [granted("developer", tenant="nordic-lab")],
        "auditor.internal": [granted("auditor")],
    }
    flags = {
        "data_dir": tmp_path / "data",
        "tls": tls.settings(client_ca_file=tls.files["ca"]),
        "auth": {"certificates": certificates, "tokens_file": tmp_path / "tokens.yaml"},
    }
    with serving(flags) as server:
        assert server.address.startswith("https://")
        with tls.client(server.address, sidecar) as client:
            assert client.post("/v1/decisions", json=LAB).status_code == 200
            assert client.post("/v1/decisions", json=BANK).status_code == 403
            # A bad token is not passed over for the good certificate; a good one counts.
            assert client.post("/v1/decisions", json=LAB, headers=bearer("pd_bad")).status_code == 401
            assert client.post("/v1/decisions", json=BANK, headers=bearer(made["bank"])).status_code == 200
        for certificate in (both, tls.authority.issue_cert("unknown.internal"), None):
            with tls.client(server.address, certificate) as client:
                assert client.post("/v1/decisions", json=LAB).status_code == 401
        stranger = trustme.CA().issue_cert("sidecar.lab.internal")
        with tls.client(server.address, stranger) as client, pytest.raises(httpx.TransportError):
            client.post("/v1/decisions", json=LAB)


def test_tls_files_are_taken_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tls = Tls(tmp_path)
    flags = {"data_dir": tmp_path / "data", "tls": tls.settings(), "auth": {"refresh_ms": 100}}

    def serial(server: ApiServer) -> int:
        host, port = server.address.removeprefix("https://").split(":")
        context = ssl.create_default_context()
        tls.authority.configure_trust(context)
        import socket

        with (
            socket.create_connection((host, int(port)), 10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            return int(secure.getpeercert()["serialNumber"], 16)  # type: ignore[index,arg-type]

    with serving(flags) as server, tls.client(server.address) as standing:
        before = serial(server)
        assert standing.get("/livez").status_code == 200
        tls.write(tls.authority.issue_cert("127.0.0.1", "localhost"))
        wait_until(lambda: serial(server) != before)
        assert standing.get("/livez").status_code == 200
        after = serial(server)
        tls.files["key"].write_text("no key at all")
        wait_until(lambda: "not taken" in caplog.text)
        assert serial(server) == after
