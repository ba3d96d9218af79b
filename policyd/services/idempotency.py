"""Which keys have been used: one row for each, in the log's database, written with what was done under it.

    claim ──no row──► entry and row in one transaction ──expired──► gone
          ──row────► the entry is refused, and the first one's answer stands

Rules: a row names the decision and never holds the answer, which a replay of the record gives again; of what two
persons do it has the place in the log and what became of it, since no replay could tell; a key belongs to one
principal, tenant and route; rows expire, and beyond ``keys_max`` a new key is refused, never an old one forgotten
before its time. The table comes from ``audit/migrations``. It owns no transaction: ``policyd.services.commit`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Final

import orjson
from sqlalchemy import BigInteger, Column, Connection, LargeBinary, MetaData, Table, Text, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from policyd.errors import AuditError, KeyInProgress, Overloaded, PolicydError

PRUNED_MAX: Final = 1_024
"""Expired rows that one batch takes away."""

_JUST_BEFORE: Final = "another request with this key was recorded just before"

KEYS: Final = Table(
    "idempotency",
    MetaData(),
    Column("scope", LargeBinary, primary_key=True),
    Column("request", LargeBinary, nullable=False),
    Column("decision", Text, nullable=False),
    Column("expires_us", BigInteger, nullable=False, index=True),
    sqlite_with_rowid=False,
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A key that is used with an entry. ``request`` is the digest of the body that it came with."""

    scope: bytes
    request: bytes
    now_us: int
    expires_us: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What a key was used for."""

    request: bytes
    decision: str


@dataclass(frozen=True, slots=True)
class Done:
    """What was done by two persons under a key: its entry, where that stands, and what became of it."""

    id: str
    log: str
    index: int
    leaf_hash: str
    told: Mapping[str, Any]

    def text(self) -> str:
        """As a row holds it."""
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def of(cls, kept: Kept) -> Done:
        """As a row has it. Raises ``AuditError`` when that is something else."""
        try:
            return cls(**orjson.loads(kept.decision))
        except (ValueError, TypeError) as error:
            raise AuditError(f"what the key was used for cannot be read: {kept.decision[:100]!r}") from error


def scope_of(principal: str, tenant: str, route: str, key: str, item: int = 0) -> bytes:
    """The address of a key: the same key of another principal, tenant, route or place in a batch is another one."""
    return sha256(orjson.dumps([principal, tenant, route, key, item])).digest()


class KeyRows:
    """The rows behind one writer's connection; made anew after each opening."""

    def __init__(self, connection: Connection, keys_max: int) -> None:
        self._keys_max = keys_max
        self._count = self._counted(connection)

    def _counted(self, connection: Connection) -> int:
        return int(connection.execute(select(func.count()).select_from(KEYS)).scalar_one())

    def refused(self, connection: Connection, claims: Mapping[str, Claim]) -> dict[str, PolicydError]:
        """For each entry id whose claim fails, why. Takes expired rows away first."""
        now_us = _now(claims)
        self._prune(connection, now_us)
        scopes = [claim.scope for claim in claims.values()]
        live = select(KEYS.c.scope).where(KEYS.c.scope.in_(scopes), KEYS.c.expires_us > now_us)
        held = set(connection.execute(live).scalars())
        if self._keys_max - self._count < len(claims):
            self._count = self._counted(connection)  # other writers of the database add and prune too
        free = self._keys_max - self._count
        failed: dict[str, PolicydError] = {}
        for entry_id, claim in claims.items():
            if claim.scope in held:
                failed[entry_id] = KeyInProgress(_JUST_BEFORE)
            elif free <= 0:
                failed[entry_id] = Overloaded(
                    f"{self._keys_max} idempotency keys are kept, the most that api.idempotency_keys_max admits"
                )
            else:
                held.add(claim.scope)
                free -= 1
        return failed

    def keep(self, connection: Connection, claims: Mapping[str, Claim]) -> dict[str, PolicydError]:
        """Write the rows of entries that are appended in this transaction, and tell which came too late.

        Another writer of the database may be using the same key at this moment: whoever writes the row second waits for
        the first, and is refused. Rows are written in one order, so that no two writers wait for each other.
        """
        if not claims:
            return {}
        scopes = [claim.scope for claim in claims.values()]
        gone = connection.execute(
            delete(KEYS).where(KEYS.c.scope.in_(scopes), KEYS.c.expires_us <= _now(claims))
        ).rowcount
        rows = [
            {"scope": claim.scope, "request": claim.request, "decision": entry_id, "expires_us": claim.expires_us}
            for entry_id, claim in sorted(claims.items(), key=lambda pair: pair[1].scope)
        ]
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        adding = insert(KEYS).values(rows).on_conflict_do_nothing().returning(KEYS.c.scope)
        added = set(connection.execute(adding).scalars())
        self._count += len(added) - gone
        return {name: KeyInProgress(_JUST_BEFORE) for name, claim in claims.items() if claim.scope not in added}

    def done(self, connection: Connection, done: Mapping[bytes, Done]) -> None:
        """What became of deeds, by the scopes of their keys, which this transaction keeps."""
        for scope, each in done.items():
            connection.execute(update(KEYS).where(KEYS.c.scope == scope).values(decision=each.text()))

    def recount(self, connection: Connection) -> None:
        """After a rollback, what was counted did not happen."""
        self._count = self._counted(connection)

    def _prune(self, connection: Connection, now_us: int) -> None:
        oldest = select(KEYS.c.scope).where(KEYS.c.expires_us <= now_us).order_by(KEYS.c.expires_us).limit(PRUNED_MAX)
        self._count -= connection.execute(delete(KEYS).where(KEYS.c.scope.in_(oldest))).rowcount


def _now(claims: Mapping[str, Claim]) -> int:
    return max(claim.now_us for claim in claims.values())


def found(connection: Connection, scope: bytes, now_us: int) -> Kept | None:
    """What the key of this scope was used for, unless that has expired."""
    row = connection.execute(
        select(KEYS.c.request, KEYS.c.decision).where(KEYS.c.scope == scope, KEYS.c.expires_us > now_us)
    ).one_or_none()
    return None if row is None else Kept(row.request, row.decision)
