"""Retention on both stores: what goes and what stays, what a verification says of it, and what it does not believe."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from audit import blocks
from audit.fold import Verdict
from audit.record import Entry, Kind, Search, encode
from audit.signer import read_public
from audit.stores import LogStore, SqliteStore
from policyd.cli.main import run as command
from policyd.errors import AuditTampered, ConfigError, NotFound, OnHold
from policyd.ledger.rules import Charge, Limit, Reservation
from policyd.ledger.store import Settlement, Void
from policyd.retention_settings import RetentionSettings
from policyd.services.checkpoints import LogFiles
from policyd.services.clock import now_us, rfc3339
from policyd.services.commit import Submission
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.evidence import exported, verify_directory, verify_file
from policyd.services.evidence_work import evidence_work
from policyd.services.holds import HOLDS, IN_FORCE
from policyd.services.log_reader import LogReader
from policyd.services.proofs import receipt
from policyd.services.retention import DAY_US, Policy, Removal
from policyd.services.retention_run import Retention, planned
from policyd.settings import Settings
from policyd.telemetry import Telemetry

COUNT = 40
LIMITS = (Limit("*", "micro_usd", "total", 10_000), Limit("acme", "tokens", "day", 1_000_000))
WORKLOAD = b',"workload":{"tenant":"acme","project":"chat","environment":"prod"}}'
SETTINGS = RetentionSettings(keep_days={"decision": 184, "settlement": 184}, batch_max_entries=7)


@pytest.fixture(params=["sqlite", "postgresql"])
def directory(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DataDirectory]:
    """A data directory without a log, in each place that a log may live; blocks of 16 entries."""
    monkeypatch.setattr(blocks, "BLOCK_BITS", 4)
    path = tmp_path / "data"
    store: LogStore = SqliteStore(path / "audit.sqlite")
    if request.param == "postgresql":
        from audit.postgresql_store import PostgresqlStore

        store = PostgresqlStore(request.getfixturevalue("database"), path / "origin")
    with DataDirectory(path, store) as made:
        yield made


def entry(nth: int, days: int, kind: Kind = "decision", tenant: str = "eu-bank", principal: str | None = None) -> Entry:
    """An entry that is so many days old."""
    time_us = now_us() - days * DAY_US + nth
    head = f"{time_us // 1_000:012x}"
    entry_id = f"{head[:8]}-{head[8:]}-7000-8000-{nth:012x}"
    fields = {"id": entry_id, "kind": kind, "scope": ["acme"], "time": rfc3339(time_us), "v": 1}
    search = Search(tenant=tenant, outcome="deny", pool=f"pool-{nth % 3}", principal=principal, request_id=f"r{nth}")
    return Entry(kind, entry_id, time_us, encode(fields, bytes(16)), search, (("data_source", f"source-{nth % 2}"),))


def old(nth: int) -> int:
    """Every third is young."""
    return 10 if nth % 3 == 0 else 200


async def written(directory: DataDirectory, entries: Sequence[Entry]) -> None:
    committer = await Committer.open(directory, durability="process_safe")
    try:
        for start in range(0, len(entries), 10):
            await asyncio.gather(*(committer.submit(each) for each in entries[start : start + 10]))
    finally:
        await committer.close()


async def ran(directory: DataDirectory, settings: RetentionSettings = SETTINGS) -> dict[str, object]:
    committer = await Committer.open(directory, durability="process_safe")
    reader = await LogReader.open(directory)
    try:
        return await Retention(reader, committer, settings).run()
    finally:
        await reader.close()
        await committer.close()


def changed(directory: DataDirectory, *statements: str) -> None:
    """As somebody with the right to write the database would."""
    log = directory.store.open_writer("process_safe", None)
    connection: Connection = log.connection
    with connection.begin():
        for statement in statements:
            connection.execute(text(statement))
    log.close()


def both(directory: DataDirectory, file: Path) -> tuple[Verdict, Verdict]:
    """What is said of the log, and of its export."""
    with file.open("wb") as opened:
        opened.writelines(exported(directory, 0))
    key = read_public(LogFiles.within(directory.path).public)[0]
    return verify_directory(directory, [key], [], []), verify_file(file, [key], [], [])


def test_what_is_older_goes_and_everything_still_verifies(directory: DataDirectory, tmp_path: Path) -> None:
    entries = [entry(nth, old(nth)) for nth in range(COUNT)]
    asyncio.run(written(directory, entries))
    gone = [nth for nth in range(COUNT) if nth % 3]
    found = asyncio.run(ran(directory))
    assert (found["removed"], found["held"]) == (len(gone), 0)
    live, export = both(directory, tmp_path / "export.jsonl")
    for verdict in (live, export):
        assert verdict.fault is None
        assert (verdict.removed, verdict.entries) == (len(gone), COUNT + 4)
        assert [(each.index, each.bodies) for each in verdict.warrants] == [(40, 7), (41, 7), (42, 7), (43, 5)]
    assert asyncio.run(ran(directory)) == {"removed": 0, "held": 0, "warrants": []}

    async def read() -> None:
        reader = await LogReader.open(directory)
        try:
            for filters in ({}, {"tenant": "eu-bank"}, {"pool": "pool-1"}, {"data_source": "source-1"}):
                page = await reader.search(filters, limit=1_000)
                assert all(record.index % 3 == 0 for record in page.items), filters
            assert len((await reader.search({})).items) == COUNT - len(gone)
            assert (await reader.search({"request_id": "r1"})).items == ()
            with pytest.raises(
                NotFound, match=r"retention has removed the body of entry 1, whose leaf hash is [0-9a-f]{64}"
            ):
                await reader.by_id(entries[1].id)
            proof = await receipt(reader, entries[3].id)
            proof.verify(read_public(LogFiles.within(directory.path).public))
            copied = await reader.entries(await number(reader), 0, COUNT)
            assert [each.index for each in copied] == [nth for nth in range(COUNT) if nth % 3 == 0]
        finally:
            await reader.close()

    asyncio.run(read())


async def number(reader: LogReader) -> int:
    return next(iter(await reader.logs()))


def test_what_a_hold_covers_stays_until_it_is_lifted(directory: DataDirectory, tmp_path: Path) -> None:
    token = "p:" + 16 * "a"
    entries = [
        entry(0, 300, principal="p:" + 16 * "b"),
        entry(1, 300),
        entry(2, 300, kind="settlement"),
        entry(3, 300, tenant="other"),
        entry(4, 300, kind="refusal"),
    ]
    asyncio.run(written(directory, entries))
    row = {"id": bytes(16), "state": IN_FORCE, "tenant": "eu-bank", "token": token, "time_us": 0}
    log = directory.store.open_writer("process_safe", None)
    with log.connection.begin():
        log.connection.execute(HOLDS.insert(), row)
    log.close()

    async def plan() -> list[tuple[object, ...]]:
        reader = await LogReader.open(directory)
        try:
            rows = await planned(reader, (await reader.origins())[0], SETTINGS)
            return [(row["kind"], row["tenant"], row["removed"], row["held"]) for row in rows]
        finally:
            await reader.close()

    assert asyncio.run(plan()) == [
        ("decision", "eu-bank", 1, 1),
        ("decision", "other", 1, 0),
        ("settlement", "eu-bank", 0, 1),
    ]
    found = asyncio.run(ran(directory))
    assert (found["removed"], found["held"]) == (2, 2)
    changed(directory, "UPDATE legal_hold SET state = 1")
    assert asyncio.run(ran(directory))["removed"] == 2
    live, export = both(directory, tmp_path / "export.jsonl")
    assert (live.fault, live.removed, export.fault, export.removed) == (None, 4, None, 4)


def test_the_writer_judges_again(directory: DataDirectory) -> None:
    asyncio.run(written(directory, [entry(0, 200), entry(1, 10)]))

    async def scenario() -> None:
        committer = await Committer.open(directory, durability="process_safe")
        try:
            policy = Policy.of(SETTINGS)
            removal = Removal(policy, (0, 1), now_us())
            with pytest.raises(OnHold, match="1 of 2 entries must stay, the first is 1"):
                await committer.enqueue(Submission(entry(2, 0, kind="retention"), removal=removal))
            assert committer.entries_total == 2
        finally:
            await committer.close()

    asyncio.run(scenario())


def test_a_body_without_a_warrant_is_named(directory: DataDirectory, tmp_path: Path) -> None:
    asyncio.run(written(directory, [entry(nth, old(nth)) for nth in range(COUNT)]))
    asyncio.run(ran(directory))
    place = _first(directory)
    changed(
        directory,
        f'DELETE FROM body WHERE "index" = {place + 3}',
        f'UPDATE entry SET kind = -1 - kind WHERE "index" = {place + 3}',
    )
    for verdict in both(directory, tmp_path / "export.jsonl"):
        assert (verdict.bad_index, verdict.fault) == (
            3,
            "entry 3: its body is missing, and no later retention entry covers it",
        )


def test_a_body_that_is_gone_without_a_mark_is_named(directory: DataDirectory) -> None:
    asyncio.run(written(directory, [entry(nth, old(nth)) for nth in range(COUNT)]))
    asyncio.run(ran(directory))
    place = _first(directory)
    changed(directory, f'DELETE FROM body WHERE "index" = {place + 3}')
    keys = read_public(LogFiles.within(directory.path).public)
    if isinstance(directory.store, SqliteStore):
        assert verify_directory(directory, keys, [], []).bad_index == 3
    else:
        with pytest.raises(AuditTampered, match="entry 3: its body is missing"):
            verify_directory(directory, keys, [], [])


def test_the_hash_of_a_body_that_is_gone_still_counts(directory: DataDirectory, tmp_path: Path) -> None:
    asyncio.run(written(directory, [entry(nth, old(nth)) for nth in range(COUNT)]))
    asyncio.run(ran(directory))
    file = tmp_path / "export.jsonl"
    both(directory, file)
    lines = file.read_bytes().split(b"\n")
    at = next(nth for nth, line in enumerate(lines) if line.startswith(b'{"index":4,'))
    assert lines[at].endswith(b'"body":null}')
    for instead in (b'{"index":4,"leaf_hash":"' + 64 * b"0" + b'","body":null}', lines[at].upper().lower()[:-6] + b"}"):
        file.write_bytes(b"\n".join([*lines[:at], instead, *lines[at + 1 :]]))
        assert verify_file(file, [], [], []).fault is not None


def test_budgets_fold_over_bodies_that_are_gone(directory: DataDirectory, tmp_path: Path) -> None:
    settings = RetentionSettings(keep_days={"decision": 184, "settlement": 184, "void": 184}, batch_max_entries=5)
    count, ends = 12, 7

    async def scenario() -> None:
        committer = await Committer.open(directory, durability="process_safe")
        try:
            made = [each._replace(body=each.body[:-1] + WORKLOAD) for each in (entry(nth, 200) for nth in range(count))]
            for each in made:
                wish = Reservation(each.id, tuple(Charge(limit, 7) for limit in LIMITS), 3_600_000_000)
                await committer.submit(each, operation=wish)
            for nth in range(ends):
                operation: Settlement | Void = (
                    Void(made[nth].id) if nth == 3 else Settlement(made[nth].id, (("tokens", 5),))
                )
                kind: Kind = "void" if nth == 3 else "settlement"
                await committer.submit(entry(count + nth, 190, kind=kind), operation=operation)
        finally:
            await committer.close()

    asyncio.run(scenario())
    found = asyncio.run(ran(directory, settings))
    assert found["removed"] == 2 * ends, "what is reserved still stays"
    live, export = both(directory, tmp_path / "export.jsonl")
    for verdict in (live, export):
        assert verdict.fault is None
        assert verdict.removed == 2 * ends
        assert verdict.passed_over > 0


KINDS: tuple[Kind, ...] = ("decision", "error", "refusal", "settlement", "void", "budget", "revision")
TENANTS = ("eu-bank", "other", "third")
PERSONS = tuple("p:" + 16 * letter for letter in "abc")


def covered(each: Entry, held: dict[str, str | None]) -> bool:
    """Whether the holds keep it, said in another way than the product says it."""
    tenant = each.search.tenant
    if tenant not in held:
        return False
    who = held[tenant]
    return who is None or each.kind in ("settlement", "void") or each.search.principal in (who, None)


@pytest.mark.parametrize(
    "seed", [1, 2, pytest.param(3, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.long)]
)
def test_any_run_leaves_a_log_that_verifies(directory: DataDirectory, tmp_path: Path, seed: int) -> None:
    chosen = random.Random(seed)
    made = [
        entry(
            nth,
            chosen.choice([1, 180, 190, 300, 500]),
            chosen.choice(KINDS),
            chosen.choice(TENANTS),
            chosen.choice([None, *PERSONS]),
        )
        for nth in range(60)
    ]
    held: dict[str, str | None] = {"other": chosen.choice([None, *PERSONS])}
    settings = RetentionSettings.model_validate(
        {
            "keep_days": {kind: chosen.choice([184, 250, 400]) for kind in ("decision", "error", "settlement")},
            "tenants": {"third": {"decision": chosen.choice([184, 1_000]), "refusal": 184}},
            "batch_max_entries": chosen.randint(1, 20),
        }
    )
    policy = Policy.of(settings)
    asyncio.run(written(directory, made[:40]))
    log = directory.store.open_writer("process_safe", None)
    with log.connection.begin():
        rows = [
            {"id": bytes(16), "state": IN_FORCE, "tenant": name, "token": who, "time_us": 0}
            for name, who in held.items()
        ]
        log.connection.execute(HOLDS.insert(), rows)
    log.close()
    asyncio.run(ran(directory, settings))
    asyncio.run(written(directory, made[40:]))
    asyncio.run(ran(directory, settings))
    ages = {each.id: (now_us() - each.time_us) / DAY_US for each in made}
    gone = {
        each.id
        for each in made
        if (days := policy.days(each.kind, each.search.tenant)) is not None
        and ages[each.id] > days
        and not covered(each, held)
    }
    live, export = both(directory, tmp_path / "export.jsonl")
    assert (live.fault, export.fault) == (None, None)
    assert live.removed == export.removed == len(gone)

    async def read() -> None:
        reader = await LogReader.open(directory)
        keys = read_public(LogFiles.within(directory.path).public)
        try:
            for each in made:
                if each.id in gone:
                    with pytest.raises(NotFound, match="retention has removed"):
                        await reader.by_id(each.id)
                else:
                    assert (await reader.by_id(each.id)).body == each.body
                    (await receipt(reader, each.id)).verify(keys)
            page = await reader.search({}, limit=1_000, kinds=KINDS)
            assert {record.id for record in page.items} == {each.id for each in made} - gone
        finally:
            await reader.close()

    asyncio.run(read())


def _first(directory: DataDirectory) -> int:
    log = directory.store.open_writer("process_safe", None)
    with log.connection.begin():
        found = int(log.connection.execute(text('SELECT min("index") FROM entry')).scalar_one())
    log.close()
    return found


def test_settings_that_name_nothing_remove_nothing(directory: DataDirectory) -> None:
    asyncio.run(written(directory, [entry(0, 300)]))
    with pytest.raises(ConfigError, match="name no kind"):
        asyncio.run(ran(directory, RetentionSettings()))


def test_a_server_removes_by_itself(directory: DataDirectory) -> None:
    asyncio.run(written(directory, [entry(nth, old(nth)) for nth in range(10)]))
    keep = {"keep_days": {"decision": 184}, "interval_ms": 60_000}

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            committer = await Committer.open(directory, durability="process_safe")
            stack.push_async_callback(committer.close)
            telemetry = Telemetry(metrics=False)
            nothing = Settings.model_validate({"retention": {"interval_ms": 60_000}})
            with pytest.raises(ConfigError, match="name no kind"):
                await evidence_work(nothing, directory, committer, telemetry, stack)
            settings = Settings.model_validate({"retention": keep})
            [work] = await evidence_work(settings, directory, committer, telemetry, stack)
            running = asyncio.create_task(work)
            for _ in range(200):
                if committer.entries_total == 11:
                    break
                await asyncio.sleep(0.02)
            running.cancel()
            assert committer.entries_total == 11

    asyncio.run(scenario())


def test_the_command_line_removes_and_a_tampered_log_is_exit_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, config = tmp_path / "data", tmp_path / "policyd.yaml"
    config.write_text("retention:\n  keep_days:\n    decision: 184\n")
    flags = ["--data-dir", str(data), "--config", str(config)]
    with DataDirectory(data) as made:
        asyncio.run(written(made, [entry(nth, old(nth)) for nth in range(10)]))
        assert command(["audit", "retain", *flags]) == 1
        told = " ".join(capsys.readouterr().err.split())
        assert "writes" in told
        assert "a server removes by itself every retention.interval_ms" in told
        assert command(["audit", "retain", "--dry-run", "-o", "json", *flags]) == 0
    [row] = json.loads(capsys.readouterr().out)["items"]
    assert (row["kind"], row["tenant"], row["keep_days"], row["removed"], row["held"]) == (
        "decision",
        "eu-bank",
        184,
        6,
        0,
    )
    assert command(["audit", "retain", "--dry-run", *flags]) == 0
    assert "184 days" in capsys.readouterr().out
    assert command(["audit", "retain", "-o", "json", *flags]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": 6, "held": 0, "warrants": [10]}
    assert command(["audit", "verify", *flags]) == 0
    assert "6 by retention, under 1 warrants" in capsys.readouterr().out
    with closing(sqlite3.connect(data / "audit.sqlite")) as connection, connection:
        connection.execute('DELETE FROM body WHERE "index" = 6')
        connection.execute('UPDATE entry SET kind = -1 - kind WHERE "index" = 6')
    assert command(["audit", "verify", *flags]) == 4
    assert "entry 6: its body is missing, and no later retention entry covers it" in capsys.readouterr().err


def test_without_a_class_nothing_is_to_be_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with DataDirectory(tmp_path) as made:
        asyncio.run(written(made, [entry(0, 300)]))
    assert command(["audit", "retain", "--data-dir", str(tmp_path)]) == 2
    assert "name no kind" in capsys.readouterr().err
