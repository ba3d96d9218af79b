"""The revisions as rows beside the log, and the steps that the writer takes for them, each with its entry.

Rules: a step is whole or not taken; it is judged in the writer's transaction, with the rows as they are then, so that
replicas of one database take each step once; what is neither live nor on its way is forgotten when ``KEPT_ROWS_MAX``
newer ones are there, and its entries stay. The table comes from ``audit/migrations``. It owns no transaction:
``policyd.services.commit`` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    MetaData,
    SmallInteger,
    Table,
    Text,
    delete,
    select,
    update,
)

from policyd.revisions.states import KINDS, STATES, VERBS, Move, Revision, check_together, moved

REVISIONS: Final = Table(
    "revision",
    MetaData(),
    Column("kind", SmallInteger, primary_key=True),
    Column("digest", Text, primary_key=True),
    Column("label", Text, nullable=True),
    Column("blob", Text, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("verb", SmallInteger, nullable=False),
    Column("said", Text, nullable=False),
    Column("gates", Text, nullable=False),
    Column("paused", SmallInteger, nullable=False),
    Column("seen_us", BigInteger, nullable=False),
    Column("since_us", BigInteger, nullable=False),
    Column("served_us", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
KEPT_ROWS_MAX: Final = 100
MOVES_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Step:
    """What an entry does to revisions: all of it, or nothing."""

    moves: tuple[Move, ...]


def read_revisions(connection: Connection) -> list[Revision]:
    """Every revision that is remembered, the one that moved last first."""
    rows = connection.execute(select(REVISIONS).order_by(REVISIONS.c.since_us.desc(), REVISIONS.c.digest))
    return [_revision(row) for row in rows]


def take(connection: Connection, step: Step, time_us: int) -> list[Revision]:
    """Take a step; the revisions as they stand then. Raises ``RevisionConflict`` before it has written anything."""
    if connection.dialect.name == "postgresql":
        # Of two replicas that have seen the same commit, the second waits here and then comes too late.
        connection.exec_driver_sql(f"LOCK TABLE {REVISIONS.name} IN SHARE ROW EXCLUSIVE MODE")
    standing = {(each.kind, each.digest): each for each in read_revisions(connection)}
    known = set(standing)
    after = {}
    for move in step.moves:
        place = (move.kind, move.digest)
        after[place] = standing[place] = moved(standing.get(place), move, time_us)
    check_together(standing.values())
    for place, revision in after.items():
        values = _values(revision)
        if place in known:
            connection.execute(update(REVISIONS).where(*_at(revision)).values(**values))
        else:
            connection.execute(REVISIONS.insert(), values)
    _forget(connection, list(standing.values()))
    return list(after.values())


def _forget(connection: Connection, standing: Sequence[Revision]) -> None:
    for kind in KINDS:
        ended = [each for each in standing if each.kind == kind and each.state in ("refused", "retired")]
        ended.sort(key=lambda each: each.since_us, reverse=True)
        for each in ended[KEPT_ROWS_MAX:]:
            connection.execute(delete(REVISIONS).where(*_at(each)))


def _at(revision: Revision) -> tuple[Any, Any]:
    kind = KINDS.index(revision.kind)
    return REVISIONS.c.kind == kind, REVISIONS.c.digest == revision.digest


def _values(revision: Revision) -> dict[str, Any]:
    return {
        "kind": KINDS.index(revision.kind),
        "digest": revision.digest,
        "label": revision.commit,
        "blob": revision.blob,
        "state": STATES.index(revision.state),
        "verb": VERBS.index(revision.verb),
        "said": revision.said,
        "gates": orjson.dumps([dict(each) for each in revision.gates]).decode(),
        "paused": int(revision.paused),
        "seen_us": revision.seen_us,
        "since_us": revision.since_us,
        "served_us": revision.served_us,
        "version": revision.version,
    }


def _revision(row: Any) -> Revision:
    return Revision(
        KINDS[row.kind],
        row.digest,
        row.label,
        row.blob,
        STATES[row.state],
        VERBS[row.verb],
        row.said,
        tuple(orjson.loads(row.gates)),
        bool(row.paused),
        row.seen_us,
        row.since_us,
        row.served_us,
        row.version,
    )


def step_json(step: Step) -> list[Any]:
    """A step for another process."""
    return [
        [each.kind, each.digest, each.verb, each.version, each.said, each.commit, each.blob, [*map(dict, each.gates)]]
        for each in step.moves
    ]


def step_from_json(rows: Sequence[Any]) -> Step:
    """What ``step_json`` gave, read as if a stranger had sent it. Raises ``ValueError``."""
    if not 0 < len(rows) <= MOVES_MAX:
        raise ValueError("a step has no moves, or too many")
    return Step(tuple(_move(*row) for row in rows))


def _move(
    kind: str, digest: str, verb: Any, version: int, said: str, commit: str | None, blob: str, gates: list[Any]
) -> Move:
    if kind not in KINDS or verb not in VERBS or type(version) is not int:
        raise ValueError("a move of no revision")
    if any(type(text) is not str for text in (digest, said, blob)) or type(commit) not in (str, type(None)):
        raise ValueError("a move whose words are none")
    told: list[Mapping[str, Any]] = [each for each in gates if isinstance(each, dict) and type(each.get("gate")) is str]
    if len(told) != len(gates):
        raise ValueError("a move with a gate that says nothing")
    return Move(kind, digest, verb, version, said, commit, blob, tuple(told))
