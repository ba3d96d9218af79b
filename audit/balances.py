"""The ledger of a log, folded: every change of an account continues the one before.

    log ──entries with postings──► fold ──for each account──► its number goes up by one, and its balance follows

    | event            | reserved       | spent                   | limit |
    |------------------|----------------|-------------------------|-------|
    | reserved         | + held         | same                    | same  |
    | settled          | - held         | not less                | same  |
    | settled, late    | same           | not less than - held    | same  |
    | voided           | - held         | same                    | same  |
    | expired          | - held         | + held (gauges: same)   | same  |
    | limit            | same           | same                    | any   |
    | presumed         | same           | not less                | same  |
    | any other        | only what always holds                           |

Always: no part is below zero, and the debt is what passes the limit.

Rules: pure; memory is one balance an account, whatever the length of the log; the first entry that does not follow is
named; changes in bodies that retention removed are passed over and counted, and the next one that is there is believed.
Where several logs share accounts, one of them alone has numbers missing, which the others have.
It refuses: to take a number that is missing for one that another log has, unless this log has seen another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from audit.errors import LogCorrupt, ProofInvalid
from audit.postings import Account, Balance, Change, Crossed, Told, told

GAUGES: Final = frozenset({"gpus", "in_flight"})
_Rule = Callable[[Balance, Balance, int, bool], bool]
"""Whether a balance follows from the one before, by what was held, for a gauge or not."""


def _same_parts(before: Balance, after: Balance) -> bool:
    return after.limit == before.limit and after.leased == before.leased


def _settled(before: Balance, after: Balance, held: int, gauge: bool) -> bool:
    if not _same_parts(before, after) or (gauge and after.spent != before.spent):
        return False
    if after.reserved == before.reserved - held and after.spent >= before.spent:
        return True
    return after.reserved == before.reserved and after.spent >= before.spent - held


def _moved(reserved: int, spent: int) -> _Rule:
    def follows(before: Balance, after: Balance, held: int, gauge: bool) -> bool:
        grown = 0 if gauge else spent * held
        expected = (before.reserved + reserved * held, before.spent + grown)
        return _same_parts(before, after) and (after.reserved, after.spent) == expected

    return follows


RULES: Final[Mapping[str, _Rule]] = {
    "reserved": _moved(1, 0),
    "settled": _settled,
    "voided": _moved(-1, 0),
    "expired": _moved(-1, 1),
    "limit": lambda before, after, held, gauge: before[2:5] == after[2:5],
    "presumed": lambda before, after, held, gauge: (
        _same_parts(before, after) and after.reserved == before.reserved and after.spent >= before.spent
    ),
}


class Balances:
    """The accounts of a log, or of several that share them. ``whole``: the first entry of each is among them."""

    def __init__(self, *, whole: bool = True) -> None:
        self._whole = whole
        self.accounts: dict[Account, Balance] = {}
        self.missing_total = 0
        """Changes whose numbers are missing, as far as they are passed over."""
        self.missing: LogCorrupt | None = None
        """The first of them, as the failure that it is when no other log has them."""
        self.removed = 0
        """Bodies that retention has removed: an account may have missed so many changes, and no more."""
        self.passed_over = 0
        """Changes that were in them."""

    def entry(self, index: int, body: bytes) -> None:
        """The next entry. Raises ``LogCorrupt``, but for numbers that are missing: see ``missing``."""
        self.fold(index, read(index, body))

    def fold(self, index: int, said: Told) -> None:
        """As ``entry``, for what was read of it."""
        for change in said.changes:
            self._change(index, said.event, change)
        if said.crossed is not None:
            self._cross(index, said.crossed)

    def follows(self, said: Told) -> bool:
        """Whether no change is missing before these."""
        return all(change.after.sequence <= self._sequence(change.account, change.after) + 1 for change in said.changes)

    def _sequence(self, account: Account, after: Balance) -> int:
        before = self.accounts.get(account)
        if before is not None:
            return before.sequence
        return 0 if self._whole else after.sequence - 1

    def _change(self, index: int, event: str, change: Change) -> None:
        account, after, held = change
        before = self.accounts.get(account)
        expected = self._sequence(account, after) + 1
        if expected < after.sequence <= expected + self.removed:
            self.passed_over += after.sequence - expected
            before = None
        elif after.sequence > expected:
            self.missing_total += after.sequence - expected
            self.missing = self.missing or LogCorrupt(
                f"changes {expected} to {after.sequence - 1} of the account {_name(account)} are missing", index=index
            )
            before = None
        elif after.sequence < expected:
            raise LogCorrupt(
                f"change {after.sequence} of the account {_name(account)} comes after change {expected - 1}",
                index=index,
            )
        elif before is None and after.sequence == 1:
            before = Balance(0, after.limit, 0, 0, 0, 0)
        rule = RULES.get(event)
        sound = min(after) >= 0 and after.debt == max(0, after.reserved + after.spent + after.leased - after.limit)
        if before is not None and rule is not None and sound:
            sound = rule(before, after, held or 0, account[2] in GAUGES)
        if not sound:
            raise LogCorrupt(
                f"the balance of the account {_name(account)} does not follow from its change {expected - 1} "
                f"by what was {event}",
                index=index,
            )
        self.accounts[account] = after

    def _cross(self, index: int, crossed: Crossed) -> None:
        now = self.accounts.get(crossed.account)
        if now is None and not self._whole:
            return
        known = 0 if now is None else now.sequence
        if known < crossed.sequence <= known + self.removed:
            return
        if now is None or (now.sequence, now.spent, now.limit) != crossed[1:]:
            raise LogCorrupt(
                f"the threshold is not that of change {crossed.sequence} of the account {_name(crossed.account)}",
                index=index,
            )


def read(index: int, body: bytes) -> Told:
    """What an entry says of accounts. Raises ``LogCorrupt``."""
    try:
        return told(body)
    except ProofInvalid as error:
        raise LogCorrupt(str(error), index=index) from error


def fold_logs(logs: Mapping[str, Iterator[tuple[int, bytes]]], removed: int = 0) -> Balances:
    """Fold logs that share accounts, each in its own order, by the numbers of the accounts.

    Where bodies were ``removed`` by retention, the order between the logs is lost with them: each is folded by itself.

    Raises ``LogCorrupt`` for the first entry that follows nothing, in whichever log that is.
    """
    if removed:
        return _fold_apart(logs, removed)
    balances, heads = Balances(), {}
    for name, entries in logs.items():
        heads[name] = _next(entries)
    while any(head is not None for head in heads.values()):
        moved = False
        for name, entries in logs.items():
            head = heads[name]
            while head is not None and balances.follows(head[1]):
                balances.fold(*head)
                head, moved = _next(entries), True
            heads[name] = head
        if not moved:
            index, said = next(head for head in heads.values() if head is not None)
            balances.fold(index, said)
            assert balances.missing is not None
            raise balances.missing
    return balances


def _fold_apart(logs: Mapping[str, Iterator[tuple[int, bytes]]], removed: int) -> Balances:
    found = Balances()
    for entries in logs.values():
        each = Balances()
        each.removed = removed
        for index, body in entries:
            each.entry(index, body)
        if each.missing is not None and len(logs) == 1:
            raise each.missing
        found.passed_over += each.passed_over
        for account, balance in each.accounts.items():
            known = found.accounts.get(account)
            if known is None or known.sequence < balance.sequence:
                found.accounts[account] = balance
    return found


def _next(entries: Iterator[tuple[int, bytes]]) -> tuple[int, Told] | None:
    found = next(entries, None)
    return None if found is None else (found[0], read(*found))


def _name(account: Account) -> str:
    path, pools, unit, window, _ = account
    return f"{path} ({unit} a {window}{'' if pools == '*' else ', ' + pools})"
