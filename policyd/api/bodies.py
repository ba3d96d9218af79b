"""From the bytes of a request to a checked value, once, with every limit on the way.

Rules: a body is JSON in UTF-8 and is called so; it is read no further than the limit; a key stands once, since two
readers could take two different values; null is refused, since "no value" and "not given" are different things and the
one would pass for the other; unknown fields are refused with the nearest known name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from policyd.documents import Spot, dotted, model_findings
from policyd.errors import Finding, RequestError, TooLarge, WrongMediaType

Body = TypeVar("Body", bound=BaseModel)

FINDINGS_MAX: Final = 50
WORDS_MAX_CHARS: Final = 400
_UTF8: Final = ("", "utf-8", "utf8")


async def read_json(request: Request, model: type[Body], max_bytes: int, setting: str = "api.body_max_bytes") -> Body:
    """The body as that model. Raises ``WrongMediaType``, ``TooLarge`` and ``RequestError`` with a finding a fault."""
    return parse_json(await read_bytes(request, max_bytes, setting), model)


def _check_media_type(written: str) -> None:
    if written == "application/json":
        return
    media_type, _, rest = written.lower().partition(";")
    parameter = rest.strip().partition("=")
    charset = parameter[2].strip('" ') if parameter[0].strip() == "charset" else "" if not rest.strip() else "?"
    if media_type.strip() != "application/json" or charset not in _UTF8:
        shown = f"the content type {written[:100]!r} is not application/json" if written else "there is no content type"
        raise WrongMediaType(shown)


async def read_bytes(request: Request, max_bytes: int, setting: str = "api.body_max_bytes") -> bytes:
    """The body as it came, which is called JSON; ``setting`` names the limit. ``WrongMediaType`` and ``TooLarge``."""
    return await receive_bytes(request.scope["headers"], request.receive, max_bytes, setting)


async def receive_bytes(
    headers: Sequence[tuple[bytes, bytes]], receive: Receive, max_bytes: int, setting: str = "api.body_max_bytes"
) -> bytes:
    """As ``read_bytes``, for who has no request object. Raises ``ClientDisconnect`` when the caller goes away."""
    first: dict[bytes, bytes] = {}
    for name, value in headers:
        first.setdefault(name, value)
    _check_media_type(first.get(b"content-type", b"").decode("latin-1"))
    if first.get(b"content-encoding", b"identity") != b"identity":
        raise WrongMediaType("the body is compressed, which is not read here")
    announced = first.get(b"content-length", b"0")
    if len(announced) > 18 or int(announced) > max_bytes:
        raise _too_long(max_bytes, setting)
    parts: list[bytes] = []
    length = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        length += len(part)
        if length > max_bytes:
            raise _too_long(max_bytes, setting)
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)


def _too_long(max_bytes: int, setting: str) -> TooLarge:
    return TooLarge(f"the body is longer than {max_bytes} bytes", remedy=f"send less at once; the limit is {setting}")


@dataclass(frozen=True)
class _Field(Spot):
    """A place in a request: a path of fields where a file has lines."""

    value: Any = None
    path: str = ""

    def at(self, location: Sequence[str | int]) -> Spot:
        """The field at a location."""
        return _Field("", 0, path=dotted(tuple(location), self.value))

    def __str__(self) -> str:
        return self.path


class _Doubtful(Exception):
    """An object that two readers could read differently."""


def _plain_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs) or None in found.values():
        raise _Doubtful
    return found


_plain: Final = json.JSONDecoder(object_pairs_hook=_plain_object, parse_int=str, parse_float=str)


def parse_json(content: bytes, model: type[Body]) -> Body:
    """The value of a JSON text. Raises ``RequestError`` with a finding for each fault."""
    try:
        value = model.model_validate_json(content)
    except ValidationError as error:
        raise _refusal(content, model, error) from None
    # The model has bounded depth and size by now, so the standard reader can look for what the model does not tell.
    if _surely_plain(content):
        return value
    try:
        _plain.decode(content.decode())
    except _Doubtful:
        raise _refused(_doubts(content)) from None
    return value


_any: Final[TypeAdapter[Any]] = TypeAdapter(Any)


def json_text(content: bytes) -> str:
    """The text of a JSON value of bounded depth, for a reader of one's own. Raises ``RequestError``."""
    try:
        _any.validate_json(content)
    except ValidationError as error:
        raise _no_json(error.errors(include_url=False, include_context=False)[0]["msg"]) from None
    return content.decode()


def json_value(content: bytes) -> Any:
    """A JSON value whose fields somebody else names. Raises ``RequestError``, for a key that stands twice too."""
    try:
        return _single.decode(json_text(content))
    except ValueError:
        # The standard reader bounds the digits of a number, and the one before it may not.
        raise _no_json("a number has too many digits") from None
    except _Doubtful:
        twice = [finding for finding in _doubts(content) if finding.message.endswith(_TWICE)]
        raise _refused(twice) from None


_TWICE: Final = "stands twice"


def _single_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Doubtful
    return found


def _no_constant(name: str) -> Any:
    raise _no_json(f"{name} is no number")


_single: Final = json.JSONDecoder(object_pairs_hook=_single_object, parse_constant=_no_constant)


def _no_json(words: str) -> RequestError:
    return RequestError(f"the body is not JSON: {words.removeprefix('Invalid JSON: ')}")


def _surely_plain(content: bytes) -> bool:
    """A quick yes: no null is written, and there are as many keys as colons, so that none can stand twice."""
    if b"null" in content:
        return False
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and _keys(value) == content.count(b":")


def _keys(value: dict[str, Any]) -> int:
    """Keys of an object and of the objects in it; those in lists are left out, which only makes the answer a no."""
    return len(value) + sum(_keys(child) for child in value.values() if type(child) is dict)


def _refusal(content: bytes, model: type[BaseModel], error: ValidationError) -> RequestError:
    faults = error.errors(include_url=False, include_context=False)
    if faults[0]["type"] == "json_invalid":
        return _no_json(faults[0]["msg"])
    value = json.loads(content, parse_int=str, parse_float=str)
    findings = model_findings(error, model, _Field("", 0, value=value), value, FINDINGS_MAX)
    return _refused([*findings, *_doubts(content)])


def _refused(findings: list[Finding]) -> RequestError:
    shown = [Finding(_short(finding.where), _short(finding.message)) for finding in findings[:FINDINGS_MAX]]
    return RequestError(f"the request cannot be read: {shown[0].message}", findings=shown)


def _short(text: str) -> str:
    return text if len(text) <= WORDS_MAX_CHARS else f"{text[:WORDS_MAX_CHARS]}…"


class _Object(list[tuple[str, Any]]):
    """The pairs of a JSON object, doubles included."""


def _doubts(content: bytes) -> list[Finding]:
    """Every key that stands twice and every null, by its path."""
    findings: list[Finding] = []
    pending: list[tuple[str, Any]] = [
        ("", json.loads(content, object_pairs_hook=_Object, parse_int=str, parse_float=str))
    ]
    while pending and len(findings) < FINDINGS_MAX:
        path, value = pending.pop()
        if isinstance(value, _Object):
            seen: set[str] = set()
            for key, child in value:
                at = f"{path}.{key}" if path else key
                if key in seen:
                    findings.append(Finding(at, f"`{at}` {_TWICE}"))
                elif child is None:
                    findings.append(Finding(at, f"`{at}` is null; leave it out when there is nothing to say"))
                seen.add(key)
                pending.append((at, child))
        elif isinstance(value, list):
            pending.extend((f"{path}[{place}]", child) for place, child in enumerate(value))
    return findings
