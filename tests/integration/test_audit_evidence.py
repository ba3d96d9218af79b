"""Evidence from outside: checkpoints, proofs and receipts over HTTP, the client that remembers, the command line."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sqlite3
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from audit.checkpoint import open_checkpoint
from audit.proof import Receipt
from audit.signer import read_public
from audit.tree import verify_consistency
from policyd.cli.main import run as command
from policyd.client import AsyncClient, Client
from policyd.errors import (
    AuditError,
    AuditRolledBack,
    AuditTampered,
    ExportCutOff,
    NotFound,
    ProofRefused,
    RequestError,
    SplitView,
)
from policyd.services import proofs
from policyd.services.checkpoints import LogFiles
from policyd.services.data_directory import DataDirectory
from policyd.services.evidence import export_to, exported, verify_directory, verify_file
from tests.integration.test_audit_checkpoints import entry, write


def decide(api: Any, bank_chat: dict[str, Any]) -> dict[str, Any]:
    found = api.client.post("/v1/decisions", json=bank_chat)
    assert found.status_code == 200
    document: dict[str, Any] = found.json()
    return document


def keys(api: Any) -> tuple[Any, ...]:
    return read_public(LogFiles.within(api.parts.directory.path).public)


def test_a_receipt_verifies_offline(api: Any, bank_chat: dict[str, Any]) -> None:
    answer = decide(api, bank_chat)
    found = api.client.get(f"/v1/decisions/{answer['id']}/receipt")
    assert found.status_code == 200, found.text
    assert found.headers["content-type"].startswith("text/plain")
    receipt = Receipt.parse(found.content)
    assert receipt.index == answer["audit"]["index"]
    opened = receipt.verify(
        keys(api), origin=answer["audit"]["log"], expected_leaf=bytes.fromhex(answer["audit"]["leaf_hash"])
    )
    assert opened.checkpoint.size > receipt.index
    assert receipt.extra is not None
    assert json.loads(receipt.extra)["id"] == answer["id"]
    unknown = api.client.get("/v1/decisions/01990000-0000-7000-8000-000000000000/receipt")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")


def test_checkpoints_are_signed_and_continue_each_other(api: Any, bank_chat: dict[str, Any]) -> None:
    with Client(api.address) as client:
        first = client.follow_log(keys=[key.text for key in keys(api)])
        answer = decide(api, bank_chat)
        client.receipt(answer["id"])
        second = client.follow_log(first, keys=[key.text for key in keys(api)])
    before, now = (open_checkpoint(note, keys(api)).checkpoint for note in (first, second))
    assert now.size > answer["audit"]["index"] >= before.size
    found = api.client.get(f"/v1/log/consistency?from={before.size}&to={now.size}").json()
    assert (found["log"], found["from"], found["to"]) == (now.origin, before.size, now.size)
    from base64 import b64decode

    proof = [b64decode(part) for part in found["proof"]]
    verify_consistency(before.size, now.size, proof, before.root, now.root)
    newest = api.client.get(f"/v1/log/consistency?from={before.size}").json()
    assert newest["to"] >= now.size


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("", "is the size of the checkpoint that you have"),
        ("from=0", "is at least 1"),
        ("from=-1", "is a size of the log"),
        ("from=01", "is a size of the log"),
        ("from=1&to=0", "is at least 1"),
        ("from=1&to=9223372036854775807", "is at most"),
        ("from=1&to=99999999999999999999", "is a size of the log"),
        ("form=1", "did you mean"),
    ],
)
def test_proofs_that_cannot_be_are_refused_by_name(api: Any, query: str, why: str) -> None:
    found = api.client.get(f"/v1/log/consistency?{query}")
    assert (found.status_code, found.json()["code"]) == (400, "request.invalid")
    assert why in found.json()["detail"]


def other_log(path: Path, count: int) -> bytes:
    """The checkpoint of another log of the same name and key, whose entries are others."""
    asyncio.run(write(path, 0, count))
    return (path / "log.checkpoint").read_bytes()


def following(note: bytes, kept: bytes | None, *, key: str | None = None) -> bytes:
    """What a client makes of a server that shows this checkpoint, and proves growth by nothing."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            at = urlsplit(self.path)
            asked = {name: int(value) for name, value in parse_qsl(at.query)}
            proof = json.dumps({"log": "log.example/one", **asked, "proof": []}).encode()
            kind, body = ("text/plain", note) if at.path.endswith("checkpoint") else ("application/json", proof)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with Client(f"http://127.0.0.1:{server.server_port}") as client:
                return client.follow_log(kept, keys=[] if key is None else [key])
        finally:
            server.shutdown()
            thread.join()


def test_a_client_that_remembers_sees_rollback_and_split_view(tmp_path: Path) -> None:
    ten = other_log(tmp_path / "one", 10)
    key = (tmp_path / "one" / "log.pub").read_text().strip()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    asyncio.run(write(tmp_path / "one", 10, 20))
    asyncio.run(write(tmp_path / "two", 30, 40))
    twenty, others = ((tmp_path / name / "log.checkpoint").read_bytes() for name in ("one", "two"))
    assert following(ten, None, key=key) == ten
    assert following(ten, ten, key=key) == ten
    with pytest.raises(AuditRolledBack, match="has 10 entries, and 20 were seen"):
        following(ten, twenty, key=key)
    with pytest.raises(SplitView, match="no beginning of the one over 20"):
        following(others, twenty, key=key)
    with pytest.raises(SplitView, match="no beginning of the one over 20"):
        following(twenty, ten, key=key)  # with a proof that proves nothing
    with pytest.raises(ProofRefused, match="proves nothing"):
        following(ten[:-9] + b"AAAAAAA=\n", None, key=key)
    with pytest.raises(ProofRefused, match="proves nothing"):
        following(b"no note", None)
    with pytest.raises(RequestError, match="the key of the log is none"):
        following(ten, None, key="no key")
    foreign = b"log.example/two\n" + ten.partition(b"\n")[2]
    with pytest.raises(SplitView, match=r"was kept is log\.example/two"):
        following(ten, foreign)


def test_the_asynchronous_client_remembers_too(api: Any) -> None:
    async def scenario() -> None:
        async with AsyncClient(api.address) as client:
            first = await client.follow_log()
            assert await client.follow_log(first)

    asyncio.run(scenario())


def test_tampering_is_named_with_index_and_exit_code(tmp_path: Path) -> None:
    asyncio.run(write(tmp_path, 0, 30))
    with closing(sqlite3.connect(tmp_path / "audit.sqlite")) as raw, raw:
        raw.execute("UPDATE body SET body = replace(body, 'decision', 'derision') WHERE \"index\" = 17")
    verdict = verify_directory(DataDirectory(tmp_path), [], [], [])
    assert (verdict.bad_index, verdict.fault) == (17, "entry 17: the body is not what was recorded")


CHANGES = [
    'DELETE FROM entry WHERE "index" = 12',
    'DELETE FROM body WHERE "index" = 12',
    'DELETE FROM entry WHERE "index" > 20',
    'UPDATE entry SET kind = 1 WHERE "index" = 12',
    'UPDATE entry SET id = zeroblob(16) WHERE "index" = 12',
    'UPDATE entry SET leaf_hash = zeroblob(32) WHERE "index" = 12',
    'UPDATE entry SET "index" = 1000 WHERE "index" = 29',
    "UPDATE log_checkpoint SET note = zeroblob(9)",
    "UPDATE log_checkpoint SET size = size - 1",
    "UPDATE log_checkpoint SET size = size + 1",
    "UPDATE tree_node SET hash = zeroblob(32)",
    "DELETE FROM tree_node",
    "UPDATE meta SET value = 'another' WHERE key = 'origin'",
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_the_database_is_noticed(tmp_path: Path, change: str) -> None:
    asyncio.run(write(tmp_path, 0, 300))
    with closing(sqlite3.connect(tmp_path / "audit.sqlite")) as raw, raw:
        raw.execute("PRAGMA foreign_keys=OFF")
        assert raw.execute(change).rowcount > 0
    assert verify_directory(DataDirectory(tmp_path), [], [], []).fault is not None


def test_what_is_removed_at_the_end_is_known_to_the_file_beside(tmp_path: Path) -> None:
    asyncio.run(write(tmp_path, 0, 10))
    asyncio.run(write(tmp_path, 10, 20))
    with closing(sqlite3.connect(tmp_path / "audit.sqlite")) as raw, raw:
        for table in ("body", "entry"):
            raw.execute(f'DELETE FROM {table} WHERE "index" >= 10')
        raw.execute("DELETE FROM log_checkpoint WHERE size > 10")
    verdict = verify_directory(DataDirectory(tmp_path), [], [], [])
    assert "the checkpoint beside the log has seen 20: it was rolled back" in str(verdict.fault)


def test_an_export_to_a_file_goes_on_where_it_ends(tmp_path: Path) -> None:
    directory, file = DataDirectory(tmp_path / "log"), tmp_path / "export.jsonl"
    asyncio.run(write(directory.path, 0, 300))
    assert export_to(directory, file) == (0, 300)
    whole = file.read_bytes()
    assert export_to(directory, file) == (300, 300)
    assert file.read_bytes() == whole == b"".join(exported(directory, 0))
    for cut in (len(whole) // 3, len(whole) - 3, whole.index(b'{"checkpoint"') + 9):
        file.write_bytes(whole[:cut])
        export_to(directory, file)
        assert file.read_bytes() == whole
    asyncio.run(write(directory.path, 300, 310))
    assert export_to(directory, file) == (300, 310)
    asyncio.run(write(tmp_path / "other", 0, 3))
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"no export\n")
    with pytest.raises(ProofRefused, match="no JSON"):
        export_to(directory, foreign)
    with pytest.raises(RequestError, match="no checkpoint of the log reaches entry 400"):
        list(exported(directory, 400))
    with pytest.raises(AuditError, match="there is no log"):
        export_to(DataDirectory(tmp_path / "nothing"), tmp_path / "new")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log"
    asyncio.run(write(path, 0, 40))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    return path


def run(*arguments: str) -> int:
    return command(list(arguments))


def test_the_command_line_proves_and_refuses(log: Path, tmp_path: Path, capfdbinary: Any) -> None:
    key = str(log / "log.pub")
    assert run("audit", "receipt", entry(7).id, "--data-dir", str(log)) == 0
    receipt = tmp_path / "x.tlog-proof"
    receipt.write_bytes(capfdbinary.readouterr().out)
    assert run("audit", "verify", "--receipt", str(receipt), "--key", key, "--output", "json") == 0
    assert json.loads(capfdbinary.readouterr().out)["index"] == 7
    leaf = ["--leaf-hash", "00" * 32]
    assert run("audit", "verify", "--receipt", str(receipt), "--key", key, *leaf) == ProofRefused.exit_code == 4
    assert run("audit", "verify", "--receipt", str(receipt)) == 2
    export = tmp_path / "x.jsonl"
    assert run("audit", "export", "--data-dir", str(log), "--file", str(export)) == 0
    capfdbinary.readouterr()
    kept = tmp_path / "kept"
    shutil.copy(log / "log.checkpoint", kept)
    assert run("audit", "verify", str(export), "--key", key, "--anchor", str(kept)) == 0
    assert b"anchored to size 40 by the checkpoint in" in capfdbinary.readouterr().out
    assert run("audit", "verify", "--data-dir", str(log)) == 0
    assert b"NOT ANCHORED (self-signed)" in capfdbinary.readouterr().out
    export.write_bytes(export.read_bytes()[:-200])
    assert run("audit", "verify", str(export)) == ExportCutOff.exit_code == 4
    assert b"audit.cut_off" in capfdbinary.readouterr().err
    with closing(sqlite3.connect(log / "audit.sqlite")) as raw, raw:
        raw.execute("UPDATE body SET body = x'00' WHERE \"index\" = 5")
    assert run("audit", "verify", "--data-dir", str(log)) == AuditTampered.exit_code == 4
    assert b"entry 5: the body is not what was recorded" in capfdbinary.readouterr().err
    assert run("audit", "verify", "--key", "nonsense", "--data-dir", str(log)) == 2
    (log / "log.pub").unlink()
    assert run("audit", "verify", "--data-dir", str(log)) == 1
    assert b"audit.key" in capfdbinary.readouterr().err


def test_the_command_line_remembers_a_server(api: Any, log: Path, tmp_path: Path, capfdbinary: Any) -> None:
    asked = ("audit", "verify", "--server", api.address, "--output", "json")
    assert run(*asked) == 0
    first = json.loads(capfdbinary.readouterr().out)
    assert (first["seen_before"], first["signed"]) == (None, False)
    assert run(*asked, "--key", keys(api)[0].text) == 0
    assert json.loads(capfdbinary.readouterr().out)["seen_before"] == first["size"]
    Path(first["kept_in"]).write_bytes((log / "log.checkpoint").read_bytes())
    assert run(*asked) == 4
    assert b"audit.split_view" in capfdbinary.readouterr().err
    assert Path(first["kept_in"]).read_bytes() == (log / "log.checkpoint").read_bytes()
    with Client(api.address) as client, pytest.raises(NotFound):
        client.receipt(entry(7).id)


STORED = ("body.body", "entry.leaf_hash", "entry.id", "entry.kind", "tree_node.hash", "log_checkpoint.note")


def stored_bytes(path: Path) -> list[tuple[str, tuple[int, ...], int]]:
    """Every byte that is evidence: column, key of its row, place in the value."""
    found = []
    with closing(sqlite3.connect(path)) as raw:
        for name in STORED:
            table, _, column = name.partition(".")
            keys = {"tree_node": 'level, "index"', "log_checkpoint": "size, 0"}.get(table, '"index", 0')
            for first, second, value in raw.execute(f"SELECT {keys}, {column} FROM {table}"):
                length = len(value) if isinstance(value, bytes) else 1
                found += [(name, (first, second), place) for place in range(length)]
    return found


def flipped(raw: sqlite3.Connection, place: tuple[str, tuple[int, ...], int], mask: int) -> bool:
    """Turn bits of one stored byte over; False when the database itself refuses, as for an id that is another's."""
    (table, _, column), row, at = place[0].partition("."), place[1], place[2]
    where = {"tree_node": 'level = ? AND "index" = ?', "log_checkpoint": "size = ? AND 0 = ?"}.get(
        table, '"index" = ? AND 0 = ?'
    )
    value = raw.execute(f"SELECT {column} FROM {table} WHERE {where}", row).fetchone()[0]
    changed = value ^ mask if isinstance(value, int) else value[:at] + bytes((value[at] ^ mask,)) + value[at + 1 :]
    try:
        raw.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (changed, *row))
    except sqlite3.IntegrityError:
        raw.rollback()
        return False
    raw.commit()
    return True


def flip_all(path: Path, places: list[tuple[str, tuple[int, ...], int]], mask: int) -> None:
    directory = DataDirectory(path)
    with closing(sqlite3.connect(path / "audit.sqlite")) as raw:
        for place in places:
            if flipped(raw, place, mask):
                assert verify_directory(directory, [], [], []).fault is not None, place
                assert flipped(raw, place, mask)
    assert verify_directory(directory, [], [], []).fault is None


def signed_often(path: Path) -> None:
    """300 entries under three checkpoints."""
    for first in range(0, 300, 100):
        asyncio.run(write(path, first, first + 100))


def test_a_sample_of_flipped_bytes_in_the_database_is_noticed(tmp_path: Path) -> None:
    signed_often(tmp_path)
    places = stored_bytes(tmp_path / "audit.sqlite")
    assert {name for name, _, _ in places} == set(STORED)
    flip_all(tmp_path, random.Random(4).sample(places, 60), 0x20)


@pytest.mark.fault("every byte of a log flipped")
@pytest.mark.long
def test_every_flipped_byte_in_the_database_is_noticed(tmp_path: Path) -> None:
    signed_often(tmp_path)
    places = stored_bytes(tmp_path / "audit.sqlite")
    assert len(places) > 30_000
    flip_all(tmp_path, places, 0x01)


def test_the_log_of_a_server_is_exported_in_parts(
    api: Any, bank_chat: dict[str, Any], tmp_path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proofs, "PAGE_ENTRIES", 2)
    file, key = tmp_path / "export.jsonl", keys(api)[0]
    asked = ("audit", "export", "--server", api.address)
    for _ in range(2):
        for _ in range(3):
            answer = decide(api, bank_chat)
        with Client(api.address) as client:
            client.receipt(answer["id"])  # by now a checkpoint covers it
        assert run(*asked, "--file", str(file)) == 0
        verdict = verify_file(file, [key], [], [])
        assert verdict.fault is None
        assert verdict.entries > answer["audit"]["index"]
    capfdbinary.readouterr()
    assert run(*asked) == 0
    assert capfdbinary.readouterr().out == file.read_bytes()
    assert api.client.get("/v1/log/export?from=99999999").status_code == 400
    asyncio.run(write(tmp_path / "other", 0, 3))
    assert run("audit", "export", "--data-dir", str(tmp_path / "other"), "--file", str(file)) == 4
    assert b"is an export of the log" in capfdbinary.readouterr().err
