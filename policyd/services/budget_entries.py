"""The entry of a change of limits, and a change as the document of a proposal. Pure but for the salt.

Rules: what a document says is all that the change needs, so that who approves it reads what is done; the fleet's limit
is in it as it was when the change was asked for, and whatever it has become counts from the next reservation on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from audit.record import Entry, Search, encode, personal
from policyd.core.budgets import ORGANISATION
from policyd.ledger.changes import NO_CEILING, Setting
from policyd.ledger.rules import Limit
from policyd.services.clock import rfc3339

RECORD_VERSION: Final = 1


def set_entry(entry_id: str, time_us: int, path: str, limits: Sequence[Any], told: Mapping[str, Any]) -> Entry:
    """The entry of a change, before the ledger says what became of the accounts."""
    scope = [None, None, None] if path == ORGANISATION else [*path.split("/"), None, None][:3]
    fields = {
        "v": RECORD_VERSION,
        "kind": "budget",
        "event": "set",
        "id": entry_id,
        "time": rfc3339(time_us),
        "path": path,
        "scope": scope,
        "limits": limits,
        **{name: value for name, value in told.items() if name != "principal"},
    }
    principal, request_id = told.get("principal"), told.get("request_id")
    about = () if principal is None else (personal(principal, {"principal": principal}),)
    search = Search(scope[0], scope[1], scope[2], principal=principal, request_id=request_id)
    return Entry("budget", entry_id, time_us, encode(fields, os.urandom(16)), search, (), about)


def setting_json(setting: Setting) -> dict[str, Any]:
    """One limit of a change."""
    ceiling = setting.ceiling
    return {
        "unit": ceiling.unit,
        "window": ceiling.window,
        "pools": ceiling.pools,
        "limit": setting.amount,
        "limit_fleet": None if ceiling.amount == NO_CEILING else ceiling.amount,
        "zone": setting.zone,
        "thresholds": None if setting.thresholds is None else list(setting.thresholds),
        "thresholds_fleet": list(ceiling.thresholds),
    }


def setting_by_two(path: str, told: Mapping[str, Any]) -> Setting:
    """What ``setting_json`` was given, permitted to raise by two persons."""
    fleet, thresholds = told["limit_fleet"], told["thresholds"]
    ceiling = Limit(
        path,
        told["unit"],
        told["window"],
        NO_CEILING if fleet is None else fleet,
        told["zone"],
        told["pools"],
        tuple(told["thresholds_fleet"]),
    )
    return Setting(ceiling, told["limit"], told["zone"], None if thresholds is None else tuple(thresholds), True)
