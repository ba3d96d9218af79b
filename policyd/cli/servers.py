"""Asking a running policyd over HTTP: the same answers and errors as without it.

Rules: a problem document becomes the error of its code, with its exit code; an answer that is none of policyd's is an
error; nothing is retried, since a decision that was recorded twice counts twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from policyd.errors import Finding, PolicydError, ServerUnreachable, all_errors

if TYPE_CHECKING:
    from policyd.cli.decision_tables import Told

TIMEOUT_S: Final = 30


class Server:
    """One policyd server, by its base address."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    def decide(self, body: bytes) -> bytes:
        """``POST /v1/decisions``: the bytes of the answer."""
        return self._ask("POST", "/v1/decisions", content=body)

    def read(self, path: str, parameters: Mapping[str, Any] | None = None) -> bytes:
        """``GET`` of a path below the address."""
        return self._ask("GET", path, parameters=parameters)

    def _ask(
        self, method: str, path: str, *, content: bytes | None = None, parameters: Mapping[str, Any] | None = None
    ) -> bytes:
        import httpx

        try:
            answer = httpx.request(
                method,
                self.address + path,
                content=content,
                params=dict(parameters or {}),
                headers={"Content-Type": "application/json", "Accept": "application/json"},
                timeout=TIMEOUT_S,
                trust_env=False,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            told = str(error) or type(error).__name__
            if "://" not in self.address:
                told = f"an address begins with http://, so write http://{self.address}"
            raise ServerUnreachable(f"the server at {self.address} does not answer: {told}") from None
        if answer.is_success:
            if not isinstance(_json(answer.content), dict):
                raise ServerUnreachable(
                    f"{self.address} answered {answer.status_code} with something that is no document"
                )
            return answer.content
        raise error_of(answer.status_code, answer.content, self.address)


def error_of(status: int, body: bytes, address: str) -> PolicydError:
    """The error that a problem document stands for."""
    problem = _json(body)
    if not isinstance(problem, dict) or not isinstance(problem.get("code"), str):
        return ServerUnreachable(f"{address} answered {status} without a problem document: no policyd answers there")
    # Bases come first in the tree, and a narrower class of the same code is a matter inside the server.
    known = {error.code: error for error in reversed(all_errors())}
    kind = known.get(problem["code"], PolicydError)
    findings = [
        Finding(str(finding.get("where", "")), str(finding.get("message", "")))
        for finding in problem.get("findings", ())
        if isinstance(finding, dict)
    ]
    return kind(str(problem.get("detail", "")), findings=findings, remedy=problem.get("remedy"))


def _json(body: bytes) -> Any:
    """The JSON value of a body; None when it is none."""
    import orjson

    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def told_by(server: Server, answer: Mapping[str, Any]) -> Told:
    """What is told of a decision that a server made: its explanation, as the server gives it."""
    import orjson

    from policyd.cli.decision_tables import told_from

    return told_from(orjson.loads(server.read(f"/v1/decisions/{answer['id']}/explanation")))
