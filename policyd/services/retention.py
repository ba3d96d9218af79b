"""Retention: which entries are older than their class keeps them, and their removal in the writer's transaction.

    legal hold ─above─► retention ─above─► erasure

    entry ─its kind is of a class, older than that keeps─► due ─no hold, no open reservation─► removed, under a warrant

Rules: what no setting names is kept; nothing younger than six months goes; whether an entry may go is judged twice, by
whoever looks for them and again in the transaction that removes them, where no hold can come between. A hold on a
person keeps, of its tenant, all that is not known to be somebody else's, and what became of any decision: settlements,
voids and extensions. It owns no transaction: ``policyd.services.commit`` does.
It refuses: to remove less than it was asked to, since its warrant is written already.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, select

from audit.entries import parts, texts
from audit.personal import is_token
from audit.record import KINDS
from audit.removal import remove
from audit.retention import KEEP_MIN_DAYS
from audit.tables import ENTRY, index_of, place
from policyd.errors import OnHold
from policyd.ledger.tables import HOLD
from policyd.retention_settings import RetentionSettings
from policyd.services.holds import HOLDS, IN_FORCE, keep_holds

DAY_US: Final = 86_400_000_000
PAGE_ENTRIES: Final = 1_000
BECAME: Final = ("settlement", "void", "extension")
"""Kinds that say what became of a decision, whoever sent them."""
_OPEN: Final = 0
_COLUMNS: Final = (ENTRY.c.index.label("place"), *(ENTRY.c[name] for name in ("id", "kind", "time_us", "tenant")))

Judgement = Literal["due", "held", "kept"]


@dataclass(frozen=True, slots=True)
class Policy:
    """For how many days each kind keeps its bodies, and where a tenant has other days. What is not named is kept."""

    keep_days: Mapping[str, int] = field(default_factory=dict)
    tenants: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: RetentionSettings) -> Policy:
        """As the settings say."""
        tenants = {name: dict[str, int](each.items()) for name, each in settings.tenants.items()}
        return cls(dict[str, int](settings.keep_days.items()), tenants)

    def days(self, kind: str, tenant: str | None) -> int | None:
        """How long an entry is kept; None is for ever."""
        own = self.tenants.get(tenant, {}) if tenant is not None else {}
        found = own.get(kind, self.keep_days.get(kind))
        return None if found is None else max(found, KEEP_MIN_DAYS)

    @property
    def shortest(self) -> dict[str, int]:
        """The fewest days of each kind that is not always kept."""
        found: dict[str, int] = {}
        for days in (self.keep_days, *self.tenants.values()):
            for kind, count in days.items():
                found[kind] = max(KEEP_MIN_DAYS, min(count, found.get(kind, count)))
        return found

    def rules(self) -> list[list[Any]]:
        """What a warrant says of it, in the order of the names; a tenant stands behind its days."""
        own = [[kind, days, name] for name, each in sorted(self.tenants.items()) for kind, days in sorted(each.items())]
        return [*([kind, days] for kind, days in sorted(self.keep_days.items())), *own]


@dataclass(frozen=True, slots=True)
class Removal:
    """What the writer is to remove, with the entry that is its warrant: these entries, as judged at this time."""

    policy: Policy
    indexes: tuple[int, ...]
    time_us: int


@dataclass(frozen=True, slots=True)
class Judged:
    """One entry that is old enough for some class."""

    index: int
    kind: str
    tenant: str | None
    time_us: int
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class Looked:
    """One page of looking: where it ended, and whether there is more."""

    entries: Sequence[Judged]
    after: int
    more: bool


def look(connection: Connection, log: int, policy: Policy, time_us: int, after: int = -1) -> Looked:
    """A page of the entries behind ``after`` that are older than the shortest class of their kind."""
    shortest = policy.shortest
    if not shortest:
        return Looked((), after, more=False)
    until_us = time_us - min(shortest.values()) * DAY_US
    query = select(*_COLUMNS, ENTRY.c.principal).where(
        ENTRY.c.index > place(log, 0) + after,
        ENTRY.c.index < place(log + 1, 0),
        ENTRY.c.kind.in_([KINDS.index(kind) for kind in KINDS if kind in shortest]),
        ENTRY.c.time_us < until_us,
    )
    rows = connection.execute(query.order_by(ENTRY.c.index).limit(PAGE_ENTRIES)).all()
    judged = _judged(connection, policy, time_us, rows)
    return Looked(judged, judged[-1].index if judged else after, more=len(rows) == PAGE_ENTRIES)


def perform(connection: Connection, log: int, removal: Removal) -> None:
    """Remove the bodies. Raises ``OnHold`` when one of them must stay; then nothing is removed."""
    # Another replica may place a hold at this moment: it waits, and finds the bodies gone; or this one waits.
    keep_holds(connection)
    rows: list[Row[*tuple[Any, ...]]] = []
    for part in parts([place(log, index) for index in removal.indexes]):
        query = select(*_COLUMNS, ENTRY.c.principal).where(ENTRY.c.index.in_(part), ENTRY.c.kind >= 0)
        rows += connection.execute(query.order_by(ENTRY.c.index)).all()
    judged = _judged(connection, removal.policy, removal.time_us, rows)
    staying = set(removal.indexes) - {each.index for each in judged if each.judgement == "due"}
    if staying:
        raise OnHold(f"{len(staying)} of {len(removal.indexes)} entries must stay, the first is {min(staying)}")
    remove(connection, log, removal.indexes)


def _judged(
    connection: Connection, policy: Policy, time_us: int, rows: Sequence[Row[*tuple[Any, ...]]]
) -> list[Judged]:
    if not rows:
        return []
    words = texts(connection, {number for row in rows for number in (row.tenant, row.principal)})
    holds = _holds(connection)
    reserved = _reserved(connection, [row.id for row in rows])
    found = []
    for row in rows:
        kind, tenant = KINDS[row.kind], words.get(row.tenant)
        days = policy.days(kind, tenant)
        judgement: Judgement = "due"
        if days is None or row.time_us >= time_us - days * DAY_US or bytes(row.id) in reserved:
            judgement = "kept"
        elif tenant is not None and any(_covers(token, kind, words.get(row.principal)) for token in holds[tenant]):
            judgement = "held"
        found.append(Judged(index_of(row.place), kind, tenant, row.time_us, judgement))
    return found


def _covers(token: str | None, kind: str, principal: str | None) -> bool:
    """Whether a hold covers an entry of its tenant; one of an older release says a name in the place of a token."""
    return token is None or kind in BECAME or principal == token or principal is None or not is_token(principal)


def _holds(connection: Connection) -> defaultdict[str, set[str | None]]:
    """Of each tenant the persons that are held; None is all of them."""
    found: defaultdict[str, set[str | None]] = defaultdict(set)
    for tenant, token in connection.execute(select(HOLDS.c.tenant, HOLDS.c.token).where(HOLDS.c.state == IN_FORCE)):
        found[tenant].add(token)
    return found


def _reserved(connection: Connection, ids: Sequence[bytes]) -> set[bytes]:
    """The decisions whose reservation is open."""
    found: set[bytes] = set()
    for start in range(0, len(ids), PAGE_ENTRIES // 2):
        query = select(HOLD.c.id).where(HOLD.c.state == _OPEN, HOLD.c.id.in_(ids[start : start + PAGE_ENTRIES // 2]))
        found.update(bytes(each) for each in connection.execute(query).scalars())
    return found
