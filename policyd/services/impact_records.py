"""Logged decisions as impact reads them: grouped, so that what decides alike is decided once.

    entries of a page ──grouped──► what decides (workload, sheet, facts, what the ledger said, day), how many

Rules: two decisions are of one group when nothing that a decision is made from tells them apart, exact token counts
included; who asked, when within the day, and ids are not of that. What cannot be replayed is counted with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from audit.personal import ERASED, UNREADABLE
from audit.scan import Scanned
from policyd.core.workload import LIMIT_MAX
from policyd.services.answers import LISTED_MAX

_DAY_US: Final = 86_400_000_000
_QUARTER_US: Final = 900_000_000
_NOT_DECIDING: Final = ("_personal", "id", "obligations", "request_id", "salt", "stale", "time", "valid_us")
"""Fields of a record that no decision is made from."""
_COMMERCIAL: Final = frozenset({"commitment_not_in_force", "fact_missing", "model_not_served", "price_unknown"})
"""Rules of the core that refuse for want of an offer and not by law."""
NUMBERS: Final = ("input_tokens", "max_output_tokens", "requests_per_hour", "duration_hours")


@dataclass(slots=True)
class Group:
    """Decisions that are alike: the first one's record, and how many there are."""

    id: str
    time_us: int
    body: dict[str, Any]
    count: int = 0

    @property
    def ranked(self) -> list[list[Any]]:
        """Pool, score and cost of each that was returned."""
        found: list[list[Any]] = self.body.get("ranked", [])
        return found

    @property
    def ranked_total(self) -> int:
        """How many there were."""
        total: int = self.body.get("ranked_total", len(self.ranked))
        return total

    @property
    def listed_max(self) -> int:
        """How many the record would list."""
        return min(int(self.body.get("limit", LIMIT_MAX)), LISTED_MAX)

    @property
    def without_budget(self) -> bool:
        """Whether the ledger refused it."""
        return "denied" in self.body.get("admission", ())

    @property
    def revisions(self) -> tuple[str, str]:
        """The digests of its policies and fleet."""
        return self.body["policy"][1], self.body["fleet"][1]


@dataclass(slots=True)
class Grouped:
    """The decisions of a page, and what else was there."""

    groups: dict[bytes, Group] = field(default_factory=dict)
    errors: int = 0
    not_replayed: dict[str, int] = field(default_factory=dict)

    def miss(self, reason: str, count: int = 1) -> None:
        """Count what cannot be replayed."""
        self.not_replayed[reason] = self.not_replayed.get(reason, 0) + count


def grouped(entries: Sequence[Scanned], personal: Sequence[Mapping[str, Any] | None] | None, *, hours: bool) -> Grouped:
    """The entries of a page. ``personal`` has their personal fields where the candidate reads labels; ``hours`` says
    that it reads the hour, so that decisions of other quarters of an hour are others."""
    found = Grouped()
    bucket_us = _QUARTER_US if hours else _DAY_US
    for number, entry in enumerate(entries):
        if entry.body is None:
            found.miss("removed")
            continue
        if entry.kind != "decision":
            found.errors += 1
            continue
        try:
            body = orjson.loads(entry.body)
            said = None if personal is None else personal[number]
            reason = _labelled(body, said)
            if reason is not None:
                found.miss(reason)
                continue
            _reduce(body)
        except (ValueError, TypeError, LookupError, AttributeError):
            found.miss("unreadable")
            continue
        key = b"%d|" % (entry.time_us // bucket_us) + orjson.dumps(body)
        group = found.groups.get(key)
        if group is None:
            group = found.groups[key] = Group(entry.id, entry.time_us, body)
        group.count += 1
    return found


def _labelled(body: dict[str, Any], personal: Mapping[str, Any] | None) -> str | None:
    """Put the labels where they belong; why that cannot be done, or None."""
    if personal is None:
        return None
    if personal.get("principal") in (ERASED, UNREADABLE) and "_personal" in body:
        return "erased" if personal["principal"] == ERASED else "unreadable"
    labels = personal.get("workload", {}).get("labels")
    if labels:
        body["workload"]["labels"] = dict(sorted(labels.items()))
    return None


def _reduce(body: dict[str, Any]) -> None:
    """Keep what decides. Raises what a record that is none raises."""
    for name in _NOT_DECIDING:
        body.pop(name, None)
    admission = body.pop("admission", None)
    if admission is not None and "denied" in admission:
        body["admission"] = {"denied": True}
    body.pop("accounts", None)
    _ = (body["workload"]["tenant"], body["workload"]["model"], body["sheet"], body["facts"], body["outcome"])
    _ = (body["policy"][1], body["fleet"][1])


def frame_of(body: Mapping[str, Any]) -> tuple[bytes, tuple[int, ...]]:
    """The workload without its numbers, as a key, and the numbers."""
    workload = dict(body["workload"])
    demand = workload.pop("demand", {})
    numbers = tuple(demand.get(name, 0) for name in NUMBERS[:-1])
    return orjson.dumps(workload), (*numbers, demand.get("duration_hours", 1))


@dataclass(frozen=True, slots=True)
class RecordedSheet:
    """What impact needs of the sheet that a decision stood on: who was refused by which rules, the countries of the
    others, and the budget threshold that the policies of then saw (None when the class does not tell)."""

    refused: Mapping[str, tuple[str, ...]]
    hard: frozenset[str]
    countries: Mapping[str, str]
    crossed: tuple[int | None] | None

    @classmethod
    def read(cls, content: bytes) -> RecordedSheet:
        """Of the content that the log keeps. Raises ValueError, TypeError or LookupError for something else."""
        document = orjson.loads(content)
        violations = [(f"{each['policy']}.{each['rule']}", is_hard(each)) for each in document["violations"]]
        refused = {entry["pool"]: entry["violations"] for entry in document["refused"]}
        seen = document["header"]["class"][1].get("budget")
        return cls(
            {pool: tuple(dict.fromkeys(violations[number][0] for number in found)) for pool, found in refused.items()},
            frozenset(pool for pool, found in refused.items() if any(violations[number][1] for number in found)),
            {row["pool"]: row["country"] for row in document["rows"]}
            | {pool: row["country"] for pool, row in document.get("waivable", {}).items()},
            None if seen is None else (seen.get("crossed_percent"),),
        )


def is_hard(violation: Mapping[str, Any]) -> bool:
    """Whether a hard rule refuses, and not the want of an offer, which buying one mends."""
    commercial = violation["policy"] == "core" and violation["rule"] in _COMMERCIAL
    return violation["enforcement"] == "hard" and not commercial
