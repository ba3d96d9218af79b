"""OpenID AuthZEN 1.0: evaluation, evaluations, search for resources, discovery.

Rules: an evaluation is a decision, and a search is one: decided, and recorded before a true leaves; an error is a
problem document or a false, never a true; unknown fields of AuthZEN's own objects are ignored, as it asks; nothing is
reserved here: who wants budget held asks ``POST /v1/decisions``.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from policyd.api.authzen_mapping import (
    KEYS,
    Question,
    Questions,
    denied,
    evaluation_json,
    object_of,
    question_of,
    questions_of,
    ranked_pools,
)
from policyd.api.batch import DEADLINE_PERCENT, each
from policyd.api.bodies import json_value, read_bytes
from policyd.api.callers import principal_of
from policyd.api.openapi_authzen import CONFIGURATION, EVALUATION, EVALUATIONS, SEARCH_RESOURCE
from policyd.api.parts import Parts
from policyd.api.problems import problem_json, request_id_of
from policyd.api.queries import cursor_at, position_of
from policyd.errors import Loosens, PolicydError, RequestError, TooLarge, UnknownName
from policyd.services.decisions import Answered

PAGE_MAX: Final = 1_000
_PATH: Final = "/access/v1"
_NO_STORE: Final = {"Cache-Control": "no-store"}
_STOPS: Final = {"execute_all": None, "deny_on_first_deny": False, "permit_on_first_permit": True}
"""The decision that ends the evaluations of a semantic."""


def authzen_router(parts: Parts) -> APIRouter:
    """The routes of AuthZEN."""
    router = APIRouter(tags=["authzen"])
    router.post(f"{_PATH}/evaluation", summary="May this pool take this workload", **EVALUATION)(_evaluation(parts))
    router.post(f"{_PATH}/evaluations", summary="The same for several", **EVALUATIONS)(_evaluations(parts))
    router.post(f"{_PATH}/search/resource", summary="Which pools may", **SEARCH_RESOURCE)(_search(parts))

    @router.get("/.well-known/authzen-configuration", summary="Where AuthZEN answers", **CONFIGURATION)
    async def configuration(request: Request) -> Response:
        """The endpoints, for discovery."""
        base = parts.settings.api.public_url or _own_address(request)
        document = {
            "policy_decision_point": base,
            "access_evaluation_endpoint": f"{base}{_PATH}/evaluation",
            "access_evaluations_endpoint": f"{base}{_PATH}/evaluations",
            "search_resource_endpoint": f"{base}{_PATH}/search/resource",
        }
        return Response(orjson.dumps(document), headers={"Cache-Control": "no-cache"}, media_type="application/json")

    return router


def _own_address(request: Request) -> str:
    """The address that the request came to. Not its ``Host`` header, which anybody may write as they like."""
    host, port = request.scope["server"]
    return f"{request.scope['scheme']}://{f'[{host}]' if ':' in host else host}:{port}"


def _evaluation(parts: Parts) -> Any:
    async def evaluation(request: Request) -> Response:
        """True when the pool is ranked for the workload; false, with the reasons, for everything else."""
        document = json_value(await read_bytes(request, parts.settings.api.body_max_bytes))
        return await _single(parts, request, document)

    return evaluation


async def _single(parts: Parts, request: Request, document: Any) -> Response:
    question = question_of(document)
    answered = await _asked(parts, request, question)
    return _answer(_evaluation_json(question, answered, request), answered)


def _evaluations(parts: Parts) -> Any:
    limits = parts.settings.api

    async def evaluations(request: Request) -> Response:
        """Evaluations in order; the top-level keys are defaults of each. Without any it is a single evaluation."""
        document = json_value(await read_bytes(request, limits.batch_body_max_bytes, "api.batch_body_max_bytes"))
        asked = questions_of(document)
        if not asked.items:
            return await _single(parts, request, document)
        if len(asked.items) > limits.batch_max_items:
            raise TooLarge(
                f"the request has more than {limits.batch_max_items} evaluations",
                remedy="send less at once; the limit is api.batch_max_items",
            )
        deadline_ms = limits.request_timeout_ms * DEADLINE_PERCENT // 100
        return _answer({"evaluations": await _each(parts, request, asked, deadline_ms)}, None)

    return evaluations


async def _each(parts: Parts, request: Request, asked: Questions, deadline_ms: int) -> list[Any]:
    """The answers: all at once, or one after the other until the decision that ends the semantic."""

    async def one(item: Any) -> dict[str, Any]:
        question = question_of(item)
        return _evaluation_json(question, await _asked(parts, request, question), request)

    stop = _STOPS[asked.semantic]
    groups = [asked.items] if stop is None else [(item,) for item in asked.items]
    found: list[Any] = []
    for group in groups:
        answers = await each(group, one, deadline_ms)
        found += [_failed(answer, request) if isinstance(answer, PolicydError) else answer for answer in answers]
        if stop is not None and found[-1]["decision"] is stop:
            break
    return found


async def _asked(parts: Parts, request: Request, question: Question) -> Answered | PolicydError | None:
    """The recorded decision; None for what no workload is meant by; the error for a name or value that is refused."""
    if question.request is None:
        return None
    try:
        return await parts.decisions.decide(question.request, principal_of(request), request_id_of(request))
    except (UnknownName, Loosens) as error:
        return error


def _evaluation_json(question: Question, answered: Answered | PolicydError | None, request: Request) -> dict[str, Any]:
    if isinstance(answered, Answered):
        return evaluation_json(question, answered.made)
    return denied(question.reason) if answered is None else _failed(answered, request)


def _failed(error: PolicydError, request: Request) -> dict[str, Any]:
    told: dict[str, Any] = {"problem": problem_json(error, request_id_of(request))}
    if error.decision_id is not None:
        told["id"] = error.decision_id
    return denied(error.detail, told)


def _search(parts: Parts) -> Any:
    async def search(request: Request) -> Response:
        """The pools that an evaluation of the same workload says true of, best first."""
        document = json_value(await read_bytes(request, parts.settings.api.body_max_bytes))
        question = question_of(document, with_id=False)
        page = object_of(document.get("page", {}), "page")
        limit = _page_limit(page)
        # A token continues the search that gave it: the same entities and the same limit.
        asked = [{key: document.get(key) for key in (*KEYS[:2], KEYS[3])}, limit]
        bound_to = sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        start = _page_start(page, bound_to)
        answered = await _asked(parts, request, question)
        if isinstance(answered, Answered):
            pools, told = ranked_pools(answered.made), {"id": answered.id, "ignored": question.ignored}
        else:
            pools, told = [], _evaluation_json(question, answered, request)["context"]
        results = pools[start : start + limit]
        following = cursor_at(bound_to, start + limit) if start + limit < len(pools) else ""
        body = {
            "results": [{"type": "pool", "id": pool} for pool in results],
            "page": {"next_token": following, "count": len(results), "total": len(pools)},
            "context": told,
        }
        return _answer(body, answered)

    return search


def _page_limit(page: Any) -> int:
    limit = page.get("limit", PAGE_MAX)
    if type(limit) is not int or limit < 0:
        raise RequestError("`page.limit` is a whole number from 0")
    return min(limit, PAGE_MAX)


def _page_start(page: Any, bound_to: str) -> int:
    token = page.get("token", "")
    if not isinstance(token, str):
        raise RequestError("`page.token` is no text")
    return position_of(token or None, bound_to)


def _answer(document: Any, answered: Answered | PolicydError | None) -> Response:
    headers = dict(_NO_STORE)
    if isinstance(answered, Answered):
        headers["X-Policyd-Decision-Id"] = answered.id
    elif answered is not None and answered.decision_id is not None:
        headers["X-Policyd-Decision-Id"] = answered.decision_id
    return Response(orjson.dumps(document), headers=headers, media_type="application/json")
