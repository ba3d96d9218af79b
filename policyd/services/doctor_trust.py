"""The doctor's word on who may sign and approve: the file of allowed signers, and whether it does what is asked of it.

Rules: those of ``policyd.services.doctor``. A file that cannot be used fails, since then nothing that needs a signature
goes live; keys that run out and too few persons are told before they are in the way.
"""

from __future__ import annotations

from typing import Final

from policyd.errors import PolicydError
from policyd.revisions.allowed_signers import AllowedSigners, read_allowed_signers
from policyd.services.clock import Now, day, now_us
from policyd.services.doctor import Check, Health, failed
from policyd.settings import Settings

PART: Final = "signers"
SOON_US: Final = 30 * 86_400_000_000
PERSONS_MIN: Final = 3
"""Whoever signs a protected change, and two others who approve it."""


def check_signers(settings: Settings, now: Now = now_us) -> list[Check]:
    """Whether commits and approvals can be told to be anybody's."""
    followed = [source for source in (settings.sources.policies, settings.sources.fleet) if source is not None]
    path = settings.revisions.allowed_signers_file
    if path is None:
        if not followed:
            return [Check(PART, Health.OK, "none are named, and no source is followed")]
        remedy = "name the file of their keys in revisions.allowed_signers_file"
        said = "none are named: whoever can push to a source is believed, and no change asks for an approval"
        return [Check(PART, Health.WARN, said, remedy)]
    try:
        signers = read_allowed_signers(path)
    except PolicydError as error:
        return [failed(PART, error)]
    persons = sorted(set(signers.persons.values()))
    checks = [Check(PART, Health.OK, f"{len(signers.signers)} keys of {len(persons)} persons in {path}")]
    checks += _expired(signers, now())
    if len(persons) < PERSONS_MIN:
        remedy = f"list {PERSONS_MIN} persons: whoever signs a protected change, and two who approve it"
        checks.append(Check(PART, Health.WARN, f"{len(persons)} persons may sign", remedy))
    return checks


def _expired(signers: AllowedSigners, time_us: int) -> list[Check]:
    found = []
    for signer in signers.signers:
        if signer.valid_before_us is None or signer.valid_before_us > time_us + SOON_US:
            continue
        verb = "has expired on" if signer.valid_before_us < time_us else "expires on"
        said = f"a key of {signers.person(signer.principals[0])} {verb} {day(signer.valid_before_us)}"
        found.append(Check(PART, Health.WARN, said, f"renew or remove line {signer.line}"))
    return found
