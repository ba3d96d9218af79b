"""What others want to hear of: entries of the log as events, by one table. To add one: a row here, its name in
``policyd.settings.EventName``.

Rules: pure; an event is made from its entry and from nothing else, so that it can be made again after a crash and is
the same; its id is that of the entry, by which a receiver knows what it has heard already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from audit.entries import Picked
from audit.record import Kind

Severity = Literal["info", "warning", "critical"]
UNIT_WORDS: Final[Mapping[str, str]] = {
    "tokens": "tokens",
    "gpu_ms": "GPU milliseconds",
    "requests": "requests",
    "gpus": "GPUs",
    "in_flight": "requests in flight",
}


@dataclass(frozen=True, slots=True)
class Told:
    """What an entry says to a person: how bad it is, a sentence, and the labels that alerts are grouped by."""

    severity: Severity
    summary: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. ``document`` is the entry as it is recorded, without ``NOT_TOLD``."""

    name: str
    id: str
    index: int
    time_us: int
    tenant: str | None
    told: Told
    document: Mapping[str, Any]


def _threshold(body: Mapping[str, Any]) -> Told:
    path, pools, unit, window, _ = body["account"]
    percent, whose = body["percent"], "all tenants" if path == "*" else path
    severity: Severity = "critical" if percent >= 95 else "warning" if percent >= 80 else "info"
    used = f"{amount(body['spent'], unit)} of {amount(body['limit'], unit)}"
    labels = {"account": path, "pools": pools, "unit": unit, "window": window, "percent": str(percent)}
    return Told(severity, f"{whose} has spent {percent} % of its budget for the {window}: {used}", labels)


def _set(body: Mapping[str, Any]) -> Told:
    path = body["path"]
    said = ", ".join(
        f"{limit['unit']} ({limit['window']}) "
        + ("given back" if limit["limit"] is None else amount(limit["limit"], limit["unit"]))
        for limit in body["limits"]
    )
    return Told("info", f"the budget of {path} was set: {said}", {"account": path})


def _proposed(body: Mapping[str, Any]) -> Told:
    whose = _tenant(body) or "all tenants"
    summary = f"{body['action']} for {whose} waits for a second person until {body['expires']}"
    return Told("warning", summary, {"action": body["action"], "proposal": body["id"]})


def _approved(body: Mapping[str, Any]) -> Told:
    whose = _tenant(body) or "all tenants"
    return Told("info", f"{body['action']} for {whose} was approved and is done", {"action": body["action"]})


def _lapsed(body: Mapping[str, Any]) -> Told:
    urgency = body["urgency"]
    severity: Severity = "critical" if urgency["now"] else "warning"
    counts = ", ".join(f"{count} {name}" for name, count in urgency.items() if count)
    summary = f"{body['items_total']} of {body['placements']} placements would be refused today: {counts}"
    return Told(severity, summary, {"policy": str(body["policy"][0]), "fleet": str(body["fleet"][0])})


def _requested(body: Mapping[str, Any]) -> Told:
    asked = body["document"]
    summary = f"{_lifted(body)} waits for a second person until {body['expires']}: {asked['reason']}"
    return Told(
        "warning", summary, {"waiver": body["id"], "waiver_kind": asked["kind"], "approve": _approval_path(body)}
    )


def _granted(body: Mapping[str, Any]) -> Told:
    asked = body["document"]
    summary = f"{_lifted(body)} is in force until {asked['expires_at']}: {asked['reason']}"
    return Told("info", summary, {"waiver": body["waiver"], "waiver_kind": asked["kind"]})


def _broken(body: Mapping[str, Any]) -> Told:
    asked = body["document"]
    summary = f"the glass is broken: {_lifted(body)} until {asked['expires_at']}: {asked['reason']}"
    return Told("critical", summary, {"waiver": body["waiver"], "waiver_kind": "break_glass"})


def _lifted(body: Mapping[str, Any]) -> str:
    asked = body["document"]
    scope = [f"{name} {asked[name]}" for name in ("project", "pool", "model") if name in asked]
    what = f"{asked['kind'].replace('_', ' ')} of {asked.get('rule', 'every soft rule')}"
    return f"{what} for {', '.join([str(_tenant(body)), *scope])}"


def _approval_path(body: Mapping[str, Any]) -> str:
    return f"/v1/waivers/{body['id']}/approval"


def _tenant(body: Mapping[str, Any]) -> str | None:
    """The tenant that the scope of an entry names."""
    scope = body.get("scope")
    return scope[0] if isinstance(scope, list) and scope else None


def amount(value: int, unit: str) -> str:
    """An amount of the ledger for a person."""
    if unit == "micro_usd":
        return f"${value // 1_000_000:,}.{value % 1_000_000 // 10_000:02d}"
    return f"{value:,} {UNIT_WORDS.get(unit, unit)}"


_ROWS: Final[Mapping[tuple[Kind, str | None], tuple[str, Callable[[Mapping[str, Any]], Told]]]] = {
    ("budget", "threshold"): ("budget.threshold", _threshold),
    ("budget", "set"): ("budget.set", _set),
    ("proposal", None): ("proposal.opened", _proposed),
    ("approval", None): ("proposal.approved", _approved),
    ("compliance", "lapsed"): ("compliance.lapsed", _lapsed),
    ("proposal", "waiver"): ("waiver.requested", _requested),
    ("waiver", "granted"): ("waiver.granted", _granted),
    ("waiver", "break_glass"): ("waiver.break_glass", _broken),
}
NOT_TOLD: Final = frozenset({"salt", "document"})
"""What stays in the log: what only a hash needs, and what is proposed, which may name a person. A waiver names none."""
EVENT_NAMES: Final = tuple(name for name, _ in _ROWS.values())
KINDS_HEARD: Final[tuple[Kind, ...]] = tuple(dict.fromkeys(kind for kind, _ in _ROWS))


def event_of(picked: Picked) -> Event | None:
    """The event that an entry is; None when nobody wants to hear of such an entry."""
    body = picked.document()
    of_waiver = picked.kind == "proposal" and body.get("action") == "waiver"
    row = _ROWS.get((picked.kind, "waiver" if of_waiver else body.get("event")))
    if row is None:
        return None
    name, tell = row
    told = tell(body)
    account = told.labels.get("account")
    tenant = _tenant(body) if account is None else None if account == "*" else str(account).split("/")[0]
    hidden = {"salt"} if of_waiver or picked.kind == "waiver" else NOT_TOLD
    document = {key: value for key, value in body.items() if key not in hidden}
    return Event(name, picked.id, picked.index, picked.time_us, tenant, told, document)
