"""The client against servers that are none, or bad ones: always an error, in time, in bounds, and asked once."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from policyd.client import Client
from policyd.errors import ConfigError, Overloaded, PolicydError, ServerUnreachable
from tests.integration.test_client import Ask, awaiting, waiting

Talk = Callable[[socket.socket], None]
WORKLOAD = {"tenant": "eu-bank", "model": "llama-3.1-70b-instruct"}
DENY = json.dumps(
    {"id": "1", "outcome": "deny", "valid_until": "x", "ranked": [], "rejected": [], "new_in_2030": {"a": 1}}
).encode()


class Stranger:
    """A server of one's own making: what it was sent, and what it says to each connection."""

    def __init__(self, talk: Talk, context: ssl.SSLContext | None) -> None:
        self.heard: list[bytes] = []
        self._talk = talk
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        scheme = "https" if context else "http"
        self.address = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            try:
                connection.settimeout(5)
                if self._context:
                    connection = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                    connection = shaken(connection)
                self.heard.append(connection.recv(65_536))
                self._talk(connection)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass  # closing with something unread would reset the connection under the answer
            except OSError:
                pass  # the client has left, or refused the certificate
            finally:
                connection.close()

    def end(self) -> None:
        self._ended.set()
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()


def shaken(connection: ssl.SSLSocket) -> socket.socket:
    """After the handshake; a refused one is waited out: to close with something unread would reset the refusal."""
    try:
        connection.do_handshake()
    except ssl.SSLError:
        with socket.socket(fileno=connection.detach()) as plain:
            plain.settimeout(1)
            while plain.recv(65_536):
                pass
        raise
    return connection


@contextmanager
def stranger(talk: Talk, context: ssl.SSLContext | None = None) -> Iterator[Stranger]:
    server = Stranger(talk, context)
    try:
        yield server
    finally:
        server.end()


def saying(*parts: bytes) -> Talk:
    """Says these parts, then closes."""

    def talk(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)

    return talk


def answer(status: int, media_type: str, body: bytes, *heads: str) -> bytes:
    """A whole answer of HTTP."""
    head = [f"HTTP/1.1 {status} X", f"Content-Type: {media_type}", f"Content-Length: {len(body)}", *heads]
    return "\r\n".join([*head, "Connection: close", "", ""]).encode() + body


def silent(connection: socket.socket) -> None:
    """Says nothing for longer than the client waits."""
    connection.recv(1)


def dripping(connection: socket.socket) -> None:
    """Begins an answer and never finishes it, one byte at a time."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(40):
        connection.sendall(b" ")
        time.sleep(0.05)


@pytest.fixture(params=[waiting, awaiting], ids=["Client", "AsyncClient"])
def asking(request: pytest.FixtureRequest) -> Callable[..., Generator[Ask, None, None]]:
    found: Callable[..., Generator[Ask, None, None]] = request.param
    return found


JSON = "application/json"
ALLOW_OF_NOTHING = json.dumps({**json.loads(DENY), "outcome": "allow"}).encode()
CHUNKED = answer(200, JSON, b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
GZIP = "Content-Encoding: gzip"
BENT = gzip.compress(DENY)[:-8] + bytes(8)
NOTHING = b"\x00\x00\x00\xff\xff" * 60_000
"""Blocks of deflate that hold no byte."""
STRANGE: dict[str, tuple[Talk, str]] = {
    "silence": (silent, "does not answer"),
    "drip": (dripping, "did not finish"),
    "closed": (saying(), "does not answer"),
    "no HTTP": (saying(b"SSH-2.0-OpenSSH_9.6\r\n"), "does not answer"),
    "cut head": (saying(b"HTTP/1.1 200 OK\r\nContent-Ty"), "does not answer"),
    "cut body": (saying(answer(200, JSON, DENY)[:-9]), "does not answer"),
    "cut chunk": (saying(CHUNKED, b"5\r\n{"), "does not answer"),
    "HTML": (saying(answer(200, "text/html", b"<html>")), "no decision"),
    "HTML called JSON": (saying(answer(200, JSON, b"<html>")), "no decision"),
    "JSON called HTML": (saying(answer(200, "text/html", DENY)), "no decision"),
    "another status": (saying(answer(202, JSON, DENY)), "no decision"),
    "no body": (saying(answer(204, JSON, b"")), "no decision"),
    "a list": (saying(answer(200, JSON, b"[]")), "no decision"),
    "another document": (saying(answer(200, JSON, b'{"outcome": "allow"}')), "no decision"),
    "an allow of nothing": (saying(answer(200, JSON, ALLOW_OF_NOTHING)), "no decision"),
    "a redirect": (saying(answer(307, JSON, b"", "Location: http://127.0.0.1:1/")), "without a problem document"),
    "a gateway": (saying(answer(502, "text/html", b"<h1>Bad Gateway")), "without a problem document"),
    "an error that is no problem": (saying(answer(500, JSON, b'{"code": "x"}')), "without a problem document"),
    "a problem without a code": (saying(answer(500, "application/problem+json", b"{}")), "without a problem document"),
    "an encoding": (saying(answer(200, JSON, b"\x1f\x8b", "Content-Encoding: br")), "encoding 'br'"),
    "no gzip": (saying(answer(200, JSON, DENY, GZIP)), "no gzip"),
    "gzip without an end": (saying(answer(200, JSON, gzip.compress(DENY)[:-3], GZIP)), "no gzip"),
    "gzip and more": (saying(answer(200, JSON, gzip.compress(DENY) + b"x", GZIP)), "no gzip"),
    "gzip of something else": (saying(answer(200, JSON, BENT, GZIP)), "no gzip"),
    "a bomb": (saying(answer(200, JSON, gzip.compress(bytes(100_000_000)), GZIP)), "more than 200000 bytes"),
    "nothing, at length": (saying(answer(200, JSON, gzip.compress(b"")[:10] + NOTHING, GZIP)), "more than 200000"),
    "a huge body": (saying(answer(200, JSON, b" " * 300_000)), "more than 200000 bytes"),
    "a huge head": (saying(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200_000), "does not answer"),
    "a deep body": (saying(answer(200, JSON, b"[" * 100_000)), "no decision"),
}  # fmt: skip


@pytest.mark.parametrize(("talk", "told"), STRANGE.values(), ids=STRANGE.keys())
def test_a_stranger_decides_nothing(asking: Any, talk: Talk, told: str) -> None:
    with stranger(talk) as server:
        started = time.monotonic()
        limits = {"timeout_s": 0.5, "answer_max_bytes": 200_000, "attempts_max": 3}
        for ask in asking(server.address, **limits):
            with pytest.raises(ServerUnreachable, match=told):
                ask("decide", WORKLOAD)
        assert time.monotonic() - started < 5
    assert len(server.heard) == 1, "a decision is sent once"


def test_a_newer_answer_breaks_nothing(asking: Any) -> None:
    with stranger(saying(answer(200, f"{JSON}; charset=utf-8", DENY))) as server:
        for ask in asking(server.address):
            assert ask("decide", WORKLOAD)["new_in_2030"] == {"a": 1}
    assert b"proxy" not in server.heard[0].lower()


def test_a_compressed_answer_is_the_same_answer(asking: Any) -> None:
    with stranger(saying(answer(200, JSON, gzip.compress(DENY), GZIP))) as server:
        for ask in asking(server.address, answer_max_bytes=len(DENY)):
            assert ask("decide", WORKLOAD) == json.loads(DENY)
    assert b"accept-encoding: gzip\r\n" in server.heard[0].lower()


def test_a_problem_of_a_newer_server_is_still_an_error(asking: Any) -> None:
    problem = {"code": "budget.exceeded", "detail": "no money", "request_id": "r-1", "findings": "none"}
    said = answer(409, "application/problem+json", json.dumps(problem).encode(), "X-Policyd-Decision-Id: d-1")
    with stranger(saying(said)) as server:
        for ask in asking(server.address):
            with pytest.raises(PolicydError, match="no money") as error:
                ask("decide", WORKLOAD)
    found = error.value
    assert (type(found), found.request_id, found.decision_id, found.problem) == (PolicydError, "r-1", "d-1", problem)


BUSY = answer(503, "application/problem+json", b'{"code": "overload", "detail": "busy"}')


@pytest.mark.parametrize(("key", "times"), [(None, 1), ("k-1", 3)])
def test_only_a_key_makes_a_decision_repeatable(asking: Any, key: str | None, times: int) -> None:
    with stranger(saying(BUSY)) as server:
        for ask in asking(server.address, attempts_max=3):
            with pytest.raises(Overloaded):
                ask("decide", WORKLOAD, idempotency_key=key)
            with pytest.raises(Overloaded):
                ask("decide_batch", [{"workload": WORKLOAD}], idempotency_key=key)
    assert len(server.heard) == 2 * times
    assert sum(b"Idempotency-Key: k-1" in heard for heard in server.heard) == (2 * times if key else 0)


def test_a_list_without_an_end_ends(asking: Any) -> None:
    with stranger(saying(answer(200, JSON, b'{"items": [], "next": "again"}'))) as server:
        for ask in asking(server.address):
            with pytest.raises(ServerUnreachable, match="does not end"):
                ask("search")
    assert len(server.heard) == 1


def test_a_batch_has_an_answer_for_each(asking: Any) -> None:
    item = {"status": 200, "decision": json.loads(DENY)}
    crooked = [[], [item, item], [{}], [None], [{**item, "status": 400}], [{**item, "problem": {"code": "x"}}]]
    for items in crooked:
        with stranger(saying(answer(200, JSON, json.dumps({"items": items}).encode()))) as server:
            for ask in asking(server.address):
                with pytest.raises(ServerUnreachable, match="no batch of 1 decisions"):
                    ask("decide_batch", [{"workload": WORKLOAD}])


@pytest.mark.parametrize(
    "body", [b"{}", b'{"decision": "true"}', b'{"decision": 1}', b"true", b'{"items": [], "no_pool_left": []}']
)
def test_only_a_true_is_a_true(asking: Any, body: bytes) -> None:
    with stranger(saying(answer(200, JSON, body))) as server:
        for ask in asking(server.address, attempts_max=3):
            with pytest.raises(ServerUnreachable, match="no evaluation"):
                ask("evaluate", "eu-bank", "a-pool", {"model": "x"})
            with pytest.raises(ServerUnreachable, match="no simulation of 1 workloads"):
                ask("simulate", [{"workload": WORKLOAD}], {})
    assert len([heard for heard in server.heard if b"/access/v1/evaluation" in heard]) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"evaluations": []}',
        b'{"evaluations": [{"decision": true}]}',
        b'{"evaluations": [{"decision": true}, {"decision": 1}]}',
        b'{"evaluations": [{"decision": true}, {"decision": true}, {"decision": true}]}',
        b'{"results": [], "pools": []}',
        b'{"results": ["a-pool"], "page": {}}',
        b'{"results": [{"id": 1}], "page": {}}',
    ],
)
def test_only_what_was_asked_is_an_answer(asking: Any, body: bytes) -> None:
    questions = [{"pool": "a-pool", "workload": {"model": "x"}}] * 2
    with stranger(saying(answer(200, JSON, body))) as server:
        for ask in asking(server.address, attempts_max=3):
            with pytest.raises(ServerUnreachable, match="no list of 2 evaluations"):
                ask("evaluate_many", "eu-bank", questions)
            with pytest.raises(ServerUnreachable, match="no search for pools"):
                ask("search_pools", "eu-bank", {"model": "x"})
            with pytest.raises(ServerUnreachable, match="no comparison"):
                ask("break_even", {"model": "x"})


def test_a_renewed_token_is_used_and_never_told(asking: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    with stranger(saying(answer(401, "text/plain", b"no"))) as server:
        for ask in asking(server.address, token_file=file):
            with pytest.raises(ConfigError, match="token cannot be read"):
                ask("live")
            for written in ("first-secret\n", "second-secret"):
                file.write_text(written)
                with pytest.raises(ServerUnreachable) as error:
                    ask("live")
                assert "secret" not in str(error.value)
            for nothing in ("", "two words", "a\nb", "ä", "x" * 20_000):
                file.write_text(nothing)
                with pytest.raises(ConfigError, match="holds no bearer token"):
                    ask("live")
    assert [b"Authorization: Bearer first-secret" in heard for heard in server.heard] == [True, False]
    assert b"Authorization: Bearer second-secret" in server.heard[1]
    with Client(server.address, token="third-secret") as client:
        assert "third-secret" not in repr(client.connection)


def test_both_ends_of_tls_are_known_to_each_other(asking: Any, tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    for name, found in (("ca.pem", authority), ("other.pem", other)):
        found.cert_pem.write_to_path(tmp_path / name)
    own = authority.issue_cert("gateway.example")
    own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    files = {"ca_file": tmp_path / "ca.pem", "certificate_file": tmp_path / "client.pem"}
    with stranger(saying(answer(200, JSON, b'{"alive": true}')), context) as server:
        for ask in asking(server.address, **files):
            assert ask("live") is True
        for wrong in ({}, {**files, "ca_file": tmp_path / "other.pem"}, {**files, "certificate_file": None}):
            for ask in asking(server.address, timeout_s=5, **wrong):
                with pytest.raises(ServerUnreachable):
                    ask("live")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"token": "a", "token_file": Path("b")}, "leave one out"),
        ({"key_file": Path("b")}, "without its certificate"),
        ({"ca_file": Path("/nowhere.pem")}, "/nowhere.pem: no usable certificates"),
        ({"ca_file": Path(__file__)}, "no usable certificates"),
        ({"timeout_s": 0}, "above zero"),
        ({"attempts_max": 0}, "above zero"),
    ],
)
def test_what_cannot_work_is_refused_at_once(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Client("https://127.0.0.1:1", **given)


def test_the_environment_is_not_asked(asking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with stranger(saying(answer(200, JSON, b'{"alive": true}'))) as server:
        for ask in asking(server.address):
            assert ask("live") is True
