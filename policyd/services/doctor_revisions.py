"""The doctor's word on revisions: what of the followed sources does not serve, and who has to do what about it.

Rules: those of ``policyd.services.doctor``. It reads where revisions stand and changes nothing; of each kind it tells
what is newer than what is live, and nothing of what is over. Nothing that is live is a failure; a refusal is a warning,
since the last good revision serves; a revision that only waits for its person is a note.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from audit.errors import AuditFailure
from policyd.revisions.states import ON_ITS_WAY, Revision
from policyd.services.data_directory import DataDirectory
from policyd.services.doctor import Check, Health
from policyd.services.revision_rows import read_revisions
from policyd.settings import Settings

PART: Final = "revisions"
_MEND: Final = "mend what is named and commit again; `policyd policy log` has every finding"
_REMEDIES: Final = {
    "signature": "have the commit signed by one of revisions.allowed_signers_file",
    "impact": "see what flips: `policyd policy impact`; change less at once, or raise activation.max_flips_ppm",
    "approval": "have it approved: `policyd policy approve`",
}


async def check_revisions(settings: Settings, directory: DataDirectory) -> list[Check]:
    """Where the newest revisions of the followed sources stand; nothing where no source is followed."""
    named = {"policy": settings.sources.policies, "fleet": settings.sources.fleet}
    kinds = [kind for kind, source in named.items() if source is not None]
    if not kinds or not directory.store.exists():
        return []
    try:
        standing = await asyncio.to_thread(_read, directory)
    except (AuditFailure, SQLAlchemyError) as error:
        said = f"where revisions stand cannot be read: {type(error).__name__}"
        return [Check(PART, Health.WARN, said, "see the checks of the log")]
    return [told(standing, kind) for kind in kinds]


def told(standing: Sequence[Revision], kind: str) -> Check:
    """The newest of a kind that does not serve, or what does."""
    mine = [each for each in standing if each.kind == kind]
    live = next((each for each in mine if each.state == "live"), None)
    newer = [each for each in mine if live is None or each.since_us > live.since_us]
    open_ones = [each for each in newer if each.state not in ("live", "retired")]
    newest = max(open_ones, key=lambda each: each.since_us, default=None)
    if live is None:
        said = f"no {kind} is live" if newest is None else f"no {kind} is live, and {_said(newest)}"
        return Check(PART, Health.FAIL, said, _MEND if newest is None else _remedy(newest))
    if newest is None:
        return Check(PART, Health.OK, f"{kind} {live.name} is live")
    note = newest.state == "candidate" or newest.state in ON_ITS_WAY
    waits = newest.state == "waiting" and _failed(newest) is None
    return Check(PART, Health.OK if note or waits else Health.WARN, _said(newest), _remedy(newest))


def _read(directory: DataDirectory) -> list[Revision]:
    engine = directory.store.open_reader()
    try:
        with engine.connect() as connection:
            return read_revisions(connection)
    finally:
        engine.dispose()


def _failed(revision: Revision) -> str | None:
    """The gate that it has not passed."""
    return next((str(gate["gate"]) for gate in revision.gates if not gate["passed"]), None)


def _said(revision: Revision) -> str:
    why = f": {revision.said}" if revision.said else ""
    return f"{revision.kind} {revision.name} is {revision.state}{why}"


def _remedy(revision: Revision) -> str:
    gate = _failed(revision)
    if gate is not None:
        return _REMEDIES.get(gate, _MEND)
    if revision.state == "waiting":
        return f"activate it: `policyd policy activate {revision.name}`"
    if revision.verb == "rollback":
        return f"it was taken back; `policyd policy activate {revision.name}` brings it again"
    return _MEND if revision.state == "refused" else ""
