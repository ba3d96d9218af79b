"""A revision on trial: which tenants are decided on it, and what of their decisions speaks against it.

Rules: who is in the share follows from the tenant's name and the digest of the revision, so that every process of every
replica says the same, before and after a restart; a larger share has all tenants of a smaller one; a tenant that nobody
has settled is in no share. A decision that a candidate spoils is recorded as an error under the candidate's commits,
and made anew, as a decision of its own, on what is live; after more than ``failures_max`` of them nobody is decided on
the candidate any more. It refuses to mix: a decision is made on one snapshot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from policyd.core.principal import Principal
from policyd.core.sheet import Sheet
from policyd.core.snapshot import Snapshot
from policyd.core.workload import WorkloadRequest
from policyd.errors import EngineError, PolicydError, TimedOut
from policyd.services.frames import Frames

PPM: Final = 1_000_000


def in_share(tenant: str, digest: str, share_ppm: int) -> bool:
    """Whether a tenant is in the share of a revision."""
    number = int.from_bytes(hashlib.sha256(f"{digest}\n{tenant}".encode()).digest()[:8], "big")
    return number % PPM < share_ppm


@dataclass
class OnTrial:
    """A candidate's snapshot with its own frames. ``digest`` is that of the revision whose share it is."""

    snapshot: Snapshot
    digest: str
    share_ppm: int
    frames: Frames
    failures: int = 0

    def takes(self, request: WorkloadRequest, principal: Principal) -> bool:
        """Whether the request is of a tenant in the share."""
        tenant = request.tenant
        if tenant is None:
            own = principal.tenants if principal.tenants is not None else frozenset(self.snapshot.fleet.tenants)
            if len(own) != 1:
                return False
            (tenant,) = own
        return in_share(tenant, self.digest, self.share_ppm)


def _nobody(trial: OnTrial, said: str) -> None:
    return


@dataclass
class Trials:
    """What is on trial in this process. ``failed`` is told once of a candidate that spoils decisions."""

    failures_max: int = 2
    now: OnTrial | None = None
    failed: Callable[[OnTrial, str], None] = field(default=_nobody)

    def chosen(self, request: WorkloadRequest, principal: Principal) -> OnTrial | None:
        """The trial that a request belongs to; None at once when there is none."""
        trial = self.now
        return trial if trial is not None and trial.takes(request, principal) else None

    def blamed(self, trial: OnTrial, error: PolicydError) -> bool:
        """Whether the candidate has spoilt a decision, which counts; an error of the request or the log does not."""
        if not isinstance(error, EngineError | TimedOut) and type(error) is not PolicydError:
            return False
        trial.failures += 1
        if trial.failures > self.failures_max and self.now is trial:
            self.now = None
            self.failed(trial, f"{trial.failures} decisions failed on it, the last one with {error.code}")
        return True


def require_whole(sheet: Sheet) -> None:
    """Raise ``EngineError`` for a sheet with an evaluation that failed, which is the candidate's fault here."""
    if sheet.failed:
        raise EngineError("an evaluation failed on the revision in canary")
