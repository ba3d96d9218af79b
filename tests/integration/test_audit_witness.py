"""Cosignatures from a witness that follows the specification, on a real socket, and from some that do not."""

from __future__ import annotations

import asyncio
import json
import threading
from base64 import b64decode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.checkpoint import Checkpoint, open_checkpoint
from audit.errors import LogCorrupt, LogRolledBack, ProofInvalid
from audit.note import WITNESS_ALGORITHM, SeedSigner, Signature, VerifierKey
from audit.signer import read_public
from audit.tree import Edge, consistency_proof, leaf_hash, verify_consistency
from audit.witness import Answer, cosigned, submission
from connectors.witness import WitnessUnreachable, post_checkpoint
from tests.integration.test_audit_checkpoints import write

ORIGIN = "log.example/one"
LOG = SeedSigner(ORIGIN, bytes(range(32)))
PRIVATE = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
KEY = VerifierKey("witness.example", WITNESS_ALGORITHM, PRIVATE.public_key().public_bytes_raw())
LEAVES = [leaf_hash(b"%d" % nth) for nth in range(40)]


def node(level: int, index: int) -> bytes:
    edge = Edge()
    edge.extend(LEAVES[index << level : (index + 1) << level])
    return edge.root()


def prove(first: int, second: int) -> list[bytes]:
    return consistency_proof(first, second, node)


def checkpoint(size: int, leaves: list[bytes] = LEAVES, signer: SeedSigner = LOG) -> bytes:
    edge = Edge()
    edge.extend(leaves[:size])
    return Checkpoint(ORIGIN, size, edge.root()).sign(signer)


class Witness:
    """One log, one witness, by the rules of the specification."""

    def __init__(self) -> None:
        self.seen = Checkpoint(ORIGIN, 0, Edge().root())
        self.time_s = 1_700_000_000
        self.asked: list[int] = []
        self.key = LOG.key

    def answer(self, body: bytes) -> tuple[int, str, bytes]:
        head, _, note = body.partition(b"\n\n")
        old, *proof = head.decode().split("\n")
        old_size = int(old.removeprefix("old "))
        self.asked.append(old_size)
        try:
            found = open_checkpoint(note, [self.key], origin=ORIGIN).checkpoint
        except ProofInvalid:
            return 403, "text/plain", b""
        if old_size > found.size:
            return 400, "text/plain", b""
        if old_size != self.seen.size:
            return 409, "text/x.tlog.size", b"%d\n" % self.seen.size
        if old_size == found.size and found.root != self.seen.root:
            return 409, "text/plain", b""
        try:
            if old_size > 0:
                hashes = [b64decode(line, validate=True) for line in proof]
                verify_consistency(old_size, found.size, hashes, self.seen.root, found.root)
        except ProofInvalid:
            return 422, "text/plain", b""
        self.seen = found
        message = f"cosignature/v1\ntime {self.time_s}\n{found.text}".encode()
        blob = self.time_s.to_bytes(8, "big") + PRIVATE.sign(message)
        stranger = Signature("elsewhere.example", b"\x00\x01\x02\x03", bytes(72))
        return 200, "text/plain", (stranger.line + Signature(KEY.name, KEY.id, blob).line).encode()


@pytest.fixture
def witness() -> Iterator[tuple[Witness, str]]:
    state = Witness()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/w/add-checkpoint"
            status, kind, body = state.answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8" if kind == "text/plain" else kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state, f"http://127.0.0.1:{server.server_port}/w/"
        server.shutdown()
        thread.join()


def asked(address: str, note: bytes, *, old_size: int = 0) -> bytes:
    return cosigned(note, KEY, lambda body: Answer(*post_checkpoint(address, body)), prove, old_size=old_size)


def test_a_witness_cosigns_a_log_that_grows(witness: tuple[Witness, str]) -> None:
    state, address = witness
    for size, old_size in ((5, 0), (5, 5), (17, 5), (40, 0)):
        opened = open_checkpoint(asked(address, checkpoint(size), old_size=old_size), [LOG.key, KEY])
        assert opened.checkpoint.size == size == state.seen.size
        assert [(each.name, each.time_s) for each in opened.witnesses] == [("witness.example", state.time_s)]
    # The last was told that its old size is wrong, and asked again from there.
    assert state.asked == [0, 5, 5, 0, 17]


def test_a_witness_that_has_seen_more_or_other_entries_is_a_finding(witness: tuple[Witness, str]) -> None:
    _, address = witness
    asked(address, checkpoint(20))
    with pytest.raises(LogRolledBack, match="has seen 20 entries"):
        asked(address, checkpoint(10))
    others = [leaf_hash(b"other"), *LEAVES[1:]]
    with pytest.raises(LogCorrupt, match="has seen another log of 20 entries"):
        asked(address, checkpoint(20, others), old_size=20)
    with pytest.raises(ProofInvalid, match="answered 422"):
        asked(address, checkpoint(30, others), old_size=20)
    with pytest.raises(ProofInvalid, match="answered 403"):
        asked(address, checkpoint(30, signer=SeedSigner(ORIGIN, bytes(32))), old_size=20)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(200, "text/plain", b""), "cut off"),
        (Answer(200, "text/plain", b"\xff\n"), "no text"),
        (Answer(200, "text/plain", b"x" * 70_000), "more than"),
        (Answer(200, "text/plain", Signature(KEY.name, KEY.id, bytes(72)).line.encode()), "does not verify"),
        (Answer(200, "text/plain", Signature("a", b"1234", bytes(72)).line.encode()), "no signature of a known key"),
        (Answer(503, "text/plain", b""), "answered 503"),
        (Answer(409, "text/x.tlog.size", b"3\n"), "changed its mind"),
    ],
)
def test_answers_that_prove_nothing_are_refused(answer: Answer, why: str) -> None:
    with pytest.raises(ProofInvalid, match=why):
        cosigned(checkpoint(5), KEY, lambda body: answer, prove)


def test_what_is_sent_follows_the_specification() -> None:
    assert submission(0, (), checkpoint(5)).startswith(b"old 0\n\nlog.example/one\n5\n")
    sent = submission(3, prove(3, 5), checkpoint(5))
    assert sent.count(b"\n\n") == 2
    with pytest.raises(ProofInvalid, match="none from size 0"):
        submission(0, prove(3, 5), checkpoint(5))
    with pytest.raises(ProofInvalid, match="the key of a log"):
        cosigned(checkpoint(5), LOG.key, lambda body: Answer(200, "", b""), prove)


def test_a_witness_that_is_not_there_is_said_to_be_so() -> None:
    with pytest.raises(WitnessUnreachable, match="does not answer"):
        post_checkpoint("http://127.0.0.1:9", b"", timeout_s=2)
    with pytest.raises(WitnessUnreachable, match="does not answer"):
        post_checkpoint("no address", b"")


def command(*arguments: str) -> int:
    from policyd.cli.main import run

    return run(list(arguments))


def rows(path: Path, first: int, end: int) -> None:
    asyncio.run(write(path, first, end))


def test_the_command_keeps_the_word_of_a_witness(witness: tuple[Witness, str], tmp_path: Path, capfd: Any) -> None:
    state, address = witness
    log, kept = tmp_path / "log", tmp_path / "cosigned"
    rows(log, 0, 7)
    # The witness knows this log by its key.
    state.key = read_public(log / "log.pub")[0]
    given = ("--witness-url", address, "--witness", KEY.text, "--file", str(kept), "--data-dir", str(log))
    assert command("audit", "cosign", *given) == 0
    rows(log, 7, 9)
    assert command("audit", "cosign", *given) == 0
    assert state.asked == [0, 7]
    verifying = ("audit", "verify", "--data-dir", str(log), "--key", str(log / "log.pub"))
    capfd.readouterr()
    assert command(*verifying, "--anchor", str(kept), "--witness", KEY.text, "--output", "json") == 0
    found = json.loads(capfd.readouterr().out)
    assert found["anchors"] == [{"size": 9, "by": f"witness.example (seen at {state.time_s} s)"}]
    other = tmp_path / "other"
    rows(other, 0, 3)
    assert command("audit", "cosign", *given[:-1], str(other)) == 4
    assert "audit.proof" in capfd.readouterr().err
    assert command("audit", "cosign", "--witness-url", "http://127.0.0.1:9", *given[2:]) == 1
    assert "server.unreachable" in capfd.readouterr().err


def test_the_old_key_gives_way_to_the_one_that_it_names(tmp_path: Path, capfd: Any) -> None:
    log, export = tmp_path / "log", tmp_path / "export.jsonl"
    rows(log, 0, 5)
    old = read_public(log / "log.pub")[0]
    assert command("audit", "rotate-key", "--data-dir", str(log)) == 0
    new = capfd.readouterr().out.strip()
    assert [key.text for key in read_public(log / "log.pub")] == [old.text, new]
    assert (log / "log.key").stat().st_mode & 0o777 == 0o600
    assert not (log / "log.key.next").exists()
    rows(log, 5, 8)
    assert command("audit", "verify", "--data-dir", str(log), "--key", old.text, "--output", "json") == 0
    assert json.loads(capfd.readouterr().out)["keys"] == [old.text, new]
    assert command("audit", "export", "--data-dir", str(log), "--file", str(export)) == 0
    assert command("audit", "verify", str(export), "--key", old.text) == 0
    # The new key alone does not know what the old one signed.
    assert command("audit", "verify", str(export), "--key", new) == 4
    assert open_checkpoint((log / "log.checkpoint").read_bytes(), [VerifierKey.parse(new)]).checkpoint.size == 9
