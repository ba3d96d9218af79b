"""The sheet: the verdict for every pool, for one workload class in one snapshot.

``policyd.core.classes`` asks the questions, an engine answers them, ``policyd.core.assemble`` fills the sheet. Eligible
pools become **rows**, which carry every number that ``policyd.core.decide`` needs; refused ones carry their violations.

Rules: a sheet is immutable, encoded once and addressed by its content; with the facts it is all that a replay needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

import orjson

from policyd.core.cost import TOKENS_PER_PRICE, Pricing, cost_fixed
from policyd.core.quantities import NANO_PER_MICRO

RATES_PER_MICRO: Final = NANO_PER_MICRO * TOKENS_PER_PRICE
"""The rates of a lane count nano-USD per million tokens: this many are a micro-USD."""


@dataclass(frozen=True, slots=True)
class Row:
    """An eligible pool: what the exact checks, the score and the answer need, fixed for the class."""

    pool: str
    kind: str
    provider: str
    country: str
    model: Mapping[str, Any]
    pricing: Pricing
    max_context_tokens: int
    control: int
    control_inputs: Mapping[str, Any]
    preference: int
    latency: int
    latency_inputs: Mapping[str, Any]
    steadiness: int
    steadiness_inputs: Mapping[str, Any]
    warnings: tuple[Mapping[str, Any], ...] = ()
    obligations: tuple[Mapping[str, Any], ...] = ()
    declared: Mapping[str, Any] = field(default_factory=dict)
    """What an explanation tells of the pool: provider, region, locations, operator, tenancy, day of the evidence."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A pool that the class may not use, with the reasons.

    ``pricing`` lets ``explain`` say what it would have cost; ``declared`` is as in ``Row``. ``row`` is what the pool
    would be without its violations, and there only when persons may lift every one of them (``core.waivers``).
    """

    pool: str
    kind: str
    violations: tuple[Mapping[str, Any], ...]
    hidden: bool = False
    pricing: Pricing | None = None
    declared: Mapping[str, Any] = field(default_factory=dict)
    row: Row | None = None


@dataclass(frozen=True, slots=True)
class Sheet:
    """Immutable, content-addressed verdicts. ``content`` is what the log stores once and ``digest`` names."""

    digest: str
    content: bytes
    rows: tuple[Row, ...]
    refused: tuple[Refused, ...]
    weights: Mapping[str, int]
    sla: Mapping[str, Any]
    hidden_total: int
    reads_clock: bool
    failed: bool
    header: Mapping[str, Any] = field(compare=False)
    """What the sheet was made from: digests of policy, fleet and entitlements, the engine, the key of its class."""
    shown_refused: tuple[tuple[str, orjson.Fragment], ...] = field(default=(), compare=False)
    """The refused pools that the tenant may see, each encoded once, in order of pool id."""
    shown_refused_json: bytes = field(default=b"[]", compare=False, repr=False)
    """All of ``shown_refused`` as one JSON list, which answers share."""
    lanes: tuple[Lane, ...] = field(default=(), compare=False)
    """The rows as ``policyd.core.decide`` reads them."""
    rules: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The digests of the rules that a person may lift of some pool here, by ``policy.rule``."""
    lifted: tuple[Refused, ...] = field(default=(), compare=False)
    """Of a sheet that waivers were applied to (``core.waivers``): pools as they are refused without them."""


Lane = tuple[Row, str, int, bool, int, int, int, int, int, int, bytes]
"""What deciding reads of a row, flat and without names: looked at a million times, so nothing is looked up twice.

| place      | holds                                                                       |
|------------|-----------------------------------------------------------------------------|
| 0, 1, 2    | the row, its pool, ``max_context_tokens``                                   |
| 3          | whether the cost of a request is the next three alone                       |
| 4, 5, 6    | its rates for an input token, an output token and the request, see ``lane_of``|
| 7          | GPUs of a replica; 0 where the provider hides them                          |
| 8          | the part of the score that the class fixes, times 1000                      |
| 9          | the pool's place among the eligible ones by id                              |
| 10         | its entry in an answer, with places for what ``ranked_json`` writes         |
"""


def component(name: str, value: Any, weights: Mapping[str, int], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A component of the score in the contract's shape."""
    return {"name": name, "value": value, "weight": weights[name], "inputs": inputs}


_NUMBER: Final = orjson.Fragment(b"%d")
_PART: Final = orjson.Fragment(b"%b")


def _fixed(value: Any) -> orjson.Fragment:
    """What every answer says alike, encoded once."""
    return orjson.Fragment(orjson.dumps(value).replace(b"%", b"%%"))


def entry_template(row: Row, weights: Mapping[str, int]) -> bytes:
    """The pool's entry in an answer's ``ranked``: a text with places, in order, for what ``decide`` finds."""
    headroom_inputs = {
        "available_gpus": _NUMBER,
        "needed_gpus": _NUMBER,
        "headroom_points": _NUMBER,
        "queue_ms": _NUMBER,
        "queue_points": _NUMBER,
        "steadiness_points": row.steadiness,
        **{name: _fixed(value) for name, value in row.steadiness_inputs.items()},
    }
    cost = {
        "micro_usd": _NUMBER,
        "per": _PART,
        "micro_usd_per_million_tokens": _PART,
        **{name: _fixed(value) for name, value in cost_fixed(row.pricing).items()},
    }
    entry = {
        "pool": _fixed(row.pool),
        "rank": _NUMBER,
        "score": _NUMBER,
        "components": [
            _fixed(component("control", row.control, weights, row.control_inputs)),
            component("availability", _NUMBER, weights, headroom_inputs),
            component("price", _NUMBER, weights, {"micro_usd": _NUMBER}),
            _fixed(component("latency", row.latency, weights, row.latency_inputs)),
            _fixed(component("preference", row.preference, weights, {})),
        ],
        "cost": orjson.Fragment(orjson.dumps(cost)[:-1] + b"%b}"),
        "model": _fixed(row.model),
        "backends": [],
        "warnings": _fixed(row.warnings),
    }
    return orjson.dumps(entry)


def lane_of(row: Row, weights: Mapping[str, int], place: int) -> Lane:
    """The rates count nano-USD per million tokens; the one for the request holds what rounds up to a micro-USD."""
    pricing = row.pricing
    return (
        row,
        row.pool,
        row.max_context_tokens,
        pricing.form != "billed",
        pricing.input_nano,
        pricing.output_nano,
        pricing.request_nano * TOKENS_PER_PRICE + RATES_PER_MICRO - 1,
        0 if pricing.form == "tokens" else pricing.gpus,
        weights["control"] * row.control
        + weights["latency"] * row.latency
        + weights["preference"] * row.preference
        + weights["availability"] * row.steadiness,
        place,
        entry_template(row, weights),
    )


def seal(
    *,
    rows: tuple[Row, ...],
    refused: tuple[Refused, ...],
    weights: Mapping[str, int],
    sla: Mapping[str, Any],
    header: Mapping[str, Any],
    reads_clock: bool,
    failed: bool,
    rules: Mapping[str, str] | None = None,
) -> Sheet:
    """Encode a sheet once and address it by its content. Each distinct violation is written once."""
    rows = tuple(_ordered(row) for row in rows)
    refused = tuple(entry if entry.row is None else replace(entry, row=_ordered(entry.row)) for entry in refused)
    rules = rules or {}
    places = {pool: place for place, pool in enumerate(sorted(row.pool for row in rows))}
    table: dict[bytes, int] = {}
    # Pools that share an answer share its violations, so that most are told apart without their bytes.
    known: dict[int, int] = {}
    for violation in {id(each): each for entry in refused for each in entry.violations}.values():
        written = orjson.dumps(violation, option=orjson.OPT_SORT_KEYS)
        known[id(violation)] = table.setdefault(written, len(table))
    encoded = [[known[id(violation)] for violation in entry.violations] for entry in refused]
    violations = list(table)
    document: dict[str, Any] = {
        "header": header,
        "rows": rows,
        "refused": [
            {
                "pool": entry.pool,
                "kind": entry.kind,
                "violations": numbers,
                "hidden": entry.hidden,
                "pricing": entry.pricing,
                "declared": entry.declared,
            }
            for entry, numbers in zip(refused, encoded, strict=True)
        ],
        "violations": [orjson.Fragment(violation) for violation in violations],
        "weights": weights,
        "sla": sla,
        "reads_clock": reads_clock,
        "failed": failed,
    }
    waivable = {entry.pool: _apart(entry.row) for entry in refused if entry.row is not None}
    if waivable:
        document |= {"waivable": waivable, "rules": rules}
    content = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    shown = [
        (entry.pool, shown_entry(entry.pool, [violations[number] for number in numbers]))
        for entry, numbers in zip(refused, encoded, strict=True)
        if not entry.hidden
    ]
    return Sheet(
        digest="sha256:" + hashlib.sha256(content).hexdigest(),
        content=content,
        rows=rows,
        refused=refused,
        weights=weights,
        sla=sla,
        hidden_total=sum(entry.hidden for entry in refused),
        reads_clock=reads_clock,
        failed=failed,
        header=header,
        shown_refused=tuple((pool, orjson.Fragment(written)) for pool, written in shown),
        shown_refused_json=b"[" + b",".join(written for _, written in shown) + b"]",
        lanes=tuple(lane_of(row, weights, places[row.pool]) for row in rows),
        rules=rules,
    )


_WRITTEN: Final = ("model", "control_inputs", "latency_inputs", "steadiness_inputs", "warnings", "obligations")


def _ordered(row: Row) -> Row:
    """The row with the keys of its values in the order of the content: a sheet that is read back answers with the same
    bytes as the one that was made."""
    values = [getattr(row, name) for name in _WRITTEN]
    *others, warnings, obligations = orjson.loads(orjson.dumps(values, option=orjson.OPT_SORT_KEYS))
    return replace(row, **dict(zip(_WRITTEN, (*others, tuple(warnings), tuple(obligations)), strict=True)))


def shown_entry(pool: str, violations: Sequence[bytes]) -> bytes:
    """A refused pool as answers show it."""
    return orjson.dumps({"pool": pool, "violations": [orjson.Fragment(violation) for violation in violations]})


def sheet_from_content(content: bytes) -> Sheet:
    """The sheet that ``seal`` encoded, for replay and explanation; its digest is computed anew."""
    document = orjson.loads(content)
    violations = document["violations"]
    waivable = document.get("waivable", {})
    return seal(
        rows=tuple(map(_row, document["rows"])),
        refused=tuple(
            _revive(
                Refused,
                {
                    **entry,
                    "violations": [violations[number] for number in entry["violations"]],
                    "pricing": Pricing(**entry["pricing"]) if entry["pricing"] else None,
                    "row": _joined(entry, waivable[entry["pool"]]) if entry["pool"] in waivable else None,
                },
            )
            for entry in document["refused"]
        ),
        weights=document["weights"],
        sla=document["sla"],
        header=document["header"],
        reads_clock=document["reads_clock"],
        failed=document["failed"],
        rules=document.get("rules"),
    )


_TOLD_ALREADY: Final = ("pool", "kind", "pricing", "declared")
"""What the entry of a refused pool says as well as its row."""
_OF_ITS_OWN: Final = tuple(each.name for each in fields(Row) if each.name not in _TOLD_ALREADY)


def _apart(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _OF_ITS_OWN}


def _joined(entry: Mapping[str, Any], own: Mapping[str, Any]) -> Row:
    return _row({**own, **{name: entry[name] for name in _TOLD_ALREADY}})


def _row(written: Mapping[str, Any]) -> Row:
    row: Row = _revive(Row, {**written, "pricing": Pricing(**written["pricing"])})
    return row


def _revive(kind: Any, values: Mapping[str, Any]) -> Any:
    names = {f.name for f in fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names})
