"""A real log copied elsewhere: events that OCSF 1.8.0 takes, Parquet files, log records at a real OTLP receiver."""

from __future__ import annotations

import asyncio
import io
import ipaddress
import json
import sys
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet
import pytest
from jsonschema import Draft202012Validator, FormatChecker

from audit import entries, parquet
from audit.entries import Stored
from audit.ocsf import event
from audit.record import leaf_hash
from connectors.otel_entries import OtlpCollector
from policyd.cli.main import run
from policyd.errors import ConfigError, ExportFailed, RequestError
from policyd.services import exports
from policyd.services.data_directory import DataDirectory
from policyd.services.exports import Collected, LoggedEntries, OcsfLines, Sink, copy, parquet_files
from policyd.services.log_reader import LogReader
from tests.integration.conftest import serving
from tests.integration.test_api_identity import bearer, granted, tokens_file
from tests.integration.test_telemetry_otlp import Receiver, attributes

MODEL = "llama-3.1-70b-instruct"
REQUESTS: list[dict[str, Any]] = [
    {"tenant": "eu-bank", "project": "support-chat", "model": MODEL},
    {"tenant": "globex-saas", "model": MODEL},
    {"tenant": "globex-saas", "model": "no-such-model"},
    {"tenant": "eu-bank", "project": "support-chat", "model": MODEL, "resources": {"accelerators": ["no-such-gpu"]}},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a server that has decided, refused and turned somebody away."""
    folder = tmp_path_factory.mktemp("exports")
    tokens = tokens_file(folder / "tokens.yaml", {"name": "team", "grants": [granted("developer")]})
    with serving({"data_dir": folder / "data", "auth": {"tokens_file": folder / "tokens.yaml"}}) as server:
        for workload in REQUESTS:
            server.client.post("/v1/decisions", json={"workload": workload}, headers=bearer(tokens["team"]))
        assert server.client.get("/v1/decisions").status_code == 401
    return folder / "data"


@asynccontextmanager
async def reading(data: Path) -> AsyncIterator[LogReader]:
    reader = await LogReader.open(DataDirectory(data))
    try:
        yield reader
    finally:
        await reader.close()


def stored(data: Path) -> list[Stored]:
    async def read() -> list[Stored]:
        async with reading(data) as reader:
            return await reader.entries(0, 0, await reader.size(0))

    return asyncio.run(read())


def copied(data: Path, sink: Sink, from_index: int = 0, to_index: int | None = None) -> int:
    async def go() -> int:
        async with reading(data) as reader:
            source = LoggedEntries(reader, 0, "policyd/test")
            return await copy(source, sink, (from_index, to_index), lambda done, total: None)

    return asyncio.run(go())


@pytest.fixture(scope="module")
def ocsf(repository: Path) -> Draft202012Validator:
    """What OCSF asks for, with addresses that are some."""
    formats = FormatChecker()
    formats.checks("ip", raises=ValueError)(lambda text: bool(ipaddress.ip_address(text)))
    schema = json.loads((repository / "tests/data/ocsf_api_activity_1.8.0.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=formats)


def test_every_entry_is_an_event_that_ocsf_takes(data: Path, ocsf: Draft202012Validator) -> None:
    written = io.BytesIO()
    size = copied(data, OcsfLines(written, "policyd/test", 0))
    events = [orjson.loads(line) for line in written.getvalue().splitlines()]
    assert len(events) == size == len(stored(data))
    assert [found for each in events for found in ocsf.iter_errors(each)] == []
    kinds = {each["metadata"]["event_code"] for each in events}
    assert kinds >= {"decision", "refusal", "revision"}
    for entry, each in zip(stored(data), events, strict=True):
        assert each["metadata"]["uid"] == entry.id
        assert each["unmapped"]["audit"]["leaf_hash"] == leaf_hash(entry.body).hex()
        body = entry.document()
        outcome = body.get("outcome")
        assert (each["action_id"] == 1) == (outcome == "allow")
        assert each["action_id"] == {"allow": 1, "deny": 2, "error": 2, None: 0}[outcome]
        if outcome == "allow":
            assert each["ai_model"]["version"] == body["workload"]["model_version"]
            assert each["ai_model"]["ai_provider"] == entry.search["provider"]
            assert [resource["uid"] for resource in each["resources"]] == [pool for pool, _, _ in body["ranked"][:10]]
            assert each["unmapped"]["cost_micro_usd"] == body["ranked"][0][2]
            assert each["policy"]["uid"] == body["policy"][1]
    [turned_away] = [each for each in events if each.get("status_code") == "identity.unauthenticated"]
    assert turned_away["src_endpoint"] == {"svc_name": "unknown"}
    assert turned_away["actor"]["user"]["uid"].startswith("p:"), "a copy names nobody"


def test_the_schema_of_the_test_can_fail(data: Path, ocsf: Draft202012Validator) -> None:
    whole = event(stored(data)[-1], "policyd/test", "1")
    for change in ({"made_up": 1}, {"severity_id": 7}, {"time": "now"}, {"src_endpoint": {}}, {"class_uid": 1}):
        assert not ocsf.is_valid({**whole, **change})
    for name in ("actor", "api", "metadata", "src_endpoint", "severity_id", "time", "type_uid"):
        assert not ocsf.is_valid({key: value for key, value in whole.items() if key != name})


def test_an_outcome_that_is_not_known_is_never_an_allow(data: Path, ocsf: Draft202012Validator) -> None:
    odd = Stored(0, "01990000-0000-7000-8000-000000000000", "decision", 0, b"", b"{}", {"outcome": "perhaps"})
    found = event(odd, "policyd/test", "1")
    assert ocsf.is_valid(found)
    assert found["action_id"] == 0


def test_parquet_files_hold_the_log_and_go_on_where_they_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "STEP_ENTRIES", 2)
    every = stored_in_steps(data)
    size, folder = len(every), tmp_path / "out"
    half = parquet.ParquetFiles(folder, 0, file_entries=3)
    assert copied(data, half, 0, 3) == 4
    rest = parquet.ParquetFiles(folder, 4, file_entries=3)
    assert copied(data, rest, 4) == size
    names = sorted(path.name for path in folder.iterdir())
    assert names[:2] == ["entries-000000000000-000000000002.parquet", "entries-000000000003-000000000003.parquet"]
    assert names[2].startswith("entries-000000000004-")
    rows = [row for name in names for row in pyarrow.parquet.read_table(folder / name).to_pylist()]
    assert [row["index"] for row in rows] == list(range(size))
    for row, entry in zip(rows, every, strict=True):
        assert row["body"] == entry.body
        assert row["leaf_hash"] == sha256(b"\x00" + row["body"]).digest()
        assert {name: row[name] for name in entry.search} == entry.search
        assert int(row["time"].timestamp() * 1_000_000) in range(entry.time_us - 1, entry.time_us + 2)
    assert all((row["cost_micro_usd"] or 0) > 0 for row in rows if row["outcome"] == "allow")
    groups = [pyarrow.parquet.ParquetFile(folder / name).metadata for name in names]
    assert all(meta.row_group(n).num_rows <= 2 for meta in groups for n in range(meta.num_row_groups))
    again = parquet.ParquetFiles(folder, 0, file_entries=3)
    with pytest.raises(
        ExportFailed, match=r"before the entry 0: File exists: .*entries-000000000000-000000000002\.parquet"
    ):
        copied(data, again)
    assert sorted(path.name for path in folder.iterdir()) == names


def stored_in_steps(data: Path) -> list[Stored]:
    async def read() -> list[Stored]:
        async with reading(data) as reader:
            size, found = await reader.size(0), []
            while len(found) < size:
                found += await reader.entries(0, len(found), size)
            return found

    return asyncio.run(read())


def test_without_pyarrow_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError) as fault:
        parquet_files(tmp_path, 0)
    assert fault.value.remedy_text == "pip install 'policyd[parquet]'"


@pytest.fixture
def receiver() -> Generator[Receiver, None, None]:
    found = Receiver()
    yield found
    found.close()


def test_a_collector_gets_every_entry_once(data: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "COLLECTED_ENTRIES", 2)
    every = stored(data)
    collector = OtlpCollector(f"{receiver.address}/v1/logs", "1")
    assert copied(data, Collected(collector, "policyd/test", 1), 1) == len(every)
    assert len(receiver.taken["/v1/logs"]) == -(-(len(every) - 1) // 2)
    for line, entry in zip(receiver.lines, every[1:], strict=True):
        told = attributes(line)
        assert (told["policyd.id"], told["policyd.log.index"]) == (entry.id, entry.index)
        assert line.event_name == f"policyd.{entry.kind}"
        assert line.time_unix_nano == entry.time_us * 1_000
        assert {name: told[f"policyd.{name}"] for name in entry.search} == entry.search
        body = {pair.key for pair in line.body.kvlist_value.values}
        assert body == entry.document().keys() - {"salt"}


def test_a_collector_that_is_gone_ends_the_export_where_it_can_go_on(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    collector = OtlpCollector("http://127.0.0.1:1/v1/logs", "1")
    with pytest.raises(ExportFailed, match=r"before the entry 2: the collector did not take a batch: \w") as fault:
        copied(data, Collected(collector, "policyd/test", 2), 2)
    assert fault.value.remedy_text.endswith("--from 2")


class Full(io.BytesIO):
    """A disk with room for so many lines."""

    room = 2

    def flush(self) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(28, "No space left on device")


def test_a_full_disk_says_where_to_go_on(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "STEP_ENTRIES", 1)
    with pytest.raises(ExportFailed, match="before the entry 2: No space left on device"):
        copied(data, OcsfLines(Full(), "policyd/test", 0))


@pytest.mark.parametrize(("first", "last"), [(-1, None), (10_000, None), (0, 10_000), (3, 1)])
def test_what_the_log_does_not_have_is_refused(data: Path, first: int, last: int | None) -> None:
    with pytest.raises(RequestError, match="there is no part of it"):
        copied(data, OcsfLines(io.BytesIO(), "policyd/test", first), first, last)


def test_the_command_copies_and_says_where_the_next_one_starts(
    data: Path, receiver: Receiver, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    size, file = len(stored(data)), tmp_path / "events.jsonl"

    def export(*arguments: str) -> tuple[int, bytes, bytes]:
        code = run(["audit", "export", "--data-dir", str(data), *arguments])
        return code, *capfdbinary.readouterr()

    first = ("--format", "ocsf", "--file", str(file))
    code, out, said = export(*first, "--to", "1")
    assert (code, out) == (0, b"")
    assert b"copied 2 entries of " in said
    assert b"--from 2" in said
    assert export(*first, "--from", "2")[0] == 0
    assert [json.loads(line)["metadata"]["sequence"] for line in file.read_bytes().splitlines()] == list(range(size))
    code, _, said = export(*first)
    assert code == 2
    assert b"is there already" in said
    code, out, _ = export("--format", "ocsf")
    assert (code, out) == (0, file.read_bytes())
    assert export("--format", "parquet", "--folder", str(tmp_path / "out"))[0] == 0
    [made] = (tmp_path / "out").iterdir()
    assert made.name == f"entries-{0:012}-{size - 1:012}.parquet"
    assert export("--format", "otlp", "--endpoint", f"{receiver.address}/v1/logs")[0] == 0
    assert len(receiver.lines) == size


@pytest.mark.parametrize(
    "arguments",
    [
        ("parquet",),
        ("otlp",),
        ("otlp", "--endpoint", "http://127.0.0.1:1", "--file", "x"),
        ("ocsf", "--folder", "x"),
        ("ocsf", "--endpoint", "http://127.0.0.1:1"),
        ("ocsf", "--log", "no-such-log"),
        ("jsonl", "--to", "3"),
        ("jsonl", "--log", "x"),
        ("csv",),
    ],
    ids=" ".join,
)
def test_flags_that_do_not_go_together_are_a_usage_error(
    data: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert run(["audit", "export", "--data-dir", str(data), "--format", *arguments]) == 2
    assert capsys.readouterr().err
