"""Steps of revisions on both stores: each is taken once, whole, with its entry, whoever else takes one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath

import orjson
import pytest

from audit.record import Entry, Search, encode
from audit.stores import LogStore, SqliteStore
from policyd.core.principal import Principal
from policyd.errors import Finding, NotFound, RevisionConflict
from policyd.revisions.gates import GateResult
from policyd.revisions.kept import Tree
from policyd.revisions.states import Move, Plan, Revision
from policyd.services import revision_rows
from policyd.services.commit import Submission
from policyd.services.committer import Committer
from policyd.services.data_directory import DataDirectory
from policyd.services.link import Appended, FrameReader, Ticketed, append_frames
from policyd.services.log_reader import LogReader
from policyd.services.revision_desk import RevisionDesk, files_blob
from policyd.services.revision_rows import Step, step_from_json

ID = "01990000-0000-7000-8000-000000000000"
ANA = Principal("token:ana")


def tree(nth: int) -> Tree:
    return Tree.of({PurePosixPath("a.rego"): f"package placement.a{nth}".encode()}, f"c{nth}")


@pytest.fixture(params=["sqlite", "postgresql"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[DataDirectory]]:
    """Two data directories: of one database, or with a file each, of which the second is not used."""
    found = []
    for name in ("one", "two"):
        path = tmp_path / name
        store: LogStore = SqliteStore(path / "audit.sqlite")
        if request.param == "postgresql":
            from audit.postgresql_store import PostgresqlStore

            store = PostgresqlStore(request.getfixturevalue("database"), path / "origin")
        found.append(DataDirectory(path, store, tmp_path / "personal.key"))
    with found[0], found[1]:
        yield found if request.param == "postgresql" else found[:1]


@asynccontextmanager
async def desk_at(directory: DataDirectory) -> AsyncIterator[RevisionDesk]:
    committer = await Committer.open(directory)
    reader = await LogReader.open(directory)
    try:
        yield RevisionDesk(committer, reader, Plan())
    finally:
        await reader.close()
        await committer.close()


async def see(desk: RevisionDesk, nth: int) -> Revision:
    one = tree(nth)
    blob = files_blob(one)
    move = Move("policy", one.digest, "seen", 0, "", one.commit, blob.digest)
    await desk.take("seen", [move], await desk.revisions(), blobs=[blob])
    return await now(desk, nth)


async def now(desk: RevisionDesk, nth: int) -> Revision:
    return next(each for each in await desk.revisions() if each.commit == f"c{nth}")


async def live(desk: RevisionDesk, nth: int) -> Revision:
    found = await see(desk, nth)
    standing = await desk.revisions()
    before = [each for each in standing if each.state == "live"]
    moves = [Move("policy", found.digest, "activate", found.version)]
    moves += [Move("policy", each.digest, "retire", each.version) for each in before]
    await desk.take("activate", moves, standing)
    return await now(desk, nth)


def test_a_step_is_an_entry_and_the_log_gives_the_files_back(stores: list[DataDirectory]) -> None:
    async def run() -> None:
        async with desk_at(stores[0]) as desk:
            found = await see(desk, 1)
            assert (found.state, found.commit, found.served_us) == ("candidate", "c1", 0)
            result = GateResult("check", True, "no errors").to_json()
            await desk.take("check", [Move("policy", found.digest, "judged", 1, gates=(result,))], [found])
            found = await now(desk, 1)
            assert [gate["gate"] for gate in found.gates] == ["check"]
            assert (await desk.files(found)) == tree(1)
            reader = desk.reader
            assert isinstance(reader, LogReader)
            entries = (await reader.search({}, kinds=["revision"])).items
            bodies = [orjson.loads(entry.body) for entry in reversed(entries)]
            assert [body["action"] for body in bodies] == ["seen", "check"]
            said = {"kind": "policy", "digest": found.digest, "commit": "c1"}
            assert bodies[0]["revisions"] == [{**said, "from": None, "to": "candidate"}]
            assert bodies[1]["gates"] == [result]

    asyncio.run(run())


def test_of_two_who_take_a_step_at_once_one_comes_too_late(stores: list[DataDirectory]) -> None:
    async def run() -> None:
        async with desk_at(stores[0]) as first:
            if len(stores) == 1:
                await raced(first, first)
            else:
                async with desk_at(stores[1]) as second:
                    await raced(first, second)

    async def raced(first: RevisionDesk, second: RevisionDesk) -> None:
        outcomes = await asyncio.gather(see(first, 1), see(second, 1), return_exceptions=True)
        assert sum(isinstance(each, RevisionConflict) for each in outcomes) == 1, outcomes
        found = await now(second, 1)
        moves = [Move("policy", found.digest, "activate", found.version)]
        refused = Move("policy", found.digest, "refuse", found.version, "check: bad")
        steps = (first.take("activate", moves, [found]), second.take("refuse", [refused], [found]))
        outcomes = list(await asyncio.gather(*steps, return_exceptions=True))
        assert sum(isinstance(each, RevisionConflict) for each in outcomes) == 1, outcomes
        reader = first.reader
        assert isinstance(reader, LogReader)
        assert len((await reader.search({}, kinds=["revision"])).items) == 2, "who came too late left no entry"

    asyncio.run(run())


def test_a_step_with_one_move_too_many_moves_nothing(stores: list[DataDirectory]) -> None:
    async def run() -> None:
        async with desk_at(stores[0]) as desk:
            await live(desk, 1)
            found = await see(desk, 2)
            with pytest.raises(RevisionConflict, match="another policy is live"):
                await desk.take("activate", [Move("policy", found.digest, "activate", 1)], await desk.revisions())
            assert (await now(desk, 1)).state == "live"
            assert (await now(desk, 2)) == found

    asyncio.run(run())


def test_people_go_back_and_forth_and_never_to_what_was_refused(stores: list[DataDirectory]) -> None:
    async def run() -> None:
        async with desk_at(stores[0]) as desk:
            with pytest.raises(NotFound, match="was live before"):
                await desk.rollback("policy", None, ANA, "r0")
            for nth in (1, 2, 3):
                await live(desk, nth)
            back = await desk.rollback("policy", None, ANA, "r1")
            assert (back.commit, back.state) == ("c2", "live")
            assert ((await now(desk, 3)).state, (await now(desk, 3)).verb) == ("refused", "rollback")
            assert (await desk.rollback("policy", "c1", ANA, "r2")).state == "live"
            again = await desk.activate(tree(3).digest, ANA, "r3")
            assert (again.commit, again.state) == ("c3", "live")
            bad = await see(desk, 4)
            with pytest.raises(RevisionConflict, match="is candidate"):
                await desk.activate(bad.digest, ANA, "r4")
            await desk.take("refuse", [Move("policy", bad.digest, "refuse", 1, "check: dead rule")], [bad])
            for ask in (desk.activate(bad.digest, ANA, "r5"), desk.rollback("policy", bad.digest, ANA, "r6")):
                with pytest.raises(RevisionConflict):
                    await ask
            with pytest.raises(NotFound):
                await desk.activate("sha256:" + "0" * 64, ANA, "r7")

    asyncio.run(run())


def test_the_rows_have_a_limit_and_what_is_live_is_never_forgotten(
    stores: list[DataDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revision_rows, "KEPT_ROWS_MAX", 3)

    async def run() -> None:
        async with desk_at(stores[0]) as desk:
            await live(desk, 0)
            for nth in range(1, 7):
                found = await see(desk, nth)
                await desk.take("refuse", [Move("policy", found.digest, "refuse", 1, "no")], [found])
            standing = await desk.revisions()
            assert len(standing) == 4
            assert [each.commit for each in standing if each.state == "live"] == ["c0"]

    asyncio.run(run())


def test_a_step_crosses_to_the_writer_as_it_is() -> None:
    gate = GateResult("check", False, "bad", (Finding("a.rego:1", "dead"),)).to_json()
    step = Step((Move("policy", "sha256:a", "refuse", 3, "said", None, "", (gate,)),))
    entry = Entry("revision", ID, 1, encode({"id": ID}, bytes(16)), Search())
    (frame,) = append_frames([Ticketed(7, Submission(entry, deed=step))])
    (read,) = FrameReader().feed(frame)
    assert isinstance(read, Appended)
    assert read.submissions[0].submission.deed == step


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [["law", "d", "seen", 0, "", None, "", []]],
        [["policy", "d", "bless", 0, "", None, "", []]],
        [["policy", "d", "seen", True, "", None, "", []]],
        [["policy", 7, "seen", 0, "", None, "", []]],
        [["policy", "d", "seen", 0, "", 1, "", []]],
        [["policy", "d", "seen", 0, "", None, "", [{"passed": True}]]],
        [["policy", "d", "seen", 0, "", None, "", []]] * 17,
    ],
)
def test_a_step_that_a_stranger_made_up_is_none(rows: list[object]) -> None:
    with pytest.raises(ValueError, match=r"step|move"):
        step_from_json(rows)
