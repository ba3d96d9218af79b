"""The settings of how a revision goes live: its gates, its steps, and who takes them.

Rules: those of ``policyd.settings``, of which this is a section.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

GateName = Literal["check", "tests", "impact"]
StepName = Literal["canary"]
_Time = Annotated[int, Field(ge=0, le=2_592_000_000)]


class ActivationSettings(BaseModel):
    """How a revision that a source has goes live."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["automatic", "manual"] = Field(
        "automatic",
        description="whether a revision that has passed its gates goes live by itself, or waits for a person "
        "(`policyd policy activate`); the first one of a log goes live by itself",
    )
    gates: tuple[GateName, ...] | None = Field(
        None,
        description="the gates that revisions pass before they serve; none named: `check` and `tests` for a repository "
        "or bundle, and no gate for a directory, which is for development; `impact`, which decides logged decisions "
        "again, takes its time and has to be named",
    )
    gates_deadline_ms: Annotated[int, Field(ge=1_000, le=3_600_000)] = Field(
        120_000, description="longest time for check and tests of one revision; then it is refused"
    )
    impact_since_ms: Annotated[int, Field(ge=60_000, le=31_536_000_000)] = Field(
        604_800_000, description="how far back the gate `impact` decides logged decisions again"
    )
    impact_deadline_ms: Annotated[int, Field(ge=1_000, le=3_600_000)] = Field(
        600_000, description="longest time for `impact` of one revision; then it is refused"
    )
    max_flips_ppm: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        10_000,
        description="largest share of decisions, in parts per million, that may come out with another outcome or "
        "another first choice; what a hard rule refused and would be placed needs an approval, whatever the share",
    )
    max_not_replayed_ppm: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        100_000, description="largest share of decisions, in parts per million, that may be such as cannot be replayed"
    )
    converge_ms: Annotated[int, Field(ge=50, le=60_000)] = Field(
        250, description="how often a process looks which revisions are to be live"
    )
    steps: tuple[StepName, ...] = Field(
        (),
        max_length=1,
        description="what a revision goes through between its gates and going live: `canary`, where a share of the "
        "tenants is decided on it; none named: it goes live at once",
    )
    canary_ppm: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        50_000, description="share of the tenants that a revision in canary decides for, by a hash of tenant and digest"
    )
    canary_min_ms: _Time = Field(
        600_000, description="least time in canary; then a revision goes live by itself, where `mode` is `automatic`"
    )
    canary_failures_max: Annotated[int, Field(ge=0, le=1_000)] = Field(
        2,
        description="decisions that may fail on a revision in canary, in one process; with one more it is taken back. "
        "Each of them is made anew on what is live",
    )

    @field_validator("gates")
    @classmethod
    def _each_once(cls, value: tuple[GateName, ...] | None) -> tuple[GateName, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("names a gate twice")
        return value
