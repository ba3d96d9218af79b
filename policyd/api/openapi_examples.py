"""One example of every answer of the HTTP surface, for the OpenAPI document.

Rules: an example is short, and valid under the schema that it stands beside (a test holds it against it); names are
those of the example fleet.
"""

from __future__ import annotations

from typing import Any, Final

Json = dict[str, Any]

_ID: Final = "01990000-0000-7000-8000-000000000000"
_DIGEST: Final = "sha256:" + "0" * 64
_POSITION: Final[Json] = {"log": "policyd/0", "index": 0, "leaf_hash": "0" * 64}
_REVISION: Final[Json] = {"commit": None, "digest": _DIGEST}

ENTRY_PAGE_EXAMPLE: Final[Json] = {
    "items": [
        {
            "kind": "decision",
            "id": _ID,
            "time": "2026-11-22T10:00:00.000000Z",
            "principal": "local",
            "request_id": "01990000-0000-7000-8000-000000000001",
            "outcome": "allow",
            "workload": {"tenant": "eu-bank", "project": "support-chat", "model": "llama-3.1-70b-instruct"},
            "ranked": [["onprem-fra-h100", 793500, 446]],
            "ranked_total": 6,
            "audit": _POSITION,
        }
    ],
    "next": None,
}

EXPLANATION_EXAMPLE: Final[Json] = {
    "id": _ID,
    "outcome": "deny",
    "denied_by": "eligibility",
    "workload": {"tenant": "eu-bank", "project": "support-chat", "model": "llama-3.1-70b-instruct"},
    "ranked": [],
    "rejected": [],
}
EXPLANATION_TEXT_EXAMPLE: Final = "deny: no pool is left (eligibility)\n"

POOL_EXAMPLE: Final[Json] = {
    "id": "onprem-fra-h100",
    "kind": "on_prem",
    "provider": "own",
    "region": "fra",
    "locations": {"processing": ["DE"], "storage": ["DE"], "support_access": ["DE"]},
    "operator": {"name": "Example Operations GmbH", "seat": "DE", "parent_seat": "DE"},
    "tenancy": "single_tenant",
    "accelerator": {"name": "H100", "memory_gib": 80},
    "gpu_count": 64,
    "price": None,
    "capacity": {"kind": "fixed", "gpus": 64},
}
POOL_PAGE_EXAMPLE: Final[Json] = {"items": [POOL_EXAMPLE], "next": None, "fleet": _REVISION}
MODEL_PAGE_EXAMPLE: Final[Json] = {
    "items": [{"name": "bge-m3", "version": "1.0", "digest": _DIGEST, "approved_in": ["dev", "staging", "prod"]}],
    "next": None,
    "fleet": _REVISION,
}
FLEET_EXAMPLE: Final[Json] = {
    **_REVISION,
    "pools_total": 101,
    "tenants": [{"name": "eu-bank", "title": "Example Bank", "seat": "DE"}],
    "models": ["llama-3.1-70b-instruct"],
    "sla_classes": [{"name": "realtime"}],
}

LIVE_EXAMPLE: Final[Json] = {"alive": True}
READY_EXAMPLE: Final[Json] = {"ready": True, "checks": [{"name": "log", "ok": True, "reason": None}]}
NOT_READY_EXAMPLE: Final[Json] = {
    "ready": False,
    "checks": [{"name": "server", "ok": False, "reason": "the server is about to end"}],
}
