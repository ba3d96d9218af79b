"""The description of the webhook of git servers, beside ``policyd.api.openapi``.

Rules: as there: it describes and never validates.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from policyd.api.openapi import content_of, parameter, problems_of, route


class PushDocument(BaseModel):
    """What a git server says of a push; of all its fields only this one counts."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    ref: str | None = Field(None, description="the branch or tag, such as `refs/heads/main`; none: any")


class LookDocument(BaseModel):
    """What a push leads to."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    looking: bool = Field(description="whether the sources are looked at; not when the push is of what nobody follows")


PUSHES_SHOWN: Final[tuple[type[BaseModel], ...]] = (LookDocument, PushDocument)
_HEADERS: Final = {
    "X-Hub-Signature-256": "GitHub: `sha256=` and the HMAC-SHA-256 of the body",
    "webhook-id": "GitLab that signs: the name of the delivery",
    "webhook-timestamp": "GitLab that signs: its time, in seconds",
    "webhook-signature": "GitLab that signs: `v1,` and the HMAC-SHA-256 of `id.timestamp.body`",
    "X-Gitlab-Token": "GitLab that does not sign: the secret",
    "X-Gitlab-Event-UUID": "GitLab that does not sign: the name of the delivery",
}
PUSH: Final[dict[str, Any]] = route(
    "the sources are looked at, or the push is of what nobody follows",
    content_of("LookDocument", {"looking": True}),
    problems_of(400, 404, 409, 413, 415),
    requestBody={"required": True, "content": content_of("PushDocument", {"ref": "refs/heads/main"})},
    parameters=[parameter(name, said, {"type": "string"}, "header") for name, said in _HEADERS.items()],
)
