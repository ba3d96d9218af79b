"""One connection to one OPA, by TCP or by a Unix socket: what ``opa-python-client`` gives, and what it lacks.

Rules: no retries, no rewriting of policies, strict built-in errors on every evaluation, and the deadline of the caller
on every request. OPA's own words about a failed evaluation are kept. It refuses to read an answer as anything but what
it is: a missing result is ``None``, every other status than 200 an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from opa_client.errors import RegoParseError
from opa_client.opa_async import AsyncOpaClient

from policyd.errors import ConfigError, EngineError, EngineTimeout, EngineUnavailable, Finding

CONTROL_TIMEOUT_S: Final = 10.0
"""Longest wait for anything but an evaluation."""


class EvaluationFailed(EngineError):
    """OPA answered that the evaluation hit an error: a conflict, or a built-in that failed."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where an OPA listens: a Unix socket (then host and port are only names), or host and port."""

    host: str = "localhost"
    port: int = 8181
    secure: bool = False
    socket: str | None = None

    @classmethod
    def of_url(cls, url: str) -> Address:
        """``http(s)://host[:port]``. Raises ``ConfigError`` for anything else."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.username:
            raise ConfigError(f"{url!r} is no OPA address; write http://host:port or https://host:port")
        secure = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if secure else 80), secure)


class _Client(AsyncOpaClient):  # type: ignore[misc]  # opa_client ships no types
    """The library's client, with a Unix socket when the address has one."""

    def __init__(self, address: Address, token: str | None) -> None:
        super().__init__(
            host=address.host,
            port=address.port,
            ssl=address.secure,
            token=token,
            retries=0,
            timeout=CONTROL_TIMEOUT_S,
        )
        self._socket = address.socket

    async def _init_session(self) -> None:
        if self._socket is None:
            await super()._init_session()
            return
        self._session = aiohttp.ClientSession(
            headers=self.headers,
            connector=aiohttp.UnixConnector(path=self._socket),
            timeout=aiohttp.ClientTimeout(total=self.timeout),
        )

    async def evaluate(self, path: str, body: bytes, timeout_s: float) -> tuple[int, dict[str, Any]]:
        """POST one input to a rule, with strict built-in errors; status and body."""
        url = f"{self.root_url}/data/{path}?strict-builtin-errors=true"
        headers = {"Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self._request("POST", url, data=body, headers=headers, timeout=timeout) as response:
            answer = await response.json(loads=json.loads)
            return response.status, answer if isinstance(answer, dict) else {}


class OpaConnection:
    """A lazily opened client. Every failure is an ``EngineError``."""

    def __init__(self, address: Address, token: str | None) -> None:
        self._client = _Client(address, token)
        self._opened = False

    async def _open(self) -> _Client:
        if not self._opened:
            await self._client._init_session()
            self._opened = True
        return self._client

    async def ask(self, path: str, input_json: bytes, timeout_s: float) -> Any:
        """The result of a rule for an input (a JSON object); None when the rule is undefined.

        Raises ``EngineTimeout``, ``EvaluationFailed``, or ``EngineUnavailable``.
        """
        client = await self._open()
        try:
            status, answer = await client.evaluate(path, b'{"input":' + input_json + b"}", timeout_s)
        except TimeoutError:
            raise EngineTimeout(f"no answer within {int(timeout_s * 1000)} ms") from None
        except (aiohttp.ClientError, OSError, ValueError) as fault:
            raise EngineUnavailable(f"OPA cannot be asked: {_short(fault)}") from fault
        if status == 200:
            return answer.get("result")
        if status == 500:
            raise EvaluationFailed(_words(answer))
        raise EngineUnavailable(f"OPA answered with status {status}: {answer.get('message', 'no message')}")

    async def policy_ids(self) -> frozenset[str]:
        """The ids of every policy that OPA holds."""
        client = await self._open()
        try:
            return frozenset(await client.get_policies_list())
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as fault:
            raise EngineUnavailable(f"OPA does not list its policies: {_short(fault)}") from fault

    async def put_policy(self, policy_id: str, text: str) -> list[Finding]:
        """Load one module as it stands; OPA's refusals as findings whose place is ``id:line``."""
        client = await self._open()
        try:
            await client.update_policy_from_string(text, policy_id, rego_compat=False)
        except RegoParseError as fault:
            return _refusals(policy_id, fault)
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as fault:
            raise EngineUnavailable(f"OPA takes no policy: {_short(fault)}") from fault
        return []

    async def put_data(self, path: str, values: Mapping[str, Any]) -> None:
        """Replace one document of the data tree."""
        client = await self._open()
        try:
            await client.update_or_create_data(dict(values), path)
        except (RegoParseError, aiohttp.ClientError, OSError, ValueError, TimeoutError) as fault:
            raise EngineUnavailable(f"OPA takes no data: {_short(fault)}") from fault

    async def delete_policy(self, policy_id: str) -> None:
        """Remove one module."""
        client = await self._open()
        try:
            await client.delete_policy(policy_id)
        except Exception as fault:
            raise EngineUnavailable(f"OPA does not remove {policy_id}: {fault}") from fault

    async def close(self) -> None:
        """Close the connections. Safe to call twice."""
        await self._client.close_connection()
        self._opened = False


def _short(fault: Exception) -> str:
    return str(fault) or type(fault).__name__


def _words(answer: Mapping[str, Any]) -> str:
    """What OPA says about a failed evaluation, in one line."""
    errors = answer.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else answer
    return str(first.get("message", "the evaluation failed"))[:300]


def _refusals(policy_id: str, fault: RegoParseError) -> list[Finding]:
    errors = getattr(fault, "errors", None)
    if not isinstance(errors, list) or not errors:
        return [Finding(policy_id, str(getattr(fault, "message", fault)))]
    return [
        Finding(f"{policy_id}:{(error.get('location') or {}).get('row', 1)}", str(error.get("message", "refused")))
        for error in errors
    ]
