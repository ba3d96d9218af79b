"""Facts without a monitoring system: from a YAML or JSON file that something else writes, or from the fleet itself.

Rules: a file is read again when its time, size or inode changes, and then checked whole: one fault, and the file gives
nothing (its reader decides how long the last good facts count). What the file does not say stays unknown, and unknown
facts refuse. Writers should write beside the file and rename, since a file that is half written gives nothing.

Refused, with file and line: unknown keys, keys that stand twice, numbers that are not whole or negative, times without
a zone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

from pydantic import AfterValidator, AwareDatetime, Field, ValidationError

from policyd.core.fleet import Fleet
from policyd.core.pool import Count, Declared, Pool
from policyd.core.quantities import MAX_SAFE
from policyd.core.workload import Name
from policyd.documents import Document, Spot, model_findings, read_yaml
from policyd.errors import ConfigError, Finding

MAX_FACTS_BYTES: Final = 16 * 1024 * 1024


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("outside the years 1 to 9999 in UTC") from None


class PoolState(Declared):
    """One pool at one moment. ``price_ppm`` is today's price in parts per million of the declared one."""

    available_gpus: Count | None = None
    queue_ms: Count | None = None
    healthy: bool | None = None
    price_ppm: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None


class AccountState(Declared):
    """What a tenant or ``tenant/project`` has spent in its window, in micro-USD."""

    spent_micro_usd: Annotated[int, Field(ge=0, le=MAX_SAFE)] | None = None


class FactsDocument(Declared):
    """A facts file. ``observed_at`` is when the figures were true, with its zone."""

    observed_at: Annotated[AwareDatetime, AfterValidator(_in_utc)] | None
    pools: dict[Name, PoolState]
    accounts: dict[Name, AccountState] = Field(default_factory=dict)


class StaticFacts:
    """Facts from one file; ``.json`` is read as JSON, everything else as YAML."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[tuple[int, ...], Mapping[str, Any]] | None = None

    def read(self) -> Mapping[str, Any]:
        """The file's facts as plain JSON values. Raises ``ConfigError`` with ``file:line`` findings."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                mark = (status.st_mtime_ns, status.st_size, status.st_ino)
                if self._seen is not None and self._seen[0] == mark:
                    return self._seen[1]
                content = file.read(MAX_FACTS_BYTES + 1)
        except OSError as error:
            self._refuse([Finding(str(self._path), f"cannot be read: {error.strerror}")])
        facts = self._checked(content)
        self._seen = (mark, facts)
        return facts

    def _checked(self, content: bytes) -> Mapping[str, Any]:
        if len(content) > MAX_FACTS_BYTES:
            self._refuse([Finding(str(self._path), f"larger than {MAX_FACTS_BYTES} bytes")])
        file = str(self._path)
        document = _read_json(content, file) if file.endswith(".json") else read_yaml(content, file)
        if document.findings:
            self._refuse(list(document.findings))
        try:
            facts = FactsDocument.model_validate_json(json.dumps(document.value))
        except ValidationError as error:
            spot = document.spot if document.spot.below else read_yaml(content, file).spot
            self._refuse(model_findings(error, FactsDocument, spot, document.value))
        return _plain(facts)

    def _refuse(self, findings: list[Finding]) -> NoReturn:
        raise ConfigError(
            f"the facts cannot be used: {findings[0]}",
            findings=findings,
            remedy="mend the facts file; it is read again",
        )


class DeclaredFacts:
    """What a fleet declares, taken for the facts: for a trial without monitoring, never for a busy fleet.

    A pool has its declared capacity free (a commitment its unused part), no queue, and answers; a pool without declared
    capacity has no facts and is refused. Nothing is known of spending, so accounts with a budget are refused too.
    """

    def __init__(self, fleet: Fleet) -> None:
        pools = {pool.id: gpus for pool in fleet.pools.values() if (gpus := _declared_gpus(pool)) is not None}
        self._facts: dict[str, Any] = {
            "observed_at": None,
            "basis": "declared capacity",
            "pools": {id: {"available_gpus": gpus, "queue_ms": 0, "healthy": True} for id, gpus in pools.items()},
            "accounts": {},
        }

    def read(self) -> Mapping[str, Any]:
        """The declared facts; the same value every time."""
        return self._facts


def _declared_gpus(pool: Pool) -> int | None:
    if pool.commitment is not None:
        return pool.commitment.unused_gpus
    return None if pool.capacity is None else pool.capacity.gpus


def _plain(facts: FactsDocument) -> dict[str, Any]:
    plain = facts.model_dump(mode="json", exclude_none=True)
    observed = facts.observed_at
    plain["observed_at"] = None if observed is None else observed.isoformat().replace("+00:00", "Z")
    return plain


def _read_json(content: bytes, file: str) -> Document:
    """Much faster than YAML, for fleets of thousands of pools; lines are looked up only when something is wrong."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"key {twice!r} stands twice in one object")
        return found

    def refuse(text: str) -> NoReturn:
        raise ValueError(f"{text} is not a whole number")

    try:
        value = json.loads(content, object_pairs_hook=unique, parse_float=refuse, parse_constant=refuse)
    except json.JSONDecodeError as error:
        return _broken(file, error.lineno, f"not JSON: {error.msg}")
    except UnicodeDecodeError:
        return _broken(file, 1, "not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return _broken(file, 1, str(error))
    return Document(value, Spot(file, 1), ())


def _broken(file: str, line: int, message: str) -> Document:
    spot = Spot(file, line)
    return Document(None, spot, (Finding(str(spot), message),), broken=True)
