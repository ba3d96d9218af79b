"""A recorded decision for a person: ranked pools, every refused pool with its reason, and what the rules cost.

``explanation_json`` is the data, ``explanation_text`` writes that data as plain text; the command line renders the same
data as tables.

Rules: pure; everything comes from the record, its sheet and its facts, never from the fleet of today; a pool that is
hidden from the tenant is not named; amounts are integers of micro-USD and become decimals only as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from policyd.core.cost import cost_micro_usd
from policyd.core.decide import ranked_json
from policyd.core.explain import forgone, price_of_policy
from policyd.core.places import compact
from policyd.core.sheet import Refused, Row
from policyd.core.violations import words
from policyd.services.answers import Made
from policyd.services.replay import Replayed

CELL_MAX_CHARS: Final = 60
FORGONE_SHOWN: Final = 3


def explanation_json(replayed: Replayed) -> dict[str, Any]:
    """Everything that a person is told, as plain JSON values."""
    answer = orjson.loads(orjson.dumps(replayed.to_json()))
    told = {
        "kind": replayed.record.kind,
        "principal": replayed.body["principal"],
        "request_id": replayed.body.get("request_id"),
    }
    made = replayed.made
    if made is None:
        return {**answer, **told}
    declared = {row.pool: row for row in made.sheet.rows} | {entry.pool: entry for entry in made.sheet.refused}
    ranked = made.decision.ranked[: made.options.limit]
    shown: list[dict[str, Any]] = orjson.loads(ranked_json(ranked, made.workload))
    cheapest = forgone(made.workload, made.sheet, made.decision)
    return {
        **answer,
        **told,
        "ranked": [
            {**pool, "kind": scored.row.kind, **scored.row.declared} for scored, pool in zip(ranked, shown, strict=True)
        ],
        "rejected": [{**_pool(declared[entry["pool"]], made), **entry} for entry in answer["rejected"]],
        "forgone": [entry.to_json() for entry in cheapest[:FORGONE_SHOWN]],
        "price_of_policy": price_of_policy(made.workload, made.sheet, made.decision),
    }


def _pool(entry: Row | Refused, made: Made) -> dict[str, Any]:
    """What is told of a refused pool beside its violations; the cost is None when it has no price for the workload."""
    cost = None if entry.pricing is None else cost_micro_usd(entry.pricing, made.workload)
    return {"kind": entry.kind, **entry.declared, "micro_usd": cost}


def explanation_text(explained: Mapping[str, Any]) -> str:
    """The explanation as plain text, for a terminal or a mail."""
    if explained["kind"] != "decision":
        return _error_text(explained)
    lines = _head(explained)
    lines += ["", *_ranked_lines(explained)]
    lines += _waiver_lines(explained)
    lines += ["", *_rejected_lines(explained)]
    lines += ["", *_cost_lines(explained)]
    lines += ["", *_evidence_lines(explained)]
    return "\n".join(lines) + "\n"


def _head(explained: Mapping[str, Any]) -> list[str]:
    workload = explained["workload"]
    outcome = explained["outcome"]
    why = f" (denied by {explained['denied_by']})" if "denied_by" in explained else ""
    data = workload["data"]
    return [
        f"Decision {explained['id']}: {outcome}{why}",
        f"{explained['time']}, valid until {explained['valid_until']}, asked by {explained['principal']}",
        "",
        f"  workload   {workload['tenant']}/{workload['project']} in {workload['environment']}, "
        f"{workload['model']} {workload['model_version']}, class {workload['sla_class']}, {workload['scope']}",
        f"  data       {data['classification']}"
        + (f", {', '.join(data['categories'])}" if data["categories"] else "")
        + (f", from {', '.join(data['sources'])}" if data["sources"] else ""),
        f"  may be in  {_places(data['residency'])}",
    ]


def _ranked_lines(explained: Mapping[str, Any]) -> list[str]:
    ranked = explained["ranked"]
    if not ranked:
        return ["No pool may run it."]
    rows = [
        [
            str(entry["rank"]),
            entry["pool"],
            entry["kind"],
            where(entry["locations"]),
            seat(entry["operator"]),
            entry["tenancy"] or "unknown",
            entry["evidence_checked"] or "unknown",
            f"{usd(entry['cost']['micro_usd'])} per {entry['cost']['per']}",
            str(entry["score"]),
        ]
        for entry in ranked
    ]
    titles = ["rank", "pool", "kind", "where", "operator", "tenancy", "evidence", "cost", "score"]
    shown = f"It may run on {_pools(explained['ranked_total'])}"
    head = shown + (f"; the first {len(ranked)}:" if len(ranked) < explained["ranked_total"] else ":")
    lines = [head, "", *table(titles, rows)]
    for entry in ranked:
        lines += [f"  {entry['pool']} warns: {warning['message']}" for warning in entry["warnings"]]
    return lines


def _waiver_lines(explained: Mapping[str, Any]) -> list[str]:
    """What persons have lifted for it."""
    waivers = explained.get("waivers", ())
    return ["", "It stands on what persons have lifted:", *map(_waiver_line, waivers)] if waivers else []


def _waiver_line(waiver: Mapping[str, Any]) -> str:
    scope = [f"{name} {waiver[name]}" for name in ("project", "pool", "model") if waiver[name] is not None]
    where = f" for {', '.join(scope)}" if scope else ""
    kind, rule = waiver["kind"].replace("_", " "), waiver["rule"] or "every soft rule"
    who = waiver["approved_by"] or "somebody who cannot be named any more"
    return f"  {kind} {waiver['id']} lifts {rule}{where} until {waiver['expires_at']}, by {who}"


def _rejected_lines(explained: Mapping[str, Any]) -> list[str]:
    rejected, hidden = explained["rejected"], explained["hidden_total"]
    lines = [f"It may not run on {_pools(len(rejected))}" + (f", and on {hidden} that are not shown" if hidden else "")]
    for entry in rejected:
        lines += ["", f"{entry['pool']} ({entry['kind']}, {where(entry['locations'])})"]
        for violation in entry["violations"]:
            lines += [
                f"  {violation['policy']}.{violation['rule']} ({violation['enforcement']}), {violation['location']}",
                f"    {violation['message']}",
                f"    observed {words(violation['observed'])}; required {words(violation['required'])}",
                f"    remedy: {violation['remedy']}",
            ]
    return lines


def _cost_lines(explained: Mapping[str, Any]) -> list[str]:
    if not explained["forgone"]:
        return ["No refused pool that you may see has a price for this workload."]
    lines = ["What the cheapest refused pools would have cost:"]
    first = explained["ranked"][0] if explained["ranked"] else None
    for entry in explained["forgone"]:
        refused_by = ", ".join(entry["refused_by"])
        line = f"  {entry['pool']} ({entry['kind']}): {usd(entry['micro_usd'])}, refused by {refused_by}"
        percent = entry["dearer_percent"]
        if first is not None and percent is not None:
            relation = f"{percent} % dearer" if percent >= 0 else f"{-percent} % cheaper"
            line += f"; the first choice is {relation} at {usd(first['cost']['micro_usd'])}"
        lines.append(line)
    lines += [
        f"  {policy} alone costs you {percent} %" for policy, percent in sorted(explained["price_of_policy"].items())
    ]
    return lines


def _evidence_lines(explained: Mapping[str, Any]) -> list[str]:
    policy, fleet, audit = explained["policy"], explained["fleet"], explained["audit"]
    facts, observed_at = explained["facts"]["digest"], explained["facts"]["observed_at"]
    return [
        "Evidence",
        f"  policies  {policy['commit'] or 'no commit'}, {policy['digest']}, {policy['engine']}",
        f"  fleet     {fleet['commit'] or 'no commit'}, {fleet['digest']}",
        f"  sheet     {explained['sheet']}",
        f"  facts     {facts}, {f'observed {observed_at}' if observed_at else 'as declared'}",
        f"  log       {audit['log']} entry {audit['index']}, leaf {audit['leaf_hash']}",
        *([f"  request   {explained['request_id']}"] if explained["request_id"] else []),
    ]


def _error_text(explained: Mapping[str, Any]) -> str:
    audit = explained["audit"]
    lines = [
        f"Request {explained['id']}: no decision ({explained['code']})",
        f"{explained['time']}, asked by {explained['principal']}",
        "",
        f"  {explained['detail']}",
        "",
        *_asked_or_counted(explained),
        f"  log       {audit['log']} entry {audit['index']}, leaf {audit['leaf_hash']}",
        *([f"  request   {explained['request_id']}"] if explained["request_id"] else []),
        "",
        "Nothing was allowed.",
    ]
    return "\n".join(lines) + "\n"


def _asked_or_counted(explained: Mapping[str, Any]) -> list[str]:
    """What was asked, or how often the same was refused; a refusal at the door has neither."""
    if "asked" in explained:
        return [f"  asked     {orjson.dumps(explained['asked']).decode()}"]
    if "count" in explained:
        return [f"  count     {explained['count']} since {explained['since']}"]
    return []


def _pools(count: int) -> str:
    return "1 pool" if count == 1 else f"{count} pools"


def where(locations: Mapping[str, Sequence[str]]) -> str:
    """Every location of a pool: the places that most aspects share, then each aspect that differs with its own."""
    if not locations:
        return "nobody declared where"
    aspects: dict[str, list[str]] = {}
    for aspect, places in locations.items():
        aspects.setdefault(_places(places), []).append(aspect)
    shared = max(aspects, key=lambda places: len(aspects[places]))
    others = [f"{', '.join(names)} {places}" for places, names in aspects.items() if places != shared]
    return "; ".join([shared, *others])


def seat(operator: Mapping[str, str | None]) -> str:
    """Where the operator sits, and its parent when that sits elsewhere."""
    own, parent = operator["seat"], operator["parent_seat"]
    if own is None:
        return "unknown"
    return own if parent in (None, own) else f"{own}, parent {parent}"


def usd(micro_usd: int) -> str:
    """An amount as text: ``$0.005120``; whole cents from one dollar on."""
    if micro_usd >= 1_000_000:
        cents = -(-micro_usd // 10_000)
        return f"${cents // 100:,}.{cents % 100:02d}"
    return f"$0.{micro_usd:06d}"


def _places(countries: Sequence[str]) -> str:
    """Countries as the groups that they make up, where they do."""
    return " ".join(compact(list(countries))) or "nowhere"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns; a cell over the limit breaks the alignment of its line and loses nothing."""
    widths = [min(CELL_MAX_CHARS, max(len(row[column]) for row in (titles, *rows))) for column in range(len(titles))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (titles, *rows)
    ]
