"""From the answer of a server to the error that it stands for.

Rules: a problem document becomes the error of its code, with its remedy, findings and ids; a code that this version
does not know is still an error; what is no problem document is no answer of policyd; none of them is ever an allow.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from policyd.errors import Finding, PolicydError, ServerUnreachable, all_errors

PROBLEM_JSON: Final = "application/problem+json"


def error_of(
    status: int, body: bytes, address: str, media_type: str = PROBLEM_JSON, decision_id: str | None = None
) -> PolicydError:
    """The error that an answer stands for. ``decision_id`` is what the header of that name says."""
    problem = json_of(body) if media_type == PROBLEM_JSON else None
    if not isinstance(problem, dict) or not isinstance(problem.get("code"), str):
        return ServerUnreachable(f"{address} answered {status} without a problem document: no policyd answers there")
    return error_from(problem, decision_id)


def error_from(problem: dict[str, Any], decision_id: str | None) -> PolicydError:
    """The error that a problem document is; its ``code`` is a text."""
    # Bases come first in the tree, and a narrower class of the same code is a matter inside the server.
    known = {error.code: error for error in reversed(all_errors())}
    kind = known.get(problem["code"], PolicydError)
    error = kind(str(problem.get("detail", "")), findings=_findings(problem), remedy=_text(problem.get("remedy")))
    error.problem = problem
    error.request_id = _text(problem.get("request_id"))
    error.decision_id = decision_id
    return error


def _findings(problem: dict[str, Any]) -> list[Finding]:
    found = problem.get("findings")
    return [
        Finding(str(finding.get("where", "")), str(finding.get("message", "")))
        for finding in (found if isinstance(found, list) else ())
        if isinstance(finding, dict)
    ]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def json_of(body: bytes) -> Any:
    """The JSON value of a body; None when it is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
