"""What the log and the fleet know of a register of information under DORA: providers, places, and who depends on them.

    allowed decisions by pool and project ──┐
                                            ├──► a row for each pool and function that was placed on it
    declared facts of the pools ────────────┘

Columns carry the field that they are for, as numbered in the annex of Implementing Regulation (EU) 2024/2956: B_02.02
(contractual arrangements, specific information), B_05.01 (providers), B_05.02 (supply chain), B_06.01 (functions).
A function is a project of a tenant here.

Rules: what nobody declared is empty, and never guessed; a sub-processor is told with its seat and countries.
It refuses to make up what only contracts and registers know: identification codes (LEI, EUID), references, types of
service, dates, and whether a function is critical.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

BY: Final = "pool/tenant/project/classification"
"""The table of a report that the rows are made from."""
COSTS: Final = ("cost_micro_usd", "settled_micro_usd", "presumed_micro_usd", "expected_micro_usd")
"""What it cost: all together, settled, presumed to be spent, and expected where that is not known yet."""
COLUMNS: Final = (
    "B_05.01.0050 legal name of the provider",
    "B_05.01.0080 country of its headquarters",
    "country of its parent",
    "B_06.01.0030 function name",
    "B_02.02.0130 country of provision",
    "B_02.02.0150 location of the data at rest",
    "B_02.02.0160 location of management of the data",
    "B_05.02.0030 subcontractors",
    "classification of the data",
    "pool",
    "provider",
    "decisions",
    *COSTS,
)


def register(rows: Iterable[Mapping[str, Any]], pools: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, by pool and function. ``rows`` are counted by ``BY``; a pool that is not declared now has no facts."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        name = row["pool"]
        if name is None:
            continue
        function = f"{row['tenant']}/{row['project']}"
        told = found.get((name, function))
        if told is None:
            told = found[name, function] = _row(name, function, pools.get(name, {}))
        told["classification of the data"] = _with(told["classification of the data"], row["classification"])
        told["decisions"] += row["allow"]
        for cost in COSTS:
            told[cost] += row[cost]
    return [found[key] for key in sorted(found)]


def _row(name: str, function: str, pool: Mapping[str, Any]) -> dict[str, Any]:
    operator, places = pool.get("operator") or {}, pool.get("locations") or {}
    values: tuple[Any, ...] = (
        operator.get("name"),
        operator.get("seat"),
        operator.get("parent_seat"),
        function,
        list(places.get("processing") or ()),
        list(places.get("storage") or ()),
        list(places.get("processing") or ()),
        [_subcontractor(company) for company in pool.get("sub_processors") or ()],
        [],
        name,
        pool.get("provider"),
        *(0 for _ in ("decisions", *COSTS)),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _subcontractor(company: Mapping[str, Any]) -> str:
    countries = ", ".join(company.get("countries") or ())
    return f"{company['name']} ({company.get('seat') or 'seat not declared'}; {countries or 'countries not declared'})"


def _with(known: list[str], word: str | None) -> list[str]:
    return known if word is None or word in known else sorted([*known, word])
