"""How long persons may lift rules for, and whether one alone may in an emergency.

Rules: as in ``policyd.settings``, which has this as ``waivers``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class WaiverSettings(BaseModel):
    """Waivers, approvals and breaking the glass."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_duration_ms: Annotated[int, Field(ge=60_000, le=31_622_400_000)] = Field(
        2_592_000_000, description="longest time from the request of a waiver or an approval to its end"
    )
    break_glass_max_ms: Annotated[int, Field(ge=0, le=86_400_000)] = Field(
        0,
        description="longest time for which one person alone may lift `soft` rules in an emergency "
        "(`policyd waiver break-glass`); 0: nobody may",
    )
