"""An entry as an event of OCSF 1.8.0: API Activity (class 6003) with the profiles ``ai_operation`` and
``security_control``, for a SIEM.

    actor.user            who asked                      policy           the policy revision, and its commit
    api.request.uid       the request                    ai_model         model, version, provider of the first choice
    action_id             1 allowed, 2 denied            resources        the pools in their order
    src_endpoint          the project that asked: the log keeps no addresses, except of callers that nobody proved
    unmapped              everything else that is searched, the cost, and the place and hash of the entry

Rules: an event is made from one entry and nothing else, so that an export can be repeated; an outcome that this module
does not know is 0 (Unknown) or 99 (Other with its name), never an allow.
It refuses: to send the body itself. An event is for finding and alerting; the evidence is the log, which it points to.
"""

from __future__ import annotations

from typing import Any, Final

from audit.entries import Facts, Stored, facts_of

SCHEMA_VERSION: Final = "1.8.0"
PROFILES: Final = ("ai_operation", "security_control")
CLASS_UID: Final = 6003
RESOURCES_MAX: Final = 10
NOT_KNOWN: Final = "unknown"

_ACTIVITIES: Final = {
    "decision": (1, "Create"), "error": (1, "Create"), "refusal": (1, "Create"), "revision": (3, "Update"),
}  # fmt: skip
_OPERATIONS: Final = {"decision": "decide", "error": "decide", "refusal": "decide", "revision": "activate"}
_ACTIONS: Final = {"allow": (1, "Allowed", 1, "Allowed"), "deny": (2, "Denied", 2, "Blocked")}
"""By outcome: action and disposition, with their captions."""
_REFUSED: Final = (2, "Denied", 2, "Blocked")
_UNKNOWN: Final = (0, "Unknown", 0, "Unknown")
_SEVERITIES: Final = {"decision": (1, "Informational"), "revision": (1, "Informational"), "refusal": (2, "Low")}
_MEDIUM: Final = (3, "Medium")
_MAPPED: Final = ("principal", "request_id", "model", "model_version", "policy_commit")

Json = dict[str, Any]


def event(entry: Stored, origin: str, version: str) -> Json:
    """The event. ``origin`` is the name of the log, ``version`` that of the product."""
    body = entry.document()
    facts = facts_of(body)
    activity_id, activity = _ACTIVITIES.get(entry.kind, (99, entry.kind))
    severity_id, severity = _SEVERITIES.get(entry.kind, _MEDIUM)
    found = {
        "metadata": _metadata(entry, origin, version),
        "category_uid": 6,
        "category_name": "Application Activity",
        "class_uid": CLASS_UID,
        "class_name": "API Activity",
        "activity_id": activity_id,
        "activity_name": activity,
        "type_uid": CLASS_UID * 100 + activity_id,
        "type_name": f"API Activity: {activity}",
        "severity_id": severity_id,
        "severity": severity,
        "time": entry.time_us // 1_000,
        "message": _message(entry),
        **_status(entry, body),
        **_action(entry),
        "actor": _actor(entry),
        "src_endpoint": _source(entry),
        "api": _api(entry, body),
        "ai_model": _ai_model(entry),
        "resources": _resources(body) or None,
        "policy": _policy(entry, facts),
        "unmapped": _unmapped(entry, origin, facts),
    }
    return {name: value for name, value in found.items() if value is not None}


def _metadata(entry: Stored, origin: str, version: str) -> Json:
    found: Json = {
        "version": SCHEMA_VERSION,
        "profiles": list(PROFILES),
        "product": {"name": "policyd", "vendor_name": "policyd", "version": version},
        "log_name": origin,
        "uid": entry.id,
        "sequence": entry.index,
        "event_code": entry.kind,
    }
    if "tenant" in entry.search:
        found["tenant_uid"] = entry.search["tenant"]
    return found


def _message(entry: Stored) -> str:
    search = entry.search
    if entry.kind == "revision":
        return "a revision was activated"
    if entry.kind == "key":
        return "the signing key of the log was replaced"
    asked = f"{search.get('model', 'no model')} for {search.get('tenant', 'no tenant')}"
    because = f" ({search['denied_by']})" if "denied_by" in search else ""
    where = f" on {search['pool']}" if "pool" in search else ""
    return f"{search.get('outcome', entry.kind)}{because}: {asked}{where}"


def _status(entry: Stored, body: Json) -> Json:
    failed = entry.kind in ("error", "refusal")
    found = {
        "status_id": 2 if failed else 1,
        "status": "Failure" if failed else "Success",
        "status_code": body.get("code") if failed else entry.search.get("denied_by"),
        "status_detail": body.get("detail") if failed else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _action(entry: Stored) -> Json:
    outcome = entry.search.get("outcome")
    known = _ACTIONS.get(outcome or "", _REFUSED if entry.kind in ("error", "refusal") else _UNKNOWN)
    action_id, action, disposition_id, disposition = known
    return {"action_id": action_id, "action": action, "disposition_id": disposition_id, "disposition": disposition}


def _actor(entry: Stored) -> Json:
    principal = entry.search.get("principal")
    return {"app_name": "policyd"} if principal is None else {"user": {"uid": principal, "name": principal}}


def _source(entry: Stored) -> Json:
    scope = [entry.search[name] for name in ("tenant", "project") if name in entry.search]
    return {"svc_name": "/".join(scope) or ("policyd" if entry.kind in ("revision", "key") else NOT_KNOWN)}


def _api(entry: Stored, body: Json) -> Json:
    found: Json = {"operation": _OPERATIONS.get(entry.kind, entry.kind), "service": {"name": "policyd"}}
    if "request_id" in entry.search:
        found["request"] = {"uid": entry.search["request_id"]}
    if body.get("code") is not None:
        found["response"] = {"error": body["code"], "error_message": str(body.get("detail", ""))}
    return found


def _ai_model(entry: Stored) -> Json | None:
    if "model" not in entry.search:
        return None
    found = {"name": entry.search["model"], "ai_provider": entry.search.get("provider", NOT_KNOWN)}
    if "model_version" in entry.search:
        found["version"] = entry.search["model_version"]
    return found


def _resources(body: Json) -> list[Json]:
    return [
        {"uid": pool, "name": pool, "type": "GPU pool", "data": {"rank": rank, "cost_micro_usd": cost_micro_usd}}
        for rank, (pool, _, cost_micro_usd) in enumerate(body.get("ranked", ())[:RESOURCES_MAX], 1)
    ]


def _policy(entry: Stored, facts: Facts) -> Json | None:
    if facts.policy_digest is None:
        return None
    found = {"name": "placement policies", "uid": facts.policy_digest}
    if "policy_commit" in entry.search:
        found["version"] = entry.search["policy_commit"]
    return found


def _unmapped(entry: Stored, origin: str, facts: Facts) -> Json:
    found: Json = {name: value for name, value in entry.search.items() if name not in _MAPPED}
    more = {
        "cost_micro_usd": facts.cost_micro_usd,
        "fleet_digest": facts.fleet_digest,
        "data_sources": list(facts.data_sources) or None,
        "rules_now": list(facts.rules_now) or None,
    }
    found |= {name: value for name, value in more.items() if value is not None}
    return {**found, "audit": {"log": origin, "index": entry.index, "leaf_hash": entry.leaf_hash.hex()}}
