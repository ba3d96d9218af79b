"""Windows cut time without gap or overlap in every zone; ledger time never goes back and does not jump."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.ledger.windows import WINDOWS, LedgerTime, Span, Window, window_of
from policyd.services.ledger_time import LedgerNow

BERLIN = ZoneInfo("Europe/Berlin")
HOUR_US = 3_600_000_000
ZONES = (
    "UTC",
    "Europe/Berlin",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "America/Havana",
    "Africa/Cairo",
    "Asia/Kathmandu",
)
SECOND_US = 1_000_000
YEARS_US = st.integers(1_704_067_200, 1_893_456_000).map(lambda second: second * SECOND_US)  # 2024 to 2030


def us(text: str, zone: ZoneInfo = BERLIN) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()) * SECOND_US


@pytest.mark.parametrize(
    ("window", "moment", "start", "end"),
    [
        ("hour", "2026-03-04 10:59:59", "2026-03-04 10:00", "2026-03-04 11:00"),
        ("day", "2026-03-04 10:00", "2026-03-04 00:00", "2026-03-05 00:00"),
        ("week", "2026-03-04 10:00", "2026-03-02 00:00", "2026-03-09 00:00"),
        ("month", "2026-01-31 23:59", "2026-01-01 00:00", "2026-02-01 00:00"),
        ("month", "2026-12-01 00:00", "2026-12-01 00:00", "2027-01-01 00:00"),
    ],
)
def test_a_window_is_that_of_the_zone(window: Window, moment: str, start: str, end: str) -> None:
    assert window_of(window, BERLIN, us(moment)) == Span(us(start), us(end))


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29 12:00", 23), ("2026-10-25 12:00", 25), ("2026-10-26 12:00", 24)]
)
def test_a_day_is_as_long_as_its_clocks_make_it(day: str, hours: int) -> None:
    span = window_of("day", BERLIN, us(day))
    assert span.end_us is not None
    assert span.end_us - span.start_us == hours * HOUR_US


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    first = us("2026-10-25 02:30")
    spans = [window_of("hour", BERLIN, first + nth * HOUR_US) for nth in range(2)]
    assert spans[0].end_us == spans[1].start_us
    assert spans[0] != spans[1]


@pytest.mark.parametrize("window", ["total", "now"])
def test_what_never_ends(window: Window) -> None:
    assert window_of(window, BERLIN, us("2026-03-04 10:00")) == Span(0, None)


def test_a_window_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="no window 'fortnight'"):
        window_of("fortnight", BERLIN, 0)  # type: ignore[arg-type]  # what a file could hold


@given(window=st.sampled_from(WINDOWS), zone=st.sampled_from(ZONES), time_us=YEARS_US)
def test_windows_are_a_partition(window: Window, zone: str, time_us: int) -> None:
    span = window_of(window, ZoneInfo(zone), time_us)
    assert span.holds(time_us)
    if span.end_us is not None:
        assert window_of(window, ZoneInfo(zone), span.start_us) == span
        assert window_of(window, ZoneInfo(zone), span.end_us - 1) == span
        following = window_of(window, ZoneInfo(zone), span.end_us)
        assert following.start_us == span.end_us


def test_hours_are_a_partition_where_clocks_move_by_half_an_hour() -> None:
    zone = ZoneInfo("Australia/Lord_Howe")
    for start in ("2026-04-04 20:00", "2026-10-03 20:00"):
        at = us(start, zone)
        for _ in range(12):
            span = window_of("hour", zone, at)
            assert span.start_us == at
            assert span.end_us is not None
            assert 0 < span.end_us - span.start_us <= HOUR_US
            at = span.end_us


def test_a_clock_that_is_set_back_does_not_take_ledger_time_back() -> None:
    clock = LedgerTime(10 * HOUR_US, 0)
    assert clock.advance(10 * HOUR_US + 5, 5) == 10 * HOUR_US + 5
    assert clock.advance(9 * HOUR_US, 10) == 10 * HOUR_US + 5
    assert clock.advance(10 * HOUR_US + 20, 20) == 10 * HOUR_US + 16  # it follows as the monotonic clock runs


def test_a_clock_that_is_set_forward_a_month_opens_no_new_budget() -> None:
    start = us("2026-03-04 10:00")
    clock = LedgerTime(start, 0)
    month = round(timedelta(days=31).total_seconds()) * SECOND_US
    for minute in range(1, 61):
        clock.advance(start + month + minute * 60 * SECOND_US, minute * 60 * SECOND_US)
    assert clock.last_us == start + HOUR_US + HOUR_US // 10
    assert window_of("month", BERLIN, clock.last_us) == window_of("month", BERLIN, start)


def test_a_reader_sees_no_window_that_the_ledger_has_not_opened() -> None:
    clocks = [us("2026-03-31 23:50"), 0]
    now = LedgerNow(lambda: (clocks[0], clocks[1]))
    assert now() == us("2026-03-31 23:50")
    clocks[0] += 31 * 24 * HOUR_US
    assert now() == us("2026-03-31 23:50"), "a clock that was set forward"
    clocks[1] += HOUR_US // 6
    assert us("2026-04-01 00:00") <= now() < us("2026-04-01 00:02"), "time that has passed"
    clocks[0] = us("2026-03-31 22:50")
    assert now() >= us("2026-04-01 00:00"), "a clock that was set back"


@given(steps=st.lists(st.tuples(st.integers(-(10**12), 10**12), st.integers(-5, 10**9)), max_size=30))
def test_ledger_time_never_goes_back_and_never_runs_away(steps: list[tuple[int, int]]) -> None:
    clock, wall, monotonic = LedgerTime(10**15, 0), 10**15, 0
    for wall_step, monotonic_step in steps:
        wall, monotonic = wall + wall_step, monotonic + max(0, monotonic_step)
        before = clock.last_us
        after = clock.advance(wall, monotonic)
        assert before <= after <= before + max(0, monotonic_step) * 11 // 10
        assert after <= max(wall, before)
