"""Answers of servers that are policyd, and of those that are not: never an allow by accident, never a stack trace."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from policyd.cli.main import run
from policyd.client import Client
from policyd.client.problems import error_of
from policyd.errors import AuditLocked, Loosens, PolicydError, ServerUnreachable, all_errors


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[tuple[int, bytes]]]]:
    """An HTTP server that gives what the test puts into the list: status and body."""
    answers: list[tuple[int, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name that http.server calls

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>"), (200, b"[]"), (200, b""), (404, b"<html>"), (500, b"{}"), (302, b""), (503, b'{"code": 7}')],
)
def test_a_stranger_is_no_policyd(
    stranger: tuple[str, list[tuple[int, bytes]]],
    status: int,
    body: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address, answers = stranger
    answers.append((status, body))
    file = tmp_path / "w.yaml"
    file.write_text("workload: {model: x}\n")
    assert run(["decide", str(file), "--server", address]) == ServerUnreachable.exit_code
    told = capsys.readouterr()
    assert told.out == ""
    assert "see: docs/errors/server.unreachable.md" in told.err


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1", "nonsense", "http://", "ftp://127.0.0.1", "http://[::1", "http://a b"]
)
def test_an_address_without_a_server(address: str) -> None:
    with pytest.raises(ServerUnreachable):
        Client(address).live()


@pytest.mark.parametrize(
    "kind", [error for error in all_errors() if error.__module__ == "policyd.errors"], ids=lambda e: e.code
)
def test_a_problem_is_the_error_that_it_names(kind: type[PolicydError]) -> None:
    document = {
        "code": kind.code,
        "detail": "what happened",
        "remedy": "do this",
        "findings": [{"where": "a:1", "message": "b"}],
    }
    error = error_of(kind.http_status, json.dumps(document).encode(), "http://x")
    assert (type(error), error.exit_code, error.detail) == (kind, kind.exit_code, "what happened")
    assert (error.remedy_text, [str(finding) for finding in error.findings]) == ("do this", ["a:1: b"])


def test_a_problem_of_a_newer_server_is_still_an_error() -> None:
    error = error_of(409, b'{"code": "budget.exceeded", "detail": "no money"}', "http://x")
    assert (type(error), error.detail, error.exit_code) == (PolicydError, "no money", 1)
    assert not isinstance(error, AuditLocked | Loosens)
