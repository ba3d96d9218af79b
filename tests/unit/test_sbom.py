"""The bill of materials names every locked package with its licence, and nobody may add one whose licence is unread."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def sbom() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "sbom"))


@pytest.mark.parametrize("lock", ["runtime", "postgresql", "parquet"])
def test_the_bill_names_every_locked_package_once_with_version_and_licence(sbom: dict[str, Any], lock: str) -> None:
    document = sbom["bill"](lock)
    components = document["components"]
    assert document["bomFormat"] == "CycloneDX"
    assert sorted((found["name"], found["version"]) for found in components) == sorted(sbom["locked"](lock).items())
    assert all(found["licenses"][0]["expression"] for found in components)
    assert len(components) > 30


def test_the_page_of_licences_is_current(sbom: dict[str, Any], repository: Path) -> None:
    written = (repository / "docs" / "reference" / "licences.md").read_text()
    assert written == sbom["page"](), "run scripts/sbom --licences > docs/reference/licences.md"


@pytest.mark.parametrize(
    "licence", ["GPL-3.0-only", "Proprietary", "", "MIT AND AGPL-3.0-only", "GPL-3.0-only AND (MIT OR ISC)"]
)
def test_an_unread_licence_is_refused(sbom: dict[str, Any], licence: str) -> None:
    sbom["READ"]["something"] = licence or " "
    with pytest.raises(SystemExit, match="something"):
        sbom["licence_of"]("something")


def test_of_alternatives_a_permitted_one_is_enough(sbom: dict[str, Any]) -> None:
    sbom["READ"]["something"] = "Apache-2.0 OR GPL-2.0-or-later"
    assert sbom["licence_of"]("something") == "Apache-2.0 OR GPL-2.0-or-later"


def test_what_an_extra_may_bring_the_rest_may_not(sbom: dict[str, Any]) -> None:
    sbom["READ"]["something"] = "LGPL-3.0-only"
    assert sbom["licence_of"]("something", extra=True) == "LGPL-3.0-only"
    with pytest.raises(SystemExit, match="something"):
        sbom["licence_of"]("something")
