"""How long a revision serves that nobody confirms, with a fault and without."""

from __future__ import annotations

import pytest

from policyd.errors import ConfigError, RevisionStale
from policyd.services.freshness import Freshness, SourceState
from policyd.settings import load_settings

AT_US = 1_790_000_000_000_000


@pytest.mark.parametrize("fault", [None, "it does not answer"])
def test_what_nobody_confirms_serves_for_so_long_and_no_longer(fault: str | None) -> None:
    """A look that hangs tells of no fault, and confirms nothing either."""
    fresh = Freshness({"policies": SourceState("a place", fault, AT_US, 5_000)})
    fresh.require(AT_US + 5_000_000)
    with pytest.raises(RevisionStale, match=fault or "nobody has looked at the source since"):
        fresh.require(AT_US + 5_000_001)


def test_without_a_limit_it_serves_without_end() -> None:
    Freshness({"fleet": SourceState("a place", "gone", AT_US, None)}).require(2**62)


def test_a_limit_that_ends_before_the_next_look_is_a_mistake() -> None:
    source = {"kind": "directory", "location": "here", "stale_max_ms": 15_000}
    with pytest.raises(ConfigError, match=r"less than twice sources\.poll_ms"):
        load_settings(environment={}, flags={"sources": {"policies": source}})
