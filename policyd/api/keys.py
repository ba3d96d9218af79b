"""The ``Idempotency-Key`` of a request: which of its repetitions are one.

Rules: a key stands once and is 1 to 128 printable ASCII characters without blanks; anything else is refused, since a
key that was cut or merged would be somebody else's.
"""

from __future__ import annotations

import re
from typing import Final

from fastapi import Request

from policyd.errors import Finding, RequestError

HEADER: Final = "Idempotency-Key"
_KEY: Final = re.compile(r"[!-~]{1,128}")


def key_of(request: Request) -> str | None:
    """The key of a request, None when it has none. Raises ``RequestError``."""
    written = request.headers.getlist(HEADER)
    if not written:
        return None
    if len(written) > 1 or not _KEY.fullmatch(written[0]):
        message = "stands once and has 1 to 128 printable ASCII characters without blanks"
        raise RequestError(f"the header {HEADER} {message}", findings=[Finding(HEADER, message)])
    return written[0]
