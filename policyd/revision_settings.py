"""The settings of who may change revisions, and what that takes.

Rules: those of ``policyd.settings``, of which this is a section.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RevisionSettings(BaseModel):
    """Who signs and approves what goes live."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    allowed_signers_file: Path | None = Field(
        None,
        description="file with the keys of those who may sign commits and approvals, in the format of OpenSSH; "
        "without it nobody can approve, and nothing asks for an approval",
    )
    require_signed: bool = Field(False, description="refuse a revision whose commit no allowed signer has signed")
    approval_max_ms: Annotated[int, Field(ge=60_000, le=31_536_000_000)] = Field(
        604_800_000, description="longest time that an approval may be given for"
    )

    @model_validator(mode="after")
    def _somebody_may_sign(self) -> RevisionSettings:
        if self.require_signed and self.allowed_signers_file is None:
            raise ValueError("require_signed needs allowed_signers_file: without it nobody may sign")
        return self
