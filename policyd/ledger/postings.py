"""Postings as a record carries them: every account with its number and balance, nothing twice. Pure.

    [[unit, window, held, pools?, [start_s, [level, sequence, limit, reserved, spent, debt, leased], …], …], …]

``level`` is how many names of the account's path there are: 0 the organisation, 1 the tenant, 2 its project, 3 the
environment, of the one path that the record is about; an account elsewhere has its own path there. ``held`` is what the
hold took of each account in the group, null where no hold is concerned. ``pools`` names a group of pools and is absent
for all of them, as are zeros at the end of a balance.

Rules: what ``written`` leaves out ``read`` puts back, so that the postings of a log fold into its balances; windows
begin with a second; the order is that of the accounts' keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from policyd.core.budgets import ORGANISATION
from policyd.ledger.rules import AccountKey, Posting

SECOND_US: Final = 1_000_000
BALANCE: Final = 6
ALL_POOLS: Final = "*"


def written(postings: Iterable[Posting], account: str, held: Sequence[int] = ()) -> list[list[Any]]:
    """The postings, as plain JSON. ``held`` has an amount for each of them, or none at all."""
    groups: dict[tuple[Any, ...], dict[int, list[Any]]] = {}
    for nth, ((path, pools, unit, window, start_us), *balance) in enumerate(postings):
        sequence, limit, reserved, spent, leased, debt = balance
        row = [_level(path, account), sequence, limit, reserved, spent, debt, leased]
        while row[-1] == 0:
            row.pop()
        group = (unit, window, held[nth] if held else None, *(() if pools == ALL_POOLS else (pools,)))
        spans = groups.setdefault(group, {})
        spans.setdefault(start_us, [start_us // SECOND_US]).append(row)
    return [[*group, *spans.values()] for group, spans in groups.items()]


def read(groups: Iterable[Sequence[Any]], account: str) -> list[tuple[Posting, int | None]]:
    """What ``written`` was given: each posting, and what the hold took of its account."""
    found = []
    for unit, window, held, *spans in groups:
        pools = spans.pop(0) if spans and isinstance(spans[0], str) else ALL_POOLS
        for start_s, *rows in spans:
            for level, *balance in rows:
                path = level if isinstance(level, str) else _path(level, account)
                sequence, limit, reserved, spent, debt, leased = balance + [0] * (BALANCE - len(balance))
                key = AccountKey(path, pools, unit, window, start_s * SECOND_US)
                found.append((Posting(key, sequence, limit, reserved, spent, leased, debt), held))
    return sorted(found, key=lambda posting: posting[0].key)


def deepest(postings: Iterable[Posting]) -> str:
    """The path of the account that is furthest down."""
    return max((posting.key.path for posting in postings), key=_depth, default=ORGANISATION)


def _depth(path: str) -> int:
    return 0 if path == ORGANISATION else path.count("/") + 1


@lru_cache(maxsize=4_096)
def _level(path: str, account: str) -> int | str:
    depth = _depth(path)
    return depth if _path(depth, account) == path else path


def _path(level: int, account: str) -> str:
    return "/".join(account.split("/")[:level]) if level else ORGANISATION
