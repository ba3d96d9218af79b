"""Revisions as documents: for the API, the command line and the doctor.

Rules: what is live here is said beside what is to be live, so that a process which lags behind shows; nothing here
decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policyd.core.snapshot import Snapshot
from policyd.revisions.states import KINDS, Revision
from policyd.services.clock import rfc3339
from policyd.services.freshness import FLEET, POLICIES, Freshness


def revision_json(revision: Revision) -> dict[str, Any]:
    """A revision: where it stands, since when, and what its gates said."""
    return {
        "kind": revision.kind,
        "digest": revision.digest,
        "commit": revision.commit,
        "state": revision.state,
        "paused": revision.paused,
        "said": revision.said,
        "gates": [dict(gate) for gate in revision.gates],
        "seen": rfc3339(revision.seen_us),
        "since": rfc3339(revision.since_us),
        "last_live": rfc3339(revision.served_us) if revision.served_us else None,
    }


def active_json(
    snapshot: Snapshot, standing: Sequence[Revision], freshness: Freshness, fault: str | None
) -> dict[str, Any]:
    """What is live here and its health, and every revision that does not serve although it might, with the reason."""
    served = {"policy": (snapshot.policies.commit, snapshot.policies.digest)}
    served["fleet"] = (snapshot.fleet.commit, snapshot.fleet.digest)
    document: dict[str, Any] = {}
    for kind in KINDS:
        commit, digest = served[kind]
        state = freshness.states.get(POLICIES if kind == "policy" else FLEET)
        live = next((each for each in standing if each.kind == kind and each.state == "live"), None)
        document[kind] = {
            "commit": commit,
            "digest": digest,
            "to_be_live": digest if live is None or state is None else live.digest,
            "since": None if live is None else rfc3339(live.since_us),
            "source": None if state is None else state.place,
            "stale_since": None if state is None else state.stale_since,
            "fault": None if state is None else state.fault,
        }
    waiting = [each for each in standing if each.state not in ("live", "retired")]
    newest = [each for each in waiting if each.state != "refused" or _newest(each, standing)]
    return {**document, "candidates": [revision_json(each) for each in newest], "fault": fault}


def _newest(revision: Revision, standing: Sequence[Revision]) -> bool:
    """Whether nothing of its kind was seen later."""
    return all(each.seen_us <= revision.seen_us for each in standing if each.kind == revision.kind)
