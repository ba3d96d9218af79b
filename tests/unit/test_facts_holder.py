"""Facts that cannot be read count for a while and then refuse; a source that fails in any way is asked again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from connectors.static import StaticFacts
from policyd.errors import ConfigError, FactsUnavailable
from policyd.services.facts_holder import FactsHolder

GOOD = "observed_at: 2026-11-22T10:00:00Z\npools: {a: {available_gpus: 1, queue_ms: 0, healthy: true}}\n"


class Failing:
    """A source that fails once in a way that no source should."""

    def __init__(self) -> None:
        self.read_times = 0

    def read(self) -> Mapping[str, Any]:
        self.read_times += 1
        if self.read_times == 2:
            raise OverflowError("date value out of range")
        return {"pools": {f"p{self.read_times}": {}}}


def test_a_source_that_fails_is_asked_again() -> None:
    async def run() -> None:
        holder = FactsHolder(Failing(), refresh_ms=1)
        holder.refresh()
        fresh = asyncio.create_task(holder.keep_fresh())
        await asyncio.wait({fresh}, timeout=0.5)
        assert not fresh.done()
        assert holder.fault is None
        assert "p1" not in holder.current()[0].pools
        fresh.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
@pytest.mark.parametrize("name", ["facts.yaml", "facts.json"])
def test_a_moment_that_no_clock_shows_in_utc_is_a_finding(tmp_path: Path, name: str, moment: str) -> None:
    path = tmp_path / name
    path.write_text(f'{{"observed_at": "{moment}", "pools": {{}}}}')
    with pytest.raises(ConfigError, match="outside the years"):
        StaticFacts(path).read()


def test_old_facts_refuse_and_a_mended_file_counts_again(tmp_path: Path) -> None:
    path = tmp_path / "facts.yaml"
    path.write_text(GOOD)
    holder = FactsHolder(StaticFacts(path), refresh_ms=0, stale_after_ms=20)
    holder.refresh()
    path.write_text("pools: [")
    os.utime(path, (1, 1))
    holder.refresh()
    assert holder.fault
    assert holder.current()[0].pools["a"].usable_gpus == 1
    asyncio.run(asyncio.sleep(0.03))
    with pytest.raises(FactsUnavailable):
        holder.current()
    path.write_text(GOOD)
    holder.refresh()
    assert holder.current()[0].pools["a"].usable_gpus == 1


@pytest.mark.parametrize(("age_ms", "believed"), [(0, True), (60_000, True), (60_001, False), (10**9, False)])
def test_facts_that_nobody_renews_stop_counting(tmp_path: Path, age_ms: int, believed: bool) -> None:
    path = tmp_path / "facts.yaml"
    path.write_text(GOOD)
    observed_us = 1_795_341_600_000_000
    holder = FactsHolder(StaticFacts(path), max_age_ms=60_000, now=lambda: observed_us + age_ms * 1_000)
    holder.refresh()
    if believed:
        assert holder.current()[0].observed_at is not None
    else:
        with pytest.raises(FactsUnavailable, match="observed"):
            holder.current()
