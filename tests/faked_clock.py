"""A clock that a test sets, around a real process: libfaketime, with the monotonic clock left as it is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

LIBRARIES = ("/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib/faketime")


@dataclass(frozen=True)
class FakedClock:
    """``environment`` is that of a process that believes what the file ``offset`` says."""

    offset: Path
    environment: dict[str, str]

    def starting_at(self, moment: str) -> dict[str, str]:
        """The environment of a process that nobody sets the clock of: its clock runs on from this time."""
        ahead_s = round(datetime.fromisoformat(moment).timestamp() - time.time())
        kept = {name: self.environment[name] for name in ("LD_PRELOAD", "FAKETIME_DONT_FAKE_MONOTONIC")}
        return {**kept, "FAKETIME": f"{ahead_s:+d}"}

    def set(self, text: str) -> None:
        """So many seconds ahead (``+5``) or behind (``-5``); the clock runs on."""
        self.offset.write_text(text)


def faked_clock(folder: Path) -> FakedClock:
    """A clock that is right until somebody sets it. Skips the test where there is no libfaketime."""
    library = next((Path(place) / "libfaketime.so.1" for place in LIBRARIES if Path(place).is_dir()), None)
    if library is None or not library.exists():
        pytest.skip("no faketime: apt-get install faketime")
    clock = FakedClock(
        folder / "offset",
        {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(folder / "offset"),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
    )
    clock.set("+0")
    return clock
