"""A source that does not answer holds up nobody who asks what is to be live, and its late word is not taken for new."""

from __future__ import annotations

import threading
from pathlib import Path, PurePosixPath

import pytest

from policyd.errors import SourceUnreachable
from policyd.ports import SourceTree
from policyd.revisions.kept import KeptTrees, Tree
from policyd.services.freshness import FLEET, POLICIES
from policyd.services.sources import Followed, Sources

WAIT_S = 10.0
FILES = {PurePosixPath("settings.yaml"): b"a: 1"}
FIRST = Tree.of(FILES, "1" * 40)
SECOND = Tree.of({PurePosixPath("settings.yaml"): b"a: 2"}, "2" * 40)


class Slow:
    """A source that has answered once, and answers again when it is let go."""

    place = "slow"

    def __init__(self) -> None:
        self.asked, self.answers = threading.Event(), threading.Event()
        self.known: str | None = None
        self.fault: SourceUnreachable | None = None

    def read(self, known: str | None) -> SourceTree | None:
        self.known = known
        if known is None:
            return SourceTree(dict(FIRST.files), FIRST.commit)
        self.asked.set()
        assert self.answers.wait(WAIT_S)
        if self.fault is not None:
            raise self.fault
        return None


@pytest.fixture
def slow(tmp_path: Path) -> tuple[Slow, Sources]:
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "fleet.yaml").write_text("pools: []")
    source = Slow()
    followed = Followed(POLICIES, source, KeptTrees(tmp_path / "kept"), None)
    sources = Sources({POLICIES: followed}, {FLEET: tmp_path / "fleet"}, gated=True)
    sources.look()
    followed.wanted = FIRST
    sources.read()
    sources.settled(None)
    return source, sources


@pytest.mark.parametrize("fault", [None, SourceUnreachable("gone")])
def test_what_is_wanted_is_handed_out_while_a_source_is_asked(
    slow: tuple[Slow, Sources], fault: SourceUnreachable | None
) -> None:
    source, sources = slow
    source.fault = fault
    followed = sources.followed[POLICIES]
    looking = threading.Thread(target=sources.look)
    looking.start()
    assert source.asked.wait(WAIT_S)
    assert source.known == FIRST.commit
    followed.wanted = SECOND
    assert sources.to_try()
    assert dict(sources.read().policies) == dict(SECOND.files)
    sources.settled(None)
    assert looking.is_alive(), "the source has not answered yet"
    assert followed.good is SECOND
    source.answers.set()
    looking.join(WAIT_S)
    assert not looking.is_alive()
    if fault is None:
        assert followed.newest is FIRST, "nothing new since the first, which is not what is good by now"
        assert followed.fault is None
    else:
        assert (followed.newest, followed.fault) == (SECOND, "gone")


def test_a_source_that_does_not_answer_confirms_nothing_meanwhile(slow: tuple[Slow, Sources]) -> None:
    source, sources = slow
    followed = sources.followed[POLICIES]
    sources.tell()
    confirmed_us = followed.confirmed_us
    assert confirmed_us == followed.read_us
    looking = threading.Thread(target=sources.look)
    looking.start()
    assert source.asked.wait(WAIT_S)
    sources.tell()
    assert followed.confirmed_us == confirmed_us
    source.answers.set()
    looking.join(WAIT_S)
    sources.tell()
    assert followed.confirmed_us > confirmed_us


def test_who_reads_asks_for_a_look_and_does_not_wait_for_it(slow: tuple[Slow, Sources]) -> None:
    source, sources = slow
    sources.asked = False
    sources.read()
    assert sources.asked
    assert not source.asked.is_set()
