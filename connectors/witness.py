"""The way to a witness over HTTP: one POST, whose answer is given back as it came.

Rules: an answer has a limit and a deadline; redirects are not followed; nothing is retried, because the next checkpoint
asks again.
"""

from __future__ import annotations

import time
from typing import Final

import httpx

ANSWER_MAX_BYTES: Final = 64 * 1024
TIMEOUT_S: Final = 10.0


class WitnessUnreachable(Exception):
    """No answer, or none that has an end. The text is a sentence for a person."""


def post_checkpoint(prefix: str, body: bytes, *, timeout_s: float = TIMEOUT_S) -> tuple[int, str, bytes]:
    """``POST <prefix>/add-checkpoint``: status, media type and body. Raises ``WitnessUnreachable``."""
    ends = time.monotonic() + timeout_s
    address = f"{prefix.rstrip('/')}/add-checkpoint"
    try:
        with (
            httpx.Client(timeout=timeout_s, trust_env=False) as client,
            client.stream("POST", address, content=body, headers={"Content-Type": "text/plain"}) as answer,
        ):
            found = bytearray()
            for part in answer.iter_bytes():
                found += part
                if time.monotonic() > ends:
                    raise WitnessUnreachable(f"{address} has not ended its answer in {timeout_s} s")
                if len(found) > ANSWER_MAX_BYTES:
                    raise WitnessUnreachable(f"{address} answered with more than {ANSWER_MAX_BYTES} bytes")
            media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            return answer.status_code, media_type, bytes(found)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise WitnessUnreachable(f"{address} does not answer: {error}") from error
