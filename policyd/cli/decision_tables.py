"""A decision for a person: head, ranked pools, refused pools, and what the refusals cost.

Three lengths: ``draw_brief`` counts refusals; ``draw`` sums them up by rule, so that fifty of them fit a screen;
``draw_full`` adds every component of every score and every violation of every refused pool.

Rules: what is shown comes from the answer and from its sheet, never from a fleet that may have changed since; a hidden
pool is counted and not named; a fact that nobody declared reads "unknown".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from policyd.cli import words
from policyd.cli.listing import Column, draw_rows
from policyd.cli.terminal import BAD, CAREFUL, GOOD, QUIET, grid, pairs

if TYPE_CHECKING:
    from rich.console import Console

    from policyd.services.answers import Made

ONE_BY_ONE_MAX: Final = 8
"""Refused pools that the short form lists one by one."""
REASON: Final = (
    Column("rule"),
    Column("weight", leaves=2),
    Column("where it stands", leaves=2),
    Column("observed", leaves=1, label="observed", starts=True),
    Column("required", leaves=1, label="required"),
    Column("remedy", leaves=1, label="remedy:", starts=True),
)
"""What is told of a violation."""
RULES_COUNTED: Final = 6
"""Rules that the shortest form names, most pools first."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a person is told: the answer (JSON values), declared facts by pool, and refused pools with their price."""

    answer: Mapping[str, Any]
    pools: Mapping[str, Mapping[str, Any]]
    forgone: Sequence[Mapping[str, Any]]


def told_of(made: Made, answer: Mapping[str, Any]) -> Told:
    """What is told of a decision that this process made or replayed."""
    from policyd.core.explain import forgone

    sheet = made.sheet
    pools = {row.pool: {"kind": row.kind, **row.declared} for row in sheet.rows}
    pools |= {entry.pool: {"kind": entry.kind, **entry.declared} for entry in sheet.refused if not entry.hidden}
    return Told(answer, pools, [entry.to_json() for entry in forgone(made.workload, sheet, made.decision)])


def told_from(explanation: Mapping[str, Any]) -> Told:
    """What is told of a decision by its explanation (``policyd.services.explanation``), as a server gives it."""
    ranked = explanation["ranked"]
    chosen = ranked[0]["cost"]["micro_usd"] if ranked else None
    pools = {entry["pool"]: entry for entry in (*ranked, *explanation["rejected"])}
    priced = [entry for entry in explanation["rejected"] if entry["micro_usd"] is not None]
    forgone = [
        {
            "pool": entry["pool"],
            "kind": entry["kind"],
            "micro_usd": entry["micro_usd"],
            "dearer_percent": _dearer_percent(chosen, entry["micro_usd"]),
            "refused_by": list(dict.fromkeys(violation["policy"] for violation in entry["violations"])),
        }
        for entry in sorted(priced, key=lambda entry: (entry["micro_usd"], entry["pool"]))
    ]
    return Told(explanation, pools, forgone)


def _dearer_percent(chosen: int | None, cost: int) -> int | None:
    return None if chosen is None or cost == 0 else (100 * (chosen - cost) + cost // 2) // cost


def check_pools(told: Told, pools: Sequence[str]) -> None:
    """Raise ``UnknownName`` for a pool that the decision does not name."""
    from policyd.core.normalise import known, nearest
    from policyd.errors import UnknownName

    named = {entry["pool"]: True for entry in (*told.answer["ranked"], *told.answer["rejected"])}
    shown, total = len(told.answer["ranked"]), told.answer["ranked_total"]
    for pool in pools:
        if pool not in named and shown < total:
            raise UnknownName(
                f"the decision names no pool {pool!r}{nearest(pool, named)}",
                remedy=f"it may be ranked: {shown} of {total} are shown; decide anew with a higher --limit to see more",
            )
        known(named, pool, "pool of this decision", "--pool")


def draw(told: Told, console: Console) -> None:
    """The short form."""
    _head(told, console)
    _ranked(told, console)
    _prices(told, console)
    _refused_in_short(told, console)
    _rest(told, console)


def draw_brief(told: Told, console: Console) -> None:
    """The shortest form: refusals are only counted."""
    _head(told, console)
    _ranked(told, console)
    _prices(told, console)
    counts: dict[str, int] = {}
    for entry in told.answer["rejected"]:
        for rule in {_rule(violation) for violation in entry["violations"]}:
            counts[rule] = counts.get(rule, 0) + 1
    if counts:
        ordered = sorted(counts, key=lambda rule: (-counts[rule], rule))
        listed = ", ".join(f"{rule} {counts[rule]}" for rule in ordered[:RULES_COUNTED])
        others = len(ordered) - RULES_COUNTED
        more = f", and {words.plural(others, 'other rule')}" if others > 0 else ""
        console.print(f"Refused: {words.plural(len(told.answer['rejected']), 'pool')} ({listed}{more})", style=QUIET)


def draw_full(told: Told, console: Console, pools: Sequence[str] = ()) -> None:
    """The long form; ``pools`` narrows the details to these."""
    _head(told, console, _workload(told))
    _ranked(told, console)
    _prices(told, console)
    for entry in told.answer["ranked"]:
        if not pools or entry["pool"] in pools:
            _components(entry, console)
    if pools or len(told.answer["rejected"]) <= ONE_BY_ONE_MAX:
        _refused_one_by_one(told, console, pools)
    else:
        _refused_by_rule(told, console)
        _refused_alike(told, console)
    _rest(told, console)


def draw_guided(told: Told, console: Console) -> None:
    """The long form for a first reader: all components, refusals by rule, and the cheapest refused pool in full."""
    _head(told, console, _workload(told))
    _ranked(told, console)
    _prices(told, console)
    for entry in told.answer["ranked"]:
        _components(entry, console)
    _refused_in_short(told, console)
    if len(told.answer["rejected"]) > ONE_BY_ONE_MAX and told.forgone:
        _refused_one_by_one(told, console, [told.forgone[0]["pool"]])
    _rest(told, console)


def _head(told: Told, console: Console, more: Mapping[str, str] | None = None) -> None:
    from rich.text import Text

    answer = told.answer
    allowed = answer["outcome"] == "allow"
    ranked, refused, hidden = answer["ranked_total"], len(answer["rejected"]), answer["hidden_total"]
    total = ranked + refused + hidden
    head = Text(answer["outcome"].upper(), style=f"bold {GOOD if allowed else BAD}")
    because = "" if allowed else f", denied by {answer.get('denied_by')}"
    head.append(f"  {ranked} of {words.plural(total, 'pool')} may run it{because}", style="bold")
    console.print(head)
    policy, fleet = answer["policy"], answer["fleet"]
    console.print(
        pairs(
            {
                "decision": f"{answer['id']}  {answer['time'][:19]}Z  holds until {answer['valid_until'][:19]}Z",
                "workload": _asked(answer["workload"]),
                "policies": f"{words.revision(policy['commit'], policy['digest'])}  on {policy['engine']}",
                "fleet": words.revision(fleet["commit"], fleet["digest"]),
                **(more or {}),
            }
        )
    )


def _asked(workload: Mapping[str, Any]) -> str:
    path = "/".join(workload[name] for name in ("tenant", "project", "environment"))
    data = workload["data"]
    return (
        f"{path}  {workload['model']}  {workload['sla_class']}  {data['classification']} data "
        f"in {words.places(data['residency'])}"
    )


def _workload(told: Told) -> dict[str, str]:
    """The workload as normalised: what floors and defaults made of the request."""
    workload = told.answer["workload"]
    data = workload["data"]
    touched = {name: data[name] for name in ("categories", "sources") if data[name]}
    return {
        "version": workload["model_version"],
        "profile": words.value(workload["profile"]),
        "data": words.value(touched),
        "needs": words.value({name: found for name, found in workload["resources"].items() if found}),
        "demand": words.value(workload["demand"]),
    }


def _ranked(told: Told, console: Console) -> None:
    ranked = told.answer["ranked"]
    if not ranked:
        return
    columns = (
        Column("#", right=True),
        Column("pool"),
        Column("kind", leaves=2),
        Column("where", leaves=1),
        Column("operator", leaves=1, label="operator"),
        Column("tenancy", leaves=1),
        Column("evidence", leaves=1, label="evidence"),
        Column(f"$/{ranked[0]['cost']['per']}", right=True),
        Column("$/M tok", right=True, leaves=2, label="$/M tok"),
        Column("score", right=True),
    )
    console.print()
    draw_rows(console, columns, [_ranked_row(entry, told.pools.get(entry["pool"], {})) for entry in ranked])
    _warnings(ranked, console)


def _ranked_row(entry: Mapping[str, Any], pool: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(entry["rank"]),
        entry["pool"],
        str(pool.get("kind", "unknown")),
        words.where(pool.get("locations", {})),
        words.operator(pool.get("operator", {})),
        _tenancy(pool),
        str(pool.get("evidence_checked") or "unknown"),
        words.usd(entry["cost"]["micro_usd"]) + ("*" if entry["cost"]["price_status"] == "assumed" else ""),
        words.usd(entry["cost"]["micro_usd_per_million_tokens"]),
        str(entry["score"]),
    )


def _warnings(ranked: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Each warning once, with the pools that it is about."""
    warned: dict[str, list[str]] = {}
    for entry in ranked:
        for warning in entry["warnings"]:
            warned.setdefault(warning["message"], []).append(entry["pool"])
    for message, pools in warned.items():
        about = f"all {len(pools)} pools above" if len(pools) == len(ranked) > 1 else ", ".join(pools)
        console.print(f"warning for {about}: {message}", style=CAREFUL)


def _tenancy(pool: Mapping[str, Any]) -> str:
    return str(pool.get("tenancy") or "unknown").replace("_", " ")


def _prices(told: Told, console: Console) -> None:
    """Assumed prices, pools that ``limit`` cut off, and what each policy costs."""
    ranked = told.answer["ranked"]
    left_out = told.answer["ranked_total"] - len(ranked)
    if left_out > 0:
        console.print(
            f"{words.plural(left_out, 'more pool')} ranked below; `policyd decide --limit N` shows them", style=QUIET
        )
    assumed = sum(entry["cost"]["price_status"] == "assumed" for entry in ranked)
    if assumed:
        console.print(f"* {assumed} of {words.plural(len(ranked), 'ranked price')}: assumed, not quoted", style=CAREFUL)
    for sentence in sentences(told):
        console.print(sentence)


def sentences(told: Told) -> list[str]:
    """What the refusals cost: for each policy that alone keeps a cheaper pool away, else for the cheapest pool."""
    chosen = told.answer["ranked"][0]["cost"]["micro_usd"] if told.answer["ranked"] else None
    said: dict[str, str] = {}
    for entry in told.forgone:
        refused_by, percent = entry["refused_by"], entry["dearer_percent"]
        if len(refused_by) == 1 and percent is not None and percent > 0:
            said.setdefault(
                refused_by[0],
                f"{refused_by[0]}: the first choice ({words.usd(chosen)}) costs {percent} % more than {entry['pool']} "
                f"({words.usd(entry['micro_usd'])}), which {refused_by[0]} alone refuses",
            )
    if said or not told.forgone:
        return [said[policy] for policy in sorted(said)]
    best = told.forgone[0]
    compared = "" if chosen is None else f"; the first choice costs {words.usd(chosen)}"
    return [
        f"the cheapest refused pool, {best['pool']}, would cost {words.usd(best['micro_usd'])}{compared} "
        f"(refused by {', '.join(best['refused_by'])})"
    ]


def _refused_in_short(told: Told, console: Console) -> None:
    """A few refused pools one by one; many of them by rule, with those named that one rule alone keeps away."""
    rejected = told.answer["rejected"]
    if len(rejected) <= ONE_BY_ONE_MAX:
        _refused_one_by_one(told, console, ())
        return
    _refused_by_rule(told, console)
    console.print(f"A pool may break several; pool by pool: policyd explain {told.answer['id']}", style=QUIET)


def _refused_by_rule(told: Told, console: Console) -> None:
    """A line for each rule, and the pools that one rule alone keeps away."""
    rejected = told.answer["rejected"]
    reasons: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    alone: dict[str, list[str]] = {}
    for entry in rejected:
        rules = {_rule(violation) for violation in entry["violations"]}
        if len(rules) == 1:
            alone.setdefault(rules.pop(), []).append(entry["pool"])
        for violation in entry["violations"]:
            reasons.setdefault(_rule(violation), []).append((entry["pool"], violation))
    console.print()
    console.print(f"Refused: {words.plural(len(rejected), 'pool')}, by rule", style="bold")
    ordered = sorted(reasons.items(), key=lambda item: (-len(_pools(item[1])), item[0]))
    draw_rows(console, (Column("pools", right=True), *REASON), [_reason(name, cases) for name, cases in ordered])
    if alone:
        console.print()
        console.print("One rule away from being ranked", style="bold")
        console.print(pairs({name: ", ".join(pools) for name, pools in sorted(alone.items())}))


def _rule(violation: Mapping[str, Any]) -> str:
    return f"{violation['policy']}.{violation['rule']}"


def _pools(cases: Iterable[tuple[str, Mapping[str, Any]]]) -> set[str]:
    return {pool for pool, _ in cases}


def _reason(rule: str, cases: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, ...]:
    """One rule in a line of the table: observed and required values, the most frequent one with its count."""
    first = cases[0][1]
    return (
        str(len(_pools(cases))),
        rule,
        first["enforcement"],
        first["location"],
        _most_frequent([words.value(violation["observed"]) for _, violation in cases]),
        _most_frequent([words.value(violation["required"]) for _, violation in cases]),
        first["remedy"],
    )


def _most_frequent(values: Sequence[str]) -> str:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    best = min(counts, key=lambda value: (-counts[value], value))
    if len(counts) == 1:
        return best
    return f"{best} ({counts[best]} of {len(values)}, {words.plural(len(counts) - 1, 'other value')})"


def _refused_one_by_one(told: Told, console: Console, pools: Sequence[str]) -> None:
    rejected = [entry for entry in told.answer["rejected"] if not pools or entry["pool"] in pools]
    if not rejected:
        return
    console.print()
    total = len(told.answer["rejected"])
    these = "" if len(rejected) == total else f" of {total}, in full"
    console.print(f"Refused: {words.plural(len(rejected), 'pool')}{these}", style="bold")
    for entry in rejected:
        console.print()
        _refused_pool(told, entry["pool"], console)
        draw_rows(
            console,
            REASON,
            [
                (
                    _rule(violation),
                    violation["enforcement"],
                    violation["location"],
                    words.value(violation["observed"]),
                    words.value(violation["required"]),
                    violation["remedy"],
                )
                for violation in entry["violations"]
            ],
        )


def _refused_alike(told: Told, console: Console) -> None:
    """Every refused pool; those with the same reasons stand together above them. Remedies stand by the rules."""
    alike: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
    for entry in told.answer["rejected"]:
        reasons = tuple(
            (_rule(violation), words.value(violation["observed"]), words.value(violation["required"]))
            for violation in entry["violations"]
        )
        alike.setdefault(reasons, []).append(entry["pool"])
    console.print()
    console.print("Refused, pool by pool (--pool POOL gives one with its remedies)", style="bold")
    for reasons, pools in sorted(alike.items(), key=lambda item: (len(item[0]), item[1])):
        console.print()
        for pool in pools:
            _refused_pool(told, pool, console)
        table = grid(("rule", "observed", "required"), keep=("rule",))
        for rule, observed, required in reasons:
            table.add_row(f"  {rule}", observed, f"required {required}")
        table.show_header, table.box, table.padding = False, None, (0, 2, 0, 0)
        console.print(table)


def _refused_pool(told: Told, name: str, console: Console) -> None:
    """A refused pool in a line: what it is, where, whose, and what it would have cost."""
    from rich.text import Text

    pool = told.pools.get(name, {})
    would_cost = next((entry["micro_usd"] for entry in told.forgone if entry["pool"] == name), None)
    title = Text(name, style="bold")
    title.append(
        f"  {pool.get('kind', 'unknown')}  {words.where(pool.get('locations', {}))}  "
        f"operator {words.operator(pool.get('operator', {}))}  {_tenancy(pool)}  would cost {words.usd(would_cost)}",
        style="not bold default",
    )
    console.print(title)


def _components(entry: Mapping[str, Any], console: Console) -> None:
    """How a score came about: value times weight of each component, with what the value was made of."""
    from rich.text import Text

    cost = entry["cost"]
    console.print()
    title = Text(f"{entry['rank']}. {entry['pool']}", style="bold")
    title.append(f"  score {entry['score']}", style="bold")
    console.print(title)
    table = grid(("component", "value", "x weight", "= points", "made of"), right=("value", "x weight", "= points"))
    for component in entry["components"]:
        points = component["value"] * component["weight"]
        table.add_row(
            component["name"],
            str(component["value"]),
            str(component["weight"]),
            f"{points // 1000}.{points % 1000:03d}",
            _inputs(component["inputs"]),
        )
    console.print(table)
    other = cost.get("other_basis")
    beside = f"; {other['basis'].replace('_', ' ')} it would be {words.usd(other['micro_usd'])}" if other else ""
    console.print(
        f"{words.usd(cost['micro_usd'])} per {cost['per']}: {cost['basis']}{beside}. Price: {cost['price_status']}, "
        f"{cost['price_source']}, checked {cost['price_checked']}"
    )


def _inputs(inputs: Mapping[str, Any]) -> str:
    said = [
        f"cost {words.usd(found)}" if name == "micro_usd" else f"{name.replace('_', ' ')} {words.value(found)}"
        for name, found in inputs.items()
    ]
    return ", ".join(said) or "-"


def _rest(told: Told, console: Console) -> None:
    answer = told.answer
    lines: dict[str, str] = {}
    if answer["obligations"]:
        lines["obligations"] = "; ".join(_obligation(obligation) for obligation in answer["obligations"])
    if answer["hidden_total"]:
        lines["hidden"] = f"{words.plural(answer['hidden_total'], 'pool')} that this tenant may not see"
    if answer.get("audit"):
        lines["log"] = f"entry {answer['audit']['index']} of {answer['audit']['log']}"
    if lines:
        console.print()
        console.print(pairs(lines))


def _obligation(obligation: Mapping[str, Any]) -> str:
    said = f"{obligation['name']} {words.value(obligation.get('value'))}"
    pools: Iterable[str] = obligation.get("pools", ())
    return f"{said} ({', '.join(pools)})" if pools else said


def draw_error(document: Mapping[str, Any], console: Console) -> None:
    """An entry that brought no decision: what was asked, by whom, and what stood in the way."""
    console.print(f"ERROR  {document['code']}: nothing was allowed", style=f"bold {BAD}")
    facts = {
        "entry": f"{document['id']}  {document['time'][:19]}Z",
        "detail": document["detail"],
        "asked by": document["principal"] + (f", request {asking}" if (asking := document.get("request_id")) else ""),
        **({"asked": words.value(document["asked"])} if "asked" in document else {}),
        **({"count": f"{document['count']} since {document['since']}"} if "count" in document else {}),
        "page": f"docs/errors/{document['code']}.md",
    }
    console.print(pairs(facts))
