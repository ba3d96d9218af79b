"""What a candidate revision would have changed of logged decisions: the report, how reports add up, and their gate.

    flips    allow_to_deny   had a pool, and has none on the candidate
             deny_to_allow   had none, and has one
             first_choice    another pool comes first
    beside   order           the same first choice, the others in another order, or others
             denied_by       refused both times, for another reason
             score           the same pools in the same order, with other scores or costs

Every logged decision counts once: as the same, as one of these, as one that brought no decision (``errors``), or as one
that cannot be replayed, with the reason. ``policyd.services.impact_run`` counts; reports of parts of a window add up.

Rules: a share is counted of what was replayed, in parts per million, so that reports of machines add up exactly; what a
**hard** rule refused on record and the candidate places is told apart from every share (``hard``), and needs a person;
a table that is too long says how many rows it left out. It refuses to add reports of different candidates or windows,
and the same part twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import orjson

from audit.record import Blob, Entry, Search, encode
from policyd.errors import Finding, RequestError
from policyd.revisions.gates import GateResult
from policyd.services.clock import random_16, rfc3339, uuid7

Change = Literal["allow_to_deny", "deny_to_allow", "first_choice", "order", "denied_by", "score"]
CHANGES: Final[tuple[Change, ...]] = get_args(Change)
FLIPS: Final[tuple[Change, ...]] = ("allow_to_deny", "deny_to_allow", "first_choice")
Dimension = Literal["tenant", "model", "pool", "rule", "country"]
DIMENSIONS: Final[tuple[Dimension, ...]] = get_args(Dimension)
NOT_REPLAYED: Final[Mapping[str, str]] = {
    "removed": "its record was removed when its retention ended",
    "erased": "the candidate reads labels, and those of this decision were erased",
    "sheet": "the log does not hold the sheet that it stood on",
    "facts": "the log does not hold the facts that it stood on",
    "budgets": "the candidate reads budget thresholds, and the policies of its time did not",
    "unreadable": "its record, or its labels, cannot be read by this policyd",
}
"""Why a decision cannot be replayed."""
PPM: Final = 1_000_000
ROWS_MAX: Final = 1_000
EXAMPLES_PER_CHANGE_MAX: Final = 20
EXAMPLES_PER_KIND_MAX: Final = 3
"""Examples of one change that have tenant, model, pools and rules in common."""
REPORT_VERSION: Final = 1


@dataclass(slots=True)
class Row:
    """A row of a table: flips in which this value has a part, those that a hard rule had refused, and costs.

    ``decisions`` are all that were replayed of a tenant or a model, and the changed ones alone in other tables. Costs
    are those of first choices, where there was one both times.
    """

    decisions: int = 0
    allow_to_deny: int = 0
    deny_to_allow: int = 0
    first_choice: int = 0
    hard: int = 0
    cost_before_micro_usd: int = 0
    cost_after_micro_usd: int = 0

    def add(self, other: Row) -> None:
        """Count what the other counted too."""
        for name in _ROW:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def flips(self) -> int:
        """All of them."""
        return self.allow_to_deny + self.deny_to_allow + self.first_choice


_ROW: Final = tuple(Row.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Example:
    """A decision to open with ``policyd explain``: what it was, and what it would be."""

    change: str
    id: str
    time: str
    tenant: str
    model: str
    before: str
    after: str
    rules: tuple[str, ...] = ()
    lifted: tuple[str, ...] = ()
    """Pools that a hard rule refused, and that it would be placed on."""

    @property
    def kind(self) -> tuple[Any, ...]:
        """What examples that tell the same have in common."""
        return (self.change, self.tenant, self.model, self.before, self.after, self.rules)


@dataclass(frozen=True, slots=True)
class Candidate:
    """The pair of revisions that decisions were replayed on; ``label`` is what a person called it."""

    policy_digest: str
    fleet_digest: str
    policy_commit: str | None = None
    fleet_commit: str | None = None
    label: str = ""


@dataclass
class ImpactReport:
    """The counts of one run, or of several that were added.

    ``shards`` says which parts of how many are in it: ``(1, 4)`` is the first of four. ``other_revisions`` counts the
    decisions that were made under other revisions than those that are live, whose flips are not the candidate's alone.
    ``failed`` counts those of ``allow_to_deny`` where the candidate gave no verdict, or refused the request.
    """

    candidate: Candidate
    from_us: int
    to_us: int
    shards: tuple[tuple[int, int], ...] = ((1, 1),)
    replayed: int = 0
    changes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CHANGES, 0))
    failed: int = 0
    hard: int = 0
    errors: int = 0
    not_replayed: dict[str, int] = field(default_factory=dict)
    other_revisions: int = 0
    cost_before_micro_usd: int = 0
    cost_after_micro_usd: int = 0
    rows: dict[str, dict[str, Row]] = field(default_factory=lambda: {name: {} for name in DIMENSIONS})
    rows_left_out: int = 0
    examples: list[Example] = field(default_factory=list)
    complete: bool = True

    @property
    def same(self) -> int:
        """Decisions that come out as they were logged: outcome, reason, order, scores and costs."""
        return self.replayed - sum(self.changes.values())

    @property
    def flips(self) -> int:
        """Decisions with another outcome or another first choice."""
        return sum(self.changes[name] for name in FLIPS)

    @property
    def flips_ppm(self) -> int:
        """Their share of what was replayed, rounded up."""
        return -(-self.flips * PPM // self.replayed) if self.replayed else 0

    @property
    def lost(self) -> int:
        """Decisions that cannot be replayed."""
        return sum(self.not_replayed.values())

    @property
    def needs_approval(self) -> bool:
        """Whether the candidate places what a hard rule refused."""
        return self.hard > 0

    def row(self, dimension: Dimension, value: str) -> Row:
        """The row of a value, to count in; one that counts for nobody when the table is full."""
        table = self.rows[dimension]
        found = table.get(value)
        if found is None:
            found = Row()
            if len(table) < ROWS_MAX:
                table[value] = found
            else:
                self.rows_left_out += 1
        return found

    def show(self, example: Example) -> None:
        """Keep an example, while there are few of its change and of its kind."""
        alike = [each for each in self.examples if each.change == example.change]
        of_kind = sum(each.kind == example.kind for each in alike)
        if len(alike) < EXAMPLES_PER_CHANGE_MAX and of_kind < EXAMPLES_PER_KIND_MAX:
            self.examples.append(example)

    def add(self, other: ImpactReport) -> None:
        """Count another part of the same window too. Raises ``RequestError`` when it is none."""
        _check_parts(self, other)
        self.shards = tuple(sorted({*self.shards, *other.shards}))
        self.take(other)

    def take(self, other: ImpactReport) -> None:
        """Add the counts, whatever part they are of: a step of the same run."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, theirs in ((self.changes, other.changes), (self.not_replayed, other.not_replayed)):
            for key, count in theirs.items():
                mine[key] = mine.get(key, 0) + count
        for dimension in DIMENSIONS:
            for value, row in other.rows[dimension].items():
                self.row(dimension, value).add(row)
        for example in other.examples:
            self.show(example)
        self.complete = self.complete and other.complete

    def to_json(self) -> dict[str, Any]:
        """The report as a document; ``from_json`` reads it."""
        return {
            "v": REPORT_VERSION,
            "candidate": _fields(self.candidate),
            "from_us": self.from_us,
            "to_us": self.to_us,
            "shards": [list(shard) for shard in self.shards],
            "complete": self.complete,
            "replayed": self.replayed,
            "same": self.same,
            "flips": self.flips,
            "flips_ppm": self.flips_ppm,
            "changes": dict(self.changes),
            "failed": self.failed,
            "hard": self.hard,
            "errors": self.errors,
            "not_replayed": dict(self.not_replayed),
            "other_revisions": self.other_revisions,
            "cost_before_micro_usd": self.cost_before_micro_usd,
            "cost_after_micro_usd": self.cost_after_micro_usd,
            "rows": {
                name: [{"value": value, **_fields(row)} for value, row in sorted_rows(table)]
                for name, table in self.rows.items()
            },
            "rows_left_out": self.rows_left_out,
            "examples": [
                {**_fields(example), "rules": list(example.rules), "lifted": list(example.lifted)}
                for example in self.examples
            ],
        }

    @classmethod
    def from_json(cls, document: Any) -> ImpactReport:
        """What ``to_json`` wrote. Raises ``RequestError`` when it is something else."""
        try:
            if document["v"] != REPORT_VERSION:
                raise RequestError(f"a report of version {document['v']}; this policyd reads {REPORT_VERSION}")
            report = cls(
                Candidate(**document["candidate"]),
                int(document["from_us"]),
                int(document["to_us"]),
                tuple((int(part), int(parts)) for part, parts in document["shards"]),
                changes={name: int(document["changes"][name]) for name in CHANGES},
                not_replayed={str(name): int(count) for name, count in document["not_replayed"].items()},
                rows={
                    name: {str(row["value"]): Row(**{key: int(row[key]) for key in _ROW}) for row in rows}
                    for name in DIMENSIONS
                    for rows in (document["rows"][name],)
                },
                examples=[
                    Example(**{**each, "rules": tuple(each["rules"]), "lifted": tuple(each["lifted"])})
                    for each in document["examples"]
                ],
                complete=bool(document["complete"]),
            )
            for name in _SUMS:
                setattr(report, name, int(document[name]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RequestError(f"this is no report of `policyd policy impact`: {error!r}") from error
        return report


_SUMS: Final = (
    "replayed",
    "failed",
    "hard",
    "errors",
    "other_revisions",
    "cost_before_micro_usd",
    "cost_after_micro_usd",
    "rows_left_out",
)


def sorted_rows(table: Mapping[str, Row]) -> list[tuple[str, Row]]:
    """The rows with most flips first."""
    return sorted(table.items(), key=lambda item: (-item[1].flips, -item[1].hard, item[0]))


def merged(reports: Iterable[ImpactReport]) -> ImpactReport:
    """The report of all parts together. Raises ``RequestError`` unless they are all parts of one, each once."""
    first, *others = list(reports)
    for other in others:
        first.add(other)
    parts = {parts for _, parts in first.shards}
    missing = sorted({(part, most) for most in parts for part in range(1, most + 1)} - set(first.shards))
    if missing:
        raise RequestError(
            f"the part {missing[0][0]}/{missing[0][1]} is missing",
            findings=[Finding(f"{part}/{most}", "this part is missing") for part, most in missing],
            remedy="run `policyd policy impact … --shard` for each part, and merge all reports at once",
        )
    return first


def _check_parts(one: ImpactReport, other: ImpactReport) -> None:
    for name, mine, theirs in (
        ("policies", one.candidate.policy_digest, other.candidate.policy_digest),
        ("fleet", one.candidate.fleet_digest, other.candidate.fleet_digest),
        ("window", (one.from_us, one.to_us), (other.from_us, other.to_us)),
        ("number of parts", {most for _, most in one.shards}, {most for _, most in other.shards}),
    ):
        if mine != theirs:
            raise RequestError(
                f"these reports are not of one run: the {name} differs, {mine} and {theirs}",
                remedy="give every machine the same revision, and the same --from and --to",
            )
    twice = sorted(set(one.shards) & set(other.shards))
    if twice:
        raise RequestError(f"the part {twice[0][0]}/{twice[0][1]} is there twice", remedy="merge each part once")
    if not (one.complete and other.complete):
        raise RequestError("a report is of a run that was interrupted", remedy="run that part again: it goes on")


def _fields(thing: Any) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in thing.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class ImpactLimits:
    """What the gate lets pass: flips and decisions that could not be replayed, as shares in parts per million."""

    max_flips_ppm: int = 10_000
    max_not_replayed_ppm: int = 100_000


def impact_gate(report: ImpactReport, limits: ImpactLimits) -> GateResult:
    """Whether a candidate changes no more than it may.

    ``details["needs_approval"]`` says that it would place on a pool that a hard rule refused on record: whoever keeps
    the order of the gates asks for the approval of a person then, whatever the share. An interrupted run passes
    nothing.
    """
    seen = report.replayed + report.lost
    lost_ppm = -(-report.lost * PPM // seen) if seen else 0
    flips = f"{share(report.flips_ppm)} of {report.replayed:,} decisions would change"
    faults = []
    if not report.complete:
        faults.append("the replay was interrupted")
    if report.flips_ppm > limits.max_flips_ppm:
        faults.append(f"{flips}; {share(limits.max_flips_ppm)} may")
    if lost_ppm > limits.max_not_replayed_ppm:
        faults.append(f"{report.lost:,} of {seen:,} decisions cannot be replayed")
    said = "; ".join(faults) or (flips if report.replayed else "no decision was logged in this window: nothing to flip")
    if report.needs_approval:
        said += f"; {report.hard:,} would be placed where a hard rule refused, and that needs an approval"
    details = {
        "flips_ppm": report.flips_ppm,
        "max_flips_ppm": limits.max_flips_ppm,
        "replayed": report.replayed,
        "changes": dict(report.changes),
        "hard": report.hard,
        "needs_approval": report.needs_approval,
        "not_replayed": dict(report.not_replayed),
    }
    return GateResult("impact", not faults, said, _findings(report), details)


def impact_entry(report: ImpactReport, kind: str, time_us: int) -> tuple[Entry, Blob]:
    """The entry that keeps a report with its revision (``kind`` is ``policy`` or ``fleet``), and the report itself."""
    candidate, entry_id = report.candidate, uuid7(time_us)
    blob = Blob.of("revision", orjson.dumps({"impact": report.to_json()}, option=orjson.OPT_SORT_KEYS))
    fields = {
        "v": 2,
        "kind": "revision",
        "id": entry_id,
        "time": rfc3339(time_us),
        "action": "impact",
        "revision": kind,
        "policy": [candidate.policy_commit, candidate.policy_digest],
        "fleet": [candidate.fleet_commit, candidate.fleet_digest],
        "from": rfc3339(report.from_us),
        "to": rfc3339(report.to_us),
        "report": blob.digest,
        "replayed": report.replayed,
        "flips": report.flips,
        "hard": report.hard,
    }
    search = Search(policy_commit=candidate.policy_commit, fleet_commit=candidate.fleet_commit)
    return Entry("revision", entry_id, time_us, encode(fields, random_16()), search), blob


def share(ppm: int) -> str:
    """A share as a person reads it, never rounded down to nothing."""
    percent = f"{ppm / 10_000:.2f}".rstrip("0").rstrip(".")
    return "less than 0.01 %" if 0 < ppm < 100 else f"{percent} %"


def _findings(report: ImpactReport) -> tuple[Finding, ...]:
    """The decisions to open, those that a hard rule had refused first."""
    examples = sorted(report.examples, key=lambda each: (not each.lifted, each.change not in FLIPS))
    return tuple(
        Finding(each.id, f"{each.change}: {each.tenant}, {each.model}: {each.before} → {each.after}{_lifted(each)}")
        for each in examples
        if each.change in FLIPS or each.lifted
    )


def _lifted(example: Example) -> str:
    return f"; a hard rule refused {', '.join(example.lifted)}" if example.lifted else ""
