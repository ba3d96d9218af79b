"""The bytes of a webhook: the body in one of four forms, and the headers that prove who sent it. Pure.

| form           | body                                                                               |
|----------------|------------------------------------------------------------------------------------|
| `json`         | one object: type, id, time, tenant, severity, summary, place in the log, the entry |
| `alertmanager` | a list of one alert, as Prometheus Alertmanager takes it at `/api/v2/alerts`       |
| `servicenow`   | the fields of a record of ServiceNow's table API; `correlation_id` is the event     |
| `jira`         | `fields` of an issue of Jira, for a rule that knows project and type                |

Signed as Standard Webhooks 1.0 says: `webhook-id`, `webhook-timestamp` and `webhook-signature`, which is `v1,` and the
base64 of HMAC-SHA-256 over `id.timestamp.body`. A secret that begins with `whsec_` is base64, any other its bytes.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import orjson

from policyd.errors import ConfigError
from policyd.services.clock import rfc3339
from policyd.services.events import Event

Form = Literal["json", "alertmanager", "servicenow", "jira"]
PREFIX: Final = "whsec_"
SECRET_MIN_BYTES: Final = 16
SHORT_MAX_CHARS: Final = 160
"""As long as ServiceNow and Jira both take a line that names a record."""


def body_of(event: Event, form: Form, origin: str) -> bytes:
    """The body of an event; the same event gives the same bytes."""
    document: Any = _WRITERS[form](event, origin)
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def _plain(event: Event, origin: str) -> dict[str, Any]:
    return {
        "type": event.name,
        "id": event.id,
        "timestamp": rfc3339(event.time_us),
        "tenant": event.tenant,
        "severity": event.told.severity,
        "summary": event.told.summary,
        "log": {"origin": origin, "index": event.index},
        "data": dict(event.document),
    }


def _alerts(event: Event, origin: str) -> list[dict[str, Any]]:
    name = "Policyd" + "".join(word.capitalize() for word in event.name.replace("_", ".").split("."))
    tenant = {} if event.tenant is None else {"tenant": event.tenant}
    labels = {"alertname": name, "severity": event.told.severity, "log": origin, **tenant, **event.told.labels}
    annotations = {"summary": event.told.summary, "entry": event.id, "index": str(event.index)}
    return [{"labels": labels, "annotations": annotations, "startsAt": rfc3339(event.time_us)}]


def _record(event: Event, origin: str) -> dict[str, Any]:
    urgency = {"critical": "1", "warning": "2", "info": "3"}[event.told.severity]
    return {
        "short_description": event.told.summary[:SHORT_MAX_CHARS],
        "description": _description(event, origin),
        "urgency": urgency,
        "impact": urgency,
        "category": event.name,
        "correlation_id": event.id,
        "correlation_display": f"policyd {origin}",
    }


def _issue(event: Event, origin: str) -> dict[str, Any]:
    labels = ["policyd", event.name.replace(".", "-"), *([event.tenant] if event.tenant else [])]
    summary = event.told.summary[:SHORT_MAX_CHARS]
    return {"fields": {"summary": summary, "description": _description(event, origin), "labels": labels}}


def _description(event: Event, origin: str) -> str:
    """What a person needs to act on it, one thing a line."""
    told = [("tenant", event.tenant or "all tenants"), *sorted(event.told.labels.items())]
    lines = [event.told.summary, "", *(f"{name}: {value}" for name, value in told)]
    return "\n".join([*lines, f"log: entry {event.index} of {origin}"])


_WRITERS: Final[Mapping[Form, Callable[[Event, str], Any]]] = {
    "json": _plain,
    "alertmanager": _alerts,
    "servicenow": _record,
    "jira": _issue,
}


def secret_of(text: str) -> bytes:
    """The key of a secret as it is written in its file. Raises ``ConfigError``."""
    written = text.strip()
    try:
        key = b64decode(written.removeprefix(PREFIX), validate=True) if written.startswith(PREFIX) else written.encode()
    except Base64Error:
        raise ConfigError(f"a secret of a webhook that begins with {PREFIX} is not base64") from None
    if len(key) < SECRET_MIN_BYTES:
        raise ConfigError(f"a secret of a webhook has {len(key)} bytes; {SECRET_MIN_BYTES} are needed")
    return key


def headers_of(event: Event, body: bytes, key: bytes | None, time_s: int) -> dict[str, str]:
    """The headers of one attempt; without a key nothing is signed."""
    headers = {"content-type": "application/json", "webhook-id": event.id, "webhook-timestamp": str(time_s)}
    if key is not None:
        signed = hmac.new(key, f"{event.id}.{time_s}.".encode() + body, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{b64encode(signed).decode()}"
    return headers
