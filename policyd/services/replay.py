"""From a record back to the decision: the sheet and the facts that it names, decided again.

A replay has no clock and asks no engine: it is ``policyd.core.decide`` on recorded inputs, so it gives the recorded
outcome and order, and everything that the short record left out (components, costs, refused pools).

Rules: a replay that comes to another outcome, order or cost than its record is an error, never an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from audit.query import DECISION_KINDS, Record
from policyd.core.decide import decide
from policyd.core.facts import facts_from_json
from policyd.core.sheet import Sheet, sheet_from_content
from policyd.core.waivers import lift
from policyd.core.workload import LIMIT_MAX, DecisionOptions
from policyd.errors import AuditError, NotFound
from policyd.services.answers import (
    ENFORCE,
    LISTED_MAX,
    Made,
    Revisions,
    answer_json,
    waivers_from_record,
    workload_from_record,
)
from policyd.services.quotas import refusals_of
from policyd.services.reservations import admitted


class Blobs(Protocol):
    """The reading side of the log, as far as a replay needs it."""

    async def by_id(self, entry_id: str) -> Record: ...

    async def blob(self, digest: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Replayed:
    """A recorded decision, made again: its record, and the parts that ``policyd.services.answers`` writes from."""

    record: Record
    body: dict[str, Any]
    made: Made | None

    def to_json(self) -> dict[str, Any]:
        """The answer as it was given; for an entry that brought no decision, its body."""
        position = {"log": self.record.origin, "index": self.record.index, "leaf_hash": self.record.leaf_hash.hex()}
        if self.made is None:
            return {**{k: v for k, v in self.body.items() if k not in ("salt", "v")}, "audit": position}
        return answer_json(self.made, position)


async def replay(log: Blobs, entry_id: str) -> Replayed:
    """The decision of that id. Raises ``NotFound``, and ``AuditError`` when record, sheet or facts disagree."""
    record = await log.by_id(entry_id)
    if record.kind not in DECISION_KINDS:
        raise NotFound(f"{entry_id} is a {record.kind}, not a decision")
    body = record.document()
    if record.kind != "decision":
        return Replayed(record, body, None)
    as_evaluated = sheet_from_content(await log.blob(body["sheet"]))
    facts = facts_from_json(orjson.loads(await log.blob(body["facts"])), body["facts"])
    workload = workload_from_record(body["workload"])
    recorded = waivers_from_record(body)
    lifted = lift(as_evaluated, workload, recorded, record.time_us)
    if lifted.waivers != recorded:
        raise AuditError(f"decision {body['id']} names waivers that lift nothing of its sheet")
    sheet = lifted.sheet
    spilled = tuple(body.get("spilled", ()))
    made = Made(
        id=body["id"],
        time_us=record.time_us,
        valid_until_us=record.time_us + body["valid_us"],
        principal=body["principal"],
        request_id=body["request_id"],
        workload=workload,
        options=DecisionOptions(limit=body.get("limit", LIMIT_MAX)),  # it is there when it has cut the list
        sheet=sheet,
        facts=facts,
        revisions=_revisions(body, sheet),
        decision=decide(workload, sheet, facts, refusals_of(sheet, spilled)),
        mode=body.get("mode", ENFORCE),
        spilled=spilled,
        waivers=recorded,
    )
    made = admitted(made, body.get("admission"))
    _compare(body, made)
    return Replayed(record, body, made)


def _revisions(body: dict[str, Any], sheet: Sheet) -> Revisions:
    policy_commit, policy_digest = body["policy"]
    fleet_commit, fleet_digest = body["fleet"]
    engine, casbin = sheet.header["engine"], sheet.header["casbin"]
    policies_since, fleet_since = body.get("stale", (None, None))
    stale = (policies_since, fleet_since)
    return Revisions(policy_commit, policy_digest, engine, fleet_commit, fleet_digest, casbin, stale)


def sheet_revisions(sheet: Sheet) -> tuple[str, str]:
    """The digests of the policies and the fleet that a sheet was made from."""
    return sheet.header["policy"], sheet.header["fleet"]


def _compare(body: dict[str, Any], made: Made) -> None:
    """Raise ``AuditError`` unless the replay says what the record says."""
    listed = made.decision.ranked[: made.options.limit][:LISTED_MAX]
    revisions = (sheet_revisions(made.sheet), (body["policy"][1], body["fleet"][1]))
    if revisions[0] != revisions[1]:
        raise AuditError(f"decision {body['id']} names other revisions than its sheet: {revisions[1]}, {revisions[0]}")
    ranked = body.get("ranked", [])
    total = body.get("ranked_total", len(ranked))  # it is there when more are ranked than listed
    recorded = (body["sheet"], body["outcome"], body.get("denied_by"), ranked, total)
    replayed = (
        made.sheet.digest,
        made.decision.outcome,
        made.decision.denied_by,
        [[s.row.pool, s.score_x1000, s.cost_micro_usd] for s in listed],
        len(made.decision.ranked),
    )
    if recorded != replayed:
        raise AuditError(
            f"decision {body['id']} does not replay: recorded {recorded}, replayed {replayed}",
            remedy="the record, its sheet or its facts were altered, or this policyd is another version; keep the log",
        )
