"""What a git server says when somebody has pushed, proved by a secret that it shares with policyd. Pure.

| form           | proof                                                                                             |
|----------------|---------------------------------------------------------------------------------------------------|
| `github`       | `X-Hub-Signature-256`: `sha256=` and the HMAC-SHA-256 of the body                                 |
| `gitlab`       | `webhook-signature`: `v1,` and the HMAC-SHA-256 of `id.timestamp.body`, as Standard Webhooks says |
| `gitlab_token` | `X-Gitlab-Token`: the secret itself, from a GitLab that does not sign                             |

Rules: a push only says "look now": nothing that it says is taken for a fact, so that whoever has the secret can cost a
look and no more. Proofs are compared in constant time. What was taken once is not taken again; a proof with a time
counts for five minutes.
It refuses: a proof that is missing or given twice, forged, old, or replayed.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from policyd.errors import PushReplayed, RequestError, Unauthenticated

PushForm = Literal["github", "gitlab", "gitlab_token"]
TOLERANCE_S: Final = 300
"""Between the clocks of both sides, as Standard Webhooks advises."""
REMEMBERED_MAX: Final = 4_096
_PROOF: Final[Mapping[PushForm, str]] = {
    "github": "x-hub-signature-256",
    "gitlab": "webhook-signature",
    "gitlab_token": "x-gitlab-token",
}
_REMEDY: Final = (
    "give the git server the secret of sources.webhook.secret_file, and set sources.webhook.form to its kind"
)

Headers = Mapping[str, Sequence[str]]
"""Values of each header, by its name in small letters."""


@dataclass
class Pushes:
    """Judges deliveries; remembers which were taken. ``refs`` are the branches and tags that are followed."""

    form: PushForm
    key: bytes
    refs: frozenset[str]
    _taken: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def prove(self, headers: Headers, body: bytes, time_s: int) -> None:
        """Raise ``Unauthenticated`` unless who sent this has the secret, ``PushReplayed`` when it was taken before."""
        if self.form == "gitlab_token":
            self._check(self.key, _one(headers, _PROOF[self.form]).encode())
            # The token proves nothing about the body, so each delivery is known by the name that GitLab gives it.
            name = _one(headers, "x-gitlab-event-uuid").encode()
        elif self.form == "github":
            name = hmac.digest(self.key, body, hashlib.sha256)
            self._check(f"sha256={name.hex()}".encode(), _one(headers, _PROOF[self.form]).encode())
        else:
            name = self._standard(headers, body, time_s)
        if name in self._taken:
            raise PushReplayed("this delivery was taken before")
        self._taken[name] = None
        if len(self._taken) > REMEMBERED_MAX:
            self._taken.popitem(last=False)

    def _standard(self, headers: Headers, body: bytes, time_s: int) -> bytes:
        sent_id, sent_at = _one(headers, "webhook-id"), _one(headers, "webhook-timestamp")
        signed = hmac.digest(self.key, f"{sent_id}.{sent_at}.".encode() + body, hashlib.sha256)
        expected = f"v1,{b64encode(signed).decode()}".encode()
        # While a secret is changed there may be a signature under the old one and one under the new one.
        given = _one(headers, _PROOF[self.form]).encode().split(b" ")
        if not any(hmac.compare_digest(expected, one) for one in given[:8]):
            raise _forged()
        if not sent_at.isascii() or not sent_at.isdigit() or len(sent_at) > 12:
            raise _forged()
        if abs(int(sent_at) - time_s) > TOLERANCE_S:
            raise Unauthenticated(
                f"the delivery was signed more than {TOLERANCE_S} s from now", remedy="set the clocks of both sides"
            )
        return sent_id.encode()

    def _check(self, expected: bytes, given: bytes) -> None:
        if not hmac.compare_digest(expected, given):
            raise _forged()

    def concerns(self, document: Mapping[str, Any]) -> bool:
        """Whether the push is of a branch or tag that is followed; one that names none is. Raises ``RequestError``."""
        ref = document.get("ref")
        if ref is None:
            return True
        if not isinstance(ref, str):
            raise RequestError("`ref` is no text")
        return ref in self.refs


def _one(headers: Headers, name: str) -> str:
    values = headers.get(name, ())
    if len(values) != 1:
        raise Unauthenticated(f"the delivery has {len(values)} headers {name}, and one is needed", remedy=_REMEDY)
    return values[0]


def _forged() -> Unauthenticated:
    return Unauthenticated("the delivery is not from who has the secret", remedy=_REMEDY)
