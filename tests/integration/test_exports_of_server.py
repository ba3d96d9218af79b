"""The log of a real server copied through it: the same copies as from its data directory, and nobody is believed."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import orjson
import pyarrow.parquet
import pytest

from audit import entries
from audit.entry_lines import page_lines, read_page
from policyd.cli.main import run
from policyd.client import Client, history
from policyd.services import exports
from tests.integration.conftest import ApiServer, serving
from tests.integration.test_api_identity import bearer, granted, tokens_file
from tests.integration.test_exports import REQUESTS, receiver
from tests.integration.test_telemetry_otlp import Receiver, attributes

__all__ = ["receiver"]

Export = Callable[..., tuple[int, bytes, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports_of_server")


@pytest.fixture(scope="module")
def server(folder: Path) -> Generator[ApiServer, None, None]:
    """A server that has decided, and tokens in files beside its data directory."""
    listed = [
        {"name": "team", "grants": [granted("developer")]},
        {"name": "auditor", "grants": [granted("auditor")]},
        {"name": "nobody", "grants": [granted("nobody")]},
        {"name": "bank-auditor", "grants": [granted("auditor", tenant="eu-bank")]},
    ]
    tokens = tokens_file(folder / "tokens.yaml", *listed)
    for name, token in tokens.items():
        (folder / f"{name}.token").write_text(token)
        (folder / f"{name}.token").chmod(0o600)
    with serving({"data_dir": folder / "data", "auth": {"tokens_file": folder / "tokens.yaml"}}) as found:
        for workload in REQUESTS * 2:
            found.client.post("/v1/decisions", json={"workload": workload}, headers=bearer(tokens["team"]))
        yield found


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that end within a step, and steps that end within a page."""
    monkeypatch.setattr(exports, "PAGE_ENTRIES", 2)
    monkeypatch.setattr(entries, "STEP_ENTRIES", 3)


@pytest.fixture
def export(
    server: ApiServer, folder: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Export:
    def asked(
        *arguments: str, local: bool = False, token: str = "auditor", address: str | None = None
    ) -> tuple[int, bytes, str]:
        through = ("--server", address or server.address, "--token-file", str(folder / f"{token}.token"))
        code = run(["audit", "export", *(("--data-dir", str(folder / "data")) if local else through), *arguments])
        out, said = capfdbinary.readouterr()
        return code, out, said.decode()

    return asked


@pytest.mark.usefixtures("small_steps")
def test_a_copy_through_the_server_is_the_one_from_its_directory(export: Export, tmp_path: Path) -> None:
    ocsf = ("--format", "ocsf", "--from", "1", "--to", "5")
    code, direct, _ = export(*ocsf, local=True)
    assert (code, len(direct.splitlines())) == (0, 5)
    code, through, said = export(*ocsf)
    assert (code, through) == (0, direct), said
    assert "copied 5 entries of policyd/" in said
    assert "--from 6" in said
    for name, local in (("direct", True), ("through", False)):
        code, _, said = export("--format", "parquet", "--folder", str(tmp_path / name), "--to", "5", local=local)
        assert code == 0, said
    [one], [other] = ((tmp_path / name).iterdir() for name in ("direct", "through"))
    assert one.name == other.name == "entries-000000000000-000000000005.parquet"
    assert pyarrow.parquet.read_table(one).equals(pyarrow.parquet.read_table(other))


@pytest.mark.usefixtures("small_steps")
def test_a_file_goes_on_where_the_last_copy_ended(export: Export, tmp_path: Path) -> None:
    file = ("--format", "ocsf", "--file", str(tmp_path / "events.jsonl"))
    assert export(*file, "--to", "2")[0] == 0
    assert export(*file)[0] == 2, "the file is there"
    assert export(*file, "--from", "3", "--to", "5")[0] == 0
    events = [orjson.loads(line) for line in (tmp_path / "events.jsonl").read_bytes().splitlines()]
    assert [event["metadata"]["sequence"] for event in events] == list(range(6))


@pytest.mark.usefixtures("small_steps")
def test_a_collector_gets_what_a_server_shows(export: Export, receiver: Receiver) -> None:
    endpoint = ("--endpoint", f"{receiver.address}/v1/logs")
    code, _, said = export("--format", "otlp", *endpoint, "--from", "1", "--to", "5")
    assert code == 0, said
    assert [attributes(line)["policyd.log.index"] for line in receiver.lines] == [1, 2, 3, 4, 5]


def test_only_who_may_read_everything_copies_the_log(export: Export) -> None:
    for token in ("nobody", "bank-auditor"):
        code, out, said = export("--format", "ocsf", token=token)
        assert (code, out) == (1, b"")
        assert "the log of every tenant" in said or "may read the log of no tenant" in said


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--from", "10000"), 2, "`from` is at most"),
        (("--to", "10000"), 2, "there is no part of it from 0 to 10000"),
        (("--log", "no-such-log"), 1, "there is no log 'no-such-log'"),
    ],
)
def test_what_the_server_does_not_have_is_refused(
    export: Export, arguments: tuple[str, ...], code: int, said: str
) -> None:
    ended, out, told = export("--format", "ocsf", *arguments)
    assert (ended, out) == (code, b"")
    assert said in told


def page_of(server: ApiServer, folder: Path, start: int) -> bytes:
    with Client(server.address, token_file=folder / "auditor.token") as client:
        return client.send(history.entries_page(start, None))


@contextmanager
def between(answer: Callable[[int], bytes]) -> Generator[str, None, None]:
    """A go-between that answers pages of entries in its own words; its address."""

    class GoBetween(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = answer(int(self.path.partition("from=")[2].partition("&")[0]))
            self.send_response(200)
            self.send_header("Content-Type", "application/jsonl")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Tests say nothing."""

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), GoBetween)
    thread = threading.Thread(target=partial(found.serve_forever, poll_interval=0.05))
    thread.start()
    try:
        yield f"http://127.0.0.1:{found.server_port}"
    finally:
        found.shutdown()
        thread.join()
        found.server_close()


def test_a_changed_page_ends_the_copy_where_it_can_go_on(
    server: ApiServer, folder: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "PAGE_ENTRIES", 2)
    monkeypatch.setattr(entries, "STEP_ENTRIES", 2)

    def lie(start: int) -> bytes:
        content = page_of(server, folder, start)
        return content.replace(b'"outcome":"deny"', b'"outcome":"allow"') if start >= 2 else content

    with between(lie) as address:
        code, out, said = export("--format", "ocsf", "--to", "5", address=address)
    assert code == 1
    assert "the body is not what was recorded" in said
    reached = int(said.partition("before the entry ")[2].partition(":")[0])
    assert [orjson.loads(line)["metadata"]["sequence"] for line in out.splitlines()] == list(range(reached))
    assert b'"action_id":1' in out or reached < 3
    assert f"--from {reached}" in said


@pytest.mark.parametrize("lie", ["shrinks", "is another", "is no page"])
def test_a_log_that_becomes_another_ends_the_copy(
    server: ApiServer, folder: Path, export: Export, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    monkeypatch.setattr(exports, "PAGE_ENTRIES", 2)
    monkeypatch.setattr(entries, "STEP_ENTRIES", 2)

    def answer(start: int) -> bytes:
        content = page_of(server, folder, start)
        if start < 2:
            return content
        if lie == "is no page":
            return b"<html>"
        page = read_page(content, start)
        if lie == "shrinks":
            return page_lines(page.origin, start, start, start, [])
        return page_lines("policyd/other", page.size, start, page.end, page.entries)

    with between(answer) as address:
        code, out, said = export("--format", "ocsf", "--to", "5", address=address)
    assert (code, len(out.splitlines())) == (1, 2)
    assert "before the entry 2: " in said
    assert "--from 2" in said
