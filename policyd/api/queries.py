"""Query strings and pages: each parameter once, known and readable; lists continue by opaque cursors.

Rules: an unknown parameter is refused with the nearest known name, since a misspelt filter would otherwise find more
than was asked for; a cursor continues only the list and revision that it came from.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qsl

import orjson
from fastapi import Request

from policyd.documents import nearest
from policyd.errors import Finding, RequestError

PARAMETERS_MAX: Final = 64
LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1_000
CURSOR_MAX_CHARS: Final = 256


def parameters(request: Request, known: Sequence[str]) -> dict[str, str]:
    """The parameters of a query. Raises ``RequestError`` for one that is unknown, doubled, empty or not UTF-8."""
    found: dict[str, str] = {}
    for name, value in _pairs(request):
        if name not in known:
            raise _fault(name, f"is no parameter{nearest(name[:100], known)}")
        if name in found:
            raise _fault(name, "stands twice")
        if not value:
            raise _fault(name, "has no value")
        found[name] = value
    return found


def _pairs(request: Request) -> list[tuple[str, str]]:
    try:
        # Semicolons are no separators here, and bytes that are no UTF-8 are no text.
        text = request.scope["query_string"].decode("ascii")
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=PARAMETERS_MAX)
    except UnicodeDecodeError:
        raise RequestError("the query is not UTF-8 text, percent-encoded") from None
    except ValueError:
        raise RequestError(f"the query has more than {PARAMETERS_MAX} parameters") from None


def _fault(name: str, message: str) -> RequestError:
    return RequestError(f"`{name[:100]}` {message}", findings=[Finding(name[:100], message)])


def limit_of(found: dict[str, str], default: int = LIMIT_DEFAULT) -> int:
    """The page size that a query asks for; takes it out of the parameters."""
    written = found.pop("limit", None)
    if written is None:
        return default
    if not (written.isascii() and written.isdigit() and len(written) <= 4 and 1 <= int(written) <= LIMIT_MAX):
        raise _fault("limit", f"is a whole number from 1 to {LIMIT_MAX}")
    return int(written)


def cursor_at(bound_to: str, position: int) -> str:
    """A cursor that continues the list ``bound_to`` at a position."""
    return urlsafe_b64encode(orjson.dumps([bound_to, position])).rstrip(b"=").decode()


def position_of(cursor: str | None, bound_to: str) -> int:
    """Where a cursor continues; 0 without one. Raises ``RequestError`` for a cursor of another list or revision."""
    if cursor is None:
        return 0
    try:
        if len(cursor) > CURSOR_MAX_CHARS:
            raise ValueError
        origin, position = orjson.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(origin, str) or type(position) is not int or position < 0:
            raise ValueError
    except (ValueError, TypeError):
        raise _fault("cursor", "is none that this list gave") from None
    if origin != bound_to:
        raise _fault("cursor", "belongs to another list or an earlier revision; start again without it")
    return position
