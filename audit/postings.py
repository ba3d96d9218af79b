"""What an entry says of budget accounts, as the log has it: the one place here that knows the form.

    {"admission": {"postings": [group, …], …}, …}          a decision that holds something
    {"accounts": {"account"?, "postings": [group, …], "state"?}, "event"?, …}        whatever else changes accounts
    {"account": [path, pools, unit, window, start_us], "event": "threshold", "sequence", "spent", "limit", …}

    group    [unit, window, held, pools?, [start_s, [level, sequence, limit, reserved, spent, debt, leased], …], …]

``level`` is how many names of the record's path the account has, or a path of its own; ``held`` is what the hold took
of each account of the group; zeros at the end of a balance are left out. The path is that of the workload, else the one
that is given, else the scope.

Rules: pure, with nothing but the standard library; what has another form is ``ProofInvalid``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from json import loads
from typing import Any, Final, NamedTuple

from audit.errors import ProofInvalid

TOUCHING: Final = (b'{"a', b'{"_')
"""How the body of every entry begins that says something of accounts, since keys are sorted, and encrypted personal
fields stand before them; some others do, too."""
_BEGINNINGS: Final = (b'"admission":', b'"accounts":', b'"account":')
_PERSONAL: Final = b'{"_personal":['
_SECOND_US: Final = 1_000_000
_BALANCE: Final = 6
_ALL: Final = "*"

Account = tuple[str, str, str, str, int]
"""Path, pools, unit, window and its start in microseconds."""


class Balance(NamedTuple):
    """An account after its last change, which has this number."""

    sequence: int
    limit: int
    reserved: int
    spent: int
    leased: int
    debt: int


class Change(NamedTuple):
    """One account after one change; ``held`` is what the hold had of it, when a hold is concerned."""

    account: Account
    after: Balance
    held: int | None


class Crossed(NamedTuple):
    """A threshold that an account has reached with its change of this number."""

    account: Account
    sequence: int
    spent: int
    limit: int


class Told(NamedTuple):
    """What one entry says: of what kind it is, which accounts it changed, and which threshold was reached."""

    event: str
    changes: tuple[Change, ...] = ()
    crossed: Crossed | None = None


NOTHING: Final = Told("")


def told(body: bytes) -> Told:
    """What the body of an entry says of accounts; ``NOTHING`` when it says nothing. Raises ``ProofInvalid``."""
    # Personal fields are a list of texts in base64, so that its end is the first of its kind.
    start = body.find(b"],") + 2 if body.startswith(_PERSONAL) else 1
    if not body.startswith(_BEGINNINGS, start):
        return NOTHING
    try:
        return _told(loads(body))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ProofInvalid(f"what it says of budgets cannot be read: {error}") from error


def _told(record: Mapping[str, Any]) -> Told:
    if record.get("event") == "threshold":
        path, pools, unit, window, start_us = record["account"]
        return Told(
            "threshold",
            crossed=Crossed(
                (path, pools, unit, window, start_us), record["sequence"], record["spent"], record["limit"]
            ),
        )
    said = record.get("admission") or record.get("accounts")
    if said is None or not said.get("postings"):
        return NOTHING
    event = "reserved" if "admission" in record else said.get("state") or record.get("event") or record.get("kind")
    return Told(str(event), tuple(_changes(said["postings"], _path(record, said))))


def _path(record: Mapping[str, Any], said: Mapping[str, Any]) -> list[str]:
    if "workload" in record:
        return [str(record["workload"][name]) for name in ("tenant", "project", "environment")]
    if said.get("account"):
        return [] if said["account"] == _ALL else str(said["account"]).split("/")
    return [str(name) for name in record.get("scope", ())]


def _changes(groups: Iterable[Sequence[Any]], names: Sequence[str]) -> Iterable[Change]:
    for unit, window, held, *spans in groups:
        pools = spans.pop(0) if spans and isinstance(spans[0], str) else _ALL
        for start_s, *rows in spans:
            for level, *balance in rows:
                path = level if isinstance(level, str) else "/".join(names[:level]) if level else _ALL
                numbers = balance + [0] * (_BALANCE - len(balance))
                if any(type(number) is not int for number in (*numbers, start_s, 0 if held is None else held)):
                    raise ProofInvalid("what it says of budgets holds something that is no number")
                sequence, limit, reserved, spent, debt, leased = numbers
                account = (path, pools, unit, window, start_s * _SECOND_US)
                yield Change(account, Balance(sequence, limit, reserved, spent, leased, debt), held)
