"""Reports of the decision log: what was decided in a period, counted, and which model versions went into production.

    pages (from the log, or from a server)  ──take──►  Report  ──document──►  table, JSON, CSV

A report is gathered page by page, so that no step takes long and memory does not grow with the log. Both ways give the
same pages: ``count_page`` and ``first_uses_page`` here, or the routes that answer with them.

Costs are what was settled, or presumed to be spent when nobody settled in time; nothing when it was released; and while
that is open, or nothing was reserved, what the first choice of an allow was expected to cost, as recorded.

Rules: a page continues only the report that it came from; rows beyond ``rows_max`` refuse the report, since a report
that leaves something out is none; a version is in production from the first allowed decision for ``prod`` on.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import orjson

from audit import report
from audit.entries import facts_of
from audit.errors import QueryInvalid
from audit.query import Within, time_us_of
from audit.record import INTEGER_MAX
from audit.report import SEVERAL, Counted, Counts, FirstUse, Table, Told
from policyd.documents import nearest
from policyd.errors import Finding, RequestError, ServerUnreachable
from policyd.services.clock import rfc3339
from policyd.services.log_reader import LogReader
from policyd.services.spending import spending

STAGE_TRANSITION: Final = "stage_transition"
BY_DEFAULT: Final = (
    "outcome", "rule", "pool", "provider", "country", "model/model_version", "policy_commit", "tenant",
    STAGE_TRANSITION,
)  # fmt: skip
"""What a report is by, unless somebody says otherwise: the monthly review."""
TABLES_MAX: Final = 16
CURSOR_MAX_CHARS: Final = 256
STAGES: Final = ("experiment", "dev", "staging")
"""The environments before production, in their order."""
PRODUCTION: Final = "prod"
SUMMED: Final = (
    "entries", "allow", "deny", "error", "settled_micro_usd", "presumed_micro_usd", "expected_micro_usd",
)  # fmt: skip
COUNTS: Final = (*SUMMED[:4], "cost_micro_usd", *SUMMED[4:])
"""The columns of a row; the cost is the sum of the three behind it."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class By:
    """What a report counts by: tables of one or more dimensions, and whether it tells of stage transitions."""

    tables: tuple[Table, ...]
    transitions: bool

    @property
    def words(self) -> list[str]:
        """As it is written."""
        return ["/".join(table) for table in self.tables] + [STAGE_TRANSITION] * self.transitions


def by_of(written: Iterable[str]) -> By:
    """Read texts such as ``outcome,provider/country``: a comma between tables, a slash between dimensions of one.

    Raises ``RequestError`` naming the nearest word.
    """
    words = [word.strip() for text in written for word in text.split(",")]
    tables = list(dict.fromkeys(tuple(word.split("/")) for word in words if word != STAGE_TRANSITION))
    known = (*report.DIMENSIONS, STAGE_TRANSITION)
    for name in (name for table in tables for name in table):
        if name not in known:
            raise _fault("by", f"{name[:100]!r} is nothing to count by{nearest(name[:100], known)}")
        if name == STAGE_TRANSITION:
            raise _fault("by", f"{STAGE_TRANSITION} stands alone")
    if len(tables) > TABLES_MAX:
        raise _fault("by", f"a report has at most {TABLES_MAX} tables")
    try:
        report.check_tables(tables)
    except QueryInvalid as error:
        raise _fault("by", error.message) from error
    return By(tuple(tables), STAGE_TRANSITION in words)


def read_body(body: bytes) -> Told:
    """What a record says of its first choice's cost, the rules of its own, its sources and its revisions."""
    facts = facts_of(orjson.loads(body))
    digests = {"policy_digest": facts.policy_digest, "fleet_digest": facts.fleet_digest}
    values = {name: (digest,) for name, digest in digests.items() if digest is not None}
    return Told(facts.cost_micro_usd or 0, {**values, "rule": facts.rules_now, "data_source": facts.data_sources})


async def count_page(
    reader: LogReader,
    by: By,
    filters: Mapping[str, str],
    cursor: str | None = None,
    *,
    rows_max: int,
    within: Sequence[Within] | None = None,
) -> Json:
    """One page of the counts. The first has ``entries_total``, how many there are to read in all."""
    binding = _binding(by.words, filters)
    place = _numbers(cursor, binding, 2)
    total = await reader.total(filters, within=within) if place is None else None
    after = None if place is None else (place[0], place[1])
    counted = await reader.count(by.tables, filters, read_body, spending, after=after, rows_max=rows_max, within=within)
    return {
        "entries": counted.entries,
        "entries_total": total,
        "tables": [
            {"by": list(table), "rows": _rows(table, found)}
            for table, found in zip(by.tables, counted.tables, strict=True)
        ],
        "next": None if counted.after is None else _cursor(binding, counted.after),
    }


async def first_uses_page(
    reader: LogReader,
    filters: Mapping[str, str],
    cursor: str | None = None,
    *,
    within: Sequence[Within] | None = None,
) -> Json:
    """One page of first uses, in the order of the log. A use of a later page is another only when it is not here."""
    binding = _binding(["first_uses"], filters)
    place = _numbers(cursor, binding, 1)
    found, goes_on = await reader.first_uses(filters, place[0] if place else 0, within=within)
    return {
        "items": [_use_json(use) for use in found],
        "next": None if goes_on is None else _cursor(binding, (goes_on,)),
    }


@dataclass
class Report:
    """A report that pages add up to."""

    by: By
    filters: Mapping[str, str]
    rows_max: int
    log: str | None = None
    entries_total: int | None = None
    _counted: Counted = field(init=False)
    _uses: dict[report.UseKey, FirstUse] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._counted = Counted(tuple({} for _ in self.by.tables))

    @property
    def entries(self) -> int:
        """Entries that were read so far."""
        return self._counted.entries

    def take_counts(self, page: Mapping[str, Any]) -> str | None:
        """Add a page; gives the cursor of the next one."""
        self.entries_total = page["entries_total"] if self.entries_total is None else self.entries_total
        try:
            tables = tuple(
                {tuple(row[name] for name in table): _counts(row) for row in found["rows"]}
                for table, found in zip(self.by.tables, page["tables"], strict=True)
            )
            step = Counted(tables, int(page["entries"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ServerUnreachable(f"a page of the report is none: {error!r}") from error
        try:
            self._counted.add(step, self.rows_max)
        except QueryInvalid as error:
            raise _fault("by", error.message) from error
        return _next(page)

    def take_uses(self, page: Mapping[str, Any]) -> str | None:
        """Add a page of first uses; gives the cursor of the next one."""
        try:
            found = [_use(item) for item in page["items"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ServerUnreachable(f"a page of first uses is none: {error!r}") from error
        for use in found:
            self._uses[use.key] = use.earlier(self._uses.get(use.key))
        if len(self._uses) > self.rows_max:
            raise _fault("by", f"{STAGE_TRANSITION}: more than {self.rows_max:,} model versions in environments")
        return _next(page)

    def document(self) -> Json:
        """The report as JSON values: tables with their rows, most entries first, and stage transitions."""
        found: Json = {
            "log": self.log,
            "from": self.filters.get("from"),
            "to": self.filters.get("to"),
            "filters": {name: value for name, value in self.filters.items() if name not in ("from", "to")},
            "entries": self._counted.entries,
            "tables": [
                {"by": list(table), "several": any(name in SEVERAL for name in table), "rows": _rows(table, rows)}
                for table, rows in zip(self.by.tables, self._counted.tables, strict=True)
            ],
        }
        if self.by.transitions:
            found["stage_transitions"] = transitions(self._uses.values(), self.filters)
        return found


def transitions(uses: Iterable[FirstUse], filters: Mapping[str, str]) -> list[Json]:
    """First production uses within the period of the filters, each with the stages that came before it.

    ``from`` is the last stage that was used before, and null when there was none: straight into production.
    """
    begins = time_us_of("from", filters["from"]) if "from" in filters else 0
    ends = time_us_of("to", filters["to"]) if "to" in filters else INTEGER_MAX
    versions: dict[tuple[str | None, ...], dict[str | None, FirstUse]] = {}
    for use in uses:
        versions.setdefault(use.key[:3], {})[use.key[3]] = use
    found = []
    for (tenant, model, version), stages in versions.items():
        live = stages.get(PRODUCTION)
        if live is None or not begins <= live.time_us < ends:
            continue
        before = [stages[name] for name in STAGES if name in stages and stages[name].precedes(live)]
        item = {"tenant": tenant, "model": model, "model_version": version}
        item |= {"from": before[-1].key[3] if before else None, "to": PRODUCTION}
        found.append({**item, **_first(live), "before": [{"environment": s.key[3], **_first(s)} for s in before]})
    return sorted(found, key=lambda item: (item["time"], item["log"], item["index"]))


def first_uses_filters(filters: Mapping[str, str]) -> dict[str, str]:
    """The filters under which the first use of all is found: not those of the period's beginning and of the stage."""
    return {name: value for name, value in filters.items() if name not in ("from", "environment", "outcome")}


def _rows(table: Table, found: Mapping[report.Key, Counts]) -> list[Json]:
    ordered = sorted(found.items(), key=lambda item: (-item[1].entries, [value or "" for value in item[0]]))
    return [
        {**dict(zip(table, key, strict=True)), **{name: getattr(counts, name) for name in COUNTS}}
        for key, counts in ordered
    ]


def _counts(row: Mapping[str, Any]) -> Counts:
    return Counts(**{name: int(row[name]) for name in SUMMED})


def _first(use: FirstUse) -> Json:
    place = {"log": use.log, "index": use.index}
    return {"time": rfc3339(use.time_us), "id": str(UUID(bytes=use.id)), **place, "entries": use.entries}


def _use_json(use: FirstUse) -> Json:
    return {**dict(zip(_USE, use.key, strict=True)), "time_us": use.time_us, **_first(use)}


_USE: Final = ("tenant", "model", "model_version", "environment")


def _use(item: Mapping[str, Any]) -> FirstUse:
    key = (item["tenant"], item["model"], item["model_version"], item["environment"])
    entry_id, time_us = UUID(item["id"]).bytes, int(item["time_us"])
    return FirstUse(key, str(item["log"]), int(item["index"]), entry_id, time_us, int(item["entries"]))


def _next(page: Mapping[str, Any]) -> str | None:
    following = page.get("next")
    if following is not None and not isinstance(following, str):
        raise ServerUnreachable("a page of the report does not say where it goes on")
    return following


def _fault(field_name: str, message: str) -> RequestError:
    return RequestError(f"`{field_name}`: {message}", findings=[Finding(field_name, message)])


def _binding(words: Sequence[str], filters: Mapping[str, str]) -> str:
    return sha256(orjson.dumps([words, sorted(filters.items())])).hexdigest()[:16]


def _cursor(binding: str, numbers: Sequence[int]) -> str:
    return urlsafe_b64encode(orjson.dumps([binding, *numbers])).rstrip(b"=").decode()


def _numbers(cursor: str | None, binding: str, count: int) -> tuple[int, ...] | None:
    if cursor is None:
        return None
    try:
        if len(cursor) > CURSOR_MAX_CHARS:
            raise ValueError
        bound_to, *numbers = orjson.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if len(numbers) != count or any(type(part) is not int or not 0 <= part <= INTEGER_MAX for part in numbers):
            raise ValueError
    except (ValueError, TypeError):
        raise _fault("cursor", "is none that a report gave") from None
    if bound_to != binding:
        raise _fault("cursor", "belongs to another report; start again without it")
    return tuple(numbers)
