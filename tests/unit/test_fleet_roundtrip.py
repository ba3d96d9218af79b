"""A fleet written out and read again is the same fleet: the log keeps fleets, cases and simulations change them."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyd.core.fleet import FleetDocument
from policyd.revisions.fleet_files import load_fleet

FLEET = load_fleet(Path(__file__).resolve().parents[2] / "examples" / "fleet")


@pytest.mark.parametrize("exclude_none", [True, False])
def test_a_fleet_survives_its_own_json(exclude_none: bool) -> None:
    document = FLEET.document
    assert FleetDocument.model_validate_json(document.model_dump_json(exclude_none=exclude_none)) == document
