"""Warrants and the bodies that wait for one, and how long which entry is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import retention
from audit.balances import Balances
from audit.errors import LogCorrupt, ProofInvalid
from audit.personal import is_token
from audit.postings import Balance, Change, Told
from audit.retention import Pending, ranges, read_warrant
from policyd import retention_settings
from policyd.services.retention import Policy

SOUND: dict[str, Any] = {
    "id": "01990000-0000-7000-8000-000000000000",
    "kind": "retention",
    "newest": "2026-01-01T00:00:00.000000Z",
    "oldest": "2025-01-01T00:00:00.000000Z",
    "removed": [[0, 3], [7, 7]],
    "rules": [["decision", 184]],
    "skipped": 2,
    "time": "2026-07-04T00:00:00.000000Z",
    "v": 1,
}
ACCOUNT = ("acme", "*", "tokens", "day", 0)


def body(**changes: Any) -> bytes:
    return json.dumps({**SOUND, **changes}).encode()


def test_a_warrant_says_what_went() -> None:
    found = read_warrant(8, body())
    assert (found.removed, found.skipped) == (((0, 3), (7, 7)), 2)
    assert found.words.startswith("entry 8 (01990000-0000-7000-8000-000000000000) is the warrant of 0 removed bodies")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"removed": [[0, 8]]}, "cannot name"),
        ({"removed": []}, "cannot name"),
        ({"removed": [[3, 0]]}, "cannot name"),
        ({"removed": [[5, 7], [0, 1]]}, "cannot name"),
        ({"removed": [[-1, 2]]}, "cannot name"),
        ({"removed": [[0, True]]}, "cannot name"),
        ({"removed": 7}, "is not written so"),
        ({"removed": [[0]]}, "is not written so"),
        ({"time": "2026-07-03T23:59:59.000000Z"}, "younger than 184 days"),
        ({"time": "yesterday"}, "is not written so"),
        ({"skipped": "2"}, "cannot name"),
    ],
)
def test_what_is_no_warrant_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ProofInvalid, match=why):
        read_warrant(8, body(**changes))


def test_a_warrant_is_bounded() -> None:
    with pytest.raises(ProofInvalid, match="cannot name"):
        read_warrant(5_000, body(removed=[[0, 1_000]]))


@given(st.sets(st.integers(0, 3_000), max_size=60), st.sets(st.integers(0, 3_000), max_size=60))
def test_what_no_warrant_names_is_left(missing: set[int], named: set[int]) -> None:
    pending = Pending()
    for index in sorted(missing):
        pending.miss(index)
    covered = sum(pending.warrant(first, last) for first, last in ranges(sorted(named)))
    assert covered == len(missing & named)
    assert pending.first == min(missing - named, default=None)
    assert pending.total == len(missing)


def change(sequence: int, spent: int) -> Told:
    return Told("reserved", (Change(ACCOUNT, Balance(sequence, 100, 0, spent, 0, 0), 0),))


def test_an_account_misses_no_more_changes_than_bodies_went() -> None:
    balances = Balances()
    balances.removed = 2
    balances.fold(0, change(3, 5))
    assert (balances.passed_over, balances.missing) == (2, None)
    balances.fold(1, change(7, 5))
    assert isinstance(balances.missing, LogCorrupt)
    with pytest.raises(LogCorrupt, match="comes after change 7"):
        balances.fold(2, change(6, 5))


def test_what_follows_a_change_that_is_there_is_still_checked() -> None:
    balances = Balances()
    balances.removed = 2
    balances.fold(0, change(3, 5))
    with pytest.raises(LogCorrupt, match="does not follow from its change 3"):
        balances.fold(1, change(4, 6))


def test_a_tenant_has_days_of_its_own_and_nobody_has_fewer_than_184() -> None:
    policy = Policy({"decision": 400, "error": 10}, {"acme": {"decision": 200, "void": 300}})
    found = [policy.days("decision", tenant) for tenant in ("acme", "other", None)]
    assert found == [200, 400, 400]
    assert policy.days("error", "acme") == 184
    assert policy.days("void", "other") is None
    assert policy.shortest == {"decision": 200, "error": 184, "void": 300}


def test_the_settings_know_the_bounds_of_a_warrant() -> None:
    own = (retention_settings.KEEP_MIN_DAYS, retention_settings.REMOVED_MAX)
    assert own == (retention.KEEP_MIN_DAYS, retention.REMOVED_MAX)


def test_a_token_is_told_from_a_name() -> None:
    assert is_token("p:0123456789abcdef")
    assert not any(map(is_token, ("p:ana", "token:ana", "0123456789abcdef", "p:0123456789abcdef0")))
