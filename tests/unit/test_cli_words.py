"""Values in the words of a person: no digit made up, nothing cut off."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.cli import words
from policyd.core.places import COUNTRIES, GROUPS


@pytest.mark.parametrize(
    ("micro_usd", "shown"),
    [
        (None, "unknown"),
        (0, "$0.00"),
        (1, "$0.000001"),
        (446, "$0.000446"),
        (5_120, "$0.00512"),
        (4_230, "$0.00423"),
        (278_000, "$0.278"),
        (500_000, "$0.500"),
        (1_000_000, "$1.00"),
        (1_999_999, "$2.00"),
        (3_843_840_000, "$3,843.84"),
        (-5_120, "-$0.00512"),
    ],
)
def test_money(micro_usd: int | None, shown: str) -> None:
    assert words.usd(micro_usd) == shown


@given(st.integers(min_value=1, max_value=2**53 - 1))
def test_money_is_never_nothing_and_never_far_off(micro_usd: int) -> None:
    shown = words.usd(micro_usd)
    assert re.fullmatch(r"\$[0-9,]+\.[0-9]{2,6}", shown)
    whole, _, rest = shown[1:].replace(",", "").partition(".")
    read = int(whole) * 1_000_000 + int(rest.ljust(6, "0"))
    assert read > 0
    assert abs(read - micro_usd) * 100 <= max(micro_usd, 1_000_000 if micro_usd >= 1_000_000 else micro_usd)


@pytest.mark.parametrize(
    ("countries", "shown"),
    [
        ((), "nowhere"),
        (("DE",), "DE"),
        (("FR", "DE", "DE"), "DE, FR"),
        (GROUPS["EU"], "EU (27 countries)"),
        (GROUPS["EU"] | {"GB", "US"}, "EU (27 countries), GB, US"),
        (COUNTRIES, f"WORLD ({len(COUNTRIES)} countries)"),
        (COUNTRIES - {"US"}, "every country but US"),
    ],
)
def test_places(countries: Any, shown: str) -> None:
    assert words.places(countries) == shown


def test_where_names_every_aspect_that_differs() -> None:
    same = {"processing": ["DE"], "ingress": ["DE"], "storage": ["DE"]}
    assert words.where(same) == "DE"
    assert words.where({**same, "ingress": ["US"], "support_access": ["US"]}) == "DE; ingress+support US"
    assert words.where({"processing": None, "ingress": None}) == "unknown"  # type: ignore[dict-item]  # as declared
    assert words.where({"ingress": ["US"]}) == "US"


@pytest.mark.parametrize(
    ("declared", "shown"),
    [
        ({"seat": "DE", "parent_seat": "DE"}, "DE"),
        ({"seat": "IE", "parent_seat": "US"}, "IE, parent US"),
        ({"seat": "DE", "parent_seat": None}, "DE"),
        ({"seat": None, "parent_seat": "US"}, "?, parent US"),
        ({}, "unknown"),
    ],
)
def test_operators(declared: dict[str, Any], shown: str) -> None:
    assert words.operator(declared) == shown


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (None, "none"),
        (True, "yes"),
        (False, "no"),
        (12_000, "12,000"),
        ("shared", "shared"),
        ([], "none"),
        ({}, "none"),
        (["US", "DE"], "DE, US"),
        (["SOC2", "C5"], "SOC2, C5"),
        ({"support_access": ["US"], "cold_start_ms": 12_000}, "support access US; cold start ms 12,000"),
        (
            {"ingress": ["US"], "storage": ["US"], "support_access": ["US", "IE"]},
            "ingress+storage US; support access IE, US",
        ),
        ({"name": "H100", "memory_gib": 80}, "H100 (memory gib 80)"),
        (
            [{"name": "SOC2", "expires": "2027-12-31"}, {"name": "A", "countries": ["US"], "seat": "US"}],
            "SOC2 (expires 2027-12-31), A (countries US; seat US)",
        ),
        ({"name": "alone"}, "name alone"),
        ("[red]not markup[/red]", "[red]not markup[/red]"),
    ],
)
def test_observed_and_required_values(found: Any, shown: str) -> None:
    assert words.value(found) == shown


def test_counts() -> None:
    assert [words.plural(1, "pool"), words.plural(2, "pool"), words.plural(0, "entry")] == [
        "1 pool",
        "2 pools",
        "0 entries",
    ]
    assert words.plural(1_200, "SLA class") == "1,200 SLA classes"


def test_revisions() -> None:
    digest = "sha256:" + "ab" * 32
    assert words.revision("c" * 40, digest) == "c" * 12
    assert words.revision(None, digest) == "abababababab (not committed)"
    assert words.revision_whole({"commit": None, "digest": digest}) == f"{digest} (not committed)"
