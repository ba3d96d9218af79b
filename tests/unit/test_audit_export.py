"""Exports: written, resumed, verified offline with nothing but ``cryptography``, and attacked in every byte."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import tracemalloc
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from audit.checkpoint import Checkpoint, sign_rotation
from audit.errors import AuditFailure, LogCorrupt, ProofInvalid
from audit.export import Row, export_lines
from audit.fold import Anchor, Verdict
from audit.note import WITNESS_ALGORITHM, Note, SeedSigner, Signature, VerifierKey, parse_note
from audit.tree import Edge, leaf_hash
from audit.verify import kept_anchor, main, report, verify_export

ORIGIN = "log.example/one"
FIRST = SeedSigner(ORIGIN, bytes(range(32)))
SECOND = SeedSigner(ORIGIN, bytes(range(32, 64)))
STRANGER = SeedSigner(ORIGIN, b"s" * 32)
ENTRIES = 300


class Kept:
    """A log in memory: bodies, and checkpoints at the named sizes."""

    def __init__(self, bodies: list[bytes], sizes: list[int], signer: Callable[[int], SeedSigner]) -> None:
        self.origin = ORIGIN
        self.bodies = bodies
        self.notes: list[tuple[int, bytes]] = []
        edge = Edge()
        for size in sizes:
            edge.extend([leaf_hash(body) for body in bodies[edge.size : size]])
            self.notes.append((size, Checkpoint(ORIGIN, size, edge.root()).sign(signer(size))))

    def checkpoints(self, after: int) -> Iterator[tuple[int, bytes]]:
        return ((size, note) for size, note in self.notes if size > after)

    def rows(self, start: int, end: int) -> Iterator[Row]:
        for index in range(start, min(end, len(self.bodies))):
            yield Row(index, leaf_hash(self.bodies[index]), self.bodies[index])


def entry_id(nth: int) -> str:
    return str(UUID(int=(0x0199 << 112) | (7 << 76) | (2 << 62) | nth))


def bodies(count: int = ENTRIES, rotated_at: int | None = 200) -> list[bytes]:
    made = [b'{"id":"%b","kind":"decision"}' % entry_id(nth).encode() for nth in range(count)]
    made[7] = b"two\nlines"
    if rotated_at is not None:
        note = b64encode(sign_rotation(FIRST, ORIGIN, SECOND.key))
        made[rotated_at] = b'{"id":"%b","kind":"key","note":"%b"}' % (entry_id(rotated_at).encode(), note)
    return made


def kept_log() -> Kept:
    return Kept(bodies(), [1, 90, 200, 256, 300], lambda size: FIRST if size <= 200 else SECOND)


def exported(source: Kept | None = None, key: VerifierKey = FIRST.key, edge: Edge | None = None) -> bytes:
    return b"".join(export_lines(source or kept_log(), key, edge or Edge()))


def checked(data: bytes, *keys: VerifierKey, anchors: tuple[Anchor, ...] = ()) -> Verdict:
    return verify_export(io.BytesIO(data), keys=keys or (FIRST.key,), anchors=anchors)


def detected(data: bytes) -> bool:
    try:
        return checked(data).fault is not None
    except AuditFailure:
        return True


def test_an_export_is_json_lines_with_the_exact_bytes() -> None:
    lines = [json.loads(line) for line in exported().splitlines()]
    assert lines[0] == {"format": "policyd-export@v1", "origin": ORIGIN, "key": FIRST.key.text, "from": 0, "edge": []}
    assert lines[1]["body"] == {"id": entry_id(0), "kind": "decision"}
    assert lines[-1] == {"end": 300, "checkpoints": 5}
    assert sum("index" in line for line in lines) == ENTRIES
    assert "body_base64" in next(line for line in lines if line.get("index") == 7)


def test_a_sound_export_verifies_and_says_how_far_its_word_goes() -> None:
    verdict = checked(exported())
    assert (verdict.fault, verdict.entries, verdict.checkpoints, verdict.covered) == (None, 300, 5, 300)
    assert verdict.keys == (FIRST.key, SECOND.key)
    assert report(verdict) == [
        f"log {ORIGIN}",
        "entries 0 to 299 and 5 checkpoints hold together",
        f"signed by {ORIGIN}+{FIRST.key.id.hex()}, {ORIGIN}+{SECOND.key.id.hex()}",
        "NOT ANCHORED (self-signed)",
    ]
    own = verify_export(io.BytesIO(exported()))
    assert own.fault is None
    assert "which the log itself names" in report(own)[2]


def test_an_export_resumes_at_any_index_and_verifies_alone() -> None:
    source = kept_log()
    whole = exported(source)
    for start in (1, 90, 137, 256, 300):
        edge = Edge()
        edge.extend([leaf_hash(body) for body in source.bodies[:start]])
        key = FIRST.key if start <= 200 else SECOND.key
        part = exported(source, key, edge)
        verdict = verify_export(io.BytesIO(part), keys=[key])
        assert (verdict.fault, verdict.first, verdict.entries) == (None, start, 300 - start)
        assert set(part.splitlines()[1:-1]) <= set(whole.splitlines())
        forged = Edge(start, [leaf_hash(b"another past")] * start.bit_count())
        if start < 300:
            assert checked(exported(source, key, forged), key).fault is not None


def test_an_anchor_is_what_somebody_else_has_kept(tmp_path: Path) -> None:
    source = kept_log()
    for size, note in source.notes:
        path = tmp_path / f"{size}.checkpoint"
        path.write_bytes(note)
        verdict = checked(exported(source), anchors=(kept_anchor(path, [FIRST.key, SECOND.key], "me"),))
        assert verdict.word == f"anchored to size {size} by me"
    other = Kept(bodies(rotated_at=None), [150, 300], lambda _: FIRST)
    kept = tmp_path / "kept"
    kept.write_bytes(Kept([b"{}", *bodies(rotated_at=None)[1:]], [150], lambda _: FIRST).notes[0][1])
    verdict = checked(exported(other), anchors=(kept_anchor(kept, [FIRST.key]),))
    assert "not those that were kept by the checkpoint in" in str(verdict.fault)
    short = Kept(bodies(rotated_at=None)[:100], [100], lambda _: FIRST)
    kept.write_bytes(other.notes[0][1])
    verdict = checked(exported(short), anchors=(kept_anchor(kept, [FIRST.key]),))
    assert verdict.bad_index == 100
    assert "it was rolled back" in str(verdict.fault)
    with pytest.raises(ProofInvalid, match="no signature of a known key"):
        kept_anchor(kept, [STRANGER.key])
    with pytest.raises(ProofInvalid, match="cannot be read"):
        kept_anchor(tmp_path / "nowhere", [])


def test_a_witness_anchors_what_it_signed() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
    witness = VerifierKey("witness.example", WITNESS_ALGORITHM, private.public_key().public_bytes_raw())
    source = kept_log()
    note = parse_note(source.notes[1][1])
    signed = private.sign(b"cosignature/v1\ntime 77\n" + note.text.encode())
    line = Signature(witness.name, witness.id, (77).to_bytes(8, "big") + signed)
    source.notes[1] = (90, Note(note.text, (*note.signatures, line)).encode())
    verdict = verify_export(io.BytesIO(exported(source)), keys=[FIRST.key], witnesses=[witness])
    assert verdict.word == "anchored to size 90 by witness.example (seen at 77 s)"
    assert checked(exported(source)).word == "NOT ANCHORED (self-signed)"


def lines_of(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def test_what_is_wrong_is_named_with_its_index() -> None:
    lines = lines_of(exported())
    # Line 0 is the head and line 2 the first checkpoint, so that entry 57 is in line 59.
    assert lines[59].startswith(b'{"index":57,')
    cases: dict[str, tuple[list[bytes], int | None]] = {
        "the body is not what was recorded": (
            [*lines[:59], lines[59].replace(b"decision", b"derision"), *lines[60:]],
            57,
        ),
        "missing or moved: entry 58 stands here": ([*lines[:59], *lines[60:]], 57),
        "missing or moved: entry 58": ([*lines[:59], lines[60], lines[59], *lines[61:]], 57),
        "missing: the export is cut off here": (lines[:59], 57),
        "something follows the end": ([*lines, b"\n"], 300),
        "holds 5 checkpoints, and it holds 4": ([*lines[:2], *lines[3:]], None),
        "neither an entry nor a checkpoint": ([*lines[:59], b'{"note":1}\n', *lines[59:]], 57),
    }
    for why, (attacked, index) in cases.items():
        verdict = checked(b"".join(attacked))
        assert why in str(verdict.fault), verdict.fault
        assert verdict.bad_index == index
        assert report(verdict)[1].startswith("FAILED: ")
    half = exported()[: len(exported()) // 2]
    assert "the export is cut off here" in str(checked(half).fault)


def test_a_body_that_was_changed_with_its_hash_is_between_two_checkpoints() -> None:
    source = kept_log()
    source.bodies[120] = b'{"id":"%b","kind":"decision","outcome":"allow"}' % entry_id(120).encode()
    verdict = checked(exported(source))
    assert "entries 90 to 199 are not those that were signed" in str(verdict.fault)
    assert verdict.bad_index == 90


def test_another_key_is_noticed_when_the_reader_has_the_right_one() -> None:
    resigned = Kept(bodies(rotated_at=None), [90, 300], lambda _: STRANGER)
    assert "no signature of a known key" in str(checked(exported(resigned, STRANGER.key)).fault)
    assert "does not verify" in str(checked(exported(resigned, STRANGER.key)).fault)
    forged = bodies()
    note = b64encode(sign_rotation(STRANGER, ORIGIN, STRANGER.key))
    forged[200] = b'{"id":"%b","kind":"key","note":"%b"}' % (entry_id(200).encode(), note)
    verdict = checked(exported(Kept(forged, [300], lambda _: STRANGER)))
    assert verdict.bad_index == 200
    assert "it names a new key" in str(verdict.fault)


def test_only_what_a_checkpoint_covers_is_exported() -> None:
    source = Kept(bodies(), [90], lambda _: FIRST)
    assert checked(exported(source)).entries == 90
    empty = Kept([], [], lambda _: FIRST)
    assert checked(exported(empty)).entries == 0


def test_a_gap_in_the_log_ends_the_export() -> None:
    source = kept_log()
    del source.bodies[290:]
    with pytest.raises(LogCorrupt, match="entry 290"):
        exported(source)
    source.notes.pop()
    assert checked(exported(source)).entries == 256


def attacks(data: bytes, masks: tuple[int, ...]) -> Iterator[bytes]:
    """Every single-byte flip, every deleted byte, every deleted, doubled and swapped line, every cut."""
    for place in range(len(data)):
        for mask in masks:
            yield data[:place] + bytes((data[place] ^ mask,)) + data[place + 1 :]
        yield data[:place] + data[place + 1 :]
        yield data[:place]
    lines = lines_of(data)
    for nth in range(len(lines)):
        yield b"".join([*lines[:nth], *lines[nth + 1 :]])
        yield b"".join([*lines[:nth], lines[nth], *lines[nth:]])
        for other in range(nth + 1, min(nth + 4, len(lines))):
            swapped = list(lines)
            swapped[nth], swapped[other] = swapped[other], swapped[nth]
            yield b"".join(swapped)


def test_a_sample_of_all_changes_is_noticed() -> None:
    data = exported()
    every = len(data) * 5 + len(lines_of(data)) * 5 - 6
    wanted = set(random.Random(4).sample(range(every), 600))
    tried = 0
    for nth, attacked in enumerate(attacks(data, (0x01, 0x20, 0x80))):
        if nth in wanted:
            assert detected(attacked), nth
            tried += 1
    assert tried == 600


@pytest.mark.long
def test_every_change_is_noticed() -> None:
    tried = 0
    for nth, attacked in enumerate(attacks(exported(), (0x01,))):
        assert detected(attacked), nth
        tried += 1
    assert tried > 3 * 30_000


def test_memory_is_flat_in_the_length_of_the_log(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        source = Kept(bodies(count, rotated_at=None), [*range(500, count + 1, 500)], lambda _: FIRST)
        with path.open("wb") as file:
            file.writelines(export_lines(source, FIRST.key, Edge()))
        with path.open("rb") as file:
            tracemalloc.start()
            assert verify_export(file, keys=[FIRST.key]).entries == count
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return found

    # The hashes alone of the entries between would take five times as much.
    assert peak(20_000) < peak(2_000) + 200_000


BLOCKED = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("audit", "cryptography", "_cffi_backend", "cffi"):
            raise ModuleNotFoundError(f"{name} is not there")
sys.meta_path.insert(0, Nothing())
from audit.verify import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_needs_nothing_but_cryptography(repository: Path, tmp_path: Path) -> None:
    good, bad, key = tmp_path / "good.jsonl", tmp_path / "bad.jsonl", tmp_path / "log.pub"
    good.write_bytes(exported())
    bad.write_bytes(exported().replace(b"decision", b"derision", 1))
    key.write_text(FIRST.key.text + "\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", BLOCKED, *arguments], capture_output=True, text=True, cwd=repository, timeout=60
        )

    found = run(str(good), "--key", str(key))
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.splitlines()[-1] == "NOT ANCHORED (self-signed)"
    found = run(str(bad), "--key", FIRST.key.text)
    assert found.returncode == 4
    assert "FAILED: entry 0: the body is not what was recorded" in found.stdout


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "export.jsonl"
    path.write_bytes(exported())
    kept = tmp_path / "kept"
    kept.write_bytes(kept_log().notes[1][1])
    assert main([str(path), "--key", FIRST.key.text, "--anchor", str(kept)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"anchored to size 90 by the checkpoint in {kept}"
    assert main([str(path), "--key", STRANGER.key.text]) == 4
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(path), "--key", str(tmp_path / "nokey")]) == 4
    path.write_bytes(b"{}\n")
    assert main([str(path)]) == 4
    assert "this is no export of a log" in capsys.readouterr().err
