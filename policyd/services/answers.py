"""From a decision to the two things that leave the service: the answer to the caller and the record for the log.

Rules: the answer is made from the same values as the record; the record is small because it names the sheet, the facts
and the revisions by digest; nothing here decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple

import orjson

from audit.record import Blob, Entry, Filled, Form, Personal, Search, Term, digest, encode, fixed, personal
from policyd.core.budgets import account_path
from policyd.core.decide import (
    APPROVAL_REQUIRED,
    Decision,
    awaiting_approval,
    obligations_json,
    ranked_json,
    rejected_json,
)
from policyd.core.facts import Facts
from policyd.core.places import GROUPS
from policyd.core.principal import Principal
from policyd.core.sheet import Sheet
from policyd.core.snapshot import Snapshot
from policyd.core.waivers import Waiver
from policyd.core.workload import DecisionOptions, Workload
from policyd.errors import PolicydError
from policyd.ledger.postings import HELD, paths
from policyd.services.clock import random_16, rfc3339

RECORD_VERSION: Final = 3
"""Since 2, who asked, labels and details are in ``_personal``, encrypted; version 1 has them in the open. Since 3, a
decision does not repeat the obligations of its pools, which the sheet has, and the EU and the EEA go by their names."""
ENFORCE: Final = "enforce"
"""The mode that a record does not name."""
LISTED_MAX: Final = 100
"""Pools that a record lists one by one; the sheet and the facts give all of them back."""
FORMS_MAX: Final = 4_096
"""Workloads without their numbers that are remembered, encoded, the least recently used out first."""
STOOD_ON_MAX: Final = 4_096
"""Sheets and moments whose part of the answers is remembered, in the same way."""
ASKED_MAX_BYTES: Final = 32_768
"""A longer request that brought no decision is recorded by its digest and length."""


class Revisions(NamedTuple):
    """The revisions that a decision stands on, as the answer names them."""

    policy_commit: str | None
    policy_digest: str
    engine: str
    fleet_commit: str | None
    fleet_digest: str
    casbin_digest: str
    stale: tuple[str | None, str | None] = (None, None)
    """Since when a source could not confirm that the policies, or the fleet, are its newest."""

    @classmethod
    def of(cls, snapshot: Snapshot, stale: tuple[str | None, str | None] = (None, None)) -> Revisions:
        """The revisions of a snapshot."""
        policies, fleet, casbin = snapshot.policies, snapshot.fleet, snapshot.entitlements.digest
        return cls(policies.commit, policies.digest, policies.engine, fleet.commit, fleet.digest, casbin, stale)


class Made(NamedTuple):
    """A decision with everything it was made from: what the answer and the record are written from."""

    id: str
    time_us: int
    valid_until_us: int
    principal: str
    request_id: str
    workload: Workload
    options: DecisionOptions
    sheet: Sheet
    facts: Facts
    revisions: Revisions
    decision: Decision
    mode: str = ENFORCE
    admission: Mapping[str, Any] | None = None
    """What the ledger said of the reservation, as the record has it; None when nothing was to be reserved."""
    spilled: tuple[Mapping[str, Any], ...] = ()
    """Groups of pools without room, as the record has them; see ``policyd.services.quotas``."""
    waivers: tuple[Waiver, ...] = ()
    """What has lifted rules of this decision; its ``sheet`` is as they leave it."""


def answer(made: Made, audit: Mapping[str, Any] | None) -> bytes:
    """The body of ``POST /v1/decisions``. ``audit`` is the position in the log; None only in a simulation."""
    return b"".join(answer_pieces(made, audit))


def answer_pieces(made: Made, audit: Mapping[str, Any] | None) -> tuple[bytes, bytes, bytes]:
    """The same body before, in and after ``rejected``, which is most of it and shared by all answers of a sheet."""
    return _before(made), rejected_json(made.decision, made.sheet), _after(made, audit)


def answer_json(made: Made, audit: Mapping[str, Any] | None) -> dict[str, Any]:
    """The same as JSON values, but for ``rejected``, which stays encoded."""
    before, rejected, after = answer_pieces(made, audit)
    return {
        **orjson.loads(before.removesuffix(_REJECTED) + b"}"),
        "rejected": orjson.Fragment(rejected),
        **orjson.loads(b"{" + after[1:]),
    }


_REJECTED: Final = b',"rejected":'
_SHOWN_NUMBERS: Final = (
    b',"demand":{"input_tokens":%d,"max_output_tokens":%d,"requests_per_hour":%d,"duration_hours":%d}'
)


def _before(made: Made) -> bytes:
    decision, workload = made.decision, made.workload
    head = {
        "id": made.id,
        "outcome": decision.outcome,
        "time": rfc3339(made.time_us),
        "valid_until": rfc3339(made.valid_until_us),
        "mode": made.mode,
    }
    form = _forms(*_without_numbers(workload))
    ranked = ranked_json(decision.ranked[: made.options.limit], workload)
    written = (form.before, _SHOWN_NUMBERS % _numbers(workload), form.after, ranked, len(decision.ranked), _REJECTED)
    return orjson.dumps(head)[:-1] + b',"workload":%b%b%b,"ranked":%b,"ranked_total":%d%b' % written


def _after(made: Made, audit: Mapping[str, Any] | None) -> bytes:
    decision, workload = made.decision, made.workload
    returned = decision.ranked[: made.options.limit]
    reservation = None if made.admission is None else reservation_json(made.id, made.admission, workload)
    first = {
        "hidden_total": made.sheet.hidden_total,
        "obligations": obligations_json(returned, workload),
        "reservation": reservation,
    }
    last: dict[str, Any] = {"audit": audit}
    if decision.denied_by is not None:
        last["denied_by"] = decision.denied_by
    if decision.denied_by == APPROVAL_REQUIRED:
        last["approval"] = approval_json(made.sheet)
    if made.waivers:
        last["waivers"] = [waiver_json(waiver) for waiver in made.waivers]
    shared = _stood_on(made.sheet.digest, made.revisions, made.facts.digest, made.facts.observed_at)
    return b"," + orjson.dumps(first)[1:-1] + shared + orjson.dumps(last)[1:]


@lru_cache(maxsize=STOOD_ON_MAX)
def _stood_on(sheet: str, revisions: Revisions, facts: str, observed_at: str | None) -> bytes:
    """What the answers of a sheet say at one moment of what they stand on."""
    document: dict[str, Any] = {
        "sheet": sheet,
        "policy": {
            "commit": revisions.policy_commit,
            "digest": revisions.policy_digest,
            "engine": revisions.engine,
        },
        "fleet": {"commit": revisions.fleet_commit, "digest": revisions.fleet_digest},
        "facts": {"digest": facts, "observed_at": observed_at},
    }
    for kind, since in zip(("policy", "fleet"), revisions.stale, strict=True):
        if since is not None:
            document[kind]["stale_since"] = since
    return b"," + orjson.dumps(document)[1:-1] + b","


def approval_json(sheet: Sheet) -> dict[str, Any]:
    """What a person may approve, pool by pool, and the path where that is requested."""
    asked = [
        {"pool": entry.pool, "rules": [f"{each['policy']}.{each['rule']}" for each in entry.violations]}
        for entry in awaiting_approval(sheet)
    ]
    return {"request": "/v1/waivers", "pools": sorted(asked, key=itemgetter("pool"))}


def waiver_json(waiver: Waiver) -> dict[str, Any]:
    """A waiver as a decision names it; null is all of the tenant's, and an approver whom nobody can name any more."""
    return {
        "id": waiver.id,
        "kind": waiver.kind,
        "rule": None if waiver.rule is None else f"{waiver.policy}.{waiver.rule}",
        "project": waiver.project,
        "pool": waiver.pool,
        "model": waiver.model,
        "approved_by": waiver.approver,
        "expires_at": rfc3339(waiver.expires_us),
    }


_WAIVER: Final = (
    "id",
    "kind",
    "project",
    "policy",
    "rule",
    "rule_digest",
    "pool",
    "model",
    "from_us",
    "expires_us",
)


def waivers_from_record(body: Mapping[str, Any]) -> tuple[Waiver, ...]:
    """The waivers that a decision stood on, as its record has them."""
    names, tenant = body.get("approvers", {}), body["workload"]["tenant"]
    found = [dict(zip(_WAIVER, values, strict=True)) for values in body.get("waivers", ())]
    return tuple(Waiver(**values, tenant=tenant, approver=names.get(values["id"])) for values in found)


def reservation_json(id: str, admission: Mapping[str, Any], workload: Workload) -> dict[str, Any] | None:
    """What is held: how much money (None when no budget counts any), on which accounts, until when."""
    if "postings" not in admission:
        return None
    groups = admission["postings"]
    return {
        "id": id,
        # Every account of money holds the same: the most that the decision may cost.
        "micro_usd": next((group[HELD] for group in groups if group[0] == "micro_usd"), None),
        "accounts": paths(groups, account_path(workload.tenant, workload.project, workload.environment)),
        "expires_at": rfc3339(admission["expires_us"]),
    }


def entry_of(made: Made) -> Entry:
    """The log entry of a decision. See ``audit.record`` for the fields; what is null or empty is left out."""
    decision, workload, revisions = made.decision, made.workload, made.revisions
    returned = decision.ranked[: made.options.limit]
    body: dict[str, Any] = {
        "id": made.id,
        "time": rfc3339(made.time_us),
        "valid_us": made.valid_until_us - made.time_us,
        "request_id": made.request_id,
        "mode": "" if made.mode == ENFORCE else made.mode,
        "limit": made.options.limit if len(decision.ranked) > len(returned) else 0,
        "outcome": decision.outcome,
        "denied_by": decision.denied_by,
        "ranked": [[row.pool, score, cost] for _, row, score, cost, *_ in returned[:LISTED_MAX]],
        "ranked_total": len(decision.ranked) if len(decision.ranked) > len(returned[:LISTED_MAX]) else 0,
        "refused_now": [[row.pool, violation["rule"]] for row, violation in decision.refused[:LISTED_MAX]],
        "refused_now_total": len(decision.refused) if len(decision.refused) > LISTED_MAX else 0,
        "spilled": list(made.spilled),
        "waivers": [[getattr(waiver, name) for name in _WAIVER] for waiver in made.waivers],
    }
    first = returned[0].row if returned else None
    terms: list[Term] = [("data_source", name) for name in workload.sources]
    for row, violation in decision.refused[:LISTED_MAX]:
        terms += [("rejected_pool", row.pool), ("rule", violation["rule"])]
    approvers = [(waiver.id, waiver.approver) for waiver in made.waivers if waiver.approver is not None]
    terms += [("waiver", waiver.id) for waiver in made.waivers]
    terms += [("approver", name) for _, name in approvers]
    search = Search(
        tenant=workload.tenant,
        project=workload.project,
        environment=workload.environment,
        model=workload.model,
        model_version=workload.model_version,
        classification=workload.classification,
        sla_class=workload.sla_class,
        principal=made.principal,
        outcome=decision.outcome,
        denied_by=decision.denied_by,
        pool=first.pool if first else None,
        provider=first.provider if first else None,
        country=(first.country or None) if first else None,
        mode=made.mode,
        policy_commit=revisions.policy_commit,
        fleet_commit=revisions.fleet_commit,
        request_id=made.request_id,
        sheet=made.sheet.digest,
    )
    filled = _forms(*_without_numbers(workload)).recorded.filled(_demand_record(workload))
    written = {**_recorded_on(made.sheet.digest, revisions, made.facts.digest), "workload": filled}
    encoded = encode(_without_empty(body), random_16(), written)
    who = _about(made.principal, workload.labels)
    about = (who, *(personal(name, {"approvers": {id: name}}) for id, name in approvers))
    return Entry("decision", made.id, made.time_us, encoded, search, tuple(dict.fromkeys(terms)), about)


@lru_cache(maxsize=STOOD_ON_MAX)
def _recorded_on(sheet: str, revisions: Revisions, facts: str) -> Mapping[str, Filled]:
    """What the records of a sheet say at one moment of what their decisions stand on."""
    document = {
        "v": RECORD_VERSION,
        "sheet": sheet,
        "facts": facts,
        "policy": [revisions.policy_commit, revisions.policy_digest],
        "fleet": [revisions.fleet_commit, revisions.fleet_digest],
        "stale": list(revisions.stale) if any(revisions.stale) else None,
    }
    return fixed(_without_empty(document))


@lru_cache(maxsize=FORMS_MAX)
def _about(principal: str, labels: tuple[tuple[str, str], ...]) -> Personal:
    """Who asked, and the labels, which are free text."""
    said: dict[str, Any] = {"principal": principal}
    if labels:
        said["workload"] = {"labels": dict(labels)}
    return personal(principal, said)


def _without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without null, false, zero and empty values, which is what an absent field reads as."""
    return {name: value for name, value in fields.items() if value}


def _scope(workload: Workload) -> dict[str, str]:
    return {
        "tenant": workload.tenant,
        "project": workload.project,
        "environment": workload.environment,
        "model": workload.model,
        "model_version": workload.model_version,
        "classification": workload.classification,
        "sla_class": workload.sla_class,
    }


_DEMAND: Final = ("input_tokens", "max_output_tokens", "requests_per_hour")
_NUMBERS: Final = (*_DEMAND, "duration_hours")
_NOT_NUMBERS: Final = tuple(name for name in Workload._fields if name not in _NUMBERS)
_without_numbers: Final = attrgetter(*_NOT_NUMBERS)
_numbers: Final = attrgetter(*_NUMBERS)

_SECTIONS: Final = ("profile", "data", "resources", "demand")

PLACES: Final = {name: tuple(sorted(GROUPS[name])) for name in ("EU", "EEA", "WORLD")}
"""What a record names instead of listing. A name means the same for ever: members that change need a new name."""
_PLACE_NAMES: Final = {countries: name for name, countries in PLACES.items()}


def workload_record(workload: Workload) -> dict[str, Any]:
    """The workload as the log keeps it: as normalised, its countries as one text (``DEFR``, or a name of ``PLACES``).

    That it is a request, and for an hour, goes without saying.
    """
    document = workload.to_json()
    countries = workload.permitted_countries
    written = _PLACE_NAMES.get(countries) or "".join(countries)
    document["data"] = {**document["data"], "residency": written}
    if workload.scope == "request":
        del document["scope"]
    if workload.duration_hours == 1:
        del document["demand"]["duration_hours"]
    # A label without text is a label that somebody set.
    sections = {name: _without_empty(value) for name, value in document.items() if name in _SECTIONS}
    return _without_empty({**document, **sections})


class _Forms(NamedTuple):
    """Workloads that differ in their numbers of demand only, as an answer shows them and as the log keeps them."""

    before: bytes
    after: bytes
    recorded: Form


@lru_cache(maxsize=FORMS_MAX)
def _forms(*values: Any) -> _Forms:
    """The forms of all workloads with these ``_without_numbers``, which thousands of requests share."""
    named = dict(zip(_NOT_NUMBERS, values, strict=True))
    workload = Workload(**named, input_tokens=0, max_output_tokens=0, requests_per_hour=0, duration_hours=1)
    shown, recorded = workload.to_json(), workload_record(workload)
    recorded.pop("labels", None)
    labels = orjson.dumps(shown.pop("labels"))
    del shown["demand"]
    return _Forms(orjson.dumps(shown)[:-1], b',"labels":' + labels + b"}", Form.of(recorded, "demand"))


def _demand_record(workload: Workload) -> dict[str, int]:
    """The numbers of demand that a record names."""
    numbers = {
        "input_tokens": workload.input_tokens,
        "max_output_tokens": workload.max_output_tokens,
        "requests_per_hour": workload.requests_per_hour,
        "duration_hours": 0 if workload.duration_hours == 1 else workload.duration_hours,
    }
    return _without_empty(numbers)


def workload_from_record(document: Mapping[str, Any]) -> Workload:
    """The workload that ``workload_record`` wrote."""
    flat = {key: value for key, value in document.items() if not isinstance(value, dict)}
    data, resources, demand = (document.get(name, {}) for name in ("data", "resources", "demand"))
    profile = document["profile"]
    written = data.get("residency", "").replace(" ", "")
    places = PLACES.get(written) or (written[at : at + 2] for at in range(0, len(written), 2))
    return Workload(
        **{"scope": "request", **flat},
        **{name: profile[name] for name in ("urgency", "traffic", "task")},
        memory_bound=profile.get("memory_bound", False),
        **{name: demand.get(name, 0) for name in _DEMAND},
        duration_hours=demand.get("duration_hours", 1),
        classification=data["classification"],
        categories=tuple(data.get("categories", ())),
        permitted_countries=tuple(sorted(places)),
        sources=tuple(data.get("sources", ())),
        accelerators=tuple(resources.get("accelerators", ())),
        gpu_count=resources.get("gpu_count", 0),
        gpu_memory_gib=resources.get("gpu_memory_gib", 0),
        labels=tuple(sorted(document.get("labels", {}).items())),
    )


def sheet_blob(sheet: Sheet) -> Blob:
    """The sheet for the log, findable by its refused pools and their rules."""
    terms: dict[Term, None] = {}
    for entry in (*sheet.refused, *sheet.lifted):
        terms["rejected_pool", entry.pool] = None
        for violation in entry.violations:
            terms["rule", violation["rule"]] = None
    return Blob(sheet.digest, "sheet", sheet.content, tuple(terms))


def _asked_record(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    content = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
    if len(content) <= ASKED_MAX_BYTES:
        return asked
    return {"digest": digest(content), "bytes": len(content)}


def _refused_scope(
    principal: Principal, snapshot: Snapshot | None, asked: Mapping[str, Any], workload: Workload | None
) -> Mapping[str, Any]:
    """Where a request that brought no decision belongs. A tenant that the caller only claims would put the entry before
    the eyes of that tenant's auditors, so it belongs to one that the caller speaks for, or to none."""
    claimed = workload.tenant if workload else asked.get("tenant")
    own = claimed is not None and (
        claimed in (principal.tenants or ())
        if snapshot is None
        else principal.speaks_for(snapshot.entitlements, "decisions", "decide", claimed)
    )
    if workload and own:
        return _scope(workload)
    return {"tenant": claimed if own else None, "model": asked.get("model")}


def error_entry(
    *,
    id: str,
    time_us: int,
    principal: Principal,
    request_id: str,
    asked: Mapping[str, Any],
    error: PolicydError,
    snapshot: Snapshot | None,
    workload: Workload | None,
) -> Entry:
    """The log entry of a request that brought no decision: what was asked, by whom, and the error's code."""
    kind: Any = "refusal" if error.http_status < 500 else "error"
    scope = _refused_scope(principal, snapshot, asked.get("workload", {}), workload)
    recorded, labels = _without_labels(_asked_record(asked))
    body = {
        "v": RECORD_VERSION,
        "kind": kind,
        "id": id,
        "time": rfc3339(time_us),
        "request_id": request_id,
        "scope": [scope["tenant"], scope.get("project"), scope.get("environment")] if scope["tenant"] else None,
        "asked": recorded,
        "outcome": "error",
        "code": error.code,
        "policy": [snapshot.policies.commit, snapshot.policies.digest] if snapshot else None,
        "fleet": [snapshot.fleet.commit, snapshot.fleet.digest] if snapshot else None,
    }
    search = Search(
        **scope,
        principal=principal.name,
        outcome="error",
        denied_by=error.code,
        mode=ENFORCE,
        policy_commit=snapshot.policies.commit if snapshot else None,
        fleet_commit=snapshot.fleet.commit if snapshot else None,
        request_id=request_id,
    )
    said = {"principal": principal.name, "detail": error.detail[:2_000], **labels}
    return Entry(kind, id, time_us, encode(body, random_16()), search, (), (personal(principal.name, said),))


def _without_labels(asked: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """What was asked, and its labels apart, which are free text."""
    workload = asked.get("workload")
    if not isinstance(workload, dict) or "labels" not in workload:
        return asked, {}
    rest = {name: value for name, value in workload.items() if name != "labels"}
    return {**asked, "workload": rest}, {"asked": {"workload": {"labels": workload["labels"]}}}
