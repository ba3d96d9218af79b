"""The form of postings in a record loses nothing, whatever the accounts: what is written is read back whole."""

from __future__ import annotations

import json
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from policyd.ledger.postings import deepest, read, written
from policyd.ledger.rules import UNITS, AccountKey, Posting
from policyd.ledger.windows import WINDOWS, window_of

PATHS = st.sampled_from(["*", "t", "t/p", "t/p/prod", "t/other", "u", "t-1/p"])
STARTS = st.sampled_from([0, 1_793_487_600_000_000, 1_793_491_200_000_000])
KEYS = st.builds(
    AccountKey, PATHS, st.sampled_from(["*", "spot"]), st.sampled_from(UNITS), st.sampled_from(WINDOWS), STARTS
)
AMOUNTS = st.sampled_from([0, 0, 1, 595, 2**53 - 1])
POSTINGS = st.lists(
    st.builds(Posting, KEYS, st.integers(1, 10**6), *[AMOUNTS] * 5), max_size=8, unique_by=lambda posting: posting.key
)


@given(postings=POSTINGS, data=st.data(), told=st.booleans())
def test_postings_are_read_back_whole(postings: list[Posting], data: st.DataObject, told: bool) -> None:
    held = data.draw(st.lists(AMOUNTS, min_size=len(postings), max_size=len(postings))) if told else []
    account = deepest(postings)
    text = json.dumps(written(postings, held))
    expected = zip(postings, held or [None] * len(postings), strict=True)
    assert read(json.loads(text), account) == sorted(expected, key=lambda pair: pair[0].key)


@given(
    window=st.sampled_from(WINDOWS),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe", "America/New_York"]),
    time_us=st.integers(0, 4 * 10**15),
)
def test_every_window_begins_with_a_second(window: str, zone: str, time_us: int) -> None:
    assert window_of(window, ZoneInfo(zone), time_us).start_us % 1_000_000 == 0  # type: ignore[arg-type]
