"""Erasing a person by a real server: what they left is unreadable and found by nobody, and every proof still holds."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from audit.proof import Receipt
from audit.record import Entry, Search, encode
from policyd.cli.main import run
from policyd.client import Client
from policyd.errors import AuditKeyUnusable, OnHold
from policyd.services import evidence
from policyd.services.clock import now_us, rfc3339, uuid7
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.log_place import directory_of
from policyd.services.log_reader import LogReader
from policyd.settings import load_settings
from tests.integration.conftest import serving
from tests.integration.test_api_bad_input import check_problem
from tests.integration.test_api_identity import BANK, bearer, granted, tokens_file
from tests.integration.test_two_persons import PERSONS, Office

CAROL = {"name": "carol.of.the.desk", "grants": [granted("developer", tenant="eu-bank")]}
DAVE = {"name": "dave.of.the.desk", "grants": [granted("developer", tenant="eu-bank")]}
LABEL = "Carol-Example-Street-17"


@pytest.fixture(params=["file", "postgresql"])
def flags(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings of a server, whose store the tests may look into."""
    found: dict[str, Any] = {"data_dir": tmp_path / "data", "auth": {"tokens_file": str(tmp_path / "tokens.json")}}
    if request.param == "postgresql":
        (tmp_path / "address").write_text(request.getfixturevalue("database"))
        found["audit"] = {"database_url_file": str(tmp_path / "address")}
    return found


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    return tokens_file(tmp_path / "tokens.json", *PERSONS, CAROL, DAVE)


def decided(office: Office, name: str, label: str | None = None) -> dict[str, Any]:
    workload = {**BANK["workload"], **({} if label is None else {"labels": {"where": label}})}
    found = office.post(name, "/v1/decisions", {"workload": workload})
    assert found.status_code == 200, found.text
    return dict(found.json())


def found_by(office: Office, name: str) -> list[str]:
    items = office.get("ana", f"/v1/decisions?principal=token:{name}").json()["items"]
    return [item["id"] for item in items]


def erased(office: Office, name: str, tenant: str | None = "eu-bank", second: str = "ben") -> dict[str, Any]:
    with office.client("ana") as ana, office.client(second) as other:
        proposed = ana.propose_erasure(tenant, f"token:{name}", "request 2026-31")
        return {**other.approve(proposed["id"])}


def raw_bytes(flags: dict[str, Any], folder: Path) -> bytes:
    """All that the store has: the files, or every row of every table and partition."""
    if "audit" not in flags:
        return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    with psycopg.connect(Path(flags["audit"]["database_url_file"]).read_text()) as connection:
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
            "WHERE schemaname IN ('public', 'policyd_keys')"
        ).fetchall()
        rows = [connection.execute(f"SELECT t::text FROM {table} t").fetchall() for (table,) in tables]
    text = "\n".join(str(row) for table in rows for (row,) in table)
    in_hex = b"".join(bytes.fromhex(part.split('"')[0].split(",")[0]) for part in _hexes(text))
    return text.encode() + in_hex + b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def _hexes(text: str) -> list[str]:
    return [found[: len(found) // 2 * 2] for found in re.findall(r"\\x([0-9a-f]{32,})", text)]


def test_what_is_erased_is_unreadable_and_everything_else_is_not(
    flags: dict[str, Any], tokens: dict[str, str], tmp_path: Path
) -> None:
    with serving(flags) as server:
        office = Office(server, tokens)
        carol, dave = decided(office, CAROL["name"], LABEL), decided(office, DAVE["name"])
        assert carol["workload"]["labels"] == {"where": LABEL}
        refused = office.post(
            CAROL["name"], "/v1/decisions", {"workload": {**BANK["workload"], "tenant": "nordic-lab"}}
        )
        assert refused.status_code == 403
        assert carol["id"] in found_by(office, CAROL["name"])
        assert office.get("ana", f"/v1/decisions/{carol['id']}").json()["principal"] == f"token:{CAROL['name']}"
        before = office.get("ana", f"/v1/decisions/{carol['id']}/receipt").text
        done = erased(office, CAROL["name"])
        assert done["action"] == "erasure"
        # Of no tenant: the refused request for a tenant that was not hers.
        (elsewhere,) = found_by(office, CAROL["name"])
        assert elsewhere != carol["id"]
        assert found_by(office, DAVE["name"]) == [dave["id"]]
        shown = office.get("ana", f"/v1/decisions/{carol['id']}").json()
        assert shown["principal"] == "erased"
        assert LABEL not in str(shown)
        assert "erased" in office.get("ana", f"/v1/decisions/{carol['id']}/explanation").text
        assert office.get("ana", f"/v1/decisions/{dave['id']}").json()["principal"] == f"token:{DAVE['name']}"
        after = office.get("ana", f"/v1/decisions/{carol['id']}/receipt").text
        ours = [Receipt.parse(text.encode()) for text in (before, after)]
        assert ours[0].extra == ours[1].extra
        (entry,) = office.bodies("erasure")
        assert "token:" not in str(entry)
        again = office.post(
            "ana", "/v1/log/erasures", {"tenant": "eu-bank", "subject": f"token:{CAROL['name']}", "reason": "r"}
        )
        check_problem(server, again, 404, "not_found")
        new = decided(office, CAROL["name"])
        assert found_by(office, CAROL["name"]) == [new["id"], elsewhere]
        assert len(erased(office, CAROL["name"], None, "eva")["result"]["erased"]) == 2
        assert found_by(office, CAROL["name"]) == []
    raw = raw_bytes(flags, Path(flags["data_dir"]))
    assert LABEL.encode() not in raw
    assert b"carol.of.the.desk" not in raw
    assert carol["id"].replace("-", "").encode() in raw or bytes.fromhex(carol["id"].replace("-", "")) in raw
    settings = load_settings(environment={}, flags=flags)
    verdict = evidence.verify_directory(directory_of(settings), [], [], [])
    assert verdict.error is None
    evidence.export_to(directory_of(settings), tmp_path / "export.jsonl")
    export = (tmp_path / "export.jsonl").read_bytes()
    assert b"dave.of.the.desk" not in export
    assert b'"_personal":["' in export
    assert evidence.verify_file(tmp_path / "export.jsonl", [], [], []).error is None


def test_whoever_was_erased_does_not_approve_their_own_proposal_as_somebody_new(
    flags: dict[str, Any], tokens: dict[str, str]
) -> None:
    with serving(flags) as server:
        office = Office(server, tokens)
        hold = office.proposed("ben")["id"]
        erased(office, "ben", second="eva")
        check_problem(server, office.approve("ben", hold), 409, "proposal.closed")
        check_problem(server, office.approve("eva", hold), 409, "proposal.closed")
        assert office.bodies("hold") == []


def test_a_hold_is_above_an_erasure(flags: dict[str, Any], tokens: dict[str, str]) -> None:
    with serving(flags) as server:
        office = Office(server, tokens)
        made = decided(office, CAROL["name"])
        hold = office.proposed(subject=f"token:{CAROL['name']}")["id"]
        assert office.approve("ben", hold).status_code == 200
        with office.client("ana") as ana, office.client("ben") as ben:
            proposed = ana.propose_erasure("eu-bank", f"token:{CAROL['name']}", "request 2026-31")
            with pytest.raises(OnHold, match=hold):
                ben.approve(proposed["id"])
            assert made["id"] in found_by(office, CAROL["name"])
            lifting = ben.propose_lifting(hold, "over")
            ana.approve(lifting["id"])
            ben.approve(proposed["id"])
            assert ana.record(made["id"])["principal"] == "erased"
            assert ana.holds()["items"] == []


def test_bad_input_and_who_may_not(flags: dict[str, Any], tokens: dict[str, str]) -> None:
    with serving(flags) as server:
        office = Office(server, tokens)
        decided(office, CAROL["name"])
        whole = {"tenant": "eu-bank", "subject": f"token:{CAROL['name']}", "reason": "request"}
        for body in (
            {},
            {**whole, "subject": ""},
            {**whole, "subject": 5},
            {**whole, "sbject": "x"},
            {**whole, "reason": ""},
        ):
            check_problem(server, office.post("ana", "/v1/log/erasures", body), 400, "request.invalid")
        check_problem(server, office.post("ana", "/v1/log/erasures", {**whole, "subject": "token:x"}), 404, "not_found")
        for name in ("eye", "lab", CAROL["name"]):
            check_problem(server, office.post(name, "/v1/log/erasures", whole), 403, "identity.forbidden")
        proposed = office.post("ana", "/v1/log/erasures", whole).json()["id"]
        check_problem(server, office.approve("ana", proposed), 403, "proposal.same_person")
        assert len(found_by(office, CAROL["name"])) >= 1


def test_keys_that_cannot_be_written_let_no_decision_out(tmp_path: Path) -> None:
    with serving({"data_dir": tmp_path / "data"}) as server:
        keys = tmp_path / "data" / "personal.sqlite"
        kept = keys.read_bytes()
        keys.unlink()
        keys.mkdir()
        try:
            answer = server.client.post("/v1/decisions", json=BANK)
            check_problem(server, answer, 503, "audit.unavailable")
            assert server.client.get("/readyz").status_code == 503
        finally:
            keys.rmdir()
            keys.write_bytes(kept)
            keys.chmod(0o600)


@pytest.mark.parametrize("state", [0, 1], ids=["due", "done"])
def test_a_key_that_comes_back_is_destroyed_again_at_the_next_start(tmp_path: Path, state: int) -> None:
    tokens = tokens_file(tmp_path / "tokens.json", *PERSONS, CAROL)
    flags = {"data_dir": tmp_path / "data", "auth": {"tokens_file": str(tmp_path / "tokens.json")}}
    with serving(flags) as server:
        office = Office(server, tokens)
        made = decided(office, CAROL["name"])
        kept = (tmp_path / "data" / "personal.sqlite").read_bytes()
        erased(office, CAROL["name"])
    # As if the process had ended between the two stores, or somebody had put an older key store back.
    (tmp_path / "data" / "personal.sqlite").write_bytes(kept)
    with closing(sqlite3.connect(tmp_path / "data" / "audit.sqlite")) as raw, raw:
        raw.execute("UPDATE erasure SET state = ?", (state,))
    with serving(flags) as server, Client(server.address, token=tokens["ana"]) as ana:
        assert ana.record(made["id"])["principal"] == "erased"


def test_old_records_stay_readable_and_are_found(tmp_path: Path) -> None:
    async def read() -> tuple[list[str], str]:
        time_us = now_us()
        entry_id = uuid7(time_us)
        body = encode({"v": 1, "id": entry_id, "time": rfc3339(time_us), "principal": "token:old"}, os.urandom(16))
        with DataDirectory(tmp_path) as directory:
            committer = await Committer.open(directory)
            await committer.submit(Entry("decision", entry_id, time_us, body, Search("acme", principal="token:old")))
            await committer.close()
            reader = await LogReader.open(directory)
            page = await reader.search({"principal": "token:old"})
            record = await reader.by_id(entry_id)
            await reader.close()
        return [item.id for item in page.items], record.document()["principal"]

    found, principal = asyncio.run(read())
    assert len(found) == 1
    assert principal == "token:old"


def test_the_command_line_erases_by_two_persons(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokens = tokens_file(tmp_path / "tokens.json", *PERSONS, CAROL)
    files = {name: tmp_path / f"{name}.token" for name in ("ana", "ben")}
    for name, file in files.items():
        file.write_text(tokens[name])
        file.chmod(0o600)
    data = tmp_path / "data"
    with serving({"data_dir": data, "auth": {"tokens_file": str(tmp_path / "tokens.json")}}) as server:
        made = decided(Office(server, tokens), CAROL["name"])
        asked = [
            "audit",
            "erase",
            "--tenant",
            "eu-bank",
            "--subject",
            f"token:{CAROL['name']}",
            "--reason",
            "r",
            "-o",
            "json",
        ]
        by_ana = ["--server", server.address, "--token-file", str(files["ana"])]
        by_ben = ["--server", server.address, "--token-file", str(files["ben"])]
        assert run([*asked, *by_ana]) == 0
        proposal = json.loads(capfd.readouterr().out)["id"]
        assert run(["approve", *by_ben]) == 0
        assert proposal in capfd.readouterr().out
        assert run(["approve", proposal, *by_ana]) == 1
        assert run(["approve", proposal, *by_ben]) == 0
        capfd.readouterr()
        assert run(["audit", "show", made["id"], "--data-dir", str(data)]) == 0
        assert "erased" in capfd.readouterr().out
        assert run(["audit", "hold", "list", "--data-dir", str(data), "--token-file", str(files["ana"])]) == 0
        assert server.client.get("/v1/log/holds", headers=bearer(tokens["ana"])).json()["items"] == []
    assert run(["approve", "--data-dir", str(data)]) == 2


def test_without_a_wrapping_key_the_log_is_not_served(tmp_path: Path) -> None:
    async def open_and_close() -> None:
        with DataDirectory(tmp_path) as directory:
            await (await Committer.open(directory)).close()

    asyncio.run(open_and_close())
    assert (tmp_path / "personal.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "personal.key").unlink()
    with pytest.raises(AuditKeyUnusable, match=r"personal\.key is missing"):
        asyncio.run(open_and_close())
