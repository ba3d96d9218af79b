"""Shares of tenants: the same everywhere, growing with the setting; and what speaks against a candidate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.principal import LOCAL, Grant, Principal
from policyd.core.workload import WorkloadRequest
from policyd.errors import AuditError, EngineTimeout, Forbidden, Overloaded, PolicydError, TimedOut
from policyd.services.frames import Frames
from policyd.services.trials import PPM, OnTrial, Trials, in_share

NAMES = st.text(min_size=1, max_size=20)
SNAPSHOT: Any = SimpleNamespace(fleet=SimpleNamespace(tenants={"a": None, "b": None}))


def on_trial(share_ppm: int = PPM) -> OnTrial:
    return OnTrial(SNAPSHOT, "sha256:d", share_ppm, Frames())


def test_a_share_is_what_it_always_was() -> None:
    """Written down: another version of policyd beside this one must say the same."""
    names = [f"tenant-{number}" for number in range(40)]
    assert [name for name in names if in_share(name, "sha256:d", 100_000)] == ["tenant-12", "tenant-13", "tenant-34"]


@given(NAMES, NAMES, st.integers(0, PPM), st.integers(0, PPM))
def test_a_larger_share_has_all_of_a_smaller_one(tenant: str, digest: str, one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert in_share(tenant, digest, small) <= in_share(tenant, digest, large)
    assert not in_share(tenant, digest, 0)
    assert in_share(tenant, digest, PPM)


def test_a_share_is_about_as_large_as_it_says_and_another_one_for_each_revision() -> None:
    names = [f"tenant-{number}" for number in range(4_000)]
    first, second = ({name for name in names if in_share(name, digest, 50_000)} for digest in ("one", "two"))
    assert 140 < len(first) < 260
    assert 140 < len(second) < 260
    assert len(first & second) < 40


def test_a_request_is_of_the_tenant_that_it_or_its_identity_names() -> None:
    def asks(principal: Principal, **named: str) -> bool:
        request = WorkloadRequest.model_validate({"model": "m", **named})
        return trials.chosen(request, principal) is not None

    trials = Trials()
    assert not asks(LOCAL, tenant="a"), "nothing is on trial"
    trials.now = on_trial()
    assert asks(LOCAL, tenant="a")
    assert not asks(LOCAL), "of two tenants nobody has said which"
    assert asks(Principal("one", (Grant("developer", "a"),)))
    trials.now = on_trial(share_ppm=0)
    assert not asks(LOCAL, tenant="a")


@pytest.mark.parametrize("error", [Overloaded("x"), AuditError("x"), Forbidden("x")])
def test_what_is_not_the_candidates_fault_does_not_count(error: PolicydError) -> None:
    trials = Trials(failures_max=0, now=on_trial())
    assert trials.now is not None
    assert not trials.blamed(trials.now, error)
    assert trials.now is not None


def test_one_failure_more_than_allowed_ends_the_trial_here_and_is_told_once() -> None:
    told: list[str] = []
    trial = on_trial()
    trials = Trials(failures_max=2, now=trial, failed=lambda _, said: told.append(said))
    for error in (EngineTimeout("x"), TimedOut("x")):
        assert trials.blamed(trial, error)
    assert trials.now is trial
    for _ in range(3):
        assert trials.blamed(trial, PolicydError("x"))
    assert trials.now is None
    assert told == ["3 decisions failed on it, the last one with internal"]
