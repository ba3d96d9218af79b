"""The sheet: the verdict for every pool, for one workload class in one snapshot.

``policyd.core.classes`` asks the questions, an engine answers them, ``policyd.core.assemble`` fills the sheet. Eligible
pools become **rows**, which carry every number that ``policyd.core.decide`` needs; refused ones carry their violations.

Rules: a sheet is immutable, encoded once and addressed by its content; with the facts it is all that a replay needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import orjson

from policyd.core.cost import Pricing


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

    ``pricing`` lets ``explain`` say what it would have cost; ``declared`` is as in ``Row``.
    """

    pool: str
    kind: str
    violations: tuple[Mapping[str, Any], ...]
    hidden: bool = False
    pricing: Pricing | None = None
    declared: Mapping[str, Any] = field(default_factory=dict)


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
    shown_refused: tuple[tuple[str, orjson.Fragment], ...] = field(default=(), compare=False)
    """The refused pools that the tenant may see, each encoded once, in order of pool id."""


def seal(
    *,
    rows: tuple[Row, ...],
    refused: tuple[Refused, ...],
    weights: Mapping[str, int],
    sla: Mapping[str, Any],
    header: Mapping[str, Any],
    reads_clock: bool,
    failed: bool,
) -> Sheet:
    """Encode a sheet once and address it by its content."""
    document = {
        "header": header,
        "rows": rows,
        "refused": refused,
        "weights": weights,
        "sla": sla,
        "reads_clock": reads_clock,
        "failed": failed,
    }
    content = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
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
        shown_refused=tuple(
            (entry.pool, orjson.Fragment(orjson.dumps({"pool": entry.pool, "violations": entry.violations})))
            for entry in refused
            if not entry.hidden
        ),
    )


def sheet_from_content(content: bytes) -> Sheet:
    """The sheet that ``seal`` encoded, for replay and explanation; its digest is computed anew."""
    document = orjson.loads(content)
    return seal(
        rows=tuple(_revive(Row, {**row, "pricing": Pricing(**row["pricing"])}) for row in document["rows"]),
        refused=tuple(
            _revive(Refused, {**entry, "pricing": Pricing(**entry["pricing"]) if entry["pricing"] else None})
            for entry in document["refused"]
        ),
        weights=document["weights"],
        sla=document["sla"],
        header=document["header"],
        reads_clock=document["reads_clock"],
        failed=document["failed"],
    )


def _revive(kind: Any, values: Mapping[str, Any]) -> Any:
    names = {f.name for f in fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names})
