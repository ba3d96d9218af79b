"""The calls of AuthZEN, beside ``policyd.client.calls``: subject a tenant, action ``place``, resource a pool.

Rules: as there; only a true is a true; each evaluation and each search is a recorded decision, so it is sent once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from policyd.client.calls import Call, encoded, fields, headers
from policyd.client.documents import Evaluation, PoolQuestion, PoolSearch, Semantic, Workload
from policyd.client.problems import json_of
from policyd.errors import RequestError

Found = TypeVar("Found")

PATH: Final = "/access/v1"
_evaluation: Final = fields(Evaluation, decision=bool)
_search: Final = fields(PoolSearch, results=list, page=dict)


def evaluate(tenant: str, pool_id: str, workload: Workload, request_id: str | None) -> Call[Evaluation]:
    """``POST /access/v1/evaluation``."""
    document = {**_subject(tenant), "resource": _pool(pool_id), "context": workload}
    return _call("evaluation", lambda body: _evaluation(json_of(body)), "evaluation", document, request_id)


def evaluate_many(
    tenant: str, questions: Sequence[PoolQuestion], semantic: Semantic, request_id: str | None
) -> Call[list[Evaluation]]:
    """``POST /access/v1/evaluations``: as many as were asked, or up to the one that ends the semantic."""
    if not questions:
        raise RequestError("there is nothing to evaluate")

    def read(body: bytes) -> list[Evaluation] | None:
        found = json_of(body)
        items = found.get("evaluations") if isinstance(found, dict) else None
        if not isinstance(items, list):
            return None
        answers = [answer for item in items if (answer := _evaluation(item)) is not None]
        whole = len(answers) == len(items) and _ends(answers, len(questions), semantic)
        return answers if whole else None

    document = {
        **_subject(tenant),
        "evaluations": [{"resource": _pool(one["pool"]), "context": one["workload"]} for one in questions],
        "options": {"evaluations_semantic": semantic},
    }
    return _call("evaluations", read, f"list of {len(questions)} evaluations", document, request_id)


def _ends(answers: Sequence[Evaluation], asked: int, semantic: Semantic) -> bool:
    """Whether the list ends where the semantic says."""
    stop = {"execute_all": None, "deny_on_first_deny": False, "permit_on_first_permit": True}[semantic]
    stopped = [place for place, answer in enumerate(answers) if answer["decision"] is stop]
    return len(answers) == (stopped[0] + 1 if stopped else asked)


def search_pools(
    tenant: str, workload: Workload, limit: int, token: str | None, request_id: str | None
) -> Call[PoolSearch]:
    """``POST /access/v1/search/resource``: one page, best first."""
    page = {"limit": limit, **({} if token is None else {"token": token})}
    document = {**_subject(tenant), "resource": {"type": "pool"}, "context": workload, "page": page}

    def read(body: bytes) -> PoolSearch | None:
        found = _search(json_of(body))
        pools: list[Any] = [] if found is None else [*found["results"]]
        named = all(isinstance(pool, dict) and isinstance(pool.get("id"), str) for pool in pools)
        return found if named else None

    return _call("search/resource", read, "search for pools", document, request_id)


def _subject(tenant: str) -> dict[str, Any]:
    return {"subject": {"type": "tenant", "id": tenant}, "action": {"name": "place"}}


def _pool(pool_id: str) -> dict[str, str]:
    return {"type": "pool", "id": pool_id}


def _call(
    path: str,
    read: Callable[[bytes], Found | None],
    noun: str,
    document: Mapping[str, Any],
    request_id: str | None,
) -> Call[Found]:
    return Call(
        "POST", f"{PATH}/{path}", read, noun,
        content=encoded(document), headers=headers(request_id=request_id), repeatable=False,
    )  # fmt: skip
