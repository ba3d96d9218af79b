"""A drill: the log is backed up, lost, brought back; what is missing is named, and goes on with two persons' word."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from audit.errors import ProofInvalid
from audit.gap import approve, approvers
from audit.note import SeedSigner
from audit.record import Entry, Search, encode
from audit.store import Position
from policyd.cli.main import run as command
from policyd.client import Client
from policyd.errors import AuditRolledBack, AuditTampered
from policyd.ledger.chart import chart_of, limits_of
from policyd.ledger.rules import Charge, Limit, Reservation
from policyd.revisions.fleet_files import load_fleet
from policyd.services.clock import now_us, rfc3339, uuid7
from policyd.services.commit import AdmittedPosition
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.evidence import export_to
from policyd.services.log_place import directory_of
from policyd.services.restoring import missing
from policyd.settings import load_settings
from tests.postgresql_server import PostgresqlServer, binaries

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
PATHS = ("*", "eu-bank", "eu-bank/support-chat", "eu-bank/support-chat/prod")
PROD = "eu-bank/support-chat/prod"
WORKLOAD = dict(zip(("tenant", "project", "environment"), PROD.split("/"), strict=True))
HELD = 1_000
HOLD_US = 3_600_000_000


@cache
def prod_limits() -> tuple[Limit, ...]:
    return limits_of(chart_of(load_fleet(EXAMPLES / "fleet")), "eu-bank", "support-chat", "prod")


def decision(limits: Sequence[Limit]) -> tuple[Entry, tuple[()], None, Reservation]:
    time_us = now_us()
    entry_id = uuid7(time_us)
    body = {"id": entry_id, "outcome": "allow", "ranked": [], "time": rfc3339(time_us), "workload": WORKLOAD}
    entry = Entry("decision", entry_id, time_us, encode(body, bytes(range(16))), Search(tenant="eu-bank"))
    return entry, (), None, Reservation(entry_id, tuple(Charge(limit, HELD) for limit in limits), HOLD_US)


class Drill:
    """One data directory, and the command line on it."""

    def __init__(self, folder: Path, capsysbinary: pytest.CaptureFixture[bytes], settings: dict[str, Any]) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.data = folder / "data"
        self.settings = {"data_dir": self.data, "facts": {"path": EXAMPLES / "facts.yaml"}, **settings}
        self.config = folder / "policyd.yaml"
        self.capture = capsysbinary
        audit = {**settings.get("audit", {}), "restore_keys_file": str(folder / "persons.pub")}
        self.config.write_text(json.dumps({"data_dir": str(self.data), "audit": audit}))
        for name in ("alice", "bob", "carol"):
            assert self("audit", "restore", "--make-key", name, str(folder / f"{name}.key")) == 0
            with (folder / "persons.pub").open("ab") as file:
                file.write(self.out if name != "carol" else b"")

    def __call__(self, *words: str) -> int:
        self.capture.readouterr()
        code = command(words)
        captured = self.capture.readouterr()
        self.out, self.told = captured.out, captured.err.decode()
        return code

    @property
    def directory(self) -> DataDirectory:
        return directory_of(load_settings(self.config, environment={}))

    def decide(self, count: int) -> list[Position]:
        """Decisions that each hold some of every budget of one environment, without a server around them."""
        limits = prod_limits()

        async def scenario(directory: DataDirectory) -> list[Position]:
            committer = await Committer.open(directory)
            try:
                return list(await asyncio.gather(*(committer.submit(*decision(limits)) for _ in range(count))))
            finally:
                await committer.close()

        with self.directory as directory:
            return asyncio.run(scenario(directory))

    def audit(self, *words: str) -> int:
        return self("audit", *words, "--config", str(self.config))

    def planned(self, *more: str) -> Path:
        assert self.audit("restore", "--plan", "--why", "the disk was lost", *more) == 0, self.told
        path = self.folder / "plan.json"
        path.write_bytes(self.out)
        return path

    def apply(self, plan: Path, *names: str) -> int:
        return self.audit("restore", "--apply", str(plan), *(self.signed(plan, name) for name in names))

    def signed(self, plan: Path, name: str) -> str:
        assert self("audit", "restore", "--sign", str(self.folder / f"{name}.key"), str(plan)) == 0, self.told
        path = self.folder / f"{name}.sig"
        path.write_bytes(self.out)
        return str(path)


@pytest.fixture
def drill(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Drill:
    return Drill(tmp_path, capsysbinary, {})


def lose(drill: Drill) -> None:
    """The disk with the log is gone; the files beside it are not."""
    for path in drill.data.glob("audit.sqlite*"):
        path.unlink()


def put_back(drill: Drill, backup: Path, size: int, end: int) -> None:
    lose(drill)
    assert drill.audit("restore", "--from", str(backup)) == 0, drill.told
    assert f"entries {size} to {end - 1} are missing" in drill.told
    with pytest.raises(AuditRolledBack, match="was rolled back"):
        drill.decide(1)


def backed_up(drill: Drill) -> tuple[Path, int]:
    """The backup, and how many entries are in it."""
    backup = drill.folder / "backup"
    assert drill.audit("backup", str(backup), "--output", "json") == 0, drill.told
    return backup, json.loads(drill.out)["entries"]


def newest(server: Any, covering: dict[str, Any]) -> bytes:
    """A checkpoint that a client keeps, over this decision."""
    with Client(server.address) as client:
        client.receipt(covering["id"])
        return client.follow_log()


def test_a_lost_log_comes_back_with_its_gap_named(
    drill: Drill, serving_with: Callable[..., Any], bank_chat: dict[str, Any]
) -> None:
    def ask(server: Any) -> dict[str, Any]:
        found: dict[str, Any] = server.client.post("/v1/decisions", json=bank_chat).json()
        return found

    with serving_with(**drill.settings) as server:
        used, unused = ask(server), ask(server)
        settled = {"micro_usd": 1}
        assert server.client.post(f"/v1/decisions/{used['id']}/settlement", json=settled).status_code == 200
        assert server.client.delete(f"/v1/decisions/{unused['id']}/reservation").status_code == 200
        newest(server, ask(server))
        backup, size = backed_up(drill)
        lost = [ask(server) for _ in range(4)][-1]
        kept = newest(server, lost)
    put_back(drill, backup, size, lost["audit"]["index"] + 1)
    plan = drill.planned()
    assert drill.apply(plan, "alice", "bob") == 0, drill.told
    with serving_with(**drill.settings) as server:
        with (
            Client(server.address) as client,
            pytest.raises(AuditRolledBack, match="were lost, and that alice and bob"),
        ):
            client.follow_log(kept)
        more = [ask(server) for _ in range(6)]
        assert {(each["outcome"], each["denied_by"]) for each in more} == {("deny", "budget")}
        newest(server, more[-1])
        with Client(server.address) as client, pytest.raises(AuditRolledBack, match="the disk was lost"):
            client.follow_log(kept)  # by now longer than it was, and of another history
        [gap] = server.client.get("/v1/log/gaps").json()["items"]
        assert (gap["index"], gap["persons"]) == (size, ["alice", "bob"])
        assert server.client.get(f"/v1/decisions/{gap['id']}/receipt").status_code == 200
    assert drill.audit("verify", "--output", "json") == 0, drill.told
    assert json.loads(drill.out)["accounts"] > len(PATHS), "every change of theirs follows, the presumed ones too"


def test_the_gap_is_what_two_persons_signed_and_verification_names_it(drill: Drill) -> None:
    drill.decide(3)
    backup, size = backed_up(drill)
    assert size == 3
    end = drill.decide(4)[-1].index + 1
    kept, copy = drill.folder / "kept", drill.folder / "export.jsonl"
    shutil.copy(drill.data / "log.checkpoint", kept)
    export_to(drill.directory, copy)
    put_back(drill, backup, size, end)
    assert drill.audit("restore", "--from", str(backup)) == 0
    assert "what was there is in" in drill.told
    plan = drill.planned()
    document = json.loads(plan.read_bytes())
    assert document["lost"] == [size, end - 1]
    [month] = [each for each in document["presumed"] if each["path"] == PROD]
    assert (month["reserved"], month["presumed"]) == (3 * HELD, month["limit"] - 3 * HELD)
    assert drill.apply(plan, "alice", "alice") == 4
    assert drill.apply(plan, "alice", "carol") == 4, "nobody knows her key"
    assert drill.apply(plan, "alice", "bob") == 0, drill.told
    assert drill.apply(plan, "alice", "bob") == 0, "once more it changes nothing"
    assert drill.audit("verify", "--output", "json") == 0, drill.told
    [gap] = json.loads(drill.out)["gaps"]
    assert (gap["index"], gap["lost"], gap["why"]) == (size, {"from": size, "to": end - 1}, "the disk was lost")
    key = str(drill.data / "log.pub")
    for more in ((), ("--from-export",)):
        restored = drill.folder / "restored.jsonl"
        export_to(drill.directory, restored)
        words = ("verify", *([str(restored)] if more else ()), "--key", key, "--anchor", str(kept))
        assert drill.audit(*words) == 4
        assert f"says that entries {size} to {end - 1} were lost" in drill.told
    assert drill.audit("verify", str(copy), "--key", key, "--anchor", str(kept)) == 0, "what left before is evidence"


def test_a_known_figure_takes_the_place_of_the_presumed_one(drill: Drill) -> None:
    drill.decide(1)
    backup, size = backed_up(drill)
    put_back(drill, backup, size, drill.decide(2)[-1].index + 1)
    plan = drill.planned()
    document = json.loads(plan.read_bytes())
    for each in document["presumed"]:
        each["presumed"] = 2 * HELD
    plan.write_text(json.dumps(document))
    assert drill.apply(plan, "alice", "bob") == 0, drill.told
    assert not any(isinstance(each, AdmittedPosition) and "denied" in each.admission for each in drill.decide(1))
    assert drill("budget", "show", PROD, "--config", str(drill.config), "-o", "json") == 0
    [item] = json.loads(drill.out)
    assert (item["spent"], item["reserved"]) == (2 * HELD, 2 * HELD)


def test_what_does_not_fit_is_refused(drill: Drill, tmp_path: Path) -> None:
    drill.decide(1)
    backup, size = backed_up(drill)
    assert not (backup / "log.key").exists()
    assert drill.audit("backup", str(backup)) == 2
    assert "is there already" in drill.told
    assert drill.audit("restore", "--plan", "--why", "for no reason") == 2
    assert "nothing is missing" in drill.told
    end = drill.decide(1)[-1].index + 1
    assert drill.audit("restore", "--plan", "--from", str(backup)) == 2
    assert drill.audit("restore", "--from", str(tmp_path)) == 2
    shutil.copytree(backup, tmp_path / "other")
    with (tmp_path / "other" / "audit.sqlite").open("ab") as file:
        file.write(b"more")
    assert drill.audit("restore", "--from", str(tmp_path / "other")) == 4
    put_back(drill, backup, size, end)
    assert drill.audit("restore", "--plan") == 2, "a restore says why"
    plan = drill.planned()
    signed = [drill.signed(plan, name) for name in ("alice", "bob")]
    plan.write_bytes(plan.read_bytes().replace(b"the disk was lost", b"nothing happened!"))
    assert drill.audit("restore", "--apply", str(plan), *signed) == 4
    assert "not over the plan" in drill.told


def test_another_history_is_not_taken_for_a_shorter_one(drill: Drill, tmp_path: Path) -> None:
    drill.decide(1)
    twin = Drill(tmp_path / "twin", drill.capture, {})
    shutil.copytree(drill.data, twin.data)
    drill.decide(2)
    twin.decide(3)
    with pytest.raises(AuditTampered, match="the first 3 entries are not those"):
        missing(twin.directory, [drill.data / "log.checkpoint"])


def test_two_persons_are_two_names_with_two_keys() -> None:
    alice, bob = SeedSigner("alice", bytes(range(32))), SeedSigner("bob", bytes(range(1, 33)))
    again = SeedSigner("alice-again", bytes(range(32)))
    digest = "sha256:" + "0" * 64
    notes = [approve(each, "log.example", digest) for each in (alice, bob, again)]
    keys = [each.key for each in (alice, bob, again)]
    assert approvers(notes[:2], keys, "log.example", digest) == ("alice", "bob")
    for given, log in (([0], "log.example"), ([0, 0], "log.example"), ([0, 2], "log.example"), ([0, 1], "log.other")):
        with pytest.raises(ProofInvalid):
            approvers([notes[nth] for nth in given], keys, log, digest)


def test_a_dump_of_the_database_comes_back_the_same_way(
    postgresql: PostgresqlServer, database: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    secret = tmp_path / "database"
    secret.write_text(database)
    drill = Drill(tmp_path, capsysbinary, {"audit": {"database_url_file": str(secret)}})
    drill.decide(2)
    assert drill.audit("backup", str(tmp_path / "backup")) == 2
    assert "pg_dump" in drill.told
    postgresql_tool("pg_dump", "--format=custom", f"--file={tmp_path / 'dump'}", f"--dbname={database}")
    drill.decide(3)
    restored = postgresql.make_database()
    postgresql_tool("pg_restore", f"--dbname={restored}", str(tmp_path / "dump"))
    secret.write_text(restored)
    with pytest.raises(AuditRolledBack, match="was rolled back"):
        drill.decide(1)
    plan = drill.planned()
    assert json.loads(plan.read_bytes())["lost"] == [2, 4]
    assert drill.apply(plan, "alice", "bob") == 0, drill.told
    assert drill.audit("verify", "--output", "json") == 0, drill.told
    assert [gap["index"] for gap in json.loads(drill.out)["gaps"]] == [2]
    [found] = drill.decide(1)
    assert isinstance(found, AdmittedPosition)
    assert found.admission["denied"]["why"] == "room"


def postgresql_tool(name: str, *arguments: str) -> None:
    found = binaries()
    assert found is not None
    done = subprocess.run([str(found / name), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
