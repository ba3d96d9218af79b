"""Counting a log: how many entries of what, at what cost, and when a version of a model was first used where.

Both counts go in steps, so that no step takes long and memory does not grow with the log: ``count`` in the order of
time, ``first_uses`` in the order of the log. Steps add up (``Counted.add``, ``FirstUse.earlier``).

    tables   ("outcome",)               a row for each outcome
             ("provider", "country")    a row for each pair that occurs

What an entry has several of (``rule``, ``data_source``) counts once for each, so the rows of such a table may add up to
more than there are entries.

Rules: a cost counts only after its body was checked against its hash; what a body says, and what became of its cost, is
read by the caller (``read``, ``spending``), since their words are the product's; a value that an entry does not have is
None, and never left out.
It refuses: unknown dimensions, two dimensions with several values in one table, more rows than ``rows_max``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import product
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, func, select, tuple_

from audit.entries import numbered_origins, parts, texts
from audit.errors import LogCorrupt, QueryInvalid
from audit.query import DECISION_KINDS, WORD_FILTERS, Filters, Within, matching
from audit.record import TERM_FIELDS, leaf_hash
from audit.tables import BODY, ENTRY, INDEX_BITS, SHEET_TERM, has_body, index_of

WORD_DIMENSIONS: Final = tuple(name for name in WORD_FILTERS if name != "principal")
"""Columns that entries are counted by. Who asked is personal, and no row of a report."""
TIME_DIMENSIONS: Final = {"day": 10, "month": 7}
"""Characters of the UTC date that make it."""
SEVERAL: Final = ("rule", "data_source")
BODY_DIMENSIONS: Final = ("policy_digest", "fleet_digest", *SEVERAL)
"""What ``read`` finds in a body; the rules of its sheet are added."""
DIMENSIONS: Final = (*WORD_DIMENSIONS, *TIME_DIMENSIONS, *BODY_DIMENSIONS)

OUTCOMES: Final = ("allow", "deny", "error")
STEP_ENTRIES: Final = 5_000
STEP_INDEXES: Final = 100_000

Table = tuple[str, ...]
Key = tuple[str | None, ...]
UseKey = tuple[str | None, str | None, str | None, str | None]
"""Tenant, model, model version and environment."""
Place = tuple[int, int]
"""Time in microseconds and index of an entry: where a count goes on after it."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_US: Final = 86_400_000_000
_RULE: Final = TERM_FIELDS.index("rule")


@dataclass(slots=True)
class Counts:
    """One row: entries, by outcome, and what they cost: settled, presumed to be spent, and else as their first choices
    were expected to."""

    entries: int = 0
    allow: int = 0
    deny: int = 0
    error: int = 0
    settled_micro_usd: int = 0
    presumed_micro_usd: int = 0
    expected_micro_usd: int = 0

    @property
    def cost_micro_usd(self) -> int:
        """All three together."""
        return self.settled_micro_usd + self.presumed_micro_usd + self.expected_micro_usd

    def add(self, other: Counts) -> None:
        """Count what the other counted too."""
        self.entries += other.entries
        self.allow += other.allow
        self.deny += other.deny
        self.error += other.error
        self.settled_micro_usd += other.settled_micro_usd
        self.presumed_micro_usd += other.presumed_micro_usd
        self.expected_micro_usd += other.expected_micro_usd


@dataclass(slots=True)
class Counted:
    """Rows of the tables, in their order, from the entries that were read. ``after`` goes on; None is the end."""

    tables: tuple[dict[Key, Counts], ...]
    entries: int = 0
    after: Place | None = None

    def add(self, other: Counted, rows_max: int) -> None:
        """Add the step that follows. Raises ``QueryInvalid`` beyond ``rows_max`` rows of a table."""
        for mine, theirs in zip(self.tables, other.tables, strict=True):
            for key, counts in theirs.items():
                mine.setdefault(key, Counts()).add(counts)
            check_rows(len(mine), rows_max)
        self.entries += other.entries
        self.after = other.after


@dataclass(frozen=True, slots=True)
class Told:
    """What a body says: the cost of its first choice, and its values of ``BODY_DIMENSIONS``."""

    cost_micro_usd: int = 0
    values: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Spent(NamedTuple):
    """What became of the cost of a decision; ``presumed`` when nobody has said."""

    micro_usd: int
    presumed: bool = False


Spending = Callable[[Connection, Sequence[bytes]], Mapping[bytes, Spent]]
"""Tells, by the ids of entries, what became of their costs; nothing of those that are open or reserved nothing."""


@dataclass(frozen=True, slots=True)
class FirstUse:
    """The first allowed decision of a tenant for a version of a model in an environment, and how many there were."""

    key: UseKey
    log: str
    index: int
    id: bytes
    time_us: int
    entries: int

    def precedes(self, other: FirstUse) -> bool:
        """Whether it came before: by the order of the log, and between logs by time."""
        return self.index < other.index if self.log == other.log else self.time_us < other.time_us

    def earlier(self, other: FirstUse | None) -> FirstUse:
        """Both together: the earlier one, with the entries of both."""
        if other is None:
            return self
        first = other if other.precedes(self) else self
        return replace(first, entries=self.entries + other.entries)


def check_rows(rows: int, rows_max: int) -> None:
    """Raise ``QueryInvalid`` when a report has more rows than it may."""
    if rows > rows_max:
        raise QueryInvalid("by", f"the report has more than {rows_max:,} rows; count by less, or narrow it by filters")


def check_tables(tables: Sequence[Table]) -> None:
    """Raise ``QueryInvalid`` for a table that cannot be counted."""
    for table in tables:
        for name in table:
            if name not in DIMENSIONS:
                raise QueryInvalid("by", f"{name!r} is none of {', '.join(DIMENSIONS)}")
        if not table or len(set(table)) != len(table):
            raise QueryInvalid("by", f"{'/'.join(table)!r} names nothing, or something twice")
        if sum(name in SEVERAL for name in table) > 1:
            raise QueryInvalid("by", f"an entry has several of each in {'/'.join(table)!r}; count by one of them")


def total(connection: Connection, filters: Filters, *, within: Sequence[Within] | None = None) -> int:
    """How many entries ``count`` has to read in all."""
    conditions = matching(connection, filters, DECISION_KINDS, within)
    if conditions is None:
        return 0
    return connection.execute(select(func.count()).select_from(ENTRY).where(*conditions)).scalar_one()


def count(
    connection: Connection,
    tables: Sequence[Table],
    filters: Filters,
    read: Callable[[bytes], Told],
    *,
    spending: Spending | None = None,
    after: Place | None = None,
    limit: int | None = None,
    rows_max: int,
    within: Sequence[Within] | None = None,
) -> Counted:
    """One step: up to ``limit`` (``STEP_ENTRIES``) entries that match, in the order of time, behind ``after``.
    Without ``spending`` every cost is the expected one.

    Raises ``QueryInvalid`` for tables and filters that cannot be, ``LogCorrupt`` for a body that is not what was
    recorded.
    """
    check_tables(tables)
    limit = limit or STEP_ENTRIES
    counted = Counted(tuple({} for _ in tables))
    conditions = matching(connection, filters, DECISION_KINDS, within)
    if conditions is None:
        return counted
    if after is not None:
        conditions.append(tuple_(ENTRY.c.time_us, ENTRY.c.index) > tuple_(*after))
    names = list(dict.fromkeys(("outcome", *(name for table in tables for name in table if name in WORD_DIMENSIONS))))
    columns = [ENTRY.c.index.label("place"), ENTRY.c.id, ENTRY.c.time_us, ENTRY.c.leaf_hash, ENTRY.c.sheet, BODY.c.body]
    query = select(*columns, *(ENTRY.c[name] for name in names)).where(*conditions)
    query = query.join_from(ENTRY, BODY, has_body(connection), isouter=True)
    rows = connection.execute(query.order_by(ENTRY.c.time_us, ENTRY.c.index).limit(limit)).all()
    words = _Words(connection, names, rows, rules=any("rule" in table for table in tables))
    spent = {} if spending is None else spending(connection, [row.id for row in rows])
    for row in rows:
        entry, told = words.values(row), _told(row, read)
        one = _one(entry["outcome"][0], told.cost_micro_usd, spent.get(row.id))
        entry |= {name: told.values.get(name) or (None,) for name in BODY_DIMENSIONS if name != "rule"}
        entry["rule"] = tuple(dict.fromkeys((*told.values.get("rule", ()), *words.rules_of(row.sheet)))) or (None,)
        for table, found in zip(tables, counted.tables, strict=True):
            for key in product(*(entry[name] for name in table)):
                found.setdefault(key, Counts()).add(one)
            check_rows(len(found), rows_max)
    counted.entries = len(rows)
    counted.after = (rows[-1].time_us, rows[-1].place) if len(rows) == limit else None
    return counted


def first_uses(
    connection: Connection,
    filters: Filters,
    *,
    from_index: int = 0,
    limit: int | None = None,
    within: Sequence[Within] | None = None,
) -> tuple[list[FirstUse], int | None]:
    """One step: the first uses among ``limit`` (``STEP_INDEXES``) indexes from ``from_index`` on, and where it goes on.

    None is the end. Only allowed decisions count. Without a filter by time, the first is the first of the whole log.
    """
    following = from_index + (limit or STEP_INDEXES)
    # Not `following` itself: the next log of a database begins a million million places later.
    goes_on = connection.execute(select(func.min(ENTRY.c.index)).where(ENTRY.c.index >= following)).scalar()
    conditions = matching(connection, {**filters, "outcome": "allow"}, ("decision",), within)
    if conditions is None:
        return [], None
    names = ("tenant", "model", "model_version", "environment")
    columns = [ENTRY.c[name] for name in names]
    conditions += [ENTRY.c.index >= from_index, ENTRY.c.index < following]
    grouped = select(*columns, func.min(ENTRY.c.index).label("first"), func.count().label("entries"))
    firsts = grouped.where(*conditions).group_by(*columns).subquery()
    query = select(firsts, ENTRY.c.id, ENTRY.c.time_us).join(ENTRY, ENTRY.c.index == firsts.c.first)
    rows = connection.execute(query).all()
    words = texts(connection, {number for row in rows for number in row[: len(names)]})
    logs = numbered_origins(connection)
    found = [
        FirstUse(
            (words.get(row.tenant), words.get(row.model), words.get(row.model_version), words.get(row.environment)),
            logs[row.first >> INDEX_BITS],
            index_of(row.first),
            row.id,
            row.time_us,
            row.entries,
        )
        for row in rows
    ]
    return sorted(found, key=lambda use: use.index), goes_on


@lru_cache(maxsize=4_096)
def _day(days: int) -> str:
    """The UTC date so many days after 1970; a report has few, and many rows of each."""
    return (_EPOCH + timedelta(days=days)).date().isoformat()


class _Words:
    """The texts behind the numbers of one step's rows, and the rules of the sheets that they name."""

    def __init__(self, connection: Connection, names: Sequence[str], rows: Sequence[Row[Any]], *, rules: bool) -> None:
        self._names = names
        numbers = {getattr(row, name) for row in rows for name in names}
        self._rules: dict[int, list[int]] = {}
        sheets = {row.sheet for row in rows if row.sheet is not None} if rules else set()
        for part in parts(sorted(sheets)):
            query = select(SHEET_TERM.c.sheet, SHEET_TERM.c.value).where(
                SHEET_TERM.c.field == _RULE, SHEET_TERM.c.sheet.in_(part)
            )
            for sheet, value in connection.execute(query):
                self._rules.setdefault(sheet, []).append(value)
                numbers.add(value)
        self._texts = texts(connection, numbers)

    def values(self, row: Row[Any]) -> dict[str, Sequence[str | None]]:
        """What the columns of a row say, and its days."""
        written = _day(row.time_us // _DAY_US)
        found: dict[str, Sequence[str | None]] = {name: (self._texts.get(getattr(row, name)),) for name in self._names}
        return found | {name: (written[:length],) for name, length in TIME_DIMENSIONS.items()}

    def rules_of(self, sheet: int | None) -> list[str]:
        """The rules by which pools were refused in a sheet."""
        return [] if sheet is None else [self._texts[number] for number in self._rules.get(sheet, ())]


def _told(row: Row[Any], read: Callable[[bytes], Told]) -> Told:
    if not isinstance(row.body, bytes) or leaf_hash(row.body) != row.leaf_hash:
        raise LogCorrupt("the body is not what was recorded", index=index_of(row.place))
    try:
        return read(row.body)
    except (ValueError, TypeError, LookupError) as error:
        raise LogCorrupt(f"the body cannot be read: {error}", index=index_of(row.place)) from error


def _one(outcome: str | None, expected_micro_usd: int, spent: Spent | None) -> Counts:
    found = Counts(entries=1)
    if spent is None:
        found.expected_micro_usd = expected_micro_usd
    elif spent.presumed:
        found.presumed_micro_usd = spent.micro_usd
    else:
        found.settled_micro_usd = spent.micro_usd
    if outcome in OUTCOMES:
        setattr(found, outcome, 1)
    return found
