"""Postings as a record carries them: every account with its number and balance, nothing twice. Pure.

    [[unit, window, held, pools?, [start_s, [level, sequence, limit, reserved, spent, debt, leased], …], …], …]

``level`` is how many names of the account's path there are: 0 the organisation, 1 the tenant, 2 its project, 3 the
environment, of the one path that the record is about; an account elsewhere has its own path there. ``held`` is what the
hold took of each account in the group, null where no hold is concerned. ``pools`` names a group of pools and is absent
for all of them, as are zeros at the end of a balance, from ``spent`` on.

Rules: what ``written`` leaves out ``read`` puts back, so that the postings of a log fold into its balances; windows
begin with a second; the order is that of the accounts' keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from policyd.core.budgets import ORGANISATION
from policyd.ledger.rules import ALL_POOLS, AccountKey, Posting

SECOND_US: Final = 1_000_000
BALANCE: Final = 6
HELD: Final = 2
"""The place of what was held in a group."""


def written(postings: Sequence[Posting], held: Sequence[int] = ()) -> list[list[Any]]:
    """The postings, as plain JSON. ``held`` has an amount for each of them, or none at all."""
    found = []
    # Which amounts are equal is part of the name: equal accounts with equal amounts stand together.
    for head, first, spans in _layout(tuple([posting[0] for posting in postings]), tuple(map(held.index, held))):
        group: list[Any] = [*head]
        group[HELD] = held[first] if held else None
        for start_s, members in spans:
            span: list[Any] = [start_s]
            group.append(span)
            for nth, level in members:
                _, sequence, limit, reserved, spent, leased, debt = postings[nth]
                row = [level, sequence, limit, reserved]
                if spent or debt or leased:
                    row += [spent, debt, leased] if leased else [spent, debt] if debt else [spent]
                span.append(row)
        found.append(group)
    return found


_Members = list[tuple[int, int | str]]


@lru_cache(maxsize=8_192)
def _layout(
    keys: tuple[AccountKey, ...], amounts: tuple[int, ...]
) -> list[tuple[tuple[Any, ...], int, list[tuple[int, _Members]]]]:
    """Groups of accounts: head, the first member, and for each start its members with their levels."""
    account = max((key.path for key in keys), key=_depth, default=ORGANISATION)
    groups: dict[tuple[Any, ...], tuple[int, dict[int, _Members]]] = {}
    for nth, (path, pools, unit, window, start_us) in enumerate(keys):
        level = _depth(path) if _path(_depth(path), account) == path else path
        head = (unit, window, None) if pools == ALL_POOLS else (unit, window, None, pools)
        _, spans = groups.setdefault((head, amounts[nth] if amounts else None), (nth, {}))
        spans.setdefault(start_us // SECOND_US, []).append((nth, level))
    return [(head, first, list(spans.items())) for (head, _), (first, spans) in groups.items()]


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


def paths(groups: Iterable[Sequence[Any]], account: str) -> tuple[str, ...]:
    """The paths of the accounts of ``read``, each once, in order."""
    spans = (span for group in groups for span in group[HELD + 1 :] if not isinstance(span, str))
    return _paths(frozenset([row[0] for span in spans for row in span[1:]]), account)


@lru_cache(maxsize=8_192)
def _paths(levels: frozenset[int | str], account: str) -> tuple[str, ...]:
    return tuple(sorted({level if isinstance(level, str) else _path(level, account) for level in levels}))


def deepest(postings: Iterable[Posting]) -> str:
    """The path of the account that is furthest down: the one that ``written`` takes levels of."""
    return max((posting.key.path for posting in postings), key=_depth, default=ORGANISATION)


def _depth(path: str) -> int:
    return 0 if path == ORGANISATION else path.count("/") + 1


def _path(level: int, account: str) -> str:
    return "/".join(account.split("/")[:level]) if level else ORGANISATION
