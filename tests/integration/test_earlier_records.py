"""Records as earlier versions wrote them stand beside those of this one: they replay, are found, and verify."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from audit.query import Record
from audit.record import Entry, Search, encode, personal
from policyd.bootstrap import running
from policyd.cli.main import run
from policyd.core.places import GROUPS
from policyd.core.principal import LOCAL
from policyd.core.workload import DecisionRequest
from policyd.services.answers import PLACES
from policyd.services.clock import now_us, rfc3339, uuid7
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.log_reader import LogReader
from policyd.services.replay import replay
from policyd.settings import load_settings

OBLIGATIONS = ["max_output_tokens", "redact_prompts", "zero_retention"]
ABOUT = {"principal": "local", "workload": {"labels": {"desk": "rates"}}}


def earlier(record: Record, version: int) -> Entry:
    """The record as a release that wrote this version had written it."""
    time_us = now_us()
    body = orjson.loads(record.body)
    for name in ("_personal", "salt", "admission"):
        body.pop(name)
    data = body["workload"]["data"]
    assert data["residency"] == "EU"
    data["residency"] = "".join(sorted(GROUPS["EU"]))
    body |= {"v": version, "id": uuid7(time_us), "time": rfc3339(time_us), "obligations": OBLIGATIONS}
    about = (personal("local", ABOUT),)
    if version == 1:
        body |= {"principal": "local", "workload": {**body["workload"], **ABOUT["workload"]}}  # type: ignore[dict-item]
        about = ()
    found = Search(tenant="eu-bank", principal="local", outcome="allow", sheet=body["sheet"])
    return Entry("decision", body["id"], time_us, encode(body, bytes(range(16))), found, (), about)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A data directory, and in it one decision as versions 3 (this one), 2 and 1 have it."""
    folder = tmp_path_factory.mktemp("earlier") / "data"

    async def make() -> list[str]:
        workload = {"tenant": "eu-bank", "model": "llama-3.1-70b-instruct", "labels": {"desk": "rates"}}
        asked = DecisionRequest.model_validate({"workload": workload, "options": {"reserve": False}})
        async with running(load_settings(environment={}, flags={"data_dir": folder})) as up:
            answered = await up.decisions.decide(asked, LOCAL, "r")
        with DataDirectory(folder) as directory:
            reader = await LogReader.open(directory)
            record = await reader.by_id(answered.made.id)
            await reader.close()
            assert json.loads(record.body)["v"] == 3
            committer = await Committer.open(directory)
            old = [earlier(record, version) for version in (2, 1)]
            for entry in old:
                await committer.submit(entry)
            await committer.close()
        return [record.id, *(entry.id for entry in old)]

    return folder, asyncio.run(make())


def test_every_version_replays_to_the_same_answer(recorded: tuple[Path, list[str]]) -> None:
    async def read() -> list[dict[str, Any]]:
        with DataDirectory(recorded[0]) as directory:
            reader = await LogReader.open(directory)
            found = [orjson.loads(orjson.dumps((await replay(reader, each)).to_json())) for each in recorded[1]]
            await reader.close()
        return found

    new, *old = asyncio.run(read())
    assert [each["name"] for each in new["obligations"]] == OBLIGATIONS
    own = {"id", "time", "valid_until", "audit"}
    for answer in old:
        assert {name for name in answer if answer[name] != new[name]} <= own
    assert new["workload"]["data"]["residency"] == sorted(GROUPS["EU"])
    assert new["workload"]["labels"] == {"desk": "rates"}


def test_every_version_verifies_and_is_found_and_exported(
    recorded: tuple[Path, list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = ["--data-dir", str(recorded[0])]
    assert run(["audit", "verify", *folder]) == 0
    capfd.readouterr()
    assert run(["audit", "search", *folder, "--principal", "local", "-o", "json"]) == 0
    assert {item["id"] for item in json.loads(capfd.readouterr().out)["items"]} >= set(recorded[1])
    for each in recorded[1]:
        assert run(["explain", each, *folder]) == 0
        assert each in capfd.readouterr().out
    export = ["audit", "export", *folder]
    assert run([*export, "--file", str(tmp_path / "log.jsonl")]) == 0
    assert run(["audit", "verify", str(tmp_path / "log.jsonl")]) == 0
    assert run([*export, "--format", "ocsf", "--file", str(tmp_path / "log.ocsf")]) == 0
    copied = (tmp_path / "log.ocsf").read_text()
    assert all(each in copied for each in recorded[1])


def test_a_name_of_places_means_the_same_for_ever() -> None:
    said = {name: hashlib.sha256("".join(countries).encode()).hexdigest()[:16] for name, countries in PLACES.items()}
    assert said == {"EU": "bdc00c68d6976cb0", "EEA": "9cb6f91d895b2641", "WORLD": "5261f7809fbe7c32"}
