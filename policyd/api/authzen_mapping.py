"""AuthZEN's words in ours: an evaluation as a workload and a pool, a decision as true or false with reasons.

    subject  {"type": "tenant", "id": tenant}     who the workload belongs to
    action   {"name": "place"}
    resource {"type": "pool", "id": pool}
    context  {"model": …, "data": {…}, …}         the other fields of a workload

Rules: pure; a required field that is missing or of the wrong type is an error, a value that nobody knows is a false;
fields that AuthZEN does not name are ignored, and those of ``context`` are told, since a misspelt ``residency`` would
otherwise tighten nothing without a word; inside a workload's field an unknown one is refused as everywhere else.
It refuses: to say true of a pool that the decision did not rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import orjson

from policyd.api.bodies import parse_json
from policyd.core.decide import obligations_json
from policyd.core.workload import NAME_PATTERN, DecisionOptions, DecisionRequest, Given, WorkloadRequest
from policyd.errors import Finding, RequestError
from policyd.services.answers import Made
from policyd.services.clock import rfc3339

Semantic = Literal["execute_all", "deny_on_first_deny", "permit_on_first_permit"]
SEMANTICS: Final[tuple[Semantic, ...]] = get_args(Semantic)
SUBJECT, ACTION, RESOURCE = "tenant", "place", "pool"
KEYS: Final = ("subject", "action", "resource", "context")
OPTIONS: Final = DecisionOptions(reserve=False, limit=1_000)
"""All ranked pools, since a pool that is cut off would read as refused; asking holds no budget."""
_FIELDS: Final = frozenset(WorkloadRequest.model_fields)
_NAME: Final = re.compile(NAME_PATTERN)


class _Asked(Given):
    context: WorkloadRequest


@dataclass(frozen=True, slots=True)
class Question:
    """One evaluation. ``request`` is None when no workload can be meant by it, and ``reason`` says why."""

    pool: str
    request: DecisionRequest | None
    ignored: tuple[str, ...] = ()
    reason: str = ""


def question_of(document: Any, *, with_id: bool = True) -> Question:
    """What an evaluation asks; without ``with_id`` the resource's id does not count (a search).

    Raises ``RequestError`` for a required field that is missing or of the wrong type, and for a workload's field that
    cannot be read.
    """
    body = object_of(document, "the request")
    subject, action, resource = (_part(body, name) for name in KEYS[:3])
    kind, tenant = _text(subject, "subject", "type"), _text(subject, "subject", "id")
    name, target = _text(action, "action", "name"), _text(resource, "resource", "type")
    pool = _text(resource, "resource", "id") if with_id else ""
    context = object_of(body["context"], "context") if "context" in body else {}
    for asked, known, what in (
        (kind, SUBJECT, "subjects of the type"),
        (name, ACTION, "the action"),
        (target, RESOURCE, "resources of the type"),
    ):
        if asked != known:
            return Question(pool, None, reason=f"only {what} {known!r} is decided here")
    if not _NAME.fullmatch(tenant):
        return Question(pool, None, reason="there is no such tenant")
    if context.get("tenant", tenant) != tenant:
        raise _fault("context.tenant", "is another tenant than subject.id")
    fields = {key: value for key, value in context.items() if key in _FIELDS}
    workload = parse_json(json.dumps({"context": {**fields, "tenant": tenant}}).encode(), _Asked).context
    ignored = tuple(sorted(key[:100] for key in context if key not in _FIELDS))[:100]
    return Question(pool, DecisionRequest(workload=workload, options=OPTIONS), ignored)


def object_of(value: Any, where: str) -> Mapping[str, Any]:
    """The value, which is a JSON object. Raises ``RequestError``."""
    if not isinstance(value, dict):
        raise _fault(where, "is no object")
    return value


def _part(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if name not in body:
        raise _fault(name, "is required")
    return object_of(body[name], name)


def _text(part: Mapping[str, Any], where: str, name: str) -> str:
    value = part.get(name)
    if not isinstance(value, str):
        raise _fault(f"{where}.{name}", "is no text" if name in part else "is required")
    return value


def _fault(where: str, message: str) -> RequestError:
    return RequestError(f"the request cannot be read: {where} {message}", findings=[Finding(where, message)])


@dataclass(frozen=True, slots=True)
class Questions:
    """Several evaluations: each with the defaults filled in, not read yet, so that each fails for itself."""

    items: tuple[Any, ...]
    semantic: Semantic


def questions_of(document: Any) -> Questions:
    """The evaluations of a request; none when ``evaluations`` is missing or empty. Raises ``RequestError``."""
    body = object_of(document, "the request")
    items = body.get("evaluations", [])
    if not isinstance(items, list):
        raise _fault("evaluations", "is no list")
    defaults = {key: object_of(body[key], key) for key in KEYS if key in body}
    options = object_of(body.get("options", {}), "options")
    semantic = options.get("evaluations_semantic", SEMANTICS[0])
    if semantic not in SEMANTICS:
        raise _fault("options.evaluations_semantic", f"is none of {', '.join(SEMANTICS)}")
    merged = (({**defaults, **item} if isinstance(item, dict) else item) for item in items)
    return Questions(tuple(merged), semantic)


def ranked_pools(made: Made) -> list[str]:
    """The pools of which an evaluation says true, best first."""
    return [scored.row.pool for scored in made.decision.ranked[: made.options.limit]]


def evaluation_json(question: Question, made: Made) -> dict[str, Any]:
    """The decision about one pool."""
    context: dict[str, Any] = {"id": made.id, "valid_until": rfc3339(made.valid_until_us)}
    if question.ignored:
        context["ignored"] = question.ignored
    for rank, scored in enumerate(made.decision.ranked[: made.options.limit], 1):
        if scored.row.pool == question.pool:
            told = {"rank": rank, "obligations": obligations_json((scored,), made.workload)}
            return {"decision": True, "context": {**context, **told}}
    violations = _violations(question.pool, made)
    if violations is None:
        if any(row.pool == question.pool for row in made.sheet.rows):
            return denied(f"denied by {made.decision.denied_by or 'the length of the ranked list'}", context)
        return denied("there is no such pool for this tenant", context)
    rules = ", ".join(f"{found['policy']}.{found['rule']}" for found in violations)
    return denied(f"refused by {rules}", {**context, "violations": violations})


def _violations(pool: str, made: Made) -> list[Any] | None:
    """Why a pool is refused; None when the tenant does not see it, which must read as if it did not exist."""
    found = [violation for row, violation in made.decision.refused if row.pool == pool]
    for name, shown in made.sheet.shown_refused:
        if name == pool:
            found += orjson.loads(bytes(orjson.dumps(shown)))["violations"]
    return found or None


def denied(reason: str, context: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A false with its reason."""
    return {"decision": False, "context": {"reason": reason, **(context or {})}}
