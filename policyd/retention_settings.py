"""The settings of retention: how long entries of which kind keep their bodies.

Rules: those of ``policyd.settings``, of which this is a section. What is not named is kept; nothing is removed before
six months, whatever the settings say.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

KEEP_MIN_DAYS: Final = 184
"""As in ``audit.retention``, which settings do not import; a test holds both to each other."""
REMOVED_MAX: Final = 1_000
"""The same."""
RetentionClass = Literal["decision", "error", "refusal", "settlement", "void", "extension"]
"""The kinds of entries that no other entry stands on."""
KeepDays = Annotated[int, Field(ge=KEEP_MIN_DAYS, le=36_500)]


class RetentionSettings(BaseModel):
    """How long entries keep their bodies; see docs/how-to/retention.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep_days: dict[RetentionClass, KeepDays] = Field(
        {},
        description="for how many days an entry of this kind keeps its body, at least 184: `decision`, `error`, "
        "`refusal`, `settlement`, `void`, `extension`; a kind that is not named is kept",
    )
    tenants: dict[str, dict[RetentionClass, KeepDays]] = Field(
        {}, description="the same for the entries of one tenant, in the place of `keep_days`"
    )
    interval_ms: Annotated[int, Field(ge=60_000, le=31_536_000_000)] | None = Field(
        None, description="how often the server removes what is older; none: only `policyd audit retain` does"
    )
    batch_max_entries: Annotated[int, Field(ge=1, le=REMOVED_MAX)] = Field(
        256, description="bodies that go in one transaction of the writer, under one warrant"
    )
