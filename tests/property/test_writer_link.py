"""The frames between API processes and the writer: what goes in comes out, and what is garbled ends it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.record import Blob, Entry, Search
from audit.store import Position
from policyd.errors import AuditError, KeyInProgress, Overloaded
from policyd.ledger.rules import UNITS, Charge, Limit, Reservation
from policyd.ledger.store import Extension, Settlement, Void
from policyd.ledger.windows import WINDOWS
from policyd.services import link
from policyd.services.admission import QuotaExhausted
from policyd.services.clock import uuid7
from policyd.services.commit import AdmittedPosition, Submission
from policyd.services.idempotency import Claim
from policyd.services.link import Answered, Appended, FrameReader, Ticketed, Told

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
terms = st.lists(st.tuples(st.sampled_from(["data_source", "rule"]), words), max_size=3).map(tuple)
blobs = st.lists(st.binary(max_size=200).map(lambda content: Blob.of("facts", content)), max_size=3).map(tuple)
times = st.integers(0, 2**45)
entries = st.builds(
    lambda time_us, body, search, found: Entry("decision", uuid7(time_us), time_us, body, search, found),
    times,
    st.binary(min_size=1, max_size=500),
    st.builds(lambda tenant, outcome: Search(tenant=tenant, outcome=outcome), st.none() | words, st.none() | words),
    terms,
)
claims = st.none() | st.builds(Claim, st.binary(max_size=32), st.binary(max_size=32), times, times)
amounts = st.integers(0, 2**53 - 1)
ids = times.map(uuid7)
limits = st.builds(
    Limit,
    words,
    st.sampled_from(UNITS),
    st.sampled_from(WINDOWS),
    amounts,
    st.sampled_from(["UTC", "Europe/Berlin"]),
    words,
    st.lists(st.integers(1, 100), max_size=3).map(tuple),
)
charges = st.lists(st.builds(Charge, limits, st.none() | amounts), max_size=4).map(tuple)
operations = st.one_of(
    st.none(),
    st.builds(Reservation, ids, charges, amounts, st.booleans()),
    st.builds(Settlement, ids, st.lists(st.tuples(st.sampled_from(UNITS), amounts), max_size=3).map(tuple)),
    st.builds(Void, ids),
    st.builds(Extension, ids, amounts),
)
submissions = st.lists(
    st.builds(Ticketed, amounts, st.tuples(entries, blobs, claims, operations).map(lambda given: Submission(*given))),
    max_size=6,
)
outcomes = st.lists(
    st.tuples(
        st.integers(0, 2**53 - 1),
        st.builds(Position, amounts, st.binary(min_size=32, max_size=32))
        | st.builds(AdmittedPosition, amounts, st.binary(min_size=32, max_size=32), st.just({"time_us": 1})),
    ),
    max_size=6,
)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@given(submissions, outcomes, st.integers(1, 400))
def test_what_goes_in_comes_out_however_it_is_cut(
    given_submissions: list[Ticketed], given_outcomes: list[tuple[int, Position]], size: int
) -> None:
    sent = [*link.append_frames(given_submissions), link.answers_frame(given_outcomes), link.told_frame({"a": 1})]
    reader = FrameReader()
    read = [message for part in cut(b"".join(sent), size) for message in reader.feed(part)]
    appended = [submission for message in read if isinstance(message, Appended) for submission in message.submissions]
    assert appended == given_submissions
    assert read[-2:] == [Answered(tuple(given_outcomes)), Told({"a": 1})]


@given(submissions.filter(bool), st.data())
def test_a_garbled_frame_is_an_audit_error_or_another_sound_message_and_nothing_else(
    given_submissions: list[Ticketed], data: st.DataObject
) -> None:
    sent = bytearray(b"".join(link.append_frames(given_submissions)))
    sent[data.draw(st.integers(0, len(sent) - 1))] ^= data.draw(st.integers(1, 255))
    reader = FrameReader()
    try:
        read = reader.feed(bytes(sent))
    except AuditError:
        with pytest.raises(AuditError, match="after a garbled frame"):
            reader.feed(link.told_frame({}))
        return
    assert all(isinstance(message, Appended | Answered | Told) for message in read)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\x09",
        b"\x00\x00\x00\x03\x02[]"[:-1] + b"{",
        b"\x00\x00\x00\x04\x03[1]",
        b"\x00\x00\x00\x08\x01\x00\x00\x00\x02[]x",
        link.told_frame({"a": 1})[:-1] + b"\xff",
    ],
)
def test_what_is_no_frame_breaks_the_link(frame: bytes) -> None:
    with pytest.raises(AuditError, match="broken"):
        FrameReader().feed(frame)


def test_an_error_stays_an_error() -> None:
    (read,) = FrameReader().feed(
        link.answers_frame([(1, Overloaded("full")), (2, AuditError("gone")), (3, KeyInProgress("k"))])
    )
    assert isinstance(read, Answered)
    (first, full), (second, gone), (third, taken) = read.outcomes
    assert (first, second, third) == (1, 2, 3)
    assert isinstance(taken, KeyInProgress)
    assert isinstance(full, Overloaded)
    assert isinstance(gone, AuditError)
    assert (full.detail, gone.detail) == ("full", "gone")


def test_a_group_without_room_is_no_error_that_a_caller_could_hear() -> None:
    group = {"path": "acme", "pools": "spot", "unit": "in_flight", "why": "room", "asked": 1, "remaining": 0}
    (read,) = FrameReader().feed(link.answers_frame([(1, QuotaExhausted([group]))]))
    assert isinstance(read, Answered)
    ((ticket, found),) = read.outcomes
    assert ticket == 1
    assert isinstance(found, QuotaExhausted)
    assert found.groups == (group,)
    with pytest.raises(AuditError, match="broken"):
        FrameReader().feed(link.answers_frame([(1, QuotaExhausted([]))]))


def test_many_entries_travel_in_frames_of_bounded_length() -> None:
    entry = Entry("decision", uuid7(1), 1, b"x" * 60_000)
    frames = list(link.append_frames(Ticketed(number, Submission(entry)) for number in range(100)))
    assert len(frames) > 3
    assert max(map(len, frames)) < 2 * link.FRAME_FULL_BYTES
